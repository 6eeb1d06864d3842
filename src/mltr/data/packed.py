"""Images packed into files that hold many: Parquet tables, and the shards of `mltr shard`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mltr.config import DataConfig
from mltr.data.images import IMAGE_SUFFIXES, open_image
from mltr.data.records import PackedImage
from mltr.data.shards import is_address, is_shards, read_shards
from mltr.errors import BrokenImage, MltrError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = ".parquet"
PATH_COLUMN = "path"
GROUPS_HELD = 2  #: row groups in memory at a time: rows are asked for in order

_reading = threading.Lock()  #: threads that ask for rows of one group wait for whoever reads it


@dataclass(frozen=True, eq=False)
class ParquetImage:
    """The file of an image in a row of a Parquet table."""

    table: Path
    column: str
    group: int
    row: int  #: within the group
    name: str

    def read_bytes(self) -> bytes:
        """Return the image file; raises `BrokenImage`."""
        import pyarrow as pa

        try:
            with _reading:
                content = _read_group(self.table, self.identity()[1:], self.group, self.column)
            content = content[self.row].as_py()
        except (OSError, IndexError, pa.ArrowException) as error:
            raise BrokenImage(f"{self}: {self.table} can't be read ({error})") from error
        if not content:
            raise BrokenImage(f"{self}: no image in this row of {self.table}")
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


@lru_cache(GROUPS_HELD)
def _read_group(table: Path, version: tuple[int, int], group: int, column: str) -> Any:
    """Return a column of a row group; `version` tells a table from the one that it replaced."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        content = file.read_row_group(group, columns=[column]).column(0).combine_chunks()
    return content.field("bytes") if "." in column else content


def is_packed(argument: str) -> bool:
    """Whether a name stands for many images in one place: shards, or a Parquet table."""
    name = argument.lower()
    if name.endswith(IMAGE_SUFFIXES):  # as nearly all do: no need to look
        return False
    return name.endswith(PARQUET) or is_address(name) or is_shards(Path(argument))


def packed_images(argument: str) -> Iterator[Path | PackedImage]:
    """Yield what is packed there, in order; raises `MltrError` if it can't be read.

    A table holds files of images in a column of bytes (or of ``{bytes, path}``, as Hugging Face
    writes them), or their paths in a column `path`, which names them otherwise. Of shards, all
    splits are taken.
    """
    if argument.lower().endswith(PARQUET) and not is_address(argument):
        yield from _table_images(Path(argument))
        return
    for split in read_shards(DataConfig(format="shards", root=argument)):
        for record in split.records:
            assert isinstance(record.image, PackedImage)
            yield record.image


def _table_images(table: Path) -> Iterator[Path | PackedImage]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            paths, images = _columns(table, file.schema_arrow)
            number = 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                names = [None] * size
                if paths:
                    column = file.read_row_group(group, columns=[paths]).column(0).combine_chunks()
                    names = (column.field("path") if "." in paths else column).to_pylist()
                for row, name in enumerate(names):
                    if images:
                        own = name or f"{table}:{number + row}"
                        yield ParquetImage(table, images, group, row, own)
                    elif name:
                        yield Path(name)
                number += size
    except (OSError, pa.ArrowException) as error:
        raise MltrError(f"{table}: not a whole Parquet file ({error})") from error


def _columns(table: Path, schema: pa.Schema) -> tuple[str, str]:
    """Return the columns of paths and of images; either may be empty, not both."""
    import pyarrow as pa

    paths = PATH_COLUMN if PATH_COLUMN in schema.names else ""
    for field in schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return paths, field.name
        if pa.types.is_struct(field.type):
            parts = [part.name for part in field.type]
            if "bytes" in parts:
                own = f"{field.name}.path" if "path" in parts else ""
                return paths or own, f"{field.name}.bytes"
    if not paths:
        raise MltrError(
            f"{table}: no column of bytes, and none called {PATH_COLUMN}; it has "
            f"{', '.join(schema.names)}"
        )
    return paths, ""
