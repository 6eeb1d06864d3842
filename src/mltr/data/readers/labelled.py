"""Photos with the names of their labels: what readers of labelling tools share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mltr.data.records import PARTS, ImageSource, Record, Split, indices_of, normal
from mltr.data.tables.names import unify
from mltr.data.understood import Understood
from mltr.data.walk import find_images
from mltr.errors import MltrError, UsageError

WHOLE = ""  #: the split of a source that states none
#: What folders of splits are called beside them, as in train_images.
BESIDE_PARTS = ("image", "images", "img", "imgs", "photos", "set", "data")
YEAR = r"(19|20)\d\d"


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and what is said of it."""

    image: ImageSource
    name: str  #: unique within a split
    labels: Collection[str]  #: names of those that it has
    unknown: Collection[str] = ()  #: names of those that it may or may not have
    part: str = WHOLE  #: the split that it is in: train, val or test


def part_of(name: str) -> str:
    """Return the split that the name of a file or folder states.

    >>> part_of("instances_Validation"), part_of("train2017"), part_of("default")
    ('val', 'train', '')
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((PARTS[word] for word in words if word in PARTS), WHOLE)


def part_of_folder(name: str) -> str:
    """Return the split that the whole name of a folder states, in which other words are a place.

    >>> [part_of_folder(name) for name in ("Training", "train2017", "test_images")]
    ['train', 'train', 'test']
    >>> [part_of_folder(name) for name in ("train station", "Test 1")]
    ['', '']
    """
    words = re.findall(r"[^\W\d_]+|\d+", name.lower())
    words = [word for word in words if word not in BESIDE_PARTS and not re.fullmatch(YEAR, word)]
    return PARTS.get(words[0], WHOLE) if len(words) == 1 else WHOLE


def are_splits(parts: Collection[str]) -> bool:
    """Whether the parts that the folders of photos are named for are splits.

    Such names may be of places and occasions, as where there is none for training, or that alone
    beside other folders.
    """
    named = {*parts} - {WHOLE}
    return "train" in named and (WHOLE not in parts or len(named) > 1)


def with_parts_of_folders(root: Path, photos: Sequence[LabelledPhoto]) -> list[LabelledPhoto]:
    """Return photos in the splits that the folders in `root` are named for, if `are_splits`.

    Raises `UsageError` where some photos are in other folders.
    """
    folders = [photo.name.partition("/")[0] if "/" in photo.name else "" for photo in photos]
    parts = [part_of_folder(folder) for folder in folders]
    if not are_splits(parts):
        return list(photos)
    if WHOLE in parts:
        other, named = root / folders[parts.index(WHOLE)], ", ".join(sorted({*parts} - {WHOLE}))
        raise UsageError(
            f"{other} holds photos, and is none of the splits beside it ({named}): leave it out by "
            "data.ignore, or rename the folders if they are no splits"
        )
    return [replace(photo, part=part) for photo, part in zip(photos, parts, strict=True)]


def to_splits(
    photos: Sequence[LabelledPhoto],
    classes: Sequence[str] | None,
    understood: Understood,
    where: str,
    merge_case: bool | None = None,
) -> dict[str, Split]:
    """Return the splits that photos are in; without `classes`, every label is a class.

    A label that isn't named is absent. `where` locates an unknown class in the error message.
    Whether labels that differ from `classes` in capitals alone are these, `merge_case` says.
    """
    used = Counter(label for photo in photos for label in (*photo.labels, *photo.unknown))
    names = tuple(dict.fromkeys(map(normal, classes or sorted(used))))
    called = unify(used, merge_case, where, names) if classes else {n: normal(n) for n in used}
    if not names:
        raise MltrError(f"{where}: none of its {len(photos)} photos has a label")
    records = defaultdict(list)
    place_of = {name: place for place, name in enumerate(names)}
    for photo in photos:
        labels = [called[label] for label in photo.labels]
        unknown = [called[label] for label in photo.unknown]
        for label in {*labels, *unknown} - place_of.keys():
            indices_of([label], names, f"{where}: {photo.name}")  # raises an error that names it
        row = np.zeros(len(names), np.int8)
        row[[place_of[label] for label in unknown]] = -1
        row[[place_of[label] for label in labels]] = 1
        records[photo.part].append(Record(photo.image, photo.name, row))
    splits = {part: Split(names, own, part) for part, own in records.items()}
    for number, split in enumerate(splits.values()):  # what was counted counts once
        split.understood = replace(understood, counts={}) if number else understood
    return splits


def align_classes(parts: Iterable[Split]) -> None:
    """Give splits one list of classes: those of the first, then those that only others have.

    A label that a split's own list doesn't have is unknown there.
    """
    parts = list(parts)
    names = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    for part in parts:
        if part.classes == names:
            continue
        places = indices_of(part.classes, names, part.name)
        records = []
        for record in part:
            row = np.full(len(names), -1, np.int8)
            row[places] = record.labels
            boxes = record.boxes and tuple(
                replace(box, class_index=places[box.class_index]) for box in record.boxes
            )
            records.append(replace(record, labels=row, boxes=boxes))
        part.classes, part.records = names, records


class PhotoIndex:
    """Finds photos by paths of another machine, in and below a folder."""

    def __init__(self, folder: Path, ignore: Sequence[str] = ()) -> None:
        self.folder = folder
        self._ignore = ignore
        self._uploads: dict[Path, str] = {}  #: names of uploads, by the photos that they are of

    @cached_property
    def _by_name(self) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
        """Photos by their names, and by these in small letters."""
        exact, folded = defaultdict(list), defaultdict(list)
        for path in find_images(self.folder, self._ignore):
            name = _plain(path.name)
            exact[name].append(path)
            folded[name.casefold()].append(path)
        return exact, folded

    def find(self, reference: str) -> Path:
        """Return the photo that a path or URL names, such as ``/data/upload/1/0a1b2c3d-sea.jpg``.

        Of several photos of that name it is the one in the folders named like those of the path;
        raises `MltrError` if that leaves several. If there is none, the path returned is where it
        would be.
        """
        path = _path_in(reference)
        for name in dict.fromkeys((path.name, _UPLOAD.sub("", path.name))):
            exact, folded = self._by_name
            plain = _plain(name)
            found = exact.get(plain) or folded.get(plain.casefold(), [])
            found = [own for own in found if own.name == name] or found
            if len(found) > 1:
                longest = max(_common_tail(own, path) for own in found)
                found = [own for own in found if _common_tail(own, path) == longest]
            if len(found) > 1:
                raise MltrError(
                    f"{reference}: may be {found[0]} or {found[1]}; leave one of them there"
                )
            if found:
                upload = self._uploads.setdefault(found[0], path.name)
                if path.name != upload and any(map(_UPLOAD.match, (path.name, upload))):
                    raise MltrError(
                        f"{reference}: {found[0]} may be that of {upload}, too: give each photo "
                        "the whole name by which it is called there"
                    )
                return found[0]
        return self.folder.joinpath(*path.parts[path.is_absolute() :])


#: What Label Studio puts in front of the name of an uploaded file.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")


def _path_in(reference: str) -> PurePosixPath:
    """Return the path in a URL, or in its query, as in ``/data/local-files/?d=folder/a.jpg``."""
    if "://" in reference or "?d=" in reference:
        parts = urlsplit(reference)
        reference = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    elif reference.startswith("/data/"):
        reference = unquote(reference)
    return PurePosixPath(reference.replace("\\", "/"))


def _plain(name: str) -> str:
    """Return a name as Django makes it safe, which is how Label Studio keeps an upload."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _common_tail(path: Path, other: PurePosixPath) -> int:
    """Return how many folders above a file have the same names."""
    pairs = zip(path.parts[-2::-1], other.parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
