"""Parameter groups, schedules of the learning rate, and averaged weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn
from torch.distributed.tensor import DTensor

from mltr.config.schema import TrainConfig
from mltr.network.backbones import TimmBackbone
from mltr.network.model import MlTr
from mltr.training.bound import BoundModule

# PyTorch's OneCycleLR, which the field's recipe uses, starts at 1/25 and ends at 1/250,000.
ONECYCLE_START = 1 / 25
ONECYCLE_END = ONECYCLE_START / 1e4
LAYER_OF_MLTR = re.compile(r"stages\.\d+\.(blocks\.\d+|\w+)")
INDEXED = re.compile(r".*\.\d+(?=\.)")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Return optimiser groups: no decay on biases, 1-D weights and position tables.

    Each group carries `lr_scale`: with `layer_decay` below 1, a layer further from the head learns
    more slowly, by that factor a layer (BEiT, arXiv 2106.08254).
    """
    spared: Iterable[str] = getattr(model, "no_weight_decay", set)()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    depths = _layer_numbers(model)
    last = max(depths.values(), default=0)
    groups: dict[tuple[float, float], dict[str, object]] = {}
    for name, parameter in named:
        decay = 0.0 if parameter.ndim <= 1 or name in spared else weight_decay
        scale = layer_decay ** (last - depths[name])
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]
    return list(groups.values())


def _layer_numbers(model: nn.Module) -> dict[str, int]:
    """Number the layers from the input on, for each parameter name.

    Those of a timm network are timm's own, or what shares a name up to its last list index where
    it has none. Of MlTr, a layer is a block such as `stages.2.blocks.5` or another part of a stage,
    and what precedes the stages is one. A head is one layer, whatever it is made of. An objective
    may hold the network under that name, and a network its backbone.
    """
    held = "network." if isinstance(model, BoundModule) and hasattr(model, "network") else ""
    names = {name: name.removeprefix(held) for name, _ in model.named_parameters()}
    network: Any = model.network if held else model
    inside = "backbone." if isinstance(network, TimmBackbone) else ""
    backbone: Any = network.backbone if inside else network
    pattern = LAYER_OF_MLTR if isinstance(network, MlTr) else INDEXED
    is_timm = hasattr(backbone, "group_matcher")
    grouped = group_parameters(backbone, backbone.group_matcher(), reverse=True) if is_timm else {}
    known = {f"{inside}{name}": number for name, number in grouped.items()}
    layers: dict[object, int] = {number: number for number in sorted(set(known.values()))}
    numbers = {}
    for name, own in names.items():
        layer: object = known.get(own)
        if layer is None:
            found = None if own.startswith("head.") else pattern.match(own)
            layer = found[0] if found else own.split(".")[0]
        numbers[name] = layers.setdefault(layer, len(layers))
    return numbers


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    return torch.optim.AdamW(groups, lr=config.lr)


def lr_factor(progress: float, warmup: float, schedule: str) -> float:
    """Return the learning rate as a share of its highest value.

    `progress` is the share of the steps done, `warmup` the share of them that warms up. `cosine`
    rises linearly from 0 and falls as a cosine to 0; `onecycle` does both as cosines, from 1/25.
    """
    if schedule == "onecycle":
        if progress < warmup:
            return _cosine(ONECYCLE_START, 1.0, progress / warmup)
        return _cosine(1.0, ONECYCLE_END, (progress - warmup) / max(1 - warmup, 1e-9))
    if progress < warmup:
        return progress / warmup
    return _cosine(1.0, 0.0, (progress - warmup) / max(1 - warmup, 1e-9))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def scale_and_clip(parameters: Iterable[nn.Parameter], factor: float, greatest: float) -> float:
    """Multiply the gradient, then limit its norm (0: don't); return the norm before the limit."""
    learning = [parameter for parameter in parameters if parameter.grad is not None]
    if factor != 1:
        for parameter in learning:
            parameter.grad.mul_(factor)  # type: ignore[union-attr]
    norm = nn.utils.clip_grad_norm_(learning, greatest or math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class AveragedModel:
    """An exponential moving average of a model's weights (EMA), exact to save and to resume.

    The decay grows with the steps up to its full value, so that a short run isn't held back by its
    random start: min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average = self.weights[name]
            if average.is_floating_point():
                average.lerp_(value.to(average), 1 - decay)
            else:
                average.copy_(value)
