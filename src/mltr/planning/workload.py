"""What a training step of a network takes: parameters, multiply-adds, memory. Nothing is computed.

The network runs on tensors without content (torch's FakeTensorMode), forward and backward, while
every tensor that is made is counted until it is gone. So the peak is that of the real step, but
for what libraries take besides.
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


@dataclass(frozen=True)
class Workload:
    """One training step of a network."""

    parameters: int
    weight_bytes: int  #: parameters and buffers
    multiply_adds: float  #: of an image, forward
    operations: int  #: calls of torch's kernels, forward and backward
    batch_size: int
    kept_bytes: int  #: what the forward pass leaves for the backward pass
    peak_bytes: int  #: most at a time in forward and backward, beyond the weights


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of all tensors that are alive."""

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
) -> Workload:
    """Return what a step of the network that `build` makes takes, at images of `side` pixels.

    `precision` is fp32, bf16 or fp16. Raises `UsageError` for images that the network can't take.
    """
    half = AUTOCAST[precision]
    with torch.device("meta"):
        model = build()
    multiply_adds = _multiply_adds(model, side)
    with FakeTensorMode(allow_non_fake_inputs=True), _Counter() as counter:
        model = model.train().to_empty(device="cpu")
        # As where there are instructions for half precision.
        model.slow_types = frozenset()  # type: ignore[assignment]
        if grad_checkpointing:
            model.set_grad_checkpointing()  # type: ignore[operator]
        weights = counter.live
        images = torch.empty(batch_size, 3, side, side)
        before, made = counter.live, counter.operations
        with torch.autocast("cpu", half) if half else nullcontext():
            try:
                logits = model(images)
            except (RuntimeError, AssertionError, ValueError) as error:
                raise UsageError(f"images of {side} px don't fit: {error}") from error
        kept = counter.live - before
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
    """Return what stays in memory between steps: weights, Adam's two moments, their average."""
    moments = 2 * 4 * workload.parameters
    return workload.weight_bytes + moments + (workload.weight_bytes if averaged else 0)
