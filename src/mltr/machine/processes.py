"""The processes that train together, and what is said when one of them is missing."""

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

# What gloo and NCCL raise where a process doesn't answer, or has gone.
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  #: to torchrun: a new store for each restart
LOST = re.compile(
    "timed out|timeout|connection (closed|reset|refused)|broken pipe|gloo/transport|NCCL", re.I
)
ANSWER_S = 3.0  #: time for all processes that still run to say that they wait, too


@dataclass(frozen=True)
class Processes:
    """All processes of a training; a single one talks to nobody.

    They talk over a group on the CPU, beside the one that adds up gradients: its errors reach the
    caller, who can say what is wrong, and a GPU needn't wait for it.
    """

    rank: int = 0
    count: int = 1
    timeout_s: float = 1800.0  #: after which a process that doesn't answer is given up
    group: Any = None  #: of torch.distributed
    device: torch.device = field(default=torch.device("cpu"))  #: on which this process computes

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes, logs and prints."""
        return self.rank == 0

    def gather(self, numbers: Sequence[float]) -> Tensor:
        """Return the numbers of all processes: float64 [processes, numbers]."""
        own = torch.tensor([numbers], dtype=torch.float64)
        if self.count == 1:
            return own
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own, group=self.group)
        return torch.cat(rows)

    def gather_lists(self, own: list[Any]) -> list[Any]:
        """Return the lists of all processes as one, in the order of the ranks."""
        if self.count == 1:
            return own
        lists: list[list[Any]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, own, group=self.group)
        return list(chain.from_iterable(lists))

    def from_main(self, value: Any) -> Any:
        """Return the main process's value to all."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.group)
        return values[0]

    def add_up(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the CPU; the same on each."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by the main process's."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.gather([0.0])

    def fail(self, message: str) -> NoReturn:
        """End all processes by an error that all of them have found, told by the main one.

        Raises `MltrError` there and `SystemExit` elsewhere.
        """
        if self.is_main:
            raise MltrError(message)
        raise SystemExit(MltrError.exit_code)

    def part(self) -> None:
        """Leave the others at the end; nothing can be said to them afterwards."""
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the error of a process that doesn't answer into `MltrError` that names it."""
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not LOST.search(str(error)):
                raise
            raise MltrError(self._explain_loss(str(error))) from error

    def _explain_loss(self, reason: str) -> str:
        """Say which processes don't wait as this one does: these hang, or have ended."""
        silent = [rank for rank in self._silent() if rank != self.rank]
        named = ", ".join(map(str, silent)) or "unknown"
        what = "hangs or has ended" if len(silent) == 1 else "hang or have ended"
        waited = f" for {self.timeout_s:g} s (train.timeout_s)" if "out" in reason.lower() else ""
        return (
            f"process {self.rank} of {self.count} waited{waited} for the others; "
            f"process {named} {what}: look at the last lines of its output (memory, disk, "
            "network), then restart all with --auto-resume"
        )

    def _silent(self) -> list[int]:
        """Return which processes don't say that they wait, by the store that all of them share."""
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"mltr-waits-{self.rank}", "yes")
            time.sleep(ANSWER_S)
            keys = {rank: f"mltr-waits-{rank}" for rank in range(self.count)}
            return [rank for rank, key in keys.items() if not store.check([key])]
        except RuntimeError:  # the store was the lost process's
            return []


def may_restart_badly() -> bool:
    """Whether torchrun would meet again over the old store (PyTorch issue 135712)."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    return restarts > 0 and os.environ.get(OWN_STORE) != "1"


def join_processes(timeout_s: float) -> Processes:
    """Meet the other processes that were launched, by accelerate, and return them all."""
    timeout = timedelta(seconds=timeout_s)
    # Unless told so, accelerate looks for GPUs alone, and each process thinks it is the only one.
    state = PartialState(
        launched_processes() > 1 and not torch.accelerator.is_available(), timeout=timeout
    )
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return Processes(device=state.device)
    # Of no concern to anyone, and told by every process.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    group = dist.new_group(backend="gloo", timeout=timeout)
    if may_restart_badly() and dist.get_rank() == 0:
        log.warning(
            "a restart by torchrun can find addresses of dead processes and hang: export %s=1 "
            "first",
            OWN_STORE,
        )
    return Processes(dist.get_rank(), dist.get_world_size(), timeout_s, group, state.device)
