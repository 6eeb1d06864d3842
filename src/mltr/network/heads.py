"""Heads from the final map to logits, for any backbone: pooling, residual attention, queries.

Shapes as in `model.py`: maps are B H W C, logits B K. Each head turns the one into the other, and
`class_maps` [B, K, H, W] show where it attended; with `exact_class_maps` they sum to the logits.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from mltr.errors import MltrError, UsageError, did_you_mean

# Temperatures of each number of heads (CSRA, arXiv 2108.02456, section 3.3); 99 means the maximum.
CSRA_TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (1,),
    2: (1, 99),
    4: (1, 2, 4, 99),
    6: (1, 2, 3, 4, 5, 99),
    8: (1, 2, 3, 4, 5, 6, 7, 99),
}
MAXIMUM = 99
WIDEST_QUERY = 768  #: width of the decoder in ML-Decoder, whatever the backbone's


class PoolHead(nn.Module):
    """No classifier: only the features, for a network that has no classes yet."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return pooled features [B, C] for maps [B, H, W, C]."""
        return maps.mean(dim=(1, 2))


class AverageHead(nn.Linear):
    """Global average pooling, then a linear layer."""

    exact_class_maps = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for maps [B, H, W, C]."""
        return super().forward(maps.mean(dim=(1, 2)))

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return each pixel's contribution to each logit: [B, K, H, W]."""
        shares = super().forward(maps) / (maps.shape[1] * maps.shape[2])
        return shares.permute(0, 3, 1, 2)


class CSRAHead(nn.Module):
    """Class-specific residual attention (arXiv 2108.02456).

    Each class has a score at each pixel. Its logit is the mean of the scores plus `lam` times their
    mean weighted by their own softmax. Several heads, with rising temperatures, are summed.
    """

    exact_class_maps = True

    def __init__(
        self, num_features: int, num_classes: int, num_heads: int = 1, lam: float = 0.1
    ) -> None:
        super().__init__()
        if num_heads not in CSRA_TEMPERATURES:
            raise UsageError(f"csra: num_heads={num_heads} is not one of {[*CSRA_TEMPERATURES]}")
        self.temperatures = CSRA_TEMPERATURES[num_heads]
        self.lam = float(lam)
        if not math.isfinite(self.lam):
            raise UsageError(f"csra: lam={lam} must be a finite number")
        self.weight = nn.Parameter(torch.empty(num_heads, num_classes, num_features))
        bound = num_features**-0.5  # as its 1x1 convolutions start: their length sets the pace
        nn.init.uniform_(self.weight, -bound, bound)

    def class_axes(self) -> dict[str, int | None]:
        """Return the axis of the classes in each entry that has one."""
        return {"weight": 1}

    def _scores(self, maps: Tensor) -> Tensor:
        """Return scores [heads, B, K, HW]: by directions of length one, as the paper's code has."""
        directions = F.normalize(self.weight, dim=2).to(maps.dtype)
        return torch.einsum("hkc,bpc->hbkp", directions, maps.flatten(1, 2))

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for maps [B, H, W, C]."""
        logits = maps.new_zeros(())
        for scores, temperature in zip(self._scores(maps), self.temperatures, strict=True):
            attended = (_attention(scores, temperature) * scores).sum(dim=2)
            logits = logits + scores.mean(dim=2) + self.lam * attended
        return logits

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return each pixel's contribution to each logit: [B, K, H, W]."""
        B, H, W, _ = maps.shape
        shares = maps.new_zeros(())
        for scores, temperature in zip(self._scores(maps), self.temperatures, strict=True):
            weights = 1 / (H * W) + self.lam * _attention(scores, temperature)
            shares = shares + weights * scores
        return shares.view(B, -1, H, W)


def _attention(scores: Tensor, temperature: float) -> Tensor:
    """Return weights [B, K, HW] that sum to 1 over the pixels."""
    if temperature == MAXIMUM:
        return F.one_hot(scores.argmax(dim=2), scores.shape[2]).to(scores.dtype)
    return (scores * temperature).softmax(dim=2)


class QueryLayer(nn.Module):
    """A decoder layer: optional self-attention of the queries, cross-attention to the map, an MLP.

    Post-norm; the query embeddings are added before each attention, as in DETR (arXiv 2005.12872).
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, dropout: float, self_attention: bool
    ) -> None:
        super().__init__()
        self.self_attention: nn.Module | None = None
        if self_attention:
            self.self_attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
            self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.cross_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim)
        )
        self.mlp_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, content: Tensor, queries: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the updated content [B, Q, D] and the attention weights [B, Q, HW].

        `queries` [Q, D] identify the class or group of each row of `content`.
        """
        if self.self_attention is not None:
            asking = content + queries
            attended, _ = self.self_attention(asking, asking, content, need_weights=False)
            content = self.self_norm(content + self.dropout(attended))
        found, weights = self.cross_attention(content + queries, keys, values)
        content = self.cross_norm(content + self.dropout(found))
        return self.mlp_norm(content + self.dropout(self.mlp(content))), weights


