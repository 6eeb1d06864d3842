"""`mltr results`: published figures, our own beside them, and rows not yet run, with the reason.

A run counts for a published row only if it used that row's recipe: the same data, protocol,
network, size and training, on all the images. Runs that deviate are listed with the differences.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from mltr.config.schema import Config
from mltr.errors import MltrError, UsageError
from mltr.planning.published import (
    FREE_FIELDS,
    PAPER,
    PEERS,
    PRETRAINING,
    ROWS,
    SIBLING,
    Origin,
    PublicSet,
    Row,
    effective_batch,
    public_set,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (none or more)")
    parser.add_argument(
        "--gpus",
        nargs="+",
        default=[],
        metavar="N x DEVICE",
        help="plan each row for these devices, such as 1xH200 8xH200 (takes a minute or two)",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="write Markdown to this file instead of stdout"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")


def run(args: argparse.Namespace) -> int:
    """Compare the runs with the published rows."""
    from mltr.files.writing import text_writer, write_atomically, write_figures
    from mltr.planning.devices import DEVICES, HERE, parse_gpus

    devices = [parse_gpus(text) for text in args.gpus]
    for _, name in devices:
        if name in HERE:
            raise UsageError(
                f"--gpus {name}: the rows are planned for devices of the table only, which are "
                f"{', '.join(DEVICES)}"
            )
    matches = match_runs(args.runs)
    plans = [[_plan(row, name, count) for count, name in devices] for row in ROWS]
    text = to_markdown(matches, plans, args.gpus)
    if args.json:
        write_figures(args.json, to_figures(matches, plans))
    if args.out:
        write_atomically(args.out, text_writer(text))
        print(f"{args.out}: {sum(map(bool, matches.matching))} of {len(ROWS)} rows have been run")
    elif args.json != "-":
        print(text, end="")
    return 0


# -- matching runs to rows --------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A run: its folder, recipe, initial weights, and test figures (None if unfinished)."""

    path: Path
    config: Config
    origin: Origin
    metrics: dict[str, Any] | None

    @property
    def figure(self) -> float | None:
        """The figure that it is compared by; None also where no test image has a label."""
        name = "top1" if self.config.loss.name == "ce" else "map"
        return (self.metrics or {}).get(name)


@dataclass
class Matches:
    """All runs, grouped by the row of the table that they belong to."""

    matching: list[list[Run]] = field(default_factory=lambda: [[] for _ in ROWS])
    unfinished: list[list[Run]] = field(default_factory=lambda: [[] for _ in ROWS])
    deviating: list[tuple[Run, Row, list[str]]] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)  #: runs with data or a network of no row


def match_runs(folders: Sequence[str | Path]) -> Matches:
    """Read run folders and find the row of each; raises `MltrError` for other folders."""
    matches = Matches()
    seen = set()
    for folder in map(Path, folders):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        found = read_run(folder)
        number = _row_of(found)
        if number is None or (found.metrics and found.figure is None):
            matches.others.append(found)
            continue
        differences = deviations(found, ROWS[number])
        if differences:
            matches.deviating.append((found, ROWS[number], differences))
        elif found.metrics is None:
            matches.unfinished[number].append(found)
        else:
            matches.matching[number].append(found)
    return matches


def read_run(path: Path) -> Run:
    """Read a run folder; raises `MltrError` if it has no recipe or its figures are damaged."""
    from mltr.config.recipe import load_recipe
    from mltr.runs.folder import RunFolder

    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise MltrError(f"{path} is not a run folder: it has no {folder.recipe.name}")
    config = load_recipe(folder.recipe)
    metrics = None
    if folder.metrics.is_file():
        metrics = _read_json(folder.metrics)
        counts = metrics.get("images_in_splits")
        figures = [metrics[name] for name in ("map", "top1") if name in metrics]
        are_numbers = all(isinstance(each, int | float | None) for each in figures)
        if not figures or not are_numbers or not isinstance(counts, dict):
            raise MltrError(f"{folder.metrics}: no test map or top1, or no images_in_splits")
    return Run(path, config, _origin(config.model.init), metrics)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MltrError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise MltrError(f"{path} must contain a JSON object")
    return content


