"""The result of every reader: records of images with labels, collected in a split."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mltr.data.understood import Understood
from mltr.errors import MltrError, UsageError, counted, did_you_mean
from mltr.files.text import read_text

if TYPE_CHECKING:
    from PIL import Image
    from scipy.sparse import csr_array

Labels = NDArray[np.int8]

#: What tools call splits, and what they are here.
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@runtime_checkable
class LazyImage(Protocol):
    """An image that is created on request, such as a composed scene; picklable."""

    def load(self) -> Image.Image:
        """Return the image in RGB."""
        ...


@runtime_checkable
class LazyFile(LazyImage, Protocol):
    """A lazy image that is a file; its text names it."""

    def read_bytes(self) -> bytes:
        """Return the file; raises `BrokenImage`."""
        ...


@dataclass(frozen=True)
class Salvaged:
    """An image that is made of a file with something missing."""

    original: Path


@runtime_checkable
class PackedImage(LazyFile, Protocol):
    """A lazy file that is part of a larger one."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def identity(self) -> tuple[bytes, int, int]:
        """Return its location, and the size and modification time (ns) of its file, if it has one.

        As long as they don't change, it is the same image. Raises `OSError` if the file is gone.
        """
        ...


ImageSource = Path | bytes | LazyImage


@dataclass(frozen=True, slots=True)
class Box:
    """The box of an object, in pixels of the original image, with the origin at the top left."""

    class_index: int
    x: float
    y: float
    width: float
    height: float
    area: float  #: pixels; the source's own (COCO: of the segment), else width x height
    crowd: bool = False
    difficult: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image with its labels."""

    image: ImageSource  #: a path, the bytes of a file, or an object whose `load()` opens it
    name: str  #: unique within a split; a path relative to the source where there is one
    labels: Labels  #: [K] of 1, 0, or -1 for unknown
    boxes: tuple[Box, ...] | None = None  #: None where the source has no boxes at all


@dataclass(eq=False)
class Split:
    """Records with one list of classes."""

    classes: tuple[str, ...]
    records: Sequence[Record]
    name: str = ""
    notes: dict[str, int] = field(default_factory=dict)  #: counts worth telling the user
    understood: Understood = field(default_factory=Understood)  #: how its source was read

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    @property
    def targets(self) -> Labels:
        """The labels of all records: [N, K]."""
        if not self.records:
            return np.zeros((0, len(self.classes)), np.int8)
        return np.stack([record.labels for record in self.records])

    @property
    def positives(self) -> csr_array:
        """The labels as a sparse array, for data sets with many classes: bool [N, K]."""
        rows = [np.flatnonzero(record.labels == 1) for record in self.records]
        columns = np.concatenate([np.zeros(0, np.int64), *rows])
        return sparse_rows(columns, np.cumsum([0, *map(len, rows)]), len(self.classes))

    def partly_known(self) -> NDArray[np.int64]:
        """Return the places of records with unknown labels."""
        return np.flatnonzero([(record.labels < 0).any() for record in self.records])

    @property
    def names(self) -> list[str]:
        """The names of all records."""
        return [record.name for record in self.records]

    def label_sums(self) -> list[int]:
        """Return for each record a number that changes with its labels."""
        rows = (record.labels for record in self.records)
        return [sum_of_labels(np.flatnonzero(row == 1), np.flatnonzero(row == -1)) for row in rows]

    def file_sizes(self) -> list[int]:
        """Return the bytes of each record's image file, where that is known; else 0."""
        return [_file_size(record.image) for record in self.records]

    def count_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of positive and of negative images of each class: each [K]."""
        positives, negatives = np.zeros((2, len(self.classes)), np.int64)
        for record in self.records:
            positives += record.labels == 1
            negatives += record.labels == 0
        return positives, negatives

    def take_unknown_as_negative(self) -> None:
        """Set every unknown label to 0."""
        self.records = [replace(r, labels=np.maximum(r.labels, 0)) for r in self.records]

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the order in which an epoch of training goes through the records."""
        return np.random.default_rng((seed, epoch)).permutation(len(self))

    def will_read(self, order: NDArray[np.int64]) -> None:
        """Announce which records come next, so that a remote source can prefetch them."""

    def subset(self, indices: Iterable[int], name: str) -> Split:
        """Return the records at `indices`, in that order, under another name."""
        records = [self.records[i] for i in indices]
        return Split(self.classes, records, name, understood=self.understood)

    def missing(self) -> list[Record]:
        """Return the records whose image file is missing."""
        return [r for r in self.records if isinstance(r.image, Path) and not r.image.is_file()]


