"""`mltr predict`: name what is in photos."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import BrokenImage, UsageError, did_you_mean
from mltr.predictor import DEFAULT_THRESHOLD, Predictor, load, predict_paths
from mltr.results import (
    SHEET_PICTURES,
    Row,
    check_sidecars,
    printable,
    with_progress,
    with_sidecars,
    with_tiles,
    write_rows,
    write_sheet,
)

if TYPE_CHECKING:
    from mltr.gallery import Tile

SHEET_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PATH_WIDTH = 48  #: longest path that a table aligns
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


@dataclass
class _Tally:
    """What the summary at the end tells."""

    images: int = 0
    broken: list[str] = field(default_factory=list)
    sidecars_kept: list[Path] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    interrupted: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr predict``."""
    add = parser.add_argument
    add("bundle", metavar="RUN", help="a training run, or a folder with weights")
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        help="an image, a folder (with those below), a quoted pattern, or - for a list on stdin",
    )
    add("--out", metavar="FILE", help="write the results here, over what is there (- for stdout)")
    add(
        "--format",
        choices=["table", "jsonl", "csv", "parquet"],
        help="of the results; by default by the name of --out, else a table on a terminal and "
        "JSON lines in a pipe",
    )
    add("--json", metavar="FILE", help="short for --format jsonl --out FILE")
    add(
        "--sidecars",
        action="store_true",
        help="write the labels of photo.jpg to photo.txt beside it, separated by commas; a file "
        "that is already there is kept",
    )
    add("--overwrite", action="store_true", help="let --sidecars replace files that are there")
    add("--sheet", metavar="FILE", help=f"draw the first {SHEET_PICTURES} images with their labels")
    add(
        "--threshold",
        type=float,
        help=f"least probability of a label (default: the run's own, or {DEFAULT_THRESHOLD})",
    )
    add(
        "--top",
        type=int,
        metavar="K",
        help="the K best labels, whatever their probability unless --threshold is given",
    )
    for name, what in (("--only", "no classes but these"), ("--exclude", "all classes but these")):
        add(name, action="append", default=[], metavar="CLASS,...", help=what)
    add("--batch-size", type=int, default=32, metavar="N", help="images at a time (default: 32)")
    add("--workers", type=int, metavar="N", help="threads that open images")
    add("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator if there is one)")


def run(args: argparse.Namespace) -> int:
    """Predict for all images; 1 if some can't be read (the others are written), else 0."""
    _check_numbers(args)
    out, form = _choose_output(args)
    paths = find_paths(args.paths)
    _check_targets(args, out, paths)
    predictor = load(args.bundle, args.device, args.batch_size)
    chosen = choose_classes(predictor.classes, args.only, args.exclude)
    classes = tuple(predictor.classes[index] for index in chosen)
    if args.threshold is not None:
        predictor.thresholds[:] = args.threshold
    tally = _Tally()
    rows: Iterable[Row] = _predict_rows(predictor, paths, chosen, args, tally)
    if args.sidecars:
        check_sidecars(paths, classes)
        rows = with_sidecars(rows, args.overwrite, tally.sidecars_kept)
    if args.sheet:
        rows = with_tiles(rows, tally.tiles)
    if out is not None or form != "table":
        rows = with_progress(rows, len(paths))
    write_rows(rows, classes, out, form, width=min(PATH_WIDTH, max(len(str(p)) for p in paths)))
    if tally.tiles:
        write_sheet(args.sheet, tally.tiles)
    _tell_summary(tally, out)
    if tally.interrupted:
        raise KeyboardInterrupt
    return 1 if tally.broken else 0


def _check_numbers(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold} must lie in 0..1")
    for name in ("top", "batch_size", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")


def _choose_output(args: argparse.Namespace) -> tuple[Path | None, str]:
    """Return where the results go (None: stdout) and their format."""
    if args.json and (args.out or args.format):
        raise UsageError("--json FILE stands for --format jsonl --out FILE: give one or the other")
    target = args.json or args.out
    out = Path(target) if target and target != "-" else None
    form = "jsonl" if args.json else args.format
    if form is None and out is not None:
        form = FORMATS.get(out.suffix.lower(), "table")
    if form is None:
        form = "table" if sys.stdout.isatty() else "jsonl"
    if form == "parquet" and out is None:
        raise UsageError("--format parquet needs --out FILE")
    return out, form


def find_paths(arguments: Sequence[str]) -> list[Path]:
    """Return the images that the arguments name, each once, in order.

    Raises `UsageError` for an argument that names nothing, and if there is no image at all.
    """
    found = [path for argument in arguments for path in _expand(argument)]
    if not found:
        from mltr.data.images import IMAGE_SUFFIXES

        raise UsageError(f"no images in {', '.join(arguments)}; looked for {IMAGE_SUFFIXES}")
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.absolute(), path)
    return list(unique.values())


