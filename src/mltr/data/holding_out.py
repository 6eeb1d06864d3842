"""Validation and test splits held out of a source that doesn't state them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from mltr.config.schema import DataConfig
from mltr.data.records import Split, Splits
from mltr.data.stratify import part_sizes, stratified_split
from mltr.errors import MltrError, counted


def divide(whole: Split, config: DataConfig) -> Splits:
    """Split a source that has no splits of its own."""
    return complete(whole, Split(whole.classes, []), Split(whole.classes, []), config)


def complete(train: Split, val: Split, test: Split, config: DataConfig) -> Splits:
    """Hold out missing validation and test splits from the training part."""
    notes = train.notes
    missing = [n for n, part in (("test_fraction", test), ("val_fraction", val)) if not len(part)]
    _check_number(len(train), missing, config)
    if not len(test):
        train, test = _hold_out(train, config.test_fraction, config.split_seed)
    if not len(val):
        splits = hold_out_val(train, test, config)
    else:
        splits = Splits(_named(train, "train"), _named(val, "val"), _named(test, "test"))
    splits.train.notes = notes | splits.train.notes
    return splits


def _check_number(number: int, names: Sequence[str], config: DataConfig) -> None:
    """Raise `MltrError` if some part would be empty after holding out these fractions."""
    fractions = [getattr(config, name) for name in names]

    def suffices(left: int) -> bool:
        for fraction in fractions:
            left, held_out = part_sizes(left, (1 - fraction, fraction))
            if not (left and held_out):
                return False
        return True

    if not suffices(number):
        shares = " and ".join(f"data.{name} {getattr(config, name):g}" for name in names)
        raise MltrError(
            f"{counted(number, 'image')} can't be split with {shares}: at least "
            f"{next(filter(suffices, count(1)))} images are needed; add more, or raise these shares"
        )


def hold_out_val(train: Split, test: Split, config: DataConfig) -> Splits:
    """Hold out the validation split from the training part."""
    _check_number(len(train), ["val_fraction"], config)
    kept, val = _hold_out(train, config.val_fraction, config.split_seed)
    kept.notes = dict(train.notes)
    return Splits(_named(kept, "train"), _named(val, "val"), _named(test, "test"))


def _hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    kept, held_out = stratified_split(split.positives, (1 - fraction, fraction), seed)
    return split.subset(kept, split.name), split.subset(held_out, split.name)


def _named(split: Split, name: str) -> Split:
    split.name = name
    return split
