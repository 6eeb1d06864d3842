"""`mltr push`: upload a run to the Hugging Face Hub, with its model card and test figures."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mltr push``."""
    parser.add_argument("run", metavar="RUN", help="a training run, or a folder with weights")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository on the Hub")
    parser.add_argument(
        "--licence", metavar="ID", help="licence of the weights, such as apache-2.0 or cc-by-nc-4.0"
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--message", default="Upload by mltr", help="commit message")
    parser.add_argument(
        "--dry-run",
        metavar="FOLDER",
        help="write to this folder what would be uploaded, and upload nothing",
    )


def run(args: argparse.Namespace) -> int:
    """Upload a run, or with --dry-run only write the files."""
    from mltr.export.hub import CARD_FILE, prepare, push_to_hub
    from mltr.files.download import HUB_PREFIX

    if args.dry_run:
        prepare(args.run, args.dry_run, args.repo_id, args.licence)
        print(
            f"not uploaded to {args.repo_id}: the files are in {args.dry_run}; check its "
            f"{CARD_FILE}"
        )
        return 0
    address = push_to_hub(
        args.run,
        args.repo_id,
        private=args.private,
        licence=args.licence,
        message=args.message,
    )
    print(f"{address}\nanyone with access can load it with mltr.load('{HUB_PREFIX}{args.repo_id}')")
    return 0
