"""Any timm backbone instead of MlTr, trained with the same command for a fair comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mltr.errors import UsageError, did_you_mean
from mltr.network.depthwise import train_depthwise_in_float32
from mltr.network.heads import make_head


class TimmBackbone(nn.Module):
    """A timm network without its classifier, under one of this project's heads.

    The backbone may be convolutional or a transformer, its features NCHW, NHWC, or a sequence of
    tokens whose class tokens are left out.
    """

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the final map [B, H, W, C]."""
        features: Tensor = self.backbone.forward_features(images)
        return to_maps(self.backbone, features)

    def forward_head(self, maps: Tensor) -> Tensor:
        """Return logits [B, K] for the final map [B, H, W, C]."""
        logits: Tensor = self.head(maps)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay: the backbone's, and the head's queries and tables."""
        spared: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        endings = ("queries", "relative_position_bias_table")
        own = {name for name, _ in self.head.named_parameters() if name.endswith(endings)}
        return {f"backbone.{name}" for name in spared} | {f"head.{name}" for name in own}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, if timm and the head support it."""
        self.backbone.set_grad_checkpointing(enable)
        checkpoint_parts(self.head, enable)


def recompute_activations(network: Any) -> None:
    """Have a network recompute activations in the backward pass; `UsageError` if it can't."""
    try:
        network.set_grad_checkpointing()
    except (AssertionError, AttributeError) as error:  # as timm says so
        raise UsageError(
            "this network can't recompute its activations: leave out train.grad_checkpointing"
        ) from error


def checkpoint_parts(module: nn.Module, enable: bool) -> None:
    """Let the parts of a module that can recompute their activations do so, or no longer."""
    part: Any
    for part in module.modules():
        if hasattr(part, "grad_checkpointing"):
            part.grad_checkpointing = enable


def to_maps(backbone: nn.Module, features: Tensor) -> Tensor:
    """Return the features of a timm backbone as maps [B, H, W, C], whatever their layout.

    Raises `UsageError` for features that are not a map, such as a pooled vector.
    """
    if features.ndim == 4:
        if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
            return features
        return features.permute(0, 2, 3, 1)
    if features.ndim == 3:
        tokens = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        grid = _token_grid(backbone, tokens.shape[1])
        if grid is not None:
            maps: Tensor = torch.unflatten(tokens, 1, grid)  # reshape would fix an export's batch
            return maps
    raise UsageError(
        f"{type(backbone).__name__} returns features of shape {list(features.shape)}, which is not "
        "a map of the image; use head average, its own head"
    )


def _token_grid(backbone: nn.Module, count: int) -> tuple[int, int] | None:
    """Return rows and columns of a sequence of tokens: as the backbone says, or a square."""
    H, W = getattr(getattr(backbone, "patch_embed", None), "grid_size", None) or (0, 0)
    if count == H * W:
        return H, W
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def create_timm(
    name: str, num_classes: int, head: str, head_options: Mapping[str, Any], **overrides: Any
) -> nn.Module:
    """Return timm's model `name`, randomly initialised, with `num_classes` logits.

    The head `average` is timm's own. Overrides use this project's names and are translated to
    timm's: `drop_path` to `drop_path_rate`, and `image_size` to `img_size` if the backbone is built
    for one size. Raises `UsageError` for a name or an argument that timm doesn't know.
    """
    if not timm.is_model(name):
        raise UsageError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    if "drop_path" in overrides:
        overrides["drop_path_rate"] = overrides.pop("drop_path")
    image_size = overrides.pop("image_size", None)
    if image_size is not None and "img_size" not in overrides and _is_built_for_a_size(name):
        overrides["img_size"] = image_size
    keeps_own = head == "average"
    if keeps_own and head_options:
        raise UsageError(f"head average has no options, but was given {dict(head_options)}")
    try:
        model: nn.Module = timm.create_model(
            name, num_classes=num_classes if keeps_own else 0, **overrides
        )
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        AssertionError,
        RuntimeError,
    ) as error:
        raise UsageError(f"timm/{name} can't be built with {overrides}: {error}") from error
    train_depthwise_in_float32(model)
    if keeps_own:
        return model
    num_features: int = model.num_features  # type: ignore[assignment]
    map_side = -(-(image_size or timm_image_size(name)) // _stride(model))
    return TimmBackbone(model, make_head(head, num_features, num_classes, map_side, **head_options))


def _stride(backbone: nn.Module) -> int:
    """Return how many pixels a side of the image has for one of the final map."""
    layers: Any = getattr(backbone, "feature_info", None)
    return int(layers[-1]["reduction"]) if layers else 32


def timm_image_size(name: str) -> int:
    """Return the side in pixels that timm's model is meant for."""
    config = _declared(name)
    return int(config.input_size[-1]) if config is not None else 224


def _is_built_for_a_size(name: str) -> bool:
    """Whether timm declares a fixed input size for the model, as for Swin and ViT."""
    config = _declared(name)
    return bool(config is not None and config.fixed_input_size)


def _declared(name: str) -> Any:
    """Return what timm declares of a model, or None; raises `UsageError` for unknown weights."""
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UsageError(f"timm has no weights {name!r}") from error
