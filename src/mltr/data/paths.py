"""Where the photos of a table are: its paths as people write them, and the files that they mean."""

from __future__ import annotations

import os
import unicodedata
from functools import cache
from pathlib import Path

from mltr.data.images import IMAGE_SUFFIXES
from mltr.data.sheet import Column, Sheet
from mltr.errors import MltrError

SAMPLED = 50  #: values of a column that are tried in each folder


class PhotoFinder:
    """Finds the photos that a table names: with or without suffix, or with back-slashes."""

    def __init__(self, table: Path, images: Path) -> None:
        self.table = table
        beside = table.parent
        self.folders = [beside, beside / "images", beside / table.stem]
        if images != Path():
            self.folders = [images if images.is_absolute() or images.is_dir() else beside / images]
        self.folder = self.folders[0]
        self._listing = cache(_list)

    def choose_folder(self, sheet: Sheet) -> None:
        """Take the folder in which most of a table's texts are photos; the first if none is."""

        def found(folder: Path) -> int:
            self.folder = folder
            texts = [text for column in sheet.columns for text in column.texts[:SAMPLED]]
            return sum(self.is_photo(text) for text in texts if len(text) > 1)

        if len(self.folders) > 1:
            self.folder = max(self.folders, key=found)

    def is_photo(self, text: str) -> bool:
        """Whether there is a photo of that name."""
        return self._find(text) is not None

    def names_of(self, sheet: Sheet, column: Column) -> list[str]:
        """Return the name of the photo in each row; as it stands where there is no such file."""
        if "" in column.texts and (rows := column.codes == column.texts.index("")).any():
            row = int(rows.argmax())
            raise MltrError(f"{sheet.where(row)}: no image path in the column {column.name!r}")
        names = [self._find(text) or text.replace("\\", "/") for text in column.texts]
        return [names[code] for code in column.codes]

    def path_of(self, name: str) -> Path:
        """Return the file of a photo."""
        return self.folder / name

    def _find(self, text: str) -> str | None:
        for name in dict.fromkeys((text, text.replace("\\", "/").removeprefix("./"))):
            has_suffix = name.lower().endswith(IMAGE_SUFFIXES)
            for form in ("NFC", "NFD"):  # as file systems differ
                written = unicodedata.normalize(form, name)
                for suffix in ("",) if has_suffix else IMAGE_SUFFIXES:
                    if self._is_file(written + suffix):
                        return written + suffix
        return None

    def _is_file(self, name: str) -> bool:
        folder, slash, last = name.rpartition("/")
        return last in self._listing(self.folder, f"{folder}{slash}")


def _list(root: Path, folder: str) -> frozenset[str]:
    """Return the names in a folder: asking for each photo takes longer by far."""
    try:
        return frozenset(os.listdir(root / folder))  # noqa: PTH208
    except (OSError, ValueError):  # such as a name with a zero byte
        return frozenset()
