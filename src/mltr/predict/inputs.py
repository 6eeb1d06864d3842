"""The images that a command names, each once, lazily.

They come from files, folders, patterns, lists, Parquet tables and shards.
"""

from __future__ import annotations

import glob
import os
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mltr.errors import MltrError, UsageError
from mltr.terminal import printable

if TYPE_CHECKING:
    from mltr.data.records import PackedImage

READ_BYTES = 65536  #: of a list on stdin at a time
STDIN = "-"  #: the argument that stands for a list there


def name_of(image: Path | PackedImage) -> str:
    """Return what an image is called in results."""
    return str(image) if isinstance(image, Path) else image.name


class Inputs:
    """The images that arguments name, each once, in order; found as they are asked for.

    None of them may be one of `targets`, which are to be written, nor be packed with others if they
    get `sidecars`. Raises `UsageError` at once for an argument that names nothing, and on the way
    if an image may not be read or there is none at all.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        targets: Iterable[str | Path] = (),
        sidecars: bool = False,
    ) -> None:
        self.arguments = arguments
        self._targets = {_key(target) for target in targets}
        self._sidecars = sidecars
        for argument in arguments:
            if argument != STDIN:
                _check(argument)

    @property
    def is_list_on_stdin(self) -> bool:
        """Whether they can be gone through only once, and not be counted before."""
        return STDIN in self.arguments

    def __iter__(self) -> Iterator[Path | PackedImage]:
        return self.walk()

    def walk(
        self, on_error: Callable[[OSError], object] | None = None
    ) -> Iterator[Path | PackedImage]:
        """Yield the images; folders that can't be read go to `on_error`, or are warned of."""
        from mltr.data.packed import is_packed

        seen = Owners()
        first = self.arguments[0]
        may_repeat = len(self.arguments) > 1 or is_packed(first) or not os.path.isdir(first)  # noqa: PTH112 - as in `exists`
        is_empty = True
        for word, place in ((w, p) for w in self.arguments for p in _expand(w, on_error)):
            for image in self._unpack(place, is_named=place == word):
                is_empty = False
                key = _key(image) if isinstance(image, Path) else image.identity()[0]
                if key in self._targets:
                    raise UsageError(
                        f"{image} is one of the images to read: choose another output name"
                    )
                if may_repeat and seen.claim(key, name_of(image)) is not None:
                    continue
                if self._sidecars and not isinstance(image, Path):
                    raise UsageError(f"a sidecar can't be written beside {image}")
                yield image
        if is_empty:
            from mltr.data.images import IMAGE_SUFFIXES

            looked_for = ", ".join(IMAGE_SUFFIXES)
            raise UsageError(f"no images in {', '.join(self.arguments)}; looked for {looked_for}")

    def _unpack(self, place: str, is_named: bool) -> Iterator[Path | PackedImage]:
        """Yield the images of a table or of shards, or the one that this file is."""
        from mltr.data.packed import is_packed, packed_images
        from mltr.data.shards import is_address

        if not (is_packed(place) and (is_address(place) or exists(place))):
            yield Path(place)  # opening it will tell if it isn't there
        elif _key(place) not in self._targets:
            yield from packed_images(place)
        elif is_named:  # else a pattern has found what an earlier run wrote
            raise UsageError(f"{place} holds the images to read: choose another output name")


def _check(argument: str) -> None:
    """Raise `UsageError` for what can't be there."""
    from mltr.data.images import IMAGE_SUFFIXES
    from mltr.data.packed import PARQUET
    from mltr.data.shards import is_address

    if is_address(argument):
        if argument.lower().endswith((*IMAGE_SUFFIXES, PARQUET)):
            raise UsageError(f"{argument}: only shards can be read from a URL; download it first")
    elif not (exists(argument) or glob.has_magic(argument)):
        try:
            Path(argument).stat()
        except PermissionError as error:
            raise UsageError(f"no permission to read {argument}") from error
        except (OSError, ValueError):
            pass
        raise UsageError(f"no such file or folder: {argument}")


def exists(path: str | Path) -> bool:
    """Whether something is there; also of names that no file can have."""
    return os.path.exists(path)  # noqa: PTH110 - that of Path raises for too long a name


def _key(path: str | Path) -> bytes:
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100 - takes out what `..` leads back


class Owners:
    """Which image came first to a name; on disk as soon as they are many: memory stays bounded."""

    def __init__(self) -> None:
        self._table = sqlite3.connect("")
        self._table.execute("CREATE TABLE owners (name BLOB PRIMARY KEY, image BLOB) WITHOUT ROWID")

    def claim(self, name: bytes | Path, image: str) -> str | None:
        """Note the owner of a name; return the earlier one if there is one."""
        key = name if isinstance(name, bytes) else _key(name)
        values = (key, os.fsencode(image))
        if self._table.execute("INSERT OR IGNORE INTO owners VALUES (?, ?)", values).rowcount:
            return None
        query = "SELECT image FROM owners WHERE name = ?"
        return os.fsdecode(self._table.execute(query, (key,)).fetchone()[0])


def _expand(argument: str, on_error: Callable[[OSError], object] | None) -> Iterator[str]:
    """Yield the names of images, and of what many are packed in."""
    from mltr.data.packed import PARQUET, is_packed
    from mltr.data.shards import is_address

    if argument == STDIN:
        yield from _read_list(cast("BufferedReader", sys.stdin.buffer))
    elif is_address(argument) or (is_packed(argument) and exists(argument)):
        yield argument
    elif os.path.isdir(argument):  # noqa: PTH112 - as in `exists`
        from mltr.data.walk import walk_images

        yield from walk_images(argument, on_error, passed_over=Counter() if on_error else None)
    elif exists(argument):
        yield argument
    else:
        from mltr.data.images import IMAGE_SUFFIXES

        # Path.glob takes no absolute patterns.
        wanted = (PARQUET,) if argument.lower().endswith(PARQUET) else IMAGE_SUFFIXES
        for name in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207
            if name.lower().endswith(wanted):
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
            for image in inputs.walk(on_error=lambda error: None):
                self.count += 1
                self.longest_name = max(self.longest_name, len(printable(name_of(image))))
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
