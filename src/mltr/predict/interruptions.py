"""Signals that end a run between two images rather than in the middle of a file."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruptions:
    """Ctrl-C and SIGTERM, which end a run only where it waits for images: files are written whole.

    A second one ends it anywhere, and so does the first one if no file is written.
    """

    def __init__(self, writes_files: bool = True) -> None:
        self._writes_files = writes_files
        self._first: BaseException | None = None
        self._may_raise = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Take the signals, if this is the main thread, which alone gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        # A job in the background ignores the Ctrl-C of the one before it.
        taken = [n for n, handler in previous.items() if handler not in (signal.SIG_IGN, None)]
        for number in taken:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, previous[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_second = self._first is not None
        is_ctrl_c = number == signal.SIGINT
        self._first = KeyboardInterrupt() if is_ctrl_c else SystemExit(128 + number)
        if is_second or self._may_raise or not self._writes_files:
            raise self._first

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Raise here what came, or comes."""
        self._may_raise = True
        try:
            if self._first is not None:
                raise self._first
            yield
        finally:
            self._may_raise = False
