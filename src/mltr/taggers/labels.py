"""The labels of other people's taggers, in the files that lie beside them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mltr.errors import MltrError

TAGS_FILE = "selected_tags.csv"  #: of the WD taggers: tag_id,name,category,count
LIST_FILES = ("labels.txt", "classes.txt")
#: Danbooru's numbers, and that of the ratings in the WD taggers.
CATEGORIES = {
    "0": "general",
    "1": "artist",
    "3": "copyright",
    "4": "character",
    "5": "meta",
    "9": "rating",
}
LARGEST_FILE = 2**27  #: bytes


@dataclass(frozen=True)
class Tags:
    """What the outputs of a tagger are called, in their order."""

    names: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    source: str = ""  #: where they are from, in words
    exclude_one_another: bool = False  #: known to be classes of which an image has one


def find_labels(folder: Path) -> Path | None:
    """Return the file in a folder that names labels, if there is one."""
    for name in (TAGS_FILE, *LIST_FILES):
        if (folder / name).is_file():
            return folder / name
    return None


def read_labels(path: Path) -> Tags:
    """Read a CSV with a column `name`, and perhaps `category`, or a text file of a name a line.

    Names that occur again get a number. Raises `MltrError`, naming the file.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise MltrError(f"{path} is larger than any list of labels")
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MltrError(f"{path} can't be read: {error}") from error
    categories: tuple[str, ...] | None = None
    if path.suffix.lower() == ".csv":
        names, categories = _read_table(text.splitlines(), path)
    else:
        names = [line.strip() for line in text.rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name:
            raise MltrError(f"{path}: label {number} has no name")
    if not names:
        raise MltrError(f"{path} names no labels")
    return Tags(numbered(names), categories, str(path))


def _read_table(lines: list[str], path: Path) -> tuple[list[str], tuple[str, ...] | None]:
    try:
        rows = list(csv.DictReader(lines, strict=True))
    except csv.Error as error:
        raise MltrError(f"{path} is not a CSV: {error}") from error
    if rows and "name" not in rows[0]:
        raise MltrError(f"{path} has no column 'name'; its first line is {lines[0][:100]!r}")
    names = [(row["name"] or "").strip() for row in rows]
    if not rows or "category" not in rows[0]:
        return names, None
    kinds = [(row["category"] or "").strip() for row in rows]
    return names, tuple(CATEGORIES.get(kind, kind or "other") for kind in kinds)


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of which no two are alike: the second "crane" becomes "crane (2)".

    >>> numbered(["crane", "sea", "crane"])
    ('crane', 'sea', 'crane (2)')
    """
    repeats: Counter[str] = Counter()
    taken: dict[str, None] = {}
    for name in names:
        unique = name
        while unique in taken:
            repeats[name] += 1
            unique = f"{name} ({repeats[name] + 1})"
        taken[unique] = None
    return tuple(taken)
