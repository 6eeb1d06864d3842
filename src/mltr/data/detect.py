"""What a source is, by its files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mltr.data.readers.coco import is_coco
from mltr.data.readers.huggingface import is_saved_dataset
from mltr.data.readers.keywords import have_keywords
from mltr.data.readers.label_studio import is_export
from mltr.data.readers.labelled import WHOLE, part_of, part_of_folder
from mltr.data.readers.voc import find_voc, is_voc
from mltr.data.readers.voc_xml import have_voc_xml
from mltr.data.readers.yolo import DESCRIPTIONS, find_label_file, holds_boxes
from mltr.data.shards import is_shards
from mltr.data.tables.sheet import LINES_SUFFIX, PARQUET_SUFFIXES, TEXT_SUFFIXES
from mltr.data.walk import Siblings, is_image, list_folders, walk_images, with_count
from mltr.errors import MltrError, UsageError
from mltr.files.writing import open_regular

TABLE_SUFFIXES = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  #: of Hugging Face's imagefolder
PART_TABLES = ("_classes.csv", *METADATA)  #: the first is Roboflow's
UNREAD = (".json", ".xml")  #: what labels may be in, if in no format that is known
EXPORT_SUFFIXES = (".json", ".csv", ".tsv")
#: Columns that the tables of `mltr predict` begin with, and those of its lists of broken images.
OWN_COLUMNS = ("path", "labels", "probs", "error")
ERRORS_HEADER = ("path", "error")
#: Folders of pictures that are named for what they are rather than for what they show.
NO_CLASSES = {"images", "image", "imgs", "photos", "masks", "mask", "annotations", "labels"}
HEAD = 65536  #: bytes of a file that say what it is


def detect_format(root: str | Path, ignore: Sequence[str] = ()) -> str:
    """Return the format of a source, detected from its files, without those of globs to `ignore`.

    Raises `UsageError` if it looks like none or like several of them.
    """
    root = Path(root)
    if root.is_file():
        return _detect_file(root)
    if is_shards(root):
        return "shards"
    if is_saved_dataset(root):
        return "huggingface"
    if any((root / "annotations").glob("instances_*.json")):
        return "coco"
    if (root / "Concepts81.txt").is_file():
        return "nuswide"
    try:
        return "voc" if is_voc(find_voc(root)) else "voc_xml"
    except UsageError:
        return "voc"  # several years of it
    except MltrError:
        pass
    if find_exports(root):
        return "label_studio"
    if find_coco_files(root):
        return "coco"
    if find_tables(root) or find_part_tables(root):
        return "table"
    if found := _detect_by_photos(root, ignore):
        return found
    _refuse_unread(root)
    raise UsageError(
        f"{root}: unknown format. Looked for annotations/instances_*.json (COCO), VOC2007 or "
        "VOC2012, Concepts81.txt (NUS-WIDE), an export of Label Studio, a .csv or .parquet table, "
        "photos with .txt files of tags or of YOLO boxes, with .xml files as in VOC, with keywords "
        "in XMP or IPTC, folders of images named by class, shards, and a data set saved by Hugging "
        "Face datasets; set data.format"
    )


def _detect_file(path: Path) -> str:
    if path.suffix.lower() in EXPORT_SUFFIXES and is_export(_head(path)):
        return "label_studio"
    if path.suffix.lower() == ".json" and is_coco(_head(path)):
        return "coco"
    known = (*TABLE_SUFFIXES, LINES_SUFFIX)
    if path.suffix.lower() in known:
        return "table"
    if path.suffix.lower() in SPREADSHEETS:
        raise UsageError(f"{path}: save it as CSV, which any spreadsheet program can")
    if path.suffix.lower() in UNREAD:
        raise UsageError(f"{path}: in no known format: export the labels as COCO or CSV")
    raise UsageError(
        f"{path}: not called a table ({', '.join(known)}); rename it, or save it as CSV"
    )


def _refuse_unread(root: Path, others: Sequence[str] = ()) -> None:
    """Raise `UsageError` for a spreadsheet in a folder, or a file with another of some suffixes."""
    for path in sorted(root.iterdir()):
        if path.suffix.lower() in SPREADSHEETS:
            raise UsageError(f"{path}: save it as CSV, which any spreadsheet program can")
        if path.suffix.lower() in others:
            raise UsageError(
                f"{path}: in no known format: export the labels as COCO or CSV; or, if the names "
                "of the folders are the labels, set data.format class_folders"
            )


def _detect_by_photos(root: Path, ignore: Sequence[str]) -> str:
    """Return the format of a folder that has its labels beside, in, or above the photos."""
    beside = _beside_photos(root, ignore)
    if beside == "yolo" or any((root / name).is_file() for name in DESCRIPTIONS):
        return "yolo"
    parts = class_folder_parts(root, ignore)
    classes = list_folders(parts.get("train", root), ignore)
    folders = [folder for folder in classes if _has_images(folder)]
    if beside == "sidecars" and all(_beside_photos(folder, ignore) for folder in folders):
        return "sidecars"

    def photos() -> Iterator[Path]:
        return map(Path, walk_images(root, ignore=ignore, passed_over=Counter()))

    named_for_splits = all(part_of_folder(folder.name) for folder in folders)
    are_splits = bool(folders) and named_for_splits and not parts
    names = [folder.name for folder in folders]
    are_kinds = len(names) > 1 and NO_CLASSES.issuperset(name.lower() for name in names)
    if have_voc_xml(root, photos()):
        if len(folders) > 1 and not are_splits and not are_kinds:
            raise UsageError(
                f"{root}: folders of photos with .xml files: set data.format class_folders to "
                "learn the names of the folders, or voc_xml"
            )
        return "voc_xml"
    if have_keywords(photos()):
        if folders and not are_splits:
            raise UsageError(
                f"{root}: folders of photos that have keywords: set data.format class_folders to "
                "learn the names of the folders, or keywords"
            )
        return "keywords"
    if len(folders) == 1 or are_splits or are_kinds:  # labels in a file are likelier than these
        _refuse_unread(root, UNREAD)
    if are_splits or are_kinds:
        told = "splits" if are_splits else "kinds of files"
        raise UsageError(
            f"{root}: the names of its folders are those of {told}, {' and '.join(names)}, not of "
            "classes: name the labels with data.labels, or set data.format class_folders"
        )
    return "class_folders" if folders else ""


def _beside_photos(root: Path, ignore: Sequence[str]) -> str:
    """Return what the first text file of a photo is that isn't empty; "" if there is none."""
    found, siblings = "", Siblings()
    names = walk_images(root, ignore=ignore, passed_over=Counter())
    for name in with_count(names, "looking for files beside the photos"):
        path = find_label_file(siblings, root, Path(name).relative_to(root))
        if path is not None:
            text = _head(path).rpartition("\n")[0] or _head(path)
            found = "yolo" if holds_boxes(text) else "sidecars"
            if text.strip():
                break
    return found