def sum_of_labels(positive: ArrayLike, unknown: ArrayLike) -> int:
    """Return a number that changes with the labels that an image has, or that are unknown."""
    content = [np.sort(np.asarray(labels, np.int64)).tobytes() for labels in (positive, unknown)]
    return zlib.crc32(b"?".join(content))


def _file_size(image: ImageSource) -> int:
    image = original_of(image)
    if isinstance(image, bytes):
        return len(image)
    if not isinstance(image, Path):
        return 0
    try:
        return image.stat().st_size
    except OSError:  # it will be counted when it is read
        return 0


@dataclass
class Splits:
    """The splits of a run: for training, for choosing the epoch, and for the report."""

    train: Split
    val: Split
    test: Split
    #: more photos to learn from, none of whose labels is known
    unlabelled: Split = field(default_factory=lambda: Split((), [], "unlabelled"))
    hierarchy: dict[str, str] = field(default_factory=dict)  #: the parent of each child, by name

    def __iter__(self) -> Iterator[Split]:
        return iter((self.train, self.val, self.test))

    @property
    def parts(self) -> list[Split]:
        """The three, and the photos without labels if there are any."""
        return [*self, *[self.unlabelled] * bool(len(self.unlabelled))]

    @cached_property
    def learnt(self) -> Split:
        """All images that are learnt from, those without labels last."""
        if not len(self.unlabelled):
            return self.train
        records = [*self.train, *self.unlabelled]
        return Split(self.train.classes, records, self.train.name)

    @property
    def understood(self) -> Understood:
        """How the source was read."""
        return self.train.understood

    def check_single_label(self) -> None:
        """Raise `UsageError` unless each image has exactly one label, as a softmax needs."""
        for split in self:
            if len(unknown := split.partly_known()):
                raise UsageError(
                    "loss.name ce needs to know the label of each image; with unknown ones: "
                    f"{len(unknown)} of {counted(len(split), f'{split.name} image')}, e.g. "
                    f"{split[int(unknown[0])].name}: --data.missing negative takes them as absent"
                )
            wrong = np.flatnonzero(split.positives.sum(axis=1) != 1)
            if len(wrong):
                raise UsageError(
                    "loss.name ce needs one label per image; with none or several: "
                    f"{len(wrong)} of {counted(len(split), f'{split.name} image')}, e.g. "
                    f"{split[int(wrong[0])].name}: use asl or bce"
                )


def same_image(record: Record) -> object:
    """Return a key that records share exactly if they are the same image, however it is named."""
    image = original_of(record.image)
    if isinstance(image, Path):
        return image.resolve()
    return image if isinstance(image, bytes) else repr(image)


def original_of(image: ImageSource) -> ImageSource:
    """Return the file that a salvaged image is made of, or any other image itself."""
    return image.original if isinstance(image, Salvaged) else image


def sparse_rows(columns: NDArray[Any], starts: NDArray[Any], num_columns: int) -> csr_array:
    """Return a sparse bool array whose row i is true at ``columns[starts[i]:starts[i + 1]]``."""
    from scipy.sparse import csr_array

    cells = (np.ones(len(columns), bool), columns, starts)
    return csr_array(cells, shape=(len(starts) - 1, num_columns))


def normal(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), without blanks around it.

    Two texts that look the same, such as an é of one or of two characters, are then equal.
    """
    return unicodedata.normalize("NFC", name).strip()


def indices_of(names: Iterable[str], classes: Sequence[str], where: str) -> list[int]:
    """Return the class index of each name; `where` locates an unknown name in the error message."""
    positions = {name: index for index, name in enumerate(classes)}
    found = []
    for name in names:
        if name not in positions:
            raise MltrError(f"{where}: unknown class {name!r}{did_you_mean(name, classes)}")
        found.append(positions[name])
    return found


def read_class_list(path: Path, *, numbered: bool = False) -> tuple[str, ...]:
    """Return the classes listed in a text file, one per line; blank lines are skipped.

    If lines count as the numbers of classes, one between them is refused.
    """
    if not path.is_file():
        raise MltrError(f"{path}: no such list of classes (one name a line)")
    names = tuple(map(normal, read_text(path).rstrip().splitlines()))
    if numbered and "" in names:
        raise MltrError(
            f"{path}, line {names.index('') + 1}: empty, but each line names the class of its "
            "number: write a name there, or delete the line if the numbers don't count it"
        )
    names = tuple(name for name in names if name)
    doubles = sorted({name for name in names if names.count(name) > 1})
    if not names or doubles:
        raise MltrError(f"{path}: " + (f"named twice: {doubles}" if doubles else "no class named"))
    return names
