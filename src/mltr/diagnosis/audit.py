"""`mltr audit`: find labels that are likely missing or wrong, and duplicate pictures."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mltr.config.schema import SPLITS, DataConfig
from mltr.errors import MltrError, UsageError, counted
from mltr.terminal import make_console, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mltr.config.schema import Config
    from mltr.data.duplicates import Seen
    from mltr.data.records import Record, Splits
    from mltr.diagnosis.label_issues import Audit, Issue

log = logging.getLogger(__name__)

SHOWN = 12  #: maximum rows of a printed list
PLACES = (
    "a finished training run, and what to audit, as for `mltr data`: a folder or table, or "
    "FORMAT:PATH (default: the run's own images)"
)
#: Fields that say where the labels of a run's own source are and how they are written.
READING = (
    "labels", "images", "classes", "label_column", "path_column", "separator", "ignore", "missing",
    "absent", "count_from",
)  # fmt: skip
#: Descriptions of the output files.
FILES = {
    "issues.csv": "labels to check",
    "corrected.csv": "all labels, to train on",
    "missing.png": "likely missing",
    "wrong.png": "likely wrong",
    "duplicates.csv": "repeated pictures",
    "duplicates.png": "repeated pictures",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments. It also accepts any field of a recipe."""
    parser.add_argument("places", metavar="RUN [SOURCE]", nargs="*", help=PLACES)
    parser.add_argument(
        "--run", metavar="RUN", help="the run as an option; the positional argument is then SOURCE"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        choices=SPLITS,
        default=list(SPLITS),
        help="splits to audit (default: all three)",
    )
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        metavar="N",
        help="score training images with N networks, each trained with the run's recipe on the "
        "other images (default: logistic regressions on the run's features, which take seconds)",
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="list the N worst labels (default: the likely errors)"
    )
    accept = parser.add_mutually_exclusive_group()
    accept.add_argument(
        "--apply", type=int, metavar="K", help="apply the first K suggestions to corrected.csv"
    )
    accept.add_argument(
        "--apply-above",
        type=float,
        metavar="SCORE",
        help="apply the listed suggestions with at least this score to corrected.csv",
    )
    accept.add_argument(
        "--review",
        metavar="ISSUES",
        help="only write corrected.csv, from the column `label` of an issues.csv that you have "
        "edited",
    )
    parser.add_argument(
        "--no-duplicates", action="store_true", help="don't look for duplicate pictures"
    )
    parser.add_argument("--out", metavar="FOLDER", help="output folder (default: RUN/audit)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an issues.csv that has changed labels"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON (- for stdout)")
    parser.epilog = (
        "Fields of a recipe set how SOURCE is read (--data.labels FILE) and how networks are "
        "trained (--folds 4 --train.epochs 20)."
    )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Audit a source; overrides such as ``--data.labels FILE`` set how to read it."""
    places = args.places if args.run is None else [args.run, *args.places]
    if not 1 <= len(places) <= 2:
        raise UsageError("give a run and at most one source: mltr audit RUN [SOURCE]")
    args.run, args.source = places[0], places[1] if len(places) == 2 else None
    _check_numbers(args)
    trained = [field for field in overrides if not field.startswith("--data.")]
    if trained and not args.folds:
        raise UsageError(f"{trained[0].partition('=')[0]} has an effect only with --folds")
    return _review(args, overrides) if args.review else _audit(args, overrides)


def _check_numbers(args: argparse.Namespace) -> None:
    if args.folds < 0 or args.folds == 1:
        raise UsageError(f"--folds {args.folds} must be at least 2")
    for name, least in (("top", 1), ("apply", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value} must be at least {least}")
    if args.apply_above is not None and not 0 <= args.apply_above <= 1:
        raise UsageError(f"--apply-above {args.apply_above:g} must lie in 0..1")


def _fields(args: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """Return overrides that make the run's recipe read SOURCE and tolerate broken images."""
    return [*_source_fields(args), "--data.max_broken=1", *overrides]


def _source_fields(args: argparse.Namespace) -> list[str]:
    """Return the overrides that select SOURCE; none for the run's own data."""
    from mltr.data.sources import parse_source

    if args.source is None:
        return []
    form, root = parse_source(args.source)
    own = recipe_of(args.run).data
    same = root and own.root and Path(root).resolve() == Path(own.root).resolve()
    if same and form in ("auto", own.format):
        return []
    usual = DataConfig()
    own_fields = [f"--data.{name}={getattr(usual, name)}" for name in READING]
    return [f"--data.format={form}", f"--data.root={root}", *own_fields]


def recipe_of(folder: str, overrides: Sequence[str] = ()) -> Config:
    """Return the recipe of a run; raises `MltrError` if there is no such run."""
    from mltr.config.recipe import load_recipe
    from mltr.weights.metadata import RECIPE_FILE

    path = Path(folder) / RECIPE_FILE
    if not path.is_file():
        raise MltrError(f"{folder}: no such run folder (no {RECIPE_FILE})")
    return load_recipe(path, overrides)


# -- audit and review --------------------------------------------------------------------------


def _audit(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Find issues, write all files, and print a summary."""
    from mltr.data.understood import tell_understood
    from mltr.diagnosis.corrections import ISSUES_FILE, has_answers
    from mltr.diagnosis.label_issues import audit
    from mltr.evaluation.open_run import open_scored
    from mltr.files.writing import write_figures

    folder = Path(args.out) if args.out else Path(args.run) / "audit"
    issues = folder / ISSUES_FILE
    if not args.overwrite and has_answers(issues):
        raise UsageError(
            f"{issues} has labels that were changed: --review {shlex.quote(str(issues))} applies "
            "them; to audit anew, choose another --out, or use --overwrite"
        )
    opened = open_scored(args.run, _fields(args, overrides), all_images=True)
    tell_understood(opened.splits)
    found = audit(
        opened,
        [name for name in SPLITS if name in args.split],
        has_learnt=_learnt_images(args.run, opened.config),
        folds=args.folds,
        folder=folder / "folds",
    )
    groups = [] if args.no_duplicates else _repeated(opened.splits)
    listed = found.issues[: max(args.top or len(found.likely), args.apply or 0)]
    accepted = _accept(listed, args)
    one_each = opened.config.loss.name == "ce"
    paths = _write_files(folder, opened.splits, found, listed, accepted, groups, one_each)
    figures = _figures(found, groups, None if args.no_duplicates else opened.splits)
    figures |= {"accepted": len(accepted), "files": [str(path) for path in paths]}
    console = make_console(quiet=args.json == "-")
    _print(console, found, listed, figures)
    _print_files(console, args, overrides, paths, len(accepted))
    if args.json:
        write_figures(args.json, figures)
    return 0


def _review(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Write the corrected table from an edited list of issues; no image is opened."""
    from mltr.data.understood import tell_understood
    from mltr.diagnosis.corrections import read_review, write_corrected
    from mltr.evaluation.open_run import open_divided
    from mltr.files.writing import write_figures
    from mltr.weights.bundle import read_config

    path = Path(args.review)
    config = recipe_of(args.run, _fields(args, overrides))
    classes = read_config(args.run)["classes"]
    splits, _ = open_divided(Path(args.run), config, classes, overrides, "train")
    tell_understood(splits)
    corrections = read_review(path, splits)
    folder = Path(args.out) if args.out else path.parent
    one_each = config.loss.name == "ce"
    written = write_corrected(folder, splits, corrections, one_each=one_each)
    if written is None:
        raise MltrError("the images of this source are not files, so a table can't list them")
    changed = sum(map(len, corrections.values()))
    _print_files(make_console(quiet=args.json == "-"), args, overrides, [written], changed)
    if args.json:
        write_figures(args.json, {"accepted": changed, "files": [str(written)]})
    return 0


def _write_files(
    folder: Path,
    splits: Splits,
    found: Audit,
    listed: Sequence[Issue],
    accepted: Sequence[Issue],
    groups: Sequence[Sequence[Seen]],
    one_each: bool,
) -> list[Path]:
    """Write all lists, tables and contact sheets; return their paths."""
    from mltr.diagnosis import corrections

    paths = [corrections.write_issues(folder, found, listed, accepted)]
    changes = corrections.as_corrections(found, accepted)
    table = corrections.write_corrected(folder, splits, changes, one_each=one_each)
    if table is None:
        log.warning("no corrected.csv: the images of this source are not files it could list")
    else:
        paths.append(table)
    paths += corrections.draw_issues(folder, found, listed)
    paths += corrections.write_duplicates(folder, found.classes, groups)
    return paths + corrections.draw_duplicates(folder, found.classes, groups)


def _accept(listed: Sequence[Issue], args: argparse.Namespace) -> list[Issue]:
    if args.apply is not None:
        return list(listed[: args.apply])
    if args.apply_above is not None:
        return [issue for issue in listed if issue.score >= args.apply_above]
    return []


def _learnt_images(folder: str, config: Config) -> Callable[[str, Record], bool]:
    """Return a function of split and record: whether the run was trained on the image."""
    from mltr.data.records import same_image
    from mltr.data.sources import open_splits

    own = replace(recipe_of(folder).data, max_broken=1.0, workers=config.data.workers)
    has_learnt = _learnt_own_images(Path(folder))
    if own == config.data:
        return has_learnt
    try:
        learnt = {
            same_image(record)
            for split in open_splits(own)
            for record in split
            if has_learnt(split.name, record)
        }
    except MltrError as error:
        log.warning(
            "all images are treated as training images: the run's own can't be opened (%s)", error
        )
        return lambda split, record: True
    return lambda split, record: same_image(record) in learnt


def _learnt_own_images(folder: Path) -> Callable[[str, Record], bool]:
    """Return the same for the run's own source, by the splits that the run has recorded."""
    from mltr.runs.folder import RunFolder

    path = RunFolder(folder).splits
    if not path.is_file():
        return lambda split, record: split == "train"
    try:
        then = json.loads(path.read_text("utf-8"))
        held_out = {(split, name) for split in ("val", "test") for name in then[split]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MltrError(f"{path} can't be read: {error}") from error
    return lambda split, record: (split, record.name) not in held_out


def _repeated(splits: Splits) -> list[list[Seen]]:
    """Return groups of duplicate images: first those with conflicting labels, then leaks."""
    from mltr.data.duplicates import (
        conflicting_classes,
        look_at,
        reaches_over_splits,
        similar_groups,
    )

    groups = similar_groups(look_at(splits))
    return sorted(
        groups,
        key=lambda group: (
            not conflicting_classes(group, splits.train.classes),
            not reaches_over_splits(group),
        ),
    )


# -- on screen ---------------------------------------------------------------------------------


def _figures(
    found: Audit, groups: Sequence[Sequence[Seen]], searched: Splits | None
) -> dict[str, Any]:
    """Return the figures of an audit as plain values."""
    from mltr.data.duplicates import conflicting_classes, reaches_over_splits

    figures: dict[str, Any] = {
        "images": len(found.records),
        "labels_judged": len(found.issues),
        "likely_errors": len(found.likely),
        "probabilities": list(found.methods),
        "per_class": _per_class(found),
        "not_judged": found.not_judged,
        "broken": list(found.errors),
    }
    if searched is not None:
        figures["duplicates"] = [
            {
                "images": [f"{image.split}: {image.name}" for image in group],
                "over_splits": reaches_over_splits(group),
                "conflict": conflicting_classes(group, found.classes),
            }
            for group in groups
        ]
    return figures


def _per_class(found: Audit) -> dict[str, dict[str, int]]:
    counts = {
        name: {"positives": int((found.targets[:, k] == 1).sum()), "missing": 0, "wrong": 0}
        for k, name in enumerate(found.classes)
    }
    for issue in found.likely:
        counts[found.classes[issue.class_index]][issue.kind] += 1
    return counts


def _print(
    console: Console, found: Audit, listed: Sequence[Issue], figures: dict[str, Any]
) -> None:
    from rich.table import Table

    console.print("scored by models that were not trained on the labels in question:")
    for method in found.methods:
        console.print(f"  {method}")
    if found.not_judged:
        names = ", ".join(found.not_judged)
        console.print(
            f"not scored, with fewer than two positive or two negative images: {names}",
        )
    for error in found.errors[:SHOWN]:
        console.print(printable(f"left out, broken: {error}"))
    table = Table(
        title=f"{counted(len(found.likely), 'likely error')} among "
        f"{counted(len(found.issues), 'label')}",
        title_justify="left",
    )
    for heading in ("class", "images with it", "likely missing", "likely wrong"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    rows = sorted(
        figures["per_class"].items(), key=lambda row: -(row[1]["missing"] + row[1]["wrong"])
    )
    for name, counts in rows:
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    console.print(table)
    if listed:
        console.print(_worst(found, listed))
    if "duplicates" in figures:
        _print_duplicates(console, figures["duplicates"])


def _worst(found: Audit, listed: Sequence[Issue]) -> Table:
    from rich.table import Table

    from mltr.diagnosis.corrections import short_name

    table = Table(title="the worst", title_justify="left")
    for heading in ("", "image", "split", "label", "is likely", "score"):
        table.add_column(heading, justify="right" if heading in ("", "score") else "left")
    for rank, issue in enumerate(listed[:SHOWN], start=1):
        table.add_row(
            str(rank),
            printable(short_name(found.records[issue.row].name)),
            found.splits[issue.row],
            found.classes[issue.class_index],
            issue.kind,
            f"{issue.score:.3f}",
        )
    return table


def _print_duplicates(console: Console, groups: Sequence[dict[str, Any]]) -> None:
    if not groups:
        console.print("no duplicate pictures")
        return
    over = sum(group["over_splits"] for group in groups)
    conflicting = sum(bool(group["conflict"]) for group in groups)
    console.print(
        f"{counted(len(groups), 'picture')} {'has' if len(groups) == 1 else 'have'} duplicates: "
        f"{over:,} in two splits (leakage), {conflicting:,} with labels that contradict each other:"
    )
    for group in groups[:SHOWN]:
        words = " = ".join(group["images"])
        if group["conflict"]:
            words += f"; they differ in {', '.join(group['conflict'])}"
        console.print("   ", printable(words))


def _print_files(
    console: Console,
    args: argparse.Namespace,
    overrides: Sequence[str],
    paths: Sequence[Path],
    count: int,
) -> None:
    """Print the paths of the files, and the commands to continue with."""
    for path in paths:
        console.print(f"{FILES[path.name]}: {path}", soft_wrap=True)
    table = next((path for path in paths if path.name == "corrected.csv"), None)
    if table is None:
        return
    console.print(f"{table} has {counted(count, 'label')} changed", soft_wrap=True)
    if not args.review:
        source = [] if args.source is None else [args.source]
        read = [field for field in overrides if field.startswith("--data.")]
        again = ["mltr", "audit", args.run, *source, *read, "--review", paths[0]]
        console.print(
            "To correct labels, edit the column `label` of issues.csv (1, 0, or empty for "
            f"unknown), then run\n  {shlex.join(map(str, again))}",
            soft_wrap=True,
        )
    command = training_command(args.run, table)
    console.print(f"To train on it:\n  {command}", soft_wrap=True)


def training_command(run: str, table: Path) -> str:
    """Return the command that trains by the recipe of a run on the labels of a table."""
    from mltr.diagnosis.corrections import class_list_of

    own = recipe_of(run).data
    train = ["mltr", "train", f"{run}/config.yaml", "--data.root", str(table)]
    if own.format not in ("auto", "table"):
        train += ["--data.format", "table"]
    columns = ["classes", "label_column", "path_column"]  # of the labels that the run had
    columns += [] if own.unlabelled_root else ["ignore"]  # which a table has no use for
    train += [f"--data.{name}=" for name in columns if getattr(own, name)]
    if class_list_of(table).is_file():
        train += ["--data.classes", str(class_list_of(table))]
    # What these made of the run's own cells is in the table.
    train += [
        f"--data.{name}={value}"
        for name, value in (("missing", "unknown"), ("absent", "auto"))
        if getattr(own, name) != value
    ]
    return shlex.join(train)
