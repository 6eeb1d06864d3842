"""Our operations on planes of bytes against torchvision's on Pillow images, pixel for pixel."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from mltr.data import colours

GREY = [128, 128, 128]


def slid(image: Image.Image, shear: tuple[float, float] = (0, 0), by: tuple[int, int] = (0, 0)):
    return tv.affine(image, 0.0, list(by), 1.0, list(shear), fill=GREY, center=[0, 0])


#: Each by a share of the greatest strength and a sign, as torchvision's RandAugment applies it.
REFERENCES: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, share, sign: image,
    lambda image, share, sign: slid(image, (sign * math.degrees(math.atan(0.3 * share)), 0)),
    lambda image, share, sign: slid(image, (0, sign * math.degrees(math.atan(0.3 * share)))),
    lambda image, share, sign: slid(image, by=(-sign * int(150 / 331 * image.width * share), 0)),
    lambda image, share, sign: slid(image, by=(0, -sign * int(150 / 331 * image.height * share))),
    lambda image, share, sign: tv.rotate(image, sign * 30 * share, fill=GREY),
    lambda image, share, sign: tv.adjust_brightness(image, 1 + sign * 0.9 * share),
    lambda image, share, sign: tv.adjust_saturation(image, 1 + sign * 0.9 * share),
    lambda image, share, sign: tv.adjust_contrast(image, 1 + sign * 0.9 * share),
    lambda image, share, sign: tv.adjust_sharpness(image, 1 + sign * 0.9 * share),
    lambda image, share, sign: tv.posterize(image, 8 - round(4 * share)),
    lambda image, share, sign: tv.solarize(image, 255 * (1 - share)),
    lambda image, share, sign: tv.autocontrast(image),
    lambda image, share, sign: tv.equalize(image),
)


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Soft blobs in part of the range of values, with a flat corner."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(30, 220, (4, 5, 3), dtype=np.uint8))
    pixels = np.array(rough.resize((width, height), Image.Resampling.BICUBIC))
    pixels[: height // 4, : width // 3] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def to_planes(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0))


@pytest.mark.parametrize("number", range(len(REFERENCES)))
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), size=st.tuples(st.integers(5, 70), st.integers(5, 70)),
    magnitude=st.integers(0, 30), sign=st.sampled_from([1, -1]),
)  # fmt: skip
def test_each_operation_gives_torchvisions_pixels(
    number: int, seed: int, size: tuple[int, int], magnitude: int, sign: int
) -> None:
    image, share = picture(seed, *size), magnitude / 30
    ours = colours.OPERATIONS[number](to_planes(image), share, sign)
    expected = to_planes(REFERENCES[number](image, share, sign))
    different = (ours != expected).any(0).mean()
    # A sum of floats that is a whole number in one order of adding isn't one in another.
    assert different <= 0.02


def test_rand_augment_uses_every_operation_and_the_number_asked_for() -> None:
    planes = to_planes(picture(0, 48, 40))
    single = {
        colours.rand_augment(planes, 1, 9, np.random.default_rng(seed)).tobytes()
        for seed in range(400)
    }
    expected = {
        operation(planes, 9 / 30, sign).tobytes()
        for operation in colours.OPERATIONS
        for sign in (1, -1)
    }
    assert single == expected
    assert np.array_equal(colours.rand_augment(planes, 0, 9, np.random.default_rng(0)), planes)
    twice = {
        colours.rand_augment(planes, 2, 9, np.random.default_rng(seed)).tobytes()
        for seed in range(100)
    }
    assert len(twice - single) > 50


def test_jitter_keeps_to_its_strength() -> None:
    grey = np.full((3, 8, 8), 100, np.uint8)  # only brightness can change it
    values = [
        colours.jitter(grey, 0.3, np.random.default_rng(seed))[0, 0, 0] for seed in range(200)
    ]
    assert 70 <= min(values) < 75
    assert 125 < max(values) <= 130
