"""Depthwise convolutions of timm networks in bf16: the type they compute in, and the figures."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from mltr.network.model import create_model

LITE = "mobilenetv3_small_050"
SAME = "tf_mobilenetv3_small_minimal_100"  # TensorFlow's padding


def depthwise_of(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


@pytest.mark.parametrize("name", [LITE, SAME])
def test_the_weights_and_outputs_are_timms(name: str) -> None:
    torch.manual_seed(0)
    own = create_model(f"timm/{name}", 5).eval()
    plain = timm.create_model(name, num_classes=5).eval()
    plain.load_state_dict(own.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(own(images), plain(images), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(own(images), plain(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", [LITE, SAME])
def test_they_train_in_float32_and_pass_on_what_they_got(name: str) -> None:
    convolution = depthwise_of(create_model(f"timm/{name}", 5))[0]
    images = torch.randn(2, convolution.in_channels, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        maps = convolution(images)
    maps.float().sum().backward()
    exact = nn.Conv2d.forward(convolution, images.float()) if name == LITE else None
    assert maps.dtype == images.dtype == torch.bfloat16
    if exact is not None:
        torch.testing.assert_close(maps, exact.bfloat16(), rtol=0, atol=0)
    assert convolution.weight.grad is not None and convolution.weight.grad.dtype == torch.float32


def test_copies_and_pickles_are_of_their_own() -> None:
    network = create_model(f"timm/{LITE}", 5).eval()
    twins = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    images = torch.randn(1, 3, 64, 64)
    before = network(images)
    with torch.no_grad():
        for convolution in depthwise_of(network):
            convolution.weight.zero_()
    for twin in twins:
        torch.testing.assert_close(twin(images), before)
