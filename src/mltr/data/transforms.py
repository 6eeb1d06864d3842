"""From an opened image to what the network sees; evaluation resizes, training varies.

Every random number comes from torch's global generator, which the caller seeds for each sample.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mltr.config import AugmentConfig
from mltr.errors import MltrError

# Mean and standard deviation of ImageNet's training images, as everywhere in the field.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Random-resized crop: aspect ratios of the usual recipe (Inception), 3/4 to 4/3.
LOG_RATIO = math.log(4 / 3)
Region = tuple[float, float, float, float]


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
            fits = all(len(triple) == 3 for triple in triples.values())
            if not fits or preprocess.image_size < 1:
                raise ValueError(values)
        except (KeyError, TypeError, ValueError) as error:
            raise MltrError(f"preprocessing can't be understood: {error}") from error
        return preprocess

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float32 [3, S, S] for an RGB image of any size."""
        if self.base_size:
            image = squash(image, self.base_size)
        return self.normalize(to_tensor(squash(image, self.image_size)))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise pixels [3, S, S] in 0..1."""
        if self.mean == (0, 0, 0) and self.std == (1, 1, 1):
            return pixels
        return (pixels - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[
            :, None, None
        ]


def squash(image: Image.Image, side: int, region: Region | None = None) -> Image.Image:
    """Resize an image, or a region (left, top, right, bottom) of it, to a square, antialiased."""
    if region is None and image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.BILINEAR, box=region, reducing_gap=3.0)


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as float32 [3, H, W] in 0..1."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format) / 255


class TrainTransform:
    """What training images go through: crop, flip, jitter, RandAugment, cutout."""

    def __init__(self, preprocess: Preprocess, augment: AugmentConfig) -> None:
        self.preprocess = preprocess
        self.augment = augment
        steps: list[v2.Transform] = []
        if augment.jitter:
            strength = augment.jitter
            steps.append(v2.ColorJitter(strength, strength, strength))
        if augment.randaugment_ops:
            steps.append(
                v2.RandAugment(
                    augment.randaugment_ops, augment.randaugment_magnitude, fill=[128, 128, 128]
                )
            )
        self.colours = v2.Compose(steps) if steps else None

    def __call__(self, image: Image.Image, side: int) -> Tensor:
        """Return float32 [3, side, side] for an RGB image of any size."""
        region = random_region(image, self.augment.min_scale) if self._crops else None
        image = squash(image, side, region)
        if self.augment.flip and torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colours is not None:
            image = self.colours(image)
        pixels = to_tensor(image)
        if self.augment.cutout:
            cut_out(pixels, round(side * self.augment.cutout))
        return self.preprocess.normalize(pixels)

    @property
    def _crops(self) -> bool:
        return self.augment.crop == "random"


def random_region(image: Image.Image, min_scale: float) -> Region:
    """Return a random region of min_scale to all of the image's area (Inception's crop)."""
    width, height = image.size
    area, ratio, left, top = torch.rand(4).tolist()
    scale = math.sqrt(min_scale + (1 - min_scale) * area)
    stretch = math.exp((ratio - 0.5) * LOG_RATIO)
    crop_width, crop_height = width * min(1, scale * stretch), height * min(1, scale / stretch)
    x, y = left * (width - crop_width), top * (height - crop_height)
    return x, y, x + crop_width, y + crop_height


def cut_out(pixels: Tensor, side: int) -> None:
    """Paint a square of one random colour at a random place, clipped at the borders, in place."""
    H, W = pixels.shape[1:]
    centre_y, centre_x = (int(torch.randint(0, limit, ())) for limit in (H, W))
    top, left = max(0, centre_y - side // 2), max(0, centre_x - side // 2)
    bottom, right = centre_y - side // 2 + side, centre_x - side // 2 + side
    pixels[:, top:bottom, left:right] = torch.rand(3, 1, 1)


def mix_batch(
    images: Tensor, targets: Tensor, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image with another of the batch: mixup (arXiv 1710.09412) or cutmix (1905.04899).

    images [B, 3, S, S], targets [B, K] in {1, 0, -1}. With both parameters set, a coin decides.
    Returns mixed images and soft targets; a cell unknown in either image stays unknown (-1).
    """
    is_cutmix = cutmix > 0 and (mixup == 0 or bool(torch.rand((), generator=generator) < 0.5))
    alpha = cutmix if is_cutmix else mixup
    seed = int(torch.randint(0, 2**31, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(images), generator=generator)
    if is_cutmix:
        H, W = images.shape[2:]
        height, width = (round(side * math.sqrt(1 - share)) for side in (H, W))
        top = int(torch.randint(0, H - height + 1, (), generator=generator))
        left = int(torch.randint(0, W - width + 1, (), generator=generator))
        mixed = images.clone()
        place = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
        mixed[place] = images[other][place]
        share = 1 - height * width / (H * W)
    else:
        mixed = share * images + (1 - share) * images[other]
    soft = share * targets.float() + (1 - share) * targets[other].float()
    unknown = (targets < 0) | (targets[other] < 0)
    return mixed, soft.masked_fill(unknown, -1.0)
