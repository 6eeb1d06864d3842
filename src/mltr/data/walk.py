"""Finding images in folders: lazily, as there may be millions, and always in the same order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mltr.data.images import IMAGE_SUFFIXES
from mltr.errors import MltrError

log = logging.getLogger(__name__)


def find_images(folder: str | Path) -> list[Path]:
    """Return the image files in a folder and below, sorted; hidden files are passed over."""
    if not Path(folder).is_dir():
        raise MltrError(f"{folder}: no such folder")
    return [Path(name) for name in walk_images(folder)]


def _warn(error: OSError) -> None:
    log.warning("%s: can't read this folder (%s)", error.filename, error.strerror)


def walk_images(
    folder: str | Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[str]:
    """Yield the image files in a folder and below, in the order of `find_images`.

    No more than the names in one folder, and in those above it, are held at a time. Links to
    folders aren't followed; folders that can't be read go to `on_error`, or are
    warned of.
    """
    waiting = [_list(folder, on_error or _warn)]  # this folder, and those above it
    while waiting:
        path, is_folder = next(waiting[-1], ("", False))
        if is_folder:
            waiting.append(_list(path, on_error or _warn))
        elif path:
            yield path
        else:
            waiting.pop()


def _list(folder: str | Path, on_error: Callable[[OSError], object]) -> Iterator[tuple[str, bool]]:
    """Return the paths of images and folders in a folder, in order, and which are folders."""
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif _looks_like_image(entry.name) and _may_be_file(entry):
                    names.append(entry.name)
    except OSError as error:
        on_error(error)
        return iter(())
    names.sort()
    # Path takes five times as long.
    return ((os.path.join(folder, name), name in folders) for name in names)  # noqa: PTH118


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # such as a loop of links: opening it will tell
        return True


def _looks_like_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
