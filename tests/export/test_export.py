"""Exported files are self-contained, equal the network, and run as ONNX without torch."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy.special import expit, softmax

import mltr
from mltr.cli import main
from mltr.data.preprocess import IMAGENET, Preprocess
from mltr.errors import MltrError, UsageError
from mltr.export import writing
from mltr.export.checking import check, find_photos
from mltr.export.command import SUFFIX
from mltr.export.writing import export
from mltr.network.model import create_model, default_image_size
from mltr.network.variants import VARIANTS
from mltr.predict.exported import load_onnx
from mltr.weights.bundle import load_bundle, save_bundle
from mltr.weights.metadata import SOFTMAX, Calibration

CLASSES = ("sea", "sunset", "tree", "path")
SMALL: dict[str, Any] = {"depths": (0, 0, 1), "image_size": 32}


def save_random(
    folder: Path, name: str, side: int, overrides: dict[str, Any] | None = None, **rest: Any
) -> Path:
    """Write a bundle of an untrained network with confident scores."""
    torch.manual_seed(0)
    overrides = overrides or {}
    model = create_model(name, num_classes=len(CLASSES), **overrides).eval()
    with torch.no_grad():
        spread = model(torch.randn(8, 3, side, side)).std()
        for key, weight in model.named_parameters():
            if key in ("head.weight", "head.fc.weight", "fc.weight"):
                weight.mul_(2 / spread)
    settings: dict[str, Any] = {
        "preprocess": Preprocess(side, *IMAGENET), "thresholds": [0.2, 0.4, 0.6, 0.8],
    }  # fmt: skip
    save_bundle(
        folder, model=model, name=name, overrides=overrides, classes=CLASSES, **settings | rest
    )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    calibration = Calibration("platt", (2.0, 1.0, 0.5, 1.0), (0.1, 0.0, -0.2, 0.3))
    folder = tmp_path_factory.mktemp("run")
    return save_random(folder, "mltr_nano", 32, SMALL, calibration=calibration)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for number in range(12):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(pixels).resize((80, 60))
        image.save(folder / f"{number:02}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def onnx_file(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(str(run), path, images=str(photos))
    return path


def check_logits(run: Path, path: Path, tolerance: float = 1e-4) -> None:
    """Compare an ONNX file with the network for batches of 1 and 3; 2 images were traced."""
    bundle = load_bundle(run)
    network, _ = load_onnx(path, "cpu")
    side = bundle.preprocess.image_size
    for batch_size in (1, 3):
        rng = np.random.default_rng(batch_size)
        pixels = rng.integers(0, 256, (batch_size, side, side, 3), np.uint8)
        mean, std = (np.array(values, np.float32) for values in IMAGENET)
        images = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            expected = bundle.model(torch.from_numpy(np.ascontiguousarray(images))).numpy()
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(network(pixels), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n != "mltr_nano" else ()) for n in VARIANTS],
)
@pytest.mark.timeout(1800)
def test_onnx_logits_of_every_variant(name: str, tmp_path: Path) -> None:
    run = save_random(tmp_path / "run", name, default_image_size(name))
    export(str(run), tmp_path / "model.onnx")
    check_logits(run, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["csra", "query2label", "ml_decoder"])
def test_onnx_logits_of_every_head(head: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "head": head}
    if head == "csra":
        options["head_options"] = {"num_heads": 4, "lam": 0.3}
    run = save_random(tmp_path / "run", "mltr_nano", 32, options)
    export(str(run), tmp_path / "model.onnx")
    check_logits(run, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_onnx_logits_of_timm_backbones(name: str, tmp_path: Path) -> None:
    run = save_random(tmp_path / "run", f"timm/{name}", 224)
    export(str(run), tmp_path / "model.onnx")
    check_logits(run, tmp_path / "model.onnx")


def test_onnx_logits_of_tokens_under_a_head_for_maps(tmp_path: Path) -> None:
    run = save_random(tmp_path / "run", "timm/test_vit", 160, {"head": "ml_decoder"})
    export(str(run), tmp_path / "model.onnx")
    check_logits(run, tmp_path / "model.onnx")


def test_the_file_says_all_that_its_use_needs(run: Path, onnx_file: Path, photos: Path) -> None:
    """onnx and onnxruntime suffice to read it, without mltr."""
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    config = json.loads({entry.key: entry.value for entry in model.metadata_props}["mltr"])
    own = json.loads((run / "config.json").read_text())
    assert {key: config[key] for key in own} == own
    assert config["export"]["input"] == "uint8"
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    side = config["preprocess"]["image_size"]
    image = Image.open(photos / "00.png").convert("RGB").resize((side, side), Image.BILINEAR)
    session = onnxruntime.InferenceSession(onnx_file)
    (logits,) = session.run(["logits"], {"images": np.asarray(image)[None]})[0]
    scale, shift = (np.array(config["calibration"][key]) for key in ("scale", "shift"))
    probs = 1 / (1 + np.exp(-(logits * scale + shift)))
    np.testing.assert_allclose(mltr.load(run)(photos / "00.png").probs, probs, atol=1e-4)


@pytest.mark.parametrize(
    ("to", "precision", "takes_pixels", "tolerance"),
    [
        ("onnx", "fp32", False, 1e-4),
        ("torch", "fp32", True, 1e-4),
        ("onnx", "fp16", True, 0.01),
        ("torch", "bf16", True, 0.1),
        ("onnx", "int8", True, 0.2),
    ],
)
def test_every_kind_of_file_predicts_as_the_run(
    run: Path, onnx_file: Path, photos: Path, tmp_path: Path, to: str, precision: str,
    takes_pixels: bool, tolerance: float,
) -> None:  # fmt: skip
    path = tmp_path / f"model{SUFFIX[to]}"
    result = export(
        str(run), path, to=to, precision=precision, takes_pixels=takes_pixels, images=str(photos)
    )
    assert (result.images, result.source) == (6, f"of {photos}")
    assert (result.seconds is not None) == (precision == "int8")
    paths = sorted(photos.glob("*.png"))
    expected, exported = mltr.load(run), mltr.load(path)
    assert exported.classes == CLASSES
    np.testing.assert_array_equal(exported.thresholds, expected.thresholds)
    for before, after in zip(expected(paths), exported(paths), strict=True):
        np.testing.assert_allclose(after.probs, before.probs, atol=tolerance)
    with pytest.raises(UsageError, match="an exported network can only predict"):
        _ = exported.model
    if precision in ("fp16", "int8"):
        assert path.stat().st_size < 0.6 * onnx_file.stat().st_size


def test_int8_spends_no_bits_on_what_relu6_cuts_off() -> None:
    pytest.importorskip("onnxscript")
    from mltr.export.int8 import quantize

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU6()).eval()
    with torch.no_grad():
        network[0].weight[0] *= 1000  # one channel goes far beyond 6
    images = torch.randn(8, 3, 4, 4)
    model = quantize(writing.to_onnx(torch.export.export(network, (images,))), images.numpy())
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"images": images.numpy()})
    expected = network(images).detach().numpy()
    assert expected[:, 1:].max() > 1
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], atol=0.1)


def test_a_file_that_deviates_is_not_written(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("previous")
    original = writing.trace

    def trace_damaged(bundle: Any, *rest: Any) -> Any:
        with torch.no_grad():
            bundle.model.head.bias[1] += 3e-3
        program = original(bundle, *rest)
        with torch.no_grad():
            bundle.model.head.bias[1] -= 3e-3
        return program

    monkeypatch.setattr(writing, "trace", trace_damaged)
    with pytest.raises(
        MltrError, match=r"not written: on 6 images of .*, logits differ by up to 0.003"
    ):
        export(str(run), path, to="torch", images=str(photos))
    assert path.read_text() == "previous"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


NO_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "safetensors", "onnx"):
    sys.modules[name] = None
"""


