"""A network in pieces, one in each process (FSDP2), and its pieces put together again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mltr.errors import MltrError

PIECE, SHAPE = "piece", "shape"  #: of a tensor that is saved in pieces along its first dimension


def shard(model: nn.Module, processes: int, device: torch.device) -> None:
    """Divide a network's weights over the processes, in place, block by block.

    Blocks are what stands in a list called `blocks`, as in MlTr and timm's transformers; all else
    is one piece more, which is whole during forward and backward.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for module in list(model.modules()):
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def to_pieces(value: Any, keep_rest: bool = True) -> Any:
    """Return nested dictionaries and lists with this process's piece of each divided tensor.

    Without `keep_rest`, what isn't divided, and so the same in all processes, becomes None.
    """
    if isinstance(value, DTensor):
        return {PIECE: value.to_local().detach(), SHAPE: list(value.shape)}
    if isinstance(value, Mapping):
        return {key: to_pieces(entry, keep_rest) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_pieces(entry, keep_rest) for entry in value]
    return value if keep_rest else None


def put_together(parts: Sequence[Any]) -> Any:
    """Undo `to_pieces`, given what all processes have of the same nested value, by rank.

    Raises `MltrError` where pieces are missing.
    """
    first = parts[0]
    if isinstance(first, Mapping) and first.keys() == {PIECE, SHAPE}:
        whole = torch.cat([part[PIECE] for part in parts])
        if list(whole.shape) != list(first[SHAPE]):
            raise MltrError(f"parts of a tensor of shape {list(first[SHAPE])} are missing")
        return whole
    if isinstance(first, Mapping):
        return {key: put_together([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [put_together(entries) for entries in zip(*parts, strict=True)]
    return first


def placed_like(values: Mapping[str, Tensor], templates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Divide whole tensors as those of the same names are; no process needs another for it."""
    return {name: _place_like(value, templates[name]) for name, value in values.items()}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load an optimiser's state, put together, into one whose parameters may be divided."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            moments[name] = _place_like(value, parameters[index])
    optimizer.load_state_dict(state)


def _place_like(value: Tensor, template: Tensor) -> Tensor:
    """Divide a whole tensor as `template` is, if it is divided and of the same shape."""
    if not isinstance(template, DTensor) or value.shape != template.shape:
        return value
    mesh, placements = template.device_mesh, template.placements
    return distribute_tensor(value.to(template.device), mesh, placements, src_data_rank=None)
