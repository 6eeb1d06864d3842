"""Which column of a table holds the photos, which the labels, and which is skipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from mltr.config.schema import DataConfig
from mltr.data.records import PARTS
from mltr.data.tables.cells import to_answer, to_structure, to_whole
from mltr.data.tables.sheet import Column, Sheet
from mltr.errors import UsageError, did_you_mean

IS_PATH = re.compile(
    r"(image|img|photo|picture|file)?[ _-]?(path|file|filename|name|id|uri|url|image|img|photo|"
    r"picture)s?",
    re.IGNORECASE,
)
IS_SPLIT = re.compile(r"split|subset|set|partition|fold|phase", re.IGNORECASE)
IS_FLAG = re.compile(
    r"is[ _]?(val)(id|idation)?|is[ _]?(train|test)(ing)?([ _]?(image|set))?", re.IGNORECASE
)
#: What 1 and 0 mean in a column called so, such as is_training_image, as in CUB-200.
FLAGS = {
    "val": {"1": "val", "0": "train"},
    "train": {"1": "train", "0": "test"},
    "test": {"1": "test", "0": "train"},
}
IS_LABELS = re.compile(
    r"(image|class|category)?[ _-]?(label|tag|class|classe|category|categorie|keyword|subject|"
    r"choice|annotation|target|genre|concept)s?[ _-]?(name|id)?s?",
    re.IGNORECASE,
)
#: What is told of a photo or of a row beside its labels.
IS_REMARK = re.compile(
    r"|(unnamed: )?\d*|index|fold|batch|count|no\.?|nr\.?|rank|id|(image|img|photo)[ _-]?id|width|"
    r"height|size|area|channels|depth|comments?|notes?|remarks?|description|caption|title|url|link|"
    r"source|author|photographer|annotator|date|time|date_?time|timestamp|created.*|updated.*|md5|sha\d*|hash|"
    r"confidence|score|weight|lat|lon|latitude|longitude|x_?min|x_?max|y_?min|y_?max|bbox",
    re.IGNORECASE,
)
#: What is told in numbers that may happen to be 1 and 0, and is never a class.
IS_MEASURE = re.compile(
    r"width|height|[xy]_?(min|max|center)|bbox|index|fold|batch|rank|count|confidence|score|weight|"
    r"lat|lon|latitude|longitude",
    re.IGNORECASE,
)
LARGEST_COUNT = 9  #: a column of numbers none of which is 0 or 1, with a larger one, is a measure
MOST_ANSWERS = 3  #: different texts of columns that answer alike
SAMPLED = 50  #: values of a column looked at to see whether they are photos

Kind = Literal["answers", "mixed", "numbers", "labels", "empty"]


@dataclass(frozen=True)
class Roles:
    """What each column of a table is for."""

    photos: Column
    labels: list[Column]
    form: Literal["answers", "labels"]  #: a column a class, or labels by name
    split: Column | None
    passed_over: list[Column]


def find_roles(
    sheet: Sheet, config: DataConfig, classes: Sequence[str] | None, is_photo: Callable[[str], bool]
) -> Roles:
    """Return what each column is for; raises `UsageError` with the choices if that is ambiguous.

    `is_photo` tells whether there is a photo of that name. `classes` are those of `data.classes`.
    """
    photos = _find_photos(sheet, config.path_column, is_photo)
    rest = [column for column in sheet.columns if column is not photos]
    named = _named(sheet, config.label_column) if config.label_column else []
    others = [
        column for column in rest if column not in named and column.name not in (classes or ())
    ]
    found, split = _find_split(sheet, others)
    if named:
        labels, form = named, _form_of(named)
    else:
        labels, form = _find_labels(sheet, [c for c in rest if c not in found], classes or ())
    rest = [column for column in rest if column is not split]
    passed_over = [column for column in rest if column not in labels]
    return Roles(photos, labels, form, split, passed_over)


def _form_of(labels: Sequence[Column]) -> Literal["answers", "labels"]:
    """Return what columns that the user has named hold."""
    kinds = {kind_of(column) for column in labels}
    if len(labels) == 1:
        is_class = kinds == {"answers"} and not IS_LABELS.fullmatch(labels[0].name)
        return "answers" if is_class else "labels"
    return "answers" if "answers" in kinds and "labels" not in kinds else "labels"


def _named(sheet: Sheet, names: str) -> list[Column]:
    """Return the columns that `data.label_column` names: one, or several with commas between."""
    by_name = {column.name: column for column in sheet.columns}
    wanted = [names] if names in by_name else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in by_name:
            raise UsageError(
                f"{sheet.path}: no column {name!r}{did_you_mean(name, by_name)}; there are: "
                f"{_listed(sheet.columns)}"
            )
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _listed(columns: Collection[Column]) -> str:
    names = [column.name for column in columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def is_told_apart(name: str) -> bool:
    """Whether a column of 1 and 0 of that name is that of a class, whatever else is in a table."""
    others = (IS_REMARK, IS_MEASURE, IS_SPLIT, IS_FLAG, IS_LABELS)
    return not any(pattern.fullmatch(name.strip()) for pattern in others)


# -- photos ------------------------------------------------------------------------------------


def _find_photos(sheet: Sheet, asked: str, is_photo: Callable[[str], bool]) -> Column:
    from mltr.data.images import IMAGE_SUFFIXES

    if asked:
        return _named(sheet, asked)[0]
    # Answers such as 1 could also be photos such as 1.jpg.
    candidates = [c for c in sheet.columns if kind_of(c) not in ("answers", "empty")]
    samples = {c: [text for text in c.texts if text][:SAMPLED] for c in candidates}
    there = [c for c in candidates if any(map(is_photo, samples[c]))]
    named_so = [
        c
        for c in candidates
        if 2 * sum(text.lower().endswith(IMAGE_SUFFIXES) for text in samples[c]) > len(samples[c])
    ]
    for found in (
        [column for column in there if column in named_so],
        there,
        named_so,
        [c for c in candidates if IS_PATH.fullmatch(c.name)],
        sheet.columns[:1],
    ):
        best = [c for c in found if IS_PATH.fullmatch(c.name)] or found
        if len(best) > 1 and best[0] is not sheet.columns[0]:
            raise UsageError(
                f"{sheet.path}: which column holds the photos? Set data.path_column to one of "
                f"{_listed(best)}"
            )
        if best:
            return best[0]
    raise AssertionError("a table has a first column")


# -- labels ------------------------------------------------------------------------------------


def kind_of(column: Column) -> Kind:
    """Return what a column holds: answers, names of labels, numbers, nothing, or a mixture."""
    answers = [to_answer(text) for text in column.texts]
    if all(answer == "" for answer in answers):
        return "empty"
    if None not in answers:
        return "answers"
    others = [text for text, answer in zip(column.texts, answers, strict=True) if answer is None]
    if all(_is_number(text) for text in others):
        return "numbers"
    rows = column.times
    answered = sum(int(n) for n, answer in zip(rows, answers, strict=True) if answer)
    unknown = sum(int(n) for n, answer in zip(rows, answers, strict=True) if answer is None)
    return "mixed" if answered > unknown else "labels"


def _is_number(text: str) -> bool:
    return (
        re.fullmatch(r"[+-]?\d+([.,]\d*)?(e[+-]?\d+)?|[+-]?[.,]\d+", text, re.IGNORECASE)
        is not None
    )


def _find_split(sheet: Sheet, columns: Sequence[Column]) -> tuple[list[Column], Column | None]:
    """Return the columns that say train, val or test, and the one to go by, if there is any.

    One called `split` is meant to say it, and comes first. Raises `UsageError` for several that
    are answered by 1 and 0, each of which says a part of it.
    """
    flags = [c for c in columns if IS_FLAG.fullmatch(c.name) and kind_of(c) == "answers"]
    are_classes = [c for c in columns if c.name.casefold().startswith("is") and c not in flags]
    if any(kind_of(column) == "answers" for column in are_classes):
        flags = []  # as is_train beside is_car is
    ranks = {column: _rank_of_split(column) for column in columns}
    stated = sorted((c for c in columns if ranks[c]), key=lambda column: ranks[column])
    if len(flags) > 1 and not stated:
        raise UsageError(
            f"{sheet.path}: {_listed(flags)} all say which split a photo is in: join them in a "
            "column split, of train, val and test"
        )
    found = [*stated, *flags]
    return found, found[0] if found else None


def _rank_of_split(column: Column) -> int:
    """Return how little the name of a column of train, val and test says so: 1 to 3, 0 for others.

    A column of any name is one if it says nothing else.
    """
    if column.name.casefold() == "split":
        return 1
    texts = {text.casefold() for text in column.texts}
    parts = {PARTS.get(text) for text in texts}
    if len(texts) < 2:
        return 0
    if IS_SPLIT.fullmatch(column.name):
        # With a word that is no split's, too: whoever reads the splits will ask.
        return 2 * ("train" in parts or None not in parts)
    is_label = IS_LABELS.fullmatch(column.name)
    return 3 * (not is_label and "train" in parts and None not in parts)


def _find_labels(
    sheet: Sheet, columns: Sequence[Column], classes: Sequence[str]
) -> tuple[list[Column], Literal["answers", "labels"]]:
    kinds = {column: kind_of(column) for column in columns}
    if named := [c for c in columns if c.name in classes]:
        return [c for c in columns if c in named or _is_class(c, kinds[c])], "answers"
    answers = [c for c in columns if _is_class(c, kinds[c])]
    if classes and len(answers) == 1 and IS_LABELS.fullmatch(answers[0].name):
        return answers, "labels"  # the numbers 0 and 1 of the classes
    texts = [c for c in columns if kinds[c] == "labels" and not _is_remark(c)]
    lists = [c for c in texts if IS_LABELS.fullmatch(c.name) or _holds_structures(c)]
    if lists:
        answers = [c for c in answers if not _is_remark(c)]
    if answers and not lists and (len(answers) > 1 or not texts):
        _refuse_mixed(sheet, columns, kinds)
        return [c for c in columns if c in answers or _is_unknown_class(c, kinds[c])], "answers"
    if not answers:
        numbers = [c for c in columns if kinds[c] == "numbers" and _are_class_numbers(c)]
        found = lists or texts or numbers or [c for c in columns if kinds[c] == "labels"][:1]
        if len(found) == 1:
            return found, "labels"
        if not found:
            _refuse_mixed(sheet, columns, kinds, all_numbers=True)
            raise UsageError(
                f"{sheet.path}: none of these columns seems to hold labels: {_listed(columns)}; "
                "set data.label_column to the one that does"
            )
        _refuse_unknown_answers(sheet, found)
        raise UsageError(
            f"{sheet.path}: which column holds the labels? Set data.label_column to one of "
            f"{_listed(found)}, or to several with commas between"
        )
    raise UsageError(
        f"{sheet.path}: labels by name in {_listed(lists or texts)}, and a column a class in "
        f"{_listed(answers)}: set data.label_column to those that hold the labels, with commas "
        "between"
    )


def _is_class(column: Column, kind: Kind) -> bool:
    """Whether a column answers for one class; row numbers and measures don't."""
    is_number = IS_MEASURE.fullmatch(column.name) or (_is_remark(column) and _counts_rows(column))
    return kind == "answers" and not is_number


