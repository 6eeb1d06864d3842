"""From an opened image to what the network sees."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mltr.config.schema import AugmentConfig
from mltr.data import Preprocess
from mltr.data.preprocess import FILTERS, squash
from mltr.data.transforms import (
    TrainTransform,
    cut_out,
    erase,
    mix_batch,
    random_region,
    resize,
    to_floats,
)
from mltr.errors import MltrError

NOTHING = AugmentConfig(flip=False, randaugment_ops=0, cutout=0.0)


def gradient(width: int = 80, height: int = 60) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 255 / height, columns * 255 / width, rows * 0 + 90], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def test_evaluation_squashes_scales_and_normalises() -> None:
    plain = torch.from_numpy(Preprocess(32)(gradient()))
    assert plain.shape == (3, 32, 32)
    assert plain.dtype == torch.float32
    assert 0 <= plain.min() <= plain.max() <= 1
    assert plain[2].sub(90 / 255).abs().max() < 1e-6
    assert plain[0].diff(dim=0).min() > 0  # squashed, not cropped: the whole gradient is there
    assert plain[0, 0, 0] < 0.03
    assert plain[0, -1, 0] > 0.95
    normalised = torch.from_numpy(Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(gradient()))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(normalised * std[:, None, None] + mean[:, None, None], plain)


def test_preprocess_goes_through_json() -> None:
    recipe = AugmentConfig(normalize="imagenet")
    preprocess = Preprocess.from_config(recipe, 96, base_size=128)
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"image_size": 0, "mean": [0, 0, 0], "std": [1, 1, 1]},
        {"image_size": 9, "mean": [0, 0], "std": [1, 1, 1]},
        {"image_size": 9, "mean": "abc", "std": [1, 1, 1]},
        {"image_size": 9, "mean": [0, 0, 0], "std": [1, 1, 1], "colour": "red"},
    ],
)
def test_wrong_preprocessing_is_refused(values: dict) -> None:
    with pytest.raises(MltrError, match="preprocessing"):
        Preprocess.from_dict(values)


def vary(
    recipe: AugmentConfig, image: Image.Image, side: int, seed: int = 0, by: str = "bilinear"
) -> np.ndarray:
    transform, rng = TrainTransform(recipe, by), np.random.default_rng(seed)
    left, top, right, bottom = transform.choose_region(rng)
    place = left * image.width, top * image.height, right * image.width, bottom * image.height
    return transform(image, place, side, rng)


@pytest.mark.parametrize("size", [(80, 60), (48, 48), (30, 40), (500, 40)])
@pytest.mark.parametrize("by", FILTERS)
def test_training_without_variation_equals_evaluation(by: str, size: tuple[int, int]) -> None:
    varied = vary(NOTHING, gradient(*size), 48, by=by)
    plain = Preprocess(48, interpolation=by).resize(gradient(*size))
    assert varied.dtype == np.uint8
    assert np.abs(np.moveaxis(varied, 0, -1).astype(int) - plain).max() <= 2


def test_a_part_is_resized_as_in_evaluation() -> None:
    """Whole pixels on the left and top, any border on the right and bottom."""
    image, place = gradient(90, 70), (11.0, 7.0, 70.6, 50.3)
    for source in (image, np.asarray(image)):
        resized = np.moveaxis(resize(source, place, 32), 0, -1).astype(int)
        # Pillow looks a little beyond the borders of the part, torch doesn't.
        assert np.abs(resized - np.asarray(squash(image, 32, place)))[1:-1, 1:-1].max() <= 1


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(0, 2**31))
def test_the_smallest_part_has_a_pixel(short: int, long: int, seed: int) -> None:
    crop = AugmentConfig(crop="random", min_scale=0.08, randaugment_ops=0, cutout=0.0)
    for size in ((short, long), (long, short)):
        assert vary(crop, Image.new("RGB", size, (9, 99, 199)), 8, seed)[:, 0, 0].tolist() in (
            [9, 99, 199],
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_random_regions_lie_inside_and_have_the_area(seed: int, min_scale: float) -> None:
    left, top, right, bottom = random_region(np.random.default_rng(seed), min_scale)
    assert 0 <= left < right <= 1 + 1e-9
    assert 0 <= top < bottom <= 1 + 1e-9
    # Clipping a long crop at the border may only make it smaller, by its aspect ratio of 4/3.
    assert min_scale * 0.74 <= (right - left) * (bottom - top) <= 1 + 1e-6


@pytest.mark.parametrize(
    "recipe",
    [
        AugmentConfig(crop="random", randaugment_ops=0, cutout=0.0, flip=False),
        AugmentConfig(jitter=0.4, randaugment_ops=0, cutout=0.0, flip=False),
        AugmentConfig(randaugment_ops=2, cutout=0.0, flip=False),
        AugmentConfig(randaugment_ops=0, cutout=0.5, flip=False),
        AugmentConfig(randaugment_ops=0, cutout=0.0, flip=True),
    ],
)
def test_each_variation_varies_with_the_seed_alone(recipe: AugmentConfig) -> None:
    seen = [vary(recipe, gradient(), 40, seed) for seed in range(12)]
    for seed in range(12):
        assert np.array_equal(vary(recipe, gradient(), 40, seed), seen[seed])
    assert any(not np.array_equal(seen[0], other) for other in seen[1:])
    assert all(planes.shape == (3, 40, 40) for planes in seen)


def test_cutout_is_one_square_of_one_colour() -> None:
    for seed in range(20):
        before = np.full((3, 20, 20), 7, np.uint8)
        after = cut_out(before.copy(), 8, np.random.default_rng(seed))
        changed = (after != before).any(0)
        rows, columns = changed.any(1), changed.any(0)
        assert 16 <= changed.sum() == rows.sum() * columns.sum()
        assert max(rows.sum(), columns.sum()) <= 8
        assert len(np.unique(after[:, changed], axis=1).T) == 1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.booleans())
def test_batches_and_single_images_become_the_same_floats(seed: int, normalizes: bool) -> None:
    preprocess = Preprocess(9, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)) if normalizes else Preprocess(9)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
    assert np.array_equal(to_floats(planes, preprocess).numpy(), preprocess.scale(pixels))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)]))
def test_mixing_mixes_labels_as_it_mixes_pixels(seed: int, alphas: tuple[float, float]) -> None:
    """Images of one flat value each: their mean tells the share that the targets must have."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(6, generator=generator)
    images = values[:, None, None, None].expand(6, 3, 16, 16).clone()
    targets = torch.zeros(6, 7, dtype=torch.int8)
    targets[torch.arange(6), torch.arange(6)] = 1
    targets[2, 6] = -1
    mixed, soft = mix_batch(images, targets, *alphas, np.random.default_rng(seed))
    expected = soft[:, :6].clamp(min=0) @ values
    torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(soft[:, :6].sum(1), torch.ones(6))
    unknown = soft[:, 6] < 0
    assert unknown[2]
    assert 1 <= unknown.sum() <= 2  # and whatever it was mixed into


def test_erasing_puts_noise_in_a_rectangle() -> None:
    planes, rng = np.full((3, 48, 48), 77, np.uint8), np.random.default_rng(0)
    shares = []
    for _ in range(100):
        changed = (erase(planes.copy(), rng) != 77).any(axis=0)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        inside = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.mean() > 0.9
        shares.append(changed.mean())
        assert 1 / 4 < len(rows) / len(columns) < 4
    assert 0.015 < min(shares) < 0.1 < 0.25 < max(shares) < 0.35


def test_erasing_comes_as_often_as_asked() -> None:
    plain = TrainTransform(NOTHING)
    sometimes = TrainTransform(replace(NOTHING, erasing=0.25))
    image, place = gradient(), (0, 0, 80, 60)
    expected = plain(image, place, 32, np.random.default_rng(0))
    changed = [
        not np.array_equal(sometimes(image, place, 32, np.random.default_rng(seed)), expected)
        for seed in range(300)
    ]
    assert 50 < sum(changed) < 100
