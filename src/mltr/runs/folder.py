"""The folder of a run: its results, and everything needed to repeat it."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from mltr import __version__
from mltr.config.recipe import load_recipe, to_yaml
from mltr.config.schema import PRETRAINED, START, Config
from mltr.data.readers.huggingface import PREFIX as DATASETS_PREFIX
from mltr.data.records import Split, Splits
from mltr.data.shards import is_address
from mltr.data.sources import is_named_by_columns, located
from mltr.errors import MltrError, UsageError, counted
from mltr.files.download import HUB_PREFIX
from mltr.files.writing import text_writer, to_json, write_atomically, write_json
from mltr.weights.metadata import (
    CONFIG_FILE,
    LOG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    SPLITS_FILE,
    WEIGHTS_FILE,
)

#: Recipe fields that may change on resuming: where images are, how fast all goes, what is kept.
FREE_FIELDS = frozenset(
    {
        "data.root",
        "data.unlabelled_root",
        "data.workers",
        "data.cache",
        "data.cache_gb",
        "data.max_broken",
        "data.shard_cache",
        "data.shard_cache_gb",
        "train.keep",
        "train.save_minutes",
        "train.threads",
        "train.timeout_s",
        "train.tracker",
    }
)
#: Those that may name another place, whose content is compared, but not be added or left out.
MOVABLE_FIELDS = frozenset(
    {
        "data.classes",
        "data.hierarchy",
        "data.images",
        "data.labels",
        "model.init",
        "train.teacher",
    }
)
STATES = "epoch-*"  #: glob of the states that a run can resume from
BEST = "best-*"  #: glob of the best weights
UNFINISHED = ".tmp-"  #: prefix of a state that is being written
FREE_KEYS = ("overrides", "head_options")  #: recipe fields that are dictionaries with any keys
#: Globs of what `mltr export` and `mltr calibrate` make of a run.
EXPORTS = ("model.onnx", "model.*.onnx", "model.pt2", "model.*.pt2", "reliability.png")
TOLD = 3  #: maximum number of image names in a message
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "scikit-learn")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, and how they are written."""

    path: Path

    def how_to_go_on(self) -> str:
        """Return how an unfinished run goes on, as part of an advice; "" if it can't."""
        if self.recipe.is_file() and self.holds_a_state() and not self.metrics.is_file():
            return f"continue it with `{self.resume_command()}`, "
        return ""

    def resume_command(self) -> str:
        """Return the command that goes on with the run."""
        return shlex.join(["mltr", "train", str(self.recipe), "--out", str(self.path), "--resume"])

    @property
    def recipe(self) -> Path:
        """The resolved recipe, which `mltr train` accepts."""
        return self.path / RECIPE_FILE

    @property
    def checkpoints(self) -> Path:
        """Checkpoints to resume from, and the best weights; see `States`."""
        return self.path / "checkpoint"

    @property
    def splits(self) -> Path:
        """The classes, and the names, labels' checksums and file sizes of each split's images."""
        return self.path / SPLITS_FILE

    @property
    def log(self) -> Path:
        """The log: one line of JSON per epoch."""
        return self.path / LOG_FILE

    @property
    def metrics(self) -> Path:
        """The test figures. They are written last and so mark a finished run."""
        return self.path / METRICS_FILE

    @property
    def versions(self) -> Path:
        """The versions of packages, the precision of the run, and when it began."""
        return self.path / "versions.json"

    @property
    def predictions(self) -> Path:
        """The scores of the test images."""
        return self.path / PREDICTIONS_FILE

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def tracker(self) -> Path:
        """The run's ID in wandb or MLflow, with which a resumed run continues there."""
        return self.path / "tracker.json"

    def holds_a_run(self) -> bool:
        """Return whether writing another run here would destroy anything."""
        own = (
            self.recipe, self.log, self.metrics, self.predictions,
            self.path / WEIGHTS_FILE, self.path / CONFIG_FILE,
        )  # fmt: skip
        return any(path.exists() for path in own) or self.holds_a_state()

    def holds_a_state(self) -> bool:
        """Return whether there is a checkpoint to resume from, valid or not."""
        return any(self.checkpoints.glob(STATES))

    def has_only_begun(self) -> bool:
        """Return whether a run was started here and ended before its first checkpoint."""
        return (
            self.recipe.exists()
            and self.versions.exists()  # a config.yaml alone may be anyone's
            and not self.holds_a_state()
            and not (self.path / WEIGHTS_FILE).exists()
        )

    def clear(self) -> None:
        """Delete the files of a previous run and no others."""
        names = [
            self.recipe,
            self.log,
            self.metrics,
            self.predictions,
            self.tracker,
            self.path / WEIGHTS_FILE,
            self.path / CONFIG_FILE,
            self.versions,
            *self.tensorboard.glob("events.out.tfevents.*"),
            *(path for name in EXPORTS for path in self.path.glob(name)),
        ]
        for name in names:
            name.unlink(missing_ok=True)
        for pattern in (STATES, BEST, f"{UNFINISHED}*"):
            for state in self.checkpoints.glob(pattern):
                shutil.rmtree(state)

    def begin(self, config: Config, splits: Splits, precision: str) -> None:
        """Delete a previous run and write this one's recipe, package versions and splits."""
        self.clear()
        self.write_recipe(config)
        write_json(self.versions, _versions() | {"precision": precision, "begun": time.time()})
        content: dict[str, Any] = {"classes": splits.train.classes}
        content |= {split.name: names_in_json(split) for split in splits.parts}
        content["label_sums"] = {split.name: split.label_sums() for split in splits.parts}
        content["file_sizes"] = {split.name: split.file_sizes() for split in splits.parts}
        content["hierarchy"] = splits.hierarchy
        write_json(self.splits, content)

    def precision(self) -> str | None:
        """Return what the run began to compute in; None for runs of earlier versions."""
        found = self._noted("precision")
        return found if found in ("fp32", "bf16", "fp16") else None

    def begun(self) -> float:
        """Return when the run began, in seconds since 1970; 0 for runs of earlier versions."""
        found = self._noted("begun")
        return found if isinstance(found, float) else 0.0

    def _noted(self, key: str) -> Any:
        try:
            return json.loads(self.versions.read_text("utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            return None

    def write_recipe(self, config: Config) -> None:
        """Write the recipe with absolute paths."""
        write_atomically(self.recipe, text_writer(to_yaml(with_absolute_paths(config))))

    def check_images(self, splits: Splits) -> None:
        """Raise `MltrError` unless the run was started on the same images and labels.

        Runs of earlier versions recorded only names, so only these are compared.
        """
        try:
            before = json.loads(self.splits.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise MltrError(f"{self.splits} can't be read: {error}") from error
        classes = list(splits.train.classes)
        if before.get("classes", classes) != classes:
            self._refuse(f"with other classes, or in another order: {_told(before['classes'])}")
        if before.get("hierarchy", splits.hierarchy) != splits.hierarchy:
            self._refuse("with another hierarchy")
        # Labels come first, as other labels may change the random split of the same images.
        sums = {split.name: split.label_sums() for split in splits.parts}
        sizes = {split.name: split.file_sizes() for split in splits.parts}
        for what, key, now in (("labels", "label_sums", sums), ("files", "file_sizes", sizes)):
            changed = _changed(before, before.get(key, {}), splits, now)
            if changed:
                images = counted(len(changed), "image")
                self._refuse(f"with other {what} of {images}: {_told(changed)}")
        for split in (*splits, splits.unlabelled):
            then, names = before.get(split.name, []), names_in_json(split)
            if then != names:
                differing = sorted(set(then) ^ set(names)) or ["the same in another order"]
                self._refuse(
                    f"on other {split.name} images ({len(then)} then, {len(names)} now): "
                    f"{_told(differing)}"
                )

    def _refuse(self, difference: str) -> NoReturn:
        raise MltrError(
            f"{self.path} was started {difference}. Restore the original data, or start again with "
            "--overwrite"
        )

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write the rows of all epochs so far."""
        text = "".join(to_json(row, indent=None) for row in rows)
        write_atomically(self.log, text_writer(text))

    def read_log(self) -> list[dict[str, Any]]:
        """Return the rows of all epochs so far."""
        if not self.log.is_file():
            return []
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()]


def default_folder(recipe: str) -> Path:
    """Return ``runs/NAME-DATE-TIME`` for a recipe given by name or path."""
    return Path("runs") / f"{Path(recipe).stem}-{datetime.now():%Y%m%d-%H%M%S}"


def sources_of(config: Config) -> dict[str, str]:
    """Return what a run starts from and learns from, by the options that name it."""
    return {"model.init": config.model.init, "train.teacher": config.train.teacher}


def open_run(path: Path, config: Config, *, resume: bool, overwrite: bool) -> RunFolder:
    """Return the folder of a new or resumed run, without touching its files.

    The caller holds the lock of the folder (`locked_folder`). Raises `UsageError` if a run would
    be overwritten without `overwrite`, if the run to resume is finished or used another recipe,
    and `MltrError` if there is nothing to resume.
    """
    folder = RunFolder(path)
    if resume and overwrite:
        raise UsageError("--resume continues a run and --overwrite deletes it: choose one")
    if resume:
        if folder.metrics.is_file():
            raise UsageError(f"{folder.path} is finished; see {folder.metrics}")
        if not folder.holds_a_state():
            raise MltrError(
                f"{folder.path} has no checkpoint to resume from; start it without --resume"
            )
        check_recipe(folder, config)
        return folder
    if folder.holds_a_run() and not overwrite:
        raise UsageError(
            f"{path} already holds a run: {folder.how_to_go_on()}replace it with --overwrite, or "
            "choose another --out"
        )
    for option, name in sources_of(config).items():
        source = Path(name).resolve()
        if name and source.exists() and source.is_relative_to(path.resolve()):
            raise UsageError(f"{option} {name} would be overwritten: choose another --out")
    return folder


def check_recipe(folder: RunFolder, config: Config) -> None:
    """Raise `UsageError` unless a run was started with this recipe, ignoring `FREE_FIELDS`."""
    before, now = (
        asdict(with_absolute_paths(recipe)) for recipe in (load_recipe(folder.recipe), config)
    )
    columns = {"data.images", "data.labels"} if is_named_by_columns(config.data) else set()
    movable = MOVABLE_FIELDS - columns
    changed = [
        f"{key} was {old!r} and is {new!r}"
        for key, old, new in differences(before, now)
        if key not in FREE_FIELDS and not (key in movable and old and new)
    ]
    if changed:
        raise UsageError(
            f"{folder.path} was started with another recipe: {'; '.join(changed)}. "
            f"Resume with: {folder.resume_command()}"
        )


def with_absolute_paths(config: Config) -> Config:
    """Return a recipe with absolute paths; names and URLs are unchanged."""
    data, model = replace(located(config.data)), replace(config.model)
    train = replace(config.train)
    is_named = data.root.startswith(DATASETS_PREFIX)
    if data.classes and is_named_by_columns(data):  # others: relative to the root
        data.classes = str(Path(data.classes).absolute())
    if data.root and not is_named and not is_address(data.root):
        data.root = str(Path(data.root).absolute())
    if data.hierarchy:
        data.hierarchy = str(Path(data.hierarchy).absolute())
    if data.unlabelled_root:
        data.unlabelled_root = str(Path(data.unlabelled_root).absolute())
    if data.shard_cache:
        data.shard_cache = str(Path(data.shard_cache).absolute())
    kind, colon, path = model.init.rpartition(":")
    # Words are words, even where a folder is called so.
    if model.init not in ("", PRETRAINED, START) and Path(model.init).exists():
        model.init = str(Path(model.init).absolute())
    elif colon and f"{kind}{colon}" != HUB_PREFIX and Path(path).exists():
        model.init = f"{kind}:{Path(path).absolute()}"
    if train.teacher and not train.teacher.startswith(HUB_PREFIX):
        train.teacher = str(Path(train.teacher).absolute())
    return replace(config, data=data, model=model, train=train)


def differences(
    old: dict[str, Any], new: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each field in which two resolved recipes differ: dotted name, old and new value."""
    for key in old:
        if isinstance(old[key], dict) and isinstance(new[key], dict) and key not in FREE_KEYS:
            yield from differences(old[key], new[key], f"{prefix}{key}.")
        elif old[key] != new[key]:
            yield f"{prefix}{key}", old[key], new[key]


def _versions() -> dict[str, str]:
    versions = {
        "mltr": __version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _changed(
    names: Mapping[str, list[str]],
    then: Mapping[str, list[int]],
    splits: Splits,
    now: Mapping[str, list[int]],
) -> list[str]:
    """Return the names of the images whose number differs between `then` and `now`."""
    if then == now:
        return []
    old = {name: value for key in then for name, value in zip(names[key], then[key], strict=True)}
    return [
        name
        for split in splits.parts
        for name, value in zip(names_in_json(split), now[split.name], strict=True)
        if old.get(name, value) != value
    ]


def _told(names: Sequence[str]) -> str:
    """Return the first few names, separated by commas."""
    return ", ".join(map(str, names[:TOLD])) + (", ..." if len(names) > TOLD else "")


def names_in_json(split: Split) -> list[str]:
    """Return the names of the images as they read back from a JSON file."""
    return [name.encode("utf-8", "replace").decode("utf-8") for name in split.names]


def draw_curves(folder: RunFolder) -> bytes:
    """Draw the loss and the validation score by epoch to curves.png; return its content."""
    from mltr.pictures.gallery import pyplot, write_figure

    rows = folder.read_log()
    judged_by, words = "val_map", "validation mAP, %"
    if any("val_top1" in row for row in rows):
        judged_by, words = "val_top1", "validation top-1 accuracy, %"
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot([r["epoch"] for r in rows], [r["train_loss"] for r in rows], color="#3b7dd8")
    left.set(xlabel="epoch", yscale="log")
    left.set_title("training loss per image", loc="left")
    for key, label, colour in (
        (judged_by, "weights", "#3b7dd8"),
        (f"{judged_by}_ema", "averaged weights", "#e07b39"),
    ):
        scored = [row for row in rows if row.get(key) is not None]
        if scored:
            values = [100 * row[key] for row in scored]
            right.plot([row["epoch"] for row in scored], values, color=colour, label=label)
            right.legend(frameon=False, loc="lower right")
    right.set(xlabel="epoch")
    right.set_title(words, loc="left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)  # there is no epoch 1.5
    path = folder.path / "curves.png"
    write_figure(path, figure)
    return path.read_bytes()
