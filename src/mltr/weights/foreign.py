"""Checkpoints of other projects: read safely and identified."""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mltr.errors import MltrError
from mltr.network.variants import VARIANTS
from mltr.weights.bundle import not_finite

Tensors = Mapping[str, Tensor]
#: What holds the tensors in a checkpoint; averaged ones (EMA) count before others, as in timm.
WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict")
IGNORED = ("relative_position_index", "attn_mask")  #: buffers that a network makes for itself
CAT_BLOCKS = ("pre_ipsa_blocks", "cpsa_blocks", "post_ipsa_blocks")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors or PyTorch file by name; no code in it is executed.

    The usual wrappers are removed: an entry such as `model` or `state_dict_ema`, names with
    `module.`. Raises `MltrError` for a file that is missing, damaged, or holds code or no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MltrError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            return _plain(safetensors.torch.load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise MltrError(f"{path} is damaged or cut short ({error})") from error
    content = _load_pickled(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = {}
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise MltrError(f"{path} contains no named tensors, so it isn't a checkpoint of a network")
    return _plain(tensors)


def _plain(tensors: Tensors) -> dict[str, Tensor]:
    """Return tensors by their names without what a wrapper of the network has put in front."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", key): value for key, value in tensors.items()}


def _load_pickled(path: Path) -> object:
    try:
        # timm's training keeps its options beside the tensors.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise MltrError(f"{path} is damaged or not a PyTorch file") from error
        raise MltrError(
            f"{path} contains more than tensors ({found[1]}), which could execute arbitrary code; "
            "it was not loaded, and nothing in it was run. If you trust its origin, save only the "
            "dict of its tensors: torch.save(torch.load(FILE, weights_only=False)[KEY], NEW)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MltrError(f"{path} is damaged or cut short ({reason})") from error


def first_few(names: Sequence[str]) -> str:
    """Return four names and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# -- what a file holds -------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What determines the shapes of a checkpoint: like a `Variant`, inferred from its entries."""

    family: str  #: CAT or Swin
    embed_dim: int
    depths: tuple[int, ...]  #: triples of CAT, blocks of Swin
    windows: tuple[int, ...]
    num_classes: int  #: 0 without a classifier
    position_side: int  #: patches along a side of the absolute positions; 0 without

    def __str__(self) -> str:
        unit = "triples" if self.family == "CAT" else "blocks"
        head = f"{self.num_classes} classes" if self.num_classes else "no classifier"
        depths = ", ".join(map(str, self.depths))
        return f"{self.family}: {self.embed_dim} channels, {depths} {unit}, {head}"

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that it was trained on, as far as that can be told."""
        if self.position_side:
            return 4 * self.position_side
        return 4 * int(2 ** (len(self.depths) - 1)) * self.windows[-1]

    def fitting(self) -> str:
        """Say which variants it fits."""
        same_width = [n for n, v in VARIANTS.items() if v.embed_dim == self.embed_dim]
        if self.family == "CAT":
            exact = [n for n in same_width if VARIANTS[n].depths == self.depths]
            same_width = exact or same_width
        return f"it would fit {' or '.join(same_width)}" if same_width else "it fits no variant"


def read_layout(tensors: Tensors, family: str) -> Layout:
    """Identify the entries of a checkpoint, and check every one of them.

    Raises `MltrError` naming the first few entries that are missing, unknown or of the wrong shape.
    """
    blocks = CAT_BLOCKS[0] if family == "CAT" else "blocks"
    places = [re.match(rf"layers\.(\d+)\.{blocks}\.(\d+)\.", name) for name in tensors]
    found = {(int(place[1]), int(place[2])) for place in places if place}
    norm = tensors.get("patch_embed.norm.weight")
    if not found or norm is None or norm.ndim != 1:
        hint = _other_family(tensors, family)
        raise MltrError(
            f"these are not weights of {family}: no entries such as layers.0.{blocks}.0, but "
            f"{first_few(list(tensors))}{hint}"
        )
    stages = 1 + max(stage for stage, _ in found)
    depths = tuple(sum(stage == number for stage, _ in found) for number in range(stages))
    windows = tuple(_window_of(tensors, f"layers.{i}.{blocks}.0") for i in range(stages))
    head = tensors.get("head.weight")
    classes = 0 if head is None else head.shape[0]
    ape = tensors.get("ape")
    side = 0 if ape is None or ape.ndim != 3 else math.isqrt(ape.shape[1])
    layout = Layout(family, norm.shape[0], depths, windows, classes, side)
    _check_shapes(tensors, layout)
    return layout


def _other_family(tensors: Tensors, family: str) -> str:
    other = "Swin" if family == "CAT" else "CAT"
    sign = r"layers\.0\.blocks\." if other == "Swin" else r"layers\.0\.pre_ipsa_blocks\."
    if any(re.match(sign, name) for name in tensors):
        return f"; it looks like {other}: use mltr convert {other.lower()}"
    return ""


def _window_of(tensors: Tensors, block: str) -> int:
    table = tensors.get(f"{block}.attn.relative_position_bias_table")
    side = 0 if table is None or table.ndim != 2 else math.isqrt(table.shape[0])
    return (side + 1) // 2


def _expected_shapes(layout: Layout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each entry that a checkpoint of this layout has, with its shape."""
    dim = layout.embed_dim
    yield "patch_embed.proj.weight", (dim, 3, 4, 4)
    yield "patch_embed.proj.bias", (dim,)
    yield from _pair("patch_embed.norm", (dim,))
    for stage, (depth, w) in enumerate(zip(layout.depths, layout.windows, strict=True)):
        C = dim * 2**stage
        kinds = CAT_BLOCKS if layout.family == "CAT" else ("blocks",)
        for kind in kinds:
            features = w * w if kind == "cpsa_blocks" else C
            for number in range(depth):
                block = f"layers.{stage}.{kind}.{number}"
                for norm in ("norm1", "norm2"):
                    yield from _pair(f"{block}.{norm}", (C,))
                yield from _pair(f"{block}.attn.qkv", (3 * features, features))
                yield from _pair(f"{block}.attn.proj", (features, features))
                yield from _pair(f"{block}.mlp.fc1", (4 * C, C))
                yield from _pair(f"{block}.mlp.fc2", (C, 4 * C))
                if kind != "cpsa_blocks":
                    table = f"{block}.attn.relative_position_bias_table"
                    yield table, ((2 * w - 1) ** 2, C // 32)
        if stage + 1 < len(layout.depths):
            yield from _pair(f"layers.{stage}.downsample.norm", (4 * C,))
            yield f"layers.{stage}.downsample.reduction.weight", (2 * C, 4 * C)
    last = dim * 2 ** (len(layout.depths) - 1)
    yield from _pair("norm", (last,))
    if layout.num_classes:
        yield from _pair("head", (layout.num_classes, last))
    if layout.position_side:
        yield "ape", (1, layout.position_side**2, dim)


def _pair(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _check_shapes(tensors: Tensors, layout: Layout) -> None:
    expected = dict(_expected_shapes(layout))
    missing = [name for name in expected if name not in tensors]
    misshapen = [
        f"{name} {list(tensors[name].shape)} where {list(shape)} belongs"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    unknown = [name for name in tensors if name not in expected]
    groups = (("missing", missing), ("wrong shape", misshapen), ("unknown", unknown))
    complaints = [f"{what}: {first_few(names)}" for what, names in groups if names]
    if damaged := not_finite({name: tensors[name] for name in expected if name in tensors}):
        complaints.append(f"NaN or infinity in {first_few(damaged)}")
    if complaints:
        raise MltrError(
            f"the file looks like {layout}, but its entries don't fit that: "
            f"{'; '.join(complaints)}; {layout.fitting()} if it were whole"
        )


def tidy(tensors: Tensors) -> dict[str, Tensor]:
    """Return entries under the names of the original codes, for files by timm, too."""
    kept = {key: t.float() for key, t in tensors.items() if not key.endswith(IGNORED)}
    by_timm = "layers.0.downsample.reduction.weight" not in kept  # there, a stage begins with it
    tidy = {}
    for name, tensor in kept.items():
        new = name.replace("head.fc.", "head.")
        if by_timm and (merge := re.match(r"layers\.(\d+)\.downsample\.", new)):
            new = new.replace(merge[0], f"layers.{int(merge[1]) - 1}.downsample.")
        tidy[new] = tensor
    return tidy
