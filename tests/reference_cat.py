"""The seeded weights behind the reference numbers of CAT, and small CAT checkpoints."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor


def reference_weight(name: str, shape: list[int]) -> Tensor:
    """Return the weights for which the reference numbers were computed."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.1 * noise
    if name.endswith("relative_position_bias_table"):
        return 0.5 * noise
    if name == "ape":
        return 0.3 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    return noise * (1.5 / noise[0].numel() ** 0.5)


def cat_checkpoint(case: dict[str, Any]) -> dict[str, Tensor]:
    """Return all entries of a case's checkpoint, including integer buffers."""
    return {
        name: torch.zeros(shape, dtype=torch.int64)
        if name in case["integer_buffers"]
        else reference_weight(name, shape)
        for name, shape in case["state_dict"]
    }


def small_cat(embed_dim: int, depths: tuple[int, ...], w: int, classes: int) -> dict[str, Tensor]:
    """Return a CAT checkpoint of any size, for images of a single window in the last stage."""
    side = w * int(2 ** (len(depths) - 1))
    shapes: dict[str, list[int]] = {
        "ape": [1, side**2, embed_dim],
        "patch_embed.proj.weight": [embed_dim, 3, 4, 4],
        "patch_embed.proj.bias": [embed_dim],
        **_norm("patch_embed.norm", embed_dim),
    }
    for stage, depth in enumerate(depths):
        width = embed_dim * 2**stage
        for kind in ("pre_ipsa_blocks", "cpsa_blocks", "post_ipsa_blocks"):
            features = w * w if kind == "cpsa_blocks" else width
            for number in range(depth):
                name = f"layers.{stage}.{kind}.{number}"
                shapes |= _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width)
                shapes |= _linear(f"{name}.attn.qkv", 3 * features, features)
                shapes |= _linear(f"{name}.attn.proj", features, features)
                shapes |= _linear(f"{name}.mlp.fc1", 4 * width, width)
                shapes |= _linear(f"{name}.mlp.fc2", width, 4 * width)
                if kind != "cpsa_blocks":
                    table = f"{name}.attn.relative_position_bias_table"
                    shapes[table] = [(2 * w - 1) ** 2, width // 32]
        if stage + 1 < len(depths):
            shapes |= _norm(f"layers.{stage}.downsample.norm", 4 * width)
            shapes[f"layers.{stage}.downsample.reduction.weight"] = [2 * width, 4 * width]
    width = embed_dim * 2 ** (len(depths) - 1)
    shapes |= _norm("norm", width) | _linear("head", classes, width)
    return {name: reference_weight(name, shape) for name, shape in shapes.items()}


def _norm(name: str, width: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [width], f"{name}.bias": [width]}


def _linear(name: str, rows: int, columns: int) -> dict[str, list[int]]:
    return {f"{name}.weight": [rows, columns], f"{name}.bias": [rows]}
