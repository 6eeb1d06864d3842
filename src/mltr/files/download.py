"""Downloads: bundles from the Hugging Face Hub, and large files with resume and retries.

A bundle on the Hub has the same files as one on disk and is read the same way. None of its
content is executed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mltr import __version__
from mltr.errors import MltrError, UsageError

log = logging.getLogger(__name__)

HUB_PREFIX = "hf-hub:"  #: prefix of the name of a bundle on the Hub
ATTEMPTS = 6  #: consecutive attempts without a new byte before giving up
DAMAGED_ATTEMPTS = 3  #: complete downloads with a wrong checksum before giving up
FIRST_PAUSE_S = 1.0  #: backoff before the second attempt, in seconds; doubled each time
TIMEOUT_S = 30.0  #: socket timeout in seconds
BLOCK = 1 << 20  #: bytes per read
# Transient HTTP errors besides 5xx: request timeout, too early, too many requests.
PASSING_STATUS = (408, 425, 429)
# Permanent errors of this machine: full disk, quota, read-only file system, file too large.
OWN_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_commits: dict[str, str] = {}  #: commit of each name, so that a process sees a single version


def fetch(name: str, files: list[str]) -> Path:
    """Return a local folder with the named files of ``hf-hub:OWNER/NAME`` or ``...@REVISION``.

    Files are cached; without a network the cached copies are used. Raises `UsageError` for a
    malformed name, and `MltrError` if a file doesn't exist or the Hub can't be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    revision = _commits.get(name, revision)
    try:
        for file in files:
            path = Path(hf_hub_download(repo_id, file, revision=revision or None))
            revision = path.parent.name  # take the other files from the same commit
    except HFValidationError as error:
        raise UsageError(f"{name}: expected {HUB_PREFIX}OWNER/NAME ({error})") from error
    except hub_errors() as error:
        reason = f"it has no {file}" if lacks_file(error) else reason_of(error)
        raise MltrError(f"{name} can't be fetched: {reason}") from error
    _commits[name] = revision
    return path.parent


def lacks_file(error: BaseException | None) -> bool:
    """Whether the Hub has answered that a repository doesn't have a file."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    is_local = isinstance(error, LocalEntryNotFoundError)  # no copy, and no answer
    return isinstance(error, EntryNotFoundError) and not is_local


def hub_errors() -> tuple[type[Exception], ...]:
    """Return what the Hub's client raises, and the library by which it speaks HTTP.

    That is another one in other versions of the client, whose own error derives from its.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    return (*HfHubHTTPError.__bases__, EntryNotFoundError, OSError)


