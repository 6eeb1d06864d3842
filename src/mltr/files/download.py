"""Files from elsewhere: bundles on the Hugging Face Hub, and large files that arrive in the end.

A bundle of the Hub is the same files as on disk, and read like any bundle: nothing in it is run.
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

HUB_PREFIX = "hf-hub:"  #: of the name of a bundle on the Hub
ATTEMPTS = 6  #: in a row without a new byte, until a file is given up
DAMAGED_ATTEMPTS = 3  #: whole files with a wrong checksum, until it is given up
FIRST_PAUSE_S = 1.0  #: before the second attempt; then doubled each time
TIMEOUT_S = 30.0  #: without a byte
BLOCK = 1 << 20  #: bytes read at a time
# Answers that waiting may change: timeout, too early, too many requests; and those of 500 and on.
PASSING_STATUS = (408, 425, 429)
# What no repetition mends: a full disk, a quota, a folder that may not be written.
OWN_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_commits: dict[str, str] = {}  #: of each name, so that a process asks but once and sees one version


def fetch(name: str, files: list[str]) -> Path:
    """Return a local folder with the named files of ``hf-hub:OWNER/NAME`` or ``...@REVISION``.

    Each is downloaded once; without a network, what was downloaded before is used. Raises
    `MltrError` if it isn't there or can't be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    revision = _commits.get(name, revision)
    try:
        for file in files:
            path = Path(hf_hub_download(repo_id, file, revision=revision or None))
            revision = path.parent.name  # the other files of this very commit, come what may
    except HFValidationError as error:
        raise UsageError(f"{name}: expected {HUB_PREFIX}OWNER/NAME ({error})") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MltrError(f"{name} can't be fetched: {reason_of(error)}") from error
    _commits[name] = revision
    return path.parent


def reason_of(error: Exception) -> str:
    """Say in one line why something can't be had from the Hub, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "access to it is restricted: ask for it on its page, then log in by hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one: check the name, or log in by hf auth login"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if constants.HF_HUB_OFFLINE:
            return "it isn't in the cache, and HF_HUB_OFFLINE is set: unset it, or fetch it before"
        return (
            f"it isn't in the cache, and {constants.ENDPOINT} can't be reached: check the network"
        )
    if isinstance(error, OSError) and error.errno in OWN_ERRORS:
        home = constants.HF_HOME
        return f"{home}: {os.strerror(error.errno)}; make room, or set HF_HOME to another folder"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return an error's text in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# -- large files -------------------------------------------------------------------------------


class _Damaged(Exception):
    """A whole file came that isn't the right one."""


class _TooLarge(Exception):
    """More is sent than the file may have."""


def download_file(
    addresses: Sequence[str],
    target: Path,
    digest: str = "",
    on_bytes: Callable[[int], object] = lambda count: None,
    limit: int = sys.maxsize,
) -> None:
    """Fetch a file into `target`, going on where an earlier attempt, or process, stopped.

    `addresses` are those of one and the same file, tried in turn: http, https, or any that fsspec
    knows, such as ``s3://BUCKET/KEY``. `digest` is ``sha256:HEX`` or ``md5:HEX``; a file with
    another one is fetched anew. No more than `limit` bytes are taken. What has come so far stays in
    ``target.part``. `on_bytes` is told how many bytes have come since it was last called; a
    negative number takes some back. Raises
    `MltrError` once nothing has come for `ATTEMPTS` attempts, and at once for what waiting won't
    change: no such file, no permission, a full disk, too many bytes.
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
            reason, given_up = f"it is larger than the {limit:,} bytes that it may have", True
        except (OSError, http.client.HTTPException) as error:
            failures = 0 if _size(part) > before else failures + 1
            reason = _reason(error)
            given_up = failures == ATTEMPTS or _is_final(error)
        if given_up:
            kept = f"; what has come is kept in {part}" if _size(part) else ""
            raise MltrError(f"{address} can't be fetched: {reason}{kept}")
        log.info("%s: %s; trying again", address, reason)
        time.sleep(FIRST_PAUSE_S * 2 ** max(failures - 1, damaged - 1, 0))


def _receive(address: str, part: Path, on_bytes: Callable[[int], object], limit: int) -> None:
    """Append what is missing to `part`, or all of it where the server can't begin in the middle."""
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
            return  # there is nothing more: whether it is the whole file, its digest says
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
        while block := response.read(BLOCK):
            have += len(block)
            if have > limit:
                raise _TooLarge
            file.write(block)
            on_bytes(len(block))
            missing = missing and missing - len(block)
    if missing:
        raise ConnectionError(f"broke off, {missing:,} bytes before the end")


def _receive_by_fsspec(
    address: str, part: Path, on_bytes: Callable[[int], object], limit: int
) -> None:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # no such protocol, or its package isn't there
        raise MltrError(f"{address}: {first_line(error)}") from error
    on_bytes(-_size(part))
    have = 0
    try:
        with system.open(path, "rb") as source, part.open("wb") as file:
            while block := source.read(BLOCK):
                have += len(block)
                if have > limit:
                    raise _TooLarge
                file.write(block)
                on_bytes(len(block))
    except (OSError, _TooLarge):
        raise
    except Exception as error:  # each kind of store has its own
        raise ConnectionError(first_line(error)) from error


def _check(part: Path, digest: str, on_bytes: Callable[[int], object]) -> None:
    """Raise `_Damaged`, and drop the file, unless it has the digest."""
    if not digest:
        return
    kind, _, expected = digest.partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        on_bytes(-_size(part))
        part.unlink()
        raise _Damaged(f"damaged, its {kind} is {found} and not {expected}")


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
