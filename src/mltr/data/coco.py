"""MS-COCO 2014 and 2017: labels from the instance annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mltr.data.records import Box, Record, Split
from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError


def read_coco(
    root: str | Path,
    split: Literal["train", "val"] = "train",
    year: str = "",
    unlabelled: Literal["keep", "drop"] = "keep",
) -> Split:
    """Read `root`/annotations/instances_{split}{year}.json; images lie in `root`/{split}{year}.

    The classes are in the order of their category ids. An image has a label if any annotation has
    it, crowds included, as in ASL, CSRA and ML-GCN. `unlabelled` keeps or drops images without any
    annotation (peers differ). An empty `year` finds the only one there.
    """
    root = Path(root)
    path = _annotation_file(root, split, str(year))
    try:
        content = json.loads(path.read_text("utf-8"))
        return _to_split(content, path, split, unlabelled)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MltrError(f"{path}: not a complete JSON file ({error}); download it again") from error
    except (KeyError, TypeError) as error:
        raise MltrError(f"{path}: not COCO instance annotations: no {error}") from error


def _annotation_file(root: Path, split: str, year: str) -> Path:
    if split not in ("train", "val"):
        raise UsageError(f"COCO has the splits train and val, not {split!r}")
    pattern = f"instances_{split}{year or '*'}.json"
    found = sorted((root / "annotations").glob(pattern))
    if not found:
        raise MltrError(f"no {pattern} in {root / 'annotations'}: is {root} a COCO folder?")
    if len(found) > 1:
        years = [path.stem[-4:] for path in found]
        raise UsageError(f"{root} holds COCO of {' and '.join(years)}: choose one with data.year")
    return found[0]


def _to_split(content: dict[str, Any], path: Path, split: str, unlabelled: str) -> Split:
    folder = path.parent.parent / path.stem.removeprefix("instances_")
    categories = sorted(content["categories"], key=lambda category: category["id"])
    index_of = {category["id"]: index for index, category in enumerate(categories)}
    boxes: dict[int, list[Box]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append(
            Box(
                index_of[annotation["category_id"]], x, y, width, height,
                area=annotation["area"], crowd=bool(annotation.get("iscrowd", 0)),
            )
        )  # fmt: skip
    records = []
    for image in content["images"]:
        own = boxes[image["id"]]
        if not own and unlabelled == "drop":
            continue
        labels = np.zeros(len(categories), np.int8)
        labels[[box.class_index for box in own]] = 1
        name = image["file_name"]
        records.append(Record(folder / name, name, labels, tuple(own)))
    result = Split(tuple(category["name"] for category in categories), records, split)
    result.understood = Understood("COCO", (path.name,), meanings={"no annotation": "absent"})
    bare = sum(not own for own in boxes.values())
    result.notes["unlabelled_dropped" if unlabelled == "drop" else "unlabelled_kept"] = bare
    return result
