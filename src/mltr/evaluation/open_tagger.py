"""Opens a bundle without a recipe, such as another project's tagger, with labelled images.

It is evaluated on the labels that both have in common.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mltr.config.recipe import override
from mltr.config.schema import Config
from mltr.data.records import Split, Splits
from mltr.data.sources import open_splits
from mltr.errors import BrokenImage, UsageError, counted
from mltr.evaluation.predictions import Predictions
from mltr.predict.predictor import Predictor, load, predict_paths
from mltr.weights.metadata import SOFTMAX

log = logging.getLogger(__name__)

TOLD = 5  #: maximum number of labels in a message


@dataclass(frozen=True)
class OpenTagger:
    """A network, and images with labels that it has in common with the source.

    The network wasn't trained on any of the images, so training images serve for calibration, too.
    """

    path: Path
    predictor: Predictor
    splits: Splits  #: splits with the common labels, under the network's names
    columns: tuple[int, ...]  #: indices of the common labels among the network's

    def split(self, name: str) -> Split:
        """Return the split called `val` or `test`; `train` is empty."""
        chosen: Split = getattr(self.splits, name)
        return chosen

    def score(self, name: str, views: tuple[str, ...] = ()) -> Predictions:
        """Score a split with the network, with the probabilities of `mltr predict`."""
        return self._score(self.split(name), replace(self.predictor, views=views))

    def score_uncalibrated(self, name: str) -> Predictions:
        """Score a split with the plain sigmoid or softmax of the logits."""
        is_softmax = self.predictor.calibration == SOFTMAX
        plain = replace(self.predictor, calibration=SOFTMAX if is_softmax else None, hierarchy={})
        return self._score(self.split(name), plain)

    def _score(self, split: Split, predictor: Predictor) -> Predictions:
        if not len(split):
            raise UsageError(
                f"{self.path} is no run, so it has no {split.name} images here: use another --split"
            )
        probs = np.zeros((len(split), len(self.columns)), np.float32)
        targets = np.full(probs.shape, -1, np.int8)
        errors = []
        records = list(split)
        places = predict_paths(
            predictor,
            range(len(records)),
            read=lambda n: predictor.look(records[n].image),
        )
        for number, found in places:
            if isinstance(found, BrokenImage):
                errors.append(str(found))
            elif found is not None:
                probs[number] = found.probs[list(self.columns)]
                targets[number] = records[number].labels
        names = tuple(record.name for record in records)
        own = self.predictor.hierarchy
        return Predictions(probs, targets, names, split.classes, tuple(errors), own)


def open_tagger(folder: str | Path, overrides: Sequence[str]) -> OpenTagger:
    """Open a bundle with the images given by overrides such as ``--data.root DIR``.

    Labels are matched by name, ignoring case and treating underscores as spaces. Raises `MltrError`
    as `load` and `open_splits` do, and `UsageError` if they have no label in common.
    """
    config = override(Config(), overrides)
    if not config.data.root:
        raise UsageError(f"{folder} doesn't say where its images are: give --data.root PHOTOS")
    predictor = load(folder)
    splits = open_splits(config.data)
    wanted = splits.train.classes
    places = _places(wanted, predictor.classes)
    if not places:
        raise UsageError(
            f"{folder} knows none of the labels of {config.data.root}: it has "
            f"{_some(predictor.classes)}, and the photos have {_some(wanted)}"
        )
    missing = [name for own, name in enumerate(wanted) if own not in places]
    if missing:
        log.warning("left out, as %s doesn't know them: %s", folder, _some(missing))
    classes = tuple(predictor.classes[place] for place in places.values())
    held = [*splits.train, *splits.val]
    val, test = (
        Split(classes, [replace(each, labels=each.labels[list(places)]) for each in records], name)
        for name, records in (("val", held), ("test", list(splits.test)))
    )
    log.info("%s in common", counted(len(classes), "label"))
    parts = Splits(Split(classes, [], "train"), val, test)
    return OpenTagger(Path(folder), predictor, parts, tuple(places.values()))


def _places(wanted: Sequence[str], known: Sequence[str]) -> dict[int, int]:
    """Return the index of each common label among the known ones, by its index in the source."""
    similar = {_plain(name): place for place, name in reversed(list(enumerate(known)))}
    exact = {name: place for place, name in enumerate(known)}
    found: dict[int, int] = {}
    for own, name in enumerate(wanted):
        place = exact.get(name, similar.get(_plain(name)))
        if place is not None and place not in found.values():
            found[own] = place
    return found


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:TOLD]) + (
        f" and {len(names) - TOLD:,} more" if len(names) > TOLD else ""
    )
