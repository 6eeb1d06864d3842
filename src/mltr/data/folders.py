"""Folders of photos: a text file of tags beside each photo, or one folder per class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mltr.data.records import Record, Split, indices_of
from mltr.data.understood import Understood
from mltr.data.walk import find_images
from mltr.errors import MltrError


def split_tags(text: str) -> list[str]:
    """Return the tags of a comma-, semicolon-, bar- or line-separated list, each once, in order."""
    tags = (tag.strip() for tag in re.split(r"[,;|\n]", text))
    return list(dict.fromkeys(tag for tag in tags if tag))


def read_folder(root: str | Path, classes: Sequence[str] | None = None) -> Split:
    """Read photos with a sidecar of tags: `photo.txt` (or `photo.jpg.txt`) beside `photo.jpg`.

    Tags are separated by commas, or one per line. An empty sidecar means that no label applies; a
    photo without a sidecar is left out and counted. Without `classes`, every tag is a class.
    """
    root = Path(root)
    tagged: list[tuple[Path, Path]] = []
    untagged = 0
    for image in find_images(root):
        sidecars = (image.with_suffix(".txt"), image.with_name(image.name + ".txt"))
        sidecar = next((path for path in sidecars if path.is_file()), None)
        if sidecar is None:
            untagged += 1
        else:
            tagged.append((image, sidecar))
    if not tagged:
        raise MltrError(f"{root}: none of its {untagged} images has a .txt file of tags beside it")
    tags = [split_tags(sidecar.read_text("utf-8-sig")) for _, sidecar in tagged]
    if classes is None:
        classes = sorted({tag for own in tags for tag in own})
    if not classes:
        raise MltrError(f"{root}: all {len(tagged)} .txt files of tags are empty")
    records = []
    for (image, sidecar), own in zip(tagged, tags, strict=True):
        labels = np.zeros(len(classes), np.int8)
        labels[indices_of(own, classes, str(sidecar))] = 1
        records.append(Record(image, image.relative_to(root).as_posix(), labels))
    meanings = {"not in the .txt file": "absent"}
    understood = Understood("photos with a .txt file of tags", meanings=meanings)
    return Split(tuple(classes), records, "", {"without_sidecar_dropped": untagged}, understood)


def read_class_folders(root: str | Path, classes: Sequence[str] | None = None) -> Split:
    """Read one folder of images per class, as in ImageNet: one label per image."""
    root = Path(root)
    if not root.is_dir():
        raise MltrError(f"{root}: no such folder")
    if classes is None:
        classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    records = []
    for index, name in enumerate(classes):
        if not (root / name).is_dir():
            raise MltrError(f"{root / name}: no folder for the class {name!r}")
        labels = np.zeros(
            len(classes), np.int8
        )  # one for all images of the class: ImageNet is large
        labels[index] = 1
        for image in find_images(root / name):
            records.append(Record(image, image.relative_to(root).as_posix(), labels))
    if not records:
        raise MltrError(f"{root}: it contains no folders of images")
    meanings = {"in another folder": "absent"}
    understood = Understood("folders of photos named by class", meanings=meanings)
    return Split(tuple(classes), records, understood=understood)
