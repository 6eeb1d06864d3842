"""The network that a recipe asks for, and what its images go through."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mltr.config.schema import Config, ModelConfig
from mltr.data.preprocess import Preprocess
from mltr.network.features import check_image_size
from mltr.network.model import create_model, default_image_size
from mltr.weights.convert import initialise
from mltr.weights.pretrained import (
    blaming,
    find_weights,
    known_preprocessing,
    overrides_of,
    resolve_name,
)

log = logging.getLogger(__name__)


def settle(config: Config) -> tuple[Config, Preprocess]:
    """Return a recipe with the network's own name and size, and what its images go through.

    Both follow the weights of `model.init` where the recipe leaves them open. Raises `MltrError`
    if there are no such weights.
    """
    network = resolve_name(config.model)
    with blaming(network.init):
        weights = find_weights(network.name, network.init)
        known = known_preprocessing(network.name, network.init, weights)
        side = network.image_size or known.get("image_size") or default_image_size(network.name)
        preprocess = Preprocess.from_config(config.augment, side, config.data.base_size, known)
        theirs = weights.overrides if weights else overrides_of(network.name, network.init, side)
    if preprocess.base_size != config.data.base_size:
        log.info("photos are first squashed to %d px, for images of %d", preprocess.base_size, side)
    if known:
        log.info("preprocessing of the weights: %s", preprocess)
    if taken := sorted(theirs.keys() - network.overrides.keys()):
        log.info("model.overrides of the weights: %s", ", ".join(taken))
    network = replace(network, image_size=side, overrides=theirs | network.overrides)
    return replace(config, model=network), preprocess


def suitable_epochs(images: int) -> int:
    """Return how many epochs suit so many training images, for `train.epochs` 0.

    The more images there are, the more of them are seen in all, and the less often each.
    """
    return min(100, max(3, round(600 / math.sqrt(images))))


def build_model(
    config: ModelConfig, num_classes: int, image_size: int, classes: Sequence[str] = ()
) -> nn.Module:
    """Return the network of a recipe, with the weights of `model.init` where they fit.

    With `classes`, the entries of a head are taken by their names.
    """
    model = create_model(config.name, num_classes, **model_overrides(config, image_size))
    if config.init:
        report = initialise(model, config.init, config.name, classes, image_size)
        for line in f"model.init: {report}".splitlines():
            log.info("%s", line)
    check_image_size(model, image_size, "model.image_size")
    return model


def model_overrides(config: ModelConfig, image_size: int) -> dict[str, Any]:
    """Return all that `create_model` needs to build the network of a recipe again."""
    overrides = config.overrides | {"image_size": image_size}
    if config.head != "average":
        overrides |= {"head": config.head, "head_options": config.head_options}
    return overrides if config.drop_path is None else overrides | {"drop_path": config.drop_path}
