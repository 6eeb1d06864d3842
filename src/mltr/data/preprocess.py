"""From an image file to what the network sees. No torch here: exported networks need none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mltr.config.schema import AugmentConfig
from mltr.data.images import MAX_PIXELS, Region, open_image, open_reduced
from mltr.data.records import ImageSource
from mltr.errors import MltrError, UsageError

# Mean and standard deviation of ImageNet's training images, as everywhere in the field.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: The choices of `augment.normalize`; that of Inception maps 0..1 to -1..1.
NORMALIZATIONS = {
    "none": ((0.0,) * 3, (1.0,) * 3),
    "imagenet": IMAGENET,
    "inception": ((0.5,) * 3, (0.5,) * 3),
}
CROP_PCT = 0.875  #: of weights that don't say; timm's default
LARGER = 8 / 7  #: first squash, in the side of images: 256 px for 224 leave room for crops
LONGEST = 32  #: how many times longer than wide a picture may be to be resized whole
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos", "nearest")
}

#: Side of a tile as a share of the image's: overlapping tiles cut fewer objects in two.
TILE = 0.6
LARGEST_SIDE = 16384  #: pixels, of what a network sees
LARGEST_PADDED = math.isqrt(MAX_PIXELS)  #: pixels on a side, of an image with its borders

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def first_side(base_size: int, image_size: int) -> int:
    """Return the side of the first squash, which is never to fewer pixels than the network sees.

    >>> first_side(256, 224), first_side(256, 384), first_side(0, 384)
    (256, 439, 0)
    """
    return base_size if not 0 < base_size < image_size else round(image_size * LARGER)


def _share_of_crop(weights: Mapping[str, Any]) -> float:
    """Return the share of the shorter side that timm cuts out for its weights; 0 for a squash.

    Raises `UsageError` for what timm prepares in another way.
    """
    mode, share = weights.get("crop_mode") or "center", weights.get("crop_pct") or CROP_PCT
    if mode == "squash" and share == 1:
        return 0.0
    if mode != "center" or share > 1:
        raise UsageError(
            f"augment.resize crop: timm prepares the images of these weights in another way "
            f"(crop_mode {mode}, crop_pct {share:g}); leave it out"
        )
    return float(share)


@dataclass(frozen=True)
class Preprocess:
    """What every image goes through at evaluation: resize to a square, scale, normalise.

    The whole image is squashed, unless `crop_pct` is set: then the shorter side is resized to
    `image_size / crop_pct` pixels and the middle cut out, as timm does, to the bit. With `padding`,
    borders of that colour make it a square first.
    """

    image_size: int  #: side in pixels
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base_size: int = 0  #: side in pixels of a first squash, as images are cached (0: none)
    interpolation: str = "bilinear"  #: or another of `FILTERS`
    crop_pct: float = 0.0  #: share of the shorter side that the network sees (0: no crop)
    padding: tuple[int, int, int] | None = None  #: red, green and blue of the borders, 0..255

    @classmethod
    def from_config(
        cls,
        augment: AugmentConfig,
        image_size: int,
        base_size: int,
        weights: Mapping[str, Any] | None = None,
    ) -> Preprocess:
        """Return what a recipe says, and where it leaves that open, what the weights are used to.

        `weights` has any of `mean`, `std`, `interpolation` and `crop_pct`, as in timm's
        configurations and in `to_dict`. The first squash is to `first_side`.
        """
        weights = weights or {}
        mean, std = NORMALIZATIONS["none" if augment.normalize == "auto" else augment.normalize]
        if augment.normalize == "auto":
            mean, std = weights.get("mean") or mean, weights.get("std") or std
        return cls.from_dict(
            {
                "image_size": image_size,
                "mean": mean,
                "std": std,
                "base_size": first_side(base_size, image_size),
                "interpolation": weights.get("interpolation") or "bilinear",
                "crop_pct": _share_of_crop(weights) if augment.resize == "crop" else 0.0,
            }
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Undo `to_dict`; raises `MltrError` for values that don't fit."""
        try:
            triples = {key: tuple(map(float, values[key])) for key in ("mean", "std")}
            if values.get("padding") is not None:
                triples["padding"] = tuple(values["padding"])
            preprocess = cls(**{**values, **triples})
            preprocess._check()
        except (KeyError, TypeError, ValueError) as error:
            raise MltrError(f"the preprocessing is invalid: {error}") from error
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
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"interpolation {self.interpolation!r} must be one of {', '.join(FILTERS)}"
            )
        if not 0 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct} must lie in 0..1")
        if self.padding is not None:
            self._check_padding(self.padding)

    def _check_padding(self, colour: tuple[int, ...]) -> None:
        if len(colour) != 3 or not all(type(c) is int and 0 <= c <= 255 for c in colour):
            raise ValueError(f"padding {colour} must be null or three numbers in 0..255")
        if self.crop_pct or self.base_size:
            raise ValueError("padding can't be combined with crop_pct or base_size")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Say it in a line."""
        mean, std = (
            " ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std)
        )
        way = f"centre crop of {self.crop_pct:g}" if self.crop_pct else "squashed"
        if self.padding is not None:
            way = "padded with #{:02x}{:02x}{:02x}".format(*self.padding)
        return f"{self.image_size} px, {way}, {self.interpolation}, mean {mean}, std {std}"

    def __call__(self, image: Image.Image) -> Floats:
        """Return float32 [3, S, S] for an RGB image of any size."""
        return self.scale(self.resize(image))

    def read(self, source: ImageSource | str) -> Pixels:
        """Open an image file and resize it to uint8 [S, S, 3]; raises `BrokenImage`."""
        return self.resize(*self.open(source))

    def open(
        self, source: ImageSource | str, max_pixels: int = MAX_PIXELS, tiles: bool = False
    ) -> tuple[Image.Image, Region | None]:
        """Open an image file for `resize`; raises `BrokenImage`.

        With `resize` the only way from files to pixels, in training, evaluation, prediction and
        serving alike. A file to be squashed is decoded no larger than needed, so its pixels may
        differ from those of the same image decoded in full: by 1 or 2 of 255 on average.
        """
        if self.crop_pct or self.padding is not None:
            return open_image(source, max_pixels), None
        side = self.base_size or self.image_size
        enlarged = math.ceil(side / TILE) if tiles else side
        return open_reduced(source, enlarged, max_pixels=max_pixels)

    def tile(self, image: Image.Image, place: Region | None = None) -> Pixels:
        """Return uint8 [5, S, S, 3]: the whole image, and its four corners, a `TILE` of it each.

        Like `resize` for an image opened with `tiles`.
        """
        left, top, right, bottom = place or (0, 0, *image.size)
        wide, high = TILE * (right - left), TILE * (bottom - top)
        looks = [self.resize(image, place)]
        for y in (top, bottom - high):
            for x in (left, right - wide):
                end_x, end_y = min(x + wide, image.width), min(y + high, image.height)
                edges = math.floor(x), math.floor(y), math.ceil(end_x), math.ceil(end_y)
                looks.append(self.resize(image.crop(edges)))
        return np.stack(looks)

    def resize(self, image: Image.Image | Pixels, place: Region | None = None) -> Pixels:
        """Return uint8 [S, S, 3] for an RGB image of any size, or for a place in it (pixels)."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        side, resample = self.image_size, FILTERS[self.interpolation]
        if self.crop_pct:
            return np.asarray(self._crop(image, resample))
        if self.padding is not None:
            return np.asarray(self._pad(image, self.padding).resize((side, side), resample))
        if self.base_size:
            image, place = squash(image, self.base_size, place), None
        return np.asarray(squash(image, side, place, resample))

    def view(self, size: tuple[int, int], side: int = 0) -> Region:
        """Return which part of a picture of (width, height) the network sees, in pixels.

        `side` stands in for `image_size`.
        """
        if self.padding is not None:
            left, top = ((max(size) - length) // 2 for length in size)
            return -left, -top, max(size) - left, max(size) - top
        if not self.crop_pct:
            return 0, 0, *size
        side = side or self.image_size
        (wide, high), left, top = self._enlarged(size, side)
        x, y = size[0] / wide, size[1] / high
        right, bottom = min((left + side) * x, size[0]), min((top + side) * y, size[1])
        return left * x, top * y, right, bottom

    def _enlarged(self, size: tuple[int, int], side: int) -> tuple[tuple[int, int], int, int]:
        """Return the size to which a picture is resized, and left and top of what is cut out.

        The rounding is that of timm and torchvision.
        """
        shorter = math.floor(side / self.crop_pct)
        wide, high = (int(shorter * length / min(size)) for length in size)
        return (wide, high), round((wide - side) / 2), round((high - side) / 2)

    def _crop(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """Resize the shorter side, and cut out the middle."""
        side = self.image_size
        if max(image.size) > LONGEST * min(image.size):  # a line of pixels would become gigabytes
            return image.resize((side, side), resample, box=self.view(image.size))
        size, left, top = self._enlarged(image.size, side)
        return image.resize(size, resample).crop((left, top, left + side, top + side))

    @staticmethod
    def _pad(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
        """Paste an image in the middle of a square."""
        if max(image.size) ** 2 > MAX_PIXELS:  # the square of a long one would take gigabytes
            image = image.copy()
            image.thumbnail((LARGEST_PADDED, LARGEST_PADDED))
        longest = max(image.size)
        square = Image.new("RGB", (longest, longest), colour)
        square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
        return square

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


def squash(
    image: Image.Image,
    side: int,
    place: Region | None = None,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
) -> Image.Image:
    """Resize an image, or a place in it (pixels), to a square, antialiased."""
    if image.size == (side, side) and place in (None, (0, 0, side, side)):
        return image
    return image.resize((side, side), resample, box=place, reducing_gap=3.0)


def scale(pixels: Pixels) -> Floats:
    """Return pixels uint8 [..., H, W, 3] as float32 [..., 3, H, W] in 0..1."""
    scaled = np.moveaxis(pixels, -1, -3).astype(np.float32, order="C")
    scaled /= 255
    return scaled
