"""Weights that know where a pixel is, resampled for another image or window size.

Three kinds do: absolute positions, relative position tables, and the cross-window projections,
whose features are the P pixels of a window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import resize_rel_pos_bias_table_simple
from torch import Tensor, nn

from mltr.network.model import CrossWindowAttention, resize_position


def adapt(model: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
    """Return `tensor` in the shape of the model's entry `name`, resampled if need be.

    None if they differ in more than the sizes of image and windows.
    """
    expected = model.state_dict()[name].shape
    if tensor.shape == expected:
        return tensor
    owner, _, entry = name.rpartition(".")
    if entry == "position" and len(expected) == 4 and tensor.shape[3:] == expected[3:]:
        return resize_position(tensor, (expected[1], expected[2]))
    if entry == "relative_position_bias_table" and tensor.shape[1] == expected[1]:
        w = (math.isqrt(expected[0]) + 1) // 2
        table: Tensor = resize_rel_pos_bias_table_simple(tensor.float(), (w, w), tuple(expected))
        return table.to(tensor.dtype)
    attention, _, linear = owner.rpartition(".")
    is_cross = bool(attention) and isinstance(model.get_submodule(attention), CrossWindowAttention)
    if is_cross and _is_square(tensor.shape[0] // (3 if linear == "qkv" else 1)):
        return resize_cross_window(tensor, expected[0], is_qkv=linear == "qkv")
    return None


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def resize_cross_window(tensor: Tensor, rows: int, *, is_qkv: bool) -> Tensor:
    """Resample the weight or bias of a cross-window projection to another size of windows.

    A window of the new size is resampled to the old one, projected, and resampled back: W becomes
    U W D, with D to the old size and U to the new one. Keys go back by D transposed, so that their
    products with queries stay what they were (D U = 1 where windows grow), times what undoes the
    change of the scale P^-0.5. So enlarged windows get the enlarged answer, exactly.
    """
    parts = 3 if is_qkv else 1
    old, new = math.isqrt(tensor.shape[0] // parts), math.isqrt(rows // parts)
    up, down = _between_windows(old, new)
    scale = (new / old) ** 0.5  # on queries and keys: P^-0.5 is 1 / old
    ways = (scale * up, scale * down.T, up) if is_qkv else (up,)
    resized = []
    for part, way in zip(tensor.double().chunk(parts), ways, strict=True):
        there = way @ part
        resized.append(there @ down if part.ndim == 2 else there)
    return torch.cat(resized).to(tensor.dtype)


def _between_windows(old: int, new: int) -> tuple[Tensor, Tensor]:
    """Return U [P_new, P_old] and D [P_old, P_new]; one is the pseudo-inverse of the other.

    The one that enlarges is bicubic, so that there and back again changes nothing.
    """
    small, large = sorted((old, new))
    pixels = torch.eye(small**2, dtype=torch.float64).view(-1, 1, small, small)
    enlarged = F.interpolate(pixels, (large, large), mode="bicubic", align_corners=False)
    enlarge = enlarged.flatten(1).T
    shrink = torch.linalg.pinv(enlarge)
    return (enlarge, shrink) if new >= old else (shrink, enlarge)
