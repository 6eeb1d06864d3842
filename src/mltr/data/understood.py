"""How a source was read: told before anything is trained on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mltr.errors import counted

if TYPE_CHECKING:
    from mltr.data.records import Splits

log = logging.getLogger(__name__)

SHOWN = 5  #: names in a list on the screen


@dataclass(frozen=True)
class Understood:
    """What a reader made of a source, in words that a user can check."""

    form: str = ""  #: what it is, such as "table" or "COCO"
    files: tuple[str, ...] = ()  #: that the labels come from
    details: tuple[str, ...] = ()  #: of the files, such as "in cp1252", "columns separated by ;"
    #: column to what it holds: "photos", "labels" or "split"
    columns: Mapping[str, str] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()  #: columns or categories that are not used
    #: value of a cell to what it means, such as "empty" to "unknown"
    meanings: Mapping[str, str] = field(default_factory=dict)
    #: what was left out or merged, by kind: "rows that repeat a photo" to their number
    counts: Mapping[str, int] = field(default_factory=dict)

    def __or__(self, other: Understood) -> Understood:
        """Return what was understood of a source of which this and `other` are parts."""
        kinds = dict.fromkeys([*self.counts, *other.counts])
        return replace(
            self,
            files=tuple(dict.fromkeys(self.files + other.files)),
            details=tuple(dict.fromkeys(self.details + other.details)),
            columns={**self.columns, **other.columns},
            passed_over=tuple(dict.fromkeys(self.passed_over + other.passed_over)),
            meanings={**self.meanings, **other.meanings},
            counts={kind: self.counts.get(kind, 0) + other.counts.get(kind, 0) for kind in kinds},
        )

    def with_unknown_as_absent(self) -> Understood:
        """Return the same once every unknown label has been taken as negative."""
        meanings = {
            value: "absent" if meaning == "unknown" else meaning
            for value, meaning in self.meanings.items()
        }
        return replace(self, meanings=meanings)

    def to_figures(self, splits: Splits) -> dict[str, Any]:
        """Return all of it as plain values, with what was counted in each split."""
        return asdict(self) | {
            "counts": self._all_counts(splits),
        }

    def to_lines(self, splits: Splits) -> list[str]:
        """Return the same in two lines for people."""
        sizes = ", ".join(f"{len(split):,} {split.name}" for split in splits.parts)
        second = [
            f"images: {sizes}; {counted(len(splits.train.classes), 'class', 'classes')}",
            ", ".join(f"{value} = {meaning}" for value, meaning in self.meanings.items()),
            ", ".join(f"{kind}: {number:,}" for kind, number in self._all_counts(splits).items()),
        ]
        return ["; ".join(filter(None, line)) for line in (self._first_line(), second)]

    def _first_line(self) -> list[str]:
        files = ": ".join(filter(None, (self.form or "source", _shorten(self.files))))
        by_use: dict[str, list[str]] = {}
        for column, use in self.columns.items():
            by_use.setdefault(use, []).append(repr(column))
        used = [
            f"{use} from {_shorten(names)}"
            if len(names) == 1
            else f"{use} from {len(names):,} columns ({_shorten(names)})"
            for use, names in by_use.items()
        ]
        passed_over = f"skipped: {_shorten(map(repr, self.passed_over))}"
        return [
            ", ".join((files, *self.details)),
            ", ".join(used),
            passed_over if self.passed_over else "",
        ]

    def _all_counts(self, splits: Splits) -> dict[str, int]:
        """Return the counts of the source, and those of its splits added up; nothing twice."""
        counts = dict(self.counts)
        for split in splits.parts:
            for note, number in split.notes.items():
                kind = note.replace("_", " ")
                counts[kind] = counts.get(kind, 0) + number
        return {kind: number for kind, number in counts.items() if number}


def _shorten(names: Iterable[str]) -> str:
    every: Sequence[str] = list(names)
    more = f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more


def tell_understood(splits: Splits) -> None:
    """Log how a source was read."""
    for line in splits.understood.to_lines(splits):
        log.info("%s", line)
