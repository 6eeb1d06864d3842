"""Maps sum to the logits, recomputed attention equals the network's, pictures are written."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_image
from PIL import Image
from torch import nn

import mltr
from mltr.cli import main
from mltr.data.preprocess import Preprocess
from mltr.data.records import Box, Record
from mltr.diagnosis.evidence import (
    cross_weights,
    evidence_maps,
    explain,
    pixel_weights,
    pointing_game,
    roll_out,
)
from mltr.diagnosis.overlay import overlay
from mltr.errors import UsageError
from mltr.network.model import (
    CrossWindowAttention,
    PixelAttention,
    pad_to_multiple,
    partition_windows,
)
from mltr.network.variants import VARIANTS
from mltr.weights.bundle import TorchNetwork, save_bundle

CLASSES = ("sea", "sunset", "trees")


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# -- evidence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mltr.list_models())
def test_maps_add_up_to_the_logits_of_every_variant(name: str) -> None:
    shallow = tuple(min(depth, 1) for depth in VARIANTS[name].depths)
    model = randomised(mltr.create_model(name, num_classes=5, depths=shallow, image_size=64))
    for height, width in ((64, 64), (96, 60), (37, 130)):
        with torch.no_grad():
            logits, maps, is_exact = evidence_maps(model, torch.randn(2, 3, height, width))
        assert is_exact
        torch.testing.assert_close(maps.sum(dim=(2, 3)), logits, atol=1e-4, rtol=1e-4)


@given(st.integers(8, 120), st.integers(8, 120))
@settings(deadline=None, max_examples=10)
def test_maps_add_up_at_any_size(height: int, width: int) -> None:
    model = randomised(mltr.create_model("mltr_nano", num_classes=3, depths=(0, 0, 1)))
    with torch.no_grad():
        logits, maps, _ = evidence_maps(model, torch.randn(1, 3, height, width))
    torch.testing.assert_close(maps.sum(dim=(2, 3)), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/resnet18", {}),
        ("timm/swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "head": "csra"}),
        ("timm/vit_tiny_patch16_224", {"depth": 1, "head": "csra"}),
    ],
)
def test_timm_networks_are_explained_where_it_is_exact(name: str, options: dict[str, Any]) -> None:
    model = randomised(mltr.create_model(name, 4, image_size=64, **options))
    with torch.no_grad():
        logits, maps, is_exact = evidence_maps(model, torch.randn(1, 3, 64, 64))
    assert is_exact
    torch.testing.assert_close(maps.sum(dim=(2, 3)), logits, atol=2e-3, rtol=1e-3)


def test_a_class_token_is_refused_with_a_hint() -> None:
    model = mltr.create_model("timm/vit_tiny_patch16_224", 4, image_size=64, depth=1).eval()
    with pytest.raises(UsageError, match="not a sum over positions.*--model.head csra"):
        evidence_maps(model, torch.randn(1, 3, 64, 64))


# -- rollout -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(12, 8), (10, 7)], ids=["whole", "padded"])
def test_recomputed_pixel_attention_gives_the_networks_output(sides: tuple[int, int]) -> None:
    attention = randomised(PixelAttention(dim=8, window_size=4, head_dim=4))
    assert isinstance(attention, PixelAttention)
    maps = pad_to_multiple(torch.randn(2, *sides, 8), 4)
    ones = pad_to_multiple(torch.ones(1, *sides, 1), 4)
    is_pixel = partition_windows(ones, 4)[0, :, :, 0] > 0
    with torch.no_grad():
        weights = pixel_weights(attention, maps, is_pixel)
        windows = partition_windows(maps, 4)
        value = attention.qkv(windows)[..., 16:].unflatten(3, (2, 4)).transpose(2, 3)
        mixed = (weights @ value).transpose(2, 3).flatten(3)
        expected = attention(windows, is_pixel)
        torch.testing.assert_close(attention.proj(mixed), expected, atol=1e-5, rtol=1e-4)


def test_recomputed_cross_window_attention_gives_the_networks_output() -> None:
    attention = randomised(CrossWindowAttention(window_size=3))
    assert isinstance(attention, CrossWindowAttention)
    maps = torch.randn(2, 6, 9, 5)
    with torch.no_grad():
        weights = cross_weights(attention, maps)
        assert weights.shape == (2, 5, 6, 6)
        windows = partition_windows(maps, 3)
        value = attention.qkv(windows.permute(0, 3, 1, 2)).chunk(3, dim=-1)[2]
        found = attention.proj(weights @ value).permute(0, 2, 3, 1)
        torch.testing.assert_close(found, attention(windows), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(56, 56), (52, 75)])
def test_shares_keep_their_sum_on_the_way_back(size: tuple[int, int]) -> None:
    options: dict[str, Any] = {"depths": (1, 1), "embed_dim": 32, "window_size": 7}
    model = randomised(mltr.create_model("cat_t", 2, image_size=56, **options))
    image = torch.randn(3, *size)
    with torch.no_grad():
        h, w = model.forward_features(image[None]).shape[1:3]  # type: ignore[operator]
    shares = roll_out(model, image, torch.full((h, w), 1 / (h * w)))  # type: ignore[arg-type]
    assert shares.shape == (-(-size[0] // 4), -(-size[1] // 4))
    assert shares.min() >= 0
    assert float(shares.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("attention", "reaches_out"), [("pixel", False), ("both", True)])
def test_pixel_attention_alone_stays_in_its_window(attention: str, reaches_out: bool) -> None:
    model = randomised(
        mltr.create_model(
            "cat_t", 2, embed_dim=32, depths=(1,), window_size=4, image_size=64, attention=attention
        )
    )
    shares = torch.zeros(16, 16)
    shares[5, 6] = 1.0  # in the second window from the left and the top
    found = roll_out(model, torch.randn(3, 64, 64), shares)  # type: ignore[arg-type]
    outside = found.clone()
    outside[4:8, 4:8] = 0
    assert bool(outside.any()) is reaches_out
    assert (found[4:8, 4:8] > 0).all()
    assert found[5, 6] >= 0.125 - 1e-6  # half passes each of three residual connections


# -- pictures and pointing ---------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = randomised(mltr.create_model("mltr_nano", 3, depths=(0, 0, 1)))
    save_bundle(
        tmp_path / "run", model=model, name="mltr_nano", overrides={"depths": [0, 0, 1]},
        classes=CLASSES, preprocess=Preprocess(48),
    )  # fmt: skip
    return tmp_path / "run"


@pytest.mark.parametrize("method", ["evidence", "rollout"])
def test_a_picture_is_explained_in_its_own_shape(bundle: Path, method: str) -> None:
    tagger = mltr.load(bundle, device="cpu")
    picture = Image.effect_noise((70, 40), 90).convert("RGB")
    found = explain(tagger, picture, ["trees", "sea"], method)
    assert [one.label for one in found] == ["trees", "sea"]
    prediction = dict(zip(CLASSES, tagger(picture).probs, strict=True))
    for one in found:
        assert one.heat.shape == (40, 70)
        assert one.prob == pytest.approx(float(prediction[one.label]), abs=1e-6)
        assert one.is_exact is (method == "evidence")
        total = one.logit if method == "evidence" else 1.0
        assert one.cells.sum() == pytest.approx(total, abs=1e-4)
    default = explain(tagger, picture)
    expected = [name for name, _ in tagger(picture).labels] or [tagger(picture).top(1)[0][0]]
    assert [one.label for one in default] == expected


def test_the_command_writes_pictures_and_figures(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos" / "a.png", (60, 40))
    write_image(tmp_path / "photos" / "more" / "a.png", (40, 60))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    arguments = ["explain", str(bundle), str(tmp_path / "photos"), "--out", str(out)]
    assert main([*arguments, "--label", "sea", "--label", "trees", "--json", str(figures)]) == 1
    assert "left out, broken" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"a.png", "a-2.png"}
    found = json.loads(figures.read_text())
    assert len(found) == 2
    for rows in found.values():
        assert [row["label"] for row in rows] == ["sea", "trees"]
        assert np.sum(rows[0]["cells"]) == pytest.approx(rows[0]["logit"], abs=1e-4)


def test_pictures_that_it_has_written_are_not_explained(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    write_image(Path("a.png"), (60, 40))
    for _ in range(2):
        assert main(["explain", str(bundle), ".", "--json", "figures.json"]) == 0
        assert list(json.loads(Path("figures.json").read_text())) == ["a.png"]
    assert main(["explain", str(bundle), "explained", "--json", "figures.json"]) == 0
    assert len(json.loads(Path("figures.json").read_text())) == 2  # if they are asked for
    Path("a.png").unlink()
    capsys.readouterr()
    assert main(["explain", str(bundle), "."]) == 2
    assert "no images in . except those in explained" in capsys.readouterr().err


def test_a_large_photo_takes_no_more_memory_than_its_map(bundle: Path, tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    Image.new("RGB", (4000, 3000), (200, 100, 50)).save(photo)
    tracemalloc.start()
    assert main(["explain", str(bundle), str(photo), "--out", str(tmp_path / "out")]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # of numpy's arrays and PyTorch's objects; 24 bytes a pixel are 288 MB


def test_evidence_for_and_against_look_different() -> None:
    picture = Image.new("RGB", (4, 2), (128, 128, 128))
    heat = np.array([[1, 0.5, -0.5, -1], [0, 0, 0, 0]], np.float32)
    pixels = np.asarray(overlay(picture, heat)).astype(int)
    red, blue = pixels[..., 0], pixels[..., 2]
    assert red[0, 0] > blue[0, 0] + 50
    assert blue[0, 3] > red[0, 3] + 50
    assert (pixels[1] == 128).all()  # no evidence: only the grey picture


class Spot(nn.Module):
    """Return a network whose evidence for class 0 is where the picture is red."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.get_classifier()(self.forward_features(images).mean(dim=(2, 3)))

    def get_classifier(self) -> nn.Linear:
        linear = nn.Linear(3, 2)
        linear.weight.data = torch.tensor([[9.0, -9.0, -9.0], [-9.0, -9.0, 9.0]])
        linear.bias.data.zero_()
        return linear


