"""Images that are the same file or show the same picture, within a split and between splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mltr.data.images import open_image
from mltr.data.records import Record, Splits
from mltr.errors import BrokenImage
from mltr.terminal import make_console

SIDE = 16  #: pixels of the thumbnails that are compared
# Of the 2000 photos of MIML all 26 pairs above 0.99 show one picture twice, saved, scaled or
# lightened anew; the first pair that shows two pictures (of the sea) has 0.983.
SAME_PICTURE = 0.99  #: least correlation of two thumbnails
FLAT = 1.0  #: grey levels; a thumbnail that varies less has no picture to compare
BLOCK = 2048  #: thumbnails that are compared with all later ones at a time


@dataclass(frozen=True, eq=False)
class Seen:
    """What is remembered of an image: enough to find it again, not its pixels."""

    split: str
    record: Record
    content: str = ""  #: hash of the file
    thumbnail: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(SIDE**2, np.uint8))
    error: str = ""  #: why it can't be opened

    @property
    def name(self) -> str:
        """The image's name, unique within its split."""
        return self.record.name


def look_at(splits: Splits) -> list[Seen]:
    """Open every image once, with a progress bar on a terminal; broken ones have an error."""
    from rich.progress import track

    jobs = [(split.name, record) for split in splits for record in split]
    console = make_console(stderr=True)
    with ThreadPoolExecutor() as pool:
        return list(
            track(
                pool.map(_look_at, jobs),
                "opening images",
                len(jobs),
                console=console,
                transient=True,
                disable=not console.is_terminal,
            )
        )


def _look_at(job: tuple[str, Record]) -> Seen:
    from PIL import Image

    split, record = job
    try:
        image = open_image(record.image)
        content = record.image.read_bytes() if isinstance(record.image, Path) else image.tobytes()
    except (BrokenImage, OSError) as error:  # the latter if it goes in this very moment
        return Seen(split, record, error=str(error))
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return Seen(split, record, hashlib.sha256(content).hexdigest(), np.asarray(small).ravel())


def identical_groups(seen: Sequence[Seen]) -> list[list[Seen]]:
    """Return the groups of two and more images whose files are the same, byte for byte."""
    groups: dict[str, list[Seen]] = defaultdict(list)
    for image in seen:
        if not image.error:
            groups[image.content].append(image)
    return [group for group in groups.values() if len(group) > 1]


def similar_groups(seen: Sequence[Seen]) -> list[list[Seen]]:
    """Return the groups of two and more images that show the same picture.

    Two images do if their thumbnails correlate by at least `SAME_PICTURE`. Re-saving, scaling and
    changes of brightness, contrast or colour don't matter; cropping and mirroring do. A group is
    held together by such pairs. Every pair is compared, which takes less time than opening the
    images did up to some 300 000 of them.
    """
    sound = [image for image in seen if not image.error]
    if len(sound) < 2:
        return []
    group_of = _link(np.stack([image.thumbnail for image in sound]))
    groups: dict[int, list[Seen]] = defaultdict(list)
    for image, number in zip(sound, group_of, strict=True):
        groups[int(number)].append(image)
    return [group for group in groups.values() if len(group) > 1]


def similarity(a: Seen, b: Seen) -> float:
    """Return the correlation of two thumbnails, 1 for the same."""
    if np.array_equal(a.thumbnail, b.thumbnail):
        return 1.0
    first, second = _standardised(np.stack([a.thumbnail, b.thumbnail]))
    return float(first @ second)


def _link(thumbnails: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return for each thumbnail [N, P] the number of its group."""
    distinct, group_of = np.unique(thumbnails, axis=0, return_inverse=True)
    count = len(distinct)
    directions = _standardised(distinct)
    linked = np.arange(count, dtype=np.int32)
    for start in range(0, count, BLOCK):
        block = directions[start : start + BLOCK]
        for other in range(start, count, BLOCK):
            rows, columns = np.nonzero(block @ directions[other : other + BLOCK].T >= SAME_PICTURE)
            rows, columns = rows + start, columns + other
            if not (rows != columns).any():
                continue
            # What was linked before comes in as one pair a thumbnail, so memory stays bounded.
            edges = (np.r_[rows, np.arange(count)], np.r_[columns, linked])
            graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(count, count))
            numbers = connected_components(graph, directed=False)[1]
            firsts = np.unique(numbers, return_index=True)[1]
            linked = firsts[numbers].astype(np.int32)
    found: NDArray[np.int32] = linked[group_of.ravel()]
    return found


def _standardised(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return thumbnails [N, P] with mean 0 and length 1; flat ones are zeros, like nothing."""
    centred = thumbnails.astype(np.float32)
    centred -= centred.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    flat = length < FLAT * SIDE
    directions: NDArray[np.float32] = np.where(flat, 0, centred / np.maximum(length, 1e-6))
    return directions


def reaches_over_splits(group: Sequence[Seen]) -> bool:
    """Whether a group has images of two splits: what is learnt from one is no news in the other."""
    return len({image.split for image in group}) > 1


def conflicting_classes(group: Sequence[Seen], classes: Sequence[str]) -> list[str]:
    """Return the classes that one image of a group has, and another has not."""
    labels = np.stack([image.record.labels for image in group])
    both = (labels == 1).any(0) & (labels == 0).any(0)
    return [name for name, differs in zip(classes, both, strict=True) if differs]
