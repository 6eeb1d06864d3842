"""A frozen backbone: features computed once, a head that learns on them, stages that stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from making import write_image, write_photos
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from trained import checkpoints, same_weights

import mltr
from mltr.cli import main
from mltr.config.recipe import load_recipe
from mltr.config.schema import ModelConfig
from mltr.data import ImageDataset, open_splits
from mltr.evaluation.predictions import predict_split
from mltr.runs.folder import RunFolder
from mltr.training.build import build_model
from mltr.training.probe import FrozenLabels
from mltr.training.run import prepare_run
from mltr.weights.bundle import load_bundle

PHOTOS = 24
SIDE = 64
HEADS = ["average", "csra", "ml_decoder", "query2label", "mltr"]
NETWORKS = [
    *[("test_efficientnet", head) for head in HEADS],
    ("test_vit", "average"), ("test_vit", "mltr"),
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_photos(tmp_path_factory.mktemp("photos"), PHOTOS)
    for index in range(PHOTOS):  # of colours that no two have
        colours = np.random.default_rng(index).integers(0, 256, (3, 4, 3), np.uint8)
        Image.fromarray(colours).resize((40, 30)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of weights that tell photos apart, as an initialisation wouldn't."""
    folder = tmp_path_factory.mktemp("weights")
    return {name: write_weights(folder, name) for name in ("test_efficientnet", "test_vit")}


def write_weights(folder: Path, name: str, seed: int = 1) -> Path:
    torch.manual_seed(seed)
    network = timm.create_model(name, **({"img_size": SIDE} if "vit" in name else {}))
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape) - 0.5
            tensor.copy_(1 + noise if tensor.ndim == 1 else tensor + 0.3 * noise)
    path = folder / f"{name}-{seed}.safetensors"
    save_file(network.state_dict(), path)
    return path


def probe(photos: Path, out: Path, *options: str, name: str = "test_efficientnet") -> int:
    return main(
        ["train", "probe", str(photos), "--out", str(out), f"--model.name=timm/{name}",
         f"--model.image_size={SIDE}", "--model.init=", "--train.epochs=2", "--train.batch_size=4",
         "--train.precision=fp32", "--data.workers=0", *options]
    )  # fmt: skip


@contextmanager
def counted_convolutions() -> Iterator[list[int]]:
    """Count the calls of convolutions, which only backbones have, but for those without numbers."""
    calls: list[int] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: Any) -> None:
        if isinstance(module, nn.Conv2d) and not inputs[0].is_meta:
            calls.append(1)

    handle = nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


# -- features ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head"), NETWORKS)
def test_the_bundle_says_of_photos_what_the_head_said_of_their_features(
    photos: Path, cache: Path, weights, tmp_path: Path, name: str, head: str
) -> None:
    run = tmp_path / "run"
    assert (
        probe(photos, run, f"--model.init={weights[name]}", f"--model.head={head}", name=name) == 0
    )
    bundle, config = load_bundle(run), load_recipe(run / "config.yaml")
    test = open_splits(config.data).test
    whole = predict_split(bundle.model, test, bundle.preprocess)
    with np.load(run / "predictions.npz") as saved:
        error = np.abs(saved["probs"] - whole.probs).max()
        spread = saved["probs"].std(axis=0).max()
    assert error < (1e-5 if head == "average" else 0.01)
    assert error < 0.2 * spread  # from photo to photo


def test_features_of_each_view_are_those_of_timm(
    photos: Path, cache: Path, weights, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert (
        probe(photos, run, f"--model.init={weights['test_efficientnet']}", "--train.views=3") == 0
    )
    config = load_recipe(run / "config.yaml")
    training = prepare_run(config, open_splits(config.data), RunFolder(tmp_path / "other"))
    objective = FrozenLabels(training)
    objective.build_network()
    loader = objective.load_training()
    features, split = objective.features["train"], training.splits.train
    rows = np.arange(len(split))
    pixels = torch.stack([sample.image for sample in ImageDataset(split, training.preprocess)])
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (training.preprocess.mean, training.preprocess.std)
    )
    images = (pixels / 255 - mean) / std
    network = timm.create_model("test_efficientnet").eval()
    network.load_state_dict(load_file(weights["test_efficientnet"]))
    with torch.inference_mode():
        for view, seen in ((0, images), (1, images.flip(3))):
            expected = network.forward_head(network.forward_features(seen), pre_logits=True)
            assert torch.allclose(features.read(view, rows), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(features.read(2, rows), features.read(0, rows), rtol=0.05)
    views = [batch.images for batch in loader.epoch(0)]
    again = [batch.images for batch in loader.epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))


def test_another_head_is_served_from_the_cache(
    photos: Path, cache: Path, weights, tmp_path: Path
) -> None:
    init = f"--model.init={write_weights(tmp_path, 'test_efficientnet', seed=2)}"
    with counted_convolutions() as calls:
        assert probe(photos, tmp_path / "first", init) == 0
    assert calls
    with counted_convolutions() as calls:
        for head in ("csra", "mltr"):
            assert probe(photos, tmp_path / head, init, f"--model.head={head}") == 0
        assert probe(photos, tmp_path / "lr", init, "--train.lr=0.1", "--loss.name=asl") == 0
    assert not calls
    with counted_convolutions() as calls:
        assert probe(photos, tmp_path / "size", init, "--model.image_size=32") == 0
    assert calls


def test_the_backbone_stays_to_the_bit(photos: Path, cache: Path, weights, tmp_path: Path) -> None:
    init = weights["test_efficientnet"]
    assert probe(photos, tmp_path / "run", f"--model.init={init}", "--train.ema_decay=0.9") == 0
    before, after = load_file(init), load_file(tmp_path / "run" / "model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert before.keys() - same == {"classifier.weight", "classifier.bias"}


def test_a_broken_photo_is_counted_and_left_out(
    photos: Path, cache: Path, weights, tmp_path: Path, capsys
) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    options = (f"--model.init={weights['test_efficientnet']}", "--data.max_broken=0.2")
    assert probe(root, tmp_path / "sound", *options) == 0
    splits = json.loads((tmp_path / "sound" / "splits.json").read_text())
    assert not figures(tmp_path / "sound")["broken_training_images"]
    train = open_splits(load_recipe(tmp_path / "sound" / "config.yaml").data).train
    Path(train[0].image).write_bytes(b"no image")
    assert len(splits["train"]) == len(train)
    assert probe(root, tmp_path / "run", *options) == 0
    (message,) = figures(tmp_path / "run")["broken_training_images"]
    assert Path(train[0].image).name in message
    assert probe(root, tmp_path / "strict", options[0]) == 1
    assert "can't be read, more than data.max_broken" in capsys.readouterr().err


def test_what_a_cache_of_little_room_says(
    photos: Path, cache: Path, tmp_path: Path, capsys
) -> None:
    assert probe(photos, tmp_path / "run", "--data.cache_gb=1e-6") == 1
    assert "of features exceed data.cache_gb" in capsys.readouterr().err


def test_a_new_classifier_starts_near_zero(weights: dict[str, Path]) -> None:
    """Timm draws this one from -0.7 to 0.7 for two classes."""
    config = ModelConfig(name="timm/test_efficientnet", init=str(weights["test_efficientnet"]))
    weight = build_model(config, 2, SIDE).classifier.weight
    assert 0 < weight.abs().max() < 0.06


# -- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 6])
@pytest.mark.parametrize("freeze", ["backbone", "2"])
def test_resume_is_exact(
    photos: Path, cache: Path, weights, tmp_path: Path, freeze: str, kept: int
) -> None:
    views = ("--train.views=1", "--augment.crop=random", "--augment.mixup=0.2")
    options = (
        f"--model.init={weights['test_efficientnet']}", "--train.save_minutes=0",
        "--train.keep=100", f"--train.freeze={freeze}", "--train.ema_decay=0.9",
        *(("--train.views=3",) if freeze == "backbone" else views),
    )  # fmt: skip
    whole = tmp_path / "whole"
    assert probe(photos, whole, *options) == 0
    cut = Path(shutil.copytree(whole, tmp_path / "cut"))
    (cut / "metrics.json").unlink()
    assert len(checkpoints(cut)) > kept
    for path in checkpoints(cut)[kept:]:
        shutil.rmtree(path)
    assert probe(photos, cut, *options, "--resume") == 0
    assert same_weights(whole, cut)
    assert figures(whole)["map"] == figures(cut)["map"]


def test_a_run_goes_on_with_no_other_backbone(
    photos: Path, cache: Path, tmp_path: Path, capsys
) -> None:
    init = write_weights(tmp_path, "test_efficientnet", seed=3)
    assert probe(photos, tmp_path / "run", f"--model.init={init}") == 0
    (tmp_path / "run" / "metrics.json").unlink()
    init.write_bytes(write_weights(tmp_path, "test_efficientnet", seed=4).read_bytes())
    assert probe(photos, tmp_path / "run", f"--model.init={init}", "--resume") == 2
    assert "weights are others than when this run began" in capsys.readouterr().err


# -- stages ------------------------------------------------------------------------------------


def test_the_first_stages_stay_and_the_others_learn(
    photos: Path, cache: Path, weights, tmp_path: Path
) -> None:
    init = weights["test_efficientnet"]
    options = (
        f"--model.init={init}",
        "--train.freeze=2",
        "--train.views=1",
        "--train.ema_decay=0.9",
    )
    assert probe(photos, tmp_path / "run", *options, "--augment.flip=true") == 0
    before, after = load_file(init), load_file(tmp_path / "run" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert {"blocks.2.0.conv_exp.weight", "bn2.running_mean", "classifier.weight"} <= moved
    state = torch.load(checkpoints(tmp_path / "run")[-1] / "part-0.pt", weights_only=True)
    learning = [name for name, _ in timm.create_model("test_efficientnet").named_parameters()]
    learning = [name for name in learning if not name.startswith(frozen)]
    assert len(state["shared"]["optimizer"]["state"]) == len(learning)


def test_the_first_stage_of_mltr_stays(
    photos: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mltr")
    options = ["train", "scratch", str(photos), "--model.image_size=64", "--data.workers=0",
               "--data.cache=false", "--train.epochs=1", "--train.batch_size=8"]  # fmt: skip
    assert main([*options, "--train.stop_epoch=1", "--out", str(tmp_path / "first")]) == 0
    assert "`mltr train probe PHOTOS` reaches" in caplog.text  # from scratch
    caplog.clear()
    more = [
        f"--model.init={tmp_path / 'first'}",
        "--train.freeze=1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*options, *more]) == 0
    assert "mltr train probe" not in caplog.text
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "run"))
    moved = {
        name.split(".")[0] + name.split(".")[1] for name in a if not torch.equal(a[name], b[name])
    }
    assert "stages0" not in moved and not [name for name in moved if name.startswith("embed")]
    assert "stages1" in moved


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("scratch", ["--train.freeze=9", "--model.name=timm/test_resnet"], "has 4 stages"),
        ("scratch", ["--train.freeze=9"], "mltr_nano has 3 stages"),
        ("scratch", ["--train.freeze=0"], "a number of stages from 1 on"),
        ("scratch", ["--train.freeze=backbones"], "train.freeze"),
        ("scratch", ["--train.views=2"], "train.views needs train.freeze backbone"),
        ("probe", ["--model.init=", "--model.name=timm/deit_tiny_distilled_patch16_224"],
         "choose another head"),
        ("scratch", ["--train.freeze=1", "--model.name=timm/rdnet_tiny"], "tells no stages"),
    ],
)  # fmt: skip
def test_what_cant_be_frozen_is_reported(
    photos: Path, cache: Path, tmp_path: Path, capsys, recipe: str, options: list[str], message: str
) -> None:
    assert main(["train", recipe, str(photos), "--out", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_norm_between_pooling_and_linear_layer_is_no_linear_probe(
    photos: Path, cache: Path, tmp_path: Path, capsys
) -> None:
    weights = write_weights(tmp_path, "efficientvit_m0")
    options = [f"--model.init={weights}", "--model.image_size=224"]
    assert probe(photos, tmp_path / "run", *options, name="efficientvit_m0") == 2
    assert "classifies by more than one linear layer" in capsys.readouterr().err


# -- what comes after --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(
    photos: Path, cache: Path, weights: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "probed"
    assert (
        probe(photos, out, f"--model.init={weights['test_efficientnet']}", "--train.epochs=5") == 0
    )
    return out


@pytest.fixture(scope="module")
def tuned(photos: Path, cache: Path, probed: Path) -> Path:
    out = probed.parent / "tuned"
    options = ["--model.name=timm/test_efficientnet", f"--model.init={probed}",
               f"--model.image_size={SIDE}", f"--data.base_size={SIDE}", "--data.workers=0",
               "--train.epochs=2", "--train.batch_size=8", "--train.precision=fp32"]  # fmt: skip
    assert main(["train", "photos", str(photos), "--out", str(out), *options]) == 0
    return out


@pytest.fixture(params=["probed", "tuned"])
def run(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_fine_tuning_changes_all_of_the_network(probed: Path, tuned: Path) -> None:
    before, after = (load_file(run / "model.safetensors") for run in (probed, tuned))
    learnt = {name for name in before if before[name].is_floating_point()}
    assert {name for name in learnt if not torch.equal(before[name], after[name])} == learnt


@pytest.mark.parametrize("head", ["average", "csra"])
@pytest.mark.parametrize("before", ["average", "csra"])
def test_a_probe_is_a_start_under_any_head(
    photos: Path, cache: Path, weights, tmp_path: Path, before: str, head: str
) -> None:
    init = weights["test_efficientnet"]
    assert probe(photos, tmp_path / "run", f"--model.init={init}", f"--model.head={before}") == 0
    model = ModelConfig(name="timm/test_efficientnet", init=str(tmp_path / "run"), head=head)
    found = build_model(model, 2, SIDE).state_dict()
    found = {name.removeprefix("backbone."): tensor for name, tensor in found.items()}
    backbone = {n: t for n, t in load_file(init).items() if not n.startswith("classifier.")}
    assert all(torch.equal(found[name], tensor) for name, tensor in backbone.items())
    if head == before:  # then it goes on as it was, with its head
        trained = load_bundle(tmp_path / "run").model.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(found.values(), trained, strict=True))


def test_minutes_are_a_bound_that_a_frozen_backbone_seldom_meets(
    photos: Path, cache: Path, weights, tmp_path: Path
) -> None:
    options = (f"--model.init={weights['test_efficientnet']}", "--train.epochs=6")
    assert probe(photos, tmp_path / "by_time", *options, "--train.minutes=60") == 0
    assert figures(tmp_path / "by_time")["epochs"] == 6


@pytest.mark.parametrize(
    ("command", "options", "file"),
    [
        ("evaluate", ["--rerun"], "predictions.npz"),
        ("diagnose", ["--resamples=20"], "config.json"),
        ("explain", ["PHOTO", "--out=OUT"], "maps/0.png"),
        ("calibrate", ["--min-positives=1"], "reliability.png"),
        ("audit", ["--folds=2", "--split=train"], "audit"),
        ("report", [], "report.html"),
        ("export", [], "model.onnx"),
        ("plan", [], ""),
        ("push", ["me/beach", "--dry-run=OUT"], "maps/README.md"),
        ("next", ["POOL", "--out=next.csv"], "next.csv"),
    ],
)
def test_every_command_works_on_such_a_run(
    run: Path, photos: Path, tmp_path: Path, command: str, options: list[str], file: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    write_image(tmp_path / "pool" / "new.png", (40, 30))
    options = [
        option.replace("PHOTO", str(photos / "0.png"))
        .replace("POOL", str(tmp_path / "pool"))
        .replace("=OUT", f"={copy / 'maps'}")
        .replace("=next", f"={copy / 'next'}")
        for option in options
    ]
    assert main([command, str(copy / "config.yaml" if command == "plan" else copy), *options]) == 0
    assert (copy / file).exists()


def test_predicting_and_serving_say_what_the_run_said(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from mltr.serve.app import create_app

    test = open_splits(load_recipe(run / "config.yaml").data).test
    with np.load(run / "predictions.npz") as saved:
        expected = dict(zip(test.names, saved["probs"], strict=True))
    record = test[0]
    tags = tmp_path / "tags.jsonl"
    assert main(["predict", str(run), str(record.image), "--out", str(tags), "--threshold=0"]) == 0
    assert mltr.load(run)(record.image).probs == pytest.approx(expected[record.name], abs=1e-4)
    with TestClient(create_app(mltr.load(run))) as client:
        reply = client.post("/v1/predict?threshold=0", content=Path(record.image).read_bytes(),
                            headers={"Content-Type": "image/png"})  # fmt: skip
    served = {found["label"]: found["prob"] for found in reply.json()["results"][0]["labels"]}
    told = json.loads(tags.read_text())
    for answer in (served, dict(zip(told["labels"], told["probs"], strict=True))):
        assert [answer[name] for name in test.classes] == pytest.approx(
            expected[record.name].tolist(), abs=1e-4
        )


def test_what_only_whole_networks_follow_is_told(
    photos: Path, cache: Path, weights: dict[str, Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", logger="mltr")
    init = f"--model.init={weights['test_efficientnet']}"
    assert probe(photos, tmp_path / "run", init, "--train.min_size=32") == 0
    assert "without effect: train.min_size" in caplog.text
