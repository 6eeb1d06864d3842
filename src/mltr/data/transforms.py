"""How training images are varied, each alone and a batch together.

A single image stays in bytes: workers hand on a quarter of what floats would take, and the process
of the network turns a whole batch into floats at once, on its device.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mltr.config.schema import AugmentConfig
from mltr.data import colours
from mltr.data.colours import Planes
from mltr.data.images import WHOLE, Region
from mltr.data.preprocess import FILTERS, Pixels, Preprocess, squash

# Random-resized crop: aspect ratios of the usual recipe (Inception), 3/4 to 4/3.
LOG_RATIO = math.log(4 / 3)
# Random erasing: shares of the area, aspect ratios and trials of torchvision and of the paper.
ERASED_SHARE = (0.02, 0.33)
ERASED_LOG_RATIO = math.log(3.3)
ERASING_TRIALS = 10
RESIZERS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


class TrainTransform:
    """What training images go through: crop, flip, jitter, RandAugment, cutout, erasing."""

    def __init__(self, augment: AugmentConfig, interpolation: str = "bilinear") -> None:
        self.augment = augment
        self.interpolation = interpolation

    def choose_region(self, rng: np.random.Generator) -> Region:
        """Return the part of an image to use, in shares of its width and height."""
        if self.augment.crop == "random":
            return random_region(rng, self.augment.min_scale)
        return WHOLE

    def __call__(
        self, image: Image.Image | Pixels, place: Region, side: int, rng: np.random.Generator
    ) -> Planes:
        """Return uint8 [3, side, side] of a place (pixels) in an RGB image of any size."""
        planes = resize(image, place, side, self.interpolation)
        if self.augment.flip and rng.random() < 0.5:
            planes = planes[:, :, ::-1]
        planes = np.ascontiguousarray(planes)
        if self.augment.jitter:
            planes = colours.jitter(planes, self.augment.jitter, rng)
        if self.augment.randaugment_ops:
            planes = colours.rand_augment(
                planes, self.augment.randaugment_ops, self.augment.randaugment_magnitude, rng
            )
        if self.augment.cutout:
            planes = cut_out(planes, round(side * self.augment.cutout), rng)
        if self.augment.erasing and rng.random() < self.augment.erasing:
            planes = erase(planes, rng)
        return planes


def resize(
    image: Image.Image | Pixels, place: Region, side: int, interpolation: str = "bilinear"
) -> Planes:
    """Return a place in an RGB image as uint8 [3, side, side], antialiased.

    The pixels are those of `Preprocess.resize`, give or take 1 or 2 of 255, in a third of the time:
    torch has vector instructions for it, which evaluation does without for the sake of exported
    networks. The left and top borders are rounded to whole pixels.
    """
    if interpolation not in RESIZERS:  # Pillow has the others
        whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
        squashed = squash(whole, side, place, FILTERS[interpolation])
        return np.ascontiguousarray(np.moveaxis(np.asarray(squashed), -1, 0))
    right, bottom = place[2:]
    # At least a pixel, of which the place may be a part.
    left = min(math.floor(place[0] + 0.5), math.ceil(right) - 1)
    top = min(math.floor(place[1] + 0.5), math.ceil(bottom) - 1)
    pixels = _as_tensor(image)[top : math.ceil(bottom), left : math.ceil(right)]
    resized: Tensor = RESIZERS[interpolation](
        pixels.permute(2, 0, 1)[None],
        [side, side],
        False,
        side / max(bottom - top, 1),
        side / max(right - left, 1),
    )
    return resized[0, :3].numpy()


def _as_tensor(image: Image.Image | Pixels) -> Tensor:
    """Return an RGB image as uint8 [H, W, 4 or 3], sharing its memory where that can be."""
    if isinstance(image, Image.Image):
        try:
            pixels: Tensor = from_dlpack(pa.array(image).flatten())
            return pixels.view(image.height, image.width, 4)
        except ValueError:  # a large image, whose memory is in pieces
            image = np.asarray(image)
    return torch.from_numpy(image.copy())  # torch shares no memory that it may not write to


def random_region(rng: np.random.Generator, min_scale: float) -> Region:
    """Return a random region of min_scale to all of an image's area (Inception's crop)."""
    area, ratio, left, top = rng.random(4).tolist()
    scale = math.sqrt(min_scale + (1 - min_scale) * area)
    stretch = math.exp((ratio - 0.5) * LOG_RATIO)
    width, height = min(1, scale * stretch), min(1, scale / stretch)
    x, y = left * (1 - width), top * (1 - height)
    return x, y, x + width, y + height


def cut_out(planes: Planes, side: int, rng: np.random.Generator) -> Planes:
    """Paint a square of one random colour at a random place, clipped at the borders."""
    H, W = planes.shape[1:]
    top, left = int(rng.integers(H)) - side // 2, int(rng.integers(W)) - side // 2
    colour = rng.integers(256, size=(3, 1, 1))
    planes[:, max(0, top) : top + side, max(0, left) : left + side] = colour
    return planes


def erase(planes: Planes, rng: np.random.Generator) -> Planes:
    """Put noise in the place of a rectangle (random erasing, arXiv 1708.04896)."""
    H, W = planes.shape[1:]
    for _ in range(ERASING_TRIALS):
        area = H * W * rng.uniform(*ERASED_SHARE)
        ratio = math.exp(rng.uniform(-ERASED_LOG_RATIO, ERASED_LOG_RATIO))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < H and 0 < width < W:
            top, left = int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1))
            noise = rng.integers(256, size=(3, height, width), dtype=np.uint8)
            planes[:, top : top + height, left : left + width] = noise
            return planes
    return planes


def to_floats(planes: Tensor, preprocess: Preprocess) -> Tensor:
    """Return uint8 [B, 3, S, S] as `Preprocess.scale` does, to the bit, on the tensor's device."""
    images = planes.float().div_(255)
    if preprocess.normalizes:
        mean, std = (
            torch.tensor(values, device=planes.device)[:, None, None]
            for values in (preprocess.mean, preprocess.std)
        )
        images.sub_(mean).div_(std)
    return images


def mix_batch(
    images: Tensor, targets: Tensor, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image with another of the batch: mixup (arXiv 1710.09412) or cutmix (1905.04899).

    images [B, 3, S, S], targets [B, K] in 0..1 or -1. With both parameters set, a coin decides.
    Returns mixed images and soft targets; a cell unknown in either image stays unknown (-1).
    """
    is_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if is_cutmix else mixup
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(images)))
    if is_cutmix:
        H, W = images.shape[2:]
        height, width = (round(side * math.sqrt(1 - share)) for side in (H, W))
        top, left = int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1))
        mixed = images.clone()
        place = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
        mixed[place] = images[other][place]
        share = 1 - height * width / (H * W)
    else:
        mixed = share * images + (1 - share) * images[other]
    soft = share * targets.float() + (1 - share) * targets[other].float()
    unknown = (targets < 0) | (targets[other] < 0)
    return mixed, soft.masked_fill(unknown, -1.0)
