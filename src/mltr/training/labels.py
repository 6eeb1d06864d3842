"""The objective of `mltr train`: the labels of images, several each or one."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from mltr.data.records import Split
from mltr.data.transforms import mix_batch
from mltr.errors import NotFinite
from mltr.evaluation.curves import save_curves
from mltr.evaluation.figures import print_report, report, without_files
from mltr.evaluation.predictions import (
    Predictions,
    as_predicted,
    make_tiles,
    predict_split,
    save_predictions,
)
from mltr.files.writing import write_json
from mltr.losses import build_loss
from mltr.machine.precision import AUTOCAST
from mltr.metrics import evaluate, top_accuracy
from mltr.pictures.gallery import contact_sheet
from mltr.runs.folder import draw_curves
from mltr.training.build import build_model, model_overrides
from mltr.training.freeze import freeze
from mltr.training.learner import Learner
from mltr.training.objective import PICTURES, Objective
from mltr.training.progress import score_words
from mltr.training.run import Run
from mltr.weights.bundle import save_bundle
from mltr.weights.metadata import SOFTMAX

log = logging.getLogger(__name__)

MANY_PHOTOS = 50_000  #: for training, that a network may do without other weights to start from
#: docs/weights.md has the commands of these figures.
FROM_SCRATCH = (
    "from scratch (model.init is empty): that takes hours. In minutes a small network gets to a "
    "map of 90 on 2000 photos with 5 labels (MIML) and of 32 on COCO with 18. Where pretrained "
    "weights can be had, `mltr train probe PHOTOS` reaches 96 and 57 in a minute or two; else, "
    "--model.init start begins with the weights that come with mltr_nano"
)


class Labels(Objective):
    """Labels of images, judged by mean average precision, or by accuracy where each has one."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        loss = run.config.loss
        self.single_label = loss.name == "ce"  #: one class is to be chosen for each image
        self.calibration = SOFTMAX if self.single_label else None
        self.judged_by = "val_top1" if self.single_label else "val_map"
        self.is_mean = loss.reduction == "mean"
        self.loss = build_loss(loss).to(run.device)

    def build_network(self) -> nn.Module:
        """Return the recipe's network with an output a class."""
        run, train = self.run, self.run.splits.train
        if self.single_label:
            run.splits.check_single_label()
        settings = run.config.model
        is_small = run.config.data.format != "scenes" and len(train) < MANY_PHOTOS
        helped = settings.init or run.config.train.teacher or run.config.train.freeze != "none"
        if is_small and not helped:
            log.info(FROM_SCRATCH)
        network = build_model(
            settings, len(train.classes), run.preprocess.image_size, train.classes
        )
        freeze(network, run.config.train.freeze, settings.name)
        return network

    def losses(
        self, forward: Any, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the recipe's loss; its cells are the known labels."""
        run = self.run
        images, targets = self.mix(images, targets, rng)
        with run.autocast():
            logits = forward(images.to(run.device))
        return self.loss.per_image(logits, targets.to(run.device), run.progress.epoch)

    def mix(
        self, images: Tensor, targets: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, where the recipe wants it."""
        augment = self.run.config.augment
        is_early = self.run.progress.epoch < augment.mix_from
        if is_early or not (augment.mixup or augment.cutmix):
            return images, targets
        return mix_batch(images, targets, augment.mixup, augment.cutmix, rng)

    def score(self, model: Any) -> float:
        """Return mean average precision, or accuracy; a network that says nan ends the run."""
        try:
            predictions = self._judged(self.predict(model, self.run.splits.val))
        except NotFinite:
            self.run.processes.fail(
                "the network says nan of validation images after epoch "
                f"{self.run.progress.epoch + 1}: lower train.lr"
            )
        if self.single_label:
            return top_accuracy(predictions.probs, predictions.targets)
        return evaluate(predictions.probs, predictions.targets)["map"]

    def predict(self, model: Any, split: Split, cached: bool = True) -> Predictions:
        """Score the images of a split, shared by all processes; `cached` may keep them squashed."""
        run, cache = self.run, self.run.cache if cached else None
        return predict_split(
            model,
            split,
            run.preprocess,
            batch_size=run.config.train.batch_size,
            workers=0 if cache else run.config.data.workers,
            device=run.device,
            autocast=AUTOCAST[run.precision],
            cache=cache,
            processes=run.processes,
            calibration=self.calibration,
        )

    def _judged(self, predictions: Predictions) -> Predictions:
        """Return what `mltr predict` makes of the network's probabilities."""
        return as_predicted(replace(predictions, hierarchy=self.run.splits.hierarchy))

    def score_words(self, row: dict[str, Any]) -> list[str]:
        """Return the scores and the best one so far, in percent."""
        return score_words(row, self.judged_by, self.run.progress)

    def draw(self, model: Any) -> None:
        """Show the images with their labels and what is said of them, in the tracker."""
        run = self.run
        split = run.splits.val.subset(range(min(PICTURES, len(run.splits.val))), "val")
        predictions = self._judged(self.predict(model, split, cached=False))  # too few to keep
        if not run.processes.is_main:
            return
        with run.spared():
            sheet = np.asarray(contact_sheet(make_tiles(split, predictions), columns=4))
            run.tracking.show(sheet, run.progress.epoch)

    def finish(self, learner: Learner, quiet: bool) -> dict[str, Any]:
        """Score the test images, once; their figures are what is returned."""
        run = self.run
        predictions = self.predict(learner.plain, run.splits.test)
        judged = self._judged(predictions)
        full_report = report(judged)
        figures = self._figures(full_report, learner.parameters)
        if not run.processes.is_main:
            return figures
        self.write_bundle(learner.whole, test=without_files(figures))
        save_predictions(run.folder.predictions, predictions)
        write_json(run.folder.metrics, figures)
        draw_curves(run.folder)
        save_curves(run.folder.path, judged)
        if not quiet:
            print_report(full_report, f"{run.folder.path}, test")
        return figures

    def _figures(self, full_report: dict[str, Any], parameters: int) -> dict[str, Any]:
        """Return the test figures by name, and how they came about."""
        figures = {name: v for name, v in full_report.items() if name != "per_class"}
        run, progress = self.run, self.run.progress
        rates = sorted(row["images_per_s"] for row in run.rows)
        return figures | {
            "best_epoch": progress.best_epoch + 1,
            f"best_{self.judged_by}": progress.best_map,
            "averaged_weights": progress.best_is_average,
            "epochs": progress.epoch,
            "seed": run.config.train.seed,
            "train_seconds": round(progress.seconds, 1),
            "train_images_per_s": round(rates[len(rates) // 2], 1),
            "parameters": parameters,
            "images_in_splits": {split.name: len(split) for split in run.splits.parts},
            "skipped_steps": progress.skipped_steps,
            "broken_training_images": list(progress.broken.values()),
        }

    def write_bundle(self, whole: Any, **about: Any) -> None:
        """Write the network with its classes and how its images are prepared."""
        run = self.run
        save_bundle(
            run.folder.path,
            model=whole,
            name=run.config.model.name,
            overrides=model_overrides(run.config.model, run.preprocess.image_size),
            classes=run.splits.train.classes,
            preprocess=run.preprocess,
            calibration=self.calibration,
            hierarchy=run.splits.hierarchy,
            extra={"data": run.config.data.format} | about,
        )

    def next_command(self) -> str:
        """Return the command that evaluates the run."""
        return f"mltr evaluate {shlex.quote(str(self.run.folder.path))}"