def _is_unknown_class(column: Column, kind: Kind) -> bool:
    return kind == "empty" and not _is_remark(column)


def _is_remark(column: Column) -> bool:
    return IS_REMARK.fullmatch(column.name.strip()) is not None


def _counts_rows(column: Column) -> bool:
    numbers = [to_whole(text) for text in column.texts]
    return len(numbers) == len(column.codes) and None not in numbers


def _holds_structures(column: Column) -> bool:
    try:
        return any(to_structure(value) is not None for value in column.values[:SAMPLED])
    except ValueError:
        return True


def _are_class_numbers(column: Column) -> bool:
    whole = all(to_whole(text) is not None for text in column.texts if text)
    return whole and IS_LABELS.fullmatch(column.name) is not None


def _refuse_mixed(
    sheet: Sheet, columns: Sequence[Column], kinds: dict[Column, Kind], all_numbers: bool = False
) -> None:
    """Raise `UsageError` for a column that seems to be one of a class, but for some cells."""
    for column in columns:
        kind = kinds[column]
        numbers = kind == "numbers" and not _is_remark(column)
        if kind == "mixed" or (numbers and (all_numbers or not _is_measure(column))):
            wrong = [to_answer(text) is None for text in column.texts]
            row = next(row for row, code in enumerate(column.codes) if wrong[code])
            raise UsageError(
                f"{sheet.where(row)}, column {column.name!r}: {column[row]!r} is not 1, 0, -1 or "
                "empty; correct it, or set data.label_column to the columns of labels"
            )


def _refuse_unknown_answers(sheet: Sheet, columns: Sequence[Column]) -> None:
    """Raise `UsageError` for columns that all hold the same few texts: answers in other words."""
    texts = {text for column in columns for text in column.texts if text}
    if len(columns) > 2 and len(texts) <= MOST_ANSWERS:
        raise UsageError(
            f"{sheet.path}: what do {' and '.join(map(repr, sorted(texts)))} mean in the columns "
            f"{_listed(columns)}? Write 1 where the class is present, 0 where it is absent, and "
            "nothing where that is unknown"
        )


def _is_measure(column: Column) -> bool:
    """Whether a column of numbers can't be one of a class with some wrong cells."""
    numbers = [to_whole(text) for text in column.texts if text]
    if None in numbers:
        return all(to_answer(text) is None for text in column.texts if text)
    whole = [number for number in numbers if number is not None]
    counts_rows = len(whole) == len(column.codes) > 2
    return counts_rows or (max(whole) > LARGEST_COUNT and not {0, 1} & set(whole))
