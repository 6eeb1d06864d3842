"""Training of a head alone, on features of a frozen backbone that are computed once."""

from __future__ import annotations

import logging
import time
from typing import Any

from torch import Tensor, nn

from mltr.config.schema import AugmentConfig
from mltr.data.loading import EpochBatches
from mltr.data.records import Split
from mltr.errors import counted
from mltr.evaluation.predictions import Predictions, score_batches
from mltr.files.cache import Cache, cache_folder
from mltr.machine.precision import AUTOCAST
from mltr.training.build import model_overrides
from mltr.training.features import FeatureHead, FeatureLoader, FeatureStore
from mltr.training.trainer import Trainer
from mltr.weights.metadata import SOFTMAX

log = logging.getLogger(__name__)

#: What a recipe says where photos aren't varied.
UNVARIED = AugmentConfig(flip=False, randaugment_ops=0, cutout=0.0)
VARIATIONS = (
    "crop", "flip", "jitter", "randaugment_ops", "cutout", "erasing", "repeats", "mixup", "cutmix",
)  # fmt: skip


class ProbeTrainer(Trainer):
    """The loop of training for `train.freeze: backbone`; what it leaves is the whole network."""

    whole: nn.Module

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.whole

    def _build_model(self) -> nn.Module:
        self.whole = super()._build_model()
        if not self.config.model.init:
            log.warning("the frozen backbone has random weights: model.init is empty")
        return FeatureHead(self.whole, self.config.model.name)

    def _open_loader(self) -> FeatureLoader:
        config, settings, began = self.config, self.config.train, time.perf_counter()
        self._tell_what_is_unused()
        overrides = model_overrides(config.model, self.image_size)
        built = {key: overrides[key] for key in sorted(overrides) if not key.startswith("head")}
        store = FeatureStore(
            self.whole, f"{config.model.name} {built}", self._plain_model(), self.preprocess,
            config.augment.min_scale, self.precision, self.device,
            Cache(cache_folder() / "photos", round(config.data.cache_gb * 1e9)), self.cache,
            config.data.workers,
        )  # fmt: skip
        self.features = {
            split.name: store.open(split, settings.views if split is self.splits.train else 1)
            for split in self.splits
        }
        self.feature_seconds = time.perf_counter() - began
        return self._load(self.splits.train, shuffle=True)

    def _tell_what_is_unused(self) -> None:
        augment, settings = self.config.augment, self.config.train
        unused = [
            f"augment.{key}"
            for key in VARIATIONS
            if getattr(augment, key) != getattr(UNVARIED, key)
        ] + ["train.min_size"] * bool(settings.min_size)
        if unused:
            log.info(
                "each photo is seen in %s (train.views); without effect: %s",
                counted(settings.views, "view"), ", ".join(unused),
            )  # fmt: skip

    def _load(self, split: Split, shuffle: bool = False) -> FeatureLoader:
        settings, processes = self.config.train, self.processes
        batches = EpochBatches(
            split, settings.batch_size, shuffle, shuffle, settings.seed, processes.rank,
            processes.count,
        )  # fmt: skip
        return FeatureLoader(split, self.features[split.name], batches, self.device)

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return images, targets

    def _predict(self, split: Split, cache: Cache | None) -> Predictions:
        return score_batches(
            self._plain_model(), split, self._load(split), device=self.device,
            autocast=AUTOCAST[self.precision], processes=self.processes,
            calibration=SOFTMAX if self.single_label else None,
        )  # fmt: skip

    def load_best(self) -> Any:
        """Load the best weights; return the whole network."""
        super().load_best()
        return self.whole

    def _figures(self, full_report: dict[str, Any]) -> dict[str, Any]:
        return super()._figures(full_report) | {
            "feature_seconds": round(self.feature_seconds, 1),
        }
