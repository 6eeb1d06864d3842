"""How training images are varied, each alone and a batch together.

Every random number comes from torch's global generator, which the caller seeds for each sample.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mltr.config import AugmentConfig
from mltr.data.preprocess import Preprocess, Region, scale, squash

# Random-resized crop: aspect ratios of the usual recipe (Inception), 3/4 to 4/3.
LOG_RATIO = math.log(4 / 3)


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
        pixels = scale(np.asarray(image))
        if self.augment.cutout:
            cut_out(torch.from_numpy(pixels), round(side * self.augment.cutout))
        return torch.from_numpy(self.preprocess.normalize(pixels))

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
