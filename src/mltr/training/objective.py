"""What a training is for: the part of it that differs from one goal to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor, nn

from mltr.data.loading import ImageDataset, Loader, make_loader
from mltr.training.learner import Learner
from mltr.training.run import Run

PICTURES = 12  #: validation images that are shown at the end


class Objective(ABC):
    """What is learnt from which batches, how it is judged, and what is left at the end.

    All processes call each method together, except for `write_bundle`, which is the main one's.
    """

    judged_by: str  #: the name of the figure, the higher the better, that chooses the epoch
    is_mean: bool  #: whether the loss is a mean over the cells that `losses` counts, not a sum

    def __init__(self, run: Run) -> None:
        self.run = run

    # -- what is learnt ------------------------------------------------------------------------

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Return the network to train; raise `MltrError` where recipe or images don't suit it."""

    def load_training(self) -> Loader:
        """Return the batches of an epoch of training, this process's share of each."""
        run, settings = self.run, self.run.config.train
        if settings.minutes and run.cache and run.processes.is_main:
            # A run by time has no room for shrinking the others once it is under way. They come
            # first, as the photos that are learnt from are the last to make room.
            for split in (run.splits.val, run.splits.test):
                ImageDataset(split, run.preprocess, cache=run.cache)
        dataset = ImageDataset(
            run.splits.learnt, run.preprocess, run.config.augment, settings.seed, run.cache
        )
        return make_loader(
            dataset,
            settings.batch_size,
            shuffle=True,
            drop_last=True,
            workers=run.config.data.workers,
            seed=settings.seed,
            device=run.device,
            rank=run.processes.rank,
            processes=run.processes.count,
            repeats=run.config.augment.repeats,
        )

    @abstractmethod
    def losses(
        self, forward: Any, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return for each image the sum of its losses [B] and over how many cells it is [B].

        `forward` is the network, wrapped; images [B, 3, H, W] and targets [B, K] are a share of a
        batch, and `rng` is the same in all processes.
        """

    # -- how it is judged ----------------------------------------------------------------------

    @abstractmethod
    def score(self, model: Any) -> float:
        """Return the figure `judged_by` of a network on the validation images."""

    @abstractmethod
    def score_words(self, row: dict[str, Any]) -> list[str]:
        """Return what the line of an epoch says of its validation, if it has one."""

    # -- what is left --------------------------------------------------------------------------

    @abstractmethod
    def draw(self, model: Any) -> None:
        """Show some validation images with what the network makes of them."""

    @abstractmethod
    def finish(self, learner: Learner, quiet: bool) -> dict[str, Any]:
        """Write the bundle and the figures of the best weights, which are loaded; return these."""

    @abstractmethod
    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the network into the run's folder, with what there is to say about it."""

    @abstractmethod
    def next_command(self) -> str:
        """Return what to type next."""
