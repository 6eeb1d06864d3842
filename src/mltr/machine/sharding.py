"""Sharding a network over processes (FSDP2), and reassembling its shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mltr.errors import MltrError

PIECE, SHAPE = "piece", "shape"  #: keys of a saved shard: its rows, and the shape of the whole


def shard(model: nn.Module, processes: int, device: torch.device) -> None:
    """Shard a network's parameters over the processes, in place, with one unit per block.

    Blocks are the entries of lists named `blocks`, as in MlTr and timm's transformers. The
    remaining parameters form one more unit, which stays gathered during forward and backward.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for module in list(model.modules()):
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def to_pieces(value: Any, keep_rest: bool = True) -> Any:
    """Replace each sharded tensor in nested dictionaries and lists by this process's shard.

    Without `keep_rest`, values that aren't sharded, which are the same in all processes, become
    None.
    """
    if isinstance(value, DTensor):
        return {PIECE: value.to_local().detach(), SHAPE: list(value.shape)}
    if isinstance(value, Mapping):
        return {key: to_pieces(entry, keep_rest) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_pieces(entry, keep_rest) for entry in value]
    return value if keep_rest else None


def put_together(parts: Sequence[Any]) -> Any:
    """Invert `to_pieces`; `parts` holds its result from every process, in rank order.

    Raises `MltrError` if shards are missing.
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
    """Shard full tensors like the templates of the same names, without communication."""
    return {name: _place_like(value, templates[name]) for name, value in values.items()}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Load a full optimiser state into an optimiser whose parameters may be sharded.

    Raises `MltrError` for a state of other groups of parameters.
    """
    groups = optimizer.param_groups, state["param_groups"]
    own, found = ([len(group["params"]) for group in each] for each in groups)
    if own != found:
        raise MltrError(
            "the state of the optimiser is from a version that grouped the network's layers "
            "otherwise: start the run anew"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            moments[name] = _place_like(value, parameters[index])
    optimizer.load_state_dict(state)


def _place_like(value: Tensor, template: Tensor) -> Tensor:
    """Shard a full tensor like `template` if that is sharded and has the same shape."""
    if not isinstance(template, DTensor) or value.shape != template.shape:
        return value
    mesh, placements = template.device_mesh, template.placements
    return distribute_tensor(value.to(template.device), mesh, placements, src_data_rank=None)
