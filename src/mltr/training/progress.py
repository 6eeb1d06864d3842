"""Where a run stands, and how that is told: in a line an epoch, and a bar."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.progress import track

from mltr.data.loading import Batch
from mltr.data.records import Splits
from mltr.data.understood import tell_understood
from mltr.errors import counted
from mltr.terminal import make_console

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0  #: the epoch under way, from 0
    batch: int = 0  #: batches of it that are done
    step: int = 0  #: optimiser steps in all, those left out included
    loss_sum: float = 0.0  #: over the images of the epoch under way
    images_seen: int = 0  #: in the epoch under way
    epoch_seconds: float = 0.0  #: of training, in the epoch under way
    seconds: float = 0.0  #: of training and validation, in all
    setup_seconds: float = 0.0  #: before that: of each process that began or resumed the run
    validation_seconds: float = 0.0  #: of `seconds`
    validations: int = 0
    validated_at: float = 0.0  #: the `seconds` after the last one
    share: float = 0.0  #: of a run by time: how much of it is done
    gain: float = 0.0  #: of that share, by a step
    best_map: float = -1.0
    best_epoch: int = -1
    best_is_average: bool = False
    usual_loss: float = 0.0  #: of an image, of late
    bad_steps: int = 0  #: left out in a row, until now
    skipped_steps: int = 0  #: left out in all
    failed_writes: int = 0  #: checkpoints and the like that didn't fit on the disk
    broken: dict[str, str] = field(default_factory=dict)  #: name of an image to what is wrong

    @property
    def name(self) -> str:
        """Name of a checkpoint taken here."""
        return f"epoch-{self.epoch + 1:04d}-batch-{self.batch:06d}"

    @property
    def best_name(self) -> str:
        """Name of the best weights so far; empty where there are none."""
        return f"best-{self.best_epoch + 1:04d}" if self.best_epoch >= 0 else ""

    def shortfalls(self) -> str:
        """Return what was left out on the way, in words; nothing where all went well."""
        parts = (
            (self.skipped_steps, "step", " left out"),
            (len(self.broken), "broken image", ""),
            (self.failed_writes, "file", " not saved"),
        )
        return ", ".join(f"{counted(count, noun)}{what}" for count, noun, what in parts if count)


def tell_images(splits: Splits) -> None:
    """Log how a run's source was read, and which classes it can't learn."""
    train = splits.train
    tell_understood(splits)
    positives = train.positives.sum(axis=0) > 0
    empty = [name for name, there in zip(train.classes, positives, strict=True) if not there]
    if empty:
        log.warning("no training image has: %s", ", ".join(empty))


def training_words(row: dict[str, Any], last: int) -> list[str]:
    """Return what is told of every epoch, whatever is learnt."""
    return [
        f"epoch {row['epoch']:>3}/{last}",
        f"loss {row['train_loss']:.4f}",
        f"lr {row['lr']:.1e}",
        *([f"{row['image_size']} px"] if "image_size" in row else []),
        f"{row['images_per_s']:.0f} img/s",
        f"{row['seconds']:.0f} s",
    ]


def score_words(row: dict[str, Any], judged_by: str, progress: Progress) -> list[str]:
    """Return what is told of a validation by a share, such as mean average precision."""
    parts = []
    if judged_by in row:
        parts.append(f"{judged_by.replace('_', ' ')} {100 * row[judged_by]:.2f}")
    if f"{judged_by}_ema" in row:
        parts.append(f"averaged {100 * row[f'{judged_by}_ema']:.2f}")
    if progress.best_epoch >= 0:
        parts.append(f"best {100 * progress.best_map:.2f} at {progress.best_epoch + 1}")
    return parts


def with_bar(
    batches: Iterator[Batch], total: int, progress: Progress, last: int, shown: bool
) -> Iterable[Batch]:
    """Show a bar on a terminal; elsewhere the line of each epoch says enough."""
    console = make_console(stderr=True)
    return track(
        batches,
        f"epoch {progress.epoch + 1}/{last}",
        total=total - progress.batch,
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
