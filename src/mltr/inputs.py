"""The images that a command names: files, folders, patterns and lists, each image once, lazily."""

from __future__ import annotations

import glob
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import cast

from mltr.errors import MltrError, UsageError

READ_BYTES = 65536  #: of a list on stdin at a time
STDIN = "-"  #: the argument that stands for a list there


class Inputs:
    """The images that arguments name, each once, in order; found as they are asked for.

    None of them may be one of `targets`, which are to be written, and no two may have the same
    name for a sidecar under a rule of `sidecars`. Raises `UsageError` at once for an argument that
    names nothing, and on the way if an image may not be read or there is none at all.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        targets: Iterable[str | Path] = (),
        sidecars: Sequence[Callable[[Path], Path]] = (),
    ) -> None:
        self.arguments = arguments
        self._targets = {_key(target) for target in targets}
        self._sidecars = sidecars
        for argument in arguments:
            if argument != STDIN and not Path(argument).exists() and not glob.has_magic(argument):
                raise UsageError(f"no such file or folder: {argument}")

    @property
    def is_list_on_stdin(self) -> bool:
        """Whether they can be gone through only once, and not be counted before."""
        return STDIN in self.arguments

    def __iter__(self) -> Iterator[Path]:
        return self.walk()

    def walk(self, on_error: Callable[[OSError], object] | None = None) -> Iterator[Path]:
        """Yield the images; folders that can't be read go to `on_error`, or are warned of."""
        # On disk as soon as they are many: memory stays bounded.
        owners = sqlite3.connect("")
        owners.execute("CREATE TABLE owners (name BLOB PRIMARY KEY, image BLOB) WITHOUT ROWID")
        may_repeat = len(self.arguments) > 1 or self.is_list_on_stdin
        is_empty = True
        for name in (name for word in self.arguments for name in _expand(word, on_error)):
            key = _key(name)
            if key in self._targets:
                raise UsageError(f"{name} is one of the images to read: write to another name")
            is_empty = False
            if may_repeat and _claim(owners, key, name) is not None:
                continue
            path = Path(name)
            for sidecar in self._sidecars:
                if other := _claim(owners, _key(sidecar(path)), name):
                    raise UsageError(f"{other} and {name} would share a sidecar; rename one")
            yield path
        if is_empty:
            from mltr.data.images import IMAGE_SUFFIXES

            looked_for = ", ".join(IMAGE_SUFFIXES)
            raise UsageError(f"no images in {', '.join(self.arguments)}; looked for {looked_for}")


def _key(path: str | Path) -> bytes:
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100 - takes out what `..` leads back


def _claim(owners: sqlite3.Connection, key: bytes, image: str) -> str | None:
    """Note the owner of a name; return the earlier one if there is one."""
    values = (key, os.fsencode(image))
    if owners.execute("INSERT OR IGNORE INTO owners VALUES (?, ?)", values).rowcount:
        return None
    found = owners.execute("SELECT image FROM owners WHERE name = ?", (key,)).fetchone()
    return os.fsdecode(found[0])


def _expand(argument: str, on_error: Callable[[OSError], object] | None) -> Iterator[str]:
    if argument == STDIN:
        yield from _read_list(cast("BufferedReader", sys.stdin.buffer))
    elif Path(argument).is_dir():
        from mltr.data.walk import walk_images

        yield from walk_images(argument, on_error)
    elif Path(argument).exists():
        yield argument
    else:
        from mltr.data.images import IMAGE_SUFFIXES

        # Path.glob takes no absolute patterns.
        for name in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207
            if name.lower().endswith(IMAGE_SUFFIXES):
                yield name


def _read_list(file: BufferedReader) -> Iterator[str]:
    """Yield names as they come: separated by NUL if there is one near the start, else by lines."""
    rest, separator = b"", None
    while content := file.read1(READ_BYTES):
        rest += content
        separator = separator or (b"\0" if b"\0" in rest else b"\n")
        *names, rest = rest.split(separator)
        yield from (os.fsdecode(name.rstrip(b"\r")) for name in names if name.strip())
    if rest.strip():
        yield os.fsdecode(rest.rstrip(b"\r"))


class Survey:
    """Goes through inputs in the background: how many there are, and what is wrong with them."""

    def __init__(self, inputs: Inputs) -> None:
        self.count = 0  #: so far
        self.longest_name = 0
        self.is_complete = False
        self._error: MltrError | None = None
        self._thread = threading.Thread(target=self._count, args=(inputs,), daemon=True)
        if not inputs.is_list_on_stdin:
            self._thread.start()

    def _count(self, inputs: Inputs) -> None:
        try:
            for path in inputs.walk(on_error=lambda error: None):
                self.count += 1
                self.longest_name = max(self.longest_name, len(str(path)))
            self.is_complete = True
        except MltrError as error:
            self._error = error

    @property
    def total(self) -> int | None:
        """How many images there are, once that is known."""
        return self.count if self.is_complete else None

    def check(self, timeout_s: float) -> None:
        """Wait for the end, if it is near, and raise the `MltrError` that was met."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
