"""Scores and labels of a split: computed once, stored in a file, read by every measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mltr.data.hierarchy import ancestors, implied
from mltr.data.images import open_image
from mltr.data.loading import ImageDataset, Loader, make_loader
from mltr.data.preprocess import Preprocess
from mltr.data.records import Split
from mltr.errors import BrokenImage, MltrError, NotFinite
from mltr.files.cache import Cache
from mltr.files.writing import write_atomically
from mltr.machine.processes import Processes
from mltr.pictures.gallery import Tile
from mltr.weights.metadata import SOFTMAX, Calibration, check_finite, to_probs


@dataclass(frozen=True)
class Predictions:
    """The probabilities of a network for N images, and their true labels."""

    probs: NDArray[np.float32]  #: [N, K], those of the network alone unless from `as_predicted`
    targets: NDArray[np.int8]  #: [N, K]: 1, 0, or -1 for unknown and for broken images
    images: tuple[str, ...]  #: N names
    classes: tuple[str, ...]  #: K names
    errors: tuple[str, ...] = ()  #: one message per broken image
    hierarchy: Mapping[str, str] = field(default_factory=dict)  #: the parent of each child, by name

    def limits(self, thresholds: ArrayLike) -> NDArray[np.float32]:
        """Return what each probability must reach to be predicted, as `mltr predict` does.

        That is the threshold [K] of its class; with a hierarchy, [N, K], 0 where another label that
        reaches its own implies this one.
        """
        own = np.asarray(thresholds, np.float32)
        above = ancestors(self.classes, self.hierarchy)
        return np.where(implied(self.probs >= own, above), np.float32(0), own) if above else own

    def subset(self, rows: Sequence[int]) -> Predictions:
        """Return the predictions of some images, in the order of `rows`, without errors."""
        rows = list(rows)
        images = tuple(self.images[row] for row in rows)
        probs, targets = self.probs[rows], self.targets[rows]
        return Predictions(probs, targets, images, self.classes, hierarchy=self.hierarchy)


def predict_split(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    autocast: torch.dtype | None = None,
    cache: Cache | None = None,
    calibration: Calibration | None = None,
    processes: Processes | None = None,
) -> Predictions:
    """Score every image of a split once, in order; the model is left in eval mode.

    `autocast` is the dtype of autocast, or None; `cache` is as for `ImageDataset`; `calibration`
    turns logits into probabilities. With several `processes`, each scores its share in batches of
    `batch_size`, and all get all scores. Raises `MltrError` if the network outputs NaN.
    """
    processes = processes or Processes()
    loader = make_loader(
        ImageDataset(split, preprocess, cache=cache), batch_size, workers=workers, device=device,
        rank=processes.rank, processes=processes.count,
    )  # fmt: skip
    return score_batches(
        model, split, loader, device=torch.device(device), autocast=autocast,
        calibration=calibration, processes=processes,
    )  # fmt: skip


@torch.inference_mode()
def score_batches(
    model: nn.Module,
    split: Split,
    loader: Loader,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    calibration: Calibration | None,
    processes: Processes,
) -> Predictions:
    """Score the batches of a loader over a split, as `predict_split` does."""
    model.eval()
    probs = np.zeros((len(split), len(split.classes)), np.float32)
    targets = np.full(probs.shape, -1, np.int8)
    seen = np.zeros((len(split), 1), np.float32)
    errors: list[str] = []
    for batch in loader.epoch(0):
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits = model(batch.images)
        rows = batch.indices.numpy()
        try:
            probs[rows] = to_probs(logits.float().cpu().numpy(), calibration)
        except NotFinite:
            if processes.count == 1:
                raise
            probs[rows] = np.nan  # told when all processes know
        targets[rows] = batch.targets.numpy()
        seen[rows] = 1
        errors += batch.errors
    names = tuple(record.name for record in split)
    own = Predictions(probs, targets, names, split.classes, tuple(errors))
    if processes.count == 1:
        return own
    found = _gathered(own, seen, processes)
    check_finite(found.probs)  # in all processes, if one of them has found nan
    return found


def _gathered(own: Predictions, seen: NDArray[np.float32], processes: Processes) -> Predictions:
    """Combine the scores of all processes; an image that several of them scored counts once."""
    times = processes.add_up(torch.from_numpy(seen.copy()))
    probs = processes.add_up(torch.from_numpy(own.probs * seen)) / times
    targets = processes.add_up(torch.from_numpy(own.targets * seen)) / times
    errors = dict.fromkeys(processes.gather_lists(list(own.errors)))
    return replace(
        own, probs=probs.numpy(), targets=targets.to(torch.int8).numpy(), errors=tuple(errors)
    )


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write an .npz file with the arrays probs, targets, images, classes, errors; no pickles."""
    arrays: dict[str, Any] = {"probs": predictions.probs, "targets": predictions.targets}
    for name in ("images", "classes", "errors"):
        arrays[name] = np.array(getattr(predictions, name), dtype=np.str_)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomically(path, write)


def load_predictions(path: Path) -> Predictions:
    """Read a file of `save_predictions`; raises `MltrError` if it is missing or damaged."""
    if not path.is_file():
        raise MltrError(f"{path}: no saved predictions; only a finished run has them")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, classes, errors = (
                tuple(map(str, arrays[key])) for key in ("images", "classes", "errors")
            )
            found = Predictions(arrays["probs"], arrays["targets"], images, classes, errors)
            shape = len(found.images), len(found.classes)
            if not found.probs.shape == found.targets.shape == shape:
                raise ValueError(f"arrays of {found.probs.shape} and {found.targets.shape}")
            return found
    except Exception as error:  # damaged files raise many kinds of errors
        raise MltrError(f"{path} is damaged ({error}); recreate it with --rerun") from error


def logits_of(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the finite logits whose sigmoid is `probs`.

    Logits above 16.6 become 16.6, as their sigmoid rounds to 1 in float32.
    """
    numbers = np.finfo(np.float32)
    clipped = np.clip(probs, numbers.tiny, np.nextafter(np.float32(1), np.float32(0)))
    return torch.from_numpy(clipped).logit().numpy()


def as_predicted(predictions: Predictions, calibration: Calibration | None = None) -> Predictions:
    """Return the probabilities of `mltr predict`, from those of the network alone.

    They are calibrated, and none is less than that of a label that implies its own.
    """
    probs = predictions.probs
    if calibration not in (None, SOFTMAX):  # saved predictions already are softmax probabilities
        probs = to_probs(logits_of(probs), calibration)
    above = ancestors(predictions.classes, predictions.hierarchy)
    return replace(predictions, probs=implied(probs, above))


def make_tiles(split: Split, predictions: Predictions, limits: Any = 0.5) -> list[Tile]:
    """Return gallery tiles of a split's readable pictures, with predicted and true labels.

    `limits` are thresholds: one, one for each class [K], or for each answer [N, K].
    """
    tiles = []
    predicted = predictions.probs >= limits
    for row, (record, probs, targets) in enumerate(
        zip(split, predictions.probs, predictions.targets, strict=True)
    ):
        try:
            image = open_image(record.image)
        except BrokenImage:
            continue
        order = np.argsort(-probs)
        said = [(split.classes[k], float(probs[k])) for k in order if predicted[row, k]]
        truth = [split.classes[k] for k in np.flatnonzero(targets == 1)]
        tiles.append(Tile(image, said, truth, record.name))
    return tiles