def _origin(init: str) -> Origin:
    """Return the kind of a run's initial weights: ``coco`` if `init` is a bundle from COCO."""
    if not init:
        return "scratch"
    bundle = Path(init) / "config.json"
    if bundle.is_file() and _read_json(bundle).get("extra", {}).get("data") == "coco":
        return "coco"
    return "pretrained"


def set_of(found: Run) -> PublicSet | None:
    """Return the public data set of a run; ImageNet is identified by its number of images."""
    config = found.config
    if config.loss.name != "ce" or found.metrics is None:
        return public_set(config.data)
    train, test = _counts(found)
    share = config.data.max_broken
    return next((s for s in PRETRAINING.values() if s.matches(train, test, share)), None)


def _counts(found: Run) -> tuple[int, int]:
    """Return the number of training and validation images of a finished run, and of test images."""
    counts = (found.metrics or {}).get("images_in_splits", {})
    return counts.get("train", 0) + counts.get("val", 0), counts.get("test", 0)


def set_of_row(row: Row) -> PublicSet:
    """Return the public data set of a row."""
    known = public_set(recipe_of(row).data, row.recipe)
    assert known is not None
    return known


def _row_of(found: Run) -> int | None:
    """Return the index of the row with the run's data, network and initial weights, or None."""
    known = set_of(found)
    candidates = [
        number
        for number, row in enumerate(ROWS)
        if known is not None
        and row.network == found.config.model.name
        and set_of_row(row).name == known.name
    ]
    if found.origin != "scratch":
        same = [number for number in candidates if ROWS[number].origin == found.origin]
        candidates = same or candidates
    return candidates[0] if candidates else None


@cache
def recipe_of(row: Row) -> Config:
    """Return the resolved recipe of a row. It is cached: don't modify it."""
    from mltr.config.recipe import find_recipe, load_recipe

    return load_recipe(find_recipe(row.recipe), row.options)


def deviations(found: Run, row: Row) -> list[str]:
    """Return the points in which a run deviates from the row's recipe."""
    from mltr.planning.estimate import image_side
    from mltr.runs.folder import differences

    wanted, config = recipe_of(row), found.config
    points = [
        f"{key} {new!r} instead of {old!r}"
        for key, old, new in differences(asdict(wanted), asdict(config))
        if key not in FREE_FIELDS and key != "model.image_size"
    ]
    for what, old, new in (
        ("px", image_side(wanted), image_side(config)),
        ("images per step", effective_batch(wanted), effective_batch(config)),
    ):
        if old != new:
            points.append(f"{new} {what} instead of {old}")
    if found.origin != row.origin:
        words = {"scratch": "from scratch", "pretrained": "from other weights", "coco": "from COCO"}
        points.append(f"{words[found.origin]} instead of {_start(row)}")
    return points + _missing_images(found)


def _missing_images(found: Run) -> list[str]:
    """Return a remark, in a list, if a run's number of images isn't that of the data set."""
    known = set_of(found)
    if known is None or found.metrics is None:
        return []
    train, test = _counts(found)
    if known.matches(train, test, found.config.data.max_broken):
        return []
    return [f"{train:,} + {test:,} images instead of {known.train:,} + {known.test:,}"]


def _start(row: Row) -> str:
    words = {"coco": "weights of our COCO run", "scratch": "random weights"}
    return words.get(row.origin, "ImageNet weights")


