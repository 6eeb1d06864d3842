"""A run that tests of training look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(run) == 0
    return run
