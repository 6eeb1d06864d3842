"""Salvage of JPEGs that lack their last bytes, as interrupted copies and cards leave them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from mltr.data.images import open_image
from mltr.data.records import Record, Salvaged, Split
from mltr.errors import BrokenImage
from mltr.files.writing import open_regular

START, END = b"\xff\xd8", b"\xff\xd9"  #: of a JPEG
TAIL = 16  #: bytes that cameras may add behind its end


@dataclass(frozen=True)
class TruncatedJpeg(Salvaged):
    """A JPEG that gets the end that it lacks: the decoder fills in what is missing, in grey."""

    def read_bytes(self) -> bytes:
        """Return the file with an end; raises `BrokenImage`."""
        try:
            with open_regular(self.original, "an image") as file:
                return file.read() + END
        except OSError as error:
            raise BrokenImage(f"{self.original}: {error.strerror or error}") from error

    def load(self) -> Image.Image:
        """Return the image in RGB; raises `BrokenImage`."""
        return open_image(self)

    def __str__(self) -> str:
        return str(self.original)


def salvage(splits: Iterable[Split]) -> None:
    """Replace the JPEGs that lack their end by `TruncatedJpeg`, and count them in the notes."""
    with ThreadPoolExecutor() as pool:
        for split in splits:
            split.records = list(pool.map(_salvaged, split.records))
            count = sum(isinstance(record.image, TruncatedJpeg) for record in split.records)
            if count:
                split.notes["truncated_photos_salvaged"] = count


def _salvaged(record: Record) -> Record:
    if not isinstance(record.image, Path) or not _lacks_end(record.image):
        return record
    try:
        open_image(record.image)
    except BrokenImage:
        salvaged = TruncatedJpeg(record.image)
        try:
            salvaged.load()
        except BrokenImage:
            return record  # it is broken in other ways: whoever reads it will tell
        return replace(record, image=salvaged)
    return record


def _lacks_end(path: Path) -> bool:
    """Whether a file starts like a JPEG and has no end of one in its last bytes."""
    try:
        with open_regular(path) as file:
            if file.read(2) != START:
                return False
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            return END not in file.read()
    except OSError:
        return False
