"""Folders of photos: a text file of tags beside each photo, or one folder per class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from mltr.data.readers.labelled import LabelledPhoto, to_splits, with_parts_of_folders
from mltr.data.readers.yolo import holds_boxes
from mltr.data.records import Record, Split
from mltr.data.tables.tags import split_tags
from mltr.data.understood import Understood
from mltr.data.walk import (
    Siblings,
    find_images,
    is_image,
    list_folders,
    passed_over_kinds,
    with_count,
)
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text
from mltr.files.writing import open_regular, sha256_of

BATCH = 10_000  #: files whose keys are waited for at a time
SAMPLE = 4096  #: bytes in the middle of a file that tell most files of the same size apart


def read_folder(
    root: str | Path, classes: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> Split:
    """Read photos with a sidecar of tags: `photo.txt` (or `photo.jpg.txt`) beside `photo.jpg`.

    Tags are separated as `split_tags` says. An empty sidecar means that no label applies; a photo
    without a sidecar is left out and counted. Without `classes`, every tag is a class. Raises
    `MltrError` for a sidecar that can't be read or that two photos would share.
    """
    tagged, understood = _read_tagged(Path(root), classes, ignore)
    return to_splits(tagged, classes, understood, str(root))[""]


def read_sidecars(
    root: str | Path,
    classes: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    merge_case: bool | None = None,
) -> dict[str, Split]:
    """Read the same in the splits that the folders in `root` are named for, if they are.

    Tags that differ from `classes` in capitals alone are these if `merge_case`, and refused if it
    is None.
    """
    tagged, understood = _read_tagged(Path(root), classes, ignore)
    photos = with_parts_of_folders(Path(root), tagged)
    return to_splits(photos, classes, understood, str(root), merge_case)


def _read_tagged(
    root: Path, classes: Sequence[str] | None, ignore: Sequence[str]
) -> tuple[list[LabelledPhoto], Understood]:
    passed_over: Counter[str] = Counter()
    tagged: list[LabelledPhoto] = []
    siblings = Siblings()
    untagged = 0
    for image in find_images(root, ignore, passed_over):
        sidecar = siblings.find(
            image, image.with_name(f"{image.name}.txt"), image.with_suffix(".txt")
        )
        if sidecar is None:
            untagged += 1
        else:
            name = image.relative_to(root).as_posix()
            tagged.append(LabelledPhoto(image, name, _read_tags(sidecar)))
    if not tagged:
        raise MltrError(f"{root}: none of its {untagged} images has a .txt file of tags beside it")
    if not classes and not any(photo.labels for photo in tagged):
        raise MltrError(f"{root}: all {len(tagged)} .txt files of tags are empty")
    counts = {"photos without a .txt file, left out": untagged} | passed_over_kinds(passed_over)
    meanings = {"not in the .txt file": "absent"}
    return tagged, Understood("photos with a .txt file of tags", meanings=meanings, counts=counts)


def _read_tags(path: Path) -> list[str]:
    text = read_text(path)
    if holds_boxes(text):
        raise UsageError(f"{path}: boxes of YOLO, not tags: set data.format yolo")
    return split_tags(text)


def read_class_folders(
    root: str | Path, classes: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> Split:
    """Read one folder of images per class, as in ImageNet: one label per image.

    A photo that is in several class folders, as the same file, becomes one with their labels.
    Without `classes`, every folder with a photo in it or below is one.
    """
    root = Path(root)
    if not root.is_dir():
        raise MltrError(f"{root}: no such folder")
    passed_over: Counter[str] = Counter()
    folders = classes or [folder.name for folder in list_folders(root, ignore)]
    found = {
        name: find_images(root / name, ignore, passed_over)
        for name in folders
        if (root / name).is_dir()
    }
    with_photos = [name for name in folders if found.get(name)]
    classes = classes or with_photos
    records = []
    for index, name in enumerate(classes):
        labels = np.zeros(len(classes), np.int8)  # one for all images: ImageNet is large
        labels[index] = 1
        for image in found.get(name, ()):
            records.append(Record(image, image.relative_to(root).as_posix(), labels))
    if not records:
        raise MltrError(f"{root}: it contains no folders of images")
    merged = _merge_copies(records)
    counts = {
        "photos outside of the class folders, left out": sum(map(is_image, root.iterdir())),
        f"classes without a photo in {root.name}": len(folders) - len(with_photos),
        "copies of a photo in several class folders, merged": len(records) - len(merged),
    }
    understood = Understood(
        "folders of photos named by class",
        meanings={"in another folder": "absent"},
        counts=counts | passed_over_kinds(passed_over),
    )
    return Split(tuple(classes), merged, understood=understood)


def _merge_copies(records: Sequence[Record]) -> list[Record]:
    """Return records of which those with the same file in several class folders are one."""
    merged: list[Record | None] = list(records)
    for places in _same_files([Path(str(record.image)) for record in records]):
        own = [records[place] for place in places]
        labels = np.max([record.labels for record in own], axis=0)
        if labels.sum() > 1:
            merged[places[0]] = replace(own[0], labels=labels)
            for place in places[1:]:
                merged[place] = None
    return [record for record in merged if record is not None]


def _same_files(paths: Sequence[Path]) -> list[list[int]]:
    """Return the places of files that are the same, byte for byte, in groups."""
    groups = [list(range(len(paths)))]
    for key_of in (_size, _sample, _digest):
        number = {place: count for count, group in enumerate(groups) for place in group}
        keys = _in_threads(key_of, [paths[place] for place in number])
        finer: dict[Hashable, list[int]] = defaultdict(list)
        for place, key in zip(number, with_count(keys, "looking for copies"), strict=True):
            finer[number[place], key].append(place)
        groups = [group for group in finer.values() if len(group) > 1]
    return groups


def _in_threads(key_of: Callable[[Path], object], paths: Sequence[Path]) -> Iterator[object]:
    """Yield the key of each file; a network disk answers many at a time."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), BATCH):
            yield from pool.map(key_of, paths[start : start + BATCH])


def _told(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return the same function, for which a file that can't be read is like no other."""

    def key_of(path: Path) -> object:
        try:
            return read(path)
        except OSError:
            return path

    return key_of


@_told
def _size(path: Path) -> object:
    return path.stat().st_size or path  # empty files are no photo


@_told
def _sample(path: Path) -> object:
    with open_regular(path) as file:
        file.seek(path.stat().st_size // 2)
        return file.read(SAMPLE)


@_told
def _digest(path: Path) -> object:
    return sha256_of(path)
