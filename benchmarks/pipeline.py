"""Images per second from JPEG files to training batches, beside the pipeline of ASL.

    python benchmarks/pipeline.py --data COCO_MINI --out runs/pipeline.json

The peer is the pipeline of ASL (arXiv 2009.14119) and its many descendants: Pillow opens and
converts, then squash, cutout, RandAugment (torchvision's, at the same strength) and ToTensor. Ours
does the same with the recipe `coco`, and also flips half of the images. Both alternate batch by
batch, up to the float32 batch, first in one process and thread, then in worker processes. Finally
our pipeline is compared with itself using torchvision's RandAugment.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import AugmentConfig
from mltr.data import ImageDataset, Preprocess, Record, Split, colours, find_images, make_loader
from mltr.data.images import open_image, open_reduced
from mltr.data.loading import _pack
from mltr.data.preprocess import squash
from mltr.data.transforms import Planes, TrainTransform, cut_out, resize, to_floats
from mltr.files.cache import Cache
from mltr.files.writing import write_figures
from mltr.machine.memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, metavar="FOLDER", help="folder that contains JPEG files"
    )
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="times that each image is loaded")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # both pipelines benefit; our workers do the same
    paths = [path for path in find_images(args.data) if path.suffix.lower() in (".jpg", ".jpeg")]
    about = {
        "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count(),
        "images": len(paths), "side": args.side, "batch_size": args.batch_size,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
        "pillow": PIL.__version__, "numpy": np.__version__,
    }  # fmt: skip
    print(about)
    records = [Record(path, str(path), np.zeros(80, np.int8)) for path in paths]
    split = Split(tuple(map(str, range(80))), records)
    augment = load_recipe(find_recipe("coco"), []).augment
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "ASL": AslImages(paths, args.side, augment),
            "MlTr": ImageDataset(split, Preprocess(args.side), augment),
            "MlTr, cached": ImageDataset(
                split,
                Preprocess(args.side, base_size=args.side),
                augment,
                cache=Cache(Path(folder)),
            ),
        }
        figures: dict[str, Any] = {"about": about, "one thread": compare(ways, args)}
        for workers in args.workers:
            figures[f"{workers} workers"] = compare_workers(ways, args, workers)
        for name in ("MlTr", "MlTr, cached"):
            figures[f"RandAugment: {name}"] = compare(with_torchvision(ways[name]), args)
    figures["ms per image"] = stages(paths, args.side, augment)
    if args.out:
        write_figures(args.out, figures)


# -- the peer ----------------------------------------------------------------------------------


class AslImages(Dataset[Tensor]):
    """Training images as ASL's train.py loads them."""

    def __init__(self, paths: Sequence[Path], side: int, augment: AugmentConfig) -> None:
        self.paths = paths
        self.transform = transforms.Compose([
            transforms.Resize((side, side)),
            CutoutPIL(augment.cutout),
            transforms.RandAugment(
                augment.randaugment_ops, augment.randaugment_magnitude, fill=[128] * 3
            ),
            transforms.ToTensor(),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class CutoutPIL:
    """Cutout as in ASL's helper_functions.py."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = np.random.randint(width), np.random.randint(height)
        half = int(self.share * width + 0.5) // 2, int(self.share * height + 0.5) // 2
        box = [
            int(np.clip(x - half[0], 0, width)), int(np.clip(y - half[1], 0, height)),
            int(np.clip(x + half[0], 0, width)), int(np.clip(y + half[1], 0, height)),
        ]  # fmt: skip
        colour = (random.randint(0, 255), random.randint(0, 255), random.randint(0, 255))
        ImageDraw.Draw(image).rectangle(box, fill=colour)
        return image


class TorchvisionTransform(TrainTransform):
    """The transform of training, with torchvision's RandAugment instead of ours."""

    def __init__(self, augment: AugmentConfig, on: str) -> None:
        super().__init__(replace(augment, randaugment_ops=0))
        self.rand_augment = v2.RandAugment(
            augment.randaugment_ops, augment.randaugment_magnitude, fill=[128] * 3
        )
        self.on = on

    def __call__(self, *args: Any) -> Planes:
        planes = super().__call__(*args)
        if self.on == "tensors":
            return self.rand_augment(torch.from_numpy(planes)).numpy()
        image = self.rand_augment(Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))))
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def with_torchvision(dataset: ImageDataset) -> dict[str, ImageDataset]:
    """Return datasets of the same images with our RandAugment and with torchvision's."""
    ways = {"ours": dataset}
    for on in ("tensors", "Pillow images"):
        ways[f"torchvision's on {on}"] = other = copy(dataset)
        other.transform = TorchvisionTransform(dataset.transform.augment, on)
    return ways


# -- comparing ---------------------------------------------------------------------------------


