"""The training loop and its state, on accelerate."""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from mltr.config import Config, ModelConfig
from mltr.convert import initialise
from mltr.data.loading import Batch, ImageDataset, make_loader
from mltr.data.preprocess import Preprocess
from mltr.data.records import Split, Splits
from mltr.data.transforms import mix_batch
from mltr.download import cache_folder
from mltr.errors import MltrError
from mltr.evaluate import print_report, report, save_curves
from mltr.files import write_atomically, write_json
from mltr.gallery import contact_sheet
from mltr.losses import build_loss
from mltr.metrics import evaluate
from mltr.model import create_model, default_image_size
from mltr.optim import AveragedModel, growing_sizes, lr_factor, make_optimizer, set_lr
from mltr.precision import AUTOCAST, choose_precision
from mltr.predictions import Predictions, make_tiles, predict_split, save_predictions
from mltr.runs import RunFolder, draw_curves
from mltr.weights import checkpoint_writer, save_bundle

log = logging.getLogger(__name__)

PICTURES = 12  #: validation images shown in TensorBoard


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0  #: the epoch under way, from 0
    batch: int = 0  #: batches of it that are done
    step: int = 0  #: optimiser steps in all
    loss_sum: float = 0.0  #: over the images of the epoch under way
    images_seen: int = 0  #: in the epoch under way
    seconds: float = 0.0  #: of training and validation, in all
    best_map: float = -1.0
    best_epoch: int = -1
    best_is_average: bool = False
    broken: dict[str, str] = field(default_factory=dict)  #: name of an image to what is wrong


