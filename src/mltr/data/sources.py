"""From the data section of a recipe to three splits, by each source's own convention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mltr.config.schema import SPLITS, DataConfig
from mltr.data.classes import leave_out_unannotated, unify_classes
from mltr.data.detect import (
    class_folder_parts,
    detect_format,
    find_coco_files,
    find_exports,
    find_part_tables,
    find_tables,
)
from mltr.data.hierarchy import with_hierarchy
from mltr.data.holding_out import complete, divide, hold_out_val
from mltr.data.images import IMAGE_SUFFIXES
from mltr.data.readers.coco import read_coco, read_coco_file
from mltr.data.readers.folders import read_class_folders, read_sidecars
from mltr.data.readers.huggingface import PREFIX, is_saved_dataset, read_dataset
from mltr.data.readers.keywords import read_keywords
from mltr.data.readers.label_studio import read_label_studio
from mltr.data.readers.labelled import WHOLE, align_classes, part_of, part_of_folder
from mltr.data.readers.nuswide import read_nuswide
from mltr.data.readers.part_tables import read_part_tables
from mltr.data.readers.table import read_table
from mltr.data.readers.voc import find_voc, has_list, read_voc
from mltr.data.readers.voc_xml import read_voc_xml
from mltr.data.readers.yolo import read_yolo
from mltr.data.records import Record, Split, Splits, read_class_list, same_image
from mltr.data.shards import ShardSplit, is_address, is_shards, read_shards
from mltr.data.truncated import salvage
from mltr.data.understood import Understood
from mltr.data.walk import find_images, list_folders
from mltr.errors import MltrError, UsageError, counted, did_you_mean
from mltr.terminal import UNPRINTABLE, printable

log = logging.getLogger(__name__)

WITH_OWN_CLASSES = ("scenes", "coco", "voc", "nuswide", "yolo", "shards")
#: Options that some formats have no use for, and the formats that have.
OPTIONS = {
    "labels": ("table", "coco", "label_studio", "huggingface"),
    "images": ("table", "coco", "label_studio", "huggingface"),
    "classes": (
        "table", "sidecars", "yolo", "keywords", "label_studio", "voc_xml", "huggingface",
    ),
    "label_column": ("table",),
    "path_column": ("table",),
    "separator": ("table",),
    "ignore": ("sidecars", "class_folders", "yolo", "keywords", "label_studio", "voc_xml"),
}  # fmt: skip
SHOWN = 12  #: classes named in a message at most


def open_splits(config: DataConfig, known: Collection[str] = ()) -> Splits:
    """Return the training, validation and test splits of a source.

    Classes of COCO and YOLO that no image has are left out, unless they are among those `known` to
    a model.

    Validation and test splits that the source states are kept (the test split may be COCO's val, or
    VOC's val where the test isn't public); what is missing is held out from the training images,
    stratified over the labels and seeded. Of COCO and VOC, the validation images always are.
    Records without an image file are dropped and counted in each split's notes. Raises `MltrError`
    for an unreadable source, an empty split, or more missing files than `data.max_broken` allows.
    """
    config = located(config)
    form = _find_format(config)
    if form == "images":
        raise UsageError("data.format images has no labels: use it with mltr shard only")
    if form == "scenes":
        from mltr.data.readers.scenes import read_scenes

        return read_scenes(config.scenes)
    _check_options(config, form)
    splits = OPENERS[form](Path(config.root), config)
    if form != "shards":
        unify_classes(splits, config.merge_case, config.root)
        _check_parts(splits)
    if config.hierarchy:  # by which a category may have images without any annotation of its own
        splits = with_hierarchy(splits, Path(config.hierarchy))
    if form in ("coco", "yolo"):
        leave_out_unannotated(splits, known)
    _drop_missing(splits, config.max_broken)
    if config.truncated == "allow" and form != "shards":  # whose photos were written anew
        salvage(splits)
    for name in splits.train.classes:
        if UNPRINTABLE.search(name):
            raise MltrError(
                f"{config.root}: the class {printable(name)} has control characters in its name, "
                "which no bundle takes; rename it"
            )
    for split in splits:
        if not len(split):
            raise MltrError(f"{config.root}: the {split.name} split is empty")
        if config.missing == "negative" and form != "table":  # which knows the empty cells
            split.take_unknown_as_negative()
            split.understood = split.understood.with_unknown_as_absent()
    if not any((record.labels == 1).any() for record in splits.train):
        raise MltrError(f"{config.root}: no training image has any label")
    return splits


def located(config: DataConfig) -> DataConfig:
    """Return a config whose `labels`, `images` and `classes` are found.

    They are relative to the root, or else to the current folder, as a shell completes them; what is
    there only is made absolute. Columns of a Hugging Face data set stay as they are.
    """
    root = Path(config.root)
    if is_named_by_columns(config) or not config.root or is_address(config.root):
        return config
    folder = root.parent if root.is_file() else root
    given = {name: getattr(config, name) for name in ("labels", "images", "classes")}
    elsewhere = {
        name: str(Path(path).absolute())
        for name, path in given.items()
        if path and not (folder / path).exists() and Path(path).exists()
    }
    return replace(config, **elsewhere)  # type: ignore[arg-type]


def is_named_by_columns(config: DataConfig) -> bool:
    """Whether a source is a Hugging Face data set, whose labels and images are columns."""
    is_named = config.root.startswith(PREFIX) or config.format == "huggingface"
    return is_named or (config.root != "" and is_saved_dataset(Path(config.root)))


def check_classes(config: DataConfig, train: Split) -> None:
    """Raise `MltrError` for classes without a negative or without a positive training image.

    The latter is not an error if the source has its own list of classes, such as COCO.
    """
    positives, negatives = train.count_labels()

    def named(chosen: NDArray[np.bool_]) -> str:
        names = [train.classes[index] for index in np.flatnonzero(chosen)]
        return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" * (len(names) > SHOWN))

    if not negatives.all():
        unknown = (positives + negatives < len(train))[negatives == 0].any()
        way_out = (
            "if an empty cell means no, set --data.missing negative"
            if unknown
            else "add images without them, or leave these classes out"
        )
        raise MltrError(
            f"no training image is a known negative for: {named(negatives == 0)}; a network would "
            f"learn to predict them for every picture: {way_out}"
        )
    if not positives.all() and _find_format(config) not in WITH_OWN_CLASSES:
        raise MltrError(
            f"no training image has: {named(positives == 0)}; add images that do, or leave out "
            "these classes"
        )


def open_images(config: DataConfig) -> Splits:
    """Return all images of a folder, without labels, some of them held out; no test split.

    Raises `MltrError` if there are none.
    """
    root = Path(config.root)
    nothing = np.zeros(0, np.int8)
    records = [
        Record(path, str(path.relative_to(root)), nothing)
        for path in find_images(root, _globs(config.ignore))
    ]
    photos = Split((), records, understood=Understood("photos without labels"))
    if not records:
        raise MltrError(f"{root}: no images; looked for {', '.join(IMAGE_SUFFIXES)}")
    return hold_out_val(photos, Split((), []), config)


def open_unlabelled(config: DataConfig, splits: Splits) -> Split:
    """Return the photos of `data.unlabelled_root`, but for those that are in a split already.

    None of their labels is known. Raises `MltrError` if no photo is left.
    """
    root, known = Path(config.unlabelled_root), {same_image(r) for split in splits for r in split}
    if isinstance(splits.train, ShardSplit):
        raise UsageError("data.unlabelled_root: labelled photos in shards can't have others beside")
    classes = splits.train.classes
    nothing = np.full(len(classes), -1, np.int8)
    images = find_images(root, _globs(config.ignore))
    found = [Record(path, str(path.relative_to(root)), nothing) for path in images]
    records = [record for record in found if same_image(record) not in known]
    if not records:
        raise MltrError(
            f"data.unlabelled_root {root}: no photos but those of the labelled data; looked for "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    split = Split(classes, records, "unlabelled", {"labelled_too": len(found) - len(records)})
    if config.truncated == "allow":
        salvage([split])
    return split


def _check_options(config: DataConfig, form: str) -> None:
    """Raise `UsageError` for an option that would have no effect on a source of this format."""
    if form == "shards":  # which may be of a source that they had an effect on
        return
    plain = DataConfig()
    given = [name for name in OPTIONS if getattr(config, name) != getattr(plain, name)]
    unused = [name for name in given if form not in OPTIONS[name]]
    if config.unlabelled_root:
        unused = [name for name in unused if name != "ignore"]
    if unused:
        options = " and ".join(f"data.{name}" for name in unused)
        raise UsageError(
            f"{config.root}: {options} can't be used with {form.replace('_', ' ')}: leave "
            f"{'it' if len(unused) == 1 else 'them'} out, or set data.format to another one"
        )


def _find_format(config: DataConfig) -> str:
    """Return the format of a source; raises `MltrError` if there is no such source."""
    if config.format in ("images", "scenes"):
        return config.format
    if not config.root:
        raise UsageError(
            "data.root is not set: give the folder of the photos with --data.root FOLDER"
        )
    if config.root.startswith(PREFIX):
        return "huggingface"
    if is_address(config.root):
        return "shards"
    root = Path(config.root)
    if not root.exists():
        raise MltrError(
            f"data.root {root}: no such file or folder; if it has moved, give the new location "
            "with --data.root NEW"
        )
    if is_shards(root):  # of a source in any format, which a recipe may name
        labels = root / config.labels
        if not (config.labels and labels.is_relative_to(root) and labels.is_file()):
            return "shards"
    if config.format != "auto":
        return config.format
    if config.labels and root.is_dir() and not is_saved_dataset(root):
        root /= config.labels
        if not root.is_file():
            raise MltrError(
                f"data.labels {config.labels}: no such file in {config.root}, nor here; "
                "--data.labels= finds the labels by itself"
            )
    return detect_format(root, _globs(config.ignore))


def parse_source(source: str) -> tuple[str, str]:
    """Return `data.format` and `data.root` of a source as commands take it.

    That is a folder or file, ``FORMAT:PATH`` if the format is ambiguous, a URL of shards, or
    ``scenes``. Raises `UsageError` for an unknown format.
    """
    if source == "scenes":
        return "scenes", ""
    if is_address(source):
        return "shards", source
    form, colon, path = source.partition(":")
    if not colon or Path(source).exists() or source.startswith(PREFIX):
        return "auto", source
    known = ("scenes", "images", *OPENERS)
    if form not in known:
        raise UsageError(
            f"{source}: no such file, and no format {form!r}{did_you_mean(form, known)}"
        )
    return form, path


# -- each source's convention ------------------------------------------------------------------


def _open_coco(root: Path, config: DataConfig) -> Splits:
    annotations = root / "annotations"
    is_ms_coco = all(any(annotations.glob(f"instances_{x}20*.json")) for x in ("train", "val"))
    if is_ms_coco and not config.labels:
        train, test = (
            read_coco(root, part, config.year, config.unlabelled, config.images)
            for part in ("train", "val")
        )
        align_classes((train, test))
        train.understood |= test.understood
        return hold_out_val(train, test, config)
    parts: dict[str, Split] = {}
    for part, path in _coco_parts(root, config.labels).items():
        images = path.parent if root.is_file() else root
        images = images / config.images if config.images else images
        parts[part] = read_coco_file(
            path, images, part, config.unlabelled, only_there=bool(config.images)
        )
    align_classes(parts.values())
    return _by_part(parts, config)


def _coco_parts(root: Path, labels: str) -> dict[str, Path]:
    """Return the files with annotations, by the splits that they or their folders are named for."""
    if root.is_file() or labels:
        return {WHOLE: root / labels if labels else root}
    parts: dict[str, Path] = {}
    for path in find_coco_files(root):
        above = path.parent.name if path.parent != root else ""
        part = part_of_folder(above) or part_of(path.stem)
        if part in parts:
            raise UsageError(
                f"{root}: set data.labels to one file of annotations; found: "
                f"{parts[part].relative_to(root)} and {path.relative_to(root)}"
            )
        parts[part] = path
    if not parts:
        raise MltrError(f"{root}: no file of COCO annotations in it")
    return parts


def _open_voc(root: Path, config: DataConfig) -> Splits:
    folder = find_voc(root, config.year)
    if has_list(folder, "test"):
        names = ("trainval", "test")
    elif has_list(folder, "train"):  # VOC 2012: the labels of its test were never published
        names = ("train", "val")
    else:
        return divide(read_voc(folder, "all", difficult=config.difficult), config)
    train, test = (read_voc(folder, name, difficult=config.difficult) for name in names)  # type: ignore[arg-type]
    train.understood |= test.understood
    return hold_out_val(train, test, config)


def _open_nuswide(root: Path, config: DataConfig) -> Splits:
    train = read_nuswide(root, "train", config.protocol)
    test = read_nuswide(root, "test", config.protocol)
    return hold_out_val(train, test, config)


def _open_table(root: Path, config: DataConfig) -> Splits:
    path, folder = root, root.parent
    classes = _classes(root if root.is_dir() else folder, config)
    if root.is_dir():
        tables = {} if config.labels else find_part_tables(root)
        if sum(map(len, tables.values())) > 1:
            return _by_part(read_part_tables(root, tables, classes, config), config)
        only = next((paths[0] for paths in tables.values()), None)
        path = only or _choose(root, config.labels, find_tables(root), "table")
        folder = root
    images = folder / config.images if config.images else Path()
    split, parts = read_table(path, images, classes, config)
    if not parts:
        return divide(split, config)
    named = {
        name: split.subset([i for i, part in enumerate(parts) if part == name], name)
        for name in SPLITS
    }
    named["train"].notes = split.notes
    return complete(named["train"], named["val"], named["test"], config)


def _choose(root: Path, labels: str, candidates: Sequence[Path], what: str) -> Path:
    """Return the file that `data.labels` names, the only candidate, or the one called labels."""
    if labels:
        return root / labels
    called_so = [path for path in candidates if path.stem.casefold() == "labels"]
    if len(candidates) == 1 or len(called_so) == 1:
        return (called_so or candidates)[0]
    found = ", ".join(path.name for path in candidates) or "none"
    raise UsageError(f"{root}: set data.labels to the {what} with the labels; found: {found}")


def _open_sidecars(root: Path, config: DataConfig) -> Splits:
    classes, ignore = _classes(root, config), _globs(config.ignore)
    return _by_part(read_sidecars(root, classes, ignore, config.merge_case), config)


def _open_class_folders(root: Path, config: DataConfig) -> Splits:
    ignore = _globs(config.ignore)
    folders = class_folder_parts(root, ignore)
    if not folders:
        return divide(read_class_folders(root, ignore=ignore), config)
    others = [folder for folder in list_folders(root, ignore) if folder not in folders.values()]
    train = read_class_folders(folders.pop("train"), ignore=ignore)
    for other in others:
        if left := len(find_images(other, ignore)):
            what = f"photos in {other.name}, which is no split, left out"
            train.understood |= Understood(counts={what: left})
    parts = {"train": train, "val": Split(train.classes, []), "test": Split(train.classes, [])}
    for part, folder in folders.items():
        has_classes = any((folder / name).is_dir() for name in train.classes)
        if has_classes:
            parts[part] = read_class_folders(folder, train.classes, ignore)
            train.understood |= parts[part].understood
        for other in list_folders(folder, ignore) if has_classes else [folder]:
            if other.name not in train.classes and (left := len(find_images(other, ignore))):
                why = "which train lacks" if has_classes else "which has no class folders"
                what = f"photos in {other.relative_to(root).as_posix()}, {why}, left out"
                train.understood |= Understood(counts={what: left})
    if not len(parts["test"]):  # ImageNet: the validation images are what everybody reports on
        parts["val"], parts["test"] = parts["test"], parts["val"]
    return complete(train, parts["val"], parts["test"], config)


def _open_yolo(root: Path, config: DataConfig) -> Splits:
    ignore = _globs(config.ignore)
    classes = _classes(root, config, numbered=True)
    return _by_part(read_yolo(root, classes, config.unlabelled, ignore), config)


def _open_keywords(root: Path, config: DataConfig) -> Splits:
    classes, ignore = _classes(root, config), _globs(config.ignore)
    return _by_part(read_keywords(root, classes, ignore, config.merge_case), config)


def _open_label_studio(root: Path, config: DataConfig) -> Splits:
    path, folder = root, root.parent
    if root.is_dir():
        path, folder = _choose(root, config.labels, find_exports(root), "export"), root
    images = folder / config.images if config.images else ""
    classes, ignore = _classes(folder, config), _globs(config.ignore)
    return divide(read_label_studio(path, images, classes, ignore, config.merge_case), config)


def _open_voc_xml(root: Path, config: DataConfig) -> Splits:
    classes, ignore = _classes(root, config), _globs(config.ignore)
    parts = read_voc_xml(root, classes, config.difficult, ignore, config.merge_case)
    return _by_part(parts, config)


def _globs(ignore: str) -> list[str]:
    return [glob.strip() for glob in ignore.split(",") if glob.strip()]


def _classes(folder: Path, config: DataConfig, *, numbered: bool = False) -> tuple[str, ...] | None:
    if not config.classes:
        return None
    return read_class_list(folder / config.classes, numbered=numbered)


def _by_part(parts: dict[str, Split], config: DataConfig) -> Splits:
    """Keep the splits that a source states, and hold out those that it doesn't."""
    loose = parts.pop(WHOLE, None)
    if not parts and loose is not None:
        return divide(loose, config)
    if "train" not in parts:
        raise MltrError(f"{config.root}: no training split, only {' and '.join(parts)}")
    train = parts["train"]
    for part in parts.values():
        if part is not train:
            train.understood |= part.understood
    if loose is not None:
        train.notes["photos_in_no_split_left_out"] = len(loose)
    empty = Split(train.classes, [])
    return complete(train, parts.get("val", empty), parts.get("test", empty), config)


