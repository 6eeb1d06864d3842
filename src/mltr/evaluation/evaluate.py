"""`mltr evaluate`: every metric of a run with its definition, a table of classes, and curves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mltr.config.schema import SPLITS
from mltr.errors import UsageError
from mltr.predict.options import VIEWS_HELP, parse_views


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a run folder, or a bundle with --data.root")
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="test",
        help="images to score (default: test)",
    )
    parser.add_argument(
        "--rerun",
        action="store_true",
        help="score the images again instead of reading the stored predictions",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="minimum probability of a predicted label (default: 0.5)",
    )
    parser.add_argument("--views", metavar="VIEW,...", help=VIEWS_HELP)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="folder for the curves (default: RUN, unless --data options choose other images)",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Evaluate a run; overrides such as ``--data.root DIR`` select another source."""
    from mltr.evaluation.curves import save_curves
    from mltr.evaluation.figures import print_report, report
    from mltr.evaluation.open_run import chooses_one_class, scores_of, thresholds_of
    from mltr.files.writing import write_figures

    if not 0 <= args.threshold <= 1:
        raise UsageError(f"--threshold {args.threshold:g} must lie in 0..1")
    views = parse_views(args.views)
    predictions = scores_of(args.run, args.split, overrides, args.rerun, views)
    figures = report(predictions, args.threshold, thresholds_of(args.run, predictions.classes))
    if args.json != "-":
        print_report(figures, f"{Path(args.run).name}, {args.split}")
    if args.json:
        write_figures(args.json, figures)
    is_own = not views and not any(option.startswith("--data.") for option in overrides)
    if args.out or is_own:  # don't replace the curves of the run's own images
        pictures = save_curves(Path(args.out or args.run), predictions, args.split)
        if args.json != "-":
            print("curves:", ", ".join(map(str, pictures)))
    if chooses_one_class(args.run):
        args.next = "mltr diagnose {run}"
    return 0
