"""Where the photos of a table are: its paths as people write them, and the files that they mean."""

from __future__ import annotations

import os
import unicodedata
from functools import cache
from pathlib import Path

from mltr.data.images import IMAGE_SUFFIXES
from mltr.data.tables.sheet import Column, Sheet
from mltr.errors import MltrError, counted

SAMPLED = 50  #: values of a column that are tried in each folder
DEEPEST = 12  #: folders that the paths of another machine may begin with


class PhotoFinder:
    """Finds the photos that a table names: without suffix, with back-slashes, in other capitals."""

    def __init__(self, table: Path, images: Path, root: Path) -> None:
        beside = table.parent
        self.folders = [beside, beside / "images", beside / table.stem]
        if root != Path() and root.is_dir():  # the table may lie elsewhere
            self.folders.append(root)
        if images != Path():
            self.folders = [images]
        self.folder = self.folders[0]
        self.skipped = 0  #: folders that paths begin with, and that aren't here
        self._listing = cache(_list)
        self._folded = cache(self._fold)

    def choose_folder(self, sheet: Sheet) -> None:
        """Take the folder in which most of a table's texts are photos; the first if none is.

        If none is, the paths may be those of another machine, or begin further up: then folders are
        left out from their start, the same number from all of them.
        """
        texts = [text for column in sheet.columns for text in column.texts[:SAMPLED]]
        texts = [text for text in texts if len(text) > 1]
        has_folders = any("/" in text or "\\" in text for text in texts)
        for skipped in range(DEEPEST if has_folders else 1):
            found = {}
            for folder in self.folders:
                self.folder, self.skipped = folder, skipped
                found[folder] = sum(map(self.is_photo, texts))
            self.folder = max(found, key=found.__getitem__)
            if found[self.folder]:
                return
        self.folder, self.skipped = self.folders[0], 0

    @property
    def details(self) -> tuple[str, ...]:
        """What is done to the paths, in words."""
        words = f"paths without their first {counted(self.skipped, 'folder')}"
        return (words,) if self.skipped else ()

    def is_photo(self, text: str) -> bool:
        """Whether there is a photo of that name."""
        return self._find(text) is not None

    def names_of(self, sheet: Sheet, column: Column) -> list[str]:
        """Return the name of the photo in each row; as it stands where there is no such file."""
        if "" in column.texts and (rows := column.codes == column.texts.index("")).any():
            row = int(rows.argmax())
            raise MltrError(f"{sheet.where(row)}: no image path in the column {column.name!r}")
        names = [self._find(text) or text.replace("\\", "/") for text in column.texts]
        if self.skipped and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise MltrError(
                f"{sheet.path}: several paths would mean {self.folder / twice}; correct the column "
                f"{column.name!r}, or set data.images to the folder where they begin"
            )
        return [names[code] for code in column.codes]

    def is_there(self, name: str) -> bool:
        """Whether there is a file of a name that `names_of` has returned."""
        return self._is_file(name)

    def path_of(self, name: str) -> Path:
        """Return the file of a photo."""
        return self.folder / name

    def _find(self, text: str) -> str | None:
        plain = _tidy(text.replace("\\", "/"))
        text = _tidy(text)
        if self.skipped:
            text = plain = "/".join(plain.split("/")[self.skipped :])
        names = [
            unicodedata.normalize(form, name) + suffix
            for name in dict.fromkeys((text, plain))
            for form in ("NFC", "NFD")  # as file systems differ
            for suffix in (("",) if name.lower().endswith(IMAGE_SUFFIXES) else IMAGE_SUFFIXES)
        ]
        exact = (name for name in names if self._is_file(name))
        return next(exact, None) or next(filter(None, map(self._in_other_capitals, names)), None)

    def _in_other_capitals(self, name: str) -> str | None:
        """Return the only photo of a name but for capitals, as Windows and macOS find it."""
        folder, slash, last = name.rpartition("/")
        found = self._folded(self.folder, f"{folder}{slash}").get(_key(last), [])
        return f"{folder}{slash}{found[0]}" if len(found) == 1 else None

    def _fold(self, top: Path, folder: str) -> dict[str, list[str]]:
        """Return the names in a folder by what is the same but for capitals."""
        names: dict[str, list[str]] = {}
        for name in self._listing(top, folder):
            names.setdefault(_key(name), []).append(name)
        return names

    def _is_file(self, name: str) -> bool:
        folder, slash, last = name.rpartition("/")
        return last in self._listing(self.folder, f"{folder}{slash}")


def _tidy(path: str) -> str:
    """Return the same path in one way: ``./a//b.jpg`` is ``a/b.jpg``."""
    start = "/" if path.startswith("/") else ""
    return start + "/".join(part for part in path.split("/") if part not in ("", "."))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _list(root: Path, folder: str) -> frozenset[str]:
    """Return the names in a folder: asking for each photo takes longer by far."""
    try:
        return frozenset(os.listdir(root / folder))  # noqa: PTH208
    except (OSError, ValueError):  # such as a name with a zero byte
        return frozenset()