def _open_huggingface(root: Path, config: DataConfig) -> Splits:
    classes = read_class_list(Path(config.classes)) if config.classes else None
    parts = read_dataset(config.root, config.images, config.labels, classes)
    empty = Split(parts["train"].classes, [])
    return complete(parts["train"], parts.get("val", empty), parts.get("test", empty), config)


def _open_shards(root: Path, config: DataConfig) -> Splits:
    return read_shards(config)


OPENERS: dict[str, Callable[[Path, DataConfig], Splits]] = {
    "coco": _open_coco,
    "voc": _open_voc,
    "nuswide": _open_nuswide,
    "table": _open_table,
    "sidecars": _open_sidecars,
    "class_folders": _open_class_folders,
    "yolo": _open_yolo,
    "label_studio": _open_label_studio,
    "voc_xml": _open_voc_xml,
    "keywords": _open_keywords,
    "huggingface": _open_huggingface,
    "shards": _open_shards,
}


# -- checks -----------------------------------------------------------------------------------


def _check_parts(splits: Splits) -> None:
    """Raise `MltrError` for an image file that is in two splits."""
    seen: dict[Path, Split] = {}
    for split in (splits.test, splits.val, splits.train):  # the largest last: it isn't kept
        for record in split:
            if not isinstance(record.image, Path):
                continue
            if seen.get(record.image, split) is not split:
                raise MltrError(
                    f"{record.image}: this photo is listed twice, for {split.name} and for "
                    f"{seen[record.image].name}; leave out one of them"
                )
            if split is not splits.train:
                seen[record.image] = split


def _drop_missing(splits: Splits, max_share: float) -> None:
    """Drop and count the records without a file; too many are an error."""
    missing = {split.name: {record.name for record in split.missing()} for split in splits}
    number = sum(map(len, missing.values()))
    if not number:
        return
    total = sum(len(split) for split in splits)
    message = (
        f"{number} of {counted(total, 'image file')} {'is' if number == 1 else 'are'} "
        f"missing, e.g. {', '.join(sorted(set().union(*missing.values()))[:3])}"
    )
    if number > max_share * total:
        raise MltrError(f"{message}; more than data.max_broken={max_share:g} allows")
    log.warning("%s; left out", message)
    for split in splits:
        gone = missing[split.name]
        split.records = [record for record in split if record.name not in gone]
        if gone:
            split.notes["missing_files_dropped"] = len(gone)
