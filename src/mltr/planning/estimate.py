"""What a recipe takes on a device: memory, time, disk, and what to change where it doesn't fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from mltr.config.schema import Config
from mltr.network.model import create_model, default_image_size
from mltr.planning.devices import (
    BEST_SHARE,
    CONTEXT_GIB,
    DEVICES,
    OPERATION_S,
    SCALING,
    TRAFFIC,
    Device,
)
from mltr.planning.workload import Workload, measure_step, state_bytes
from mltr.training.build import model_overrides
from mltr.training.optim import growing_sizes

GIB = 2**30
FITS = 0.95  #: share of a device's memory that a run may be planned to fill
FORWARD_SHARE = 1 / 3  #: of a training step that a forward pass takes: backward is two of them


@dataclass(frozen=True)
class Images:
    """How many images a run sees, and of how many classes."""

    train: int
    val: int
    test: int
    classes: int
    disk_gb: float = 0.0  #: of the data set, 1e9 bytes; 0: not known


@dataclass(frozen=True)
class Place:
    """Where a run shall take place, and what is known of it."""

    name: str
    count: int
    memory_gib: float  #: of each device
    context_gib: float  #: of it what the program takes without any network
    device: Device | None = None  #: None: its speed was measured
    train_images_per_s: float = 0.0  #: measured, of one device
    val_images_per_s: float = 0.0


def place_of(name: str, count: int) -> Place:
    """Return a device of the table."""
    device = DEVICES[name]
    return Place(name, count, device.memory_gib, CONTEXT_GIB, device)


def image_side(config: Config) -> int:
    """Return the side in pixels that the network sees."""
    return config.model.image_size or default_image_size(config.model.name)


def workload_of(config: Config, classes: int, batch_size: int, checkpointing: bool) -> Workload:
    """Return what a step of a recipe's network takes, by its batch size on one device."""
    side = image_side(config)
    overrides = json.dumps(model_overrides(config.model, side), sort_keys=True)
    name, precision = config.model.name, config.train.precision
    return _workload(name, classes, overrides, batch_size, side, precision, checkpointing)


@lru_cache(maxsize=64)
def _workload(
    name: str, classes: int, overrides: str, batch_size: int, side: int, precision: str,
    checkpointing: bool,
) -> Workload:  # fmt: skip
    def build() -> nn.Module:
        return create_model(name, classes, **json.loads(overrides))

    return measure_step(build, batch_size, side, precision, checkpointing)