class Trainer:
    """The loop and its state: the network, its averaged weights, the optimiser, `Progress`.

    What is learnt, how it is judged and what is left at the end can be replaced; `Pretrainer`
    does so.
    """

    command = "train"  #: by which a run is resumed

    def __init__(self, config: Config, splits: Splits, folder: RunFolder) -> None:
        settings = config.train
        self.config, self.splits, self.folder = config, splits, folder
        if settings.threads:
            torch.set_num_threads(settings.threads)
        set_seed(settings.seed)
        AcceleratorState._reset_state()  # else a process could train in one precision only
        self.precision = choose_precision(settings.precision, PartialState().device)
        self.accelerator = Accelerator(
            mixed_precision="no" if self.precision == "fp32" else self.precision,
            gradient_accumulation_steps=settings.accumulation,
        )
        self.image_size = config.model.image_size or default_image_size(config.model.name)
        self.model = self._build_model()
        self.preprocess = Preprocess.from_config(
            config.augment, self.image_size, config.data.base_size
        )
        self.model.to(self.accelerator.device)
        self.average = AveragedModel(self.model, settings.ema_decay) if settings.ema_decay else None
        self.loss = build_loss(config.loss).to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(
            self.model, make_optimizer(self.model, settings)
        )
        self.forward = torch.compile(self.model) if settings.compile else self.model
        dataset = ImageDataset(
            splits.train,
            self.preprocess,
            config.augment,
            settings.seed,
            sizes=growing_sizes(settings.min_size, self.image_size, settings.epochs),
            cache=self.cache,
        )
        self.loader = make_loader(
            dataset,
            settings.batch_size,
            shuffle=True,
            drop_last=True,
            workers=config.data.workers,
            seed=settings.seed,
            device=self.accelerator.device,
        )
        self.progress = Progress()
        self.rows = folder.read_log()
        self.interrupted = False

    def _build_model(self) -> nn.Module:
        return build_model(self.config.model, len(self.splits.train.classes), self.image_size)

    @property
    def cache(self) -> Path | None:
        """Folder of squashed images, where the recipe wants them kept."""
        return cache_folder() if self.config.data.cache else None

    @property
    def total_steps(self) -> int:
        """Optimiser steps that the schedule is laid out for."""
        steps_an_epoch = -(-len(self.loader) // self.config.train.accumulation)
        return self.config.train.epochs * steps_an_epoch

    # -- the loop ------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the last epoch, or until patience or Ctrl-C ends it."""
        settings = self.config.train
        last = min(settings.stop_epoch or settings.epochs, settings.epochs)
        self._announce(last)
        with self._catch_interrupt():
            while self.progress.epoch < last:
                waited = self.progress.epoch - 1 - self.progress.best_epoch
                if settings.patience and waited >= settings.patience:
                    log.info("no better validation map for %d epochs: stopped", waited)
                    break
                began = time.perf_counter()
                self._train_epoch(last)
                self._end_epoch(last, began)
                if self.interrupted:
                    self._stop()
        self._draw_pictures()

    def _train_epoch(self, last: int) -> None:
        """Go through the rest of the epoch under way."""
        progress = self.progress
        self.model.train()
        batches = self.loader.epoch(progress.epoch, progress.batch)
        for batch in _with_bar(batches, len(self.loader), progress, last):
            self._note_broken(batch.errors)
            with self._accumulate():
                self._step(batch.images, batch.targets, batch.indices)
            progress.batch += 1
            if self.interrupted and self.accelerator.sync_gradients:
                self._stop()

    @contextmanager
    def _accumulate(self) -> Iterator[None]:
        """Complete gradients at every so many batches and at the last one of an epoch.

        So no gradient is left over at an epoch's end, where a checkpoint wouldn't hold it.
        """
        done = self.progress.batch + 1
        complete = done % self.config.train.accumulation == 0 or done == len(self.loader)
        self.accelerator.sync_gradients = complete
        with nullcontext() if complete else self.accelerator.no_sync(self.model):
            yield

    def _step(self, images: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Forward, backward, and, where gradients are complete, an optimiser step."""
        settings, progress = self.config.train, self.progress
        loss, outputs = self._compute_loss(images, targets)
        value = float(loss.detach())
        if not math.isfinite(value):
            self._stop_at_bad_loss(value, outputs, indices)
        per_image = value / len(images) if self.config.loss.reduction == "sum" else value
        progress.loss_sum += per_image * len(images)
        progress.images_seen += len(images)
        share = settings.warmup_epochs / settings.epochs
        factor = lr_factor(progress.step / self.total_steps, share, settings.schedule)
        set_lr(self.optimizer, settings.lr * factor)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and settings.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            if self.average is not None:
                self.average.update(self._plain_model(), progress.step)
            progress.step += 1

    def _compute_loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and a row for each image that shows which is to blame."""
        images, targets = self._mix(images, targets)
        device = self.accelerator.device
        with self.accelerator.autocast():
            logits = self.forward(images.to(device))
        return self.loss(logits, targets.to(device)), logits

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, where the recipe wants it, by random numbers of this step alone."""
        augment = self.config.augment
        if not (augment.mixup or augment.cutmix):
            return images, targets
        return mix_batch(images, targets, augment.mixup, augment.cutmix, self._generator())

    def _generator(self) -> torch.Generator:
        """Return random numbers of this step alone, the same after a resume."""
        return torch.Generator().manual_seed(
            self.config.train.seed * 1_000_003 + self.progress.epoch * 10_007 + self.progress.batch
        )

    def _end_epoch(self, last: int, began: float) -> None:
        """Validate, keep the best weights, save, and tell."""
        progress, settings = self.progress, self.config.train
        seconds = time.perf_counter() - began
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / max(progress.images_seen, 1),
            "lr": self.optimizer.param_groups[-1]["lr"],
            "images_per_s": progress.images_seen / seconds,
        }
        number = progress.epoch + 1
        if number % settings.eval_every == 0 or number == last:
            row |= self._validate()
        progress.seconds += time.perf_counter() - began
        row["seconds"] = round(progress.seconds, 1)
        self.rows = [r for r in self.rows if r["epoch"] < number] + [row]
        progress.epoch, progress.batch = number, 0
        progress.loss_sum, progress.images_seen = 0.0, 0
        self.folder.write_log(self.rows)
        self.save()
        self._write_scalars(row)
        log.info("%s", self._line(row, last))

    def _validate(self) -> dict[str, float]:
        """Score the validation images; the better of raw and averaged weights may be the best."""
        model = self._plain_model()
        found = {"val_map": self._val_map()}
        self._keep_if_best(found["val_map"], is_average=False)
        if self.average is not None:
            raw = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(self.average.weights)
            found["val_map_ema"] = self._val_map()
            self._keep_if_best(found["val_map_ema"], is_average=True)
            model.load_state_dict(raw)
        return found

    def _val_map(self) -> float:
        predictions = self._predict(self.splits.val, self.cache)
        return evaluate(predictions.probs, predictions.targets)["map"]

    def _predict(self, split: Split, cache: Path | None) -> Predictions:
        return predict_split(
            self._plain_model(),
            split,
            self.preprocess,
            batch_size=self.config.train.batch_size,
            workers=0 if cache else self.config.data.workers,
            device=self.accelerator.device,
            autocast=AUTOCAST[self.precision],
            cache=cache,
        )

    def _plain_model(self) -> Any:
        """Return the network without accelerate's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    # -- what can go wrong ---------------------------------------------------------------------

    def _note_broken(self, errors: list[str]) -> None:
        """Count broken images by name; past the limit, stop."""
        for message in errors:
            name = message.split(": ")[0]
            if name not in self.progress.broken:
                self.progress.broken[name] = message
                log.warning("left out, broken: %s", message)
        broken, total = len(self.progress.broken), len(self.splits.train)
        if broken > self.config.data.max_broken * total:
            examples = "; ".join(list(self.progress.broken.values())[:3])
            raise MltrError(
                f"{broken} of {total} training images are broken, more than data.max_broken="
                f"{self.config.data.max_broken:g} allows: {examples}"
            )

    def _stop_at_bad_loss(self, value: float, outputs: Tensor, indices: Tensor) -> None:
        culprits = ~outputs.detach().isfinite().all(dim=1).cpu()
        chosen = indices[culprits] if culprits.any() else indices
        names = [self.splits.train[int(index)].name for index in chosen[:8]]
        raise MltrError(
            f"the loss is {value} at step {self.progress.step} (epoch {self.progress.epoch + 1}): "
            f"lower train.lr, or look at these images: {', '.join(names)}"
        )

    @contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """Let the first Ctrl-C finish the step and save; the second one ends at once."""
        own = os.getpid()

        def note(signum: int, frame: FrameType | None) -> None:
            if os.getpid() != own:  # a worker gets the terminal's signal too, and inherits this
                return
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            log.warning("interrupted: finishing this step, then saving")

        try:
            before = signal.signal(signal.SIGINT, note)
        except ValueError:  # not the main thread, which alone may do so
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self) -> None:
        self.save()
        log.warning(
            "saved at epoch %d; go on by: mltr %s %s --out %s --resume",
            self.progress.epoch + 1,
            self.command,
            self.folder.recipe,
            self.folder.path,
        )
        raise KeyboardInterrupt

    # -- saving and restoring ------------------------------------------------------------------

    def _keep_if_best(self, val_map: float, is_average: bool) -> None:
        progress = self.progress
        if not val_map <= progress.best_map:  # nan, without positives: the latest is kept
            progress.best_map, progress.best_epoch = val_map, progress.epoch
            progress.best_is_average = is_average
            weights = self._plain_model().state_dict()
            write_atomically(self.folder.best, checkpoint_writer(weights))

    def save(self) -> None:
        """Write the checkpoint; whatever fails, the previous one survives."""
        state = {
            "progress": asdict(self.progress),
            "model": self._plain_model().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights if self.average else None,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        write_atomically(self.folder.checkpoint, checkpoint_writer(state))

    def restore(self) -> None:
        """Take up where the checkpoint left off, in mid-epoch too."""
        state = load_tensors(self.folder.checkpoint)
        self._plain_model().load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.weights = {
                name: value.to(self.accelerator.device) for name, value in state["average"].items()
            }
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.progress = Progress(**state["progress"])
        self.rows = [row for row in self.rows if row["epoch"] <= self.progress.epoch]

    def finish(self, quiet: bool = False) -> dict[str, Any]:
        """Write the bundle of the best weights and score the test images, once."""
        model = self._plain_model()
        model.load_state_dict(load_tensors(self.folder.best))
        predictions = self._predict(self.splits.test, self.cache)
        full_report = report(predictions)
        figures = self._figures(full_report)
        save_bundle(
            self.folder.path, model=model, name=self.config.model.name,
            overrides=model_overrides(self.config.model, self.image_size),
            classes=self.splits.train.classes, preprocess=self.preprocess,
            extra={"data": self.config.data.format, "test": figures},
        )  # fmt: skip
        save_predictions(self.folder.predictions, predictions)
        write_json(self.folder.metrics, figures)
        draw_curves(self.folder)
        save_curves(self.folder.path, predictions)
        if not quiet:
            print_report(full_report, f"{self.folder.path}, test")
        log.info("run folder: %s", self.folder.path)
        return figures

    def _figures(self, full_report: dict[str, Any]) -> dict[str, Any]:
        """Return the test figures by name, and how they came about."""
        figures = {name: v for name, v in full_report.items() if name != "per_class"}
        progress = self.progress
        rates = sorted(row["images_per_s"] for row in self.rows)
        return figures | {
            "best_epoch": progress.best_epoch + 1,
            "best_val_map": progress.best_map,
            "averaged_weights": progress.best_is_average,
            "epochs": progress.epoch,
            "seed": self.config.train.seed,
            "train_seconds": round(progress.seconds, 1),
            "train_images_per_s": round(rates[len(rates) // 2], 1),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "images_in_splits": {split.name: len(split) for split in self.splits},
            "broken_training_images": list(self.progress.broken.values()),
        }

    # -- telling -------------------------------------------------------------------------------

    def _announce(self, last: int) -> None:
        sizes = ", ".join(f"{len(split)} {split.name}" for split in self.splits)
        log.info("images: %s; %d classes", sizes, len(self.splits.train.classes))
        train = self.splits.train
        positives = (train.targets == 1).any(axis=0)
        empty = [
            name for name, any_image in zip(train.classes, positives, strict=True) if not any_image
        ]
        if empty:
            log.warning("no training image has: %s", ", ".join(empty))
        for key, count in train.notes.items():
            if count:
                log.info("%s: %d", key.replace("_", " "), count)
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        log.info(
            "%s, %.2f M parameters, %d px, %d epochs, on %s; run folder: %s",
            self.config.model.name, parameters, self.image_size, last,
            self.accelerator.device, self.folder.path,
        )  # fmt: skip

    def _line(self, row: dict[str, Any], last: int) -> str:
        """Return one epoch in one line."""
        parts = training_words(row, last)
        if "val_map" in row:
            parts.append(f"val map {100 * row['val_map']:.2f}")
        if "val_map_ema" in row:
            parts.append(f"averaged {100 * row['val_map_ema']:.2f}")
        if self.progress.best_epoch >= 0:
            best = 100 * self.progress.best_map
            parts.append(f"best {best:.2f} at {self.progress.best_epoch + 1}")
        return "  ".join(parts)

    def _write_scalars(self, row: dict[str, Any]) -> None:
        with _tensorboard(self.folder) as writer:
            for name, value in row.items():
                if name != "epoch":
                    writer.add_scalar(name, value, row["epoch"])

    def _draw_pictures(self) -> None:
        """Show some validation images with what is said of them, in TensorBoard."""
        split = self.splits.val.subset(range(min(PICTURES, len(self.splits.val))), "val")
        tiles = make_tiles(split, self._predict(split, cache=None))  # too few to keep
        with _tensorboard(self.folder) as writer:
            sheet = np.asarray(contact_sheet(tiles, columns=4))
            writer.add_image("validation", sheet, self.progress.epoch, dataformats="HWC")


# -- what the loop is made from ----------------------------------------------------------------


def build_model(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """Return the network of a recipe, with the weights of `model.init` where they fit."""
    model = create_model(config.name, num_classes, **model_overrides(config, image_size))
    if config.init:
        report = initialise(model, config.init)
        log.info("model.init: %s", report)
    return model


def model_overrides(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """Return all that `create_model` needs to build the network of a recipe again."""
    overrides = config.overrides | {"image_size": image_size}
    if config.head != "average":
        overrides |= {"head": config.head, "head_options": config.head_options}
    return overrides if config.drop_path is None else overrides | {"drop_path": config.drop_path}


def load_tensors(path: Path) -> dict[str, Any]:
    """Load a file of tensors and plain values; nothing in it is run."""
    if not path.is_file():
        raise MltrError(f"{path} is missing")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise MltrError(f"{path} is damaged and can't be resumed from: {error}") from error
    return content


def _with_bar(
    batches: Iterator[Batch], total: int, progress: Progress, last: int
) -> Iterable[Batch]:
    """Show a bar on a terminal; elsewhere the line of each epoch says enough."""
    console = Console(stderr=True)
    return track(
        batches,
        f"epoch {progress.epoch + 1}/{last}",
        total=total - progress.batch,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def training_words(row: dict[str, Any], last: int) -> list[str]:
    """Return what is told of every epoch, whatever is learnt."""
    return [
        f"epoch {row['epoch']:>3}/{last}",
        f"loss {row['train_loss']:.4f}",
        f"lr {row['lr']:.1e}",
        f"{row['images_per_s']:.0f} img/s",
        f"{row['seconds']:.0f} s",
    ]


@contextmanager
def _tensorboard(folder: RunFolder) -> Iterator[SummaryWriter]:
    with SummaryWriter(str(folder.tensorboard)) as writer:
        yield writer
