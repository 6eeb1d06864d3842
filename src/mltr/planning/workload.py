"""Parameters, multiply-adds and memory of a training step, without computing it.

The network runs forward and backward on fake tensors (torch's FakeTensorMode), while the bytes of
all live tensors are counted. The peak is therefore that of the real step, except for workspaces
of libraries.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from mltr.errors import UsageError
from mltr.machine.precision import AUTOCAST
from mltr.network.backbones import recompute_activations


@dataclass(frozen=True)
class Workload:
    """One training step of a network."""

    parameters: int
    weight_bytes: int  #: bytes of parameters and buffers
    multiply_adds: float  #: multiply-adds of the forward pass per image
    operations: int  #: torch operations of the forward and backward pass
    batch_size: int
    kept_bytes: int  #: activations kept for the backward pass
    peak_bytes: int  #: peak of the forward and backward pass, without the weights


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of all live tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.operations = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations += 1
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def measure_step(
    build: Callable[[], nn.Module],
    batch_size: int,
    side: int,
    precision: str = "fp32",
    grad_checkpointing: bool = False,
    forward_only: bool = False,
) -> Workload:
    """Return the workload of a training step of the network that `build` returns.

    `side` is the images' side in pixels; `precision` is fp32, bf16 or fp16; `forward_only` is for a
    network that isn't trained. Raises `UsageError` if it doesn't accept images of this size.
    """
    half = AUTOCAST[precision]
    with torch.device("meta"):
        model = build()
    multiply_adds = _multiply_adds(model, side)
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter() as counter:
        model = model.train().to_empty(device="cpu")
        # Plan for a device that is fast in half precision.
        model.slow_types = frozenset()  # type: ignore[assignment]
        if grad_checkpointing:
            recompute_activations(model)
        weights = counter.live
        images = torch.empty(batch_size, 3, side, side)
        before, made = counter.live, counter.operations
        with (
            torch.set_grad_enabled(not forward_only),
            torch.autocast("cpu", half) if half else nullcontext(),
        ):
            try:
                logits = model(images)
            except (RuntimeError, AssertionError, ValueError) as error:
                raise UsageError(f"images of {side} px don't fit: {error}") from error
        kept = counter.live - before
        if not forward_only:
            logits.float().sum().backward()
    return Workload(
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=weights,
        multiply_adds=multiply_adds,
        operations=counter.operations - made,
        batch_size=batch_size,
        kept_bytes=kept,
        peak_bytes=counter.peak - weights,
    )


def _multiply_adds(model: nn.Module, side: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops() / 2)


def state_bytes(workload: Workload, averaged: bool) -> int:
    """Return the bytes kept between steps: weights, Adam's two moments, and averaged weights."""
    moments = 2 * 4 * workload.parameters
    return workload.weight_bytes + moments + (workload.weight_bytes if averaged else 0)
