"""Reads text files in UTF-8, UTF-16 or cp1252, with the encoding detected."""

from __future__ import annotations

import re
from pathlib import Path

from mltr.errors import MltrError
from mltr.files.writing import open_regular

#: Signs that text in another encoding was decoded as cp1252: symbols before a letter (Polish
#: źródło), capitals after a small letter or inside a word (café in Mac OS Roman), runs of accented
#: letters (Cyrillic, Chinese).
NOT_WESTERN = re.compile(
    r"[\xa2\xa4-\xa9\xac-\xaf\xb1-\xb4\xb6\xb8\xb9\xbc-\xbe\xd7\xf7\u0192\u02c6\u02dc\u2020\u2021"
    r"\u2030\u2122][a-z]|[a-z\xdf-\xff][\xc0-\xde\u0160\u017d\u0152\u0178]"
    r"|[A-Z][\xc0-\xde\u0160\u017d\u0152\u0178][a-z]|[^\x00-\x7f]{3}"
)


def read_text(path: Path) -> str:
    """Return the content of a text file without its byte-order mark.

    Raises `MltrError` if it can't be read, or as `find_encoding` does.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise MltrError(f"{path}: can't be read ({error.strerror or error})") from error
    return content.decode(find_encoding(content, path)).removeprefix("\ufeff")


def is_utf8(path: Path) -> bool:
    """Return whether a path is text, which that of a file on Linux need not be."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def find_encoding(content: bytes, path: Path) -> str:
    """Return the encoding of a file: UTF-8, UTF-16 or cp1252 (the default of Western Excel).

    Detectors such as charset-normalizer usually identify short tables in cp1252 as cp1250, which
    would silently corrupt class names. Raises `MltrError` for other encodings.
    """
    if content.isascii() and b"\0" not in content:
        return "utf-8"
    zeros = [content[:4096][start::2].count(0) for start in (0, 1)]
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        candidates = ["utf-16"]
    elif max(zeros) > len(content[:4096]) // 8:
        candidates = ["utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"]
    else:
        candidates = ["utf-8", "cp1252"]
    for encoding in candidates:
        try:
            text = content.decode(encoding)
        except UnicodeError:
            continue
        if encoding != "cp1252" or not NOT_WESTERN.search(text):
            return encoding
    raise MltrError(
        f"{path}: not in UTF-8, UTF-16 or cp1252; save it as `CSV UTF-8`, or convert it with iconv"
    )
