"""Images packed into files that hold many: Parquet tables, and the shards of `mltr shard`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mltr.config.schema import DataConfig
from mltr.data.images import IMAGE_SUFFIXES, open_image
from mltr.data.records import PackedImage
from mltr.data.shards import is_address, is_shards, read_shards
from mltr.data.tables.sheet import LARGEST_LABEL, open_parquet
from mltr.errors import BrokenImage, MltrError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    from mltr.data.tables.sheet import Column as TableColumn
    from mltr.data.tables.sheet import Sheet

PARQUET = ".parquet"
PATH_COLUMN = "path"
#: First bytes of JPEG, PNG, WebP, GIF and TIFF; those of BMP are also those of a label, BMW.
SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
GROUPS_HELD = 3  #: row groups in memory at a time: rows are asked for nearly in order

Column = tuple[str, ...]  #: a name, or that of a struct and of its part; empty: there is none

_reading = threading.Lock()  #: threads that ask for rows of one group wait for whoever reads it


@dataclass(frozen=True, eq=False)
class ParquetImage:
    """The file of an image in a row of a Parquet table."""

    table: Path
    column: Column  #: empty if the table should have a path here, and has none
    group: int
    row: int  #: within the group
    name: str

    def read_bytes(self) -> bytes:
        """Return the image file; raises `BrokenImage`."""
        import pyarrow as pa

        if not self.column:
            raise BrokenImage(f"{self}: no path in this row")
        try:
            with _reading:
                group = _read_group(self.table, self.identity()[1:], self.group, self.column)
                content = group[self.row].as_py()
        except (OSError, IndexError, pa.ArrowException) as error:
            raise BrokenImage(f"{self}: {self.table} can't be read ({error})") from error
        if not content:
            raise BrokenImage(f"{self}: no bytes of an image in this row of {self.table}")
        return bytes(content)

    def load(self) -> Image.Image:
        """Return the image in RGB; raises `BrokenImage`."""
        return open_image(self)

    def identity(self) -> tuple[bytes, int, int]:
        """Return where it lies, and size and time of change of that file."""
        about = self.table.stat()
        place = f"{self.table.absolute()}\0{self.group}:{self.row}"
        return place.encode("utf-8", "surrogateescape"), about.st_size, about.st_mtime_ns

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        # What the cache of decoded images knows it by: another one once the table is.
        return repr(self.identity())


@lru_cache(GROUPS_HELD)
def _read_group(table: Path, version: tuple[int, int], group: int, column: Column) -> Any:
    """Return a column of a row group; `version` tells a table from the one that it replaced."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        return _cells(file, group, column)


def _cells(file: ParquetFile, group: int, column: Column) -> pa.ChunkedArray:
    """Return a column of a row group, in chunks: one array can count only so many bytes."""
    return file.read_row_group(group, columns=[".".join(column)]).flatten().column(0)


def is_packed(name: str) -> bool:
    """Whether a name stands for many images in one place: shards, or a Parquet table."""
    lower = name.lower()
    if lower.endswith(IMAGE_SUFFIXES):  # as nearly all do: no need to look
        return False
    return lower.endswith(PARQUET) or is_address(lower) or is_shards(Path(name))


def packed_images(name: str) -> Iterator[Path | PackedImage]:
    """Yield what is packed there, in order; raises `MltrError` if it can't be read.

    A table, or a folder of its parts, holds files of images in a column of bytes (or of ``{bytes,
    path}``, as Hugging Face writes them), or their paths in a column `path`, which names them
    otherwise. Of shards, all splits are taken.
    """
    if name.lower().endswith(PARQUET):
        is_folder = Path(name).is_dir()
        for table in sorted(Path(name).glob(f"*{PARQUET}")) if is_folder else [Path(name)]:
            yield from _table_images(table)
        return
    for split in read_shards(DataConfig(format="shards", root=name)):
        for record in split.records:
            assert isinstance(record.image, PackedImage)
            yield record.image


class PackedPhotos:
    """The photos in a Parquet table of labels, by names that this gives them."""

    def __init__(self, table: Path) -> None:
        self.folder = table
        with open_parquet(table) as file:
            self.column = _photo_column(file)
            self._images: dict[str, ParquetImage] = {}
            for group in range(file.num_row_groups if self.column else 0):
                for row in range(file.metadata.row_group(group).num_rows):
                    name = f"{table.name}:{len(self._images)}"
                    self._images[name] = ParquetImage(table, self.column, group, row, name)

    @property
    def names(self) -> list[str]:
        """The names of the photos, in the order of the rows."""
        return list(self._images)

    def is_photo(self, text: str) -> bool:
        """Whether there is a photo of that name."""
        return text in self._images

    is_there = is_photo

    def names_of(self, sheet: Sheet, column: TableColumn) -> list[str]:
        """Return the name of the photo in each row."""
        return self.names

    def path_of(self, name: str) -> ParquetImage:
        """Return a photo."""
        return self._images[name]


def _photo_column(file: ParquetFile) -> Column:
    """Return the column with the files of images; an empty one if there is none."""
    import pyarrow.types as kinds

    for column, kind in _leaves(file.schema_arrow):
        is_bytes = kinds.is_binary(kind) or kinds.is_large_binary(kind)
        if is_bytes and column[1:] in ((), ("bytes",)) and _holds_images(file, column):
            return column
    return ()


def _holds_images(file: ParquetFile, column: Column) -> bool:
    """Whether the first value of a column is an image, or as large as no label is."""
    for group in range(file.num_row_groups):
        for cell in _cells(file, group, column):
            if cell.is_valid:
                content = cell.as_py()
                return len(content) > LARGEST_LABEL or content.startswith(SIGNATURES)
    return False


def _table_images(table: Path) -> Iterator[Path | PackedImage]:
    with open_parquet(table) as file:
        paths, images = _columns(table, file.schema_arrow)
        first = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            names = [None] * size
            if paths:
                names = _cells(file, group, paths).to_pylist()
            for row, name in enumerate(names):
                if name and not images:
                    yield Path(name)
                else:
                    yield ParquetImage(table, images, group, row, name or f"{table}:{first + row}")
            first += size


def _columns(table: Path, schema: pa.Schema) -> tuple[Column, Column]:
    """Return the columns of paths and of images; either may be empty, not both."""
    import pyarrow.types as kinds

    texts: list[Column] = []
    contents: list[Column] = []
    for column, kind in _leaves(schema):
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        if column[-1] == PATH_COLUMN:
            if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind):
                texts.append(column)
        elif kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind):
            contents.append(column)
    structs = [column for column in contents if column[1:] == ("bytes",)]
    found = structs or [column for column in contents if len(column) == 1]
    if len(found) > 1:
        names = " or ".join(column[0] for column in found)
        raise MltrError(f"{table}: which column has the images, {names}? Leave one")
    images = found[0] if found else ()
    beside: list[Column] = [(PATH_COLUMN,), (*images[:1], PATH_COLUMN)]
    paths = next((column for column in beside if column in texts), ())
    if not (paths or images):
        raise MltrError(
            f"{table}: no column of bytes, and none of text called {PATH_COLUMN}; it has "
            f"{', '.join(schema.names)}"
        )
    return paths, images


def _leaves(schema: pa.Schema) -> Iterator[tuple[Column, pa.DataType]]:
    """Yield the columns of a table, and the parts of each struct, with their types."""
    import pyarrow as pa

    for field in schema:
        if pa.types.is_struct(field.type):
            for part in field.type:
                yield (field.name, part.name), part.type
        else:
            yield (field.name,), field.type
