"""Another image and window size: what is resampled, and that it means the same afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import save_untrained
from torch import Tensor, nn

import mltr
from mltr.cli import main
from mltr.data.preprocess import Preprocess
from mltr.network.model import CrossWindowAttention
from mltr.network.resampling import adapt, resize_cross_window
from mltr.weights.bundle import load_bundle, save_bundle

SMALL: dict[str, Any] = {"depths": (1, 1), "embed_dim": 32, "image_size": 56, "window_size": 7}


def save(folder: Path, name: str = "mltr_s", base_size: int = 0, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    model = mltr.create_model(name, num_classes=3, **overrides)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    size = overrides.get("image_size", 64)
    save_bundle(
        folder, model=model, name=name, overrides=overrides, classes=("a", "b", "c"),
        preprocess=Preprocess(size, base_size=base_size), thresholds=(0.2, 0.5, 0.9),
    )  # fmt: skip
    return model.eval()


def resize_by_command(bundle: Path, out: Path, *options: str) -> None:
    assert main(["resize", str(bundle), "--out", str(out), *options]) == 0


# -- the cross-window projections --------------------------------------------------------------


@given(st.integers(2, 7), st.integers(2, 7))
@settings(deadline=None, max_examples=20)
def test_growing_and_shrinking_back_changes_nothing(small: int, more: int) -> None:
    attention = CrossWindowAttention(small)
    large = (small + more) ** 2
    for layer, is_qkv in ((attention.qkv, True), (attention.proj, False)):
        for tensor in (layer.weight.data, layer.bias.data):
            rows = (3 if is_qkv else 1) * large
            grown = resize_cross_window(tensor, rows, is_qkv=is_qkv)
            assert grown.shape[0] == rows
            back = resize_cross_window(grown, len(tensor), is_qkv=is_qkv)
            torch.testing.assert_close(back, tensor, atol=1e-5, rtol=1e-4)


def enlarge(windows: Tensor, w: int, new: int) -> Tensor:
    """Resample windows [B, N, P, C] bicubically."""
    B, N, _, C = windows.shape
    pictures = windows.permute(0, 1, 3, 2).reshape(B * N, C, w, w)
    enlarged = nn.functional.interpolate(pictures, (new, new), mode="bicubic")
    return enlarged.reshape(B, N, C, new * new).permute(0, 1, 3, 2)


def test_enlarged_windows_get_the_enlarged_answer() -> None:
    """From 7 x 7 to 12 x 12 pixels: the attention sees the same picture, and says the same."""
    old, new = CrossWindowAttention(7), CrossWindowAttention(12)
    for layer in (old.qkv, old.proj):
        nn.init.normal_(layer.bias, std=0.5)
        nn.init.normal_(layer.weight, std=0.2)
    state = {
        name: resize_cross_window(t, len(new.state_dict()[name]), is_qkv=name.startswith("qkv"))
        for name, t in old.state_dict().items()
    }
    assert state["qkv.weight"].shape == (432, 144)
    new.load_state_dict(state)
    windows = torch.randn(2, 16, 49, 5)
    expected = enlarge(old(windows), 7, 12)
    found = new(enlarge(windows, 7, 12))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


# -- a bundle ----------------------------------------------------------------------------------


def test_a_bundle_grows_from_7_to_12_and_all_else_stays(tmp_path: Path) -> None:
    model = save(tmp_path / "small", **SMALL)
    resize_by_command(
        tmp_path / "small", tmp_path / "large", "--image-size", "96", "--window-size", "12"
    )
    bundle = load_bundle(tmp_path / "large")
    before, after = model.state_dict(), bundle.model.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {
        name for name in before
        if "bias_table" in name or name == "embed.position" or (".blocks.1.attn." in name)
    }  # fmt: skip
    assert all(torch.equal(before[name], after[name]) for name in set(before) - changed)
    assert after["embed.position"].shape == (1, 24, 24, 32)
    assert after["stages.0.blocks.0.attn.relative_position_bias_table"].shape == (529, 1)
    assert bundle.preprocess.image_size == 96
    assert bundle.thresholds == pytest.approx((0.2, 0.5, 0.9))
    assert load_bundle(tmp_path / "small").preprocess.image_size == 56  # untouched


def test_a_larger_picture_of_the_same_means_the_same(tmp_path: Path) -> None:
    """Windows and image grow alike, 7 to 14 and 56 to 112: logits move little."""
    model = save(tmp_path / "small", **SMALL | {"depths": (1,)})
    resize_by_command(
        tmp_path / "small", tmp_path / "large", "--image-size", "112", "--window-size", "14"
    )
    large = load_bundle(tmp_path / "large").model
    image = nn.functional.interpolate(torch.randn(8, 3, 7, 7), (112, 112), mode="bicubic")
    half = nn.functional.interpolate(image, (56, 56), mode="bicubic", antialias=True)
    with torch.no_grad():
        logits, expected = large(image), model(half)
    spread = (expected - expected.mean(0)).abs().mean()
    # Patches see the picture at another scale; the order of the images must survive that.
    correlation = np.corrcoef(logits.flatten().numpy(), expected.flatten().numpy())[0, 1]
    assert correlation > 0.9, (correlation, spread)


def test_same_size_gives_the_same_bits(tmp_path: Path) -> None:
    model = save(tmp_path / "a", **SMALL)
    resize_by_command(tmp_path / "a", tmp_path / "b", "--image-size", "56", "--window-size", "7")
    image = torch.randn(1, 3, 56, 56)
    assert torch.equal(load_bundle(tmp_path / "b").model(image), model(image))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("timm/resnet10t", {}),
        ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
        ("timm/vit_tiny_patch16_224", {"depth": 1, "head": "csra"}),
        ("mltr_nano", {"head": "query2label"}),
        ("timm/test_resnet", {"head": "mltr", "head_options": {"dim": 32}}),
    ],
)
def test_timm_backbones_and_heads_are_resized_too(
    tmp_path: Path, name: str, overrides: dict[str, Any]
) -> None:
    sizes = {"mltr_nano": 64, "timm/resnet10t": 64, "timm/test_resnet": 256}
    save(tmp_path / "a", name, **overrides | {"image_size": sizes.get(name, 224)})
    size = 320 if name == "timm/test_resnet" else 96  # whose windows of the map then grow
    resize_by_command(tmp_path / "a", tmp_path / "b", "--image-size", str(size))
    tagger = mltr.load(tmp_path / "b", device="cpu")
    assert tagger.preprocess.image_size == size
    assert np.isfinite(tagger(np.zeros((50, 40, 3), np.uint8)).probs).all()


def test_training_starts_from_a_bundle_of_another_size(tmp_path: Path) -> None:
    from mltr.config.schema import ModelConfig
    from mltr.training.build import build_model

    source = save(tmp_path / "a", **SMALL)
    config = ModelConfig(
        name="mltr_s", init=str(tmp_path / "a"),
        overrides={"depths": (1, 1), "embed_dim": 32, "window_size": 12},
    )  # fmt: skip
    model = build_model(config, num_classes=7, image_size=96)
    assert torch.equal(model.embed.proj.weight, source.embed.proj.weight)
    expected = adapt(model, "embed.position", source.embed.position.data)
    assert torch.equal(model.embed.position, expected)
    assert model.head.weight.shape[0] == 7  # new classes: a new head


def test_a_squash_is_never_smaller_than_the_image(tmp_path: Path) -> None:
    save(tmp_path / "a", base_size=80, **SMALL)
    resize_by_command(tmp_path / "a", tmp_path / "b", "--image-size", "70")
    resize_by_command(tmp_path / "a", tmp_path / "c", "--image-size", "112")
    assert load_bundle(tmp_path / "b").preprocess.base_size == 80
    assert load_bundle(tmp_path / "c").preprocess.base_size == 128  # 8/7 of 112


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mltr_nano", [], "nothing to do"),
        ("mltr_nano", ["--image-size", "0"], "must be positive"),
        ("mltr_nano", ["--window-size", "-1"], "window_size"),
        ("timm/resnet10t", ["--window-size", "7"], "only MlTr has windows"),
    ],
)
def test_wrong_sizes_are_refused(
    tmp_path: Path, name: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a", name)
    assert main(["resize", str(tmp_path / "a"), "--out", str(tmp_path / "b"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_run_itself_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a")
    arguments = ["resize", str(tmp_path / "a"), "--image-size", "32", "--overwrite"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 2
    assert "another folder" in capsys.readouterr().err


def test_a_training_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    (tmp_path / "b" / "predictions.npz").write_bytes(b"of b")
    arguments = ["resize", str(tmp_path / "a"), "--image-size", "48", "--overwrite"]
    assert main([*arguments, "--out", str(tmp_path / "b")]) == 2
    assert "holds a training run" in capsys.readouterr().err


def test_the_recipe_of_the_bundle_before_is_gone(tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_text("model: {name: mltr_nano}")
    resize_by_command(tmp_path / "a", tmp_path / "b", "--image-size", "48", "--overwrite")
    assert not (tmp_path / "b" / "config.yaml").exists()


def test_what_a_bundle_says_of_its_labels_stays(tmp_path: Path) -> None:
    about = {"hierarchy": {"dog": "animal"}, "categories": ["kind", "general"]}
    calibrated = {"aim": "f1", "thresholds_before": None}
    bundle = save_untrained(
        tmp_path / "a", ("animal", "dog"), **about, extra={"calibrated": calibrated, "test": 1}
    )
    resize_by_command(bundle, tmp_path / "b", "--image-size", "48")
    resized = load_bundle(tmp_path / "b")
    assert resized.config["hierarchy"] == about["hierarchy"]
    assert list(resized.categories) == about["categories"]
    assert resized.config["extra"]["calibrated"] == calibrated
    assert "test" not in resized.config["extra"]


def test_a_resized_run_is_evaluated_on_the_same_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ["--data.scenes.train", "32", "--data.scenes.val", "16", "--data.scenes.test", "24"]
    options += ["--train.epochs", "1", "--train.batch_size", "16", "--data.workers", "0"]
    options += ["--data.scenes.side", "32", "--model.image_size", "32", "--data.cache", "false"]
    run, out = tmp_path / "run", tmp_path / "resized"
    assert main(["train", "scenes_nano", "--out", str(run), *options]) == 0
    resize_by_command(run, out, "--image-size", "48", "--window-size", "2")
    assert main(["evaluate", str(out), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 24
    tagger = mltr.load(out, device="cpu")
    assert tagger.preprocess.image_size == 48
    assert tagger.model.variant.window_size == 2
    # It has the splits of its run, so photos that were trained on are none to test on.
    assert (out / "splits.json").read_bytes() == (run / "splits.json").read_bytes()
    names = json.loads((out / "splits.json").read_text())
    names["train"], names["test"] = names["test"], names["train"]
    (out / "splits.json").write_text(json.dumps(names))
    assert main(["evaluate", str(out), "--json", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["images"] == 32
    assert main(["calibrate", str(out), "--min-positives", "1"]) == 0
    assert "isn't finished" not in caplog.text
