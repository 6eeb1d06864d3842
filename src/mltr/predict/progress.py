"""Progress of a long command on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from mltr.errors import counted
from mltr.terminal import make_console, printable

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Tell = Callable[[int, int | None, str], object]  #: how many, of how many, and a line about it

REDRAW_S = 0.1  #: of the bar
LINE_S = 30.0  #: from one line to the next
RATE_S = 30.0  #: the rate is that of the last so many seconds


def tell(line: str) -> None:
    """Print a line to stderr, if it isn't closed, with nothing in it that acts on a terminal."""
    if sys.stderr is not None:  # print would take stdout
        print(printable(line), file=sys.stderr)


def with_progress(items: Iterable[Item], total: Callable[[], int | None]) -> Iterator[Item]:
    """Tell how many items have passed by, how fast, and how long the rest of them will take.

    `total` gives their number once it is known.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    console = make_console(stderr=True)
    if not console.is_terminal:
        yield from _watch(items, total, LINE_S, lambda count, of, line: log.info("%s", line))
        return
    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("predicting", total=None)

        def redraw(count: int, of: int | None, line: str) -> None:
            bar.update(task, completed=count, total=of, description=line)

        yield from _watch(items, total, REDRAW_S, redraw)


def _watch(
    items: Iterable[Item], total: Callable[[], int | None], interval_s: float, tell: Tell
) -> Iterator[Item]:
    marks = deque([(time.monotonic(), 0)])
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - marks[-1][0] >= interval_s:
            rate = (count - marks[0][1]) / (now - marks[0][0])
            tell(count, total(), describe(count, total(), rate))
            marks.append((now, count))
            while len(marks) > 1 and now - marks[0][0] > RATE_S:
                marks.popleft()


def describe(count: int, total: int | None, rate: float) -> str:
    """Return such as ``1,200 of 5,000 images, 24.1/s, 0:02:38 left``."""
    if total is None:
        return f"{counted(count, 'image')}, {rate:.1f}/s"
    left = timedelta(seconds=round(max(0, total - count) / rate))
    return f"{count:,} of {counted(total, 'image')}, {rate:.1f}/s, {left} left"
