"""From an image file to what the network sees. No torch here: exported networks need none."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mltr.config import AugmentConfig
from mltr.data.images import Region, open_reduced
from mltr.data.records import ImageSource
from mltr.errors import MltrError

# Mean and standard deviation of ImageNet's training images, as everywhere in the field.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

LARGEST_SIDE = 16384  #: pixels, of what a network sees

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Preprocess:
    """What every image goes through at evaluation: squash to a square, scale, normalise."""

    image_size: int  #: side in pixels
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base_size: int = 0  #: side in pixels of a first squash, as images are cached (0: none)

    @classmethod
    def from_config(cls, augment: AugmentConfig, image_size: int, base_size: int) -> Preprocess:
        """Return what a recipe says."""
        if augment.normalize == "imagenet":
            return cls(image_size, *IMAGENET, base_size=base_size)
        return cls(image_size, base_size=base_size)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Undo `to_dict`; raises `MltrError` for values that don't fit."""
        try:
            triples = {key: tuple(map(float, values[key])) for key in ("mean", "std")}
            preprocess = cls(**{**values, **triples})
            preprocess._check()
        except (KeyError, TypeError, ValueError) as error:
            raise MltrError(f"preprocessing can't be understood: {error}") from error
        return preprocess

    def _check(self) -> None:
        """Raise `ValueError` for what no image could go through."""
        for name, least in (("image_size", 1), ("base_size", 0)):
            side = getattr(self, name)
            if type(side) is not int or not least <= side <= LARGEST_SIDE:
                raise ValueError(f"{name} {side!r} must be a number of pixels up to {LARGEST_SIDE}")
        for name in ("mean", "std"):
            triple = getattr(self, name)
            if len(triple) != 3 or not all(map(math.isfinite, triple)):
                raise ValueError(f"{name} {triple} must be three numbers")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __call__(self, image: Image.Image) -> Floats:
        """Return float32 [3, S, S] for an RGB image of any size."""
        return self.scale(self.squash(image))

    def read(self, source: ImageSource | str) -> Pixels:
        """Open an image file and squash it to uint8 [S, S, 3]; raises `BrokenImage`.

        The only way from files to pixels, in training, evaluation, prediction and serving alike.
        A file is decoded no larger than needed, so its pixels may differ from those of the same
        image decoded in full: by 1 or 2 of 255 on average.
        """
        return self.squash(read_squashed(source, self.decoded_side))

    @property
    def decoded_side(self) -> int:
        """How many pixels a decoded file must have left on each side."""
        return self.base_size or self.image_size

    def squash(self, image: Image.Image | Pixels) -> Pixels:
        """Return uint8 [S, S, 3] for an RGB image of any size."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        if self.base_size:
            image = squash(image, self.base_size)
        return np.asarray(squash(image, self.image_size))

    def scale(self, pixels: Pixels) -> Floats:
        """Return uint8 [..., S, S, 3] as float32 [..., 3, S, S], in 0..1 and then normalised."""
        return self.normalize(scale(pixels))

    @property
    def normalizes(self) -> bool:
        """Whether pixels are more than scaled to 0..1."""
        return self.mean != (0, 0, 0) or self.std != (1, 1, 1)

    def normalize(self, scaled: Floats) -> Floats:
        """Normalise pixels [..., 3, S, S] in 0..1, in place."""
        if self.normalizes:
            scaled -= np.array(self.mean, np.float32)[:, None, None]
            scaled /= np.array(self.std, np.float32)[:, None, None]
        return scaled


def read_squashed(source: ImageSource | str, side: int) -> Image.Image:
    """Open an image file and squash it to side x side pixels; raises `BrokenImage`."""
    image, place = open_reduced(source, side)
    return squash(image, side, place)


def squash(image: Image.Image, side: int, place: Region | None = None) -> Image.Image:
    """Resize an image, or a place in it (pixels), to a square, antialiased."""
    if image.size == (side, side) and place in (None, (0, 0, side, side)):
        return image
    return image.resize((side, side), Image.Resampling.BILINEAR, box=place, reducing_gap=3.0)


def scale(pixels: Pixels) -> Floats:
    """Return pixels uint8 [..., H, W, 3] as float32 [..., 3, H, W] in 0..1."""
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    scaled /= 255
    return scaled
