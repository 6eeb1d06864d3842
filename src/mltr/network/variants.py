"""The table of variants, with the source of each number. This module doesn't import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from mltr.errors import UsageError, did_you_mean

Attention = Literal["both", "pixel", "cross"]


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True)
class Variant:
    """What defines a network except its number of classes; each field can be overridden."""

    embed_dim: int  #: C, channels of the first stage; doubles at each further stage
    depths: tuple[int, ...]  #: triples (pixel, cross-window, pixel block) of each stage
    window_size: int = 7  #: w, side of a window in pixels of the feature map
    image_size: int | tuple[int, int] = 224  #: the size, or (height, width), that it is built for
    head_dim: int = 32  #: channels of a head of the pixel attention
    mlp_ratio: float = 4.0
    drop_path: float = 0.1  #: greatest stochastic-depth rate; rises linearly from 0
    attention: Attention = "both"  #: which blocks a triple is made of, for ablations
    in_chans: int = 3
    absolute_position: bool = True  #: learned position embedding after the patch embedding
    # Ours, off in the paper's variants: what helps to learn from scratch from little data.
    conv_stem: bool = False  #: two 3x3 convolutions of stride 2 in place of the 4x4 patches
    conv_depths: tuple[int, ...] = ()  #: residual convolutions before a stage's triples, else 0
    conv_position: bool = False  #: a depthwise 3x3 convolution before each triple

    def __post_init__(self) -> None:
        # YAML and JSON know lists only; a variant is hashable and compares by value.
        for name in ("depths", "conv_depths", "image_size"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        self._check()

    def _check(self) -> None:
        for name in ("depths", "conv_depths"):
            numbers = getattr(self, name)
            if not isinstance(numbers, tuple) or not all(map(_is_whole, numbers)):
                raise UsageError(f"{name}={numbers!r} must be a list of whole numbers")
        for name in ("embed_dim", "head_dim", "window_size", "in_chans"):
            if not _is_whole(number := getattr(self, name)) or number < 1:
                raise UsageError(f"{name}={number!r} must be a positive whole number")
        for name in ("mlp_ratio", "drop_path"):
            if not isinstance(number := getattr(self, name), int | float):
                raise UsageError(f"{name}={number!r} must be a number")
        if not self.mlp_ratio > 0:
            raise UsageError(f"mlp_ratio={self.mlp_ratio} must be positive")
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if not 1 <= len(sides) <= 2 or not all(map(_is_whole, sides)):
            raise UsageError(f"image_size={self.image_size!r} must be one or two whole numbers")
        if len(self.depths) == 0 or min(self.depths) < 0:
            raise UsageError(
                f"depths={self.depths} must have one number (0 or more) for each stage"
            )
        if self.embed_dim % self.head_dim:
            raise UsageError(
                f"embed_dim={self.embed_dim} must be a multiple of head_dim={self.head_dim}"
            )
        if min(self.image_hw) < 1:
            raise UsageError(f"image_size={self.image_size} must be positive")
        if min(self.conv_depths, default=0) < 0:
            raise UsageError(f"conv_depths={self.conv_depths} must be 0 or more")
        if any(self.conv_depths[len(self.depths) :]):
            raise UsageError(
                f"conv_depths={self.conv_depths} has more stages than depths={self.depths}"
            )
        if not 0 <= self.drop_path < 1:
            raise UsageError(f"drop_path={self.drop_path} must lie in [0, 1)")
        if self.attention not in ("both", "pixel", "cross"):
            raise UsageError(f"attention={self.attention!r} must be one of both, pixel, cross")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels for which the network is built."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    def stage_window(self, stage: int) -> int:
        """Side of the windows of a stage: never larger than the map that it is built for."""
        stride = 4 * int(2**stage)
        sides = (-(-side // stride) for side in self.image_hw)
        return min(self.window_size, *sides)


# Widths, heads and windows: MlTr's Table 1 where published (S, M, L), the depths solved for the
# published parameter counts; XL is the next width of the family. CAT: arXiv 2106.05786, Table 1.
# Stochastic depth 0.1 / 0.2 / 0.3: CAT's training scripts, by size.
VARIANTS: dict[str, Variant] = {
    "mltr_nano": Variant(
        embed_dim=32,
        depths=(0, 0, 2),
        window_size=3,
        image_size=96,
        absolute_position=False,
        conv_stem=True,
        conv_depths=(2, 2, 0),
        conv_position=True,
        drop_path=0.05,
    ),
    "mltr_s": Variant(embed_dim=96, depths=(1, 2, 2, 1)),
    "mltr_m": Variant(96, (1, 1, 8, 1), window_size=12, image_size=384, drop_path=0.2),
    "mltr_l": Variant(128, (1, 1, 8, 1), window_size=12, image_size=384, drop_path=0.3),
    "mltr_xl": Variant(192, (1, 1, 8, 1), window_size=12, image_size=384, drop_path=0.3),
    "cat_t": Variant(embed_dim=64, depths=(1, 1, 3, 1)),
    "cat_s": Variant(embed_dim=96, depths=(1, 1, 3, 1), drop_path=0.2),
    "cat_b": Variant(embed_dim=96, depths=(1, 1, 6, 1), drop_path=0.3),
}


def get_variant(name: str, **overrides: Any) -> Variant:
    """Return the variant called `name` with some of its fields replaced.

    Raises `UsageError` for an unknown name or field, with the nearest known one.
    """
    if name not in VARIANTS:
        known = [*VARIANTS, "timm/NAME"]
        raise UsageError(
            f"unknown model {name!r}{did_you_mean(name, VARIANTS)}; known: {', '.join(known)}"
        )
    known_fields = [field.name for field in fields(Variant)]
    for key in overrides:
        if key not in known_fields:
            raise UsageError(
                f"model {name!r} has no option {key!r}{did_you_mean(key, known_fields)}; "
                f"options: {', '.join(known_fields)}"
            )
    return replace(VARIANTS[name], **overrides)