def estimate(config: Config, images: Images, place: Place) -> dict[str, Any]:
    """Return what a recipe takes in a place, by name; units are part of the names."""
    train = config.train
    each = -(-train.batch_size // place.count)
    plain = workload_of(config, images.classes, each, checkpointing=False)
    train_rate, val_rate, limit = _speed(config, plain, place)
    work = plain
    if train.grad_checkpointing:
        work = workload_of(config, images.classes, each, checkpointing=True)
    epochs = min(train.stop_epoch or train.epochs, train.epochs)
    steps = max(images.train // train.batch_size, 1)
    # Smaller images at first take as much less time as they have fewer pixels.
    sizes = growing_sizes(train.min_size, image_side(config), train.epochs)
    sides = [sizes[min(epoch, len(sizes) - 1)] for epoch in range(epochs)]
    full_epochs = sum((side / image_side(config)) ** 2 for side in sides)
    train_s = full_epochs * steps * train.batch_size / train_rate
    scored = images.val * -(-epochs // train.eval_every) * (2 if train.ema_decay else 1)
    hours = (train_s + (scored + images.test) / val_rate) / 3600
    return {
        "network": {
            "name": config.model.name, "image_size": image_side(config),
            "classes": images.classes, "parameters": work.parameters,
            "multiply_adds": work.multiply_adds,
        },
        "images": asdict(images),
        "device": {"name": place.name, "count": place.count},
        "batch": {
            "all": train.batch_size, "a_device": each, "accumulation": train.accumulation,
            "steps": epochs * -(-steps // train.accumulation), "epochs": epochs,
        },
        "memory_gib": _memory(config, work, place),
        "speed": {
            "images_per_s": train_rate, "val_images_per_s": val_rate, "limited_by": limit,
            "share_of_peak": _share(work, train_rate, place, config),
        },
        "hours": hours,
        "train_hours": train_s / 3600,
        "device_hours": hours * place.count,
        "disk_gb": _disk(config, images, work),
    }  # fmt: skip


def _memory(config: Config, work: Workload, place: Place) -> dict[str, Any]:
    states = state_bytes(work, config.train.ema_decay > 0) / GIB
    gradients = 4 * work.parameters / GIB
    kept = gradients if config.train.accumulation > 1 else 0.0
    if config.train.sharding == "fsdp":
        states, kept = states / place.count, kept / place.count
    # Adam works on copies of the gradients when nothing is left of the images.
    step = max(work.peak_bytes / GIB, work.kept_bytes / GIB + kept, 2 * gradients)
    total = states + step + place.context_gib
    return {
        "states": states,
        "step": step,
        "program": place.context_gib,
        "total": total,
        "available": place.memory_gib,
        "fits": total <= FITS * place.memory_gib,
    }


def _speed(config: Config, work: Workload, place: Place) -> tuple[float, float, str]:
    """Return images a second of training and of scoring, all devices, and what limits them."""
    if place.device is None:
        rates = place.train_images_per_s, place.val_images_per_s
        return rates[0] * place.count, rates[1] * place.count, "measured"
    peak = place.device.peak(config.train.precision)
    seconds = {
        "bandwidth": TRAFFIC * work.kept_bytes / (1e9 * place.device.bandwidth_gb_s),
        "products": 6 * work.multiply_adds * work.batch_size / (BEST_SHARE * peak),
        "launching kernels": OPERATION_S * work.operations,
    }
    limit = max(seconds, key=lambda name: seconds[name])
    together = place.count * (SCALING if place.count > 1 else 1.0)
    rate = work.batch_size / seconds[limit] * together
    twice = 1 + FORWARD_SHARE if config.train.grad_checkpointing else 1.0
    return rate / twice, rate / FORWARD_SHARE, limit


def _share(work: Workload, rate: float, place: Place, config: Config) -> float | None:
    """Return which share of the devices' peak the products of training make up."""
    if place.device is None:
        return None
    peak = place.count * place.device.peak(config.train.precision)
    return 6 * work.multiply_adds * rate / peak


def _disk(config: Config, images: Images, work: Workload) -> dict[str, float | None]:
    """Return what a run needs on disk, 1e9 bytes.

    Checkpoints hold what stays in memory; two are kept, and there are three while one is written;
    besides, the best weights twice and the bundle.
    """
    states = state_bytes(work, config.train.ema_decay > 0)
    side = config.data.base_size
    total = images.train + images.val + images.test
    return {
        "run": (3 * states + 3 * work.weight_bytes) / 1e9,
        "cache": 3 * side**2 * total / 1e9 if config.data.cache else 0.0,
        "data": images.disk_gb or None,
    }


# -- what to change ----------------------------------------------------------------------------


def advice(config: Config, images: Images, place: Place) -> list[dict[str, Any]]:
    """Return changes that make a recipe fit into a device's memory, each of them tried.

    Each has `options` to add to the command, what it does in words, and the estimate with it. The
    batch that an optimiser step sees stays the same.
    """
    found = []
    for options, words, changed in _changes(config, place):
        figures = estimate(changed, images, place)
        if figures["memory_gib"]["fits"]:
            found.append({"options": options, "words": words, "estimate": figures})
    return found


def _changes(config: Config, place: Place) -> Iterator[tuple[list[str], str, Config]]:
    train = config.train
    if train.precision == "fp32" and place.name != "cpu":
        yield _changed(config, "half the memory of most tensors", precision="bf16")
    if not train.grad_checkpointing:
        yield _changed(
            config, "blocks are computed twice: a third more time", grad_checkpointing=True
        )
    for parts in (2, 4, 8, 16, 32, 64, 128):
        if train.batch_size % parts or train.batch_size // parts < place.count:
            break
        yield _changed(
            config,
            "the same optimiser steps, in parts",
            batch_size=train.batch_size // parts,
            accumulation=train.accumulation * parts,
        )
    if place.count > 1 and train.sharding == "none":
        yield _changed(config, "weights and moments divided over the devices", sharding="fsdp")


def _changed(config: Config, words: str, **fields: Any) -> tuple[list[str], str, Config]:
    changed = copy.deepcopy(config)
    options = []
    for name, value in fields.items():
        setattr(changed.train, name, value)
        options.append(f"--train.{name} {str(value).lower()}")
    return options, words, changed
