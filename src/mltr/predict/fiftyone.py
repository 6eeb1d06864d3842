"""Labels for FiftyOne: a `FiftyOneImageClassificationDataset`, whose images stay where they are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from mltr.predict.results import Row, Vocabulary


def write_fiftyone(rows: Iterable[Row], vocabulary: Vocabulary, file: TextIO) -> None:
    """Write a JSON object of the classes, and a list of labels for the path of each image.

    Images that can't be read are left out.
    """
    classes = json.dumps(list(vocabulary.classes), ensure_ascii=False)
    file.write(f'{{"classes": {classes},\n"labels": {{')
    separator = "\n"
    for row in rows:
        if row.probs is None:
            continue
        labels = [_label(name, prob, vocabulary.categories.get(name)) for name, prob in row.labels]
        path = json.dumps(str(row.file("FiftyOne").absolute()), ensure_ascii=False)
        file.write(f"{separator}{path}: {json.dumps(labels, ensure_ascii=False)}")
        separator = ",\n"
    file.write("\n}}\n")


def _label(name: str, prob: float, category: str | None) -> dict[str, Any]:
    label: dict[str, Any] = {"label": name, "confidence": round(prob, 6)}
    return label if category is None else label | {"attributes": {"category": category}}
