"""PASCAL VOC's XML for classes of one's own, as LabelImg and Roboflow write it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

from mltr.data.images import IMAGE_SUFFIXES
from mltr.data.readers.labelled import LabelledPhoto, to_splits, with_parts_of_folders
from mltr.data.readers.voc import LISTS, Difficult, find_voc, read_objects
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
    merge_case: bool | None = None,
) -> dict[str, Split]:
    """Read photos with ``a.xml`` beside ``a.jpg``, or in a folder of annotations beside its own.

    A photo has the labels of its objects; one without any has none of the classes, and one without
    a file is left out and counted. A class present only as *difficult* is unknown, negative or
    positive, as `difficult` says. The splits are those that ImageSets/Main lists, or that folders
    are named for. Raises `MltrError`, naming the file, for other contents.
    """
    root = Path(root)
    passed_over: Counter[str] = Counter()
    photos, bare, finder = [], 0, XmlFinder(root)
    for image in find_images(root, ignore, passed_over):
        path = finder.find(image)
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
    return to_splits(_with_parts(root, photos), classes, understood, str(root), merge_case)


def have_voc_xml(root: Path, images: Iterable[Path]) -> bool:
    """Whether the first of the first photos that has such a file has VOC's."""
    finder = XmlFinder(root)
    found = filter(None, (finder.find(image) for image in islice(images, LOOKED_AT)))
    try:
        return any("<annotation" in read_text(path)[:LONGEST_HEAD] for path in islice(found, 1))
    except MltrError:  # in another encoding: its own parser knows it
        return True


class XmlFinder:
    """Finds the annotations of photos below a folder."""

    def __init__(self, root: Path) -> None:
        self._root, self._siblings = root, Siblings()
        self._folders_of = cache(self._list_folders)  # one folder has many photos

    def find(self, image: Path) -> Path | None:
        """Return the file of a photo: beside it, or in a folder beside one that it is in."""
        name = f"{image.stem}.xml"
        folders = self._folders_of(image.parent)
        return self._siblings.find(image, image.with_name(name), *(f / name for f in folders))

    def _list_folders(self, parent: Path) -> list[Path]:
        found = []
        for above in (parent, *parent.parents):
            for folder in (above / name for name in FOLDERS):
                if folder.is_dir():  # annotations/train/a.xml for images/train/a.jpg, or flat
                    below = parent.relative_to(above).parts[1:]
                    found += [folder.joinpath(*below), folder]
            if above == self._root:
                break
        return found


def _labels_in(path: Path) -> tuple[set[str], set[str]]:
    """Return the labels of the objects in a file, and those of objects that are difficult."""
    found: tuple[set[str], set[str]] = (set(), set())
    for item in read_objects(path):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise MltrError(f"{path}: not a VOC annotation (an object has no name)")
        found[(item.findtext("difficult") or "0").strip() == "1"].add(name)
    return found


def _with_parts(root: Path, photos: Sequence[LabelledPhoto]) -> list[LabelledPhoto]:
    """Return photos in the splits that lists state, or else folders. Raises `MltrError`."""
    try:
        lists = find_voc(root) / "ImageSets" / "Main"
    except MltrError:  # its layout is another one
        lists = root / "ImageSets" / "Main"
    parts: dict[str, str] = {}
    known = {Path(photo.name).stem for photo in photos}
    for name, part in LISTS.items():
        listed = [*_names_in(path := lists / f"{name}.txt", known)]
        if listed and not known.intersection(listed):
            raise MltrError(f"{path}: none of its photos is in {root}, e.g. {listed[0]}")
        for photo in listed:
            parts.setdefault(photo, part)
    if not parts:
        return with_parts_of_folders(root, photos)
    return [replace(photo, part=parts.get(Path(photo.name).stem, "")) for photo in photos]


def _names_in(path: Path, known: Collection[str]) -> Iterator[str]:
    """Yield the photos in a list without their suffixes, and without a class's 1, 0 or -1."""
    lines = read_text(path).splitlines() if path.is_file() else ()
    for line in filter(None, map(str.strip, lines)):
        name = line if line in known else re.sub(r"\s+(1|0|-1)$", "", line)
        yield Path(name).stem if name.lower().endswith(IMAGE_SUFFIXES) else Path(name).name
