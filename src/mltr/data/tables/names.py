"""Names of classes: the same one however it is written, and different ones kept apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from mltr.data.records import normal
from mltr.data.tables.cells import to_whole
from mltr.errors import UsageError


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names sorted; by number if all of them are numbers."""
    every = sorted(set(names))
    if all(to_whole(name) is not None for name in every):
        every.sort(key=lambda name: to_whole(name) or 0)
    return tuple(every)


def unify(
    times: Mapping[str, int], merge_case: bool | None, where: str, known: Collection[str] = ()
) -> dict[str, str]:
    """Return what each name is called, from how often each occurs.

    Names that differ in capitals, from one another or from `known` classes, are one class if
    `merge_case`, which is then called as the known one, or as most often; they are several if it is
    False. Raises `UsageError` for such names if it is None, unless all are known.

    >>> unify({"Sea": 1, "sea": 5, "sky": 2}, True, "labels.csv")
    {'Sea': 'sea', 'sea': 'sea', 'sky': 'sky'}
    >>> unify({"sea": 5}, True, "labels.csv", known=["Sea"])
    {'sea': 'Sea'}
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for name, number in times.items():
        spellings[normal(name).casefold()][normal(name)] += number
    for name in known:
        if name.casefold() in spellings:
            spellings[name.casefold()][name] += 0
    called = {name: normal(name) for name in times}
    listed = set(known)
    doubtful = [own for own in spellings.values() if len(own) > 1 and not listed.issuperset(own)]
    if merge_case is None and doubtful:
        examples = "; ".join(" and ".join(map(repr, sorted(own))) for own in doubtful[:3])
        raise UsageError(
            f"{where}: names that differ only in capitals: {examples}; set data.merge_case true if "
            "they are the same class, or false if not"
        )
    if merge_case:
        called = {
            name: max(sorted(own), key=lambda spelling: (spelling in listed, own[spelling]))
            for name in times
            for own in [spellings[normal(name).casefold()]]
        }
    return called
