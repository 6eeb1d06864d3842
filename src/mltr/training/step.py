"""Optimiser steps out of batches: the same in many processes and in several parts as in one."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mltr.data.loading import Batch
from mltr.errors import counted
from mltr.training.duration import Duration
from mltr.training.guards import BLAMED, SETTLED, blame, usual_after, what_is_bad
from mltr.training.learner import Learner
from mltr.training.objective import Objective
from mltr.training.optim import lr_factor, scale_and_clip, set_lr
from mltr.training.run import Run

log = logging.getLogger(__name__)

LEAST_SCALE = 2.0**-10  #: of losses in fp16; the scaler begins at 2**16 and halves it each time


class Wishes(NamedTuple):
    """What is asked for between two optimiser steps."""

    stop: int = 0  #: the signal that asks to stop
    save: bool = False  #: whether a checkpoint is due


class Sums(NamedTuple):
    """A batch, as all processes together see it."""

    loss: float  #: of all images
    cells: float  #: over which that is a sum
    images: float
    wishes: Wishes


class Stepper:
    """Steps of the optimiser, each out of one batch or of several.

    `batches` is how many an epoch has, and `wishes` returns what this process asks for: those of
    all are agreed on in passing.
    """

    def __init__(
        self,
        run: Run,
        learner: Learner,
        objective: Objective,
        batches: int,
        duration: Duration,
        wishes: Callable[[], Wishes],
    ) -> None:
        self.run, self.learner, self.objective = run, learner, objective
        self.batches, self.duration, self.wishes = batches, duration, wishes
        self.cells: list[float] = []  #: what each batch counts of the step under way
        self.is_spoiled = False  #: that step, which then changes nothing

    def take(self, batch: Batch) -> Wishes:
        """Forward, backward, and, where gradients are complete, an optimiser step.

        They are so at every so many batches and at the last one of an epoch: no gradient is left
        over at its end, where a checkpoint wouldn't hold it. Returns what all processes ask for
        once a step is made, and nothing in the midst of one.
        """
        run, learner = self.run, self.learner
        done = run.progress.batch + 1
        is_complete = done % run.config.train.accumulation == 0 or done == self.batches
        with nullcontext() if is_complete else learner.no_sync():
            losses, cells = self.objective.losses(
                learner.forward, batch.images, batch.targets, run.batch_rng()
            )
            sums = self._add_up(losses, cells, batch)
            self.cells.append(sums.cells)
            reason = self._judge(sums)
            if reason:
                self._leave_out(reason, losses, batch.indices)
            if not self.is_spoiled:
                # The gradients of all processes are averaged: so it becomes that of the whole
                # batch, whatever the shares. A mean is at first one over the first batch's cells.
                loss = losses.sum() * (run.processes.count / self._divisor(self.cells[0]))
                learner.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if is_complete:
                self._update(losses, batch.indices)
        return sums.wishes if is_complete else Wishes()

    def _add_up(self, losses: Tensor, cells: Tensor, batch: Batch) -> Sums:
        """Let the processes tell each other of their shares, and what else concerns all."""
        loss, count = torch.stack([losses.detach().sum(), cells.sum()]).tolist()
        own = [loss, count, len(losses), len(batch.errors), *self.wishes()]
        table = self.run.processes.gather(own)
        loss, count, images, errors = table[:, :4].sum(dim=0).tolist()
        if errors:
            self._note_broken(self.run.processes.gather_lists(batch.errors))
        return Sums(loss, count, images, Wishes(int(table[:, 4].max()), bool(table[0, 5])))

    def _divisor(self, cells: float) -> float:
        """Return what turns a sum over cells into the loss."""
        return max(cells, 1) if self.objective.is_mean else 1

    def _judge(self, sums: Sums) -> str:
        """Return what is wrong with a batch, or nothing; a sound one counts for the epoch."""
        progress, settings = self.run.progress, self.run.config.train
        per_image = sums.loss / (
            self._divisor(sums.cells) if self.objective.is_mean else sums.images
        )
        settled = progress.step >= SETTLED
        reason = what_is_bad(per_image, progress.usual_loss, settled * settings.spike_factor)
        if not reason:
            progress.usual_loss = usual_after(per_image, progress.usual_loss)
            progress.loss_sum += per_image * sums.images
            progress.images_seen += int(sums.images)
        return reason

    def _update(self, losses: Tensor, indices: Tensor) -> None:
        """Make an optimiser step, unless something about it is bad."""
        run, learner = self.run, self.learner
        settings, progress = run.config.train, run.progress
        factor = lr_factor(self.duration.midway, settings.warmup, settings.schedule)
        set_lr(learner.optimizer, settings.lr * factor)
        if not self.is_spoiled:
            learner.scaler.unscale_(learner.optimizer)
            # From a mean over the first batch's cells to one over those of all batches.
            share = self._divisor(self.cells[0]) / self._divisor(sum(self.cells))
            norm = scale_and_clip(learner.model.parameters(), share, settings.clip_grad)
            # In fp16 the gradient overflows now and then; the scaler leaves these steps out.
            if not math.isfinite(norm) and not learner.scaler.is_enabled():
                self._leave_out(f"the gradient is {norm}", losses, indices)
        if not self.is_spoiled:
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
            if learner.scaler.is_enabled() and learner.scaler.get_scale() < LEAST_SCALE:
                run.processes.fail(
                    "the gradient overflows in fp16 at any scale: use --train.precision fp32"
                )
            progress.bad_steps = 0
            if learner.average is not None:
                learner.average.update(learner.plain, progress.step)
        learner.optimizer.zero_grad()
        progress.step += 1
        self.duration.count_step()
        self.is_spoiled, self.cells = False, []

    def _leave_out(self, reason: str, losses: Tensor, indices: Tensor) -> None:
        """Let the step under way change nothing; after too many of them in a row, stop."""
        run, progress, limit = self.run, self.run.progress, self.run.config.train.max_bad_steps
        own = [run.splits.learnt[int(index)].name for index in blame(losses, indices)]
        names = ", ".join(run.processes.gather_lists(own)[:BLAMED])
        if not self.is_spoiled:
            progress.bad_steps += 1
            progress.skipped_steps += 1
        self.is_spoiled = True
        where = f"{reason} at step {progress.step} (epoch {progress.epoch + 1})"
        if progress.bad_steps > limit:
            run.processes.fail(
                f"{where}, after {counted(limit, 'step')} left out in a row for the like: lower "
                f"train.lr, or look at these images: {names}"
            )
        log.warning("%s: this step is left out; images: %s", where, names)

    def _note_broken(self, errors: list[str]) -> None:
        """Count broken images by name; past the limit, stop."""
        run, broken = self.run, self.run.progress.broken
        for message in errors:
            name = message.split(": ")[0]
            if name not in broken:
                broken[name] = message
                log.warning("left out, broken: %s", message)
        total, limit = len(run.splits.learnt), run.config.data.max_broken
        if len(broken) > limit * total:
            examples = "; ".join(list(broken.values())[:3])
            run.processes.fail(
                f"{len(broken)} of {counted(total, 'training image')} can't be read, more than "
                f"data.max_broken={limit:g} allows: {examples}"
            )
