"""Atomic writes: a file appears complete or not at all, and a failed write changes nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mltr.errors import MltrError

Writer = Callable[[Path], object]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LONGEST_SUFFIX = 32  #: maximum characters of a temporary file's suffix


def write_atomically(
    path: str | Path, writer: Writer, flush: bool = True, follow_links: bool = False
) -> None:
    """Write a file through a temporary file beside it, renamed into place once it is on disk.

    `writer` gets the path of the temporary file, which has the suffix of `path`. If anything
    fails, a previous file at `path` is unchanged. A new file takes over its mode and, where
    permitted, its owner. Without `flush` writing takes a hundredth of the time, but a power cut
    may leave the new file empty. Raises `MltrError` if the file can't be written, or as
    `check_target` does.
    """
    write_together({Path(path): writer}, flush, follow_links)


def write_together(
    writers: Mapping[Path, Writer], flush: bool = True, follow_links: bool = False
) -> None:
    """Write several files like `write_atomically`; all are on disk before the first is replaced.

    Files are replaced in the given order. Raises `MltrError` that names the file that failed.
    """
    targets = {check_target(path, follow_links): writer for path, writer in writers.items()}
    staged: dict[Path, Path] = {}
    current = next(iter(targets))
    try:
        for current, writer in targets.items():
            current.parent.mkdir(parents=True, exist_ok=True)
            staged[current], mode = _create_beside(current)
            writer(staged[current])
            _take_over(current, staged[current], mode)
            if flush:
                _flush_to_disk(staged[current])
        for current, temporary in staged.items():
            temporary.replace(current)
            if flush:
                _flush_to_disk(current.parent)
    except OSError as error:
        raise MltrError(_explain_write_error(current, error)) from error
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):  # don't hide the first error
                temporary.unlink()


def check_target(path: str | Path, follow_links: bool = False) -> Path:
    """Return the path to write a file called `path` to.

    With `follow_links` that is the target of a symbolic link. Otherwise a link is refused, as it
    could lead anywhere. Raises `MltrError` for a refused link, and if something other than a
    regular file is in place, such as a folder, a device or a pipe.
    """
    target = Path(os.path.realpath(path)) if follow_links else Path(path)
    try:
        kind = target.lstat().st_mode
    except FileNotFoundError:
        return target
    except OSError as error:
        raise MltrError(_explain_write_error(target, error)) from error
    if stat.S_ISLNK(kind):
        leads = "in a loop" if follow_links else f"to {target.readlink()}"
        raise MltrError(
            f"can't write {target}: it is a link that leads {leads}; remove it, or write elsewhere"
        )
    if not stat.S_ISREG(kind):
        raise MltrError(f"can't write {target}: {describe_kind(kind)} is in its place")
    return target


def make_folder(folder: Path) -> None:
    """Create a folder and its parents if missing; raises `MltrError` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MltrError(f"can't make the folder {folder}: {error.strerror or error}") from error


def describe_kind(mode: int) -> str:
    """Return the kind of a file in words, by its mode (`st_mode`)."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "a file of unknown kind")


def open_regular(path: str | Path, noun: str = "a file") -> BinaryIO:
    """Open a regular file for reading, without blocking on a pipe or a device.

    Raises `OSError`; for a pipe, a device or a folder its text says that it is not `noun`.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{describe_kind(kind)}, not {noun}", str(path))
    return os.fdopen(descriptor, "rb")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_target(path: str | Path, limit: int, follow_links: bool = False) -> bytes:
    """Return the content of a file that is about to be replaced, or b"" if there is none.

    Raises `MltrError` as `check_target` does, if the file has more than `limit` bytes, and if it
    can't be read.
    """
    try:
        with open_regular(check_target(path, follow_links)) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise MltrError(f"can't read {path}: {error.strerror or error}") from error
    if len(content) > limit:
        raise MltrError(f"{path} has more than {limit:,} bytes")
    return content


def _create_beside(target: Path) -> tuple[Path, int]:
    """Create an empty file with an unpredictable name beside `target`; return it and its mode.

    The mode follows the umask, as for any new file. Some writers would make the file private.
    """
    name = f".tmp-{secrets.token_hex(8)}{target.suffix[:LONGEST_SUFFIX]}"
    temporary = target.with_name(name)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return temporary, stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)


def _take_over(previous: Path, temporary: Path, mode: int) -> None:
    """Give a new file the mode and owner of the file it replaces, or `mode` if there is none."""
    try:
        about = previous.stat()
    except OSError:
        temporary.chmod(mode)
        return
    own = temporary.stat()
    if hasattr(os, "chown") and (own.st_uid, own.st_gid) != (about.st_uid, about.st_gid):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.chown(temporary, about.st_uid, about.st_gid)
    temporary.chmod(about.st_mode & 0o777)


def _flush_to_disk(path: Path) -> None:
    """Wait until the content of a file or folder is on disk (fsync)."""
    if path.is_dir() and os.name == "nt":  # Windows can't open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain_write_error(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    kept = " (the previous one is untouched)" if path.is_file() else ""
    advice = ""
    if error.errno in DISK_FULL:
        advice = "; free some space or write to another disk"
    return f"can't write {path}{kept}: {reason}{advice}"


def write_json(path: str | Path, content: object) -> None:
    """Write strict JSON atomically; nan and infinities become null."""
    write_atomically(path, text_writer(to_json(content)))


def text_writer(text: str) -> Writer:
    r"""Return a writer of a UTF-8 text file for `write_atomically`.

    Surrogates, as in file names that aren't UTF-8, are escaped as in JSON: ``\udcff``.
    """
    return lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def to_json(content: object, indent: int | None = 2, ascii_only: bool = False) -> str:
    """Return strict JSON text; nan and infinities become null."""
    finite = _finite_or_null(content)
    return json.dumps(finite, indent=indent, ensure_ascii=ascii_only, allow_nan=False) + "\n"


def _finite_or_null(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite_or_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_null(entry) for entry in value]
    return value


def write_figures(target: str, figures: dict[str, Any]) -> None:
    """Write figures as JSON to a file, or to standard output for ``-``."""
    if target == "-":
        print(to_json(figures, ascii_only=True), end="")  # ASCII suits any console encoding
    else:
        write_json(target, figures)