def _head(path: Path) -> str:
    """Return the beginning of a file as text, however it is encoded."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD).decode("utf-8-sig", "replace")
    except OSError:  # whoever reads it will tell
        return ""


def find_exports(root: Path) -> list[Path]:
    """Return the exports of Label Studio in a folder."""
    paths = sorted(p for p in root.iterdir() if p.suffix.lower() in EXPORT_SUFFIXES)
    return [path for path in paths if is_export(_head(path))]


def find_coco_files(root: Path) -> list[Path]:
    """Return the files with COCO's annotations in a folder, and in its parts."""
    folders = (root, root / "annotations", *_part_folders(root))
    found = (path for folder in folders for path in sorted(folder.glob("*.json")))
    return [path for path in found if is_coco(_head(path))]


def _part_folders(root: Path) -> list[Path]:
    return [folder for folder in list_folders(root) if part_of_folder(folder.name)]


def find_tables(root: Path) -> list[Path]:
    """Return the tables in a folder, without those of `mltr predict`: they are no one's labels."""
    return sorted(
        path
        for path in root.iterdir()
        if (path.suffix.lower() in TABLE_SUFFIXES or path.name == METADATA[0])
        and not _is_prediction(path)
    )


def _is_prediction(path: Path) -> bool:
    if path.suffix.lower() in PARQUET_SUFFIXES:
        columns = _parquet_columns(path)
    else:
        columns = tuple(re.split("[,\t]", _head(path).partition("\n")[0].strip()))
    return columns == ERRORS_HEADER or columns[: len(OWN_COLUMNS)] == OWN_COLUMNS


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):  # whoever reads it will tell
        return ()


def find_part_tables(root: Path) -> dict[str, list[Path]]:
    """Return the tables of each split, where all tables are named for one, or are in its folder."""
    parts: dict[str, list[Path]] = {}
    tables = find_tables(root)
    for folder in () if tables else _part_folders(root):
        path = next((folder / name for name in PART_TABLES if (folder / name).is_file()), None)
        if path is not None:
            parts.setdefault(part_of_folder(folder.name), []).append(path)
    if parts:
        return parts
    if not tables and (root / "data").is_dir():
        tables = find_tables(root / "data")
    for path in tables:
        parts.setdefault(part_of(path.stem), []).append(path)
    return parts if "train" in parts and WHOLE not in parts else {}


def class_folder_parts(root: Path, ignore: Sequence[str]) -> dict[str, Path]:
    """Return the folders of splits that class folders are in; none where there isn't `train`.

    A folder called so may also be a class itself, as it is beside others unless another split has
    its classes, too. Raises `UsageError` for two of one split.
    """
    folders = list_folders(root, ignore)
    inside = {f: list_folders(f, ignore) for f in folders if part_of_folder(f.name)}
    parts: dict[str, Path] = {}
    doubles: list[tuple[Path, Path]] = []
    for folder in sorted(inside, key=lambda folder: not inside[folder]):  # those with classes first
        known = parts.setdefault(part_of_folder(folder.name), folder)
        if known is not folder and inside[folder]:
            doubles.append((known, folder))
    if "train" not in parts or not inside[parts["train"]]:
        return {}
    classes = {folder.name for folder in inside[parts["train"]]}
    held_out = [parts[part] for part in ("val", "test") if part in parts]
    is_confirmed = any(own.name in classes for folder in held_out for own in inside[folder])
    others = (folder for folder in folders if folder not in inside)
    if not is_confirmed and any(_holds_photos(folder, ignore) for folder in others):
        return {}
    if doubles:
        first, second = doubles[0]
        raise UsageError(
            f"{root}: {first.name} and {second.name} are both folders of the split "
            f"{part_of_folder(first.name)}: rename one, or leave it out by data.ignore"
        )
    return parts


def _holds_photos(folder: Path, ignore: Sequence[str]) -> bool:
    return next(walk_images(folder, ignore=ignore, passed_over=Counter()), "") != ""


def _has_images(folder: Path) -> bool:
    return any(map(is_image, folder.iterdir()))
