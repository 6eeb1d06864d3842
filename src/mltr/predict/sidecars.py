"""Labels in a small file beside each photo: text for training, XMP for photo managers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from mltr.data.readers.keywords import hidden_keywords
from mltr.data.tables.tags import join_tags
from mltr.errors import MltrError
from mltr.files.writing import DISK_FULL, read_target, text_writer, write_atomically
from mltr.predict.inputs import Owners
from mltr.predict.options import NAMINGS
from mltr.predict.results import Row, to_text

MAX_BYTES = 16_000_000  #: of a sidecar; those of photo managers have some thousands
TOLD_FAILURES = 20  #: sidecars that can't be written are named up to so many


class Sidecars(Protocol):
    """One kind of file beside a photo. The photo itself is never touched."""

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        ...

    def is_done(self, image: Path) -> bool:
        """Whether there is nothing to write."""
        ...

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Write the labels; return why a file that was there is kept, or an empty text."""
        ...


@dataclass(frozen=True)
class TextSidecars:
    """`photo.txt` with the labels, as `mltr.data.tables.tags` reads them; existing files stay."""

    overwrite: bool = False
    follow_links: bool = False

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        return image.parent / f"{image.stem}.txt"

    def is_done(self, image: Path) -> bool:
        """Whether there is one; an empty file is what a power cut leaves."""
        return not self.overwrite and bool(_content(self, image))

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Write the labels in a line; return why a file stays."""
        path, text = self.path_for(image), f"{join_tags(labels)}\n"
        before = read_target(path, MAX_BYTES, self.follow_links)
        if self.overwrite or not before:
            write_atomically(path, text_writer(text), flush=False, follow_links=self.follow_links)
        elif before != text.encode("utf-8", "backslashreplace"):
            return "other labels; --overwrite replaces them"
        return ""


@dataclass(frozen=True)
class XmpSidecars:
    """XMP with the labels as keywords beside those that are there; see `mltr.predict.xmp`."""

    naming: str = NAMINGS[0]
    overwrite: bool = False
    follow_links: bool = False
    hierarchy: Mapping[str, str] = field(default_factory=dict)  #: the parent of each child
    judged: Collection[str] | None = None  #: labels that may be withdrawn; None: all of ours

    def path_for(self, image: Path) -> Path:
        """Return the file for an image."""
        name = image.name if self.naming == NAMINGS[0] else image.stem
        return image.parent / f"{name}.xmp"

    def is_done(self, image: Path) -> bool:
        """Whether our labels are in it."""
        from mltr.predict.xmp import has_labels

        return not self.overwrite and has_labels(_content(self, image))

    def write(self, image: Path, labels: Sequence[str]) -> str:
        """Add the labels to the keywords; return what is wrong with a file that stays."""
        from mltr.predict.xmp import set_labels

        path = self.path_for(image)
        before = read_target(path, MAX_BYTES, self.follow_links)
        try:
            # Keywords in the file would hide those in the photo, or in another file beside it.
            hidden = partial(hidden_keywords, image, path)
            after = set_labels(before, labels, self.hierarchy, self.judged, hidden)
        except MltrError as error:
            return str(error)
        if after != before:
            # What others have put there must outlive a power cut.
            write_atomically(
                path, lambda file: file.write_bytes(after), bool(before), self.follow_links
            )
        return ""


def _content(kind: TextSidecars | XmpSidecars, image: Path) -> bytes:
    """Return what is in the sidecar of an image; nothing if it can't be read: writing will tell."""
    try:
        return read_target(kind.path_for(image), MAX_BYTES, kind.follow_links)
    except MltrError:
        return b""


@dataclass
class Outcome:
    """What became of the sidecars that were not written."""

    kept: int = 0  #: were there already
    first_kept: str = ""
    failed: int = 0
    failures: list[str] = field(default_factory=list)  #: why, of the first few

    def fail(self, problems: Sequence[str]) -> None:
        """Count sidecars that can't be written."""
        self.failed += len(problems)
        self.failures += problems[: TOLD_FAILURES - len(self.failures)]


def claim(kind: Sidecars, image: Path, owners: Owners) -> str:
    """Note whose sidecar a file is; return why it can't be that of an image, or an empty text."""
    path = kind.path_for(image)
    other = owners.claim(path, str(image))
    return to_text(f"{path} is the sidecar of {other}: rename one of the two") if other else ""


def with_sidecars(
    rows: Iterable[Row], kinds: Sequence[Sidecars], owners: Owners, outcome: Outcome
) -> Iterator[Row]:
    """Write the labels of each image that could be read beside it, as its row passes by.

    A row whose sidecars can't be written, or are those of an earlier image, has an error. Raises
    `MltrError` only if the disk is full, as no other sidecar would fare better.
    """
    for row in rows:
        if row.probs is None:  # no labels would say that nothing is in the image
            yield row
            continue
        image = row.image
        assert isinstance(image, Path)  # `Inputs` lets no others through
        problems = []
        for kind in kinds:
            if why := claim(kind, image, owners):
                problems.append(why)
                continue
            try:
                reason = kind.write(image, [name for name, _ in row.labels])
            except MltrError as error:
                if getattr(error.__cause__, "errno", None) in DISK_FULL:
                    raise
                problems.append(to_text(str(error)))
                continue
            if reason:
                outcome.kept += 1
                outcome.first_kept = outcome.first_kept or f"{kind.path_for(image)}: {reason}"
        outcome.fail(problems)
        yield row._replace(error="; ".join(problems)) if problems else row
