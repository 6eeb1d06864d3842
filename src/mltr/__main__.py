"""``python -m mltr`` is ``mltr``."""

from mltr.cli import console

console()
