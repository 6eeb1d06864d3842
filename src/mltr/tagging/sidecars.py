"""Labels in a small file beside each photo: text for training, XMP for photo managers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mltr.errors import MltrError, UsageError
from mltr.files import text_writer, write_atomically
from mltr.tagging.results import Row, printable

NAMINGS = ("photo.jpg.xmp", "photo.xmp")  #: digiKam, darktable and most; Lightroom and Adobe's


class Sidecars(Protocol):
    """One kind of file beside a photo. The photo itself is never touched."""

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        ...

    def is_done(self, image: Path) -> bool:
        """Whether there is nothing to write."""
        ...

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Write the labels; return why a file that was there is kept, or an empty text."""
        ...


@dataclass(frozen=True)
class TextSidecars:
    """`photo.txt` with the labels, separated by commas; one that is there stays."""

    overwrite: bool = False

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        return image.with_suffix(".txt")

    def is_done(self, image: Path) -> bool:
        """Whether there is one; an empty file is what a power cut leaves."""
        return not self.overwrite and _size(self.path_for(image)) > 0

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Write the labels in a line; return "other labels" for a file that stays."""
        path, text = self.path_for(image), f"{', '.join(labels)}\n"
        if not self.is_done(image):
            write_atomically(path, text_writer(text), flush=False)
        elif path.read_bytes() != text.encode("utf-8", "replace"):
            return "other labels"
        return ""


@dataclass(frozen=True)
class XmpSidecars:
    """XMP with the labels as keywords beside those that are there; see `mltr.tagging.xmp`."""

    naming: str = NAMINGS[0]
    overwrite: bool = False

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        if self.naming == NAMINGS[0]:
            return image.with_name(f"{image.name}.xmp")
        return image.with_suffix(".xmp")

    def is_done(self, image: Path) -> bool:
        """Whether our labels are in it."""
        from mltr.tagging.xmp import has_labels

        return not self.overwrite and has_labels(_content(self.path_for(image)))

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Add the labels to the keywords; return what is wrong with a file that stays."""
        from mltr.tagging.xmp import set_labels

        path = self.path_for(image)
        before = _content(path)
        try:
            after = set_labels(before, labels)
        except MltrError as error:
            return str(error)
        if after != before:
            # What others have put there must outlive a power cut.
            write_atomically(path, lambda file: file.write_bytes(after), flush=bool(before))
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def check_classes(classes: Sequence[str]) -> None:
    """Raise `UsageError` for a class that no text sidecar can hold."""
    from mltr.data.folders import split_tags

    for name in classes:
        if split_tags(name) != [name]:
            raise UsageError(
                f"class {name!r} can't stand in a sidecar, where tags are separated by commas; "
                "leave it out by --exclude"
            )


@dataclass
class Kept:
    """Sidecars that were there and stay as they are."""

    count: int = 0
    first: str = ""


def with_sidecars(rows: Iterable[Row], kinds: Sequence[Sidecars], kept: Kept) -> Iterator[Row]:
    """Write the labels of each image that could be read beside it, as its row passes by."""
    for row in rows:
        if not row.error:  # no labels would say that nothing is in the image
            image = row.image
            assert isinstance(image, Path)  # `Inputs` lets no others through
            for kind in kinds:
                reason = kind.write(image, [name for name, _ in row.labels])
                if reason:
                    kept.count += 1
                    kept.first = kept.first or f"{printable(str(kind.path_for(image)))}: {reason}"
        yield row
