"""Classes of a source once it is read: each under one name, and those that nothing has left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from mltr.data.records import Labels, Record, Splits, normal
from mltr.data.tables.names import unify

OFFICIAL_COCO = 80  #: categories of MS-COCO, all of which papers count


def unify_classes(splits: Splits, merge_case: bool | None, where: str) -> None:
    """Make one class of those with the same name; see `mltr.data.tables.names.unify`.

    Of labels that become one, present counts before absent, and absent before unknown.
    """
    classes = splits.train.classes
    are_different = len({normal(name).casefold() for name in classes}) == len(classes)
    if are_different and all(normal(name) == name for name in classes):
        return  # as nearly always, and counting takes a while
    positives = sum(split.count_labels()[0] for split in splits)
    times = Counter(dict.fromkeys(classes, 0))
    for name, number in zip(classes, np.atleast_1d(positives), strict=True):
        times[name] += int(number)
    called = unify(times, merge_case, where)
    names = tuple(dict.fromkeys(called.values()))
    if names != classes:
        _regroup(splits, names, [names.index(called[name]) for name in classes])


def leave_out_unannotated(splits: Splits, known: Collection[str]) -> None:
    """Leave out categories that no image of any split has, such as COCO's supercategories.

    Those of MS-COCO itself all stay, in a part of it, too, and so do those that are `known`.
    """
    classes = splits.train.classes
    if len(classes) == OFFICIAL_COCO:
        return
    positives = np.atleast_1d(sum(split.count_labels()[0] for split in splits))
    kept = [i for i, name in enumerate(classes) if positives[i] or name in known]
    if not kept or len(kept) == len(classes):
        return
    places = [kept.index(index) if index in kept else -1 for index in range(len(classes))]
    _regroup(splits, tuple(classes[index] for index in kept), places)
    gone = tuple(name for name, place in zip(classes, places, strict=True) if place < 0)
    understood = splits.understood
    splits.train.understood = replace(understood, passed_over=(*understood.passed_over, *gone))


def _regroup(splits: Splits, names: tuple[str, ...], places: Sequence[int]) -> None:
    """Give all splits other classes; class i becomes ``places[i]``, or goes where that is -1."""
    for split in splits:
        split.classes = names
        split.records = [_move(record, len(names), places) for record in split]


def _move(record: Record, count: int, places: Sequence[int]) -> Record:
    labels: Labels = np.full(count, -1, np.int8)
    for label, place in zip(record.labels, places, strict=True):
        if place >= 0:
            labels[place] = max(labels[place], label)
    boxes = record.boxes and tuple(
        replace(box, class_index=places[box.class_index])
        for box in record.boxes
        if places[box.class_index] >= 0
    )
    return replace(record, labels=labels, boxes=boxes)
