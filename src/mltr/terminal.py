"""Makes untrusted text, such as file names, safe for a terminal or a log."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: Control characters (which start escape sequences), line and paragraph separators, bidirectional
#: controls, and lone surrogates, which stand for bytes that aren't UTF-8.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Escape all characters that a terminal could interpret, such as ``\x1b``."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def printable_lines(text: str) -> str:
    """Escape text like `printable`, but keep its line breaks, for tracebacks."""
    return "\n".join(map(printable, text.split("\n")))


def make_console(**options: Any) -> Console:
    """Return a console of rich that shows texts as they are.

    Names of classes and files come from users: ``[red]`` and ``:cat:`` in them are no markup.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, **options)


class PrintableFormatter(logging.Formatter):
    """Formats a record of `mltr` in one line; records of libraries keep their line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the formatted message, made printable."""
        is_ours = record.name.partition(".")[0] == "mltr"
        return (printable if is_ours else printable_lines)(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, made printable."""
        return printable_lines(super().formatException(ei))
