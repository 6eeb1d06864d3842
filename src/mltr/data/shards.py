"""Shards: a data set as a few large tar files, read in place, over HTTP, or from a store like S3.

The tar files are WebDataset's: for each sample an image and a JSON file. Beside them lies what
random access needs: ``index.json`` with the classes, counts, sizes and checksums, and a Parquet
table for each split with the place of every sample. So the order of an epoch, the shares of
several processes and resuming are those of any other source.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mltr.config.schema import SPLITS, DataConfig
from mltr.data.images import open_image
from mltr.data.records import Box, Labels, Record, Split, Splits, sparse_rows, sum_of_labels
from mltr.data.tables.sheet import open_parquet
from mltr.data.understood import Understood
from mltr.errors import BrokenImage, MltrError
from mltr.files.cache import FAILED, Cache, cache_folder
from mltr.files.download import DAMAGED_ATTEMPTS, download_file
from mltr.files.writing import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_array

FORMAT = "mltr-shards"
VERSION = 1
INDEX_FILE = "index.json"
#: Shards whose samples an epoch mixes at any time: all that a cache has to hold.
WINDOW = 8
OPEN_FILES = 2 * WINDOW  #: that a process keeps open
PAUSES_S = (0.1, 1.0, 5.0)  #: before a file on this machine's disks is read again
INDEX_LIMIT = 1 << 26  #: bytes of an index: about 400,000 shards
FILE_NAME = re.compile(r"[a-z]+(-[0-9]+)?\.(tar|parquet)")  #: as `mltr shard` calls its files
SHA256 = re.compile("[0-9a-f]{64}")
GIVEN_UP_S = 120.0  #: until a file that couldn't be had is tried again


# -- files, here or elsewhere --------------------------------------------------------------------


@dataclass(frozen=True)
class StoredFile:
    """A file of a set, as the index describes it."""

    name: str
    size: int  #: bytes
    sha256: str
    samples: int = 0

    @classmethod
    def of(cls, path: Path, samples: int = 0) -> StoredFile:
        """Describe a file on this machine."""
        return cls(path.name, path.stat().st_size, sha256_of(path), samples)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> StoredFile:
        """Return what an index says of a file; who wrote it may mean harm.

        Raises `TypeError` and `ValueError` for other fields and values.
        """
        file = cls(**fields)
        # A name with a folder in it would reach out of the one that it belongs to.
        if not (FILE_NAME.fullmatch(file.name) and SHA256.fullmatch(file.sha256)):
            raise ValueError(file.name)
        counts = (file.size, file.samples)
        if not all(type(count) is int for count in counts) or not 0 <= file.samples <= file.size:
            raise ValueError(counts)
        return file


class ShardStore:
    """The files of a set: read where they are, or fetched into a cache of limited size.

    Any number of processes may share a cache. Whatever is fetched is checked by its sum.
    """

    def __init__(self, root: str, cache: Path, limit: int) -> None:
        self.root, self.cache = root.rstrip("/"), Cache(cache, limit)
        self.folder = cache / hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self._given_up: dict[str, tuple[float, str]] = {}

    @property
    def is_remote(self) -> bool:
        """Whether files have to be fetched."""
        return is_address(self.root)

    def read_index(self) -> Index:
        """Return the index; raises `MltrError` if it isn't there or isn't one."""
        if not self.is_remote:
            return _parse_index(Path(self.root) / INDEX_FILE)
        # Fetched each time: it says whether what is in the cache still holds.
        path = self.folder / f"{os.getpid()}-{threading.get_native_id()}-{INDEX_FILE}"
        for attempt in range(1, DAMAGED_ATTEMPTS + 1):
            download_file([f"{self.root}/{INDEX_FILE}"], path, limit=INDEX_LIMIT)
            try:
                return _parse_index(path)
            except MltrError as error:
                if attempt == DAMAGED_ATTEMPTS:
                    raise MltrError(f"{self.root}/{INDEX_FILE}: {error}") from error
            finally:
                path.unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def path(self, file: StoredFile) -> Path:
        """Return where a file lies on this machine, fetched if need be; raises `MltrError`."""
        if not self.is_remote:
            return Path(self.root) / file.name
        stem, dot, suffix = file.name.rpartition(".")
        name = f"{self.folder.name}/{stem}-{file.sha256[:12]}{dot}{suffix}"
        try:
            return self.cache.get(name, file.size, lambda path: self._fetch(file, path))
        except OSError as error:
            raise MltrError(
                f"{self.cache.folder}: can't keep shards there ({error.strerror or error}); make "
                "room, or name another folder by data.shard_cache"
            ) from error

    def _fetch(self, file: StoredFile, target: Path) -> None:
        failure = target.with_name(target.name + FAILED)
        if failure.is_file() and time.time() - failure.stat().st_mtime < GIVEN_UP_S:
            raise MltrError(failure.read_text("utf-8"))
        address = f"{self.root}/{file.name}"
        try:
            download_file([address], target, f"sha256:{file.sha256}", limit=file.size)
        except MltrError as error:  # the other processes needn't try in vain, one by one
            failure.write_text(str(error), "utf-8")
            raise
        failure.unlink(missing_ok=True)

    def read(self, file: StoredFile, offset: int, size: int) -> bytes:
        """Return bytes of a file; raises `MltrError` if it can't be had, for some time to come."""
        when, why = self._given_up.get(file.name, (-GIVEN_UP_S, ""))
        if time.monotonic() - when < GIVEN_UP_S:
            raise MltrError(why)
        for pause_s in (*PAUSES_S, 0.0):
            try:
                opened = _open(self, file)  # nobody closes it as long as it has this name
                content = os.pread(opened.number, size, offset)
                if len(content) == size:
                    return content
                why = "it is cut off"
            except OSError as error:  # of the disk; what can't be fetched was tried often enough
                why = error.strerror or str(error)
            _open.cache_clear()
            time.sleep(pause_s)
        self._given_up[file.name] = time.monotonic(), why
        raise MltrError(why)

    def fetch_ahead(self, file: StoredFile) -> None:
        """Begin to fetch a file, in the background; what fails will be told when it is read."""

        def fetch() -> None:
            with contextlib.suppress(MltrError):
                self.path(file)

        threading.Thread(target=fetch, daemon=True).start()


