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
    log.warning("%s: can't look into this folder (%s)", error.filename, error.strerror)


def walk_images(
    folder: str | Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[str]:
    """Yield the image files in a folder and below, in the order of `find_images`.

    No more than the names in one folder, and in those above it, are held at a time. Links to
    folders aren't followed; folders that can't be read go to `on_error`, or are
    warned of.
    """
    names, folders = [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                    names.append(entry.name)
                elif _looks_like_image(entry.name) and entry.is_file():
                    names.append(entry.name)
    except OSError as error:
        (on_error or _warn)(error)
        return
    names.sort()
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118 - Path takes five times as long
        if name in folders:
            yield from walk_images(path, on_error)
        else:
            yield path


def _looks_like_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
