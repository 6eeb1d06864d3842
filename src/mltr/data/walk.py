"""Finding images in folders: lazily, as there may be millions, and always in the same order."""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from mltr.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from mltr.errors import MltrError, UsageError
from mltr.terminal import make_console

log = logging.getLogger(__name__)

Item = TypeVar("Item")

#: Globs of what is never a photo or a class: hidden files, thumbnails, caches and recycle bins.
IGNORED = (
    ".*",
    "@eaDir",
    "@Recycle",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "__MACOSX",
    "__pycache__",
    "lost+found",
    "System Volume Information",
    "*.lrdata",
)
LINKS = "links to folders"
OTHERS = "pipes and devices"
SHOWN_EVERY = 1000  #: photos found, on a terminal


def find_images(
    folder: str | Path, ignore: Sequence[str] = (), passed_over: Counter[str] | None = None
) -> list[Path]:
    """Return the image files in a folder and below, sorted, as `walk_images` finds them."""
    if not Path(folder).is_dir():
        raise MltrError(f"{folder}: no such folder")
    found = walk_images(folder, ignore=ignore, passed_over=passed_over)
    return [Path(name) for name in with_count(found, "looking for photos")]


def with_count(items: Iterable[Item], doing: str) -> Iterator[Item]:
    """Pass items on; on a terminal, a line says what is being done, and to how many so far."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    with console.status(doing) as line:
        for number, item in enumerate(items, start=1):
            if number % SHOWN_EVERY == 0:
                line.update(f"{doing}: {number:,} so far")
            yield item


def _warn(error: OSError) -> None:
    log.warning("%s: can't read this folder (%s)", error.filename, error.strerror)


def walk_images(
    folder: str | Path,
    on_error: Callable[[OSError], object] | None = None,
    ignore: Sequence[str] = (),
    passed_over: Counter[str] | None = None,
) -> Iterator[str]:
    """Yield the image files in a folder and below, in the order of `find_images`.

    No more than the names in one folder, and in those above it, are held at a time. Links to
    folders aren't followed. What matches a glob of `IGNORED` or of `ignore`, by its name or its
    path below the folder, is left out. Folders that can't be read go to `on_error`, or are warned
    of. What was left out is counted in `passed_over`, by kind, or warned of at the end.
    """
    counts = Counter() if passed_over is None else passed_over
    lister = _Lister(ignore, on_error or _warn, counts)
    waiting = [lister.list(str(folder), "")]  # this folder, and those above it
    while waiting:
        path, below, is_folder = next(waiting[-1], ("", "", False))
        if is_folder:
            waiting.append(lister.list(path, f"{below}/"))
        elif path:
            yield path
        else:
            waiting.pop()
    if passed_over is None and counts:
        kinds = passed_over_kinds(counts).items()
        log.warning("%s: %s", folder, ", ".join(f"{number:,} {kind}" for kind, number in kinds))


def passed_over_kinds(counts: Counter[str]) -> dict[str, int]:
    """Return what a walk left out in words, with what to do about it, to its number.

    >>> passed_over_kinds(Counter({".jxl": 2, "@eaDir/": 1}))
    {'.jxl skipped (convert them to JPEG)': 2, '@eaDir/ skipped': 1}
    """
    hints = {kind: f" ({UNREAD_SUFFIXES[kind]})" for kind in counts if kind in UNREAD_SUFFIXES}
    return {f"{kind} skipped{hints.get(kind, '')}": counts[kind] for kind in sorted(counts)}


def is_image(path: Path) -> bool:
    """Whether a path is called like an image that is read, and isn't hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_folders(folder: str | Path, ignore: Sequence[str] = ()) -> list[Path]:
    """Return the folders in a folder that may be classes or splits, sorted."""
    ignored = _pattern((*IGNORED, *ignore))
    with os.scandir(folder) as entries:  # which knows what is a folder without asking again
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [Path(folder) / name for name in names if not ignored.match(name)]


class Siblings:
    """Finds the files of images; each folder is listed once, as asking for each file is slow."""

    def __init__(self) -> None:
        self._names: dict[Path, frozenset[str]] = {}
        self._owners: dict[Path, Path] = {}

    def find(self, image: Path, *paths: Path) -> Path | None:
        """Return the first of some paths at which there is a regular file, or None.

        A suffix may be in capitals, as Windows programs write it.
        Raises `UsageError` if it was found for another image, as `a.txt` of a.jpg and of a.png is.
        """
        either = (p for path in paths for p in (path, path.with_suffix(path.suffix.upper())))
        path = next((path for path in either if path.name in self._list(path.parent)), None)
        if path is not None and (owner := self._owners.setdefault(path, image)) != image:
            raise UsageError(
                f"{path}: it may be of {owner.name} or of {image.name}: name it "
                f"{image.name}{path.suffix}, or leave one of them out by data.ignore, such as "
                f"'*{image.suffix}'"
            )
        return path

    def _list(self, folder: Path) -> frozenset[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder) as entries:
                    names = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:  # no such folder, or none that can be read: the walk has told
                names = frozenset()
            self._names[folder] = names
        return self._names[folder]


@lru_cache
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of paths below a folder; a glob without a slash is for names anywhere."""
    prefixes = ("" if "/" in glob else "(?:.*/)?" for glob in globs)
    names = (fnmatch.translate(glob.strip("/")) for glob in globs)
    return re.compile("|".join(map("".join, zip(prefixes, names, strict=True))))


class _Lister:
    """Lists folders one at a time."""

    def __init__(
        self,
        ignore: Sequence[str],
        on_error: Callable[[OSError], object],
        passed_over: Counter[str],
    ) -> None:
        self._on_error = on_error
        self._passed_over = passed_over
        self._ignored = _pattern((*IGNORED, *ignore))

    def list(self, folder: str, below: str) -> Iterator[tuple[str, str, bool]]:
        """Yield images and folders in order: the path, that below the top, whether a folder."""
        found: list[tuple[str, bool]] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if self._is_wanted(entry, below + entry.name, is_folder):
                        found.append((entry.name, is_folder))
        except OSError as error:
            self._on_error(error)
            return
        found.sort()
        for name, is_folder in found:
            # Path takes five times as long.
            yield os.path.join(folder, name), below + name, is_folder  # noqa: PTH118

    def _is_wanted(self, entry: os.DirEntry[str], below: str, is_folder: bool) -> bool:
        """Whether an entry is an image or a folder to look into; counts what looks like it."""
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - as above
        if not is_folder and suffix not in IMAGE_SUFFIXES and suffix not in UNREAD_SUFFIXES:
            if entry.is_symlink() and Path(entry.path).is_dir():  # False for a loop of links
                self._passed_over[LINKS] += 1
            return False
        if self._ignored.match(below):
            self._passed_over[f"{entry.name}/" if is_folder else "hidden photos"] += 1
            return False
        if is_folder:
            return True
        if suffix in UNREAD_SUFFIXES:
            self._passed_over[suffix] += 1
            return False
        return self._may_be_file(entry)

    def _may_be_file(self, entry: os.DirEntry[str]) -> bool:
        """Whether opening it is the way to tell."""
        try:
            if entry.is_file():
                return True
            if entry.is_dir():
                self._passed_over[LINKS] += 1
                return False
            if entry.is_symlink():  # it leads nowhere
                return True
        except OSError:  # such as a loop of links
            return True
        self._passed_over[OTHERS] += 1
        return False
