"""Errors that the user can fix. The command line prints them in one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MltrError(Exception):
    """An error whose message says what is wrong and how to fix it. Exit code 1."""

    exit_code = 1


class UsageError(MltrError):
    """A command, option or configuration value is wrong. Exit code 2."""

    exit_code = 2


class BrokenImage(MltrError):
    """An image that can't be read or is refused; the message names it and says why."""


class NotFinite(MltrError):
    """A network's answers are NaN or infinite."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word nearest to `word`, or ``""``."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as ``1 image`` or ``2,000 images``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
