"""The training loop and its state, in one process or in many."""

from __future__ import annotations

import copy
import logging
import math
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mltr.config.schema import Config
from mltr.data.loading import Batch, ImageDataset, Loader, make_loader
from mltr.data.records import Split, Splits
from mltr.data.transforms import mix_batch
from mltr.errors import MltrError, UsageError, counted
from mltr.evaluation.evaluate import print_report, report, save_curves
from mltr.evaluation.predictions import Predictions, make_tiles, predict_split, save_predictions
from mltr.files.cache import Cache, cache_folder
from mltr.files.writing import write_json
from mltr.gallery import contact_sheet
from mltr.losses import build_loss
from mltr.machine.memory import keep_freed_memory
from mltr.machine.precision import AUTOCAST, autocast, choose_precision
from mltr.machine.processes import join_processes
from mltr.machine.sharding import load_optimizer, placed_like, shard
from mltr.metrics import evaluate, top_accuracy
from mltr.runs.checkpoints import States, random_states, set_random_states
from mltr.runs.folder import RunFolder, draw_curves
from mltr.training.build import build_model, model_overrides, settle
from mltr.training.freeze import freeze, set_training
from mltr.training.guards import (
    BLAMED,
    EXIT_PREEMPTED,
    SETTLED,
    blame,
    noted_signals,
    told_workers,
    usual_after,
    what_is_bad,
)  # fmt: skip
from mltr.training.optim import (
    AveragedModel,
    growing_sizes,
    lr_factor,
    make_optimizer,
    scale_and_clip,
    set_lr,
)
from mltr.training.progress import (
    Progress,
    score_words,
    tell_images,
    tensorboard,
    training_words,
    with_bar,
    write_scalars,
)  # fmt: skip
from mltr.weights.bundle import save_bundle
from mltr.weights.metadata import SOFTMAX

log = logging.getLogger(__name__)

PICTURES = 12  #: validation images shown in TensorBoard


