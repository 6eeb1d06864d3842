"""`mltr data`: describe a source and find its faults before training on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from mltr.config import recipe
from mltr.config.schema import Config, DataConfig
from mltr.errors import counted
from mltr.terminal import make_console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from mltr.data.duplicates import Seen
    from mltr.data.records import Split, Splits

#: Fields of a recipe's `data` section that are options here too.
OPTIONS = (
    "labels", "images", "classes", "missing", "ignore", "truncated", "hierarchy", "year",
    "unlabelled", "difficult", "protocol", "val_fraction", "test_fraction", "split_seed",
)  # fmt: skip
SHOWN = 12  #: rows of each list on the screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a folder or a table, FORMAT:PATH if the format is ambiguous, or `scenes`",
    )
    add_source_options(parser)
    parser.add_argument("--quick", action="store_true", help="don't open the images")
    parser.add_argument("--out", metavar="FOLDER", help="folder for labels.png, one per source")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON (- for stdout)")


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Declare the fields of a recipe's `data` section that say how a SOURCE is to be read."""
    words = {field.key: field.words.replace("%", "%%") for field in recipe.fields()}
    kinds = get_type_hints(DataConfig)
    for name in OPTIONS:
        convert = kinds[name] if kinds[name] in (int, float) else str
        key = f"data.{name}"
        parser.add_argument(
            f"--{name}",
            dest=key,
            metavar=name.upper(),
            type=convert,
            help=f"short for --{key}: {words[key]}",
        )


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
    """Describe each source; faults are reported, and don't make the command fail."""
    from mltr.data.sources import open_splits, parse_source
    from mltr.files.writing import write_figures

    console = make_console(quiet=args.json == "-")
    reports, drawn = {}, set[str]()  # sources in several folders may have the same name
    for source in args.sources:
        config = source_config(source, args, overrides)
        splits = open_splits(config)
        report = reports[source] = describe(splits, open_images=not args.quick)
        for line in splits.understood.to_lines(splits):
            console.print(printable(line), highlight=False, soft_wrap=True)
        _print(console, source, report)
        if args.out:
            folder = Path(args.out)
            if len(args.sources) > 1:
                name = Path(config.root).resolve().name or config.format
                numbered = (f"{name}-{number}" for number in count(2))
                name = next(free for free in chain([name], numbered) if free not in drawn)
                drawn.add(name)
                folder /= name
            console.print(f"picture: {draw(folder, splits)}")
    if args.json:
        write_figures(args.json, reports)
    form, args.root = parse_source(args.sources[0])
    if form == "scenes":
        args.next = "mltr demo"
    elif form != "auto":
        args.next = f"mltr train probe {{root}} --data.format {form}"
    return 0


def source_config(
    source: str, args: argparse.Namespace, overrides: Sequence[str] = ()
) -> DataConfig:
    """Return what a recipe would say of a SOURCE; missing files are counted, not refused.

    Fields of a recipe, such as ``--data.labels=FILE``, come after the short options.
    """
    from mltr.data.sources import parse_source

    form, root = parse_source(source)
    chosen = {"format": form, "root": root, "max_broken": 1.0}
    short = {name: getattr(args, f"data.{name}") for name in OPTIONS}
    chosen |= {name: value for name, value in short.items() if value is not None}
    config = Config(data=DataConfig(**chosen))  # type: ignore[arg-type]
    return recipe.override(config, overrides).data if overrides else config.data


# -- the figures -------------------------------------------------------------------------------


def describe(splits: Splits, open_images: bool = True) -> dict[str, Any]:
    """Return counts, label statistics and defects of a source as plain values.

    With `open_images` every image is decoded once: broken ones are listed, and images that are
    the same file or look the same, within a split and between splits.
    """
    classes = splits.train.classes
    report: dict[str, Any] = {
        "understood": splits.understood.to_figures(splits),
        "classes": list(classes),
        "splits": {split.name: _describe_split(split) for split in splits},
        "labels": _label_table(splits),
        "co_occurrence": _co_occurrence(splits.train),
        "notes": {split.name: split.notes for split in splits if split.notes},
    }
    report["empty_classes"] = [
        name for name in classes if report["labels"][name][splits.train.name] == 0
    ]
    _, negatives = splits.train.count_labels()
    report["classes_without_negatives"] = [
        name for name, count in zip(classes, negatives, strict=True) if not count
    ]
    if open_images:
        report |= _inspect(splits)
    return report


def _describe_split(split: Split) -> dict[str, Any]:
    targets = split.targets
    positive = (targets == 1).sum(1)
    return {
        "images": len(split),
        "labels": int(positive.sum()),
        "cardinality": float(positive.mean()),  #: labels an image
        "density": float(positive.mean() / max(targets.shape[1], 1)),
        "without_label": int((positive == 0).sum()),
        "unknown_cells": int((targets < 0).sum()),
        "with_boxes": sum(record.boxes is not None for record in split),
    }


def _label_table(splits: Splits) -> dict[str, dict[str, int]]:
    counts = {split.name: (split.targets == 1).sum(0) for split in splits}
    return {
        name: {split: int(support[index]) for split, support in counts.items()}
        for index, name in enumerate(splits.train.classes)
    }


def _co_occurrence(split: Split) -> list[dict[str, Any]]:
    """Return the pairs with the highest P(b | a), with the images behind each."""
    import numpy as np

    positive = split.positives.astype(np.int64)
    support = positive.sum(0)
    together = (positive.T @ positive).tocoo()
    share = np.where(together.row == together.col, 0, together.data / support[together.row])
    return [
        {
            "a": split.classes[together.row[i]],
            "b": split.classes[together.col[i]],
            "p_b_given_a": float(share[i]),
            "p_b": float(support[together.col[i]] / len(split)),
            "images": int(together.data[i]),
        }
        for i in np.lexsort((together.col, together.row, -share))[:50]
        if share[i]
    ]


