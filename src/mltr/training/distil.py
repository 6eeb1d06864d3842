"""The objective for labels and a teacher: a trained network whose answers are learnt, too.

Soft targets as in arXiv 1503.02531, one for each label. The teacher is asked once about each photo,
so that its student trains as fast as without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mltr.data.loading import Batch, ImageDataset, Loader, SideOf, fingerprint, full_size, is_broken
from mltr.data.mapped import MappedRows
from mltr.data.records import Split
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.training.bound import BoundModule
from mltr.training.labels import Labels
from mltr.training.once import look_once
from mltr.training.run import photo_cache
from mltr.weights.bundle import Bundle, TorchNetwork, load_bundle
from mltr.weights.metadata import SOFTMAX
from mltr.weights.pretrained import blaming

log = logging.getLogger(__name__)

ANSWERS = 1  #: to be raised whenever the same teacher gives other answers than before
UNREAD = -1.0  #: the answer for a photo that can't be read


def load_teacher(source: str, classes: Sequence[str], is_single_label: bool) -> Bundle:
    """Return the bundle `source`; raise `MltrError` unless it suits a student of `classes`.

    It has to know them all, in any order, and to be trained for the same task.
    """
    bundle = load_bundle(source)
    if (bundle.calibration == SOFTMAX) != is_single_label:
        task = "one label an image" if bundle.calibration == SOFTMAX else "several labels"
        raise UsageError(f"it was trained for {task} (loss.name), and this network isn't")
    lacking = [name for name in classes if name not in bundle.classes]
    if lacking:
        raise MltrError(
            f"it doesn't know {', '.join(map(repr, lacking[:3]))}{', ...' * (len(lacking) > 3)}"
            f"{did_you_mean(lacking[0], bundle.classes)}; use a teacher trained on these labels"
        )
    return bundle


class Student(BoundModule):
    """A network, bound to its teacher, so that it can't go on with another."""

    whose, option = "the weights of train.teacher", "same teacher"

    def __init__(self, network: nn.Module, teacher: str) -> None:
        super().__init__()
        self.network: Any = network
        self.bound_to = teacher.encode()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K]."""
        logits: Tensor = self.network(images)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of what the network wants spared."""
        spared: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name in spared}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the network's activations in the backward pass."""
        self.network.set_grad_checkpointing(enable)


@dataclass(frozen=True)
class TaughtLoader:
    """Batches of a loader, with targets in which a teacher has a share."""

    loader: Loader
    answers: MappedRows  #: float16 [N, K], for each photo of the split
    weight: float  #: of the teacher in the target of a known label

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start_batch: int = 0, side: SideOf = full_size) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, from `start_batch` on."""
        for batch in self.loader.epoch(epoch, start_batch, side):
            said = torch.from_numpy(self.answers.open()[batch.indices.numpy()]).float()
            unread = batch.broken[:, None] | (said < 0)
            targets = blend(batch.targets, said, self.weight).masked_fill(unread, -1.0)
            yield replace(batch, targets=targets)

    def close(self) -> None:
        """End what draws the batches."""
        self.loader.close()


class Distilled(Labels):
    """Labels, and what a teacher says of each photo as a whole."""

    answers: MappedRows

    def build_network(self) -> nn.Module:
        """Return the recipe's network as a student of `train.teacher`, who answers now."""
        run, source = self.run, self.run.config.train.teacher
        network = super().build_network()
        with blaming(source, "train.teacher"):
            teacher = load_teacher(source, run.splits.train.classes, self.single_label)
        log.info("teacher: %s, %d px", source, teacher.preprocess.image_size)
        weights = TorchNetwork(teacher.model, torch.device("cpu")).fingerprint
        self.answers = self._ask(teacher, weights, run.splits.learnt)
        return Student(network, weights)

    def load_training(self) -> TaughtLoader:
        """Return the batches of an epoch with the teacher's share in their targets."""
        return TaughtLoader(
            super().load_training(), self.answers, self.run.config.train.teacher_weight
        )

    def _ask(self, teacher: Bundle, weights: str, split: Split) -> MappedRows:
        """Return the teacher's answers to a split's photos, computed now unless they are there."""
        run, data = self.run, self.run.config.data
        preprocess, order = teacher.preprocess, [teacher.classes.index(n) for n in split.classes]
        layout: Any = torch.channels_last  # for faster convolutions
        network = teacher.model.to(run.device).to(memory_format=layout)

        def fill(rows: NDArray[Any]) -> dict[int, str]:
            def note(images: Tensor, places: NDArray[np.int64]) -> None:
                with run.autocast():
                    logits = network(images.to(memory_format=layout))[:, order].float()
                probs = logits.softmax(1) if self.single_label else logits.sigmoid()
                rows[places] = probs.cpu().numpy()

            log.info("asking the teacher about %d photos once", len(split))
            photos = run.cache if preprocess.base_size else None
            dataset = ImageDataset(split, preprocess, cache=photos)
            errors = look_once(dataset, note, data.workers, run.device)
            rows[list(errors)] = UNREAD
            return errors

        about = (
            ANSWERS, timm.__version__, teacher.config["model"], weights, order,
            self.single_label, preprocess.to_dict(), run.precision,
        )  # fmt: skip
        answers = MappedRows(
            photo_cache(data), f"answers-{fingerprint(split, json.dumps(about))}.rows",
            (len(split), len(order)), np.dtype(np.float16), fill,
            is_broken=partial(is_broken, split), what="a teacher's answers",
            instead="train without train.teacher",
        )  # fmt: skip
        answers.open()  # before another file takes its room
        return answers

    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the network, which no longer needs its teacher."""
        super().write_bundle(whole.network, **about)


def blend(targets: Tensor, probs: Tensor, weight: float) -> Tensor:
    """Return targets [B, K] of which the teacher has a share; of what is unknown, all.

    Each of the losses is linear in its targets, so that it is the same mean of a loss against the
    labels and one against the teacher.

    >>> blend(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.6, 0.2, 0.9]]), 0.5)
    tensor([[0.8000, 0.1000, 0.9000]])
    """
    return torch.where(targets < 0, probs, torch.lerp(targets.to(probs), probs, weight))
