"""Measures the training speed of a recipe on this machine: the real loop, for a few steps."""

from __future__ import annotations

import io
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from mltr.config.schema import Config
from mltr.data.loading import ImageDataset, Key
from mltr.data.preprocess import Preprocess
from mltr.data.records import Record, Split, Splits
from mltr.machine.threads import on_one_thread
from mltr.network.model import default_image_size
from mltr.runs.folder import RunFolder
from mltr.training.labels import Labels
from mltr.training.run import prepare_run
from mltr.training.trainer import Trainer

log = logging.getLogger(__name__)

PHOTO_SIZE = (500, 375)  #: width and height of a stand-in photo, the usual size in VOC
PHOTOS = 32  #: number of distinct stand-in photos, which are repeated
STEPS = 12  #: maximum number of steps; the first quarter is warm-up
LEAST_STEPS = 6  #: minimum number of steps
STEP_S = 4.0  #: maximum duration of a step in seconds; longer ones get a smaller batch
MEASURED_S = 24.0  #: target duration in seconds; a slow network gets fewer steps
TRIAL_BATCH, TRIAL_STEPS = 4, 4  #: batch size and steps of the trial that sets these


@dataclass(frozen=True)
class Speed:
    """Measured speeds, including loading and, for training, the optimiser."""

    train_images_per_s: float
    val_images_per_s: float


def measure_speed(config: Config, splits: Splits | int) -> Speed:
    """Measure the training speed of a recipe on this machine's GPU, or CPU if it has none.

    `splits` holds the recipe's images, or is the number of classes for stand-in photos. Loading,
    augmentation and validation run as in the recipe, with the batch size of one process.
    """
    log.info("measuring the speed of this machine")
    config = deepcopy(config)
    config.model.init, config.train.min_size, config.train.minutes = "", 0, 0
    wanted = config.train.batch_size

    with _quiet(), _trainer(config, splits, TRIAL_BATCH, TRIAL_STEPS) as (trainer, _):
        image_s = min(_train_seconds(trainer)[1:]) / TRIAL_BATCH
    batch_size = min(wanted, max(int(STEP_S / image_s), TRIAL_BATCH))
    steps = min(max(int(MEASURED_S / (image_s * batch_size)), LEAST_STEPS), STEPS)
    with _quiet(), _trainer(config, splits, batch_size, steps) as (trainer, labels):
        step_s = median(_train_seconds(trainer)[steps // 4 :])
        _val_seconds(trainer, labels)  # warm-up
        return Speed(batch_size / step_s, 2 * batch_size / _val_seconds(trainer, labels))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a training says of itself from a user who hasn't started one."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _trainer(
    config: Config, splits: Splits | int, batch_size: int, steps: int
) -> Iterator[tuple[Trainer, Labels]]:
    """Yield a trainer with epochs of `steps` batches; its files are temporary."""
    config.train.batch_size = batch_size
    single = config.loss.name == "ce"
    train = _some(splits, "train", steps * batch_size, single)
    val = _some(splits, "val", 2 * batch_size, single)
    with tempfile.TemporaryDirectory(prefix="mltr-probe-") as name:
        folder = Path(name)
        run = prepare_run(
            config, Splits(train, val, val), RunFolder(folder), squashed=folder / "cache"
        )
        labels = Labels(run)
        trainer = Trainer(run, labels)
        try:
            yield trainer, labels
        finally:
            trainer.loader.close()


def _train_seconds(trainer: Trainer) -> list[float]:
    """Return the seconds of each batch of an epoch but the first, including its loading."""
    done = []
    for _ in trainer.train_epoch():
        if trainer.run.device.type == "cuda":
            torch.cuda.synchronize()
        done.append(time.perf_counter())
    return [end - begun for begun, end in pairwise(done)]


def _val_seconds(trainer: Trainer, labels: Labels) -> float:
    """Return the seconds of scoring the validation images."""
    began = time.perf_counter()
    labels.predict(trainer.learner.plain, trainer.run.splits.val)
    return time.perf_counter() - began


def _some(splits: Splits | int, name: str, count: int, single: bool) -> Split:
    """Return `count` records, real or stand-ins, repeated if necessary."""
    split = stand_ins(splits, single) if isinstance(splits, int) else getattr(splits, name)
    return split.subset((number % min(len(split), count) for number in range(count)), name)


def stand_ins(classes: int, single: bool = False) -> Split:
    """Return stand-in photos: JPEG files in memory, with random labels, or a `single` one each."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(PHOTOS):
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(small).resize(PHOTO_SIZE, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=90)
        labels = (generator.random(classes) < 0.1).astype(np.int8)
        if single:
            labels = (np.arange(classes) == number % classes).astype(np.int8)
        records.append(Record(file.getvalue(), f"stand-in {number}", labels))
    return Split(tuple(f"class {number}" for number in range(classes)), records)


def measure_loading(config: Config) -> float:
    """Return the images/s that one core of this machine prepares for training."""
    side = config.model.image_size or default_image_size(config.model.name)
    preprocess = Preprocess.from_config(config.augment, side, config.data.base_size)
    dataset = ImageDataset(stand_ins(1), preprocess, config.augment)
    times = []
    with on_one_thread():  # as in a worker
        for number in range(len(dataset)):
            began = time.perf_counter()
            dataset[Key(0, number)]
            times.append(time.perf_counter() - began)
    return 1 / median(times[2:])