# -- the images --------------------------------------------------------------------------------


def _inspect(splits: Splits) -> dict[str, Any]:
    from mltr.data.duplicates import identical_groups, look_at, similar_groups

    seen = look_at(splits)
    same, alike = identical_groups(seen), similar_groups(seen)
    identical = {frozenset(image.content for image in group) for group in same}
    alike = [g for g in alike if frozenset(image.content for image in g) not in identical]
    return {
        "broken": [image.error for image in seen if image.error],
        "duplicates": [_name_group(group) for group in same],
        "near_duplicates": [_name_group(group) for group in alike],
        "leaks": [
            _name_group(group)
            for group in [*same, *alike]
            if len({image.split for image in group}) > 1
        ],
    }


def _name_group(group: list[Seen]) -> list[str]:
    return [f"{image.split}: {image.name}" for image in group]


# -- on screen ---------------------------------------------------------------------------------


def _print(console: Console, source: str, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=source, title_justify="left")
    table.add_column("")
    for name in report["splits"]:
        table.add_column(name, justify="right")
    for key, words in (
        ("images", "images"),
        ("labels", "labels"),
        ("cardinality", "labels an image"),
        ("density", "share of all labels"),
        ("without_label", "images without a label"),
        ("unknown_cells", "unknown answers"),
        ("with_boxes", "images with boxes"),
    ):
        row = [split[key] for split in report["splits"].values()]
        table.add_row(words, *(f"{v:.3g}" if isinstance(v, float) else f"{v:,}" for v in row))
    console.print(table)
    _print_labels(console, report)
    pairs = Table(title="usually together (training images)", title_justify="left")
    for heading in ("where there is", "there is also", "in % of them", "in % of all", "images"):
        pairs.add_column(heading, justify="right" if "%" in heading else "left")
    for pair in report["co_occurrence"][:SHOWN]:
        shares = (f"{100 * pair[key]:.0f}" for key in ("p_b_given_a", "p_b"))
        pairs.add_row(pair["a"], pair["b"], *shares, str(pair["images"]))
    console.print(pairs)
    _print_findings(console, report)


def _print_labels(console: Console, report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("label")
    for name in report["splits"]:
        table.add_column(name, justify="right")
    table.add_column("")
    rows = sorted(report["labels"].items(), key=lambda row: -sum(row[1].values()))
    most = max((sum(row[1].values()) for row in rows), default=1)
    for name, counts in rows:
        bar = "█" * round(24 * sum(counts.values()) / max(most, 1))
        table.add_row(name, *(f"{count:,}" for count in counts.values()), bar)
    console.print(table)


def _print_findings(console: Console, report: dict[str, Any]) -> None:
    """Report the faults, or that there are none."""
    if report["empty_classes"]:
        console.print(f"no training image has: {', '.join(report['empty_classes'])}")
    if report["classes_without_negatives"]:
        names = ", ".join(report["classes_without_negatives"])
        console.print(
            f"NO TRAINING IMAGE IS A KNOWN NEGATIVE FOR: {names}\n"
            "mltr train refuses such a source: a network would learn to predict these classes for "
            "every picture. If an empty cell means no, set --data.missing negative.",
            style="bold red",
        )
    if "broken" not in report:
        console.print("images were not opened (--quick)")
        return
    alike = "of images that look the same"
    leaks = "of these groups in two splits (leakage)"
    for key, one, several in (
        ("broken", "broken image", "broken images"),
        ("duplicates", "group of identical images", "groups of identical images"),
        ("near_duplicates", f"group {alike}", f"groups {alike}"),
        ("leaks", leaks, leaks),
    ):
        found = report[key]
        console.print(counted(len(found), one, several) + (":" if found else ""))
        for entry in found[:SHOWN]:
            members = [entry] if isinstance(entry, str) else entry
            more = f" = and {len(members) - SHOWN} more" if len(members) > SHOWN else ""
            console.print("   ", printable(" = ".join(members[:SHOWN]) + more))


def draw(folder: Path, splits: Splits) -> Path:
    """Draw the label frequencies and co-occurrences to labels.png."""
    import numpy as np

    from mltr.pictures.gallery import as_drawn, pyplot, write_figure

    split = splits.train
    positive = split.positives.astype(np.int64)
    support = positive.sum(0)
    order = np.argsort(-support, kind="stable")[:80]
    shown = positive[:, order]
    share = (shown.T @ shown).toarray() / np.maximum(support[order, None], 1)
    np.fill_diagonal(share, np.nan)
    names = [as_drawn(split.classes[index]) for index in order]
    side = min(16.0, max(3.6, 0.24 * len(names) + 1.2))
    figure, (left, right) = pyplot().subplots(
        1, 2, figsize=(2.2 * side, side), layout="constrained"
    )
    left.barh(names, support[order], color="#3b7dd8", height=0.7)
    left.invert_yaxis()
    left.set_title("training images with each label", loc="left")
    left.spines[["top", "right"]].set_visible(False)
    image = right.imshow(share, cmap="Blues", vmin=0, vmax=1)
    right.set_xticks(range(len(names)), names, rotation=90)
    right.set_yticks(range(len(names)), names)
    right.set_title("P(column | row)", loc="left")
    figure.colorbar(image, shrink=0.8)
    path = folder / "labels.png"
    write_figure(path, figure)
    return path
