"""The folder of a run: all that is needed to repeat it, and what came of it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mltr.config import Config
from mltr.data.records import Splits
from mltr.errors import MltrError, UsageError
from mltr.predictions import PREDICTIONS_FILE
from mltr.recipe import load_recipe, to_yaml
from mltr.weights import CONFIG_FILE, WEIGHTS_FILE, write_atomically, write_json

PACKAGES = ("mltr", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of a run, and how they are written."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, which `mltr train` takes again."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoint" / "state.pt"

    @property
    def best(self) -> Path:
        """The weights that did best on the validation images."""
        return self.path / "checkpoint" / "best.pt"

    @property
    def log(self) -> Path:
        """One line of JSON for each epoch."""
        return self.path / "log.jsonl"

    @property
    def metrics(self) -> Path:
        """The test figures; written last, so a run that has them is finished."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Scores of the test images."""
        return self.path / PREDICTIONS_FILE

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    def holds_a_run(self) -> bool:
        """Whether anything here would be lost by writing another run."""
        own = (self.recipe, self.checkpoint, self.path / WEIGHTS_FILE, self.path / CONFIG_FILE)
        return any(path.exists() for path in own)

    def clear(self) -> None:
        """Delete a previous run's files, and nothing else."""
        names = [
            self.recipe, self.checkpoint, self.best, self.log, self.metrics, self.predictions,
            self.path / WEIGHTS_FILE, self.path / CONFIG_FILE,
            *self.tensorboard.glob("events.out.tfevents.*"),
        ]  # fmt: skip
        for name in names:
            name.unlink(missing_ok=True)

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write the lines of all epochs so far."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.log, lambda temporary: temporary.write_text(text))

    def read_log(self) -> list[dict[str, Any]]:
        """Return the lines of all epochs so far."""
        if not self.log.is_file():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def default_folder(recipe: str) -> Path:
    """Return runs/NAME-DATE-TIME for a recipe given by name or path."""
    return Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"


def open_run(path: Path, config: Config, *, resume: bool, overwrite: bool) -> RunFolder:
    """Return the folder of a run, new or to be resumed, with its recipe in it.

    Raises `UsageError` where a run would be overwritten without `overwrite`, and `MltrError` where
    there is nothing to resume or it was started with another recipe.
    """
    folder = RunFolder(path)
    if resume and overwrite:
        raise UsageError("--resume goes on with a run and --overwrite deletes it: choose one")
    if resume:
        _check_resumable(folder, config)
        return folder
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; --out names a folder")
    if folder.holds_a_run():
        if not overwrite:
            raise UsageError(
                f"{path} holds a run already: go on with it by --resume, replace it by "
                "--overwrite, or choose another --out"
            )
        folder.clear()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MltrError(f"can't make the folder {path}: {error.strerror}") from error
    write_atomically(folder.recipe, lambda temporary: temporary.write_text(to_yaml(config)))
    write_json(path / "versions.json", _versions())
    return folder


def _check_resumable(folder: RunFolder, config: Config) -> None:
    if folder.metrics.is_file():
        raise UsageError(f"{folder.path} is finished; see {folder.metrics}")
    if not folder.checkpoint.is_file():
        raise MltrError(
            f"{folder.path} has no checkpoint to resume from; start it without --resume"
        )
    before, now = asdict(load_recipe(folder.recipe)), asdict(config)
    changed = [f"{key} was {old!r} and is {new!r}" for key, old, new in _differences(before, now)]
    if changed:
        raise UsageError(
            f"{folder.path} was started with another recipe: {'; '.join(changed)}. "
            f"Resume by: mltr train {folder.recipe} --out {folder.path} --resume"
        )


def _differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in old:
        if isinstance(old[key], dict) and isinstance(new[key], dict) and key != "overrides":
            yield from _differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}", old[key], new[key]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def write_split_names(folder: RunFolder, splits: Splits) -> None:
    """Write which images the run learnt from, chose its epoch on, and reported on."""
    names = {split.name: [record.name for record in split] for split in splits}
    write_json(folder.path / "splits.json", {"classes": splits.train.classes} | names)


def write_figures(target: str, figures: dict[str, Any]) -> None:
    """Write figures as JSON into a file, or to standard output for ``-``."""
    if target == "-":
        print(json.dumps(figures, indent=2))
    else:
        write_json(target, figures)


def draw_curves(folder: RunFolder) -> bytes:
    """Draw loss and validation map of every epoch into curves.png; return its content."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = folder.read_log()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([r["epoch"] for r in rows], [r["train_loss"] for r in rows], color="#3b7dd8")
    left.set(xlabel="epoch", yscale="log")
    left.set_title("training loss, each image", loc="left")
    for key, label, colour in (
        ("val_map", "weights", "#3b7dd8"),
        ("val_map_ema", "averaged weights", "#e07b39"),
    ):
        scored = [row for row in rows if row.get(key) is not None]
        if scored:
            values = [100 * row[key] for row in scored]
            right.plot([row["epoch"] for row in scored], values, color=colour, label=label)
            right.legend(frameon=False, loc="lower right")
    right.set(xlabel="epoch")
    right.set_title("validation mAP, %", loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = folder.path / "curves.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path.read_bytes()
