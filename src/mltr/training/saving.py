"""What a run goes on from, and its best weights."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from mltr.errors import MltrError
from mltr.runs.checkpoints import States, random_states, set_random_states
from mltr.training.learner import Learner
from mltr.training.run import Run


class Saver:
    """Checkpoints of a run and its best weights, written and read by all processes together."""

    def __init__(self, run: Run, learner: Learner) -> None:
        self.run, self.learner = run, learner
        self.states = States(run.folder.checkpoints, run.processes)
        self.saved_at, self.saved_name = time.monotonic(), ""

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint is as old as the recipe lets it become."""
        return time.monotonic() - self.saved_at >= 60 * self.run.config.train.save_minutes

    def save(self) -> bool:
        """Write a checkpoint, unless that is done; whatever fails, the previous ones survive."""
        run, progress = self.run, self.run.progress
        run.count_seconds()
        self.saved_at = time.monotonic()
        if progress.name == self.saved_name:
            return True
        shared = {"progress": asdict(progress), "preprocess": self._preprocess()}
        shared |= self.learner.state()
        try:
            self.states.write(progress.name, shared, random_states(), needs=progress.best_name)
        except MltrError as error:
            if not (self.saved_name or progress.best_name):
                run.processes.fail(f"stopped, because nothing of this run can be saved: {error}")
            run.note_failed_write(error)
            return False
        self.saved_name = progress.name
        if run.processes.is_main:
            self.states.prune(run.config.train.keep)
        return True

    def restore(self) -> None:
        """Take up where the latest sound checkpoint left off, in mid-epoch too."""
        run = self.run
        self.saved_name = self.states.latest()
        shared, own = self.states.read(self.saved_name)
        self._check_preprocess(shared.get("preprocess", {}))
        self.learner.load_state(shared)
        if own:  # nothing, where there are more processes now than then
            set_random_states(own)
        vars(run.progress).update(shared["progress"])
        run.rows = [row for row in run.rows if row["epoch"] <= run.progress.epoch]

    def _preprocess(self) -> dict[str, Any]:
        """Return how images are prepared, as it is read back: with lists for tuples."""
        found: dict[str, Any] = json.loads(json.dumps(self.run.preprocess.to_dict()))
        return found

    def _check_preprocess(self, before: dict[str, Any]) -> None:
        """Fail unless images are prepared as the run began, by the weights that it started from."""
        now = self._preprocess()
        changed = [
            f"{name} was {before[name]} and is {now[name]}"
            for name in before.keys() & now.keys()
            if before[name] != now[name]
        ]
        if changed:
            self.run.processes.fail(
                f"{self.run.folder.path}: images are prepared differently from when it began: "
                f"{'; '.join(sorted(changed))}. If model.init has other weights now, restore the "
                "earlier ones, or start again with --overwrite"
            )

    def keep_if_best(self, goodness: list[float], candidates: list[dict[str, Tensor]]) -> None:
        """Write the best weights of all so far, if they are among those of `candidates`.

        The second of these is the average. What does better has the greater `goodness`.
        """
        progress = self.run.progress
        before = replace(progress)
        for index, score in enumerate(goodness):
            # nan, without positives: the latest is kept
            if progress.best_epoch < 0 or not score <= progress.best_map:
                progress.best_map, progress.best_epoch = score, progress.epoch
                progress.best_is_average = index == 1
        if progress.best_epoch != progress.epoch:
            return
        try:
            weights = candidates[progress.best_is_average]
            self.states.write(progress.best_name, {"weights": weights})
        except MltrError as error:
            vars(progress).update(vars(before))
            self.run.note_failed_write(error)

    def load_best(self) -> None:
        """Load the best weights so far; raise `MltrError` where there are none."""
        run, name = self.run, self.run.progress.best_name
        if not name:
            run.processes.fail(f"{run.folder.path}: no weights to keep: none could be saved")
        self.learner.load_weights(self.states.read(name)[0]["weights"])
