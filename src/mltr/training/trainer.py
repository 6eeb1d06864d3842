"""The training loop, in one process or in many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, NoReturn

from accelerate.utils import set_seed

from mltr.errors import counted
from mltr.training.duration import Duration
from mltr.training.freeze import set_training
from mltr.training.guards import Signals, told_workers
from mltr.training.learner import Learner
from mltr.training.objective import Objective
from mltr.training.progress import training_words, with_bar
from mltr.training.run import Run
from mltr.training.saving import Saver
from mltr.training.step import Stepper, Wishes

log = logging.getLogger(__name__)


class Trainer:
    """The loop: steps, and after each epoch a validation and a checkpoint.

    Several processes take the same steps as one does, each on its share of every batch. What is
    learnt, how it is judged and what is left at the end is the objective's.
    """

    def __init__(self, run: Run, objective: Objective) -> None:
        self.run, self.objective = run, objective
        self.learner = Learner(objective.build_network(), run)
        if run.processes.rank:  # dropout of its own, once all have built the same network
            set_seed(run.config.train.seed + run.processes.rank)
        self.loader = objective.load_training()
        self.saver = Saver(run, self.learner)
        self.signals = Signals(alone=run.processes.count == 1)
        self.duration = Duration(run, len(self.loader), self.learner.growth)
        self.stepper = Stepper(
            run, self.learner, objective, len(self.loader), self.duration, self._wishes
        )
        run.processes.wait()  # all have looked into the folder: now it may change

    def _wishes(self) -> Wishes:
        return Wishes(self.signals.noted, self.saver.is_due)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM, and say in a line what processes and workers died of."""
        with (
            self.signals.listening(), told_workers(), self.run.processes.watched(),
            closing(self.loader),
        ):  # fmt: skip
            yield

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the run's end, or until patience or a signal ends it."""
        run = self.run
        self._announce()
        with run.tracking.begun(asdict(run.config)) if run.processes.is_main else nullcontext():
            self._fit()

    def _fit(self) -> None:
        run, settings = self.run, self.run.config.train
        run.begin_seconds()
        self.duration.start()
        # An epoch under way when its run was interrupted is still to be validated.
        while run.progress.batch or not self.duration.is_over(run.progress.epoch):
            waited = run.progress.epoch - 1 - run.progress.best_epoch
            is_judged = bool(run.rows) and self.objective.judged_by in run.rows[-1]
            if settings.patience and is_judged and waited >= settings.patience:
                log.info("no better validation map for %s: stopped", counted(waited, "epoch"))
                break
            for asked in self.train_epoch():
                if asked.stop:
                    self._stop(asked.stop)
                if asked.save:
                    self.saver.save()
            self._end_epoch()
            signum = int(run.processes.gather([self.signals.noted]).max())
            if signum:
                self._stop(signum)
        self.objective.draw(self.learner.plain)

    def train_epoch(self) -> Iterator[Wishes]:
        """Go through the rest of the epoch under way; after each batch, say what is asked for.

        A run by time may end in its midst.
        """
        progress = self.run.progress
        set_training(self.learner.model)
        batches = self.loader.epoch(progress.epoch, progress.batch, self.duration.side)
        shown = self.run.processes.is_main
        for batch in with_bar(batches, len(self.loader), progress, self.duration.epochs, shown):
            asked = self.stepper.take(batch)
            progress.batch += 1
            yield asked
            if self.duration.is_over(progress.epoch):
                return

    def _end_epoch(self) -> None:
        """Validate, keep the best weights, save, and tell."""
        run, progress = self.run, self.run.progress
        run.count_seconds()
        number = progress.epoch + 1
        row: dict[str, Any] = {
            "epoch": number,
            "train_loss": progress.loss_sum / max(progress.images_seen, 1),
            "lr": self.learner.optimizer.param_groups[-1]["lr"],
            "images_per_s": progress.images_seen / progress.epoch_seconds,
        }
        if self.learner.growth.grows:
            row["image_size"] = self.duration.side(progress.batch - 1)
        if self.duration.is_to_validate(number):
            row |= self._validate()
        progress.epoch, progress.batch = number, 0
        progress.loss_sum, progress.images_seen, progress.epoch_seconds = 0.0, 0, 0.0
        run.count_seconds()
        row["seconds"] = round(progress.seconds, 1)
        run.rows = [r for r in run.rows if r["epoch"] < number] + [row]
        if run.processes.is_main:
            with run.spared():
                run.folder.write_log(run.rows)
                run.tracking.log({k: v for k, v in row.items() if k != "epoch"}, number)
        self.saver.save()
        log.info(
            "%s",
            "  ".join(training_words(row, self.duration.epochs) + self.objective.score_words(row)),
        )

    def _validate(self) -> dict[str, float]:
        """Score the validation images; the better of raw and averaged weights may be the best."""
        learner, objective, progress = self.learner, self.objective, self.run.progress
        began = self.run.seconds
        candidates = learner.candidates()
        # Each process has its own running statistics; the main one's are those that are saved.
        buffers = [name for name, _ in learner.plain.named_buffers() if name in candidates[0]]
        self.run.processes.copy_from_main(
            weights[name] for weights in candidates for name in buffers
        )
        scores = [objective.score(learner.plain)]
        if learner.average is not None:
            with learner.averaged():
                scores.append(objective.score(learner.plain))
        self.saver.keep_if_best(scores, candidates)
        progress.validated_at = self.run.seconds
        progress.validation_seconds += progress.validated_at - began
        progress.validations += 1
        return dict(zip((objective.judged_by, f"{objective.judged_by}_ema"), scores, strict=False))

    # -- the end -------------------------------------------------------------------------------

    def finish(self, quiet: bool = False) -> dict[str, Any]:
        """Leave the best weights, and the figures that are returned, in the run's folder."""
        self.signals.leave_at_once = True
        self.saver.load_best()
        figures = self.objective.finish(self.learner, quiet)
        if self.run.processes.is_main:
            if self.run.progress.shortfalls():
                log.warning("on the way: %s", self.run.progress.shortfalls())
            log.info("run folder: %s", self.run.folder.path)
            log.info("next: %s", self.objective.next_command())
        return figures

    def _stop(self, signum: int) -> NoReturn:
        """Save, leave what can be used, and end as the signal wants."""
        run = self.run
        if self.saver.save():
            log.warning(
                "saved at epoch %d; resume with: %s",
                run.progress.epoch + 1,
                run.folder.resume_command(),
            )
        with run.spared():
            self._leave_usable()
        run.processes.wait()  # torchrun ends the others soon after the first
        self.signals.leave(signum)

    def _leave_usable(self) -> None:
        """Write the bundle of the best weights so far, for a run that stops before its end."""
        if not self.run.progress.best_name:
            log.warning("no epoch has been validated yet: resume this run before using it")
            return
        self.saver.load_best()
        if self.run.processes.is_main:
            self.objective.write_bundle(self.learner.whole)
            log.warning(
                "the run can be used as it is, with its weights after epoch %d, the best so far",
                self.run.progress.best_epoch + 1,
            )
            log.info("next: %s", self.objective.next_command())

    def _announce(self) -> None:
        run = self.run
        processes = run.processes.count
        log.info(
            "%s, %.2f M parameters, %d px, %s, on %s%s; run folder: %s",
            run.config.model.name,
            self.learner.parameters / 1e6,
            run.preprocess.image_size,
            self.duration,
            run.device.type,
            f" x {processes}" if processes > 1 else "",
            run.folder.path,
        )
