"""COCO's annotations in JSON: of MS-COCO 2014 and 2017, and as CVAT, Roboflow and others write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mltr.data.readers.labelled import PhotoIndex
from mltr.data.records import Box, Record, Split, normal
from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text

LOOKED_AT = 20  #: images that are looked for in each folder


def read_coco(
    root: str | Path,
    split: Literal["train", "val"] = "train",
    year: str = "",
    unlabelled: Literal["keep", "drop"] = "keep",
    images: str = "",
) -> Split:
    """Read `root`/annotations/instances_{split}{year}.json; images lie in `root`/{split}{year}.

    If `images` is given, they lie below that folder of `root`.

    The classes are in the order of their category ids. An image has a label if any annotation has
    it, crowds included, as in ASL, CSRA and ML-GCN. `unlabelled` keeps or drops images without any
    annotation (peers differ). An empty `year` finds the only one there.
    """
    path = _annotation_file(Path(root), split, str(year))
    folder = Path(root) / images
    return read_coco_file(path, folder, split, unlabelled, only_there=bool(images))


def read_coco_file(
    path: str | Path,
    images: str | Path,
    split: str = "",
    unlabelled: Literal["keep", "drop"] = "keep",
    *,
    only_there: bool = False,
) -> Split:
    """Read a file of annotations; images lie in the folders that tools use, or below `images`.

    With `only_there`, only the latter are looked into. Neither the box nor the area of an
    annotation is needed. Raises `MltrError` for a file of another kind.
    """
    path = Path(path)
    try:
        content = json.loads(read_text(path))
        usual = () if only_there else (path.parent, path.parent / "images")
        locate = _locator(content["images"], path, Path(images), usual)
        return _to_split(content, path, locate, split, unlabelled)
    except (json.JSONDecodeError, RecursionError) as error:
        raise MltrError(f"{path}: not a complete JSON file ({error}); download it again") from error
    except KeyError as error:
        raise MltrError(f"{path}: not COCO instance annotations: no {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise MltrError(f"{path}: not COCO instance annotations ({error})") from error


def is_coco(head: str) -> bool:
    """Whether a file may have COCO's annotations, by its first characters."""
    is_object = head.lstrip("\ufeff \r\n\t").startswith("{")
    is_report = '"understood"' in head  # by `mltr data --json`, which has such keys further in
    # Label Studio writes a list of categories alone beside boxes of YOLO.
    is_list = re.search(r'"(images|annotations)"\s*:\s*\[', head)
    is_long = '"categories"' in head and not head.rstrip().endswith("}")
    return is_object and not is_report and bool(is_list or is_long)


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


def _to_split(
    content: dict[str, Any], path: Path, locate: Callable[[str], Path], split: str, unlabelled: str
) -> Split:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    classes = tuple(dict.fromkeys(normal(category["name"]) for category in categories))
    _check_ids(content["categories"], path, "category", "name")
    _check_ids(content["images"], path, "image", "file_name")
    index_of = {c["id"]: classes.index(normal(c["name"])) for c in categories}
    indices: dict[Any, set[int]] = {image["id"]: set() for image in content["images"]}
    boxes: dict[Any, list[Box]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        index = index_of[annotation["category_id"]]
        indices[annotation["image_id"]].add(index)
        if annotation.get("bbox"):
            boxes[annotation["image_id"]].append(_box(annotation, index))
    has_boxes = any(boxes.values()) or not any(indices.values())
    records: dict[Path, Record] = {}
    repeated = 0
    for image in content["images"]:
        own = indices[image["id"]]
        if not own and unlabelled == "drop":
            continue
        labels = np.zeros(len(classes), np.int8)
        labels[list(own)] = 1
        name = image["file_name"]
        found = tuple(boxes[image["id"]]) if has_boxes else None
        record = Record(place := locate(name), name, labels, found)
        known = records.setdefault(place, record)
        if known is record:
            continue
        if not np.array_equal(known.labels, labels):
            raise MltrError(f"{path}: {name} is listed twice, with other labels")
        repeated += 1
    result = Split(classes, list(records.values()), split)
    if repeated:
        result.notes["listed_twice_with_the_same_labels"] = repeated
    result.understood = Understood("COCO", (path.name,), meanings={"no annotation": "absent"})
    bare = sum(not own for own in indices.values())
    result.notes["unlabelled_dropped" if unlabelled == "drop" else "unlabelled_kept"] = bare
    return result


def _check_ids(entries: Sequence[Mapping[str, Any]], path: Path, what: str, key: str) -> None:
    """Raise `MltrError` for an id of two photos or categories, whose labels would be mixed."""
    name_of: dict[Any, str] = {}
    for entry in entries:
        name = entry[key]
        if name_of.setdefault(entry["id"], name) != name:
            raise MltrError(
                f"{path}: the {what} id {entry['id']} is given to {name_of[entry['id']]} and to "
                f"{name}: number them anew when files are joined"
            )


def _box(annotation: dict[str, Any], index: int) -> Box:
    x, y, width, height = annotation["bbox"]
    area, crowd = annotation.get("area"), bool(annotation.get("iscrowd", 0))
    return Box(index, x, y, width, height, width * height if area is None else area, crowd)


def _locator(
    listed: Sequence[Mapping[str, Any]], path: Path, images: Path, usual: Sequence[Path]
) -> Callable[[str], Path]:
    """Return a function from the name of an image to its path: where tools put it, or anywhere."""
    stem = path.stem.removeprefix("instances_")
    above = path.parent.parent
    # train2017, as in MS-COCO; images/train, as CVAT writes it
    by_name = (above / stem, above / "images" / stem) if usual else ()
    names = [image["file_name"] for image in listed[:LOOKED_AT]]
    for folder in (*by_name, *usual, images, images / "images"):
        if any((folder / name).is_file() for name in names):
            return lambda name: folder / name
    if usual and (above / stem).is_dir():
        return lambda name: above / stem / name
    return PhotoIndex(images).find