def _plan(row: Row, name: str, count: int) -> dict[str, Any]:
    from mltr.planning.estimate import Images, estimate, place_of

    config = recipe_of(row)
    known = set_of_row(row)
    if config.train.precision == "auto":
        config = replace(config, train=replace(config.train, precision="bf16"))
    val = round(known.train * config.data.val_fraction)
    images = Images(known.train - val, val, known.test, known.classes, known.disk_gb)
    return estimate(config, images, place_of(name, count))


# -- the page ----------------------------------------------------------------------------------


def to_markdown(
    matches: Matches, plans: Sequence[Sequence[dict[str, Any]]], gpus: Sequence[str]
) -> str:
    """Return the page: table of published and own figures, commands, plans, peers, other runs."""
    options = f" --gpus {' '.join(gpus)}" if gpus else ""
    lines = [
        "# Published figures, ours, and what has not been run",
        "",
        _paragraph(
            f"Generated by `mltr results RUNS{options} --out docs/results.md` from the folders of "
            "our runs; don't edit it. Figures are test mAP in percent (ImageNet: top-1 accuracy), "
            "as defined in [Protocols](protocols.md). A run appears in the column *ours* only if "
            "it used the row's recipe and all of the row's images; several seeds give their mean "
            "and range."
        ),
        "",
        "| data | network | published | ours, measured | not yet run, and why |",
        "| --- | --- | --- | --- | --- |",
        *(_row_line(number, matches, plans[number], gpus) for number in range(len(ROWS))),
        "",
        _paragraph(
            f"The MlTr figures are from {PAPER}, whose code and weights were never released; CAT's "
            f"top-1 is from {SIBLING}, by the same authors."
        ),
        "",
        "## The command of each row",
        "",
        _paragraph(
            "Add `--data.root` with the folder of the data, and `--model.init` with ImageNet "
            "weights: see [Where weights come from](weights.md). COCO_RUN is the folder of our own "
            "COCO run; the head is initialised randomly, since the classes differ."
        ),
        "",
        "```text",
        *dict.fromkeys(row.command for row in ROWS),
        "```",
        "",
    ]
    if gpus:
        lines += _plan_lines(plans, gpus)
    return "\n".join([*lines, *_peer_lines(), *_other_lines(matches)]).rstrip() + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)


def _row_line(
    number: int, matches: Matches, plans: Sequence[dict[str, Any]], gpus: Sequence[str]
) -> str:
    from mltr.planning.estimate import image_side

    row = ROWS[number]
    published = "not published" if row.figure is None else f"{row.figure:.1f}"
    network = f"{row.network}, {image_side(recipe_of(row))} px"
    noted = f" ({row.note})" if row.note else ""
    ours = _ours(matches.matching[number], row.metric)
    reason = "" if ours else _reason(row, matches.unfinished[number], plans, gpus)
    return f"| {row.data} | {network} | {published}{noted} | {ours} | {reason} |"


def _ours(runs: Sequence[Run], metric: str) -> str:
    figures = [100 * found.metrics[metric] for found in runs if found.metrics is not None]
    if not figures:
        return ""
    if len(figures) == 1:
        return f"{figures[0]:.1f} (one seed)"
    return f"{mean(figures):.1f} ({min(figures):.1f} to {max(figures):.1f}, {len(figures)} runs)"


def _reason(
    row: Row, unfinished: Sequence[Run], plans: Sequence[dict[str, Any]], gpus: Sequence[str]
) -> str:
    if unfinished:
        return f"under way: {', '.join(found.path.name for found in unfinished)}"
    known = set_of_row(row)
    weights = "" if row.origin == "scratch" else f", {_start(row)}"
    hours = [f"{plan['hours']:.1f} h on {text}" for plan, text in zip(plans, gpus, strict=True)]
    time = f", planned {' or '.join(hours)}" if hours else ""
    return f"needs the {known.train + known.test:,} images{weights} and a GPU{time}"


