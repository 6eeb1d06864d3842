"""The finished part of a long prediction, beside its output: repeating the command resumes from it.

One SQLite file holds the probabilities of each image that was predicted, by its path and by its
content. Output always contains the images of the current run, in their order; the journal only
saves the network's work, so it can be deleted at any time. Each entry has a checksum: the image of
a damaged entry is predicted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mltr.data.images import check_image
from mltr.errors import BrokenImage, MltrError, UsageError
from mltr.files.writing import check_target, make_folder

if TYPE_CHECKING:
    from mltr.data.records import PackedImage

Floats = NDArray[np.float32]

SUFFIX = ".journal"
COMMIT_S = 1.0  #: what a power cut may cost
FORMAT_VERSION = 2
MOST_COPIES = 8  #: of an image are looked at, in case that some of their entries are damaged
COMPANIONS = ("-wal", "-journal", "-shm")  #: files that SQLite keeps beside its own
SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest BLOB, probs BLOB, checksum BLOB
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
    """Return what tells a later change of an image; None if it is no file that can be read.

    What isn't an image by its first bytes isn't read any further, large as it may be.
    """
    try:
        identity = _identity(image)
        if identity is None:
            return None
        if isinstance(image, Path):
            check_image(image)
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
        self.damaged = 0  #: entries that were met and not believed
        self._key = hashlib.blake2b(fingerprint.encode()).digest()
        with self._telling():
            _create(path)
            self._connection = sqlite3.connect(path, timeout=1, check_same_thread=False)
            self._connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            try:
                self._open(fingerprint, anew)
            except BaseException:
                self._connection.close()
                raise
        self._last_commit = time.monotonic()

    def _open(self, fingerprint: str, anew: bool) -> None:
        query = self._connection.execute
        query("PRAGMA locking_mode = EXCLUSIVE")
        version = query("PRAGMA user_version").fetchone()[0]
        if version not in (0, FORMAT_VERSION):
            raise UsageError(
                f"{self.path} is from another version of mltr: delete it to start from the "
                "beginning"
            )
        if version == 0 and query("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            raise UsageError(
                f"{self.path} is a database of another program: choose another output name"
            )
        query("PRAGMA journal_mode = WAL")
        query("PRAGMA synchronous = FULL")
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
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if "locked" in str(error):
                raise UsageError(f"another mltr predict is writing {self.path}") from error
            hint = ": delete it to start from the beginning" if _is_damage(error) else ""
            raise MltrError(f"{self.path}: {error}{hint}") from error

    @contextlib.contextmanager
    def _bearing(self) -> Iterator[None]:
        """Like `_telling`, but count damage of the file, and go on without what stood there."""
        try:
            with self._telling():
                yield
        except MltrError as error:
            if not _is_damage(error.__cause__):
                raise
            self.damaged += 1

    def count(self) -> int:
        """Return how many images are known."""
        count: int = 0
        with self._bearing():
            (count,) = self._connection.execute("SELECT COUNT(*) FROM images").fetchone()
        return count

    def find_unchanged(self, image: Path | PackedImage) -> Floats | None:
        """Return the probabilities of an image that has not changed; any thread may call this."""
        try:
            identity = _identity(image)
        except (OSError, ValueError):  # such as a NUL in the name
            return None  # opening the image will tell
        if identity is None:
            return None
        return self._look_up("path = ? AND size = ? AND mtime_ns = ?", identity, slice(3))

    def find(self, image: Path | PackedImage) -> tuple[Stamp | None, Floats | None]:
        """Return the probabilities of an image, if known, and what `add` needs to note it.

        No stamp: there is nothing to note, as it is known or no file. Any thread may call this.
        """
        probs = self.find_unchanged(image)
        stamp = stamp_of(image) if probs is None else None
        if stamp is None:
            return None, probs
        return stamp, self._look_up("digest = ?", (stamp.digest,), slice(3, 4))

    def _look_up(
        self, condition: str, values: tuple[bytes | int, ...], fields: slice
    ) -> Floats | None:
        """Return the probabilities of the first entry that fits and is as it was written.

        `fields` are those of a stamp that the condition names: through a damaged index SQLite
        finds sound entries of other images.
        """
        query = f"SELECT * FROM images WHERE {condition} LIMIT {MOST_COPIES}"
        with self._bearing():
            for *stamp, probs, checksum in self._connection.execute(query, values).fetchall():
                fits = tuple(stamp[fields]) == values
                if fits and checksum == self._checksum(stamp, probs):
                    return np.frombuffer(probs, np.float32)
                self.damaged += 1
        return None

    def _checksum(self, stamp: Iterable[object], probs: object) -> bytes:
        """Return what tells an entry of this network from a damaged one."""
        content = repr((*stamp, probs)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(content, digest_size=8, key=self._key).digest()

    def add(self, stamp: Stamp, probs: Floats) -> None:
        """Note an image; about every second, what was noted is safe on the disk."""
        content = probs.tobytes()
        with self._bearing():
            self._connection.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)",
                (*stamp, content, self._checksum(stamp, content)),
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
        with self._bearing():
            self._connection.commit()
        with self._bearing():
            self._connection.close()


def _create(path: Path) -> None:
    """See to it that there is a file at `path` that can be written, or raise `MltrError`."""
    for suffix in COMPANIONS:
        check_target(f"{path}{suffix}")
    check_target(path)
    make_folder(path.parent)
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise MltrError(f"can't write {path}: {error.strerror or error}") from error


def _is_damage(error: BaseException | None) -> bool:
    words = ("malformed", "not a database", "unsupported file format")
    is_known = isinstance(error, sqlite3.Error) and any(word in str(error) for word in words)
    return is_known or isinstance(error, UnicodeDecodeError)  # of a damaged name, in a message