def reason_of(error: Exception) -> str:
    """Return one line on why a file can't be fetched from the Hub, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "access is restricted: request it on its page, then log in with hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one: check the name, or log in with hf auth login"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "it isn't in the cache, and HF_HUB_OFFLINE is set: unset it, or fetch it first"
        return (
            f"it isn't in the cache, and {constants.ENDPOINT} can't be reached: check the network"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision: check what is behind the @"
    if isinstance(error, OSError) and error.errno in OWN_ERRORS:
        home = constants.HF_HOME
        return f"{home}: {os.strerror(error.errno)}; make room, or set HF_HOME to another folder"
    if not isinstance(error, OSError | errors.HfHubHTTPError):  # the Hub has not answered
        return f"{first_line(error)}; check the network, and try again"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that isn't blank, or its type."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# -- large files -------------------------------------------------------------------------------


class _Damaged(Exception):
    """A complete download has the wrong checksum."""


class _TooLarge(Exception):
    """The server sends more than the limit."""


def download_file(
    addresses: Sequence[str],
    target: Path,
    digest: str = "",
    on_bytes: Callable[[int], object] = lambda count: None,
    limit: int = sys.maxsize,
) -> None:
    """Download a file to `target`, resuming an earlier attempt or process.

    `addresses` are mirrors of the same file, tried in turn: http, https, or any protocol of fsspec
    such as ``s3://BUCKET/KEY``. `digest` is ``sha256:HEX`` or ``md5:HEX``; a file that doesn't
    match it is downloaded again. `limit` is the maximum size in bytes. A partial download stays in
    ``target.part``. `on_bytes` gets the number of bytes received since its last call, negative if
    bytes were discarded. Raises `MltrError` after `ATTEMPTS` attempts without a new byte, and at
    once for permanent errors: no such file, no permission, a full disk, more than `limit` bytes.
    """
    part = target.with_name(target.name + ".part")
    failures = damaged = 0
    while True:
        address = addresses[(failures + damaged) % len(addresses)]
        before = _size(part)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _receive(address, part, on_bytes, limit)
            _check(part, digest, on_bytes)
            part.replace(target)
            return
        except _Damaged as error:
            damaged += 1
            reason, given_up = str(error), damaged == DAMAGED_ATTEMPTS
        except _TooLarge:
            on_bytes(-_size(part))
            part.unlink(missing_ok=True)
            reason, given_up = f"it is larger than the limit of {limit:,} bytes", True
        except (OSError, http.client.HTTPException) as error:
            failures = 0 if _size(part) > before else failures + 1
            reason = _reason(error)
            given_up = failures == ATTEMPTS or _is_final(error)
        if given_up:
            kept = f"; the partial download is kept in {part}" if _size(part) else ""
            raise MltrError(f"{address} can't be fetched: {reason}{kept}")
        log.info("%s: %s; trying again", address, reason)
        time.sleep(FIRST_PAUSE_S * 2 ** max(failures - 1, damaged - 1, 0))


def _receive(address: str, part: Path, on_bytes: Callable[[int], object], limit: int) -> None:
    """Append the missing bytes to `part`; restart it if the server ignores range requests."""
    if not address.startswith(("http://", "https://")):
        _receive_by_fsspec(address, part, on_bytes, limit)
        return
    have = _size(part)
    headers = {"User-Agent": f"mltr/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if have and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # no more bytes; the digest tells whether the file is complete
        raise
    with response, part.open("ab") as file:
        begin = (response.headers.get("Content-Range") or "").removeprefix("bytes ")
        if have and not (response.status == 206 and begin.startswith(f"{have}-")):
            file.truncate(0)
            on_bytes(-have)
            have = 0
        missing = response.length
        if have + (missing or 0) > limit:
            raise _TooLarge
        received = _copy(response, file, on_bytes, limit - have)
    if missing and received < missing:
        left = missing - received
        raise ConnectionError(f"the connection broke {left:,} bytes before the end")


def _receive_by_fsspec(
    address: str, part: Path, on_bytes: Callable[[int], object], limit: int
) -> None:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # unknown protocol, or its package is missing
        raise MltrError(f"{address}: {first_line(error)}") from error
    on_bytes(-_size(part))
    try:
        with system.open(path, "rb") as source, part.open("wb") as file:
            _copy(source, file, on_bytes, limit)
    except (OSError, _TooLarge):
        raise
    except Exception as error:  # each file system raises its own errors
        raise ConnectionError(first_line(error)) from error


def _copy(source: Any, file: Any, on_bytes: Callable[[int], object], limit: int) -> int:
    """Copy what `source` has left, at most `limit` bytes; return how many there were."""
    copied = 0
    while block := source.read(BLOCK):
        copied += len(block)
        if copied > limit:
            raise _TooLarge
        file.write(block)
        on_bytes(len(block))
    return copied


def _check(part: Path, digest: str, on_bytes: Callable[[int], object]) -> None:
    """Delete the file and raise `_Damaged` unless it has the digest."""
    if not digest:
        return
    kind, _, expected = digest.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        on_bytes(-_size(part))
        part.unlink()
        raise _Damaged(f"damaged: its {kind} is {found}, not {expected}")


def _is_final(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in OWN_ERRORS


def _reason(error: Any) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason
    if isinstance(error, OSError) and error.errno in OWN_ERRORS:
        return os.strerror(error.errno)
    return first_line(error) if isinstance(error, Exception) else str(error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