class QueryHead(nn.Module):
    """One query per label, or per group of labels, with attention to the map.

    With `groups` 0 each class has a query; otherwise that many groups of classes share one each,
    which suits thousands of classes. `make_head` has the settings of Query2Label (arXiv 2107.10834:
    learned queries, positions, an encoder layer and two decoder layers) and of ML-Decoder (arXiv
    2111.12933: fixed queries, at most 100 groups, one decoder layer, no self-attention).
    """

    exact_class_maps = False

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        dim: int = 0,
        groups: int = 0,
        num_layers: int = 1,
        encoder_layers: int = 0,
        self_attention: bool = False,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        learned_queries: bool = True,
        positions: bool = False,
    ) -> None:
        super().__init__()
        dim = dim or min(num_features, WIDEST_QUERY)
        if dim % num_heads:
            raise UsageError(f"query head: dim={dim} must be a multiple of num_heads={num_heads}")
        if groups < 0 or num_layers < 1 or encoder_layers < 0:
            raise UsageError(
                "query head: groups must be >= 0, num_layers >= 1 and encoder_layers >= 0"
            )
        self.num_classes = num_classes
        self.positions = positions
        self.num_queries = min(groups or num_classes, num_classes)
        mlp_dim = int(dim * mlp_ratio)
        self.input_proj = nn.Linear(num_features, dim)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, num_heads, mlp_dim, dropout, batch_first=True)
            for _ in range(encoder_layers)
        )
        self.queries = nn.Parameter(
            torch.randn(self.num_queries, dim), requires_grad=learned_queries
        )
        self.layers = nn.ModuleList(
            # The first layer's queries have seen nothing yet, so have nothing to tell each other.
            QueryLayer(dim, num_heads, mlp_dim, dropout, self_attention and number > 0)
            for number in range(num_layers)
        )
        self.classes_per_query = -(-num_classes // self.num_queries)
        self.weight = nn.Parameter(torch.empty(self.num_queries, dim, self.classes_per_query))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        trunc_normal_(self.weight, std=0.02)

    def class_axes(self) -> dict[str, int | None]:
        """Return the axis of the classes in each entry; None where groups of them share a query."""
        axis = 0 if self.classes_per_query == 1 else None
        return {"queries": axis, "weight": axis, "bias": axis}

    def _decode(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each query found [B, Q, D] and where [B, Q, HW]."""
        B, H, W, _ = maps.shape
        values: Tensor = self.input_proj(maps.flatten(1, 2))
        place = sine_positions(H, W, values.shape[2]).to(values) if self.positions else 0
        for layer in self.encoder:
            values = layer(values + place)
        keys = values + place
        content = self.queries.new_zeros(B, *self.queries.shape).to(values.dtype)
        weights = content
        for layer in self.layers:
            content, weights = layer(content, self.queries.to(values.dtype), keys, values)
        return content, weights

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for maps [B, H, W, C]."""
        content, _ = self._decode(maps)
        logits = torch.einsum("bqd,qdn->bqn", content, self.weight.to(content.dtype))
        return logits.flatten(1)[:, : self.num_classes] + self.bias

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return the attention of each class's query, which sums to 1: [B, K, H, W]."""
        _, weights = self._decode(maps)
        each = weights.repeat_interleave(self.classes_per_query, dim=1)[:, : self.num_classes]
        return each.reshape(len(maps), -1, *maps.shape[1:3])


def sine_positions(H: int, W: int, dim: int) -> Tensor:
    """Return sines and cosines of row and column, [HW, D] (DETR, arXiv 2005.12872)."""
    quarter = -(-dim // 4)
    frequencies = 10000 ** -(torch.arange(quarter) / quarter)
    waves = []
    for side, size in ((torch.arange(H), H), (torch.arange(W), W)):
        angles = 2 * math.pi * (side + 1)[:, None] / size * frequencies
        waves.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = waves
    both = torch.cat([rows[:, None].expand(H, W, -1), columns[None].expand(H, W, -1)], dim=2)
    return both.flatten(0, 1)[:, :dim]


# Settings of the two published query heads; options given by the user replace them.
QUERY2LABEL: dict[str, Any] = {
    "encoder_layers": 1,
    "num_layers": 2,
    "self_attention": True,
    "num_heads": 4,
    "positions": True,
}
ML_DECODER: dict[str, Any] = {"groups": 100, "mlp_ratio": 8 / 3, "learned_queries": False}
HEADS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "average": (AverageHead, {}),
    "csra": (CSRAHead, {}),
    "query2label": (QueryHead, QUERY2LABEL),
    "ml_decoder": (QueryHead, ML_DECODER),
}  # and mltr, which `model.py` adds, since it is made of the blocks there


def _check_kind(head: str, option: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise `UsageError` for a value of another kind than an option's."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kind, fits = {
        "int": ("a whole number", is_number and float(value).is_integer()),
        "float": ("a number", is_number),
        "bool": ("true or false", value in (0, 1)),
    }.get(str(parameter.annotation), ("", True))
    if not fits:
        raise UsageError(f"head {head}: {option}={value!r} must be {kind}")


def make_head(
    name: str, num_features: int, num_classes: int, map_side: int = 7, /, **options: Any
) -> nn.Module:
    """Return the head `name`, one of `HEADS`, or no classifier if there are no classes.

    `map_side` is the larger side of the maps that it is built for. Raises `UsageError` for an
    unknown name or option.
    """
    if name not in HEADS:
        raise UsageError(f"unknown head {name!r}{did_you_mean(name, HEADS)}; known: {[*HEADS]}")
    if num_classes == 0:
        return PoolHead()
    kind, settings = HEADS[name]
    known = inspect.signature(kind).parameters
    for option in options.keys() & known:
        _check_kind(name, option, options[option], known[option])
    if name == "mltr":  # its windows depend on the map; the others have none
        settings = settings | {"map_side": map_side}
    try:
        return kind(num_features, num_classes, **settings | options)
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        if isinstance(error, MltrError):
            raise
        raise UsageError(f"head {name!r} can't be built with {options}: {error}") from error