@dataclass(frozen=True)
class _Opened:
    """A file that is closed once no thread reads it any more."""

    number: int

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(OPEN_FILES)
def _open(store: ShardStore, file: StoredFile) -> _Opened:
    return _Opened(os.open(store.path(file), os.O_RDONLY))


# -- images, records, and a split of them --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ShardImage:
    """An image within a shard, read when asked for."""

    store: ShardStore
    file: StoredFile
    offset: int
    size: int
    name: str

    def read_bytes(self) -> bytes:
        """Return the image file as it was packed; raises `BrokenImage`."""
        try:
            return self.store.read(self.file, self.offset, self.size)
        except MltrError as error:
            raise BrokenImage(f"{self}: {error}") from error

    def load(self) -> Image.Image:
        """Return the image in RGB; raises `BrokenImage`."""
        return open_image(self)

    def identity(self) -> tuple[bytes, int, int]:
        """Return what its shard holds and where it lies in that."""
        return repr(self).encode(), self.size, 0

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"

    def __repr__(self) -> str:
        # What the cache of decoded images knows it by.
        return f"{self.file.sha256} {self.offset}"


class ShardRecords(Sequence[Record]):
    """The records of a split, made from its table when asked for: a few bytes for each."""

    def __init__(
        self, store: ShardStore, files: Sequence[StoredFile], table: pa.Table, num_classes: int
    ) -> None:
        self.store, self.files, self.num_classes = store, tuple(files), num_classes
        self.bounds = np.cumsum([0, *(file.samples for file in files)])
        self.table = table.combine_chunks()
        self.offsets = self.table["offset"].to_numpy()
        self.sizes = self.table["size"].to_numpy()
        self.positive, self.unknown = (_Lists(self.table[key]) for key in ("labels", "unknown"))

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        name = self.table["name"][index].as_py()
        image = ShardImage(
            self.store, self.file_of(index), int(self.offsets[index]), int(self.sizes[index]), name
        )
        labels = np.zeros(self.num_classes, np.int8)
        labels[self.positive[index]] = 1
        labels[self.unknown[index]] = -1
        return Record(image, name, labels, _boxes(self.table["boxes"][index].as_py()))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def file_of(self, index: int) -> StoredFile:
        """Return the shard that a record is in."""
        return self.files[int(np.searchsorted(self.bounds, index, "right")) - 1]


