"""What a long prediction has done, beside its output: the same command again goes on from there.

One SQLite file holds the probabilities of each image that was predicted, by its path and by its
content. Output is always made from the images of the present run, in their order; the journal only
saves the network's work, so it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mltr.errors import BrokenImage, MltrError, UsageError

if TYPE_CHECKING:
    from mltr.data.records import PackedImage

Floats = NDArray[np.float32]

SUFFIX = ".journal"
COMMIT_S = 1.0  #: what a power cut may cost
FORMAT_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB, probs BLOB
);
CREATE INDEX IF NOT EXISTS by_digest ON images (digest);
CREATE TABLE IF NOT EXISTS model (fingerprint TEXT);
"""


class Stamp(NamedTuple):
    """What tells whether the file of an image has changed."""

    path: bytes  #: absolute
    size: int
    mtime_ns: int
    digest: bytes  #: SHA-256 of the image's own content


def stamp_of(image: Path | PackedImage) -> Stamp | None:
    """Return what tells a later change of an image; None if it is no file that can be read."""
    try:
        identity = _identity(image)
        if identity is None:
            return None
        if isinstance(image, Path):
            with image.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        else:
            digest = hashlib.sha256(image.read_bytes())
    except (OSError, ValueError, BrokenImage):
        return None  # opening the image will tell
    return Stamp(*identity, digest.digest())


def _identity(image: Path | PackedImage) -> tuple[bytes, int, int] | None:
    """Return the stamp less the digest; None for a device or a pipe."""
    if not isinstance(image, Path):
        return image.identity()
    about = image.stat()
    if not stat.S_ISREG(about.st_mode):
        return None
    return os.fsencode(image.absolute()), about.st_size, about.st_mtime_ns


class Journal:
    """The probabilities of earlier runs of the same network, and of this one.

    A file of the same size and time of change at the same path is taken as unchanged, and else one
    of the same content wherever it lay. Another `fingerprint`, or `anew`, forgets everything.
    Raises `MltrError` if the file can't be used, `UsageError` if another process is using it.
    """

    def __init__(self, path: Path, fingerprint: str, anew: bool = False) -> None:
        self.path = path
        self.is_of_other_model = False
        with self._telling():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=1, check_same_thread=False)
            self._open(fingerprint, anew)
        self._last_commit = time.monotonic()

    def _open(self, fingerprint: str, anew: bool) -> None:
        query = self._connection.execute
        query("PRAGMA locking_mode = EXCLUSIVE")
        query("PRAGMA journal_mode = WAL")
        query("PRAGMA synchronous = FULL")
        version = query("PRAGMA user_version").fetchone()[0]
        if version not in (0, FORMAT_VERSION):
            raise UsageError(f"{self.path} is of another version of mltr: delete it to start anew")
        self._connection.executescript(SCHEMA)
        query(f"PRAGMA user_version = {FORMAT_VERSION}")
        models = [row[0] for row in query("SELECT fingerprint FROM model")]
        self.is_of_other_model = bool(models) and models != [fingerprint]
        if anew or models != [fingerprint]:
            query("DELETE FROM images")
            query("DELETE FROM model")
            query("INSERT INTO model VALUES (?)", (fingerprint,))
        self._connection.commit()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise UsageError(f"another mltr predict is writing {self.path}") from error
            is_damaged = any(word in str(error) for word in ("malformed", "not a database"))
            hint = ": delete it to start anew" if is_damaged else ""
            raise MltrError(f"{self.path}: {error}{hint}") from error

    def count(self) -> int:
        """Return how many images are known."""
        with self._telling():
            count: int = self._connection.execute("SELECT COUNT(*) FROM images").fetchone()[0]
        return count

    def find_unchanged(self, image: Path | PackedImage) -> Floats | None:
        """Return the probabilities of an image that has not changed; any thread may call this."""
        try:
            identity = _identity(image)
        except (OSError, ValueError):  # such as a NUL in the name
            return None  # opening the image will tell
        if identity is None:
            return None
        with self._telling():
            query = "SELECT probs FROM images WHERE path = ? AND size = ? AND mtime_ns = ?"
            known = self._connection.execute(query, identity).fetchone()
        return np.frombuffer(known[0], np.float32) if known else None

    def find(self, image: Path | PackedImage) -> tuple[Stamp | None, Floats | None]:
        """Return the probabilities of an image, if known, and what `add` needs to note it.

        No stamp: there is nothing to note, as it is known or no file. Any thread may call this.
        """
        probs = self.find_unchanged(image)
        stamp = stamp_of(image) if probs is None else None
        if stamp is None:
            return None, probs
        with self._telling():
            query = "SELECT probs FROM images WHERE digest = ?"
            same = self._connection.execute(query, (stamp.digest,)).fetchone()
        return stamp, np.frombuffer(same[0], np.float32) if same else None

    def add(self, stamp: Stamp, probs: Floats) -> None:
        """Note an image; about every second, what was noted is safe on the disk."""
        with self._telling():
            self._connection.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", (*stamp, probs.tobytes())
            )
            if time.monotonic() - self._last_commit > COMMIT_S:
                self._connection.commit()
                self._last_commit = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._telling():
            self._connection.commit()
            self._connection.close()
