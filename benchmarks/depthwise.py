"""Training speed of convolutional timm networks in fp32, in bf16, and with depthwise ones in fp32.

    python benchmarks/depthwise.py timm/tf_efficientnet_lite0 timm/mobilenetv4_conv_small

Forward and backward, in turns. `mixed` is what a training in bf16 does on a processor:
`mltr.network.depthwise` keeps depthwise convolutions in float32 there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from timing import about, alternate
from torch import nn

from mltr.network.depthwise import IN_FLOAT32
from mltr.network.model import create_model

NETWORKS = ["timm/tf_efficientnet_lite0", "timm/mobilenetv4_conv_small"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="timm/NAME")
    parser.add_argument("--side", type=int, default=128, help="image side in pixels")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(about(side=args.side, batch_size=args.batch_size))
    for name in args.names:
        jobs = [make_job(name, kind, args) for kind in ("fp32", "bf16", "mixed")]
        speeds = (args.batch_size / median(times) for times in alternate(jobs, args.rounds))
        fp32, bf16, mixed = speeds
        print(f"{name}: fp32 {fp32:.0f}, bf16 {bf16:.0f}, mixed {mixed:.0f} images/s", flush=True)


def make_job(name: str, kind: str, args: argparse.Namespace) -> Callable[[], None]:
    model = create_model(name, num_classes=20).train().to(memory_format=torch.channels_last)
    if kind == "bf16":
        all_in_bf16(model)
    shape = (args.batch_size, 3, args.side, args.side)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "fp32"):
            loss = model(images).square().mean()
        loss.backward()
        model.zero_grad()

    return step


def all_in_bf16(model: nn.Module) -> None:
    """Undo `train_depthwise_in_float32`."""
    plain = {own: kind for kind, own in IN_FLOAT32.items()}
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))


if __name__ == "__main__":
    main()