def compare(ways: dict[str, Dataset[Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Time batches of the datasets alternately in this thread; ratios are relative to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    count = len(next(iter(ways.values()))) // args.batch_size  # type: ignore[arg-type]
    for number in range(-1, count * args.rounds):
        start = number % count * args.batch_size
        for name, dataset in ways.items():
            began = time.process_time()
            _make_batch(dataset, range(start, start + args.batch_size))
            if number >= 0:  # the first batch is warm-up
                seconds[name].append(time.process_time() - began)
    return summarise("one thread", seconds, args.batch_size)


def _make_batch(dataset: Any, indices: Sequence[int]) -> Tensor:
    samples = [dataset[index] for index in indices]
    if isinstance(dataset, AslImages):
        return torch.stack(samples)
    return _pack(samples).unpack().ready(dataset.preprocess, torch.device("cpu")).images


def compare_workers(
    ways: dict[str, Dataset[Any]], args: argparse.Namespace, workers: int
) -> dict[str, Any]:
    """Time whole epochs of the datasets alternately: in wall time, and in CPU time per worker.

    The latter doesn't depend on other load of the machine.
    """
    loaders = {name: _loader(dataset, args.batch_size, workers) for name, dataset in ways.items()}
    clock: dict[str, list[float]] = {name: [] for name in ways}
    own: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(args.rounds + 1):
        for name, (loader, batches) in loaders.items():
            began, spent = time.perf_counter(), _seconds_of_workers(loader)
            count = sum(len(images) for images in batches())
            if round_number:  # the first round starts the workers
                clock[name].append(time.perf_counter() - began)
                own[name].append(_seconds_of_workers(loader) - spent)
    return {
        "by the clock": summarise(f"{workers} workers", clock, count),
        "per worker": summarise("per worker", own, count),
    }


def _loader(
    dataset: Any, batch_size: int, workers: int
) -> tuple[DataLoader[Any], Callable[[], Iterator[Tensor]]]:
    if isinstance(dataset, AslImages):
        loader = DataLoader(
            dataset, batch_size, num_workers=workers, persistent_workers=True,
            worker_init_fn=lambda worker: torch.set_num_threads(1),
        )  # fmt: skip
        return loader, lambda: iter(loader)
    own = make_loader(dataset, batch_size, workers=workers)
    return own.loader, lambda: (batch.images for batch in own)


def _seconds_of_workers(loader: Any) -> float:
    """Return the CPU seconds of a loader's workers so far; 0 before they have started."""
    found = 0.0
    for worker in getattr(loader._iterator, "_workers", ()):
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")")[1].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def summarise(title: str, seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    rows = {}
    first, peers = next(iter(seconds.items()))
    for name, own in seconds.items():
        ratios = [peer / mine for peer, mine in zip(peers, own, strict=True)]
        rates = [images / time for time in own]
        rows[name] = {
            "images_per_s": median(rates), "images_per_s_range": [min(rates), max(rates)],
            "ratio": median(ratios), "ratio_range": [min(ratios), max(ratios)],
        }  # fmt: skip
        print(
            f"{title:<12} {name:<30} {median(rates):7.0f} images/s "
            f"({min(rates):.0f}..{max(rates):.0f})   {median(ratios):.2f} times {first} "
            f"({min(ratios):.2f}..{max(ratios):.2f})",
            flush=True,
        )
    return rows


# -- where the time goes -----------------------------------------------------------------------


def stages(paths: Sequence[Path], side: int, augment: AugmentConfig) -> dict[str, float]:
    """Return the milliseconds per image of each step: medians over a few rounds."""
    rng = np.random.default_rng(0)
    files = [path.read_bytes() for path in paths[:100]]
    full = [open_image(file) for file in files]
    reduced = [open_reduced(file, side) for file in files]
    squashed = [squash(image, side, place) for image, place in reduced]
    planes = [resize(image, place, side) for image, place in reduced]
    batch = torch.from_numpy(np.stack(planes))
    ops, magnitude = augment.randaugment_ops, augment.randaugment_magnitude
    to_tensor = transforms.ToTensor()
    steps: dict[str, Callable[[], Any]] = {
        "peer: decode in full": lambda: [_decode(file) for file in files],
        "peer: squash": lambda: [image.resize((side, side), 2) for image in full],
        "peer: cutout": lambda: [CutoutPIL(augment.cutout)(image) for image in squashed],
        "peer: RandAugment": lambda: list(
            map(transforms.RandAugment(ops, magnitude, fill=[128] * 3), squashed)
        ),
        "peer: to a float tensor": lambda: list(map(to_tensor, squashed)),
        "decode near the size": lambda: [open_reduced(file, side) for file in files],
        "squash (evaluation)": lambda: [squash(*pair[:1], side, pair[1]) for pair in reduced],
        "squash (training)": lambda: [resize(image, place, side) for image, place in reduced],
        "flip": lambda: [np.ascontiguousarray(image[:, :, ::-1]) for image in planes],
        "RandAugment": lambda: [colours.rand_augment(p, ops, magnitude, rng) for p in planes],
        "cutout": lambda: [cut_out(image, side // 2, rng) for image in planes],
        "stack": lambda: torch.stack(list(map(torch.from_numpy, planes))),
        "batch to floats": lambda: to_floats(batch, Preprocess(side)),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(5):
        for name, step in steps.items():
            began = time.process_time()
            step()
            times[name].append(1000 * (time.process_time() - began) / len(files))
    found = {name: median(own) for name, own in times.items()}
    for name, own in found.items():
        print(f"{name:<26} {own:6.3f} ms per image")
    return found


def _decode(content: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(content)).convert("RGB")


if __name__ == "__main__":
    main()
