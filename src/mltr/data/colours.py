"""RandAugment (arXiv 1909.13719) and colour jitter on planes of bytes.

Each operation gives the pixels of Pillow's, and so of torchvision's for Pillow images, but most are
a table of 256 bytes or a few passes over the planes, in place of several images.
Planes are uint8 [3, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Planes = NDArray[np.uint8]
Table = NDArray[np.uint8]  #: [256]

BITS = 30  #: RandAugment's magnitudes run from 0 to this
FILL = 128  #: grey where a moved image leaves a gap
VALUES = np.arange(256, dtype=np.float32)


def rand_augment(planes: Planes, ops: int, magnitude: int, rng: np.random.Generator) -> Planes:
    """Apply `ops` operations, drawn from all of them, at a magnitude of 0..30 and either sign."""
    for choice in rng.integers(len(OPERATIONS), size=ops):
        sign = 1 if rng.random() < 0.5 else -1
        planes = OPERATIONS[choice](planes, magnitude / BITS, sign)
    return planes


def jitter(planes: Planes, strength: float, rng: np.random.Generator) -> Planes:
    """Change brightness, contrast and saturation by up to `strength`, in any order."""
    for choice in rng.permutation(3):
        factor = rng.uniform(1 - strength, 1 + strength)
        planes = (brightness, contrast, saturation)[choice](planes, factor)
    return planes


# -- one operation each ------------------------------------------------------------------------


def brightness(planes: Planes, factor: float) -> Planes:
    """Mix with black; above 1, away from it."""
    return _look_up(planes, _towards(0, factor))


def contrast(planes: Planes, factor: float) -> Planes:
    """Mix with the grey that the image has on average."""
    return _look_up(
        planes, _towards(math.floor(_grey(planes).mean(dtype=np.float64) + 0.5), factor)
    )


def saturation(planes: Planes, factor: float) -> Planes:
    """Mix with the grey image."""
    return _mix(_grey(planes), planes, factor)


def sharpness(planes: Planes, factor: float) -> Planes:
    """Mix with a smoothed image; the border stays as it is."""
    wide = planes.astype(np.uint16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    near = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centre = planes[:, 1:-1, 1:-1]
    smooth = (near + 4 * wide[:, 1:-1, 1:-1] + 6) // 13
    mixed = planes.copy()
    mixed[:, 1:-1, 1:-1] = _mix(smooth.astype(np.float32), centre, factor)
    return mixed


def posterize(planes: Planes, bits: int) -> Planes:
    """Keep the highest bits of each value."""
    return planes & np.uint8(256 - (1 << (8 - bits)))


def solarize(planes: Planes, threshold: float) -> Planes:
    """Invert the values at or above a threshold."""
    kept = VALUES.astype(np.float64) < threshold
    return _look_up(planes, np.where(kept, VALUES, 255 - VALUES).astype(np.uint8))


def autocontrast(planes: Planes) -> Planes:
    """Stretch each colour to the whole range of values."""
    lows, highs = planes.min((1, 2)).tolist(), planes.max((1, 2)).tolist()
    tables = []
    for low, high in zip(lows, highs, strict=True):
        scale = 255 / (high - low) if high > low else 1.0
        values = VALUES.astype(np.float64) * scale - (low * scale if high > low else 0)
        tables.append(np.clip(values, 0, 255).astype(np.uint8))
    return _look_up(planes, *tables)


def equalize(planes: Planes) -> Planes:
    """Spread each colour's values so that all are about as frequent."""
    return _look_up(planes, *map(_equal_table, planes))


