"""`mltr diagnose`: measure the paper's three problems in one run, or compare two runs.

The problems are small objects, similar objects, and objects guessed from their usual company. Each
figure comes with the number of images behind it and a 95% interval from resampled images.
Differences within noise are not reported as differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mltr.config.schema import SPLITS
from mltr.errors import UsageError
from mltr.predict.options import VIEWS_HELP, parse_views
from mltr.terminal import make_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="one run, or two to compare")
    parser.add_argument(
        "--split", choices=SPLITS, default="test", help="images to score (default: test)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=500,
        help="bootstrap resamples of the images (default: 500)",
    )
    parser.add_argument("--views", metavar="VIEW,...", help=VIEWS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default: 0)")
    parser.add_argument(
        "--out", metavar="FOLDER", help="folder for the confusion matrix and pictures of errors"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Diagnose one run, or compare two."""
    from mltr.diagnosis.display import print_comparison, print_diagnosis, save_pictures
    from mltr.diagnosis.figures import Subject, compare, diagnose
    from mltr.files.writing import write_figures

    if len(args.runs) > 2:
        raise UsageError(f"give one run or two, not {len(args.runs)}")
    if len(args.runs) == 2 and args.out:
        raise UsageError("--out is for the pictures of one run, not for a comparison")
    if args.resamples < 20:
        raise UsageError(f"--resamples {args.resamples}: an interval needs at least 20")
    console = make_console(quiet=args.json == "-")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} must be at least 0")
    views = parse_views(args.views)
    subjects = [Subject.open(folder, args.split, overrides, views) for folder in args.runs]
    if len(subjects) == 2:
        figures = compare(subjects[0], subjects[1], args.resamples, args.seed)
        print_comparison(console, args.runs, figures)
    else:
        subject = subjects[0]
        figures = diagnose(subject, args.resamples, args.seed)
        print_diagnosis(console, figures, f"{Path(args.runs[0]).name}, {args.split}")
        if args.out:
            for path in save_pictures(Path(args.out), subject, figures):
                console.print(f"picture: {path}")
    if args.json:
        write_figures(args.json, figures)
    return 0