class Trainer:
    """The loop and its state: the network, its averaged weights, the optimiser, `Progress`.

    Several processes take the same steps as one does, each on its share of every batch. What is
    learnt, how it is judged and what is left at the end can be replaced; `Pretrainer` does so.
    """

    command = "train"  #: by which a run is resumed
    lower_is_better = False

    def __init__(self, config: Config, splits: Splits, folder: RunFolder) -> None:
        settings = config.train
        config, self.preprocess = settle(config)
        self.config, self.splits, self.folder = config, splits, folder
        self.single_label = config.loss.name == "ce"  #: one class is to be chosen for each image
        if settings.threads:
            torch.set_num_threads(settings.threads)
        set_seed(settings.seed)
        self.processes = join_processes(settings.timeout_s)
        self.device = self.processes.device
        self.precision = choose_precision(settings.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        if self.device.type == "cpu":
            keep_freed_memory()
        self._check_sizes()
        self.states = States(folder.checkpoints, self.processes)
        self.image_size = self.preprocess.image_size
        self._prepare_network(self._build_model())
        if self.processes.rank:  # dropout of its own, once all have built the same network
            set_seed(settings.seed + self.processes.rank)
        self.loss = build_loss(config.loss).to(self.device)
        self.loader = self._open_loader()
        self.progress = Progress()
        self.rows = folder.read_log()
        self.interrupted: int = 0  #: the signal that asks this process to stop
        self.asked_to_stop: int = 0  #: the one that all processes have agreed on
        self.save_is_due = self.is_finishing = self.is_spoiled = self.is_complete = False
        self.cells: list[float] = []  #: what each batch counts of the optimiser step under way
        self.saved_at, self.saved_name = time.monotonic(), ""
        self.clock = time.perf_counter()
        self.processes.wait()  # all have looked into the folder: now it may change

    def _check_sizes(self) -> None:
        """Raise `UsageError` where some process would have nothing to do."""
        smallest = min(self.config.train.batch_size, len(self.splits.train))
        if smallest < self.processes.count:
            raise UsageError(
                f"{counted(smallest, 'image')} a batch can't be shared by {self.processes.count} "
                "processes: raise train.batch_size, which counts them all"
            )

    @property
    def judged_by(self) -> str:
        """The name of the figure that chooses the epoch."""
        return "val_top1" if self.single_label else "val_map"

    def _build_model(self) -> nn.Module:
        if self.single_label:
            self.splits.check_single_label()
        network, config = self.config.model, self.config.train
        model = build_model(network, len(self.splits.train.classes), self.image_size)
        freeze(model, config.freeze, network.name)
        return model

    def _open_loader(self) -> Loader:
        """Return the batches to learn from."""
        config, settings = self.config, self.config.train
        sizes = growing_sizes(settings.min_size, self.image_size, settings.epochs)
        dataset = ImageDataset(
            self.splits.train, self.preprocess, config.augment, settings.seed, sizes, self.cache
        )
        return make_loader(
            dataset, settings.batch_size, shuffle=True, drop_last=True,
            workers=config.data.workers, seed=settings.seed, device=self.device,
            rank=self.processes.rank, processes=self.processes.count,
            repeats=config.augment.repeats,
        )  # fmt: skip

    @property
    def network(self) -> nn.Module:
        """The whole network, also where only a part of it learns."""
        network: nn.Module = self.model
        return network

    def _prepare_network(self, model: Any) -> None:
        """Put the network on its device, in whole or divided, with its optimiser and average."""
        settings, device = self.config.train, self.device
        self.is_sharded = settings.sharding == "fsdp" and self.processes.count > 1
        if self.processes.count > 1 and device.type == "cuda":  # torch has none for CPUs
            model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        # Without its memory: what the divided weights are put together in at the end.
        self.frame = copy.deepcopy(model).to("meta") if self.is_sharded else model
        if settings.grad_checkpointing:
            model.set_grad_checkpointing()
        model.to(device)
        if self.is_sharded:
            shard(model, self.processes.count, device)
        self.average = AveragedModel(model, settings.ema_decay) if settings.ema_decay else None
        self.optimizer = make_optimizer(model, settings)
        if self.processes.count > 1 and not self.is_sharded:
            model = DistributedDataParallel(model, [device] if device.type == "cuda" else None)
        self.model = model
        self.forward = torch.compile(self.model) if settings.compile else self.model

    @property
    def cache(self) -> Cache | None:
        """Where squashed images are kept, if the recipe wants that."""
        data = self.config.data
        return Cache(cache_folder() / "photos", round(data.cache_gb * 1e9)) if data.cache else None

    @property
    def is_mean(self) -> bool:
        """Whether the loss is a mean over what it counts, not a sum."""
        return self.config.loss.reduction == "mean"

    @property
    def total_steps(self) -> int:
        """Optimiser steps that the schedule is laid out for."""
        steps_an_epoch = -(-len(self.loader) // self.config.train.accumulation)
        return self.config.train.epochs * steps_an_epoch

    # -- the loop ------------------------------------------------------------------------------

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Note Ctrl-C and SIGTERM, and say in a line what processes and workers died of."""
        with noted_signals(self._note_signal), told_workers(), self.processes.watched():
            yield

    def fit(self) -> None:
        """Train until the last epoch, or until patience or a signal ends it."""
        settings = self.config.train
        last = min(settings.stop_epoch or settings.epochs, settings.epochs)
        self._announce(last)
        self.clock = time.perf_counter()
        while self.progress.epoch < last:
            waited = self.progress.epoch - 1 - self.progress.best_epoch
            if settings.patience and waited >= settings.patience:
                log.info("no better validation map for %s: stopped", counted(waited, "epoch"))
                break
            self._train_epoch(last)
            self._end_epoch(last)
            self.asked_to_stop = int(self.processes.gather([self.interrupted]).max())
            if self.asked_to_stop:
                self._stop()
        self._draw_pictures()

    def _train_epoch(self, last: int) -> None:
        """Go through the rest of the epoch under way."""
        progress = self.progress
        set_training(self.model)
        batches = self.loader.epoch(progress.epoch, progress.batch)
        shown = self.processes.is_main
        for batch in with_bar(batches, len(self.loader), progress, last, shown):
            with self._accumulate():
                self._step(batch)
            progress.batch += 1
            if self.is_complete and self.asked_to_stop:
                self._stop()
            if self.is_complete and self.save_is_due:
                self.save()

    @contextmanager
    def _accumulate(self) -> Iterator[None]:
        """Complete gradients at every so many batches and at the last one of an epoch.

        So no gradient is left over at an epoch's end, where a checkpoint wouldn't hold it.
        """
        done = self.progress.batch + 1
        self.is_complete = done % self.config.train.accumulation == 0 or done == len(self.loader)
        waits = isinstance(self.model, DistributedDataParallel) and not self.is_complete
        with self.model.no_sync() if waits else nullcontext():
            yield

    def _step(self, batch: Batch) -> None:
        """Forward, backward, and, where gradients are complete, an optimiser step."""
        losses, cells = self._compute_loss(batch.images, batch.targets)
        loss, reason = self._agree(losses, cells, batch)
        if reason:
            self._leave_out(reason, losses, batch.indices)
        if not self.is_spoiled:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.is_complete:
            self._update(losses, batch.indices)

    def _agree(self, losses: Tensor, cells: Tensor, batch: Batch) -> tuple[Tensor, str]:
        """Return the loss to go back from, and what is wrong with that of all processes.

        Their gradients are averaged afterwards; what is returned makes that the gradient of the
        whole batch, whatever the shares. A mean is taken over what the first batch of a step
        counts; `_update` turns it into that over what all of them count. In passing the processes
        tell each other what else concerns all.
        """
        progress, settings = self.progress, self.config.train
        due = time.monotonic() - self.saved_at >= 60 * settings.save_minutes
        total, count = torch.stack([losses.detach().sum(), cells.sum()]).tolist()
        numbers = [total, count, len(losses), self.interrupted, due, len(batch.errors)]
        table = self.processes.gather(numbers)
        total, count, images, _, _, errors = table.sum(dim=0).tolist()
        self.asked_to_stop = int(table[:, 3].max())
        self.save_is_due = bool(table[0, 4])
        if errors:
            self._note_broken(self.processes.gather_lists(batch.errors))
        divisor = max(count, 1) if self.is_mean else 1
        per_image = total / divisor if self.is_mean else total / images
        settled = progress.step >= SETTLED
        reason = what_is_bad(per_image, progress.usual_loss, settled * settings.spike_factor)
        if not reason:
            progress.usual_loss = usual_after(per_image, progress.usual_loss)
            progress.loss_sum += per_image * images
            progress.images_seen += int(images)
        self.cells.append(count)
        first = max(self.cells[0], 1) if self.is_mean else 1
        return losses.sum() * (self.processes.count / first), reason

    def _update(self, losses: Tensor, indices: Tensor) -> None:
        """Make an optimiser step, unless something about it is bad."""
        settings, progress = self.config.train, self.progress
        done = progress.step / self.total_steps
        factor = lr_factor(done, settings.warmup, settings.schedule)
        set_lr(self.optimizer, settings.lr * factor)
        if not self.is_spoiled:
            self.scaler.unscale_(self.optimizer)
            share = max(self.cells[0], 1) / max(sum(self.cells), 1) if self.is_mean else 1.0
            norm = scale_and_clip(self.model.parameters(), share, settings.clip_grad)
            # In fp16 the gradient overflows now and then; the scaler leaves these steps out.
            if not math.isfinite(norm) and not self.scaler.is_enabled():
                self._leave_out(f"the gradient is {norm}", losses, indices)
        if not self.is_spoiled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            progress.bad_steps = 0
            if self.average is not None:
                self.average.update(self._plain_model(), progress.step)
        self.optimizer.zero_grad()
        progress.step += 1
        self.is_spoiled, self.cells = False, []

    def _compute_loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each image the sum of its losses [B] and over how many cells it is [B]."""
        images, targets = self._mix(images, targets)
        with autocast(self.precision, self.device):
            logits = self.forward(images.to(self.device))
        return self.loss.per_image(logits, targets.to(self.device))

    def _mix(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix, where the recipe wants it, by random numbers of this step alone."""
        augment = self.config.augment
        if not (augment.mixup or augment.cutmix):
            return images, targets
        return mix_batch(images, targets, augment.mixup, augment.cutmix, self._generator())

    def _generator(self) -> np.random.Generator:
        """Return random numbers of this batch alone, the same after a resume."""
        place = (self.config.train.seed, self.progress.epoch, self.progress.batch)
        return np.random.default_rng((*place, 0, 1))  # apart from those of single images

    def _end_epoch(self, last: int) -> None:
        """Validate, keep the best weights, save, and tell."""
        progress, settings = self.progress, self.config.train
        self._count_seconds()
        number = progress.epoch + 1
        row: dict[str, Any] = {
            "epoch": number,
            "train_loss": progress.loss_sum / max(progress.images_seen, 1),
            "lr": self.optimizer.param_groups[-1]["lr"],
            "images_per_s": progress.images_seen / progress.epoch_seconds,
        }
        if number % settings.eval_every == 0 or number == last:
            row |= self._validate()
        progress.epoch, progress.batch = number, 0
        progress.loss_sum, progress.images_seen, progress.epoch_seconds = 0.0, 0, 0.0
        self._count_seconds()
        row["seconds"] = round(progress.seconds, 1)
        self.rows = [r for r in self.rows if r["epoch"] < number] + [row]
        if self.processes.is_main:
            with self._spared():
                self.folder.write_log(self.rows)
                write_scalars(self.folder.tensorboard, row)
        self.save()
        log.info("%s", self._line(row, last))

    def _count_seconds(self) -> None:
        """Add the time since the last call to that of the run, and of the epoch under way."""
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        if self.progress.batch:
            self.progress.epoch_seconds += now - self.clock
        self.clock = now

    # -- judging -------------------------------------------------------------------------------

    def _validate(self) -> dict[str, float]:
        """Score the validation images; the better of raw and averaged weights may be the best."""
        model = self._plain_model()
        candidates = [model.state_dict()]
        if self.average is not None:
            candidates.append(self.average.weights)
        # Each process has its own running statistics; the main one's are those that are saved.
        buffers = [name for name, _ in model.named_buffers() if name in candidates[0]]
        self.processes.copy_from_main(weights[name] for weights in candidates for name in buffers)
        scores = [self._score()]
        if self.average is not None:
            raw = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(self.average.weights)
            scores.append(self._score())
            model.load_state_dict(raw)
        self._keep_if_best([-s if self.lower_is_better else s for s in scores], candidates)
        return dict(zip((self.judged_by, f"{self.judged_by}_ema"), scores, strict=False))

    def _score(self) -> float:
        """Return how good the weights are on the validation images."""
        predictions = self._predict(self.splits.val, self.cache)
        if not np.isfinite(predictions.probs).all():
            self.processes.fail(
                f"the network says nan of validation images after epoch {self.progress.epoch + 1}: "
                "lower train.lr"
            )
        if self.single_label:
            return top_accuracy(predictions.probs, predictions.targets)
        return evaluate(predictions.probs, predictions.targets)["map"]

    def _keep_if_best(self, scores: list[float], candidates: list[dict[str, Tensor]]) -> None:
        before, progress = replace(self.progress), self.progress
        for index, score in enumerate(scores):
            if not score <= progress.best_map:  # nan, without positives: the latest is kept
                progress.best_map, progress.best_epoch = score, progress.epoch
                progress.best_is_average = index == 1
        if progress.best_epoch != progress.epoch:
            return
        try:
            weights = candidates[progress.best_is_average]
            self.states.write(progress.best_name, {"weights": weights})
        except MltrError as error:
            vars(progress).update(vars(before))
            self._note_failed_write(error)

    def _predict(self, split: Split, cache: Cache | None) -> Predictions:
        return predict_split(
            self._plain_model(), split, self.preprocess, batch_size=self.config.train.batch_size,
            workers=0 if cache else self.config.data.workers, device=self.device,
            autocast=AUTOCAST[self.precision], cache=cache, processes=self.processes,
            calibration=SOFTMAX if self.single_label else None,
        )  # fmt: skip

    def _plain_model(self) -> Any:
        """Return the network without the wrapping of several processes."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model

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
            self.processes.fail(
                f"{broken} of {counted(total, 'training image')} can't be read, more than "
                f"data.max_broken={self.config.data.max_broken:g} allows: {examples}"
            )

    def _leave_out(self, reason: str, losses: Tensor, indices: Tensor) -> None:
        """Let the step under way change nothing; after too many of them in a row, stop."""
        progress, limit = self.progress, self.config.train.max_bad_steps
        own = [self.splits.train[int(index)].name for index in blame(losses, indices)]
        names = ", ".join(self.processes.gather_lists(own)[:BLAMED])
        if not self.is_spoiled:
            progress.bad_steps += 1
            progress.skipped_steps += 1
        self.is_spoiled = True
        where = f"{reason} at step {progress.step} (epoch {progress.epoch + 1})"
        if progress.bad_steps > limit:
            self.processes.fail(
                f"{where}, after {counted(limit, 'step')} left out in a row for the like: lower "
                f"train.lr, or look at these images: {names}"
            )
        log.warning("%s: this step is left out; images: %s", where, names)

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """Go on where something can't be written, and tell."""
        try:
            yield
        except (MltrError, OSError) as error:
            self._note_failed_write(error)

    def _note_failed_write(self, error: Exception) -> None:
        self.progress.failed_writes += 1
        log.warning("going on, although: %s", error)

    def _note_signal(self, signum: int) -> None:
        """Let the first signal finish the step and save; a second Ctrl-C ends at once."""
        again = self.interrupted and signum == signal.SIGINT and self.processes.count == 1
        if self.is_finishing or again:
            self._leave(signum)
        if not self.interrupted:
            log.warning("interrupted: finishing this step, then saving")
        self.interrupted = self.interrupted or signum

    def _leave(self, signum: int) -> None:
        raise SystemExit(EXIT_PREEMPTED) if signum == signal.SIGTERM else KeyboardInterrupt

    def _stop(self) -> None:
        if self.save():
            log.warning(
                "saved at epoch %d; go on by: mltr %s %s --out %s --resume",
                self.progress.epoch + 1, self.command, self.folder.recipe, self.folder.path,
            )  # fmt: skip
        with self._spared():
            self._leave_usable()
        self.processes.wait()  # torchrun ends the others soon after the first
        self._leave(self.asked_to_stop)

    def _leave_usable(self) -> None:
        """Write the bundle of the best weights so far, for a run that stops before its end."""
        if not self.progress.best_name:
            log.warning("no epoch is validated yet, so this run can't be used before it goes on")
            return
        model = self.load_best()
        if self.processes.is_main:
            self._write_bundle(model)
            log.warning(
                "the run can be used as it is, with its weights after epoch %d, the best so far",
                self.progress.best_epoch + 1,
            )
            self._tell_what_next()

    # -- saving and restoring ------------------------------------------------------------------

    def save(self) -> bool:
        """Write a checkpoint, unless that is done; whatever fails, the previous ones survive."""
        self._count_seconds()
        name = self.progress.name
        self.saved_at = time.monotonic()
        if name == self.saved_name:
            return True
        shared = {
            "progress": asdict(self.progress),
            "model": self._plain_model().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.weights if self.average else None,
            "scaler": self.scaler.state_dict(),
        }
        try:
            self.states.write(name, shared, random_states(), needs=self.progress.best_name)
        except MltrError as error:
            if not (self.saved_name or self.progress.best_name):
                self.processes.fail(f"stopped, because nothing of this run can be saved: {error}")
            self._note_failed_write(error)
            return False
        self.saved_name = name
        if self.processes.is_main:
            self.states.prune(self.config.train.keep)
        return True

    def restore(self) -> None:
        """Take up where the latest sound checkpoint left off, in mid-epoch too."""
        self.saved_name = self.states.latest()
        shared, own = self.states.read(self.saved_name)
        model = self._plain_model()
        templates = model.state_dict()
        model.load_state_dict(placed_like(shared["model"], templates))
        load_optimizer(self.optimizer, shared["optimizer"])
        if self.average is not None:
            average = placed_like(shared["average"], templates)
            self.average.weights = {name: v.to(self.device) for name, v in average.items()}
        if self.scaler.is_enabled() and shared["scaler"]:
            self.scaler.load_state_dict(shared["scaler"])
        if own:  # nothing, where there are more processes now than then
            set_random_states(own)
        self.progress = Progress(**shared["progress"])
        self.rows = [row for row in self.rows if row["epoch"] <= self.progress.epoch]

    def load_best(self) -> Any:
        """Load the best weights; return the network that holds them as a whole."""
        if not self.progress.best_name:
            self.processes.fail(f"{self.folder.path}: no weights to keep: none could be saved")
        weights = self.states.read(self.progress.best_name)[0]["weights"]
        model = self._plain_model()
        model.load_state_dict(placed_like(weights, model.state_dict()))
        if not self.is_sharded:
            return model
        self.frame.load_state_dict(weights, assign=True)
        return self.frame

    def finish(self, quiet: bool = False) -> dict[str, Any]:
        """Write the bundle of the best weights and score the test images, once."""
        self.is_finishing = True
        model = self.load_best()
        predictions = self._predict(self.splits.test, self.cache)
        full_report = report(predictions)
        figures = self._figures(full_report)
        if not self.processes.is_main:
            return figures
        self._write_bundle(model, test=figures)
        save_predictions(self.folder.predictions, predictions)
        write_json(self.folder.metrics, figures)
        draw_curves(self.folder)
        save_curves(self.folder.path, predictions)
        if not quiet:
            print_report(full_report, f"{self.folder.path}, test")
        self._tell_the_end()
        return figures

    def _write_bundle(self, model: Any, **about: Any) -> None:
        save_bundle(
            self.folder.path, model=model, name=self.config.model.name,
            overrides=model_overrides(self.config.model, self.image_size),
            classes=self.splits.train.classes, preprocess=self.preprocess,
            calibration=SOFTMAX if self.single_label else None,
            extra={"data": self.config.data.format} | about,
        )  # fmt: skip

    def _figures(self, full_report: dict[str, Any]) -> dict[str, Any]:
        """Return the test figures by name, and how they came about."""
        figures = {name: v for name, v in full_report.items() if name != "per_class"}
        progress = self.progress
        rates = sorted(row["images_per_s"] for row in self.rows)
        return figures | {
            "best_epoch": progress.best_epoch + 1,
            f"best_{self.judged_by}": progress.best_map,
            "averaged_weights": progress.best_is_average,
            "epochs": progress.epoch,
            "seed": self.config.train.seed,
            "train_seconds": round(progress.seconds, 1),
            "train_images_per_s": round(rates[len(rates) // 2], 1),
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "images_in_splits": {split.name: len(split) for split in self.splits},
            "skipped_steps": progress.skipped_steps,
            "broken_training_images": list(self.progress.broken.values()),
        }

    # -- telling -------------------------------------------------------------------------------

    def _announce(self, last: int) -> None:
        tell_images(self.splits)
        parameters = sum(p.numel() for p in self.network.parameters()) / 1e6
        log.info(
            "%s, %.2f M parameters, %d px, %s, on %s%s; run folder: %s",
            self.config.model.name, parameters, self.image_size, counted(last, "epoch"),
            self.device.type,
            f" x {self.processes.count}" if self.processes.count > 1 else "", self.folder.path,
        )  # fmt: skip

    def _line(self, row: dict[str, Any], last: int) -> str:
        """Return one epoch in one line."""
        return "  ".join(
            training_words(row, last) + score_words(row, self.judged_by, self.progress)
        )

    def _tell_the_end(self) -> None:
        if self.progress.shortfalls():
            log.warning("on the way: %s", self.progress.shortfalls())
        log.info("run folder: %s", self.folder.path)
        self._tell_what_next()

    def _tell_what_next(self) -> None:
        log.info("next: mltr evaluate %s", shlex.quote(str(self.folder.path)))

    def _draw_pictures(self) -> None:
        """Show some validation images with what is said of them, in TensorBoard."""
        split = self.splits.val.subset(range(min(PICTURES, len(self.splits.val))), "val")
        predictions = self._predict(split, cache=None)  # too few to keep
        if not self.processes.is_main:
            return
        with self._spared(), tensorboard(self.folder.tensorboard) as writer:
            sheet = np.asarray(contact_sheet(make_tiles(split, predictions), columns=4))
            writer.add_image("validation", sheet, self.progress.epoch, dataformats="HWC")
