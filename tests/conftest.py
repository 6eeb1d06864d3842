"""What every test may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photos, annotations and reference numbers that live beside the project, not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data and reference numbers in {SHARED}")
    return SHARED