def test_pointing_counts_maxima_in_boxes(bundle: Path) -> None:
    tagger = mltr.load(bundle, device="cpu")
    tagger.network = TorchNetwork(Spot(), torch.device("cpu"))
    tagger.preprocess = Preprocess(64)
    picture = Image.new("RGB", (200, 100))
    picture.paste((255, 0, 0), (20, 60, 60, 80))
    picture.paste((0, 0, 255), (120, 10, 180, 40))
    labels = np.array([1, 1], np.int8)

    class Held:
        def load(self) -> Image.Image:
            return picture

    right = Record(
        Held(), "right", labels, (Box(0, 20, 60, 40, 20, 800), Box(1, 120, 10, 60, 30, 1800))
    )
    wrong = Record(Held(), "wrong", labels, (Box(0, 120, 10, 60, 30, 1800),))
    middle = Record(Held(), "middle", labels, (Box(1, 50, 25, 100, 50, 5000),))
    damaged = Record(b"no picture", "damaged", labels, right.boxes)
    found = pointing_game(tagger, [right, damaged, wrong, middle], ("red", "blue"))
    assert found["cases"] == 4
    assert len(found["broken"]) == 1
    assert found["classes"]["red"] == pytest.approx(
        {"hit": 0.5, "centre": 0.0, "random": (0.04 + 0.09) / 2, "cases": 2}, abs=0.01
    )
    assert found["classes"]["blue"]["centre"] == 0.5
    assert found["classes"]["blue"]["random"] == pytest.approx((0.09 + 0.25) / 2, abs=0.01)


def test_wrong_options_are_reported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = str(write_image(tmp_path / "a.png"))
    for arguments, words in (
        ([str(bundle)], "give either images to explain, or --pointing"),
        ([str(bundle), photo, "--pointing"], "give either images"),
        ([str(bundle), "--pointing", "--label", "sea"], "--label and --method are for pictures"),
        ([str(bundle), photo, "--label", "see"], "did you mean 'sea'"),
        ([str(bundle), "--pointing", "--limit", "0"], "--limit 0 must be at least 1"),
    ):
        assert main(["explain", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err
    with pytest.raises(UsageError, match="one of|is not"):
        explain(mltr.load(bundle, device="cpu"), photo, method="guess")
