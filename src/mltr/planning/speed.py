"""How fast this machine trains by a recipe: the real loop, for a few steps, on stand-in photos."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mltr.config.schema import Config
from mltr.data.loading import ImageDataset
from mltr.data.preprocess import Preprocess
from mltr.data.records import Record, Split, Splits
from mltr.files.cache import Cache
from mltr.network.model import default_image_size
from mltr.runs.folder import RunFolder
from mltr.training.trainer import Trainer

PHOTO_SIZE = (500, 375)  #: of a stand-in photo; VOC's and Flickr's usual one
PHOTOS = 32  #: different ones; they are repeated
STEPS = 12  #: at most, a quarter of them to warm up
LEAST_STEPS = 6
STEP_S = 4.0  #: where a step would take longer, its batch is made smaller
MEASURED_S = 24.0  #: about as long is measured, so that a slow network gets fewer steps
TRIAL_BATCH, TRIAL_STEPS = 4, 4


@dataclass(frozen=True)
class Speed:
    """What was measured; loading and, for training, the optimiser included."""

    train_images_per_s: float
    val_images_per_s: float


class _Probe(Trainer):
    """A trainer that notes when each step began, and leaves nothing in the user's cache."""

    begun: list[float]

    @property
    def cache(self) -> Cache | None:
        """A folder that goes with the run's."""
        return Cache(self.folder.path / "cache") if self.config.data.cache else None

    def _compute_loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.begun.append(time.perf_counter())
        return super()._compute_loss(images, targets)

    def train_seconds(self, warm: int) -> list[float]:
        """Return the time of each step, the first ones left out."""
        self.begun = []
        self._train_epoch(1)
        return [end - begun for begun, end in pairwise(self.begun)][warm:]

    def val_seconds(self) -> float:
        """Return the time of scoring the validation images, the first time not counted."""
        self._predict(self.splits.val, self.cache)
        began = time.perf_counter()
        self._predict(self.splits.val, self.cache)
        return time.perf_counter() - began


def measure_speed(config: Config, splits: Splits | int) -> Speed:
    """Return the speed of training by a recipe on this machine's GPU, or CPU if it has none.

    `splits` are the recipe's own images, or how many classes stand-ins shall have. Loading, every
    augmentation and validation run as in the recipe, with the batch size of one process.
    """
    config = deepcopy(config)
    config.model.init, config.train.min_size = "", 0
    wanted = config.train.batch_size

    def trial(probe: _Probe) -> float:
        return min(probe.train_seconds(warm=1))

    image_s = _run(config, splits, TRIAL_BATCH, TRIAL_STEPS, trial) / TRIAL_BATCH
    batch_size = min(wanted, max(int(STEP_S / image_s), TRIAL_BATCH))
    steps = min(max(int(MEASURED_S / (image_s * batch_size)), LEAST_STEPS), STEPS)

    def both(probe: _Probe) -> tuple[float, float]:
        return median(probe.train_seconds(warm=steps // 4)), probe.val_seconds()

    step_s, val_s = _run(config, splits, batch_size, steps, both)
    return Speed(batch_size / step_s, 2 * batch_size / val_s)


def _run(
    config: Config, splits: Splits | int, batch_size: int, steps: int, job: Callable[[_Probe], Any]
) -> Any:
    """Do a job with a trainer that has just so many batches, in a folder that goes again."""
    config.train.batch_size = batch_size
    train = _some(splits, "train", steps * batch_size)
    val = _some(splits, "val", 2 * batch_size)
    with tempfile.TemporaryDirectory(prefix="mltr-probe-") as folder:
        return job(_Probe(config, Splits(train, val, val), RunFolder(Path(folder))))


def _some(splits: Splits | int, name: str, count: int) -> Split:
    """Return so many records, real ones or stand-ins, repeated if need be."""
    split = stand_ins(splits) if isinstance(splits, int) else getattr(splits, name)
    return split.subset((number % min(len(split), count) for number in range(count)), name)


def stand_ins(classes: int) -> Split:
    """Return photos of the usual size, as JPEG files in memory, with labels at random."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(PHOTOS):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=90)
        labels = (generator.random(classes) < 0.1).astype(np.int8)
        records.append(Record(file.getvalue(), f"stand-in {number}", labels))
    return Split(tuple(f"class {number}" for number in range(classes)), records)


def measure_loading(config: Config) -> float:
    """Return how many images a second one core of this machine prepares for training."""
    side = config.model.image_size or default_image_size(config.model.name)
    preprocess = Preprocess.from_config(config.augment, side, config.data.base_size)
    dataset = ImageDataset(stand_ins(1), preprocess, config.augment)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        times = []
        for number in range(len(dataset)):
            began = time.perf_counter()
            dataset[0, number, 0]
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 1 / median(times[2:])
