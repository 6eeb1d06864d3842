"""PASCAL VOC's XML for classes of one's own, as LabelImg and Roboflow write it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mltr.config.schema import SPLITS
from mltr.data.readers.labelled import LabelledPhoto, to_splits, with_parts_of_folders
from mltr.data.readers.voc import Difficult
from mltr.data.records import Split
from mltr.data.understood import Understood
from mltr.data.walk import Siblings, find_images, passed_over_kinds
from mltr.errors import MltrError
from mltr.files.text import read_text

#: Folders of annotations beside a folder of photos, or in it.
FOLDERS = ("annotations", "Annotations", "annots", "labels", "xml", "xmls")
LONGEST_HEAD = 1000  #: characters in front of the first element: a declaration and comments
LOOKED_AT = 50  #: photos beside which annotations are looked for, to find out what a folder is


def read_voc_xml(
    root: str | Path,
    classes: Sequence[str] | None = None,
    difficult: Difficult = "ignore",
    ignore: Sequence[str] = (),
) -> dict[str, Split]:
    """Read photos with ``a.xml`` beside ``a.jpg``, or in a folder of annotations beside its own.

    A photo has the labels of its objects; one without any has none of the classes, and one without
    a file is left out and counted. A class present only as *difficult* is unknown, negative or
    positive, as `difficult` says. The splits are those that ImageSets/Main lists, or that folders
    are named for. Raises `MltrError`, naming the file, for other contents.
    """
    root = Path(root)
    passed_over: Counter[str] = Counter()
    photos, bare, siblings = [], 0, Siblings()
    for image in find_images(root, ignore, passed_over):
        path = find_xml(siblings, image)
        if path is None:
            bare += 1
            continue
        sure, hard = _labels_in(path)
        hard -= sure
        labels = sure | hard if difficult == "positive" else sure
        unknown = hard if difficult == "ignore" else set()
        name = image.relative_to(root).as_posix()
        photos.append(LabelledPhoto(image, name, sorted(labels), sorted(unknown)))
    if not photos:
        raise MltrError(f"{root}: none of its {bare} photos has an XML file of annotations")
    counts = {"photos without an XML file, left out": bare} | passed_over_kinds(passed_over)
    meanings = {"no object": "absent"}
    understood = Understood("PASCAL VOC's XML", meanings=meanings, counts=counts)
    return to_splits(_with_parts(root, photos), classes, understood, str(root))


def have_voc_xml(images: Iterable[Path]) -> bool:
    """Whether one of the first photos has such a file."""
    siblings = Siblings()
    found = filter(None, (find_xml(siblings, image) for image in islice(images, LOOKED_AT)))
    return any("<annotation" in read_text(path)[:LONGEST_HEAD] for path in islice(found, 1))


def find_xml(siblings: Siblings, image: Path) -> Path | None:
    """Return the annotations of a photo: beside it, or in a folder beside one that it is in."""
    candidates = [image.with_suffix(".xml")]
    for above in islice(image.parents, 3):  # images/a.jpg, and images/train/a.jpg
        below = image.relative_to(above).with_suffix(".xml")
        within = Path(*below.parts[1:]) if len(below.parts) > 1 else below
        candidates += [above / name / within for name in FOLDERS]
    return siblings.find(image, *candidates)


def _labels_in(path: Path) -> tuple[set[str], set[str]]:
    """Return the labels of the objects in a file, and those of objects that are difficult."""
    found: tuple[set[str], set[str]] = (set(), set())
    try:
        annotation = ET.fromstring(read_text(path))
        if annotation.tag != "annotation":
            raise ValueError(f"it begins with <{annotation.tag}>")
        for item in annotation.iter("object"):
            name = (item.findtext("name") or "").strip()
            if not name:
                raise ValueError("an object has no name")
            found[(item.findtext("difficult") or "0").strip() == "1"].add(name)
    except (ET.ParseError, ValueError) as error:
        raise MltrError(f"{path}: not a VOC annotation ({error})") from error
    return found


def _with_parts(root: Path, photos: Sequence[LabelledPhoto]) -> list[LabelledPhoto]:
    lists = root / "ImageSets" / "Main"
    parts = {name: part for part in SPLITS for name in _names_in(lists / f"{part}.txt")}
    if "train" not in parts.values():
        return with_parts_of_folders(photos)
    return [replace(photo, part=parts.get(Path(photo.name).stem, "")) for photo in photos]


def _names_in(path: Path) -> Iterator[str]:
    if path.is_file():
        yield from (line.split()[0] for line in read_text(path).splitlines() if line.strip())
