"""Labels that imply others, as a dog is an animal: a tree, told by the parent of each child.

A parent that is no class is a level of the tree alone: photo managers show it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from mltr.data.records import Split, Splits, normal
from mltr.data.shards import ShardSplit
from mltr.data.tables.sheet import find_delimiter
from mltr.errors import MltrError, UsageError, did_you_mean
from mltr.files.text import read_text

Values = NDArray[Any]
Hierarchy = Mapping[str, str]  #: the parent of each child, by name
HEADER = ["child", "parent"]  #: of a hierarchy in CSV
LARGEST = 2**24  #: bytes of a file


def read_hierarchy(path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read `child: parent` pairs: YAML or JSON, or CSV with the columns child and parent.

    Raises `MltrError` for a file that holds anything else, a child with two parents or that is its
    own ancestor, and names that have nothing to do with the classes.
    """
    if path.is_file() and path.stat().st_size > LARGEST:
        raise MltrError(f"{path} is larger than any hierarchy: {path.stat().st_size:,} bytes")
    try:
        text = read_text(path)
    except MltrError as error:
        raise MltrError(f"data.hierarchy {error}") from error
    pairs = _read_csv(text, path) if path.suffix == ".csv" else _read_yaml(text, path)
    parents: dict[str, str] = {}
    for child, parent in (map(normal, pair) for pair in pairs):
        if parents.setdefault(child, parent) != parent:
            raise MltrError(f"{path}: {child!r} has two parents, {parents[child]!r} and {parent!r}")
    problem = problem_of(parents)
    if problem:
        raise MltrError(f"{path}: {problem}")
    used = {name for label in classes for name in path_of(label, parents)}
    for child in parents:
        if child not in used:
            raise UsageError(
                f"{path}: {child!r} is no class, and above none{did_you_mean(child, classes)}"
            )
    return parents


def _read_csv(text: str, path: Path) -> list[tuple[str, str]]:
    lines = csv.reader(text.splitlines(), delimiter=find_delimiter(text))
    rows = [[cell.strip() for cell in row] for row in lines if any(row)]
    if not rows or [cell.lower() for cell in rows[0]] != HEADER:
        raise MltrError(f"{path}: its first line must be child,parent")
    for row in rows:
        if len(row) != 2 or not all(row):
            raise MltrError(f"{path}: a line must be child,parent, not {','.join(row)!r}")
    return [(child, parent) for child, parent in rows[1:]]


def _read_yaml(text: str, path: Path) -> list[tuple[str, str]]:
    wanted = f"{path}: expected lines such as dog: animal"
    try:
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise MltrError(f"{wanted}; it isn't YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode) or not all(
        isinstance(node, yaml.ScalarNode) and node.value for pair in root.value for node in pair
    ):
        raise MltrError(wanted)
    # As they are written: to YAML, `no` and `2` are no texts, and a key twice is the last.
    return [(child.value, parent.value) for child, parent in root.value]


def problem_of(parents: object) -> str:
    """Return why this is no hierarchy, or nothing."""
    if not isinstance(parents, dict) or not all(
        isinstance(name, str) and name for pair in parents.items() for name in pair
    ):
        return "a hierarchy must be an object from the name of a child to that of its parent"
    done: set[str] = set()
    for child in parents:
        seen: list[str] = []
        name: str | None = child
        while name is not None and name not in done:
            if name in seen:
                return f"{name!r} is its own ancestor"
            seen.append(name)
            name = parents.get(name)
        done.update(seen)
    return ""


def path_of(label: str, parents: Hierarchy) -> list[str]:
    """Return a label's place in the tree, from the top down to itself.

    >>> path_of("dog", {"dog": "pet", "pet": "animal"})
    ['animal', 'pet', 'dog']
    """
    names = [label]
    while names[-1] in parents:
        names.append(parents[names[-1]])
    return names[::-1]


def ancestors(classes: Sequence[str], parents: Hierarchy) -> dict[int, list[int]]:
    """Return the indices of what a class implies, by its own, for each that implies any."""
    if not parents:
        return {}
    places = {name: index for index, name in enumerate(classes)}
    above = {
        index: [places[name] for name in path_of(label, parents)[:-1] if name in places]
        for index, label in enumerate(classes)
    }
    return {index: own for index, own in above.items() if own}


def implied(values: Values, above: Mapping[int, list[int]]) -> Values:
    """Return values [..., K] of which none is less than that of a class that implies its own.

    Values are probabilities, or decisions, and `above` is that of `ancestors`.
    """
    found = values.copy() if above else values
    for index, own in above.items():
        found[..., own] = np.maximum(found[..., own], values[..., [index]])
    return found


def with_hierarchy(splits: Splits, path: Path) -> Splits:
    """Return splits in which an image with a label has all that it implies, by a file.

    Raises `MltrError` as `read_hierarchy` does, and for shards.
    """
    if isinstance(splits.train, ShardSplit):
        raise UsageError("data.hierarchy: for shards, give it to mltr shard (--hierarchy FILE)")
    parents = read_hierarchy(path, splits.train.classes)
    train, val, test = (_imply(split, parents) for split in splits)
    return Splits(train, val, test, hierarchy=parents)


def _imply(split: Split, parents: Hierarchy) -> Split:
    above = ancestors(split.classes, parents)
    records = []
    for record in split:
        labels = np.array(record.labels)
        for index, own in above.items():
            if labels[index] == 1:
                labels[own] = 1
        records.append(replace(record, labels=labels))
    return replace(split, records=records)
