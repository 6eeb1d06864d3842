"""Estimates a recipe's memory, time and disk space on a device, and changes that make it fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from mltr.config.schema import Config
from mltr.data.preprocess import first_side
from mltr.network.features import compute_features
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
from mltr.training.build import model_overrides, suitable_epochs
from mltr.training.growth import Growth, growth_for
from mltr.training.once import BATCH

GIB = 2**30
FITS = 0.95  #: maximum planned share of a device's memory
FORWARD_SHARE = 1 / 3  #: share of a training step in the forward pass; backward takes two thirds


@dataclass(frozen=True)
class Images:
    """Numbers of images and classes of a run."""

    train: int
    val: int
    test: int
    classes: int
    disk_gb: float = 0.0  #: size of the data set, 1e9 bytes (0: unknown)


@dataclass(frozen=True)
class Place:
    """The devices of a run."""

    name: str
    count: int
    memory_gib: float  #: memory of each device
    context_gib: float  #: memory used by the program without a network
    device: Device | None = None  #: data sheet; None if the speed was measured
    train_images_per_s: float = 0.0  #: measured speed of training on one device
    val_images_per_s: float = 0.0  #: measured speed of validation on one device


def place_of(name: str, count: int) -> Place:
    """Return `count` devices of the table."""
    device = DEVICES[name]
    return Place(name, count, device.memory_gib, CONTEXT_GIB, device)


def image_side(config: Config) -> int:
    """Return the side of the network's input in pixels."""
    return config.model.image_size or default_image_size(config.model.name)


def workload_of(
    config: Config,
    classes: int,
    batch_size: int,
    *,
    checkpointing: bool = False,
    forward_only: bool = False,
) -> Workload:
    """Return the workload of a step of a recipe's network; `batch_size` is that of one device."""
    side = image_side(config)
    name, precision = config.model.name, config.train.precision
    return _workload(
        name, classes, _overrides(config), batch_size, side, precision, checkpointing, forward_only
    )


def _overrides(config: Config) -> str:
    return json.dumps(model_overrides(config.model, image_side(config)), sort_keys=True)


@lru_cache(maxsize=64)
def _workload(
    name: str, classes: int, overrides: str, batch_size: int, side: int, precision: str,
    checkpointing: bool, forward_only: bool,
) -> Workload:  # fmt: skip
    def build() -> nn.Module:
        return create_model(name, classes, **json.loads(overrides))

    return measure_step(build, batch_size, side, precision, checkpointing, forward_only)


