"""Speed of `mltr predict` on photo files as a share of its network's speed alone.

    python benchmarks/tagging.py PHOTOS --out runs/tagging.json
    python benchmarks/tagging.py --names 1000000   # time to the first row in a large folder

Each round handles the same number of images in one process: the network alone on prepared pixels,
decoding alone, and from files to a finished Parquet file with its journal. Prints the command's
speed as a share of the network's, of the slower of the two, and of the bound: files are decoded on
the cores that run the network, so at best the times of the two add up. Each photo is a copy with a
few unique bytes appended, so that none is recognised as a duplicate.
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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import spread

from mltr.data.preprocess import Preprocess
from mltr.data.walk import find_images
from mltr.files.writing import write_figures
from mltr.machine.memory import keep_freed_memory
from mltr.network.model import create_model
from mltr.predict import command as predict
from mltr.predict import tagging
from mltr.predict.inputs import Inputs, Survey
from mltr.predict.options import ENGINES
from mltr.predict.predictor import load
from mltr.weights.bundle import save_bundle

NUM_CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", help="folders of photos")
    parser.add_argument("--model", default="mltr_s")
    parser.add_argument("--run", help="a run or an exported file, rather than an untrained network")
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--engine", default="torch", choices=ENGINES)
    parser.add_argument("--images", type=int, default=128, help="images per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--names", type=int, help="time the start with this many names instead")
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    keep_freed_memory(of_all_threads=True)  # as the command does
    torch.set_num_threads(args.threads)
    about = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "threads": args.threads, "torch": torch.__version__, "model": args.run or args.model,
        "side": args.side, "engine": args.engine,
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
    path = args.run or create_run(folder / "run", args)
    predictor = load(path, "cpu", args.batch_size, args.engine)
    parser = argparse.ArgumentParser()
    predict.add_arguments(parser)
    words = ["", str(folder / "photos"), "--out", str(folder / "tags.parquet"), "--overwrite"]
    options = parser.parse_args(words + (["--workers", str(args.workers)] if args.workers else []))
    side = predictor.preprocess.image_size
    shape = (args.batch_size, side, side, 3)
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def network_alone() -> None:
        for first in range(0, args.images, args.batch_size):
            predictor.logits(batch[: args.images - first])

    def decoding_alone() -> None:
        with ThreadPoolExecutor(args.workers or args.threads) as pool:
            deque(pool.map(predictor.look, find_images(folder / "photos")), maxlen=0)

    def command() -> None:
        inputs = Inputs([str(folder / "photos")])
        tagging.tag(predictor, inputs, Survey(inputs), options)

    rounds = []
    for _ in range(args.rounds + 1):
        network_s, decoding_s, whole_s = map(timed, (network_alone, decoding_alone, command))
        rounds.append((network_s, decoding_s, whole_s))
        print(
            f"network {args.images / network_s:.1f}/s, decoding {args.images / decoding_s:.1f}/s, "
            f"command {args.images / whole_s:.1f}/s",
            flush=True,
        )
    network, decoding, whole = np.array(rounds[1:]).T
    figures: dict[str, Any] = {
        f"{name}_images_per_s": args.images / median(taken)
        for name, taken in (("network", network), ("decoding", decoding), ("command", whole))
    }
    for name, shares in (
        ("network", network / whole),
        ("slower", np.maximum(network, decoding) / whole),
        ("bound", (network + decoding) / whole),
    ):
        figures[f"share_of_{name}"] = spread(shares.tolist())
        print(f"share of the {name}: {median(shares):.1%} ({min(shares):.1%}..{max(shares):.1%})")
    return figures


def timed(step: Callable[[], object]) -> float:
    """Return the wall time of a step in seconds."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def copy_photos(sources: Sequence[str], folder: Path, count: int) -> None:
    photos = [path for source in sources for path in find_images(source)]
    folder.mkdir()
    np.random.default_rng(0).shuffle(photos)
    for number, path in enumerate(islice(cycle(photos), count)):
        copy = folder / f"{number:06d}{path.suffix}"
        shutil.copyfile(path, copy)
        with copy.open("ab") as file:
            file.write(b"%d" % number)


def create_run(folder: Path, args: argparse.Namespace) -> Path:
    """Save an untrained network."""
    torch.manual_seed(0)
    save_bundle(
        folder,
        model=create_model(args.model, num_classes=NUM_CLASSES).eval(),
        name=args.model,
        overrides={},
        classes=[f"class {number}" for number in range(NUM_CLASSES)],
        preprocess=Preprocess(args.side),
    )
    return folder


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
