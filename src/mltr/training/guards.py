"""What may end a training early: signals, losses that say that it fails, workers that die."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from torch import Tensor

from mltr.errors import MltrError

log = logging.getLogger(__name__)

STOPPING = (signal.SIGINT, signal.SIGTERM)
EXIT_PREEMPTED = 75  #: EX_TEMPFAIL of sysexits.h: try again later
SETTLED = 20  #: steps after which the usual loss is known
MEMORY = 0.02  #: weight of one step in the usual loss
BLAMED = 8  #: images named at most


class Signals:
    """Ctrl-C and SIGTERM, which let a run finish what it is at; `alone`: in a single process."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.noted: int = 0  #: the signal that asks this process to stop
        self.leave_at_once = False  #: as nothing is left to be saved

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note these signals, in this process alone."""
        own = os.getpid()

        def handle(signum: int, frame: FrameType | None) -> None:
            if os.getpid() == own:  # a worker gets a terminal's signal too, and inherits this
                self._note(signum)

        try:
            before = {number: signal.signal(number, handle) for number in STOPPING}
        except ValueError:  # not the main thread, which alone may do so
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signum: int) -> None:
        """Let the first signal finish the step and save; a second Ctrl-C ends at once."""
        again = self.noted and signum == signal.SIGINT and self.alone
        if self.leave_at_once or again:
            self.leave(signum)
        if not self.noted:
            log.warning("interrupted: finishing this step, then saving")
        self.noted = self.noted or signum

    def leave(self, signum: int) -> NoReturn:
        """End the process as a signal wants."""
        raise SystemExit(EXIT_PREEMPTED) if signum == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def told_workers() -> Iterator[None]:
    """Turn the error of a data worker that died into `MltrError`."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise MltrError(
            f"a data worker died ({str(error).splitlines()[0]}); if memory ran out, lower "
            "data.workers; then continue with --resume"
        ) from error


def what_is_bad(loss: float, usual: float, spike_factor: float) -> str:
    """Return why a step of this mean loss should be left out, or nothing."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if spike_factor and usual > 0 and loss > spike_factor * usual:
        return f"the loss is {loss:.4g}, {loss / usual:.0f} times the usual,"
    return ""


def usual_after(loss: float, usual: float) -> float:
    """Return the usual loss after another one, a running mean."""
    return usual + MEMORY * (loss - usual) if usual else loss


def blame(losses: Tensor, indices: Tensor) -> Tensor:
    """Return the `indices` [n] of the images to look at: not finite, or else the greatest."""
    losses = losses.detach().float().cpu()
    culprits = indices[~losses.isfinite()]
    if len(culprits) == 0:
        culprits = indices[losses.argsort(descending=True)]
    return culprits[:BLAMED]
