"""NUS-WIDE, 81 concepts, under each of the splits that papers use."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from mltr.data.records import Labels, Record, Split, read_class_list
from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError
from mltr.files.text import read_text

Protocol = Literal["official", "labelled", "ratio_70_30"]
SPLIT_SEED = 0  #: of ratio_70_30, so that everybody's 70 % are the same for the same files


def read_nuswide(
    root: str | Path,
    split: Literal["train", "test"] = "train",
    protocol: Protocol = "official",
) -> Split:
    """Read one split of NUS-WIDE.

    `official` is the released split (161,789 / 107,859 images), `labelled` the same less the
    images without any label (as in TSFormer), `ratio_70_30` a seeded 70/30 division of all images
    whose file is there (as in ASL). `root` holds Concepts81.txt, ImageList/, TrainTestLabels/ (or
    Groundtruth/TrainTestLabels/), and the images in Flickr/ (or images/). The number of image
    files that aren't there stands in the notes; their records are kept.
    """
    root = Path(root)
    if split not in ("train", "test"):
        raise UsageError(f"NUS-WIDE has the splits train and test, not {split!r}")
    classes = read_class_list(root / "Concepts81.txt")
    if protocol == "ratio_70_30":
        return _ratio_split(root, classes, split)
    if protocol not in ("official", "labelled"):
        raise UsageError(f"protocol={protocol!r} must be one of official, labelled, ratio_70_30")
    records = _read_part(root, classes, split)
    notes = {"unlabelled": sum(not record.labels.any() for record in records)}
    if protocol == "labelled":
        records = [record for record in records if record.labels.any()]
        notes = {"unlabelled_dropped": notes["unlabelled"]}
    result = Split(classes, records, split, notes, _understood(protocol))
    result.notes["missing_files"] = len(result.missing())
    return result


def _understood(protocol: Protocol) -> Understood:
    files = ("ImageList/*Imagelist.txt", "TrainTestLabels/Labels_*.txt")
    return Understood("NUS-WIDE", files, (f"protocol {protocol}",))


def _ratio_split(root: Path, classes: tuple[str, ...], split: str) -> Split:
    records = _read_part(root, classes, "train") + _read_part(root, classes, "test")
    missing = {record.name for record in Split(classes, records).missing()}
    records = [record for record in records if record.name not in missing]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(records))
    border = round(0.7 * len(records))
    chosen = order[:border] if split == "train" else order[border:]
    whole = Split(classes, records, understood=_understood("ratio_70_30"))
    result = whole.subset(np.sort(chosen), split)
    result.notes["missing_files"] = len(missing)
    return result


def _read_part(root: Path, classes: tuple[str, ...], split: str) -> list[Record]:
    part = split.capitalize()
    image_list = root / "ImageList" / f"{part}Imagelist.txt"
    if not image_list.is_file():
        raise MltrError(f"{image_list} is missing: is {root} a NUS-WIDE folder?")
    # The release writes Windows paths.
    names = [line.strip().replace("\\", "/") for line in read_text(image_list).splitlines()]
    names = [name for name in names if name]
    folder = next((root / name for name in ("Flickr", "images") if (root / name).is_dir()), root)
    labels = _read_labels(root, classes, part, len(names))
    return [Record(folder / name, name, own) for name, own in zip(names, labels, strict=True)]


def _read_labels(root: Path, classes: tuple[str, ...], part: str, count: int) -> Labels:
    candidates = [root / "Groundtruth" / "TrainTestLabels", root / "TrainTestLabels"]
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is None:
        raise MltrError(f"{root} has neither Groundtruth/TrainTestLabels nor TrainTestLabels")
    labels = np.zeros((count, len(classes)), np.int8)
    for index, name in enumerate(classes):
        path = folder / f"Labels_{name}_{part}.txt"
        if not path.is_file():
            raise MltrError(f"{path} is missing: the labels of {name!r}")
        column = read_text(path).split()
        if len(column) != count or not set(column) <= {"0", "1"}:
            raise MltrError(
                f"{path}: expected {count} lines of 0 or 1, as many as "
                f"{part}Imagelist.txt has, got {len(column)}"
            )
        labels[:, index] = np.array(column, dtype=np.int8)
    return labels
