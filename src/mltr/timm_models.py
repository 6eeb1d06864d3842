"""The variants as timm models: importing this module registers them with timm.

``import mltr.timm_models`` enables ``timm.create_model("mltr_s", num_classes=80)`` and everything
else that builds networks through timm: its training scripts, feature pyramids
(``features_only=True``), optimisers with layer decay. The argument names are timm's (`img_size`,
`drop_path_rate`, `global_pool`); the other fields of `variants.Variant` can be given too. The
weights have the same names as in `mltr.create_model`, so they can be exchanged in both directions.

What timm requires of a model is in its ``models/_builder.py``, ``_features.py`` and, for a network
whose maps are B H W C as ours, ``swin_transformer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mltr.errors import UsageError
from mltr.network.model import Block, MlTr, PatchEmbedding, Stage
from mltr.network.resampling import adapt
from mltr.network.variants import VARIANTS, Variant, get_variant

NUM_CLASSES = 80  #: of a model whose caller names no number, as in `mltr.create_model`

__all__ = ["TimmMlTr"]  # timm adds the name of each model

# Both pad by as much as the size of the image asks for, which torch.fx can't follow.
register_notrace_module(PatchEmbedding)
register_notrace_module(Stage)


class TimmMlTr(MlTr):
    """MlTr with the methods and attributes that timm expects of its models.

    Same parameters, names and logits as `MlTr` with its head ``average``; here that head is a
    plain linear layer, and pooling stands before it, so that either can be replaced.
    """

    output_fmt = "NHWC"

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = NUM_CLASSES,
        global_pool: str = "avg",
        img_size: int | Sequence[int] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **overrides: Any,
    ) -> None:
        """Build the variant `name`; `overrides` replace fields of it.

        `global_pool` is avg, max, avgmax, catavgmax, or empty for none; `drop_rate` the dropout
        between it and the classifier. Raises `UsageError` for an unknown field or a value that
        does not fit.
        """
        if img_size is not None:
            overrides["image_size"] = _image_size(img_size)
        if drop_path_rate is not None:
            overrides["drop_path"] = drop_path_rate
        variant = get_variant(name, **overrides)
        super().__init__(variant, num_classes=0)
        self.in_chans = variant.in_chans
        # timm's feature extractors can take layers out of a sequence, but not out of a list.
        self.stages = nn.Sequential(*self.stages)  # type: ignore[assignment]
        self.feature_info = [
            {"num_chs": variant.embed_dim * 2**i, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i in range(len(variant.depths))
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self._traits: dict[str, Any] = {"first_conv": _first_conv(variant)}
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    # -- the classifier ------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in place of the head, and with `global_pool` other pooling."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(
                pool_type=global_pool, flatten=bool(global_pool), input_fmt=self.output_fmt
            )
        self.num_classes = num_classes
        pooled_twice = self.global_pool.pool_type.endswith("catavgmax")
        self.head_hidden_size = self.num_features * (2 if pooled_twice else 1)
        self.head = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            self.head = nn.Linear(
                self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype
            )
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, K] for the final normalised map [B, H, W, C].

        With `pre_logits` the pooled features [B, C] that the classifier would see; without
        pooling both keep the map's H and W.
        """
        pooled: Tensor = self.head_drop(self.global_pool(maps))
        return pooled if pre_logits else self.head(pooled)

    # -- features of every stage ---------------------------------------------------------------

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final map [B, H, W, C], and the maps of the stages `indices`.

        `indices`: the last so many stages, a list of stages, or all. `norm` normalises the last
        stage's, `stop_early` leaves out the stages behind the last one asked for, `output_fmt`
        (NCHW or NHWC) is that of the stages' maps; `intermediates_only` returns only these.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} is neither NCHW nor NHWC")
        taken, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        maps: Tensor = self.embed(x)
        ends = len(self.stages) - 1
        for i, stage in enumerate(self.stages):
            maps = stage(maps)
            if i in taken:
                seen = self.norm(maps) if norm and i == ends else maps
                if output_fmt == "NCHW":
                    seen = seen.permute(0, 3, 1, 2).contiguous()
                intermediates.append(seen)
            if stop_early and i == last:
                break
        if intermediates_only:
            return intermediates
        return (self.norm(maps) if i == ends else maps), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the stages `indices` don't need, and return these, counted from the first.

        Once a stage is gone, so are the norm and the head, which are made for the last one.
        """
        taken: list[int]
        taken, last = feature_take_indices(len(self.stages), indices)
        is_cut = last < len(self.stages) - 1
        if prune_norm or is_cut:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if is_cut:
            self.stages = self.stages[: last + 1]
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or is_cut:
            self.reset_classifier(0, "")
        return taken

    # -- optimisers ----------------------------------------------------------------------------

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that put the parameters in order, for layer-wise learning rates."""
        blocks = [
            (r"^stages\.(\d+)\.merge", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),  # timm's number for: with the group before
        ]
        return {"stem": r"^embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    # -- other sizes ---------------------------------------------------------------------------

    def set_input_size(
        self, img_size: int | Sequence[int] | None = None, window_size: int | None = None
    ) -> None:
        """Make this the network for another image or window size, its weights resampled.

        Images of any size pass without this, positions being resampled on the way; here that
        happens once, and windows follow as they do when a network is built for `img_size`.
        """
        size = self.variant.image_size if img_size is None else _image_size(img_size)
        w = self.variant.window_size if window_size is None else window_size
        variant = replace(self.variant, image_size=size, window_size=w)
        like = next(self.parameters())
        target = MlTr(variant, num_classes=0).to(device=like.device, dtype=like.dtype)
        _take_resampled(self, target)
        self.variant = variant
        # timm saves these two with the weights, and builds the network from them again.
        sizes = {"img_size": variant.image_hw, "window_size": w}
        self._traits = {**self._traits, "img_size": variant.image_hw}
        self._model_args = {**getattr(self, "_model_args", {}), **sizes}


def _take_resampled(model: TimmMlTr, target: MlTr) -> None:
    """Replace in `model` what depends on places by that of `target`, filled from `model`."""
    position, resampled = model.embed.position, target.embed.position
    if position is not None and resampled is not None and position.shape != resampled.shape:
        _fill(target.embed, {"position": position}, "embed", target)
        model.embed.position = resampled
    for i, (stage, wanted_stage) in enumerate(zip(model.stages, target.stages, strict=False)):
        assert isinstance(stage, Stage) and isinstance(wanted_stage, Stage)
        for j, (block, wanted) in enumerate(zip(stage.blocks, wanted_stage.blocks, strict=True)):
            if not isinstance(block, Block) or not isinstance(wanted, Block):
                continue
            if block.attn.window_size != wanted.attn.window_size:
                own = dict(block.attn.named_parameters())
                _fill(wanted.attn, own, f"stages.{i}.blocks.{j}.attn", target)
                block.attn = wanted.attn


def _fill(part: nn.Module, own: Mapping[str, nn.Parameter], prefix: str, target: MlTr) -> None:
    """Fill the part of `target` that is called `prefix` with parameters of another size."""
    with torch.no_grad():
        for name, parameter in own.items():
            adapted = adapt(target, f"{prefix}.{name}", parameter)
            assert adapted is not None, f"{prefix}.{name} differs in more than places"
            filled = part.get_parameter(name).copy_(adapted)
            filled.requires_grad_(parameter.requires_grad)


def _image_size(size: int | Sequence[int]) -> int | tuple[int, int]:
    """Return a side, or height and width, from what timm takes for one; else raise `UsageError`."""
    if isinstance(size, int):
        return size
    if len(size) != 2:
        raise UsageError(f"img_size={size!r} must be one number, or height and width")
    return size[0], size[1]


# -- the registry ------------------------------------------------------------------------------


def _first_conv(variant: Variant) -> str:
    """Name of the convolution that sees the image."""
    return "embed.proj.0" if variant.conv_stem else "embed.proj"


def _cfg(variant: Variant) -> dict[str, Any]:
    """Return what timm wants to know of a variant beforehand; there are no weights yet.

    Images are squashed to a square and not normalised, as in the recipes.
    """
    H, W = variant.image_hw
    stride = 4 * 2 ** (len(variant.depths) - 1)
    return {
        "num_classes": NUM_CLASSES,
        "input_size": (variant.in_chans, H, W),
        "pool_size": (-(-H // stride), -(-W // stride)),
        "fixed_input_size": False,
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": _first_conv(variant),
        "classifier": "head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: _cfg(variant) for name, variant in VARIANTS.items()})


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights of `mltr` or timm, resampled to the image and window sizes of `model`.

    What differs in more, as the number of classes or channels, is left for timm to deal with.
    """
    shapes = {name: own.shape for name, own in model.state_dict().items()}
    fitted = dict(state_dict)
    for name, tensor in state_dict.items():
        if name in shapes and tensor.shape != shapes[name]:
            adapted = adapt(model, name, tensor)
            fitted[name] = tensor if adapted is None else adapted
    return fitted


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    """Return the function that timm calls for ``create_model(name, ...)``."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        stages = len(kwargs.get("depths", VARIANTS[name].depths))
        out_indices = kwargs.pop("out_indices", tuple(range(stages)))
        model: nn.Module = build_model_with_cfg(
            partial(TimmMlTr, name),
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
            **kwargs,
        )
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Return {name} of `mltr.network.variants`; arguments as in `TimmMlTr`."
    return create


for _name in VARIANTS:
    globals()[_name] = register_model(_entrypoint(_name))
