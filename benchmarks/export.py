"""Exported files compared with PyTorch: logits, accuracy and speed.

    python benchmarks/export.py RUN --data.root PHOTOS --out runs/export.json

Prints three tables: the deviation of ONNX logits from PyTorch's for randomly initialised networks
and batches of 1 and 3 (`--variants none` skips it); `map` of a run's test images in each
precision; and milliseconds per image in PyTorch and onnxruntime, fp32 and int8. Timings alternate,
use the same number of threads, and are medians over rounds.
"""

from __future__ import annotations

import argparse
import os
import platform
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch

from mltr.data.images import open_image
from mltr.data.preprocess import Preprocess
from mltr.evaluation.open_run import OpenRun, open_scored
from mltr.export.checking import as_input, run_network, seconds_per_image
from mltr.export.writing import export
from mltr.files.writing import write_figures
from mltr.metrics import evaluate
from mltr.network.model import create_model, default_image_size
from mltr.network.variants import VARIANTS
from mltr.predict.exported import OnnxNetwork, load_onnx
from mltr.weights.bundle import TorchNetwork, load_bundle, save_bundle
from mltr.weights.metadata import to_probs

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="seconds per batch size")
    parser.add_argument("--out", metavar="FILE", default="runs/export.json")
    args, overrides = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    with TemporaryDirectory() as folder:
        scored = open_scored(args.run, overrides)
        networks = export_all(scored, Path(folder), args.threads, overrides)
        figures: dict[str, Any] = {
            "accuracy": accuracy(scored, networks),
            "milliseconds": speeds(scored, networks, args.batches, args.seconds),
        }
        figures["logits"] = {
            name: equality(name, Path(folder)) for name in args.variants if name != "none"
        }
    write_figures(args.out, figures)


def export_all(
    scored: OpenRun, folder: Path, threads: int, overrides: list[str]
) -> dict[str, OnnxNetwork]:
    networks = {}
    for precision in ("fp32", "fp16", "int8"):
        path = folder / f"{precision}.onnx"
        export(str(scored.path), path, precision=precision, overrides=overrides)
        networks[precision] = load_onnx(path, "cpu", threads)[0]
        print(f"{precision}: {path.stat().st_size / 1e6:.2f} MB")
    return networks


def accuracy(scored: OpenRun, networks: dict[str, OnnxNetwork]) -> dict[str, float]:
    """Print and return `map` of the test images in percent, in PyTorch and each file."""
    preprocess = scored.bundle.preprocess
    pixels = np.stack([preprocess.resize(open_image(r.image)) for r in scored.splits.test])
    every = {"torch": TorchNetwork(scored.bundle.model, CPU), **networks}
    maps = {}
    for name, network in every.items():
        probs = to_probs(run_network(network, pixels, preprocess))
        maps[name] = 100 * evaluate(probs, scored.splits.test.targets)["map"]
        print(f"map of {len(pixels)} test images, {name:<6} {maps[name]:.2f}")
    return maps


def speeds(
    scored: OpenRun, networks: dict[str, OnnxNetwork], batches: list[int], seconds: float
) -> dict[int, dict[str, float]]:
    """Print and return milliseconds per image for each batch size."""
    preprocess = scored.bundle.preprocess
    side = preprocess.image_size
    eager = TorchNetwork(scored.bundle.model, CPU)
    found = {}
    print("ms per image   torch  onnx fp32  onnx int8  fp32/torch  int8/fp32")
    for size in batches:
        pixels = np.random.default_rng(0).integers(0, 256, (size, side, side, 3), np.uint8)
        taken = seconds_per_image(
            [eager, networks["fp32"], networks["int8"]],
            [as_input(pixels, preprocess, takes) for takes in (False, True, True)],
            seconds,
        )
        torch_ms, fp32_ms, int8_ms = (1000 * each for each in taken)
        found[size] = {"torch": torch_ms, "fp32": fp32_ms, "int8": int8_ms}
        print(
            f"batch {size:>4} {torch_ms:>10.2f} {fp32_ms:>10.2f} {int8_ms:>10.2f} "
            f"{torch_ms / fp32_ms:>10.2f}x {fp32_ms / int8_ms:>9.2f}x",
            flush=True,
        )
    return found


def equality(name: str, folder: Path) -> dict[int, float]:
    """Print and return the maximum deviation of ONNX logits from PyTorch's, by batch size."""
    torch.manual_seed(0)
    side = default_image_size(name)
    model = create_model(name, num_classes=80).eval()
    with torch.no_grad():  # scale logits to about 1, as in a trained network
        model.get_parameter("head.weight").mul_(2 / model(torch.randn(4, 3, side, side)).std())
    save_bundle(
        folder / name, model=model, name=name, overrides={}, preprocess=Preprocess(side),
        classes=[str(k) for k in range(80)],
    )  # fmt: skip
    export(str(folder / name), folder / "variant.onnx")
    network, _ = load_onnx(folder / "variant.onnx", "cpu")
    bundle = load_bundle(folder / name)
    found = {}
    for size in (1, 3):
        pixels = np.random.default_rng(size).integers(0, 256, (size, side, side, 3), np.uint8)
        expected = TorchNetwork(bundle.model, CPU)(bundle.preprocess.scale(pixels))
        found[size] = float(np.abs(network(pixels) - expected).max())
        print(
            f"{name:<10} batch {size}: logits up to {np.abs(expected).max():.1f} differ by at most "
            f"{found[size]:.1e}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
