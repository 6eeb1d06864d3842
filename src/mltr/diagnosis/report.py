"""`mltr report`: a self-contained HTML file on how good a run is and where it fails."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import UsageError

if TYPE_CHECKING:
    pass

REPORT_FILE = "report.html"
EXAMPLES = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument("--out", metavar="FILE", help=f"default: RUN/{REPORT_FILE}")
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help=f"number of example pictures (default: {EXAMPLES})",
    )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Write the report."""
    from mltr.diagnosis.page import write_report

    if args.examples < 0:
        raise UsageError(f"--examples {args.examples} must not be negative")
    path = Path(args.out or Path(args.run) / REPORT_FILE)
    size = write_report(Path(args.run), path, args.examples, overrides)
    print(f"{path}: {size / 1e6:.1f} MB; open it in a browser")
    return 0
