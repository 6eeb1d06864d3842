"""Locks on run folders and outputs, so that no two commands write to the same one at a time.

A lock is a small file that names its holder and is created atomically. The holder renews its
modification time. A stale lock is recognised by its process having ended if it is from this
machine, and by its age if it is from another.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock

from mltr.errors import MltrError, UsageError
from mltr.files.text import is_utf8
from mltr.terminal import printable

LOCK_FILE = ".lock"  #: name in a locked folder, suffix for a locked file
RENEWED_S = 15.0  #: seconds between two renewals of a lock
ABANDONED_S = 120.0  #: age in seconds from which a lock of another machine is stale
WRITTEN_S = 5.0  #: seconds after which a lock without a holder is stale
SAME_START_S = 60.0  #: tolerance for a process's start time, in seconds: clocks get adjusted
SHOWN_LENGTH = 80  #: maximum characters of a command in a message


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    command: str
    process: int  #: process ID
    started: float  #: start time of the process, seconds since 1970, as process IDs are reused
    host: str
    place: str  #: PID namespace: a host, or a container on it
    since: float  #: time the lock was taken, seconds since 1970
    token: str  #: unique to this lock


def locked_out(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder that a command writes to, like `locked_folder`.

    Raises `UsageError` if it is a file or its name isn't UTF-8.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out must be a folder")
    if not is_utf8(folder):  # some libraries that write there need UTF-8
        raise UsageError(f"--out {folder}: the name isn't valid UTF-8; choose another one")
    return locked_folder(folder)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder. Creates it, and removes it again if it stays empty.

    Raises `MltrError` if another command holds it (with its name) or it isn't writable.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MltrError(f"can't make the folder {folder}: {error.strerror}") from error
    try:
        with _held(folder / LOCK_FILE, folder):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Lock the output file of a command; raises `MltrError` like `locked_folder`."""
    with _held(path.with_name(f".{path.name}{LOCK_FILE}"), path):
        yield


@contextmanager
def exclusive(lock: Path, wait: bool = True) -> Iterator[None]:
    """Hold a system lock for a short time; its file is deleted on release.

    Without `wait`, raises `filelock.Timeout` if another process holds the lock.
    """
    with FileLock(lock, blocking=wait):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # before the release, so that waiters notice


@contextmanager
def _held(lock: Path, target: Path) -> Iterator[None]:
    holder = _this_process()
    try:
        while not _make(lock, holder):
            _remove_if_abandoned(lock, target)
    except OSError as error:
        raise MltrError(f"can't write to {lock.parent}: {error.strerror or error}") from error
    done = threading.Event()
    threading.Thread(target=_renew, args=(lock, holder, done), daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if os.getpid() == holder.process and _read(lock) == holder:  # not in a forked child
            with contextlib.suppress(OSError):
                lock.unlink()


def _this_process() -> Holder:
    name, *arguments = sys.argv or [""]
    command = _shown(f"{Path(name).name} {shlex.join(arguments)}")
    return Holder(
        command, os.getpid(), psutil.Process().create_time(), _shown(platform.node()), _place(),
        time.time(), secrets.token_hex(8),
    )  # fmt: skip


def _shown(text: str) -> str:
    """Return text fit for a message: printable and at most `SHOWN_LENGTH` characters."""
    text = printable(text)
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 3]}..."


def _place() -> str:
    try:
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()


def _make(lock: Path, holder: Holder) -> bool:
    """Create a lock file; return False if there is one already."""
    try:
        descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            json.dump(asdict(holder), file)
    except OSError:  # the disk is full
        lock.unlink()
        raise
    return True


def _read(lock: Path) -> Holder | None:
    """Return the holder of a lock, or None if the file is missing or not yet written."""
    try:
        holder = Holder(**json.loads(lock.read_text("utf-8")))
        datetime.fromtimestamp(holder.since)
        return replace(
            holder,
            command=_shown(holder.command),
            process=int(holder.process),
            started=float(holder.started),
            host=_shown(holder.host),
        )
    except (OSError, ValueError, TypeError, OverflowError):
        return None


def _remove_if_abandoned(lock: Path, target: Path) -> None:
    """Remove a stale lock; raises `MltrError` if its holder is still alive."""
    # Check and removal must be exclusive: a faster process may have taken a new lock in between.
    with exclusive(lock.with_name(f"{lock.name}-taken")):
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return
        holder = _read(lock)
        if holder is not None:
            _check_gone(holder, age, target)
        elif age < WRITTEN_S:
            raise MltrError(f"{target} is being written by another command, which has just started")
        lock.unlink(missing_ok=True)


def _check_gone(holder: Holder, age: float, target: Path) -> None:
    """Raise `MltrError` unless the holder has ended, or its lock of `age` seconds is stale."""
    elsewhere = holder.place != _place()
    if (age > ABANDONED_S) if elsewhere else not _runs(holder):
        return
    since = datetime.fromtimestamp(holder.since)
    day = "" if since.date() == datetime.now().date() else f"{since:%Y-%m-%d} "
    advice = "wait until it ends, stop it, or write elsewhere"
    if elsewhere:
        advice += f"; if that machine has stopped, try again in {ABANDONED_S - age:.0f} s"
    raise MltrError(
        f"{target} is being written by `{holder.command}` (process {holder.process} on "
        f"{holder.host}, since {day}{since:%H:%M}): {advice}"
    )


def _runs(holder: Holder) -> bool:
    try:
        process = psutil.Process(holder.process)
        same = abs(process.create_time() - holder.started) < SAME_START_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it runs, as another user
        return True


def _renew(lock: Path, holder: Holder, done: threading.Event) -> None:
    """Renew a lock until `done` is set or the lock has a new holder."""
    while not done.wait(RENEWED_S):
        if _read(lock) != holder:
            return
        with contextlib.suppress(OSError):
            os.utime(lock)
