"""The network that a recipe asks for."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from mltr.config import ModelConfig
from mltr.convert import initialise
from mltr.model import create_model

log = logging.getLogger(__name__)


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