class _Lists:
    """A column of lists of numbers."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.starts, self.values = array.offsets.to_numpy(), array.values.to_numpy()

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        chosen: NDArray[np.int32] = self.values[self.starts[index] : self.starts[index + 1]]
        return chosen


def _boxes(rows: list[list[float]] | None) -> tuple[Box, ...] | None:
    if rows is None:
        return None
    return tuple(
        Box(int(index), x, y, width, height, area, bool(crowd), bool(difficult))
        for index, x, y, width, height, area, crowd, difficult in rows
    )


@dataclass(eq=False)
class ShardSplit(Split):
    """A split in shards; an epoch goes through it so that few shards are needed at a time."""

    records: ShardRecords
    _ahead: set[str] = field(default_factory=set)

    @property
    def positives(self) -> csr_array:
        """Which labels each record has: bool [N, K], without a look at the records."""
        lists = self.records.positive
        return sparse_rows(lists.values, lists.starts, len(self.classes))

    def partly_known(self) -> NDArray[np.int64]:
        """Return the places of records with unknown labels, without a look at the records."""
        return np.flatnonzero(np.diff(self.records.unknown.starts))

    @property
    def targets(self) -> Labels:
        """The labels of all records: [N, K]."""
        targets = np.zeros((len(self), len(self.classes)), np.int8)
        for lists, value in ((self.records.positive, 1), (self.records.unknown, -1)):
            targets[np.repeat(np.arange(len(self)), np.diff(lists.starts)), lists.values] = value
        return targets

    def count_labels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many images have each class, and how many are known not to: each [K]."""
        positives, unknown = (
            np.bincount(lists.values, minlength=len(self.classes))
            for lists in (self.records.positive, self.records.unknown)
        )
        return positives, len(self) - positives - unknown

    def take_unknown_as_negative(self) -> None:
        """Let every label that isn't known be 0."""
        lists = self.records.unknown
        lists.starts, lists.values = np.zeros_like(lists.starts), lists.values[:0]

    @property
    def names(self) -> list[str]:
        """The names of all records."""
        names: list[str] = self.records.table["name"].to_pylist()
        return names

    def label_sums(self) -> list[int]:
        """Return for each record a number that changes with its labels."""
        positive, unknown = self.records.positive, self.records.unknown
        return [sum_of_labels(positive[index], unknown[index]) for index in range(len(self))]

    def file_sizes(self) -> list[int]:
        """Return the bytes of each record's image file."""
        sizes: list[int] = self.records.sizes.tolist()
        return sizes

    def missing(self) -> list[Record]:
        """Return nothing: each shard is whole, or an error when it is read."""
        return []

    def epoch_order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return an order that mixes the samples of `WINDOW` shards at any time.

        Shards come in random order, one after the other, and each spreads its samples evenly over
        the time in which the next `WINDOW` come.
        """
        generator = np.random.default_rng((seed, epoch))
        places = generator.permutation(len(self.records.files))
        begins = np.repeat(places, np.diff(self.records.bounds))
        return np.argsort(begins + WINDOW * generator.random(len(self)), kind="stable")

    def will_read(self, order: NDArray[np.int64]) -> None:
        """Begin to fetch the shards of the records that come next."""
        records = self.records
        if not records.store.is_remote:
            return
        near = order[: 2 * max(file.samples for file in records.files)]
        places = np.searchsorted(records.bounds, near, "right") - 1
        needed = {records.files[place].name: records.files[place] for place in np.unique(places)}
        for name in needed.keys() - self._ahead:
            records.store.fetch_ahead(needed[name])
        self._ahead = set(needed)


# -- the index -----------------------------------------------------------------------------------


def is_address(root: str) -> bool:
    """Whether a source lies elsewhere: http://..., s3://... and the like."""
    return "://" in root


def is_shards(folder: Path) -> bool:
    """Whether `mltr shard` has written into a folder."""
    try:
        index = json.loads((folder / INDEX_FILE).read_text("utf-8"))
        return bool(index.get("format") == FORMAT)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def seal(index: dict[str, Any]) -> dict[str, Any]:
    """Return an index with a checksum of itself."""
    content = json.dumps(index, sort_keys=True).encode()
    return index | {"sha256": hashlib.sha256(content).hexdigest()}


@dataclass(frozen=True)
class SplitFiles:
    """What the index says of a split."""

    shards: tuple[StoredFile, ...]
    table: StoredFile
    broken: int  #: images that were left out


@dataclass(frozen=True)
class Index:
    """What `index.json` says."""

    classes: tuple[str, ...]
    splits: Mapping[str, SplitFiles]


