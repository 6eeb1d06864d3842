"""Any timm backbone in the place of MlTr, trained by the same command for a fair comparison."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from mltr.errors import UsageError, did_you_mean


def create_timm(name: str, num_classes: int, **overrides: Any) -> nn.Module:
    """Return timm's model `name`, randomly initialised, with `num_classes` logits.

    Overrides use this project's words and are passed on in timm's: `drop_path` as
    `drop_path_rate`, `image_size` as `img_size` where the backbone is built for one size.
    Raises `UsageError` for a name or an argument that timm doesn't know.
    """
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    if "drop_path" in overrides:
        overrides["drop_path_rate"] = overrides.pop("drop_path")
    image_size = overrides.pop("image_size", None)
    if image_size is not None and "img_size" not in overrides and _is_built_for_a_size(name):
        overrides["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(name, num_classes=num_classes, **overrides)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"timm/{name} can't be built with {overrides}: {error}") from error
    return model


def timm_image_size(name: str) -> int:
    """Return the side in pixels that timm's model is meant for."""
    config = timm.get_pretrained_cfg(name)
    return int(config.input_size[-1]) if config is not None else 224


def _is_built_for_a_size(name: str) -> bool:
    """Whether timm declares a fixed input size for the model, as for Swin and ViT."""
    config = timm.get_pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)
