"""Both attentions as naive loops, as a reference for the network."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def naive_pixel_attention(attention, windows: Tensor, is_pixel: Tensor | None = None) -> Tensor:
    """In-window attention, one query pixel of one head of one window at a time.

    `attention` is a `PixelAttention`, windows [B, N, P, C], `is_pixel` [N, P].
    """
    B, N, P, C = windows.shape
    w, heads = attention.window_size, attention.num_heads
    size = C // heads
    mixed = []
    for b, n, head in itertools.product(range(B), range(N), range(heads)):
        rows = slice(head * size, (head + 1) * size)
        query, key, value = (
            windows[b, n] @ attention.qkv.weight[part * C : (part + 1) * C][rows].T
            + attention.qkv.bias[part * C : (part + 1) * C][rows]
            for part in range(3)
        )
        for q in range(P):
            keys = [k for k in range(P) if is_pixel is None or is_pixel[n, k]]
            scores = []
            for k in keys:
                dy, dx = q // w - k // w, q % w - k % w
                row = (dy + w - 1) * (2 * w - 1) + dx + w - 1
                bias = attention.relative_position_bias_table[row, head]
                scores.append(query[q] @ key[k] / size**0.5 + bias)
            weights = torch.stack(scores).exp()
            mixed.append((weights / weights.sum()) @ value[keys])
    stacked = torch.stack(mixed).view(B, N, heads, P, size).transpose(2, 3).reshape(B, N, P, C)
    return stacked @ attention.proj.weight.T + attention.proj.bias


def naive_cross_window_attention(attention, windows: Tensor) -> Tensor:
    """Attention between windows, one query window of one channel at a time.

    `attention` is a `CrossWindowAttention`, windows [B, N, P, C].
    """
    B, N, P, C = windows.shape
    out = []
    for b, c in itertools.product(range(B), range(C)):
        tokens = windows[b, :, :, c]
        query, key, value = (
            tokens @ attention.qkv.weight[part * P : (part + 1) * P].T
            + attention.qkv.bias[part * P : (part + 1) * P]
            for part in range(3)
        )
        for q in range(N):
            weights = torch.stack([query[q] @ key[k] / P**0.5 for k in range(N)]).exp()
            mixed = (weights / weights.sum()) @ value
            out.append(attention.proj.weight @ mixed + attention.proj.bias)
    return torch.stack(out).view(B, C, N, P).permute(0, 2, 3, 1)
