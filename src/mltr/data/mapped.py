"""Rows of an array, one an image, made once and kept in a memory-mapped file of a cache."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltr.errors import BrokenImage, MltrError
from mltr.files.cache import Cache, part_of

Rows = NDArray[Any]
Fill = Callable[[Rows], dict[int, str]]  #: makes the rows, and says what is wrong with which image


class MappedRows:
    """A file of a cache with a row for each image of a split.

    Behind the rows the file lists what is wrong with which image, as JSON; `is_broken` tells
    whether that is still so. `what` and `instead` say in errors what is kept, and what else can be
    done. Raises `MltrError` where the cache can't hold it.
    """

    def __init__(
        self, cache: Cache, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Fill,
        *, is_broken: Callable[[int], bool], what: str, instead: str,
    ) -> None:  # fmt: skip
        self.shape, self.dtype, self._is_new = shape, dtype, False
        size = math.prod(shape) * dtype.itemsize
        if size > cache.limit:
            raise MltrError(
                f"{size / 1e9:.3g} GB of {what} exceed data.cache_gb "
                f"{cache.limit / 1e9:g}: raise it, or {instead}"
            )
        try:
            self.path = cache.get(name, size + 1, lambda path: self._make(path, fill))
            seen = self.path.stat().st_ino
            errors = self._read_errors(size)
            if errors is None or not (self._is_new or all(map(is_broken, errors))):
                # Cut off, as by a power cut; or an image that couldn't be read can be now.
                try:
                    if self.path.exists() and self.path.stat().st_ino == seen:
                        self.path.unlink(missing_ok=True)  # no one has mended it
                    self.path = cache.get(name, size + 1, lambda path: self._make(path, fill))
                    errors = self._read_errors(size)
                except PermissionError:  # of a cache that others keep; most of it serves
                    if errors is None:
                        raise
        except (OSError, MltrError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MltrError(
                f"{cache.folder}: can't keep {size / 1e6:,.0f} MB of {what} there "
                f"({reason}); make room, or {instead}"
            ) from error
        self.errors: dict[int, str] = errors or {}
        self._rows: Rows | None = None

    def _read_errors(self, size: int) -> dict[int, str] | None:
        """Return what is wrong with which image, or nothing where the file is damaged."""
        with self.path.open("rb") as file:
            file.seek(size)
            try:
                return {int(index): text for index, text in json.loads(file.read()).items()}
            except ValueError:
                return None

    def open(self) -> Rows:
        """Return all rows; they can be read even after the file has made room for another."""
        if self._rows is None:  # opened in each worker, not sent to it
            self._rows = np.memmap(self.path, self.dtype, "r", shape=self.shape)
        return self._rows

    def __getitem__(self, index: int) -> Rows | None:
        """Return a row, or nothing once the file has made room for another.

        Raises `BrokenImage`.
        """
        if index in self.errors:
            raise BrokenImage(self.errors[index])
        try:
            return np.asarray(self.open()[index])
        except FileNotFoundError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}

    def _make(self, path: Path, fill: Fill) -> None:
        part = part_of(path)
        try:
            _reserve(part, math.prod(self.shape) * self.dtype.itemsize)
            rows = np.memmap(part, self.dtype, "r+", shape=self.shape)
            errors = fill(rows)
            rows.flush()
            with part.open("ab") as file:
                file.write(json.dumps(errors).encode())
            part.replace(path)
            self._is_new = True
        finally:
            part.unlink(missing_ok=True)


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes; raises OSError where the disk has no room for them.

    A mapped file without its room reserved would end the process with a bus error instead.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
