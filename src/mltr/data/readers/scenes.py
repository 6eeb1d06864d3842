"""The embedded demo data: scenes of handwritten digits, composed on the fly.

The digits are the real ones that scikit-learn brings (UCI's "Optical Recognition of Handwritten
Digits"). A scene holds one to five of them and plants the three problems that the paper names:
small objects (sizes differ fourfold), similar objects (`LOOK_ALIKES`, which seldom meet), and
objects with a high conditional probability (`COMPANIONS`, which usually come together). A scene
depends on (seed, split, index) alone, and no digit of one split's scenes is in another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mltr.config.schema import SPLITS, ScenesConfig
from mltr.data.records import Box, Labels, Record, Split, Splits
from mltr.data.understood import Understood

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LOOK_ALIKES = ((1, 7), (3, 8), (4, 9))  #: pairs that resemble each other; they seldom meet
COMPANIONS = {2: 5, 6: 0}  #: where the first is, the second usually is too
P_COMPANION = 0.8  #: P(second | first)
P_LOOK_ALIKES_MEET = 0.1  #: that a look-alike of what is there already is let in
MAX_OBJECTS = 5
SIZES = (12, 40)  #: pixels of a digit's side on a canvas of 64, spread evenly on a log scale
CANVAS = 64
MAX_OVERLAP = 0.1  #: share of the smaller box
SHARES = (0.6, 0.15, 0.25)  #: of the handwritten digits, for the scenes of each split

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Placed:
    """A digit on the canvas: class, which handwritten image, and its square in pixels."""

    digit: int
    source: int
    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Scene:
    """A scene, composed when loaded; a `LazyImage`."""

    seed: int
    split: int
    index: int
    side: int
    objects: tuple[Placed, ...]

    def load(self) -> Image.Image:
        """Return the picture in RGB."""
        generator = np.random.default_rng((self.seed, self.split, self.index, 1))
        canvas = _background(generator, self.side)
        for placed in self.objects:
            _ink(canvas, placed, generator)
        return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def read_scenes(config: ScenesConfig) -> Splits:
    """Return the scenes of all three splits, with labels and boxes; the same seed, the same ones.

    An object's area is that of its ink, in pixels of the canvas.
    """
    counts = (config.train, config.val, config.test)
    train, val, test = (
        Split(
            CLASSES,
            [_record(config, number, index) for index in range(count)],
            SPLITS[number],
            understood=Understood("composed scenes"),
        )
        for number, count in enumerate(counts)
    )
    return Splits(train, val, test)


def _record(config: ScenesConfig, split: int, index: int) -> Record:
    generator = np.random.default_rng((config.seed, split, index, 0))
    objects = _arrange(_choose_digits(generator), split, config.side, generator)
    labels: Labels = np.zeros(len(CLASSES), np.int8)
    labels[[placed.digit for placed in objects]] = 1
    boxes = tuple(_box(placed) for placed in objects)
    name = f"{SPLITS[split]}-{index:05d}"
    scene = Scene(config.seed, split, index, config.side, objects)
    return Record(scene, name, labels, boxes)


def _choose_digits(generator: np.random.Generator) -> list[int]:
    """Choose one to five different digits, companions together and look-alikes apart."""
    wanted = int(generator.integers(1, MAX_OBJECTS + 1))
    digits: list[int] = []
    for digit in generator.permutation(len(CLASSES)).tolist():
        if len(digits) >= wanted or digit in digits:
            continue
        twins = {a + b - digit for a, b in LOOK_ALIKES if digit in (a, b)}
        if twins & set(digits) and generator.random() > P_LOOK_ALIKES_MEET:
            continue
        digits.append(digit)
        companion = COMPANIONS.get(digit)
        if companion is not None and companion not in digits and generator.random() < P_COMPANION:
            digits.append(companion)
    return digits[:MAX_OBJECTS]


def _arrange(
    digits: list[int], split: int, canvas: int, generator: np.random.Generator
) -> tuple[Placed, ...]:
    """Give each digit a size and a place, the largest first, with hardly any overlap."""
    low, high = (size * canvas / CANVAS for size in SIZES)
    sizes = np.exp(generator.uniform(np.log(low), np.log(high), len(digits)))
    # Five large ones don't fit: shrink what would cover more than about half the canvas.
    sizes *= min(1.0, float(np.sqrt(0.55 * canvas**2 / (sizes**2).sum())))
    sizes = sizes.clip(low)
    placed: list[Placed] = []
    for position in np.argsort(-sizes):
        digit, side = digits[position], round(float(sizes[position]))
        x, y = _free_place(side, canvas, placed, generator)
        sources = _sources(split)[digit]
        placed.append(Placed(digit, int(generator.choice(sources)), x, y, side))
    return tuple(placed)


def _free_place(
    side: int, canvas: int, placed: list[Placed], generator: np.random.Generator
) -> tuple[int, int]:
    """Return the first of many random places that is nearly free, or the freest."""
    candidates = generator.integers(0, canvas - side + 1, (60, 2))
    overlaps = np.zeros(len(candidates))
    for other in placed:
        corner = np.array([other.x, other.y])
        common = np.minimum(candidates + side, corner + other.side) - np.maximum(candidates, corner)
        overlaps += common.clip(0).prod(1) / min(side, other.side) ** 2
    free = np.flatnonzero(overlaps <= MAX_OVERLAP)
    x, y = candidates[free[0] if len(free) else overlaps.argmin()].tolist()
    return x, y


def _box(placed: Placed) -> Box:
    ink = _glyph(placed.source, placed.side) > 0.35
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return Box(
        placed.digit,
        x=float(placed.x + columns[0]),
        y=float(placed.y + rows[0]),
        width=float(columns[-1] - columns[0] + 1),
        height=float(rows[-1] - rows[0] + 1),
        area=float(ink.sum()),
    )


# -- handwriting and canvas --------------------------------------------------------------------


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scikit-learn's 1797 handwritten digits in 0..1 [N, 8, 8] and what they show [N]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


@lru_cache(maxsize=3)
def _sources(split: int) -> tuple[NDArray[np.int64], ...]:
    """Return, for each digit, which handwritten images the scenes of a split may show."""
    shown = _digits()[1]
    start, stop = sum(SHARES[:split]), sum(SHARES[: split + 1])
    sources = []
    for digit in range(len(CLASSES)):
        own = np.flatnonzero(shown == digit)
        own = np.random.default_rng(digit).permutation(own)
        sources.append(own[round(start * len(own)) : round(stop * len(own))])
    return tuple(sources)


def _glyph(source: int, side: int) -> NDArray[np.float32]:
    """Return a digit as coverage 0..1 [side, side], smooth strokes from 8x8 grey values."""
    image = Image.fromarray(_digits()[0][source])
    large = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    return np.asarray(((large - 0.4) / 0.3).clip(0, 1), dtype=np.float32)


def _background(generator: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Return a dark, textured, coloured canvas [side, side, 3] in 0..255."""
    base = generator.uniform(15, 75, 3)
    texture = np.zeros((side, side, 3), np.float32)
    for cells, strength in ((3, 22), (8, 10), (20, 4)):
        noise = generator.uniform(-strength, strength, (cells, cells, 3))
        noise += generator.uniform(-strength, strength, (cells, cells, 1))
        texture += _enlarge(noise.astype(np.float32), side)
    texture += generator.normal(0, 2, (side, side, 1)).astype(np.float32)
    return (base + texture).astype(np.float32)


def _enlarge(field: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    layers = [
        Image.fromarray(np.ascontiguousarray(field[..., c])).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(layer) for layer in layers], axis=-1)


def _ink(canvas: NDArray[np.float32], placed: Placed, generator: np.random.Generator) -> None:
    """Draw a digit in a bright colour of its own, in place."""
    hue = generator.dirichlet(np.full(3, 0.6))
    colour = 150 + 105 * hue / hue.max()
    opacity = generator.uniform(0.85, 1.0)
    coverage = opacity * _glyph(placed.source, placed.side)[..., None]
    rows, columns = (slice(start, start + placed.side) for start in (placed.y, placed.x))
    canvas[rows, columns] = canvas[rows, columns] * (1 - coverage) + colour * coverage
