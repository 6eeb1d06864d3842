"""Hugging Face `datasets` as a source: on the Hub, or in a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mltr.data.images import open_image
from mltr.data.records import PARTS, Labels, Record, Split, indices_of
from mltr.data.understood import Understood
from mltr.errors import BrokenImage, MltrError, UsageError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "hf-datasets:"  #: of the name of a data set on the Hub
SAVED = ("dataset_dict.json", "dataset_info.json")  #: what `save_to_disk` leaves in a folder


@dataclass(frozen=True, eq=False)
class DatasetImage:
    """An image of a data set, decoded when asked for."""

    rows: Dataset  #: with images as bytes or paths, not decoded
    column: str
    index: int

    def read_bytes(self) -> bytes:
        """Return the image file; raises `BrokenImage`."""
        try:
            cell = self.rows[self.index][self.column]
            if cell and (cell.get("bytes") or cell.get("path")):
                return cell["bytes"] or Path(cell["path"]).read_bytes()
        except (OSError, ValueError) as error:
            raise BrokenImage(f"row {self.index}: can't be read ({error})") from error
        raise BrokenImage(f"row {self.index}: no image")

    def load(self) -> Image.Image:
        """Return the image in RGB; raises `BrokenImage`."""
        return open_image(self)

    def __str__(self) -> str:
        return f"row {self.index}"

    def __repr__(self) -> str:
        # What the cache of decoded images knows it by: the same for the same rows.
        return f"{self.rows._fingerprint} {self.column} {self.index}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` has saved a data set in this folder."""
    return any((folder / name).is_file() for name in SAVED)


def read_dataset(
    source: str | Path, images: str = "", labels: str = "", classes: Sequence[str] | None = None
) -> dict[str, Split]:
    """Read a data set: `train`, and `val` and `test` where it has them.

    `source` is ``hf-datasets:OWNER/NAME``, a folder by `save_to_disk`, or one that
    `datasets.load_dataset` understands, such as one of Parquet files or of images with a
    metadata.jsonl. `images` and `labels` name the columns, which needn't be said where there is
    one of their kind. Labels are lists of names or of `ClassLabel`, or one `ClassLabel` a row; an
    empty list is an image without labels, a missing one leaves all labels unknown. Raises
    `MltrError` for what can't be loaded or has no such columns.
    """
    parts = _load(str(source))
    named: dict[str, Dataset] = {}
    for name, part in parts.items():
        if name not in PARTS:
            raise MltrError(f"{source}: split {name!r} is not one of {', '.join(PARTS)}")
        named[PARTS[name]] = part
    if "train" not in named:
        raise MltrError(f"{source}: no split named train; found: {', '.join(parts)}")
    features = named["train"].features
    image_column = _choose(features, images, "images", _is_image, str(source))
    label_column = _choose(features, labels, "labels", _is_labels, str(source))
    cells = {name: list(part[label_column]) for name, part in named.items()}
    known = _class_names(features[label_column])
    names = tuple(classes or known or _names_in(cells.values()))
    return {
        name: _to_split(part, name, image_column, label_column, cells[name], names, known)
        for name, part in named.items()
    }


def _load(source: str) -> dict[str, Dataset]:
    try:
        import datasets
    except ImportError as error:
        raise MltrError(f"{source}: needs `pip install 'mltr[datasets]'`") from error
    datasets.disable_progress_bars()
    try:
        if is_saved_dataset(Path(source)):
            found = datasets.load_from_disk(source)
        else:
            found = datasets.load_dataset(source.removeprefix(PREFIX))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MltrError(f"{source} can't be loaded: {reason}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _choose(features: Any, asked: str, what: str, is_kind: Any, source: str) -> str:
    """Return the column asked for, or the only one of its kind."""
    if asked:
        if asked not in features or not is_kind(features[asked]):
            kinds = ", ".join(name for name in features if is_kind(features[name])) or "none"
            raise UsageError(
                f"data.{what}: {source} has no {what} column {asked!r}"
                f"{did_you_mean(asked, features)}; candidates: {kinds}"
            )
        return asked
    found = [str(name) for name in features if is_kind(features[name])]
    if len(found) != 1:
        raise UsageError(
            f"{source}: set data.{what} to the column of the {what}; "
            f"{'candidates: ' + ', '.join(found) if found else 'none of these qualifies: '}"
            f"{'' if found else ', '.join(features)}"
        )
    return found[0]


def _is_image(feature: Any) -> bool:
    from datasets import Image as ImageFeature

    return isinstance(feature, ImageFeature)


def _inner(feature: Any) -> Any:
    """Return what a list is of, or None for anything but a list."""
    return getattr(feature, "feature", None)


def _is_labels(feature: Any) -> bool:
    from datasets import ClassLabel

    inner = _inner(feature)
    of_names = getattr(inner, "dtype", "") in ("string", "large_string")
    return isinstance(feature, ClassLabel) or isinstance(inner, ClassLabel) or of_names


def _class_names(feature: Any) -> list[str] | None:
    """Return the names that a column of `ClassLabel` knows."""
    names = getattr(_inner(feature) or feature, "names", None)
    return list(names) if names else None


def _names_in(columns: Any) -> list[str]:
    return sorted({n for cells in columns for cell in cells for n in cell or [] if n is not None})


def _to_split(
    part: Dataset,
    name: str,
    image_column: str,
    label_column: str,
    cells: list[Any],
    names: tuple[str, ...],
    known: list[str] | None,
) -> Split:
    from datasets import Image as ImageFeature

    rows = part.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
    records = []
    for index, cell in enumerate(cells):
        where = f"{name}, row {index}"
        labels = _to_labels(cell, names, known, where)
        records.append(Record(DatasetImage(rows, image_column, index), f"{name}/{index}", labels))
    columns = {image_column: "photos", label_column: "labels"}
    passed_over = tuple(column for column in part.column_names if column not in columns)
    meanings = {"null" if known is None else "null or -1": "unknown", "not in the list": "absent"}
    understood = Understood("Hugging Face data set", (), (), columns, passed_over, meanings)
    return Split(names, records, name, understood=understood)


def _to_labels(cell: Any, names: tuple[str, ...], known: list[str] | None, where: str) -> Labels:
    if cell is None or cell == -1:  # -1 is `datasets`' own sign of a hidden label
        return np.full(len(names), -1, np.int8)
    told = cell if isinstance(cell, list) else [cell]
    own = [label for label in told if label not in (None, -1)]
    if told and not own:
        return np.full(len(names), -1, np.int8)
    if known:
        own = [known[index] for index in own]
    labels = np.zeros(len(names), np.int8)
    labels[indices_of(own, names, where)] = 1
    return labels
