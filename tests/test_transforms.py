"""From an opened image to what the network sees."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mltr.config import AugmentConfig
from mltr.data import Preprocess
from mltr.data.transforms import TrainTransform, cut_out, mix_batch, random_region
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


def test_training_without_variation_equals_evaluation() -> None:
    preprocess = Preprocess(48)
    varied = TrainTransform(preprocess, NOTHING)(gradient(), 48)
    np.testing.assert_array_equal(varied, preprocess(gradient()))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0), st.integers(8, 200), st.integers(8, 200))
def test_random_regions_lie_inside_and_have_the_area(
    seed: int, min_scale: float, width: int, height: int
) -> None:
    torch.manual_seed(seed)
    left, top, right, bottom = random_region(gradient(width, height), min_scale)
    assert 0 <= left < right <= width + 1e-6
    assert 0 <= top < bottom <= height + 1e-6
    share = (right - left) * (bottom - top) / (width * height)
    # Clipping a long crop at the border may only make it smaller, by its aspect ratio of 4/3.
    assert min_scale * 0.74 <= share <= 1 + 1e-6


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
    transform = TrainTransform(Preprocess(40), recipe)
    seen = []
    for seed in range(12):
        torch.manual_seed(seed)
        seen.append(transform(gradient(), 40))
        torch.manual_seed(seed)
        assert torch.equal(transform(gradient(), 40), seen[-1])
    assert any(not torch.equal(seen[0], other) for other in seen[1:])
    assert all(pixels.shape == (3, 40, 40) for pixels in seen)


def test_cutout_is_one_square_of_one_colour() -> None:
    torch.manual_seed(3)
    before = torch.full((3, 20, 20), -1.0)
    after = before.clone()
    cut_out(after, 8)
    changed = (after != before).any(0)
    rows, columns = changed.any(1), changed.any(0)
    assert changed.sum() == rows.sum() * columns.sum()
    assert max(rows.sum(), columns.sum()) <= 8
    assert len(after[:, changed].unique(dim=1).T) == 1


def test_the_cut_out_square_is_normalised_like_the_rest() -> None:
    recipe = AugmentConfig(flip=False, randaugment_ops=0, cutout=0.5)
    results = []
    for preprocess in (Preprocess(20), Preprocess(20, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))):
        torch.manual_seed(3)
        results.append(TrainTransform(preprocess, recipe)(gradient(), 20))
    np.testing.assert_allclose(preprocess.normalize(results[0].numpy()), results[1], rtol=1e-6)


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
    mixed, soft = mix_batch(images, targets, *alphas, generator)
    expected = soft[:, :6].clamp(min=0) @ values
    torch.testing.assert_close(mixed.mean((1, 2, 3)), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(soft[:, :6].sum(1), torch.ones(6))
    unknown = soft[:, 6] < 0
    assert unknown[2]
    assert 1 <= unknown.sum() <= 2  # and whatever it was mixed into
