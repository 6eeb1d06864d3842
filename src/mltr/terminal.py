"""Text that others chose, such as names of files, made safe for a terminal or a log."""

from __future__ import annotations

import logging
import re
from typing import Any

#: Control characters (and with them escape sequences), line and paragraph separators, what turns
#: the direction of writing, and halves of surrogate pairs, which stand for bytes that aren't UTF-8.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return the text with whatever could act on a terminal made visible, such as ``\x1b``."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Return the text as `printable` does, but leave its line breaks: for tracebacks."""
    return "\n".join(map(printable, text.split("\n")))


class PrintableFormatter(logging.Formatter):
    """Writes a record of ours in one line; those of libraries keep their line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the message by the format, with nothing in it that acts on a terminal."""
        is_ours = record.name.partition(".")[0] == "mltr"
        return (printable if is_ours else printable_lines)(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, likewise."""
        return printable_lines(super().formatException(ei))