def _plan_lines(plans: Sequence[Sequence[dict[str, Any]]], gpus: Sequence[str]) -> list[str]:
    from mltr.planning.devices import BEST_SHARE, OPERATION_S, SCALING, TRAFFIC

    lines = [
        "## Planned cost of each row",
        "",
        _paragraph(
            "These figures are not measured; each comes from `mltr plan RECIPE --gpus ...`. No "
            "training of these networks has been timed on such a GPU, so the speed is assumed. A "
            f"training step moves {TRAFFIC:g} "
            "times the bytes that it keeps for the backward pass, at the bandwidth of the device's "
            f"memory. It takes at least as long as its products at {100 * BEST_SHARE:.0f} % of the "
            f"peak, and at least {1e6 * OPERATION_S:g} µs per operation. Several devices reach "
            f"{100 * SCALING:.0f} % of their combined speed. The first number is fitted to "
            "published training speeds of Swin on an RTX 3090; the others are rough estimates: see "
            "[Planning a run](planning.md). Data loading isn't included."
        ),
        "",
        "| data | network | images | batch x steps | device | memory, GiB | images/s "
        "| share of peak | hours | device-hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row, own in zip(ROWS, plans, strict=True):
        for plan, text in zip(own, gpus, strict=True):
            batch, memory, speed = plan["batch"], plan["memory_gib"], plan["speed"]
            fits = "" if memory["fits"] else ", doesn't fit"
            lines.append(
                f"| {row.data} | {row.network} | {plan['images']['train']:,} | {batch['all']} x "
                f"{batch['steps']:,} | {text} | {memory['total']:.1f} of {memory['available']:g}"
                f"{fits} | {speed['images_per_s']:,.0f} | {100 * speed['share_of_peak']:.1f} % | "
                f"{plan['hours']:.2f} | {plan['device_hours']:.1f} |"
            )
    return [*lines, ""]


def _peer_lines() -> list[str]:
    return [
        "## What others have published",
        "",
        "Protocols differ, and most choose the epoch on the test images: see "
        "[Protocols](protocols.md).",
        "",
        "| data | method | mAP | source |",
        "| --- | --- | --- | --- |",
        *(f"| {p.data} | {p.method} | {p.figure:.1f} | {p.source} |" for p in PEERS),
        "",
    ]


def _other_lines(matches: Matches) -> list[str]:
    lines = []
    if matches.deviating:
        lines += [
            "## Runs that deviate from a row's recipe",
            "",
            "Their figures don't count for the row.",
            "",
            "| run | of the row | map | what differs |",
            "| --- | --- | --- | --- |",
        ]
        for found, row, points in matches.deviating:
            what = "; ".join(points)
            lines.append(
                f"| {found.path.name} | {row.data}, {row.network} | {_map(found)} | {what} |"
            )
        lines.append("")
    if matches.others:
        lines += ["## Runs without a published row", ""]
        lines += ["| run | data | network | map |", "| --- | --- | --- | --- |"]
        for found in matches.others:
            config = found.config
            lines.append(
                f"| {found.path.name} | {config.data.format} | {config.model.name} | "
                f"{_map(found)} |"
            )
        lines.append("")
    return lines


def _map(found: Run) -> str:
    if found.metrics is None:
        return "not finished"
    return "none" if found.figure is None else f"{100 * found.figure:.1f}"


def to_figures(
    matches: Matches, plans: Sequence[Sequence[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the content of the page as plain values."""
    rows = []
    for number, row in enumerate(ROWS):
        runs = matches.matching[number]
        rows.append(
            asdict(row)
            | {"command": row.command, "plans": list(plans[number])}
            | {"ours": {str(r.path): 100 * r.metrics[row.metric] for r in runs if r.metrics}}
        )
    deviating = [
        {"run": str(found.path), "data": row.data, "network": row.network, "deviations": points}
        for found, row, points in matches.deviating
    ]
    return {
        "rows": rows,
        "deviating": deviating,
        "others": [{"run": str(found.path)} for found in matches.others],
    }