def estimate(config: Config, images: Images, place: Place) -> dict[str, Any]:
    """Return a recipe's memory, speed, time and disk space by name; names contain the units."""
    train = config.train
    each = -(-train.batch_size // place.count)
    plain = workload_of(config, images.classes, each)
    rates = train_rate, val_rate, limit = _speed(config, plain, place)
    work = plain
    if train.freeze == "backbone":
        work = workload_of(config, images.classes, BATCH, forward_only=True)
    elif train.grad_checkpointing:
        work = workload_of(config, images.classes, each, checkpointing=True)
    steps = max(images.train // train.batch_size, 1)
    epochs, train_s, scored_s = _times(config, images, steps, rates)
    hours = (train_s + scored_s) / 3600
    return {
        "network": {
            "name": config.model.name, "image_size": image_side(config),
            "classes": images.classes, "parameters": work.parameters,
            "multiply_adds": work.multiply_adds,
        },
        "images": asdict(images),
        "freeze": train.freeze,
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


def _times(
    config: Config, images: Images, steps: int, rates: tuple[float, float, str]
) -> tuple[int, float, float]:
    """Return how many epochs of `steps` a run has, and the seconds of training and of scoring.

    A run by time takes that time, in which so many epochs fit. Of a frozen backbone, computing the
    features is all that counts.
    """
    train, (train_rate, val_rate, _) = config.train, rates
    last = train.epochs or suitable_epochs(images.train)
    epochs = min(train.stop_epoch or last, last)
    if train.freeze == "backbone":
        return epochs, train.views * images.train / val_rate, (images.val + images.test) / val_rate
    growth = Growth(train.min_size, image_side(config))
    if growth.grows:
        growth = _growth(config.model.name, images.classes, _overrides(config), growth)
    full_epochs = epochs * growth.mean_work()
    train_s = full_epochs * steps * train.batch_size / train_rate
    scored = images.val * -(-epochs // train.eval_every) * (2 if train.ema_decay else 1)
    scored_s = (scored + images.test) / val_rate
    if not train.minutes:
        return epochs, train_s, scored_s
    share = 60 * train.minutes / (train_s + scored_s)
    return max(1, round(share * epochs)), share * train_s, share * scored_s


@lru_cache(maxsize=64)  # so that a network that forbids it is also told of once
def _growth(name: str, classes: int, overrides: str, wanted: Growth) -> Growth:
    with torch.device("meta"):
        network = create_model(name, classes, **json.loads(overrides))
    return growth_for(network, wanted.first, wanted.full)


def _memory(config: Config, work: Workload, place: Place) -> dict[str, Any]:
    states = state_bytes(work, config.train.ema_decay > 0) / GIB
    gradients = 4 * work.parameters / GIB
    kept = gradients if config.train.accumulation > 1 else 0.0
    if config.train.sharding == "fsdp":
        states, kept = states / place.count, kept / place.count
    # Adam's step needs a copy of the gradients, when the activations are already freed.
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
    """Return images/s of training and of validation on all devices, and the limiting factor."""
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
    """Return the share of the devices' peak that training reaches; None for a measured speed."""
    if place.device is None:
        return None
    peak = place.count * place.device.peak(config.train.precision)
    return 6 * work.multiply_adds * rate / peak


def _disk(config: Config, images: Images, work: Workload) -> dict[str, float | None]:
    """Return the disk space of a run, its cache and its data, in 1e9 bytes.

    A run has `train.keep` checkpoints of the training state, another one while it is written, the
    best weights twice, and the bundle. With the photos, features of a frozen backbone are kept.
    """
    states = state_bytes(work, config.train.ema_decay > 0)
    side = first_side(config.data.base_size, image_side(config))
    total = images.train + images.val + images.test
    photo = 3 * side**2 if config.data.cache else 0
    features = 0
    if config.train.freeze == "backbone":
        views = (config.train.views * images.train + images.val + images.test) / max(total, 1)
        features = round(
            views * _feature_bytes(config.model.name, _overrides(config), image_side(config))
        )
    return {
        "run": ((config.train.keep + 1) * states + 3 * work.weight_bytes) / 1e9,
        "cache": total * (photo + features) / 1e9,
        "data": images.disk_gb or None,
    }


@lru_cache(maxsize=64)
def _feature_bytes(name: str, overrides: str, side: int) -> int:
    """Return the bytes of what is kept of a photo: the map in bf16, the pooled vector in fp32."""
    network = create_model(name, 1, **json.loads(overrides)).eval()
    with torch.inference_mode():
        maps, pooled = compute_features(network, torch.zeros(1, 3, side, side))
    return 4 * pooled.numel() + (0 if maps is None else 2 * maps.numel())


# -- what to change ----------------------------------------------------------------------------


def advice(config: Config, images: Images, place: Place) -> list[dict[str, Any]]:
    """Return changes with which a recipe fits into a device's memory, by new estimates.

    Each has `options` to add to the command, `words` that explain it, and the `estimate` with it.
    The effective batch size of an optimiser step stays the same.
    """
    found = []
    for options, words, changed in _changes(config, place):
        figures = estimate(changed, images, place)
        if figures["memory_gib"]["fits"]:
            found.append({"options": options, "words": words, "estimate": figures})
    return found


def _changes(config: Config, place: Place) -> Iterator[tuple[list[str], str, Config]]:
    train = config.train
    if train.freeze == "backbone":
        return
    if train.precision == "fp32" and place.name != "cpu":
        yield _changed(config, "half the memory of most tensors", precision="bf16")
    if not train.grad_checkpointing:
        yield _changed(config, "recomputes activations: a third more time", grad_checkpointing=True)
    for parts in (2, 4, 8, 16, 32, 64, 128):
        if train.batch_size % parts or train.batch_size // parts < place.count:
            break
        yield _changed(
            config,
            "the same optimiser steps from smaller batches",
            batch_size=train.batch_size // parts,
            accumulation=train.accumulation * parts,
        )
    if place.count > 1 and train.sharding == "none":
        yield _changed(config, "shards weights and moments over the devices", sharding="fsdp")


def _changed(config: Config, words: str, **fields: Any) -> tuple[list[str], str, Config]:
    changed = copy.deepcopy(config)
    options = []
    for name, value in fields.items():
        setattr(changed.train, name, value)
        options.append(f"--train.{name} {str(value).lower()}")
    return options, words, changed
