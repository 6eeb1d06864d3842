"""Files that appear whole or not at all, and stay as they were where writing fails."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mltr.errors import MltrError

Writer = Callable[[Path], object]


def write_atomically(path: str | Path, writer: Writer, flush: bool = True) -> None:
    """Let `writer` fill a temporary file beside `path` and put it in its place once it is safe.

    `writer` gets the path of the temporary file, with the suffix of `path`. Whatever fails, a
    previous file at `path` stays as it was. Without `flush` a power cut may leave a new file empty,
    and writing takes a hundredth of the time. Raises `MltrError` if the file can't be written.
    """
    write_together({Path(path): writer}, flush)


def write_together(writers: Mapping[Path, Writer], flush: bool = True) -> None:
    """Like `write_atomically` for several files: all are on the disk before the first is replaced.

    They are replaced in the order given. Raises `MltrError` naming the file that failed.
    """
    targets = {path.resolve(): writer for path, writer in writers.items()}
    staged = {target: target.with_name(f".tmp-{target.name}") for target in targets}
    current = next(iter(targets))
    try:
        for current, writer in targets.items():
            current.parent.mkdir(parents=True, exist_ok=True)
            writer(staged[current])
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
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink()


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's or a folder's content has reached the disk."""
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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "; free some space or write to another disk"
    return f"can't write {path}{kept}: {reason}{advice}"


def write_json(path: str | Path, content: object) -> None:
    """Write strict JSON atomically; what is not a finite number becomes null."""
    write_atomically(path, text_writer(to_json(content)))


def text_writer(text: str) -> Writer:
    """Return a writer, for `write_atomically`, of a text file in UTF-8.

    What has no place in UTF-8, such as parts of odd file names, becomes a question mark.
    """
    return lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace")


def to_json(content: object, indent: int | None = 2, ascii_only: bool = False) -> str:
    """Return strict JSON text; what is not a finite number becomes null."""
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
