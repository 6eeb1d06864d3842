"""Views of an image: the mean of what a network says of each, and the same in every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from predicting import CLASSES

import mltr
from mltr.cli import main
from mltr.data.preprocess import TILE, Preprocess
from mltr.predict.options import parse_views
from mltr.predict.predictor import Predictor


class LeftAndRight:
    """Logits are the mean of the left half, of the right half, and of all, less a half."""

    fingerprint = "halves"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        half = images.shape[3] // 2
        parts = (images[..., :half], images[..., half:], images)
        return np.stack([part.mean(axis=(1, 2, 3)) - 0.5 for part in parts], 1)


def predictor(*views: str, **preprocess: object) -> Predictor:
    thresholds = np.full(3, 0.5, np.float32)
    own = Preprocess(16, **preprocess)
    return Predictor(LeftAndRight(), CLASSES, own, thresholds, 2, views=views)


def ramp(width: int, height: int) -> Image.Image:
    """Draw a picture that is lighter at the right and darker at the bottom."""
    pixels = np.linspace(0, 255, width)[None, :] * np.linspace(1, 0.2, height)[:, None]
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def crops(image: Image.Image) -> list[Image.Image]:
    """Cut a picture by hand: the whole of it, and its four corners."""
    width, height = image.size
    wide, high = TILE * width, TILE * height
    corners = [(0, 0), (width - wide, 0), (0, height - high), (width - wide, height - high)]
    edges = [(int(x), int(y), round(x + wide), round(y + high)) for x, y in corners]
    return [image, *(image.crop(edge) for edge in edges)]


@pytest.mark.parametrize("crop_pct", [0.0, 0.9])
@pytest.mark.parametrize("views", [("mirror",), ("tiles",), ("mirror", "tiles")])
def test_probabilities_are_those_of_a_naive_mean(views: tuple[str, ...], crop_pct: float) -> None:
    images = [ramp(60, 40 + 10 * number) for number in range(3)]
    for image, found in zip(images, predictor(*views, crop_pct=crop_pct)(images), strict=True):
        looks = crops(image) if "tiles" in views else [image]
        if "mirror" in views:
            looks += [look.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for look in looks]
        plain = predictor(crop_pct=crop_pct)
        expected = np.mean([plain(look).probs for look in looks], axis=0)
        assert np.allclose(found.probs, expected, atol=5e-3)  # a crop of an even size is off by one
        assert not np.allclose(found.probs, plain(image).probs, atol=5e-3)


def test_views_are_named_in_any_order_and_known_by_the_journal() -> None:
    assert parse_views(" tiles,mirror,") == ("mirror", "tiles")
    assert parse_views(None) == parse_views("") == ()
    plain, mirrored, tiled = predictor(), predictor("mirror"), predictor("tiles")
    assert len({one.fingerprint for one in (plain, mirrored, tiled)}) == 3


def test_a_photo_of_one_pixel_has_tiles() -> None:
    (found,) = predictor("tiles")([Image.new("RGB", (1, 1), "white")])
    assert np.allclose(found.probs, 1 / (1 + np.exp(-0.5)))


def test_evaluate_and_diagnose_use_the_probabilities_of_predict(
    small_run: Path, tmp_path: Path
) -> None:
    out, figures = tmp_path / "tags.jsonl", tmp_path / "figures.json"
    photos = small_run.parent / "photos"
    views = ["--views", "mirror,tiles"]
    assert (
        main(["predict", str(small_run), str(photos), "--out", str(out), "--top", "2", *views]) == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    own = mltr.load(small_run)
    own.views = ("mirror", "tiles")
    found = own([row["path"] for row in rows])
    for row, prediction in zip(rows, found, strict=True):
        assert row["probs"] == pytest.approx(sorted(prediction.probs.tolist())[::-1], abs=1e-4)
    command = ["evaluate", str(small_run), "--split", "train", "--json", str(figures)]
    assert main(command) == 0
    plain = json.loads(figures.read_text())
    assert main([*command, *views]) == 0
    assert json.loads(figures.read_text())["per_class"] != plain["per_class"]
    assert main(["diagnose", str(small_run), "--resamples", "20", *views]) == 0


@pytest.mark.parametrize("command", ["predict", "evaluate", "diagnose", "serve"])
def test_another_view_is_refused(
    small_run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [str(small_run.parent / "photos")] if command == "predict" else []
    assert main([command, str(small_run), *photos, "--views", "mirror,tile"]) == 2
    error = capsys.readouterr().err
    assert "--views tile: no such view; did you mean 'tiles'?; known: mirror, tiles" in error
    assert error.count("\n") == 1