def _parse_index(path: Path) -> Index:
    try:
        index = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise MltrError(
            f"{path} can't be read ({error.strerror}): `mltr shard` writes it at the very end"
        ) from error
    except (ValueError, RecursionError) as error:
        raise MltrError(f"{path} is damaged: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise MltrError(f"{path} isn't of shards that `mltr shard` wrote")
    if index.get("version", 0) > VERSION:
        raise MltrError(f"{path} is of a newer mltr; upgrade mltr")
    if seal({key: value for key, value in index.items() if key != "sha256"}) != index:
        raise MltrError(f"{path} is damaged: its checksum is wrong")
    try:
        if not all(isinstance(name, str) for name in index["classes"]):
            raise ValueError("classes")
        entries = {name: index["splits"][name] for name in SPLITS}
        splits = {
            name: SplitFiles(
                tuple(map(StoredFile.parse, entry["shards"])),
                StoredFile.parse(entry["table"]),
                len(entry["broken"]),
            )
            for name, entry in entries.items()
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MltrError(
            f"{path} isn't an index that `mltr shard` wrote: {repr(error)[:200]}"
        ) from error
    return Index(tuple(index["classes"]), splits)


# -- opening a set -------------------------------------------------------------------------------


def read_shards(config: DataConfig) -> Splits:
    """Read the splits that `mltr shard` wrote; the test split may be empty.

    ``data.root`` is a folder, or an http, https, s3, ... address of one. Raises `MltrError` if
    there is no index, or if the cache can't hold as many shards as are read at a time.
    """
    cache = Path(config.shard_cache) if config.shard_cache else cache_folder() / "shards"
    store = ShardStore(config.root, cache, round(config.shard_cache_gb * 1e9))
    index = store.read_index()
    train, val, test = (_read_split(store, index, name) for name in SPLITS)
    return Splits(train, val, test)


def _read_split(store: ShardStore, index: Index, name: str) -> ShardSplit:
    files = index.splits[name]
    largest = max((shard.size for shard in files.shards), default=0)
    least = max(2 * WINDOW * largest, files.table.size)
    if store.is_remote and store.cache.limit < least:
        raise MltrError(
            f"{store.root}: {WINDOW} shards of {largest / 1e9:.3g} GB are read at a time: set "
            f"data.shard_cache_gb to {least / 1e9:.3g} or more"
        )
    table = _read_table(store, files, len(index.classes))
    records = ShardRecords(store, files.shards, table, len(index.classes))
    understood = Understood("shards", (INDEX_FILE,))
    notes = {"broken_dropped": files.broken}
    return ShardSplit(index.classes, records, name, notes, understood)


def table_schema() -> pa.Schema:
    """Return the columns of a split's table: where each sample lies, and what is known of it."""
    import pyarrow as pa

    return pa.schema({
        "name": pa.string(), "offset": pa.int64(), "size": pa.int64(),
        "labels": pa.list_(pa.int32()), "unknown": pa.list_(pa.int32()),
        "boxes": pa.list_(pa.list_(pa.float64())),
    })  # fmt: skip


def _read_table(store: ShardStore, files: SplitFiles, num_classes: int) -> pa.Table:
    path = store.path(files.table)
    samples = sum(shard.samples for shard in files.shards)
    with open_parquet(path) as opened:
        # Looked at before rows are read: a few bytes may claim to be very many of them.
        if opened.metadata.num_rows != samples or samples > files.table.size:
            raise MltrError(f"{path}: its rows are not the {samples:,} samples of the index")
        table = opened.read().cast(table_schema())
    _check_table(path, table, files.shards, num_classes)
    return table


def _check_table(
    path: Path, table: pa.Table, shards: Sequence[StoredFile], num_classes: int
) -> None:
    """Raise `MltrError` where a row is of no place in its shard, or of no class."""
    if any(table[key].null_count for key in table.column_names if key != "boxes"):
        raise MltrError(f"{path}: there are empty cells")
    offsets, sizes = table["offset"].to_numpy(), table["size"].to_numpy()
    ends = np.repeat([shard.size for shard in shards], [shard.samples for shard in shards])
    if len(ends) and ((offsets < 0) | (sizes < 0) | (sizes > ends - offsets)).any():
        raise MltrError(f"{path}: an image would lie outside of its shard")
    for key in ("labels", "unknown"):
        labels = table[key].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            raise MltrError(f"{path}: there are {key} of no class")
