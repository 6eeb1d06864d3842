"""Opens a run together with its images, and its scores of a split."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mltr.config.recipe import load_recipe
from mltr.config.schema import SPLITS, Config
from mltr.data.records import Split, Splits
from mltr.data.sources import open_splits
from mltr.errors import MltrError, counted
from mltr.evaluation.open_tagger import OpenTagger, open_tagger
from mltr.evaluation.predictions import Predictions, as_predicted, load_predictions, predict_split
from mltr.predict.predictor import as_predictor
from mltr.runs.folder import RunFolder, names_in_json, with_absolute_paths
from mltr.weights.bundle import Bundle, load_bundle, read_config
from mltr.weights.metadata import (
    CONFIG_FILE,
    PREDICTIONS_FILE,
    RECIPE_FILE,
    SOFTMAX,
    SPLITS_FILE,
    read_calibration,
)

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SOURCE_FIELDS = ("format", "root", "labels", "images", "scenes")  #: fields that identify a source
DIVIDING = ("data.split_seed", "data.val_fraction", "data.test_fraction")


NewOnes = Literal["", "left out", "train"]  #: what becomes of images that a run has not seen


@dataclass(frozen=True)
class OpenRun:
    """A finished run: its network, recipe and images."""

    path: Path
    bundle: Bundle
    config: Config
    splits: Splits

    def split(self, name: str) -> Split:
        """Return the split called `train`, `val` or `test`."""
        chosen: Split = getattr(self.splits, name)
        return chosen

    def score(self, name: str, views: tuple[str, ...] = ()) -> Predictions:
        """Score a split with the probabilities of `mltr predict`, or of its `--views`."""
        if not views:
            return self.predict(self.split(name))
        columns = tuple(range(len(self.bundle.classes)))
        same = OpenTagger(self.path, as_predictor(self.bundle), self.splits, columns)
        return same.score(name, views)

    def score_uncalibrated(self, name: str) -> Predictions:
        """Score a split with the plain sigmoid or softmax, as in saved predictions."""
        return self._predict(self.split(name))

    def predict(self, split: Split, device: str | torch.device = "cpu") -> Predictions:
        """Score any images with the probabilities of `mltr predict`."""
        return as_predicted(self._predict(split, device), self.bundle.calibration)

    def _predict(self, split: Split, device: str | torch.device = "cpu") -> Predictions:
        found = predict_split(
            self.bundle.model,
            split,
            self.bundle.preprocess,
            workers=self.config.data.workers,
            device=device,
            calibration=SOFTMAX if self.bundle.calibration == SOFTMAX else None,
        )
        return replace(found, hierarchy=self.bundle.config.get("hierarchy", {}))


def chooses_one_class(folder: str | Path) -> bool:
    """Whether a run was trained for one class per image; thresholds have no meaning then."""
    is_run = RunFolder(Path(folder)).recipe.is_file()
    return is_run and read_calibration(read_config(folder)) == SOFTMAX


def open_scored(
    folder: str | Path, overrides: Sequence[str] = (), all_images: bool = False
) -> OpenRun:
    """Open a run with its source, or another one by overrides such as ``--data.root DIR``.

    The run's own source has the validation and test images that it had then; with `all_images`,
    all that it has now, wherever they are. Raises `MltrError` if the folder isn't a finished run,
    the data has other classes, or images were trained on that shouldn't be.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MltrError(f"{path}: no such run folder")
    bundle = load_bundle(path)
    recipe = path / RECIPE_FILE
    if not recipe.is_file():
        raise MltrError(f"{path} has no config.yaml, so its data is unknown: use a run folder")
    config = load_recipe(recipe, overrides)
    new_ones: NewOnes = "train" if all_images else "left out"
    splits, is_own = open_divided(path, config, bundle.classes, overrides, new_ones)
    if not all_images:
        _check_held_out(path, splits, is_own)
    if splits.train.classes != bundle.classes:
        found = splits.train.classes
        raise MltrError(
            f"the model knows {len(bundle.classes)} classes ({', '.join(bundle.classes[:3])}, ...)"
            f" and the data has {len(found)} ({', '.join(found[:3])}, ...)"
        )
    return OpenRun(path, bundle, config, splits)


def open_divided(
    folder: Path,
    config: Config,
    classes: Sequence[str],
    overrides: Sequence[str],
    new_ones: NewOnes,
) -> tuple[Splits, bool]:
    """Return the splits of a source, and whether it is the run's own, which keeps its division.

    Options among the `overrides` that divide a source anew take precedence over it. `new_ones` is
    what becomes of the images of that source which the run hasn't seen.
    """
    splits = open_splits(config.data, known=classes)
    is_own = _is_same_source(load_recipe(folder / RECIPE_FILE), config)
    if not any(option.removeprefix("--").startswith(DIVIDING) for option in overrides):
        splits = as_trained(folder, splits, new_ones if is_own else "")
    return splits, is_own


