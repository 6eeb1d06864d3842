"""What thresholds can aim for. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mltr.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

AIMS = "f1, precision=P, recall=R (0 < P, R <= 1) or cost=FP:FN (of a false alarm and of a miss)"
SCALING_CHOICES = ("shared", "platt", "temperature", "none")


@dataclass(frozen=True)
class Aim:
    """The objective of a threshold."""

    kind: str  #: f1, precision, recall or cost
    level: float = 0.0  #: precision or recall to reach
    false_alarm: float = 1.0  #: cost of a false positive, in any unit
    miss: float = 1.0  #: cost of a false negative, in the same unit

    def __str__(self) -> str:
        """Return the aim as written on the command line."""
        if self.kind == "cost":
            return f"cost={self.false_alarm:g}:{self.miss:g}"
        return self.kind if self.kind == "f1" else f"{self.kind}={self.level:g}"

    def values(self, hits: Floats, false_alarms: Floats, positives: int) -> tuple[Floats, bool]:
        """Return the value of each step (higher is better), and whether the aim can be reached.

        `hits` and `false_alarms` [S] count the decisions at each step, from the highest threshold.
        Of equally good steps the first is to be taken.
        """
        import numpy as np

        precision = hits / np.maximum(hits + false_alarms, 1)
        recall = hits / positives
        if self.kind == "f1":
            return 2 * hits / (hits + false_alarms + positives), True
        if self.kind == "cost":
            return -(self.false_alarm * false_alarms + self.miss * (positives - hits)), True
        wanted, other = (precision, recall) if self.kind == "precision" else (recall, precision)
        enough = wanted >= self.level - 1e-9
        return (np.where(enough, other, -1.0), True) if enough.any() else (wanted, False)


def parse_aim(text: str) -> Aim:
    """Parse an aim such as ``precision=0.9``; raises `UsageError`."""
    kind, equals, value = text.partition("=")
    if kind not in ("f1", "precision", "recall", "cost"):
        hint = did_you_mean(kind, ("f1", "precision", "recall", "cost"))
        raise UsageError(f"--aim {text}: no such aim{hint}; use {AIMS}")
    wrong = UsageError(f"--aim {text}: use {AIMS}")
    if kind == "f1":
        if equals:
            raise wrong
        return Aim("f1")
    try:
        numbers = [float(part) for part in value.split(":")]
    except ValueError:
        raise wrong from None
    if kind == "cost":
        if len(numbers) != 2 or not all(0 < number < math.inf for number in numbers):
            raise wrong
        return Aim("cost", false_alarm=numbers[0], miss=numbers[1])
    if len(numbers) != 1 or not 0 < numbers[0] <= 1:
        raise wrong
    return Aim(kind, numbers[0])
