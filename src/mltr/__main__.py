"""``python -m mltr`` is ``mltr``."""

import sys

from mltr.cli import main

sys.exit(main())
