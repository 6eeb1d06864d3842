"""`mltr shard`: pack a source into a few large tar files, faster to read than many small ones."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mltr.data.describe import add_source_options, source_config
from mltr.errors import UsageError, counted
from mltr.terminal import printable

SAMPLES = 1000  #: in a shard, as the field packs ImageNet: about 110 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="a source, as for `mltr data`; images:FOLDER for images without labels; with --verify "
        "alone, the shards",
    )
    add("--out", metavar="DIR", help="folder for the shards")
    add(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help=f"images per shard (default: {SAMPLES})",
    )
    add(
        "--side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shrink images to this shorter side, as JPEG (default: keep the original files)",
    )
    add("--quality", type=int, default=90, help="JPEG quality with --side (default: 90)")
    add(
        "--max-broken",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of missing or unreadable images above which it stops (default: 0.01)",
    )
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="threads that read images")
    add("--verify", action="store_true", help="check every byte and label of the shards")
    add("--overwrite", action="store_true", help="replace shards, finished or not, in that folder")
    add_source_options(parser)
    parser.epilog = (
        "After an interruption, repeat the command: it resumes after the last finished shard."
    )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Write shards, or check some, or both; 1 if the check finds anything."""
    from mltr.data.packing import verify

    _check_numbers(args)
    if args.out:
        index = _write(args, overrides)
        for name, entry in index["splits"].items():
            print(
                f"{name}: {counted(entry['samples'], 'image')} in "
                f"{counted(len(entry['shards']), 'shard')}, "
                f"{sum(file['size'] for file in entry['shards']) / 1e6:,.1f} MB; "
                f"{len(entry['broken'])} broken left out"
            )
        print(f"train from them: mltr train RECIPE --data.root {shlex.quote(args.out)}")
    if not args.verify:
        return 0
    place = args.out or args.source
    problems = 0
    for problem in verify(place):
        problems += 1
        print(printable(problem))
    print(f"{place}: {problems or 'no'} problems")
    return 1 if problems else 0


def _check_numbers(args: argparse.Namespace) -> None:
    if not (args.out or args.verify):
        raise UsageError("--out DIR says where the shards go (or --verify checks those in SOURCE)")
    for name, least in (("samples", 1), ("side", 0), ("workers", 1)):
        if getattr(args, name) < least:
            raise UsageError(f"--{name} {getattr(args, name)} must be at least {least}")
    if not 1 <= args.quality <= 100:
        raise UsageError(f"--quality {args.quality} must lie in 1..100")
    if not 0 <= args.max_broken <= 1:
        raise UsageError(f"--max-broken {args.max_broken:g} must lie in 0..1")


def _write(args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    from mltr.data.packing import Encoding, write_shards
    from mltr.data.shards import is_shards
    from mltr.data.sources import open_images, open_splits
    from mltr.data.understood import tell_understood
    from mltr.files.locks import locked_out

    out = Path(args.out)
    if is_shards(out) and not args.overwrite:
        raise UsageError(f"{out} holds shards already: check them by --verify, or --overwrite them")
    if any(option.removeprefix("--").startswith("data.max_broken") for option in overrides):
        raise UsageError("--max-broken SHARE sets how many images may be broken here")
    config = source_config(args.source, args, [f"--data.max_broken={args.max_broken}", *overrides])
    if config.root and out.resolve() == Path(config.root).resolve():
        raise UsageError(f"--out {out} is where the images come from: choose another folder")
    splits = open_images(config) if config.format == "images" else open_splits(config)
    tell_understood(splits)
    encoding = Encoding(args.side, args.quality)
    with locked_out(out):
        return write_shards(
            splits, out, args.samples, encoding, args.max_broken, args.workers, args.overwrite
        )