def as_trained(folder: Path, splits: Splits, new_ones: NewOnes = "") -> Splits:
    """Return the images in the splits that the run has recorded, if they are the same images.

    A new version may split a source differently, and so may one image more; a run keeps its own
    test images. If other images may be there, `new_ones` says what becomes of those that came
    later, with a warning: they are left out, or put into the training split. Raises `MltrError` if
    the recorded splits can't be read.
    """
    then = _recorded(folder)
    now = {split.name: names_in_json(split) for split in splits}
    names = list(chain(*now.values()))
    before = list(chain(*(then.get(split.name, ()) for split in splits)))
    if now == then or len({*names}) < len(names) or len({*before}) < len(before):
        return splits
    if {*names} != {*before} and not (new_ones and {*names} & {*before}):
        return splits
    records = dict(zip(names, chain(*splits), strict=True))
    train, val, test = (
        Split(
            split.classes,
            [records[name] for name in then[split.name] if name in records],
            split.name,
            split.notes,
            split.understood,
        )
        for split in splits
    )
    known = {*before}
    if later := [name for name in names if name not in known]:
        what = "left out" if new_ones == "left out" else "in the training split"
        told = counted(len(later), "image")
        log.warning("%s that came after %s was trained: %s", told, folder, what)
        if new_ones == "train":
            train.records = [*train.records, *(records[name] for name in later)]
    return replace(splits, train=train, val=val, test=test)


def trained_on(source: str, *splits: Split) -> int:
    """Return how many images of splits, by their names, a run was trained on; 0 for no run."""
    trained = {*_recorded(Path(source)).get("train", ())} if source else set()
    return sum(name in trained for split in splits for name in names_in_json(split))


def is_judged(folder: Path, test: Split) -> bool:
    """Whether these are the test images of a run, by their names; so they may be without record."""
    recorded = _recorded(folder)
    return not recorded or recorded["test"] == names_in_json(test)


def warn_of_known(option: str, source: str, config: Config, splits: Splits) -> None:
    """Warn if a run that a training starts or learns from was trained on images held out here."""
    folder = Path(source)
    if not (source and (folder / RECIPE_FILE).is_file()):
        return
    if not _is_same_source(load_recipe(folder / RECIPE_FILE), config):  # names alone say little
        return
    if seen := trained_on(source, splits.val, splits.test):
        log.warning(
            "%s %s was trained on %s of the validation and test images here, whose figures will be "
            "too good: start from other weights, or give its splits in a table",
            option, source, counted(seen, "image"),
        )  # fmt: skip


def _recorded(folder: Path) -> dict[str, list[str]]:
    """Return the names of the images in each split of a run; nothing for runs without a record."""
    path = folder / SPLITS_FILE
    if not path.is_file():
        return {}
    try:
        lists = json.loads(path.read_text("utf-8"))
        return {name: list(lists.get(name, ())) for name in SPLITS}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise MltrError(f"{path} can't be read: {error}") from error


def _is_same_source(before: Config, now: Config) -> bool:
    own, other = (with_absolute_paths(config).data for config in (before, now))
    return all(getattr(own, field) == getattr(other, field) for field in SOURCE_FIELDS)


def _check_held_out(folder: Path, splits: Splits, is_own: bool) -> None:
    """Refuse to measure or fit on training images, if the source or its split has changed.

    With another source this is only a warning, since its images may have the same names, as those
    in folders of splits may have among themselves.
    """
    trained = {*_recorded(folder).get("train", ())}
    names = list(chain(*(names_in_json(split) for split in splits)))
    if len({*names}) < len(names):
        return
    for split in (splits.val, splits.test):
        seen = [name for name in names_in_json(split) if name in trained]
        if not seen:
            continue
        message = (
            f"{len(seen)} of {len(split)} {split.name} images have the names of training images of "
            f"{folder} ({', '.join(seen[:3])}), and figures on training images are biased"
        )
        if is_own:
            raise MltrError(f"{message}; restore the source and its splits, or give another source")
        log.warning("%s: make sure that they are different images", message)


def open_judged(folder: str | Path, overrides: Sequence[str] = ()) -> OpenRun | OpenTagger:
    """Open a run as `open_scored` does, or a bundle without a recipe as `open_tagger` does."""
    path = Path(folder)
    has_recipe = not path.is_dir() or (path / RECIPE_FILE).is_file()
    return open_scored(path, overrides) if has_recipe else open_tagger(path, overrides)


def thresholds_of(folder: str | Path, classes: Sequence[str]) -> tuple[float, ...] | None:
    """Return a bundle's thresholds of `classes` [K], or None; raises as `load_bundle` does."""
    if not (Path(folder) / CONFIG_FILE).is_file():
        return None
    config = read_config(folder)
    if config["thresholds"] is None:
        return None
    known = dict(zip(config["classes"], config["thresholds"], strict=True))
    return tuple(known[name] for name in classes)


def scores_of(
    folder: str | Path,
    split: str = "test",
    overrides: Sequence[str] = (),
    rerun: bool = False,
    views: tuple[str, ...] = (),
) -> Predictions:
    """Return a run's scores of a split: the probabilities of `mltr predict`.

    For the test images these are the saved ones, unless `overrides`, `rerun` or `views` are set.
    Raises `MltrError` as `open_judged` and `load_predictions` do.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MltrError(f"{path}: no such run folder")
    saved = path / PREDICTIONS_FILE
    if overrides or rerun or views or split != "test" or not saved.is_file():
        return open_judged(path, overrides).score(split, views)
    if not (path / CONFIG_FILE).is_file():  # predictions without a network
        return load_predictions(saved)
    return as_predicted(saved_scores(path), read_calibration(read_config(path)))


def saved_scores(folder: Path) -> Predictions:
    """Return a finished run's saved scores of the test images, by the network alone.

    Raises `MltrError` as `load_predictions` does.
    """
    found = load_predictions(folder / PREDICTIONS_FILE)
    return replace(found, hierarchy=read_config(folder).get("hierarchy", {}))
