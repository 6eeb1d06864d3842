"""Which parts of a network learn, and that the others stay as they are."""

from __future__ import annotations

from itertools import count
from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

from mltr.errors import UsageError, counted
from mltr.network.backbones import TimmBackbone
from mltr.network.features import head_names
from mltr.network.model import MlTr

UNMATCHED = "mltr unmatched"  #: a name that no timm network has


def freeze(model: nn.Module, what: int | str, name: str) -> None:
    """Keep parts of a network from learning: none, its backbone, or stages from the input on.

    The first stage comes with the stem before it. `name` is the network's. Raises `UsageError`
    where there are no such stages.
    """
    if what == "none":
        return
    if what == "backbone":
        frozen = {key for key, _ in model.named_parameters()} - head_names(model)
    else:
        frozen = _first_stages(model, int(what), name)
    for key, parameter in model.named_parameters():
        if key in frozen:
            parameter.requires_grad_(False)


def _first_stages(model: nn.Module, wanted: int, name: str) -> set[str]:
    stages = _stages(model)
    if wanted > len(stages):
        known = f"has {counted(len(stages), 'stage')}" if stages else "tells no stages"
        raise UsageError(f"train.freeze {wanted}: {name} {known}; or freeze its whole backbone")
    return {key for stage in stages[:wanted] for key in stage}


def _stages(model: nn.Module) -> list[list[str]]:
    """Return the names of the parameters of each stage, the stem's among those of the first."""
    names = [key for key, _ in model.named_parameters()]
    if isinstance(model, MlTr):
        starts = [f"stages.{number}." for number in range(len(model.stages))]
        stages = [[key for key in names if key.startswith(start)] for start in starts]
        stages[0] += [key for key in names if key.startswith("embed.")]
        return stages
    if isinstance(model, TimmBackbone):
        return [[f"backbone.{key}" for key in stage] for stage in _stages(model.backbone)]
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return []
    # What timm matches with no stage, such as the head, is in one group with this name.
    named = zip([*names, UNMATCHED], count(), strict=False)
    try:
        groups = group_with_matcher(named, matcher(coarse=True))
    except AssertionError:  # of a network that has no coarse groups
        return []
    ordered = [group for _, group in sorted(groups.items()) if UNMATCHED not in group]
    if len(ordered) < 2:
        return []
    stem, first, *rest = ordered
    return [stem + first, *rest]


def set_training(model: nn.Module) -> None:
    """Put a network in training mode, but for what is frozen.

    There batch norm keeps its statistics, and dropout and stochastic depth do nothing.
    """
    model.train()
    _settle(model)


def _settle(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    for child in module.children():
        _settle(child)
