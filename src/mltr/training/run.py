"""A training under way: what its pieces share, and how far it has come."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from mltr.config.schema import Config, DataConfig
from mltr.data.preprocess import Preprocess
from mltr.data.records import Splits
from mltr.errors import MltrError, UsageError, counted
from mltr.files.cache import Cache, cache_folder
from mltr.machine.memory import keep_freed_memory
from mltr.machine.precision import autocast, choose_precision
from mltr.machine.processes import Processes, join_processes
from mltr.runs.folder import RunFolder
from mltr.training.build import settle, suitable_epochs
from mltr.training.progress import Progress
from mltr.training.tracking import Tracking

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What all pieces of a training share; each process has its own."""

    config: Config  #: with the network's own name and size
    splits: Splits
    folder: RunFolder
    preprocess: Preprocess
    processes: Processes
    precision: str  #: fp32, bf16 or fp16
    cache: Cache | None  #: where squashed images are kept, if the recipe wants that
    rows: list[dict[str, Any]]  #: the figures of each epoch that is done
    tracking: Tracking  #: where others look at these figures
    progress: Progress = field(default_factory=Progress)
    clock: float = field(default_factory=lambda: perf_counter())  #: when seconds were last counted

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.processes.device

    def autocast(self) -> torch.autocast:
        """Return a context in which the network computes in the precision of the run."""
        return autocast(self.precision, self.device)

    @property
    def seconds(self) -> float:
        """The seconds of training and validation until now."""
        return self.progress.seconds + perf_counter() - self.clock

    def begin_seconds(self) -> None:
        """Count those from now on as training, and those before as its preparation."""
        now = perf_counter()
        self.progress.setup_seconds += now - self.clock
        self.clock = now

    def batch_rng(self) -> np.random.Generator:
        """Return random numbers of the batch under way alone, the same after a resume."""
        place = (self.config.train.seed, self.progress.epoch, self.progress.batch)
        return np.random.default_rng((*place, 0, 1))  # apart from those of single images

    def count_seconds(self) -> None:
        """Add the time since the last call to that of the run, and of the epoch under way."""
        now = perf_counter()
        self.progress.seconds += now - self.clock
        if self.progress.batch:
            self.progress.epoch_seconds += now - self.clock
        self.clock = now

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Go on where something can't be written, and tell."""
        try:
            yield
        except (MltrError, OSError) as error:
            self.note_failed_write(error)

    def note_failed_write(self, error: Exception) -> None:
        """Count a file that could not be written, and tell."""
        self.progress.failed_writes += 1
        log.warning("going on, although: %s", error)


def prepare_run(
    config: Config,
    splits: Splits,
    folder: RunFolder,
    squashed: Path | None = None,
    resume: bool = False,
) -> Run:
    """Meet the other processes and settle what the recipe leaves open; nothing is written.

    `squashed` is the folder for squashed images (default: the user's own). Precision `auto` is
    that of the first process, and of the run to `resume`. Raises `UsageError` where some process
    would have nothing to do.
    """
    settings = config.train
    if not settings.epochs:
        settings = replace(settings, epochs=suitable_epochs(len(splits.learnt)))
    tracking = Tracking(settings.tracker, folder)
    config, preprocess = settle(replace(config, train=settings))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    set_seed(settings.seed)
    processes = join_processes(settings.timeout_s)
    precision = choose_precision(settings.precision, processes.device)
    if settings.precision == "auto":
        precision = processes.from_main((resume and folder.precision()) or precision)
    if processes.device.type == "cpu":
        keep_freed_memory()
    check_shares(settings.batch_size, len(splits.learnt), processes.count)
    cache = photo_cache(config.data, squashed) if config.data.cache else None
    return Run(
        config, splits, folder, preprocess, processes, precision, cache, folder.read_log(), tracking
    )


def check_shares(batch_size: int, images: int, processes: int) -> None:
    """Raise `UsageError` where a batch has less than an image for each process."""
    smallest = min(batch_size, images)
    if smallest < processes:
        raise UsageError(
            f"{counted(smallest, 'image')} a batch can't be shared by {processes} processes: raise "
            "train.batch_size, which counts them all"
        )


def photo_cache(data: DataConfig, folder: Path | None = None) -> Cache:
    """Return the cache of what is kept of photos, by default in the user's own folder."""
    return Cache(folder or cache_folder() / "photos", round(data.cache_gb * 1e9))