def _expand(argument: str) -> list[Path]:
    from mltr.data.images import IMAGE_SUFFIXES, find_images

    path = Path(argument)
    if argument == "-":
        text = sys.stdin.buffer.read()
        names = text.split(b"\0" if b"\0" in text else b"\n")
        return [Path(os.fsdecode(name.rstrip(b"\r"))) for name in names if name.strip()]
    if path.is_dir():
        return find_images(path)
    if path.exists():
        return [path]
    if glob.has_magic(argument):
        # Path.glob takes no absolute patterns.
        matches = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207
        return [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES]
    raise UsageError(f"no such file or folder: {argument}")


def _check_targets(args: argparse.Namespace, out: Path | None, paths: Sequence[Path]) -> None:
    """Refuse to write over an image that is to be read, and sheets of an unknown kind."""
    if args.sheet and Path(args.sheet).suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f"--sheet {args.sheet}: end the name with {', '.join(SHEET_SUFFIXES)}")
    inputs = {path.resolve() for path in paths}
    for target in (out, args.sheet):
        if target and Path(target).resolve() in inputs:
            raise UsageError(f"{target} is one of the images to read: write to another name")


def choose_classes(classes: Sequence[str], only: list[str], exclude: list[str]) -> list[int]:
    """Return the indices of the classes wanted; an entry is a name, or several with commas.

    Raises `UsageError` for an unknown name, and if nothing is left.
    """
    wanted = _known_names(only, classes) or set(classes)
    unwanted = _known_names(exclude, classes)
    chosen = [k for k, name in enumerate(classes) if name in wanted and name not in unwanted]
    if not chosen:
        raise UsageError("--only and --exclude leave no class")
    return chosen


def _known_names(entries: list[str], classes: Sequence[str]) -> set[str]:
    names = set()
    for entry in entries:
        # A class may have a comma in its own name, as many of ImageNet's have.
        for name in [entry] if entry in classes else map(str.strip, entry.split(",")):
            if name not in classes:
                hint = did_you_mean(name, classes)
                raise UsageError(f"no class {name!r} among the {len(classes)} of this run{hint}")
            names.add(name)
    return names


def _predict_rows(
    predictor: Predictor,
    paths: Sequence[Path],
    chosen: Sequence[int],
    args: argparse.Namespace,
    tally: _Tally,
) -> Iterator[Row]:
    """Yield a row for each image; ends early, with what is done, on Ctrl-C."""
    try:
        for path, found in predict_paths(predictor, paths, args.workers):
            tally.images += 1
            if isinstance(found, BrokenImage):
                tally.broken.append(printable(str(found)))
                yield Row(path, [], None, tally.broken[-1])
                continue
            prediction = found.only(chosen)
            labels = prediction.labels
            if args.top is not None:
                labels = prediction.top(args.top) if args.threshold is None else labels[: args.top]
            yield Row(path, labels, prediction.probs)
    except KeyboardInterrupt:
        tally.interrupted = True


def _tell_summary(tally: _Tally, out: Path | None) -> None:
    """Say on stderr what was done where, and name every image that can't be read."""
    lines = []
    if tally.interrupted:
        lines.append(f"interrupted after {tally.images} images; the results so far are written")
    elif out is not None:
        lines.append(f"{tally.images} images -> {out}")
    if tally.sidecars_kept:
        lines.append(
            f"{len(tally.sidecars_kept)} sidecars were there already and are kept; "
            "--overwrite replaces them"
        )
    if tally.broken:
        lines.append(f"{len(tally.broken)} of {tally.images} images can't be read:")
        lines += [f"  {reason}" for reason in tally.broken]
    for line in lines:
        print(line, file=sys.stderr)
