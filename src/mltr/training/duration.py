"""How long a run lasts: for its epochs, or for the time that `train.minutes` gives it.

A run by time is laid out anew now and then: the steps that remain are what the time that remains
has room for, by the speed of late. So learning rate and all else that follow the run reach their
end when the time does, on a machine of any speed.
"""

from __future__ import annotations

import math

from mltr.errors import counted
from mltr.training.growth import Growth
from mltr.training.run import Run

LAYOUTS = 20  #: at least so many times a run by time is laid out anew
VALIDATED = 0.1  #: share of the time, at most, in which a run by time validates
FIRST_STEP = 0.02  #: share of a run by time that its first step is taken for
ENDED = 1 - 1e-9  #: share of a run that is all of it, give or take roundings
FORWARD = 1 / 3  #: share of a training step that a forward pass takes: backward is two of them


class Duration:
    """How much of a run is done, and when it ends.

    `batches` is how many an epoch has. All processes of a run go by the main one's clock.
    """

    def __init__(self, run: Run, batches: int, growth: Growth) -> None:
        settings = run.config.train
        self.run, self.batches, self.growth = run, batches, growth
        self.steps = -(-batches // settings.accumulation)  #: an epoch
        self.seconds = 60 * settings.minutes  #: of the whole run; 0: as long as its epochs take
        # A head has learnt all that features hold long before a minute is over.
        self.is_bounded = not self.seconds or settings.freeze == "backbone"
        self.last = min(settings.stop_epoch or settings.epochs, settings.epochs)
        self.total_steps = settings.epochs * self.steps
        self.window, self.until, self.since = 0, 1, 0.0  #: steps, how many, from which second on
        self.work = 0.0  #: of the window, in steps with images of full size
        self.is_first = True  #: whether no step of this process has been measured

    def __str__(self) -> str:
        epochs = counted(self.last, "epoch")
        if not self.seconds:
            return epochs
        bound = f", at most {epochs}" if self.is_bounded else ""
        return f"{self.run.config.train.minutes:g} min{bound}"

    @property
    def share(self) -> float:
        """The share of the run that is done."""
        progress = self.run.progress
        return progress.share if self.seconds else progress.step / self.total_steps

    @property
    def midway(self) -> float:
        """The share of the run that is done halfway through the step under way.

        The learning rate follows it: at the very beginning and end, where it is 0, a step would do
        nothing, and a run may have no other.
        """
        progress = self.run.progress
        if self.seconds:
            return progress.share + (progress.gain or FIRST_STEP) / 2
        return (progress.step + 0.5) / self.total_steps

    def side(self, batch: int) -> int:
        """Return how large the images of a batch of the epoch under way are, in pixels.

        Batches are drawn before their turn: by how much must not show, or a resumed run would
        differ.
        """
        progress, settings = self.run.progress, self.run.config.train
        if self.seconds:
            ahead = (batch - progress.batch) / settings.accumulation
            return self.growth.side(progress.share + ahead * progress.gain)
        return self.growth.side((progress.epoch + batch / self.batches) / self.last)

    @property
    def epochs(self) -> int:
        """How many epochs the run has; one by time, by the speed of late."""
        progress = self.run.progress
        if not (self.seconds and progress.gain):
            return self.last
        steps = progress.step + math.ceil((ENDED - progress.share) / progress.gain)
        return -(-steps // self.steps)

    def is_over(self, epoch: int) -> bool:
        """Whether the run ends here, as so many epochs are done or its time is up."""
        out_of_time = bool(self.seconds) and self.run.progress.share >= ENDED
        return out_of_time or (self.is_bounded and epoch >= self.last)

    def is_to_validate(self, epoch: int) -> bool:
        """Whether to validate at the end of an epoch, given how many are done by then."""
        if self.is_over(epoch):
            return True
        run, progress = self.run, self.run.progress
        is_due = epoch % run.config.train.eval_every == 0
        if not (is_due and self.seconds and progress.validations):
            return is_due
        own = [run.seconds - progress.validated_at, self._validation_s()]
        since_s, validation_s = run.processes.gather(own)[0].tolist()
        return bool(since_s >= validation_s / VALIDATED)

    def start(self) -> None:
        """Begin to measure: the next step is the first of this process."""
        self.window, self.until, self.since = 0, 1, self._trained()
        self.work, self.is_first = 0.0, True

    def count_step(self) -> None:
        """Note that a step is made, and lay out what remains where that is due."""
        progress = self.run.progress
        if not self.seconds:
            return
        self.work += self.growth.work(progress.share)
        progress.share += progress.gain
        self.window += 1
        if self.window >= self.until and progress.share < ENDED:
            self._lay_out()

    def _lay_out(self) -> None:
        """Spread what remains of the run over the steps for which there is time.

        Their speed is that since the last layout, and of images that grow. Each covers twice the
        steps of the one before, since the first steps are slow, and then a small share of the run.
        """
        run, progress = self.run, self.run.progress
        own = [
            (self._trained() - self.since) / self.work,
            self.seconds - progress.setup_seconds - run.seconds,
            self._validation_s(),
        ]
        full_step_s, left_s, validation_s = run.processes.gather(own)[0].tolist()
        settings, val, test = run.config.train, len(run.splits.val), len(run.splits.test)
        scored = 2 if settings.ema_decay else 1  # the averaged weights, too
        if not progress.validations:
            validation_s = scored * FORWARD * full_step_s * val / settings.batch_size
        step_s = full_step_s * self.growth.mean_work(progress.share)
        interval_s = max(self.steps * step_s, validation_s / VALIDATED)
        left_s -= validation_s * (1 + test / max(val, 1) / scored)
        left_s -= validation_s * max(left_s // (interval_s + validation_s), 0)
        steps = round(left_s / step_s)
        if self.is_bounded:
            steps = min(steps, self.total_steps - progress.step)
        progress.gain = (1 - progress.share) / max(steps, 1)
        if self.is_first:  # its step has a network compiled, and workers started: it says little
            progress.gain = min(progress.gain, FIRST_STEP)
            self.is_first = False
        elif steps < 1:
            progress.share = 1.0
        self.until = max(1, min(2 * self.until, int(self.seconds / LAYOUTS / step_s)))
        self.window, self.work, self.since = 0, 0.0, self._trained()

    def _trained(self) -> float:
        """Return the seconds of training until now, without those of validation."""
        return self.run.seconds - self.run.progress.validation_seconds

    def _validation_s(self) -> float:
        progress = self.run.progress
        return progress.validation_seconds / max(progress.validations, 1)
