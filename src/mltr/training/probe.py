"""The objective for a head alone, on features of a frozen backbone that are computed once."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
from torch import Tensor, nn

from mltr.config.schema import AugmentConfig
from mltr.data.loading import EpochBatches
from mltr.data.records import Split
from mltr.errors import counted
from mltr.evaluation.predictions import Predictions, score_batches
from mltr.machine.precision import AUTOCAST
from mltr.training.build import model_overrides
from mltr.training.features import FeatureHead, FeatureLoader, FeatureStore
from mltr.training.labels import Labels
from mltr.training.run import photo_cache

log = logging.getLogger(__name__)

#: What a recipe says where photos aren't varied.
UNVARIED = AugmentConfig(flip=False, randaugment_ops=0, cutout=0.0)
VARIATIONS = (
    "crop", "flip", "jitter", "randaugment_ops", "cutout", "erasing", "repeats", "mixup", "cutmix",
)  # fmt: skip


class FrozenLabels(Labels):
    """Labels, learnt by the head for `train.freeze backbone`; what is left is the whole network."""

    whole: nn.Module
    head: FeatureHead

    def build_network(self) -> nn.Module:
        """Return the head of the recipe's network, to be trained on features."""
        self.whole, model = super().build_network(), self.run.config.model
        if not model.init:
            log.warning("the frozen backbone has random weights: model.init is empty")
        self.head = FeatureHead(self.whole, model.name)
        return self.head

    def load_training(self) -> FeatureLoader:
        """Compute the features of all splits unless they are cached; return the batches."""
        run, settings, began = self.run, self.run.config.train, time.perf_counter()
        self._tell_what_is_unused()
        model = run.config.model
        overrides = model_overrides(model, run.preprocess.image_size)
        built = {key: overrides[key] for key in sorted(overrides) if not key.startswith("head")}
        store = FeatureStore(
            self.whole,
            f"{model.name} {built}",
            self.head,
            run.preprocess,
            run.config.augment.min_scale,
            run.precision,
            run.device,
            photo_cache(run.config.data),
            run.cache,
            run.config.data.workers,
        )
        self.features = {
            split.name: store.open(split, settings.views if split is run.splits.train else 1)
            for split in run.splits
        }
        self.feature_seconds = time.perf_counter() - began
        return self._load(run.splits.train, shuffle=True)

    def _tell_what_is_unused(self) -> None:
        augment, settings = self.run.config.augment, self.run.config.train
        unused = [
            f"augment.{key}"
            for key in VARIATIONS
            if getattr(augment, key) != getattr(UNVARIED, key)
        ] + ["train.min_size"] * bool(settings.min_size)
        if unused:
            log.info(
                "each photo is used in %s (train.views); without effect: %s",
                counted(settings.views, "view"),
                ", ".join(unused),
            )

    def _load(self, split: Split, shuffle: bool = False) -> FeatureLoader:
        settings, processes = self.run.config.train, self.run.processes
        batches = EpochBatches(
            split,
            settings.batch_size,
            shuffle,
            shuffle,
            settings.seed,
            processes.rank,
            processes.count,
        )
        return FeatureLoader(split, self.features[split.name], batches, self.run.device)

    def mix(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Leave features as they are."""
        return images, targets

    def predict(self, model: Any, split: Split, cached: bool = True) -> Predictions:
        """Score the features of a split, or of its beginning."""
        run = self.run
        return score_batches(
            model,
            split,
            self._load(split),
            device=run.device,
            autocast=AUTOCAST[run.precision],
            processes=run.processes,
            calibration=self.calibration,
        )

    def _figures(self, full_report: dict[str, Any], parameters: int) -> dict[str, Any]:
        parameters = sum(p.numel() for p in self.whole.parameters())
        return super()._figures(full_report, parameters) | {
            "feature_seconds": round(self.feature_seconds, 1),
        }

    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the whole network, with the head that was trained."""
        super().write_bundle(self.whole, **about)
