"""Collective operations of the training processes, with errors that name a missing rank."""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from mltr.errors import MltrError
from mltr.machine.launch import launched_processes

log = logging.getLogger(__name__)

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  #: makes torchrun open a new store per restart
# Errors of gloo and NCCL when a process has ended or doesn't respond.
LOST = re.compile(
    "timed out|timeout|connection (closed|reset|refused)|broken pipe|gloo/transport|NCCL", re.I
)
ANSWER_S = 3.0  #: time in which all live processes report to the store


@dataclass(frozen=True)
class Processes:
    """The processes of a training run, as one of them sees them.

    Collectives run over a gloo group on the CPU, separate from the group that all-reduces
    gradients. Its errors reach the caller, who can explain them, and no GPU waits for it.
    With a single process every collective returns at once.
    """

    rank: int = 0
    count: int = 1  #: world size
    timeout_s: float = 1800.0  #: time until an unresponsive process is considered lost
    group: Any = None  #: process group of torch.distributed
    device: torch.device = field(default=torch.device("cpu"))  #: device of this process

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes, logs and prints."""
        return self.rank == 0

    def gather(self, numbers: Sequence[float]) -> Tensor:
        """All-gather numbers, as many in each process: float64 [processes, numbers]."""
        own = torch.tensor([numbers], dtype=torch.float64)
        if self.count == 1:
            return own
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own, group=self.group)
        return torch.cat(rows)

    def gather_lists(self, own: list[Any]) -> list[Any]:
        """All-gather lists and concatenate them in rank order."""
        if self.count == 1:
            return own
        lists: list[list[Any]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, own, group=self.group)
        return list(chain.from_iterable(lists))

    def from_main(self, value: Any) -> Any:
        """Broadcast a picklable value of rank 0; return it in all processes."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def add_up(self, values: Tensor) -> Tensor:
        """All-reduce a CPU tensor by sum, in place; return it."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast tensors of rank 0 into those of all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes have reached this call (a barrier)."""
        self.gather([0.0])

    def fail(self, message: str) -> NoReturn:
        """End all processes on an error that each has found; only rank 0 prints it.

        Raises `MltrError` on rank 0 and `SystemExit` elsewhere.
        """
        if self.is_main:
            raise MltrError(message)
        raise SystemExit(MltrError.exit_code)

    def part(self) -> None:
        """Destroy the process group. No collective may follow."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the error of a lost process into an `MltrError` that names its rank."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not LOST.search(str(error)):
                raise
            raise MltrError(self._explain_loss(str(error))) from error

    def _explain_loss(self, reason: str) -> str:
        """Return a message with the ranks that hang or have ended."""
        silent = [rank for rank in self._silent() if rank != self.rank]
        named = ", ".join(map(str, silent)) or "unknown"
        what = "hangs or has ended" if len(silent) == 1 else "hang or have ended"
        waited = f" for {self.timeout_s:g} s (train.timeout_s)" if "out" in reason.lower() else ""
        return (
            f"process {self.rank} of {self.count} waited{waited} for the others; "
            f"process {named} {what}: check the last lines of its output (memory, disk, "
            "network), then restart all processes with --auto-resume"
        )

    def _silent(self) -> list[int]:
        """Return the ranks that don't report to the shared store that they are waiting."""
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"mltr-waits-{self.rank}", "yes")
            time.sleep(ANSWER_S)
            keys = {rank: f"mltr-waits-{rank}" for rank in range(self.count)}
            return [rank for rank, key in keys.items() if not store.check([key])]
        except RuntimeError:  # the lost process hosted the store
            return []


def may_restart_badly() -> bool:
    """Return whether torchrun would reuse the old store on a restart (PyTorch issue 135712)."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    return restarts > 0 and os.environ.get(OWN_STORE) != "1"


def join_processes(timeout_s: float) -> Processes:
    """Initialise the process group of the launched processes; return this process's view of it."""
    timeout = timedelta(seconds=timeout_s)
    # By default accelerate looks for GPUs only; on CPUs each process would believe it is alone.
    state = PartialState(
        launched_processes() > 1 and not torch.accelerator.is_available(), timeout=timeout
    )
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Processes(device=state.device)
    # Harmless, and repeated by every process.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    group = dist.new_group(backend="gloo", timeout=timeout)
    if may_restart_badly() and dist.get_rank() == 0:
        log.warning(
            "after a restart torchrun can find the addresses of dead processes and hang: "
            "export %s=1 before you start it",
            OWN_STORE,
        )
    return Processes(dist.get_rank(), dist.get_world_size(), timeout_s, group, state.device)
