"""PASCAL VOC 2007 and 2012: labels from the image lists or from the XML annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from mltr.data.records import Box, Labels, Record, Split
from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text
from mltr.files.writing import open_regular

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip

LOOKED_AT = 50  #: annotations that tell whose classes they have
#: Lists of photos in ImageSets/Main, and the splits that they state; the first one counts.
LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}

Difficult = Literal["ignore", "negative", "positive"]
DIFFICULT_LABEL: dict[Difficult, int] = {"ignore": -1, "negative": 0, "positive": 1}


def read_voc(
    root: str | Path,
    split: Literal["train", "val", "trainval", "test", "all"] = "trainval",
    year: str = "",
    difficult: Difficult = "ignore",
    source: Literal["auto", "lists", "xml"] = "auto",
) -> Split:
    """Read one split of VOC; `root` is VOCdevkit, its parent, or the folder VOC2007 itself.

    Labels come from ImageSets/Main/CLASS_SPLIT.txt (`lists`), or from Annotations/*.xml (`xml`;
    with the split "all" of every image that has one); `auto` takes the lists where they are.
    A class present only as *difficult* is unknown, negative or positive, as `difficult` says.
    Boxes come from the XML files where they are.
    """
    folder = find_voc(Path(root), str(year))
    if difficult not in DIFFICULT_LABEL:
        raise UsageError(f"difficult={difficult!r}: one of {', '.join(DIFFICULT_LABEL)}")
    has_lists = (folder / "ImageSets" / "Main").is_dir()
    takes_lists = split != "all" and (source == "lists" or (source == "auto" and has_lists))
    if not takes_lists:
        names = _names_in_xml(folder) if split == "all" else _names_in_list(folder, split)
        labels = dict.fromkeys(names)
    else:
        labels = _labels_from_lists(folder, split, DIFFICULT_LABEL[difficult])
    records = []
    for name, listed in labels.items():
        boxes = _boxes(folder / "Annotations" / f"{name}.xml", required=listed is None)
        own = listed if listed is not None else _labels_from_boxes(boxes or (), difficult)
        image = folder / "JPEGImages" / f"{name}.jpg"
        records.append(Record(image, f"{name}.jpg", own, boxes))
    files = f"ImageSets/Main/*_{split}.txt" if takes_lists else "Annotations/*.xml"
    meaning = {-1: "unknown", 0: "absent", 1: "present"}[DIFFICULT_LABEL[difficult]]
    meanings = {"only as difficult": meaning, "not listed": "absent"}
    understood = Understood("PASCAL VOC", (f"{folder.name}/{files}",), meanings=meanings)
    return Split(VOC_CLASSES, records, split, understood=understood)


def find_voc(root: Path, year: str = "") -> Path:
    """Return the folder VOC2007 or VOC2012 in, or at, `root`."""
    if not root.is_dir():
        raise MltrError(f"{root}: no such folder")
    candidates = [root, *sorted(root.glob("VOC2*")), *sorted(root.glob("VOCdevkit/VOC2*"))]
    found = [
        folder
        for folder in candidates
        if (folder / "Annotations").is_dir() or (folder / "ImageSets" / "Main").is_dir()
    ]
    if year:
        found = [folder for folder in found if folder.name == f"VOC{year}" or folder == root]
    if not found:
        raise MltrError(
            f"{root} holds no VOC{year or ' folder'}: expected VOCdevkit/VOC2007 with "
            "JPEGImages, Annotations and ImageSets/Main"
        )
    if len(found) > 1:
        raise UsageError(
            f"{root} holds {' and '.join(f.name for f in found)}: choose one with data.year"
        )
    return found[0]


def has_list(folder: Path, split: str) -> bool:
    """Whether the VOC folder has the lists of that split."""
    return (folder / "ImageSets" / "Main" / f"{VOC_CLASSES[0]}_{split}.txt").is_file()


def is_voc(folder: Path) -> bool:
    """Whether a folder in VOC's layout has its lists of classes, or objects of these alone.

    With lists of photos alone it is one's own, of VOC's classes or others.
    """
    if any(has_list(folder, name) for name in LISTS):
        return True
    if any((folder / "ImageSets" / "Main" / f"{name}.txt").is_file() for name in LISTS):
        return False
    paths = [*islice(sorted((folder / "Annotations").glob("*.xml")), LOOKED_AT)]
    try:
        names = {(o.findtext("name") or "").strip() for p in paths for o in read_objects(p)}
    except MltrError:  # whoever reads it will tell
        return True
    return bool(paths) and names <= {*VOC_CLASSES}


def read_objects(path: Path) -> list[ET.Element]:
    """Return the objects in an XML file of annotations; raises `MltrError` for another file."""
    try:
        with open_regular(path) as file:
            annotation = ET.fromstring(file.read())  # in the encoding that it states
    except (ET.ParseError, ValueError, LookupError, OSError) as error:
        raise MltrError(f"{path}: not a VOC annotation ({error})") from error
    if annotation.tag != "annotation":
        raise MltrError(f"{path}: not a VOC annotation (it begins with <{annotation.tag}>)")
    return [*annotation.iter("object")]


def _names_in_xml(folder: Path) -> list[str]:
    names = sorted(path.stem for path in (folder / "Annotations").glob("*.xml"))
    if not names:
        raise MltrError(f"{folder / 'Annotations'} holds no XML files")
    return names


def _names_in_list(folder: Path, split: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        raise MltrError(f"{path} is missing: without image lists, only the split 'all' exists")
    return [line.split()[0] for line in read_text(path).splitlines() if line.strip()]


def _labels_from_lists(folder: Path, split: str, difficult_label: int) -> dict[str, Labels | None]:
    labels: dict[str, Labels] = {}
    for index, name in enumerate(VOC_CLASSES):
        path = folder / "ImageSets" / "Main" / f"{name}_{split}.txt"
        if not path.is_file():
            raise MltrError(f"{path} is missing: the list of {name!r} in the split {split!r}")
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            image, _, flag = line.partition(" ")
            if flag.strip() not in ("1", "0", "-1") or (index > 0 and image not in labels):
                raise MltrError(f"{path}, line {number}: expected 'IMAGE 1|0|-1', got {line!r}")
            own = labels.setdefault(image, np.zeros(len(VOC_CLASSES), np.int8))
            own[index] = {"1": 1, "0": difficult_label, "-1": 0}[flag.strip()]
    return dict(labels)


def _boxes(path: Path, required: bool) -> tuple[Box, ...] | None:
    if not path.is_file():
        if required:
            raise MltrError(f"{path} is missing: it has the labels of its image")
        return None
    try:
        return tuple(map(_box, read_objects(path)))
    except (ValueError, AttributeError, TypeError) as error:
        raise MltrError(f"{path}: not a VOC annotation ({error})") from error


def _box(element: ET.Element) -> Box:
    name = (element.findtext("name") or "").strip()
    if name not in VOC_CLASSES:
        raise ValueError(f"{name!r} is no class of VOC; for your own, set data.format voc_xml")
    corners = element.find("bndbox")
    if corners is None:
        raise ValueError(f"{name} has no bndbox")
    x0, y0, x1, y1 = (
        float(corners.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax")
    )
    # VOC counts pixels from 1 and includes the last.
    width, height = x1 - x0 + 1, y1 - y0 + 1
    is_difficult = (element.findtext("difficult") or "0").strip() == "1"
    return Box(
        VOC_CLASSES.index(name), x0 - 1, y0 - 1, width, height, width * height,
        difficult=is_difficult,
    )  # fmt: skip


def _labels_from_boxes(boxes: tuple[Box, ...], difficult: Difficult) -> Labels:
    labels = np.zeros(len(VOC_CLASSES), np.int8)
    for box in boxes:
        if box.difficult:
            labels[box.class_index] = DIFFICULT_LABEL[difficult]
    for box in boxes:
        if not box.difficult:
            labels[box.class_index] = 1
    return labels
