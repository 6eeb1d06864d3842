"""YOLO: a text file of boxes for each photo, and a list of the classes that its numbers mean."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import yaml

from mltr.config.schema import SPLITS
from mltr.data.readers.labelled import WHOLE, LabelledPhoto, are_splits, part_of, to_splits
from mltr.data.records import Split, read_class_list
from mltr.data.understood import Understood
from mltr.data.walk import Siblings, find_images, passed_over_kinds
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text

DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASS_LISTS = ("classes.txt", "obj.names", "classes.names", "labels.txt")
#: A class, then the box, the polygon or the key points: numbers in shares of the image.
LINE = re.compile(r"\d+(?:\.0+)?(?:\s+[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?){4,}", re.IGNORECASE)


def holds_boxes(text: str) -> bool:
    """Whether a text is that of a YOLO label file; an empty one may be anything.

    >>> holds_boxes("0 0.5 0.5 0.2 0.2"), holds_boxes("sea, 2 boats"), holds_boxes("")
    (True, False, False)
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return bool(lines) and all(LINE.fullmatch(line) for line in lines)


def read_yolo(
    root: str | Path,
    classes: Sequence[str] | None = None,
    unlabelled: str = "keep",
    ignore: Sequence[str] = (),
) -> dict[str, Split]:
    """Read a folder of photos with boxes: ``labels/x.txt`` for ``images/x.jpg``, or beside it.

    A photo has the labels of its boxes. The names of the classes are `classes`, or in a
    ``data.yaml``, ``classes.txt`` or ``obj.names``. The splits are those that ``data.yaml`` names,
    and else those of folders named train, val and test. A photo without a text file has none of
    the classes (ultralytics' rule); `unlabelled` "drop" leaves it out. Raises `MltrError`, naming
    file and line, for other contents, and `UsageError` where no file names the classes.
    """
    root = Path(os.path.normpath(root))
    description = _description(root)
    names, source = _class_names(root, description) if classes is None else (tuple(classes), "")
    passed_over: Counter[str] = Counter()
    photos, bare, siblings = [], 0, Siblings()
    for image in find_images(root, ignore, passed_over):
        path = image.relative_to(root)
        text = find_label_file(siblings, root, path)
        bare += text is None
        if text is None and unlabelled == "drop":
            continue
        numbers = _read_numbers(text, len(names)) if text else set()
        photos.append(LabelledPhoto(image, path.as_posix(), [names[n] for n in numbers]))
    if not any(photo.labels for photo in photos):
        raise MltrError(f"{root}: none of its {len(photos)} photos has a text file with a box")
    fate = "left out" if unlabelled == "drop" else "taken as without any class"
    counts = {f"photos without a text file, {fate}": bare} | passed_over_kinds(passed_over)
    files, details = (source,) if source else (), ("as labels of the whole photo",)
    meanings = {"no box": "absent"}
    understood = Understood("YOLO boxes", files, details, meanings=meanings, counts=counts)
    parts = _parts(root, description, photos)
    photos = [replace(photo, part=part) for photo, part in zip(photos, parts, strict=True)]
    return to_splits(photos, names, understood, str(root))


def find_label_file(siblings: Siblings, root: Path, image: Path) -> Path | None:
    """Return the text file of a photo below `root`: in labels/ for images/, or beside it."""
    candidates = [root / f"{image}.txt", root / image.with_suffix(".txt")]
    for place in range(len(image.parts) - 2, -1, -1):
        if image.parts[place].lower() == "images":
            parts = [*image.parts[:place], "labels", *image.parts[place + 1 :]]
            candidates.insert(0, (root / Path(*parts)).with_suffix(".txt"))
            break
    return siblings.find(root / image, *candidates)


def _read_numbers(path: Path, count: int) -> set[int]:
    numbers = set()
    for number, line in enumerate(_lines(path), start=1):
        if not LINE.fullmatch(line):
            raise MltrError(f"{path}, line {number}: {line[:40]!r} is no class with its box")
        index = int(float(line.split()[0]))
        if index >= count:
            raise MltrError(
                f"{path}, line {number}: class {index}, but only {count} are named, from 0 on"
            )
        numbers.add(index)
    return numbers


def _lines(path: Path) -> Iterator[str]:
    return (line.strip() for line in read_text(path).splitlines() if line.strip())


