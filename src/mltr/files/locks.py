"""Locks on run folders and outputs, so that no two commands write the same one at a time.

A lock is a small file with who holds it, made in one step or not at all. Its holder renews the time
of it. So one that was left behind is known: on this machine by its process, which has ended, and on
another one by that time.
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock

from mltr.errors import MltrError, UsageError
from mltr.terminal import printable

LOCK_FILE = ".lock"  #: within a folder that is written
RENEWED_S = 15.0  #: between two renewals of a lock
ABANDONED_S = 120.0  #: without renewal, until a lock of another machine no longer counts
WRITTEN_S = 5.0  #: in which whoever makes a lock has written who that is
SAME_START_S = 60.0  #: by which a clock that is set moves the beginning of a process
SHOWN_LENGTH = 80  #: characters of a command that a message shows


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    command: str
    process: int
    started: float  #: when that process began, s since 1970; numbers of processes come again
    host: str
    place: str  #: within which numbers of processes are unique: a host, or a container of it
    since: float  #: s since 1970
    token: str  #: of this lock alone


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder that a command writes; it is made if need be, and goes if it stays empty.

    Raises `MltrError` that names the holder, or says why the folder can't be written, and
    `UsageError` for a file, or a name that isn't UTF-8.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --out must be a folder")
    if not _is_text(folder):  # which libraries that write there can't name
        raise UsageError(f"--out {folder}: the name isn't valid UTF-8; choose another one")
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
            with contextlib.suppress(OSError):  # there is something in it, as there should be
                folder.rmdir()


@contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Hold a file that a command writes; raises `MltrError` like `locked_folder`."""
    with _held(path.with_name(f".{path.name}{LOCK_FILE}"), path):
        yield


@contextmanager
def exclusive(lock: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock of the system for a moment, by a file that goes with it.

    Raises `filelock.Timeout` where somebody else holds it and `wait` is false.
    """
    with FileLock(lock, blocking=wait):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone


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
        if os.getpid() == holder.process and _read(lock) == holder:  # not a process forked since
            with contextlib.suppress(OSError):
                lock.unlink()


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _this_process() -> Holder:
    name, *arguments = sys.argv or [""]
    command = _shown(f"{Path(name).name} {shlex.join(arguments)}")
    return Holder(
        command, os.getpid(), psutil.Process().create_time(), _shown(platform.node()), _place(),
        time.time(), secrets.token_hex(8),
    )  # fmt: skip


def _shown(text: str) -> str:
    """Return text for a message: one line, not too long, nothing that a terminal obeys."""
    text = printable(text)
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 3]}..."


def _place() -> str:
    try:
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()


def _make(lock: Path, holder: Holder) -> bool:
    """Make a lock; false where there is one."""
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
    """Return who holds a lock; nobody where it isn't there, or isn't written yet."""
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
    """Remove a lock that its holder has left behind; raises `MltrError` if it still counts."""
    # One at a time looks and removes: whoever was faster may have made a new lock by now.
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
    """Raise `MltrError` unless a holder has ended, or gave no sign for so many seconds."""
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
    except psutil.AccessDenied:  # another user's, so it runs
        return True


def _renew(lock: Path, holder: Holder, done: threading.Event) -> None:
    """Say from time to time that the holder is still there."""
    while not done.wait(RENEWED_S):
        if _read(lock) != holder:
            return
        with contextlib.suppress(OSError):
            os.utime(lock)
