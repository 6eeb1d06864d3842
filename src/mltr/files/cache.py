"""`mltr cache`: list or clear the caches of images and shards.

A cache is a folder with a record of the files that it created; it deletes no others. The least
recently used files are evicted first. Any number of processes can share a cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from filelock import Timeout

from mltr.errors import UsageError
from mltr.files.locks import exclusive
from mltr.files.writing import write_json

RECORD = "made.json"  #: file in a cache's folder: names of its files and their sizes in bytes
PART = ".part"  #: suffix of an incomplete file
FAILED = ".failed"  #: suffix of a note on why a file couldn't be made


def cache_folder() -> Path:
    """Return the user's folder of caches, shared by all runs: ``~/.cache/mltr`` by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mltr"


def part_of(path: Path) -> Path:
    """Return the temporary path of a cached file while it is being made."""
    return path.with_name(path.name + PART)


@dataclass(frozen=True)
class Kept:
    """A cached file."""

    path: Path
    size: int  #: bytes on disk
    used: float  #: time of last use, seconds since 1970


@dataclass(frozen=True)
class Cache:
    """Files in a folder, up to a limit in bytes; files still being made may exceed it."""

    folder: Path
    limit: int = sys.maxsize

    def get(self, name: str, size: int, make: Callable[[Path], object]) -> Path:
        """Return the file `name` of at least `size` bytes, calling `make` if it is missing.

        `make` gets the final path; it writes to `part_of` that path and renames at the end. If
        several processes ask for the file, one makes it and the others wait. Raises `OSError` if
        the folder isn't writable, and whatever `make` raises.
        """
        path = self.folder / name
        if _is_here(path, size):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not _is_here(path, size):
                self._make_room(name, size)
                try:
                    make(path)
                except BaseException:
                    self._forget(name)
                    raise
        return path

    def kept(self) -> list[Kept]:
        """Return the recorded files, least recently used first."""
        found = [_look(self.folder / name) for name in self._read()]
        return sorted((kept for kept in found if kept.size), key=lambda kept: kept.used)

    def clear(self) -> int:
        """Delete all recorded files but those being made; return the number of bytes freed."""
        if not (self.folder / RECORD).is_file():
            return 0
        freed = 0
        with self._record() as record:
            for name in list(record):
                freed += self._delete(record, name)
        return freed

    def _make_room(self, name: str, size: int) -> None:
        """Record a file that is about to be made, and evict others until it fits the limit."""
        with self._record() as record:
            record[name] = size
            others = {other: _look(self.folder / other) for other in record if other != name}
            # A file that is still being made counts with its final size.
            used = size + sum(max(kept.size, record[other]) for other, kept in others.items())
            for other, _ in sorted(others.items(), key=lambda item: item[1].used):
                if used <= self.limit:
                    break
                counted = max(others[other].size, record[other])
                self._delete(record, other)
                used -= counted if other not in record else 0

    def _forget(self, name: str) -> None:
        """Remove a file from the record if nothing of it is on disk."""
        with self._record() as record:
            if not any(path.exists() for path in _traces(self.folder / name)):
                record.pop(name, None)

    def _delete(self, record: dict[str, int], name: str) -> int:
        """Delete a file unless a process is making it; return the number of bytes freed."""
        path, freed = self.folder / name, 0
        try:
            with _locked(path, wait=False):
                freed = _look(path).size
                for gone in _traces(path):
                    gone.unlink(missing_ok=True)  # processes that have it open can read on
        except Timeout:
            return 0
        except FileNotFoundError:  # its folder is missing too
            pass
        del record[name]
        if path.parent != self.folder:
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()
        return freed

    @contextmanager
    def _record(self) -> Iterator[dict[str, int]]:
        """Yield the record under a lock, and write it afterwards if it has changed."""
        with _locked(self.folder / RECORD):
            record = self._read()
            before = dict(record)
            yield record
            if not record:
                (self.folder / RECORD).unlink(missing_ok=True)
            elif record != before:
                write_json(self.folder / RECORD, record)

    def _read(self) -> dict[str, int]:
        try:
            record = json.loads((self.folder / RECORD).read_text("utf-8"))
            return {
                name: int(size)
                for name, size in record.items()
                if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
            }
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def _traces(path: Path) -> tuple[Path, ...]:
    """Return every path that a cached file may leave: itself, its part, its failure note."""
    return path, part_of(path), path.with_name(path.name + FAILED)


def _is_here(path: Path, size: int) -> bool:
    try:
        if path.stat().st_size < size:
            return False
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a read-only cache
        os.utime(path)
    return True


def _look(path: Path) -> Kept:
    """Return the size and time of last use of a file or its part; size 0 if there is neither."""
    for candidate in (path, part_of(path)):
        with contextlib.suppress(OSError):
            about = candidate.stat()
            return Kept(path, about.st_size, about.st_mtime)
    return Kept(path, 0, time.time())


def _locked(path: Path, wait: bool = True) -> AbstractContextManager[None]:
    """Lock a cached file. Without `wait`, raises `Timeout` if another process holds the lock."""
    return exclusive(path.with_name(f".{path.name}.lock"), wait)


# -- the command -------------------------------------------------------------------------------

KINDS = {
    "photos": "resized photos, features of frozen backbones, answers of teachers (data.cache_gb)",
    "shards": "remote shards (data.shard_cache_gb)",
}  #: subfolders of `cache_folder`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--clear", action="store_true", help="delete the cached files")
    parser.add_argument(
        "--folder", metavar="DIR", help="a cache in another folder (the value of data.shard_cache)"
    )


def run(args: argparse.Namespace) -> int:
    """List the cached files, or delete them."""
    folders = {cache_folder() / kind: words for kind, words in KINDS.items()}
    if args.folder:
        folders = {Path(args.folder): "remote shards"}
        if not (Path(args.folder) / RECORD).is_file():
            raise UsageError(f"{args.folder} is not a cache: it has no {RECORD}")
    total = 0
    for folder, words in folders.items():
        cache = Cache(folder)
        kept = cache.kept()
        if args.clear:
            total += cache.clear()
            continue
        print(f"{folder}: {words}")
        for file in kept:
            used = datetime.fromtimestamp(file.used)
            name = file.path.relative_to(folder)
            print(f"  {file.size / 1e6:>10,.1f} MB  last used {used:%Y-%m-%d %H:%M}  {name}")
        total += sum(file.size for file in kept)
    if args.clear:
        print(f"deleted {total / 1e6:,.1f} MB")
    else:
        print(f"{total / 1e6:,.1f} MB in total" + ("; delete it with --clear" if total else ""))
    return 0
