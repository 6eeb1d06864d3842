"""Depthwise convolutions that train in float32 under autocast on a processor.

The backward pass of PyTorch's depthwise convolution is several times slower in bf16 than in float32
there, which makes a MobileNet or EfficientNet slower than without autocast (docs/weights.md).
All other operations, and inference, stay in bf16.
"""

from __future__ import annotations

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that leaves autocast where a processor computes gradients."""

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H', W'] of the same type."""
        is_training = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")
        if images.device.type != "cpu" or not is_training:
            return super().forward(images)
        with torch.autocast("cpu", enabled=False):
            return super().forward(images.float()).to(images.dtype)


class DepthwiseConv2dSame(DepthwiseConv2d, Conv2dSame):
    """The same with TensorFlow's padding."""


IN_FLOAT32: dict[type[nn.Conv2d], type[nn.Conv2d]] = {
    nn.Conv2d: DepthwiseConv2d,
    Conv2dSame: DepthwiseConv2dSame,
}


def train_depthwise_in_float32(network: nn.Module) -> nn.Module:
    """Make each depthwise convolution of a network a `DepthwiseConv2d`, in place.

    Weights and the names of parameters stay.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or type(module) not in IN_FLOAT32:
            continue
        if module.groups == module.in_channels > 1:
            module.__class__ = IN_FLOAT32[type(module)]
    return network
