"""Speed of `mltr predict` on photo files as a share of its network's speed alone.

    python benchmarks/tagging.py ../shared/data/coco_mini --out runs/tagging.json
    python benchmarks/tagging.py --names 1000000   # time to the first row in a large folder

Each round predicts the same number of images in one process: with the network alone on a prepared
tensor, and from files to a finished Parquet file with its journal. Prints the share of each round,
their median and range. Each photo is a copy with a few unique bytes appended, so that none is
recognised as a duplicate.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from mltr.data.preprocess import Preprocess
from mltr.data.walk import find_images
from mltr.files.writing import write_figures
from mltr.network.model import create_model
from mltr.predict import command as predict
from mltr.predict.inputs import Inputs, Survey
from mltr.predict.predictor import Predictor
from mltr.weights.bundle import TorchNetwork, save_bundle

SIDE = 224
NUM_CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", help="folders of photos")
    parser.add_argument("--model", default="mltr_s")
    parser.add_argument("--images", type=int, default=128, help="images per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--names", type=int, help="time the start with this many names instead")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    about = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "threads": args.threads, "torch": torch.__version__, "model": args.model,
        "batch_size": args.batch_size, "images": args.images, "photos": args.photos,
    }  # fmt: skip
    print(about)
    with tempfile.TemporaryDirectory() as folder:
        figures = start(Path(folder), args.names) if args.names else compare(Path(folder), args)
    if args.out:
        write_figures(args.out, {"about": about} | figures)


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time the network alone and the command alternately; the first round is warm-up."""
    copy_photos(args.photos, folder / "photos", args.images)
    predictor = create_predictor(args.model, args.batch_size)
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    words = ["", str(folder / "photos"), "--out", str(folder / "tags.parquet"), "--overwrite"]
    options = parser.parse_args(words + (["--workers", str(args.workers)] if args.workers else []))
    ready = np.random.default_rng(0).normal(size=(args.batch_size, 3, SIDE, SIDE))
    batch = ready.astype(np.float32)

    def network_alone() -> None:
        for first in range(0, args.images, args.batch_size):
            predictor.network(batch[: args.images - first])

    def command() -> None:
        inputs = Inputs([str(folder / "photos")])
        predict.tag(predictor, inputs, Survey(inputs), options)

    rounds = []
    for _ in range(args.rounds + 1):
        (alone_s, alone_cpu_s), (whole_s, whole_cpu_s) = timed(network_alone), timed(command)
        rounds.append((alone_s, whole_s, alone_s / whole_s, alone_cpu_s / whole_cpu_s))
        print(
            f"network {args.images / alone_s:.1f}/s, command {args.images / whole_s:.1f}/s, "
            f"share of time {alone_s / whole_s:.1%}, of processor time "
            f"{alone_cpu_s / whole_cpu_s:.1%}",
            flush=True,
        )
    alone, whole, shares, cpu_shares = zip(*rounds[1:], strict=True)
    figures = {
        "network_images_per_s": args.images / median(alone),
        "command_images_per_s": args.images / median(whole),
        "share": median(shares),
        "share_range": [min(shares), max(shares)],
        "processor_share": median(cpu_shares),
        "processor_share_range": [min(cpu_shares), max(cpu_shares)],
    }
    print(
        f"share of time {median(shares):.1%} ({min(shares):.1%}..{max(shares):.1%}), of processor "
        f"time {median(cpu_shares):.1%} ({min(cpu_shares):.1%}..{max(cpu_shares):.1%})"
    )
    return figures


def timed(step: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time and the CPU time of a step in seconds."""
    began, cpu_began = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - began, time.process_time() - cpu_began


def copy_photos(sources: Sequence[str], folder: Path, count: int) -> None:
    photos = [path for source in sources for path in find_images(source)]
    folder.mkdir()
    np.random.default_rng(0).shuffle(photos)
    for number, path in enumerate(islice(cycle(photos), count)):
        copy = folder / f"{number:06d}{path.suffix}"
        shutil.copyfile(path, copy)
        with copy.open("ab") as file:
            file.write(b"%d" % number)


def create_predictor(name: str, batch_size: int) -> Predictor:
    torch.manual_seed(0)
    network = TorchNetwork(create_model(name, num_classes=NUM_CLASSES).eval(), torch.device("cpu"))
    classes = tuple(f"class {number}" for number in range(NUM_CLASSES))
    thresholds = np.full(NUM_CLASSES, 0.5, np.float32)
    return Predictor(network, classes, Preprocess(SIDE), thresholds, batch_size)


def start(folder: Path, count: int) -> dict[str, Any]:
    """Time the command from its start to the first row, in a folder of empty files."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(count):
        (photos / f"{number:08d}.jpg").touch()
    overrides: dict[str, Any] = {"depths": (0, 0, 1, 0), "image_size": 32}
    save_bundle(
        folder / "run",
        model=create_model("mltr_nano", num_classes=1, **overrides),
        name="mltr_nano",
        overrides=overrides,
        classes=["class"],
        preprocess=Preprocess(32),
    )
    words = [sys.executable, "-m", "mltr", "predict", str(folder / "run")]
    figures = {"names": count}
    for what, path in (("one_file_s", photos / "00000000.jpg"), ("all_names_s", photos)):
        began = time.perf_counter()
        process = subprocess.Popen([*words, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        figures[what] = time.perf_counter() - began
        process.kill()
        process.wait()
        print(f"{what}: {figures[what]:.1f}", flush=True)
    return figures


if __name__ == "__main__":
    main()