def rotate(planes: Planes, degrees: float) -> Planes:
    """Turn around the middle, counter-clockwise, to the nearest pixels."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    size = planes.shape[2], planes.shape[1]
    x, y = size[0] / 2, size[1] / 2
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    turned = np.empty_like(planes)
    for plane, place in zip(planes, turned, strict=True):
        image = Image.fromarray(plane)
        place[:] = image.transform(size, Image.Transform.AFFINE, matrix, fillcolor=FILL)
    return turned


def slide(planes: Planes, start: float, slope: float, axis: int) -> Planes:
    """Move row y (axis 2) or column x (axis 1) along itself by `start` and `slope` times y or x.

    To the left or up, by whole pixels, rounded as Pillow's fixed-point affine transform does.
    """
    moved = np.full_like(planes, FILL)
    lines, places = (array if axis == 2 else array.swapaxes(1, 2) for array in (planes, moved))
    count, length = lines.shape[1:]
    fixed = [math.floor(value * 65536 + 0.5) for value in (slope, start + slope * 0.5 + 0.5)]
    steps = np.clip((fixed[0] * np.arange(count) + fixed[1]) >> 16, -length, length)
    edges = [0, *(np.flatnonzero(np.diff(steps)) + 1).tolist(), count]
    for first, last in pairwise(edges):  # neighbours that move alike
        step = int(steps[first])
        kept = lines[:, first:last, max(0, step) : length + min(0, step)]
        places[:, first:last, max(0, -step) : length - max(0, step)] = kept
    return moved


#: RandAugment's, each by a share 0..1 of its greatest strength and a sign.
OPERATIONS: tuple[Callable[[Planes, float, int], Planes], ...] = (
    lambda planes, share, sign: planes,
    lambda planes, share, sign: slide(planes, 0, sign * 0.3 * share, 2),
    lambda planes, share, sign: slide(planes, 0, sign * 0.3 * share, 1),
    lambda planes, share, sign: slide(planes, sign * _reach(share, planes.shape[2]), 0, 2),
    lambda planes, share, sign: slide(planes, sign * _reach(share, planes.shape[1]), 0, 1),
    lambda planes, share, sign: rotate(planes, sign * 30 * share),
    lambda planes, share, sign: brightness(planes, 1 + sign * 0.9 * share),
    lambda planes, share, sign: saturation(planes, 1 + sign * 0.9 * share),
    lambda planes, share, sign: contrast(planes, 1 + sign * 0.9 * share),
    lambda planes, share, sign: sharpness(planes, 1 + sign * 0.9 * share),
    lambda planes, share, sign: posterize(planes, 8 - round(4 * share)),
    lambda planes, share, sign: solarize(planes, 255 * (1 - share)),
    lambda planes, share, sign: autocontrast(planes),
    lambda planes, share, sign: equalize(planes),
)


# -- what they are made of ---------------------------------------------------------------------


def _look_up(planes: Planes, *tables: Table) -> Planes:
    """Replace each value by a table's entry: one table for all colours, or one for each."""
    parts = planes if len(tables) > 1 else [planes]
    content = bytearray().join(
        part.tobytes().translate(table.tobytes()) for part, table in zip(parts, tables, strict=True)
    )
    return np.frombuffer(content, np.uint8).reshape(planes.shape)


def _reach(share: float, side: int) -> int:
    """Return by how many pixels an image is moved: up to 150 of 331, as in AutoAugment."""
    return math.trunc(share * 150 / 331 * side)


def _towards(value: int, factor: float) -> Table:
    values: NDArray[np.float32] = value + np.float32(factor) * (VALUES - value)
    return values.clip(0, 255).astype(np.uint8)


def _mix(other: NDArray[np.float32], planes: Planes, factor: float) -> Planes:
    mixed: NDArray[np.float32] = planes - other
    mixed *= np.float32(factor)
    mixed += other
    clipped: NDArray[np.float32] = np.clip(mixed, 0, 255, out=mixed)
    return clipped.astype(np.uint8)


def _grey(planes: Planes) -> NDArray[np.float32]:
    """Return the grey [H, W] of ITU-R 601 in whole numbers, rounded as Pillow does.

    Its fixed-point sums stay below 2 ** 24, so they are exact in float32.
    """
    red, green, blue = planes.astype(np.float32)
    total: NDArray[np.float32] = (
        np.float32(19595) * red + np.float32(38470) * green + np.float32(7471) * blue
    )
    total += np.float32(0x8000)
    total *= np.float32(1 / 65536)
    return np.floor(total, out=total)


def _equal_table(plane: NDArray[np.uint8]) -> Table:
    counts = np.array(Image.fromarray(plane).histogram())
    step = int(counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return VALUES.astype(np.uint8)
    below = np.concatenate([[0], counts.cumsum()[:-1]])
    table: Table = np.minimum((step // 2 + below) // step, 255).astype(np.uint8)
    return table