def _description(root: Path) -> dict[str, object]:
    """Return what the folder's YAML file says; nothing where there is none."""
    for name in DESCRIPTIONS:
        path = root / name
        if path.is_file():
            try:
                # Texts alone: a class may be called no, which YAML takes for false.
                content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
            except (yaml.YAMLError, RecursionError) as error:
                reason = " ".join(str(error).split())
                raise MltrError(f"{path}: not YAML ({reason})") from error
            if isinstance(content, dict):
                return content | {"": name}
            raise MltrError(f"{path}: not a description of YOLO data: it has no names")
    return {}


def _class_names(root: Path, description: dict[str, object]) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes in the order of their numbers, and the file they are in."""
    found = description.get("names")
    if isinstance(found, dict) and set(found) == set(map(str, range(len(found)))):
        found = [found[str(number)] for number in range(len(found))]
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        names = tuple(found)
        if len(set(names)) < len(names):
            raise MltrError(f"{root / str(description[''])}: two classes have the same name")
        return names, str(description[""])
    for folder in (root, root / "labels", root / "data", *sorted(root.glob("*/labels"))):
        for name in CLASS_LISTS:
            if (folder / name).is_file():
                path = folder / name
                return read_class_list(path, numbered=True), path.relative_to(root).as_posix()
    raise UsageError(
        f"{root}: YOLO boxes, but nothing names the classes: write the names to classes.txt there, "
        "one a line in the order of the numbers, or give the file with data.classes"
    )


def _parts(
    root: Path, description: dict[str, object], photos: Sequence[LabelledPhoto]
) -> list[str]:
    """Return the split of each photo: as the YAML file says, or else as folders are named."""
    listed = _listed_parts(root, description, [photo.name for photo in photos])
    parts = [
        next(filter(None, map(part_of, PurePosixPath(photo.name).parts[:-1])), WHOLE)
        for photo in photos
    ]
    if not listed and not are_splits(parts):
        return [WHOLE] * len(photos)
    stated = {*listed.values()}  # whose photos are those that the YAML file names, and no others
    return [
        listed.get(photo.name, WHOLE if part in stated else part)
        for photo, part in zip(photos, parts, strict=True)
    ]


def _listed_parts(
    root: Path, description: dict[str, object], photos: Sequence[str]
) -> dict[str, str]:
    """Return the split of each photo in a folder or list (.txt) that the YAML file names.

    A photo in several is in the first, as where val is train. Raises `MltrError` for a list
    without any of the photos.
    """
    parts: dict[str, str] = {}
    by_end = _PathsByEnd(photos)
    top = str(description.get("path") or "")
    for key in SPLITS:
        for name in _texts(description.get(key)):
            name = name.replace("\\", "/")
            # Roboflow counts from a folder that isn't there: ../train/images.
            candidates = (root / top / name, root / name, root / name.removeprefix("../"))
            there = [path for path in candidates if path.exists()]
            # A copy's own folders, though those that it is of may still be there.
            whole = [Path(os.path.normpath(path.absolute())) for path in there]
            inside = [path for path in whole if path.is_relative_to(root.absolute())]
            path = next(iter([*inside, *there]), root / Path(name).name)
            if path.is_dir() and path.absolute() != root.absolute():
                below = f"{Path(os.path.relpath(path, root)).as_posix()}/"
                found = [photo for photo in photos if photo.startswith(below)]
            elif path.suffix == ".txt" and path.is_file():
                found = [*filter(None, (by_end.find(line, path) for line in _lines(path)))]
                if not found:
                    raise MltrError(f"{path}: none of its photos is in {root}")
            else:
                continue
            for photo in found:
                parts.setdefault(photo, key)
    return parts


class _PathsByEnd:
    """Finds paths by those of another machine, with the same folders at their ends."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._ends: dict[str, str | None] = {}  #: None: of several
        for path in paths:
            parts = path.split("/")
            for start in range(1, len(parts)):
                end = "/".join(parts[start:])
                self._ends[end] = None if end in self._ends else path
        self._ends |= {path: path for path in paths}

    def find(self, asked: str, where: Path) -> str:
        """Return the path with the longest end of the one asked for, or "" if there is none.

        Raises `MltrError`, which locates the name, where several have it.
        """
        parts = [part for part in asked.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if end in self._ends:
                if found := self._ends[end]:
                    return found
                raise MltrError(f"{where}: {asked} may be one of several photos called {end}")
        return ""


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []
