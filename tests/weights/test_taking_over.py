"""A network that starts with the weights of another one: which are taken, and for which labels."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from mltr.cli import main
from mltr.config.schema import Config, DataConfig, ModelConfig
from mltr.data import Preprocess
from mltr.errors import MltrError, UsageError
from mltr.network.features import class_axes, head_names
from mltr.network.model import create_model
from mltr.training.build import build_model, settle
from mltr.weights.bundle import load_bundle, save_bundle
from mltr.weights.convert import initialise
from mltr.weights.foreign import read_checkpoint

NETWORK = "timm/test_resnet"
THEIRS, OWN = ("sea", "sky", "sun", "tree"), ("tree", "sea", "sun", "sky")
SIDE = 64


def save(
    folder: Path, name: str = NETWORK, classes: tuple[str, ...] = THEIRS, **overrides: Any
) -> nn.Module:
    """Save a network in which no weight is what another one would start with; return it."""
    torch.manual_seed(1)
    overrides = {"image_size": SIDE} | overrides
    network = create_model(name, len(classes), **overrides)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    preprocess = Preprocess(SIDE)
    save_bundle(folder, model=network, name=name, overrides=overrides, classes=classes,
                preprocess=preprocess)  # fmt: skip
    return network.eval()


def started(folder: Path, name: str = NETWORK, **model: Any) -> nn.Module:
    """Return the network that `mltr train` would start with."""
    config, preprocess = settle(Config(model=ModelConfig(name=name, init=str(folder), **model)))
    return build_model(config.model, len(OWN), preprocess.image_size, OWN).eval()


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("average", {}),
        ("csra", {}),
        ("csra", {"num_heads": 4}),  # as many as labels
        ("ml_decoder", {}),
        ("query2label", {"dim": 4, "num_heads": 2}),  # as wide as there are labels
        ("mltr", {"dim": 32}),
    ],
)
@torch.no_grad()
def test_a_head_is_taken_by_the_names_of_its_labels(
    head: str, options: dict[str, Any], tmp_path: Path
) -> None:
    given = {"head": head, "head_options": options} if head != "average" else {}
    network = save(tmp_path, **given)
    own = started(tmp_path, head=head, head_options=options, image_size=SIDE)
    expected = network(images())[:, [THEIRS.index(name) for name in OWN]]
    torch.testing.assert_close(own(images()), expected, atol=1e-5, rtol=1e-5)


def test_labels_that_share_a_query_start_anew(tmp_path: Path) -> None:
    options = {"groups": 2}
    save(tmp_path, head="ml_decoder", head_options=options)
    model = create_model(NETWORK, 4, head="ml_decoder", head_options=options)
    report = initialise(model, str(tmp_path), NETWORK, OWN)
    assert set(report.fresh) == {"head.queries", "head.weight", "head.bias"}


@torch.no_grad()
def test_timms_classifier_is_taken_by_the_names_of_its_labels_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="mltr")
    network = timm.create_model("test_resnet", num_classes=4).eval()
    nn.init.normal_(network.fc.weight)
    timm.models.save_for_hf(network, tmp_path, model_config={"label_names": list(THEIRS)},
                            safe_serialization=True)  # fmt: skip
    own = started(tmp_path, image_size=SIDE)
    expected = network(images())[:, [THEIRS.index(name) for name in OWN]]
    torch.testing.assert_close(own(images()), expected, atol=1e-5, rtol=1e-5)
    for names in (None, ["a", "b", "c", "d"]):
        config = json.loads((tmp_path / "config.json").read_text())
        config["label_names"] = names
        (tmp_path / "config.json").write_text(json.dumps(config))
        own = started(tmp_path, image_size=SIDE)
        assert not torch.allclose(own(images()), expected, atol=0.1)
        assert "fc  new: its classes aren't told to be those of the data" in caplog.text


@pytest.mark.parametrize("name", ["timm/levit_128s", "timm/caformer_s18"])
def test_only_the_last_layer_of_a_head_has_labels(name: str, tmp_path: Path) -> None:
    theirs = save(tmp_path / "run", name)
    own = started(tmp_path / "run", name)
    order = [THEIRS.index(label) for label in OWN]
    with torch.no_grad():
        expected = theirs(images())[:, order]
        torch.testing.assert_close(own(images()), expected, atol=1e-4, rtol=1e-4)


def test_a_network_that_classifies_by_more_layers_than_it_says() -> None:
    network = create_model("timm/volo_d1_224", 3, image_size=224)
    assert {name.partition(".")[0] for name in head_names(network)} == {"head", "aux_head"}


def test_queries_for_other_groups_of_labels_start_anew(tmp_path: Path) -> None:
    head = {"head": "ml_decoder", "head_options": {"dim": 16}}
    save(tmp_path / "run", classes=tuple(map(str, range(150))), **head)
    labels = tuple(map(str, range(180)))
    network = create_model(NETWORK, len(labels), image_size=SIDE, **head)
    report = initialise(network, str(tmp_path / "run"), NETWORK, labels)
    theirs = load_bundle(tmp_path / "run").model.state_dict()
    own = network.state_dict()
    for name, axis in class_axes(network).items():
        assert name in report.fresh
        if theirs[name].shape == own[name].shape:
            assert axis is None
            assert not torch.equal(theirs[name], own[name])


def test_norms_of_a_backbone_and_of_its_head_are_two(tmp_path: Path) -> None:
    name = "timm/test_convnext"
    theirs = save(tmp_path / "run", name, OWN, head="mltr")
    own = started(tmp_path / "run", name, head="mltr")
    assert {"head.norm.weight", "backbone.head.norm.weight"} <= own.state_dict().keys()
    for key, value in own.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[key])


@pytest.mark.parametrize("head", ["average", "csra", "query2label"])
def test_a_network_whose_classifier_is_called_head(head: str, tmp_path: Path) -> None:
    """As heads of ours are; the name belongs to a backbone's own, which isn't there."""
    name, options = "timm/test_vit", {"head_options": {"dim": 16}} if head == "query2label" else {}
    theirs = save(tmp_path / "run", name, head=head, **options)
    own = create_model(name, 2, image_size=SIDE, head="csra")
    report = initialise(own, str(tmp_path / "run"), name, ("other", "labels"))
    assert {"head.weight"} <= {*report.fresh} or "head.weight" in report.taken
    for key, value in own.state_dict().items():
        if key.startswith("backbone."):
            their = key if key in theirs.state_dict() else key.removeprefix("backbone.")
            torch.testing.assert_close(value, theirs.state_dict()[their])


def test_a_bundle_s_network_is_built_as_it_was(tmp_path: Path) -> None:
    name, overrides = "timm/test_vit", {"class_token": False, "global_pool": "avg"}
    save(tmp_path / "run", name, **overrides, drop_rate=0.3)
    for given, expected in (({}, overrides), ({"class_token": True}, {"global_pool": "avg"})):
        model = ModelConfig(name=name, init=str(tmp_path / "run"), overrides=given)
        found = settle(Config(model=model))[0].model
        assert found.overrides == expected | given
    network = build_model(settle(Config(model=replace(model, overrides={})))[0].model, 3, SIDE)
    assert not any("cls_token" in key for key in network.state_dict())
    # MlTr's windows fit its images: they come along at their size alone.
    save(tmp_path / "nano", "mltr_nano", window_size=2)
    for side, expected in ((SIDE, {"window_size": 2}), (2 * SIDE, {})):
        model = ModelConfig(name="mltr_nano", init=str(tmp_path / "nano"), image_size=side)
        assert settle(Config(model=model))[0].model.overrides == expected


def test_the_file_of_a_bundle_is_no_bare_one(tmp_path: Path) -> None:
    save(tmp_path / "run")
    model = ModelConfig(name=NETWORK, init=str(tmp_path / "run" / "model.safetensors"))
    with pytest.raises(UsageError, match=f"use --model.init {tmp_path / 'run'}"):
        settle(Config(model=model))


def test_photos_are_not_squashed_below_the_network_s_size(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = ModelConfig(name=NETWORK, image_size=384)
    caplog.set_level(logging.INFO, "mltr")
    assert settle(Config(data=DataConfig(base_size=256), model=model))[1].base_size == 439
    assert "photos are first squashed to 439 px" in caplog.text
    for base in (0, 384, 500):
        assert settle(Config(data=DataConfig(base_size=base), model=model))[1].base_size == base


def test_weights_with_an_unknown_tag_are_told() -> None:
    with pytest.raises(UsageError, match="no weights 'resnet18.bogus'"):
        settle(Config(model=ModelConfig(name="timm/resnet18.bogus")))


def test_a_run_of_another_network_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(UsageError, match=f"weights of {NETWORK}, not of timm/test_convnext: use"):
        started(tmp_path, "timm/test_convnext")
    with pytest.raises(UsageError, match=f"weights of {NETWORK}, not of mltr_nano"):
        started(tmp_path, "mltr_nano")


@torch.no_grad()
def test_positions_of_a_bundle_follow_another_image_size(tmp_path: Path) -> None:
    save(tmp_path / "bundle", "timm/test_vit", OWN)
    resize = ["resize", str(tmp_path / "bundle"), "--image-size", "96"]
    assert main([*resize, "--out", str(tmp_path / "resized")]) == 0
    own = started(tmp_path / "bundle", "timm/test_vit", image_size=96)
    expected = load_bundle(tmp_path / "resized").model(images(96))
    torch.testing.assert_close(own(images(96)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [("test_vit", 60, "divisible by patch size"), ("inception_v3", 64, "greater than actual")],
)
def test_an_image_size_that_a_network_cannot_take_is_told(
    name: str, side: int, words: str, tmp_path: Path
) -> None:
    config = ModelConfig(name=f"timm/{name}")
    with pytest.raises(UsageError, match=rf"model.image_size {side} doesn't suit.*{words}"):
        build_model(config, 2, side)


def test_a_bundle_is_not_resized_to_what_it_cannot_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "bundle", "timm/test_vit")
    resize = ["resize", str(tmp_path / "bundle"), "--image-size", "50"]
    assert main([*resize, "--out", str(tmp_path / "resized")]) == 2
    assert "image size 50 doesn't suit this network" in capsys.readouterr().err
    assert not (tmp_path / "resized").exists()


def test_weights_for_one_size_alone_say_so(tmp_path: Path) -> None:
    network = timm.create_model("cait_xxs24_224", embed_dim=48, depth=1)
    folder = tmp_path / "cait"
    timm.models.save_for_hf(network, folder, model_args={"embed_dim": 48, "depth": 1},
                            safe_serialization=True)  # fmt: skip
    with pytest.raises(UsageError, match=r"images of the size .* leave out model.image_size"):
        started(folder, "timm/cait_xxs24_224", image_size=64)


def test_damaged_numbers_are_named(tmp_path: Path) -> None:
    tensors = timm.create_model("test_resnet").state_dict()
    tensors["conv1.0.weight" if "conv1.0.weight" in tensors else "conv1.weight"][0] = torch.nan
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(MltrError, match=r"weights.pth: NaN or infinity in conv1"):
        started(tmp_path / "weights.pth", image_size=SIDE)


def test_averaged_weights_count_first_in_a_checkpoint(tmp_path: Path) -> None:
    plain, averaged = {"module.x": torch.zeros(2)}, {"module.x": torch.ones(2)}
    both = {"state_dict": plain, "state_dict_ema": averaged, "epoch": 3}
    for name, content in (("both", both), ("one", {"state_dict_ema": averaged})):
        torch.save(content, tmp_path / f"{name}.pth")
        assert read_checkpoint(tmp_path / f"{name}.pth")["x"].tolist() == [1, 1]
    safetensors.torch.save_file(averaged, tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors")["x"].tolist() == [1, 1]