def run_without_torch(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", NO_TORCH + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_predict_runs_without_torch(
    onnx_file: Path, run: Path, photos: Path, tmp_path: Path, form: str
) -> None:
    for path in photos.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    out, sheet = tmp_path / f"out.{form}", tmp_path / "sheet.png"
    arguments = ["predict", onnx_file, tmp_path, "--out", out, "--sheet", sheet, "--sidecars"]
    run_without_torch(
        f"from mltr.cli import main\nsys.exit(main({[str(part) for part in arguments]!r}))"
    )
    with Image.open(sheet) as image:
        assert image.width > 100
    expected = mltr.load(run)(tmp_path / "03.png").labels
    sidecar = (tmp_path / "03.txt").read_text().strip()
    assert sidecar == ", ".join(name for name, _ in expected)
    if form == "csv":
        rows = list(csv.DictReader(out.open()))
        assert [Path(row["path"]).name for row in rows] == [f"{n:02}.png" for n in range(12)]


def test_load_runs_without_torch_and_from_several_threads(onnx_file: Path, photos: Path) -> None:
    printed = run_without_torch(
        f"import mltr\ntagger = mltr.load({str(onnx_file)!r})\n"
        f"print(tagger({str(photos / '00.png')!r}).probs.tolist())"
    )
    tagger = mltr.load(onnx_file)
    paths = sorted(photos.glob("*.png")) * 4
    with ThreadPoolExecutor(8) as pool:
        found = [each.probs for each in pool.map(tagger, paths)]
    np.testing.assert_allclose(json.loads(printed), found[0], atol=1e-6)
    alone = [each.probs for each in tagger(paths)]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_damaged_and_foreign_files_are_named(onnx_file: Path, run: Path, tmp_path: Path) -> None:
    def told(path: Path, **options: Any) -> str:
        with pytest.raises(MltrError) as caught:
            mltr.load(path, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    assert "no such file" in told(tmp_path / "none.onnx")
    for name in ("cut.onnx", "cut.pt2"):
        (tmp_path / name).write_bytes(onnx_file.read_bytes()[:5000])
        assert f"{name} can't be run by" in told(tmp_path / name)
    foreign = onnx.load(onnx_file)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert "it wasn't written by `mltr export`" in told(tmp_path / "foreign.onnx")
    onnx.helper.set_model_props(foreign, {"mltr": (run / "config.json").read_text()})
    onnx.save(foreign, tmp_path / "foreign.onnx")
    assert "export.input must be uint8 or float32" in told(tmp_path / "foreign.onnx")
    assert "not one of onnxruntime's" in told(onnx_file, device="tpu")
    assert "has no CUDA" in told(onnx_file, device="cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--to", "torch", "--precision", "int8"],
            "--to torch supports fp32, fp16, bf16, not int8",
        ),
        (["--precision", "bf16"], "--to onnx supports fp32, fp16, int8, not bf16"),
        (["--out", "model.pt2"], "with --to onnx, the name must end in .onnx"),
        (["--out", "taken.onnx"], "taken.onnx already exists"),
        (["--images", "nowhere"], "no such file or folder: nowhere"),
        (["--precision", "int8"], "int8 needs real images for calibration"),
    ],
)
def test_wrong_usage_is_named(
    options: list[str], words: str, run: Path, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("taken.onnx").touch()
    if "--out" not in options:
        options = [*options, "--out", "model.pt2" if "torch" in options else "model.onnx"]
    assert main(["export", str(run), *options]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.onnx"]


def test_a_missing_package_is_named_with_its_extra(
    run: Path, onnx_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["predict", str(onnx_file), str(photos / "00.png"), "--engine", "onnx"]) == 2
    assert f"{onnx_file} needs onnxruntime: pip install 'mltr[onnx]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "needs onnxscript: pip install 'mltr[export]'" in capsys.readouterr().err


def test_the_command_tells_what_it_did(
    run: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "deep" / "model.pt2"
    options = ["--to", "torch", "--out", str(out), "--images", str(photos)]
    assert main(["export", str(run), *options]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: fp32" in printed
    assert f"checked on 6 images of {photos}" in printed
    assert main(["predict", str(out), str(photos / "00.png"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["path"].endswith("00.png")


# -- files that others made --------------------------------------------------------------------


def save_onnx(path: Path, nodes: list[Any], side: int = 8) -> Path:
    """Write a network of these nodes, from `mean` [B, 3] to `logits`, with our metadata."""
    helper, kind = onnx.helper, onnx.TensorProto
    start = [
        helper.make_node("Cast", ["images"], ["floats"], to=kind.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["mean"], axes=[1, 2], keepdims=0),
    ]
    graph = helper.make_graph(
        [*start, *nodes],
        "network",
        [helper.make_tensor_value_info("images", kind.UINT8, ["B", side, side, 3])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["B", "K"])],
        [helper.make_tensor("true", kind.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = {
        "format_version": 1, "model": {"name": "mltr_nano", "overrides": {}},
        "classes": ["a", "b", "c"], "thresholds": None, "preprocess": Preprocess(side).to_dict(),
        "export": {"input": "uint8"},
    }  # fmt: skip
    helper.set_model_props(model, {"mltr": json.dumps(config)})
    onnx.save(model, path)
    return path


def endless_loop() -> list[Any]:
    """Return the nodes of an infinite loop that doesn't change the mean."""
    helper, kind = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", kind.INT64, []),
            helper.make_tensor_value_info("go_on", kind.BOOL, []),
            helper.make_tensor_value_info("before", kind.FLOAT, ["B", 3]),
        ],
        [
            helper.make_tensor_value_info("still", kind.BOOL, []),
            helper.make_tensor_value_info("after", kind.FLOAT, ["B", 3]),
        ],
    )
    return [helper.make_node("Loop", ["", "true", "mean"], ["logits"], body=body)]


def test_a_network_without_end_is_given_up(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "endless.onnx", endless_loop())
    with pytest.raises(MltrError, match="no result within 1 s"):
        load_onnx(path, limit_s=1)
    if find_spec("openvino"):
        with pytest.raises(MltrError, match="has a loop"):
            mltr.load(path, engine="openvino")


def test_an_onnx_file_of_nan_is_reported(tmp_path: Path, capsys: Any) -> None:
    node = onnx.helper.make_node
    whole = save_onnx(tmp_path / "whole.onnx", [node("Identity", ["mean"], ["logits"])])
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    assert mltr.load(whole)(white).probs == pytest.approx([1, 1, 1])

    always = save_onnx(tmp_path / "nan.onnx", [node("Div", ["mean", "mean"], ["logits"])])
    Image.fromarray(white).save(tmp_path / "white.png")
    assert main(["predict", str(always), str(tmp_path)]) == 1  # 0 / 0 for a black image
    assert f"{always} predicts NaN for a black image" in capsys.readouterr().err

    sometimes = [node("Neg", ["mean"], ["below"]), node("Sqrt", ["below"], ["logits"])]
    predictor = mltr.load(save_onnx(tmp_path / "sometimes.onnx", sometimes))
    assert predictor(black).probs == pytest.approx([0.5] * 3)
    with pytest.raises(MltrError, match="predicts NaN"):
        predictor(white)


def test_logits_of_other_classes_are_reported(tmp_path: Path) -> None:
    double = [onnx.helper.make_node("Concat", ["mean", "mean"], ["logits"], axis=1)]
    with pytest.raises(MltrError, match="6.* values for an image"):
        mltr.load(save_onnx(tmp_path / "double.onnx", double))


def test_a_run_of_nan_is_reported(tmp_path: Path) -> None:
    folder = save_random(tmp_path / "run", "mltr_nano", 32, SMALL)
    bundle = load_bundle(folder, torch.device("cpu"))
    with torch.no_grad():
        for weight in bundle.model.parameters():
            weight.fill_(3e38)  # overflows to NaN; bundles with NaN can't be saved
    save_bundle(
        folder, model=bundle.model, name="mltr_nano", overrides=SMALL, classes=CLASSES,
        preprocess=bundle.preprocess, thresholds=[0.5] * 4,
    )  # fmt: skip
    with pytest.raises(MltrError, match="predicts NaN"):
        mltr.load(folder, "cpu")(np.zeros((9, 9, 3), np.uint8))


PAGE = Path(__file__).parents[2] / "docs" / "export.md"
CALIBRATIONS = {
    "plain": None,
    "platt": Calibration("platt", (2.0, 1.0, 0.5, 1.0), (0.1, 0.0, -0.2, 0.3)),
    "softmax": SOFTMAX,
}


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_the_code_of_the_page_gives_the_runs_probabilities(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    calibration = CALIBRATIONS[kind]
    thresholds = None if kind == "softmax" else [0.2, 0.4, 0.6, 0.8]
    run = save_random(
        tmp_path / "run", "mltr_nano", 32, SMALL, calibration=calibration, thresholds=thresholds
    )
    export(str(run), tmp_path / "model.onnx")
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        if "InferenceSession" in block
    )
    found: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), found)
    told = mltr.load(run)("photo.jpg")
    assert np.allclose(found["probs"], told.probs, atol=1e-4)
    said = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert said.keys() == {name for name, _ in told.labels}


@pytest.fixture(scope="module")
def half_file(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.fp16.onnx"
    export(str(run), path, precision="fp16", images=str(photos))
    return path


@pytest.mark.parametrize("kind", CALIBRATIONS)
def test_the_check_compares_probabilities_as_the_run_gives_them(
    kind: str, run: Path, half_file: Path, photos: Path
) -> None:
    bundle = replace(load_bundle(run), calibration=CALIBRATIONS[kind])
    exported, _ = load_onnx(half_file, "cpu")
    result = check(exported, bundle, find_photos(str(run), bundle, str(photos)), "fp16")
    pixels = np.stack([bundle.preprocess.read(path) for path in sorted(photos.glob("*.png"))[::2]])
    with torch.inference_mode():
        before = bundle.model(torch.from_numpy(bundle.preprocess.scale(pixels))).numpy()
    (after,) = onnxruntime.InferenceSession(half_file).run(["logits"], {"images": pixels})
    if kind == "softmax":
        probs = [softmax(logits, axis=1) for logits in (before, after)]
    else:
        scaling = CALIBRATIONS[kind] or Calibration("platt", (1.0,) * 4, (0.0,) * 4)
        scale, shift = np.array(scaling.scale), np.array(scaling.shift)
        probs = [expit(logits * scale + shift) for logits in (before, after)]
    assert len(pixels) == result.images
    assert result.prob_deviation == pytest.approx(np.abs(probs[0] - probs[1]).max(), rel=0.05)
    assert result.prob_deviation > 0


def test_a_network_that_gives_nan_is_reported(tmp_path: Path, photos: Path, capsys: Any) -> None:
    run = save_random(tmp_path / "run", "mltr_nano", 32, SMALL)
    bundle = load_bundle(run)
    for weight in bundle.model.parameters():
        weight.data *= 1e30  # finite, with outputs that aren't
    save_bundle(
        run, model=bundle.model, name="mltr_nano", overrides=SMALL, classes=CLASSES,
        preprocess=bundle.preprocess,
    )  # fmt: skip
    assert main(["predict", str(run), str(photos), "--json", "-"]) == 1
    out, err = capsys.readouterr()
    assert "the network predicts NaN or infinite values" in err
    assert "NaN" not in out
