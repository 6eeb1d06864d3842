"""The figures of a run where people look at them: TensorBoard, Weights & Biases or MLflow.

All three are trackers of accelerate's. A run that is resumed goes on under its name of before.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker
from numpy.typing import NDArray

from mltr.errors import MltrError, UsageError
from mltr.files.download import first_line
from mltr.files.writing import write_json
from mltr.runs.folder import RunFolder

log = logging.getLogger(__name__)

PROJECT = "mltr"  #: under which runs are listed, unless the tracker's own variable names another
SHEET = "validation"  #: name of the picture of validation images


@dataclass
class Tracking:
    """A run as its tracker knows it; nothing for `none`, and in all processes but the main one."""

    name: str  #: none, tensorboard, wandb or mlflow
    folder: RunFolder
    _tracker: GeneralTracker | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        is_library = self.name in ("wandb", "mlflow")
        if is_library and importlib.util.find_spec(self.name) is None:
            raise UsageError(
                f"train.tracker {self.name} needs {self.name}: pip install 'mltr[{self.name}]'"
            )

    @contextmanager
    def begun(self, recipe: Mapping[str, Any]) -> Iterator[None]:
        """Tell what the run is, or find it again, and close its tracker in the end.

        Raises `MltrError` where wandb or MLflow can't be reached.
        """
        try:
            with self._telling():
                self._tracker = self._begin(recipe)
        except MltrError as error:
            if self.name != "tensorboard":
                raise
            log.warning("going on, although: %s", error)  # about a file in the run's own folder
        try:
            yield
        finally:
            try:
                if self._tracker is not None:
                    self._tracker.finish()
            except Exception as error:  # each library has its own
                log.warning("train.tracker %s: %s", self.name, first_line(error))
            self._tracker = None

    def log(self, figures: Mapping[str, Any], epoch: int) -> None:
        """Add the figures of an epoch; raises `MltrError` if that fails."""
        if self._tracker is not None:
            with self._telling():
                self._tracker.log(dict(figures), step=epoch)

    def show(self, sheet: NDArray[np.uint8], epoch: int) -> None:
        """Add a picture [H, W, 3]; raises `MltrError` if that fails."""
        if self._tracker is None:
            return
        with self._telling():
            if self.name == "mlflow":  # accelerate's has no pictures
                import mlflow

                mlflow.log_image(sheet, artifact_file=f"{SHEET}.png")
            elif self.name == "wandb":
                self._tracker.log_images({SHEET: [sheet]}, step=epoch)
            else:
                self._tracker.log_images({SHEET: sheet[None]}, step=epoch, dataformats="NHWC")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library has its own
            raise MltrError(f"train.tracker {self.name}: {first_line(error)}") from error

    def _begin(self, recipe: Mapping[str, Any]) -> GeneralTracker | None:
        if self.name == "none":
            return None
        tracker = self._open()
        tracker.start()
        if self.name != "tensorboard":  # which would make a folder of it for every start
            if self.name != "mlflow" or self._known_id() is None:  # it lets none be changed
                tracker.store_init_configuration(dict(_flat(recipe)))
            self._keep_id(tracker)
        return tracker

    def _open(self) -> GeneralTracker:
        folder, known = self.folder.path, self._known_id()
        if self.name == "tensorboard":
            return TensorBoardTracker(self.folder.tensorboard.name, folder)
        if self.name == "mlflow":
            return MLflowTracker(PROJECT, run_name=folder.name, run_id=known)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        return WandBTracker(project, name=folder.name, dir=str(folder), id=known, resume="allow")

    def _known_id(self) -> str | None:
        """Return under which name the run was tracked before it was interrupted."""
        try:
            known = json.loads(self.folder.tracker.read_text("utf-8"))
            return str(known["id"]) if known["tracker"] == self.name else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep_id(self, tracker: GeneralTracker) -> None:
        run = tracker.tracker
        own = run.info.run_id if self.name == "mlflow" else run.id
        write_json(self.folder.tracker, {"tracker": self.name, "id": own})


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a recipe with their dotted names."""
    for key, value in recipe.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else str(value)
