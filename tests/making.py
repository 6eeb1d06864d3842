"""Small files and short trainings that several tests need."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mltr.cli import main
from mltr.data.preprocess import Preprocess
from mltr.data.readers.voc import VOC_CLASSES

#: Options for training on scenes in a second or two.
TINY = [
    "--data.scenes.train=48", "--data.scenes.val=16", "--data.scenes.test=24",
    "--data.scenes.side=32", "--data.base_size=32", "--data.cache=false", "--data.workers=0",
    "--model.image_size=32", "--model.overrides.depths=[0,1]",
    "--model.overrides.conv_depths=[1,0]", "--train.batch_size=16", "--train.precision=fp32",
    "--train.min_size=0", "--augment.mixup=0", "--augment.cutmix=0", "--train.ema_decay=0.9",
    "--train.eval_every=1",
]  # fmt: skip


def train(out: Path, *arguments: str, epochs: int = 2) -> int:
    """Train on scenes through the command, for a second or two; return its exit code."""
    options = ["--out", str(out), *TINY, f"--train.epochs={epochs}", *arguments]
    return main(["train", "scenes_nano", *options])


#: Command that launches several processes (the number comes next), and its environment.
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def write_image(path: Path, size: tuple[int, int] = (24, 20), seed: int | None = None) -> Path:
    """Write a small picture of noise; the default seed depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(sum(map(ord, str(path.name))) if seed is None else seed)
    pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_plain(folder: Path, count: int) -> Path:
    """Write pictures of noise, p0.jpg and so on, without labels."""
    for index in range(count):
        write_image(folder / f"p{index}.jpg")
    return folder


#: Options for training on a folder of photos in seconds.
TINY_ON_PHOTOS = (
    "--data.workers=0", "--data.base_size=0", "--data.cache=false", "--model.name=mltr_nano",
    "--model.image_size=32", "--model.overrides.depths=[0,1]",
    "--model.overrides.conv_depths=[1,0]", "--train.batch_size=8", "--train.epochs=1",
    "--train.precision=fp32",
)  # fmt: skip


def write_photos(folder: Path, count: int = 40) -> Path:
    """Write pictures of noise with a table of two labels, all combinations equally often."""
    rows = ["path,sea,sunset"]
    for index in range(count):
        write_image(folder / f"{index}.png", (40, 30), seed=index)
        rows.append(f"{index}.png,{index % 2},{index // 2 % 2}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


#: A network with one triple of blocks, for images of 32 pixels.
ONE_TRIPLE = {"depths": (0, 0, 1, 0), "image_size": 32}


def save_untrained(
    folder: Path,
    classes: Sequence[str],
    overrides: dict[str, Any] = ONE_TRIPLE,
    sharpness: float = 1,
    **about: Any,
) -> Path:
    """Save a bundle that nobody trained; `sharpness` scales the weights of its classifier."""
    import torch

    from mltr.network.model import create_model
    from mltr.weights.bundle import save_bundle

    torch.manual_seed(0)
    model = create_model("mltr_nano", len(classes), **overrides).eval()
    if sharpness != 1:
        with torch.no_grad():
            model.get_parameter("head.weight").mul_(sharpness)
    about = {"preprocess": Preprocess(32), **about}
    save_bundle(
        folder, model=model, name="mltr_nano", overrides=overrides, classes=classes, **about
    )
    return folder


def write_voc(root: Path, count: int = 24) -> None:
    """Write a VOC folder: 2/3 trainval, 1/3 test; every third car is only difficult."""
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "Annotations"):
        folder.mkdir(parents=True)
    names = [f"{i:06d}" for i in range(count)]
    border = count * 2 // 3
    for split, chosen in (("trainval", names[:border]), ("test", names[border:])):
        (lists / f"{split}.txt").write_text("\r\n".join(chosen) + "\r\n")
        for name in VOC_CLASSES:
            lines = [f"{image} {_flag(name, int(image)):2d}" for image in chosen]
            (lists / f"{name}_{split}.txt").write_text("\r\n".join(lines) + "\r\n")
    for name in names:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        objects = [(c, _flag(c, int(name)) == 0) for c in VOC_CLASSES if _flag(c, int(name)) >= 0]
        text = "".join(
            f"<object><name>{c}</name><difficult>{int(difficult)}</difficult><bndbox><xmin>10</xmin>"
            "<ymin>10</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
            for c, difficult in objects
        )
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(f"<annotation>{text}</annotation>")


def _flag(name: str, image: int) -> int:
    """Return 1 if the class is in the image, 0 if only as difficult, -1 if absent."""
    if name == "car":
        return 0 if image % 3 == 0 else 1
    if name == "person":
        return 1 if image % 2 == 0 else -1
    return -1


def count_done(path: Path) -> int:
    """Return the number of images in a journal, as the next run would read it."""
    with tempfile.TemporaryDirectory() as copy:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, copy)
        connection = sqlite3.connect(Path(copy) / path.name)
        try:
            return int(connection.execute("SELECT COUNT(*) FROM images").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0
        finally:
            connection.close()
