"""How fast this machine trains by a recipe: the real loop, for a few steps, on stand-in photos."""

from __future__ import annotations

import io
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
from mltr.data.loading import ImageDataset
from mltr.data.preprocess import Preprocess
from mltr.data.records import Record, Split, Splits
from mltr.network.model import default_image_size
from mltr.runs.folder import RunFolder
from mltr.training.labels import Labels
from mltr.training.run import prepare_run
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


def measure_speed(config: Config, splits: Splits | int) -> Speed:
    """Return the speed of training by a recipe on this machine's GPU, or CPU if it has none.

    `splits` are the recipe's own images, or how many classes stand-ins shall have. Loading, every
    augmentation and validation run as in the recipe, with the batch size of one process.
    """
    config = deepcopy(config)
    config.model.init, config.train.min_size = "", 0
    wanted = config.train.batch_size

    with _trainer(config, splits, TRIAL_BATCH, TRIAL_STEPS) as (trainer, _):
        image_s = min(_train_seconds(trainer)[1:]) / TRIAL_BATCH
    batch_size = min(wanted, max(int(STEP_S / image_s), TRIAL_BATCH))
    steps = min(max(int(MEASURED_S / (image_s * batch_size)), LEAST_STEPS), STEPS)
    with _trainer(config, splits, batch_size, steps) as (trainer, labels):
        step_s = median(_train_seconds(trainer)[steps // 4 :])
        _val_seconds(trainer, labels)  # to warm up
        return Speed(batch_size / step_s, 2 * batch_size / _val_seconds(trainer, labels))


@contextmanager
def _trainer(
    config: Config, splits: Splits | int, batch_size: int, steps: int
) -> Iterator[tuple[Trainer, Labels]]:
    """Give a trainer of just so many batches; its folder goes again, cache and all."""
    config.train.batch_size = batch_size
    train = _some(splits, "train", steps * batch_size)
    val = _some(splits, "val", 2 * batch_size)
    with tempfile.TemporaryDirectory(prefix="mltr-probe-") as name:
        folder = Path(name)
        run = prepare_run(
            config, Splits(train, val, val), RunFolder(folder), squashed=folder / "cache"
        )
        labels = Labels(run)
        yield Trainer(run, labels), labels


def _train_seconds(trainer: Trainer) -> list[float]:
    """Return the time of each batch of an epoch, of its loading too; the first is left out."""
    done = []
    for _ in trainer.train_epoch(1):
        if trainer.run.device.type == "cuda":
            torch.cuda.synchronize()
        done.append(time.perf_counter())
    return [end - begun for begun, end in pairwise(done)]


def _val_seconds(trainer: Trainer, labels: Labels) -> float:
    """Return the time of scoring the validation images."""
    began = time.perf_counter()
    labels.predict(trainer.learner.plain, trainer.run.splits.val)
    return time.perf_counter() - began


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
