"""The objective for labels and a teacher: a trained network whose predictions are learnt, too.

Soft targets as in arXiv 1503.02531, one for each label, with features as a hint (arXiv 1412.6550).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mltr.data.preprocess import Preprocess
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.network.features import features_and_logits
from mltr.training.bound import BoundModule
from mltr.training.labels import Labels
from mltr.weights.bundle import TorchNetwork, load_bundle
from mltr.weights.metadata import SOFTMAX
from mltr.weights.pretrained import blaming

log = logging.getLogger(__name__)


class Teacher:
    """A bundle that tells what it makes of a student's images, whatever its own size of them.

    `classes` are the student's: the teacher has to know them all, in any order. `preprocess` is
    what the student's images went through. Raises `MltrError` for a teacher that doesn't suit.
    """

    def __init__(
        self,
        source: str,
        classes: Sequence[str],
        preprocess: Preprocess,
        is_single_label: bool,
        device: torch.device,
    ) -> None:
        bundle = load_bundle(source, device)
        if (bundle.calibration == SOFTMAX) != is_single_label:
            task = "one label an image" if bundle.calibration == SOFTMAX else "several labels"
            raise UsageError(f"it was trained for {task} (loss.name), and this network isn't")
        lacking = [name for name in classes if name not in bundle.classes]
        if lacking:
            raise MltrError(
                f"it doesn't know {', '.join(map(repr, lacking[:3]))}{', ...' * (len(lacking) > 3)}"
                f"{did_you_mean(lacking[0], bundle.classes)}; use a teacher trained on these labels"
            )
        layout: Any = torch.channels_last  # for faster convolutions
        self.network: Any = bundle.model.to(memory_format=layout)
        self.fingerprint = TorchNetwork(bundle.model, device).fingerprint
        self.order = [bundle.classes.index(name) for name in classes]
        self.is_single_label, self.side = is_single_label, bundle.preprocess.image_size
        self.interpolation = bundle.preprocess.interpolation
        self._scale, self._shift = (
            torch.tensor(values, device=device)[:, None, None]
            for values in _renormalize(preprocess, bundle.preprocess)
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities float32 [B, K] and pooled features [B, D] of images [B, 3, S, S]."""
        images = images * self._scale + self._shift
        if images.shape[2] != self.side:
            images = F.interpolate(
                images, (self.side, self.side), mode=self.interpolation, antialias=True
            )
        features, logits = features_and_logits(self.network, images)
        logits = logits[:, self.order].float()
        return logits.softmax(1) if self.is_single_label else logits.sigmoid(), features


def _renormalize(old: Preprocess, new: Preprocess) -> tuple[list[float], list[float]]:
    """Return by what to multiply each channel, and what to add, to normalise it in another way."""
    channels = list(zip(old.mean, old.std, new.mean, new.std, strict=True))
    scale = [std / new_std for _, std, _, new_std in channels]
    return scale, [(mean - new_mean) / new_std for mean, _, new_mean, new_std in channels]


class Student(BoundModule):
    """A network, and where it is to learn a teacher's features, a layer that guesses them.

    It is bound to the teacher, so that it can't go on with another.
    """

    whose, option = "the weights of train.teacher", "same teacher"

    def __init__(self, network: nn.Module, teacher: str, projection: nn.Linear | None) -> None:
        super().__init__()
        self.network: Any = network
        self.projection = projection
        self.bound_to = teacher.encode()

    def forward(self, images: Tensor) -> Any:
        """Return logits [B, K]; in training the guessed features [B, D] or None beside them."""
        if not self.training or self.projection is None:
            logits = self.network(images)
            return (logits, None) if self.training else logits
        features, logits = features_and_logits(self.network, images)
        return logits, self.projection(features)

    def no_weight_decay(self) -> set[str]:
        """Names of what the network wants spared."""
        spared: set[str] = getattr(self.network, "no_weight_decay", set)()
        return {f"network.{name}" for name in spared}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the network's activations in the backward pass."""
        self.network.set_grad_checkpointing(enable)


class Distilled(Labels):
    """Labels, and what a teacher says of the same images, mixed and augmented alike."""

    teacher: Teacher

    def build_network(self) -> nn.Module:
        """Return the recipe's network as a student of `train.teacher`."""
        run, settings = self.run, self.run.config.train
        network = super().build_network()
        with blaming(settings.teacher, "train.teacher"):
            if Path(settings.teacher).resolve() == run.folder.path.resolve():
                raise UsageError("this is the run itself; choose another --out")
            classes = run.splits.train.classes
            self.teacher = Teacher(
                settings.teacher, classes, run.preprocess, self.single_label, run.device
            )
            projection = self._make_projection(network) if settings.teacher_features else None
        log.info("teacher: %s, %d px", settings.teacher, self.teacher.side)
        return Student(network, self.teacher.fingerprint, projection)

    @torch.no_grad()
    def _make_projection(self, network: nn.Module) -> nn.Linear:
        """Return a layer from the network's features to the teacher's."""
        side, was_training = self.run.preprocess.image_size, network.training
        image = torch.zeros(1, 3, side, side)
        own, _ = features_and_logits(network.eval(), image)
        network.train(was_training)
        _, wanted = self.teacher(image.to(self.run.device))
        return nn.Linear(own.shape[1], wanted.shape[1])

    def losses(
        self, forward: Any, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the recipe's loss against labels and teacher together, and the features'."""
        run, settings = self.run, self.run.config.train
        images, targets = self.mix(images.to(run.device), targets, rng)
        with run.autocast():
            logits, features = forward(images)
            probs, wanted = self.teacher(images)
        readable = images.flatten(1).any(dim=1)  # a broken image is black
        blended = blend(targets.to(run.device), probs, settings.teacher_weight)
        blended = blended.where(readable[:, None], -1.0)
        losses, cells = self.loss.per_image(logits, blended, run.progress.epoch)
        if features is not None:
            apart = 1 - F.cosine_similarity(features.float(), wanted.float())
            share = cells if self.is_mean else readable  # of a mean, each image counts its cells
            losses = losses + settings.teacher_features * apart * share
        return losses, cells

    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the network without what it needs to learn from a teacher."""
        super().write_bundle(whole.network, **about)


def blend(targets: Tensor, probs: Tensor, weight: float) -> Tensor:
    """Return targets [B, K] of which the teacher has a share; of what is unknown, all.

    Each of the losses is linear in its targets, so that it is the same mean of a loss against the
    labels and one against the teacher.

    >>> blend(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.6, 0.2, 0.9]]), 0.5)
    tensor([[0.8000, 0.1000, 0.9000]])
    """
    return torch.where(targets < 0, probs, torch.lerp(targets.to(probs), probs, weight))
