"""A network as a graph of `torch.export`, with its preprocessing: what other engines take."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from mltr.errors import MltrError
from mltr.files.download import first_line

if TYPE_CHECKING:
    from mltr.weights.bundle import Bundle


class Deployed(nn.Module):
    """The exported form of a network: uint8 pixels or float32 images in, float32 logits out."""

    def __init__(self, bundle: Bundle, takes_pixels: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = copy.deepcopy(bundle.model).to(dtype)
        self.takes_pixels = takes_pixels
        self.dtype = dtype
        side = bundle.preprocess.image_size
        # For a row of interleaved RGB pixels, along which multiplication is fastest.
        mean = torch.tensor(bundle.preprocess.mean).repeat(side)
        std = torch.tensor(bundle.preprocess.std).repeat(side)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std if any(bundle.preprocess.mean) else None)
        self.scale: Tensor
        self.shift: Tensor | None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits float32 [B, K]."""
        if self.takes_pixels:
            rows = images.flatten(2).float() * self.scale
            rows = rows if self.shift is None else rows + self.shift
            images = rows.view(images.shape).permute(0, 3, 1, 2)
        logits: Tensor = self.model(images.to(self.dtype))
        return logits.float()


class PlainGraph(TorchFunctionMode):
    """Traces a few functions in a form that onnxruntime executes fast."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the plain form of a function if there is one."""
        return PLAIN_FORMS.get(func, func)(*args, **(kwargs or {}))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute `F.scaled_dot_product_attention` without dropout or causal mask.

    The decomposition of the fused function has other strides, on which the export fails.
    """
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.mT
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1) @ value


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` as a single matrix product that includes the bias."""
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    found = torch.addmm(bias, inputs.flatten(0, -2), weight.mT)
    return found.view(*inputs.shape[:-1], -1)


PLAIN_FORMS = {F.scaled_dot_product_attention: _attend, F.linear: _linear}


def trace(bundle: Bundle, takes_pixels: bool, dtype: torch.dtype, to: str) -> ExportedProgram:
    """Return the network as a graph for any batch size.

    Raises `MltrError` for one that torch can't trace.
    """
    side = bundle.preprocess.image_size
    example = torch.zeros(2, 3, side, side)
    if takes_pixels:
        example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    module = Deployed(bundle, takes_pixels, dtype).eval()
    failures = (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError)
    try:
        with PlainGraph() if to == "onnx" else nullcontext():
            batch = Dim("batch", min=1)
            return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    except failures as error:
        name = bundle.config["model"]["name"]
        raise MltrError(f"torch can't export {name}: {first_line(error)}") from error
