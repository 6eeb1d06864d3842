"""`mltr plan`: the memory, time and disk space that a recipe needs, and what to change."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltr.errors import MltrError, UsageError
from mltr.terminal import make_console

if TYPE_CHECKING:
    from mltr.config.schema import Config
    from mltr.data.records import Splits
    from mltr.planning.estimate import Images, Place

log = logging.getLogger(__name__)

OWN_CLASSES = 20  #: number of classes if neither the data nor --classes gives it (assumed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments. It also accepts any field of a recipe."""
    parser.add_argument("recipe", metavar="RECIPE", help="a name such as coco, or a YAML file")
    parser.add_argument(
        "photos", metavar="PHOTOS", nargs="?", help="the photos: short for --data.root PHOTOS"
    )
    parser.add_argument(
        "--gpus",
        metavar="N x DEVICE",
        help="such as 8xH200 or A100-80GB; cpu and cuda stand for this machine, whose speed is "
        "measured (default: cuda if available, else cpu)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="number of training images, if the data isn't available",
    )
    parser.add_argument(
        "--classes", type=int, metavar="K", help="number of classes, if the data isn't available"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    parser.epilog = (
        "The data isn't needed: the image counts of public data sets are known, and --images "
        "gives others. Any field of the recipe can be changed, as in mltr train."
    )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Plan a recipe and print it."""
    from mltr.config.recipe import find_recipe, load_recipe, with_photos
    from mltr.files.writing import write_figures
    from mltr.planning.devices import parse_gpus
    from mltr.weights.pretrained import resolve_name

    config = load_recipe(find_recipe(args.recipe), with_photos(args.photos, overrides))
    config.model = resolve_name(config.model)
    count, name = parse_gpus(args.gpus or _own_device())
    for option in ("images", "classes"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise UsageError(f"--{option} {getattr(args, option)} must be positive")
    figures = make_plan(config, name, count, args.images, args.classes, Path(args.recipe).stem)
    if args.json:
        write_figures(args.json, figures)
    if args.json != "-":
        print_plan(figures)
    return 0


def make_plan(
    config: Config,
    device: str,
    count: int,
    images: int | None = None,
    classes: int | None = None,
    recipe: str = "",
) -> dict[str, Any]:
    """Return the figures of a plan, with `advice` if the recipe doesn't fit.

    `device` is a name of the table of devices, or ``cpu`` or ``cuda`` for this machine. `recipe` is
    the recipe's name, which identifies the ImageNet data sets. Raises `UsageError` if the number of
    images is unknown.
    """
    from mltr.planning.devices import HERE
    from mltr.planning.estimate import advice, estimate, place_of
    from mltr.training.build import settle
    from mltr.training.run import check_shares

    try:
        config, _ = settle(config)
    except UsageError:  # training would refuse this, too
        raise
    except MltrError as error:  # of weights that aren't here, which needn't be to plan
        log.warning("planned without what the weights say: %s", error)
    counted, splits = count_images(config, images, classes, recipe)
    check_shares(config.train.batch_size, counted.train, count)
    if device in HERE:
        place = _this_machine(config, device, count, splits or counted.classes)
    else:
        if config.train.precision == "auto":
            config.train.precision = "bf16"
        place = place_of(device, count)
    figures = estimate(config, counted, place)
    if not figures["memory_gib"]["fits"]:
        figures["advice"] = advice(config, counted, place)
    if device not in HERE:
        from mltr.data.loading import MOST_WORKERS
        from mltr.planning.speed import measure_loading

        figures["loading_images_per_s"] = measure_loading(config)
        workers = config.data.workers
        figures["workers"] = workers if workers >= 0 else MOST_WORKERS  # assumes enough cores
    return figures


def count_images(
    config: Config, images: int | None, classes: int | None, recipe: str = ""
) -> tuple[Images, Splits | None]:
    """Return the image counts of a recipe's splits, and the splits if the data is available."""
    from mltr.data.sources import open_splits, open_unlabelled
    from mltr.planning.estimate import Images
    from mltr.planning.published import public_set

    data, known = config.data, public_set(config.data, recipe)
    if images is None and (data.format == "scenes" or data.root):
        splits = open_splits(data)
        train, val, test = map(len, splits)
        if data.unlabelled_root:
            train += len(open_unlabelled(data, splits))
        return Images(train, val, test, classes or len(splits.train.classes)), splits
    if images is not None:
        total, test, disk_gb = images, round(images * data.test_fraction), 0.0
        number = classes or (known.classes if known else OWN_CLASSES)
    elif known is not None:
        total, test, disk_gb, number = known.train, known.test, known.disk_gb, known.classes
    else:
        raise UsageError(
            "the number of images is unknown: give it with --images N (and --classes K), or give "
            "the images with --data.root FOLDER"
        )
    val = round(total * data.val_fraction)
    return Images(total - val, val, test, classes or number, disk_gb), None


def _own_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _this_machine(config: Config, device: str, count: int, splits: Splits | int) -> Place:
    """Return this machine's device, with its speed measured over a few steps of the recipe."""
    import torch

    from mltr.machine.memory import memory_bytes
    from mltr.machine.precision import choose_precision
    from mltr.planning.devices import CONTEXT_GIB
    from mltr.planning.estimate import GIB, Place
    from mltr.planning.speed import measure_speed

    if device != _own_device():
        raise UsageError(
            f"--gpus {device}: only {_own_device()} can be measured here; for another device, give "
            "its name, such as H200"
        )
    if device == "cpu" and count > 1:
        raise UsageError(f"--gpus {count}xcpu: this machine counts as one device; use --gpus cpu")
    if device == "cuda" and count > (here := torch.cuda.device_count()):
        raise UsageError(f"--gpus {count}xcuda: this machine has {here}")
    precision = choose_precision(config.train.precision, torch.device(device))
    config.train.precision = precision  # type: ignore[assignment]
    if device == "cpu":
        memory_gib = memory_bytes() / GIB
        context_gib = _program_gib()
    else:
        memory_gib = torch.cuda.get_device_properties(0).total_memory / GIB
        context_gib = CONTEXT_GIB
    share = replace(config.train, batch_size=-(-config.train.batch_size // count))
    speed = measure_speed(replace(config, train=share), splits)
    return Place(
        device,
        count,
        memory_gib,
        context_gib,
        train_images_per_s=speed.train_images_per_s,
        val_images_per_s=speed.val_images_per_s,
    )


def _program_gib() -> float:
    """Return this process's memory in GiB with all of training imported and no network."""
    import psutil  # a dependency of accelerate

    import mltr.training.labels
    import mltr.training.trainer  # noqa: F401

    return float(psutil.Process().memory_info().rss) / 2**30


# -- on screen ---------------------------------------------------------------------------------


def print_plan(figures: dict[str, Any]) -> None:
    """Print a plan as a table, followed by remarks on problems."""
    from rich.table import Table

    console = make_console()
    network, device = figures["network"], figures["device"]
    title = (
        f"{network['name']}, {network['image_size']} px, on {device['count']} x {device['name']}"
    )
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in plan_rows(figures):
        table.add_row(name, value)
    console.print(table)
    for line in remarks(figures):
        console.print(line, highlight=False)


def plan_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a plan's table: name and figure."""
    network, images, batch = figures["network"], figures["images"], figures["batch"]
    memory, speed, disk = figures["memory_gib"], figures["speed"], figures["disk_gb"]
    share = speed["share_of_peak"]
    how = (
        "measured here"
        if share is None
        else (f"assumed: {100 * share:.1f} % of the peak, limited by {speed['limited_by']}")
    )
    parts = f" x {batch['accumulation']} per step" if batch["accumulation"] > 1 else ""
    data = "of unknown size" if disk["data"] is None else f"{disk['data']:.1f} GB"
    cache = f", cache {disk['cache']:.1f} GB" if disk["cache"] else ""
    return [
        ("parameters", f"{network['parameters'] / 1e6:.2f} M"),
        ("multiply-adds", f"{network['multiply_adds'] / 1e9:.2f} G per image"),
        (
            "images",
            f"{images['train']:,} training, {images['val']:,} validation, {images['test']:,} test; "
            f"{images['classes']} classes",
        ),
        ("batch", f"{batch['all']}{parts}, {batch['a_device']} per device"),
        ("steps", f"{batch['steps']:,} in {batch['epochs']} epochs"),
        (
            "memory",
            f"{memory['total']:.2f} of {memory['available']:.0f} GiB per device: weights, moments "
            f"and average {memory['states']:.2f}, a step {memory['step']:.2f}, program "
            f"{memory['program']:.2f}" + ("" if memory["fits"] else "; doesn't fit"),
        ),
        ("speed", f"{speed['images_per_s']:,.0f} images/s ({how})"),
        (
            "time",
            f"{in_words(figures['hours'])}, {in_words(figures['train_hours'])} of it training"
            + (
                f"; {figures['device_hours']:.1f} device-hours"
                if figures["device"]["count"] > 1
                else ""
            ),
        ),
        ("disk", f"run {disk['run']:.2f} GB, data {data}{cache}"),
    ]


def remarks(figures: dict[str, Any]) -> list[str]:
    """Return the problems of a plan and how to fix them."""
    lines = []
    if figures["freeze"] == "backbone":
        lines.append(
            "Frozen backbone: the time is that of computing the features once; the head learns on "
            "them in seconds, and the next head needs only these."
        )
    elif figures["freeze"] != "none":
        lines.append(f"train.freeze {figures['freeze']}: planned as if all of the network learned.")
    if not figures["memory_gib"]["fits"]:
        lines.append("It doesn't fit into memory. These options would fit:")
        for found in figures["advice"]:
            changed = found["estimate"]
            lines.append(
                f"  {' '.join(found['options'])}: {changed['memory_gib']['total']:.2f} GiB, "
                f"{in_words(changed['hours'])} ({found['words']})"
            )
        if not figures["advice"]:
            lines.append("  none; choose a larger device or smaller images")
    if figures["speed"]["limited_by"] == "launching kernels":
        lines.append(
            f"{figures['batch']['a_device']} images per step are too few for this device: "
            "launching kernels takes most of the time. Use fewer devices, a larger "
            "train.batch_size or --train.compile true."
        )
    if "loading_images_per_s" in figures:
        wanted = figures["speed"]["images_per_s"] / figures["device"]["count"]
        needed = math.ceil(wanted / figures["loading_images_per_s"])
        if needed > figures["workers"]:
            lines.append(
                f"Loading: a core like this machine's prepares "
                f"{figures['loading_images_per_s']:.0f} photos/s of 500 x 375 pixels, so each "
                f"device needs about {needed} workers (--data.workers; the recipe has "
                f"{figures['workers']}). With fewer it waits for images."
            )
    return lines


def in_words(hours: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if hours < 1 / 20:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:.1f} h"
