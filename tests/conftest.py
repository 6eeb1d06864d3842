"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes have the cores among them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photos, annotations and reference numbers that live beside the project, not in it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data and reference numbers in {SHARED}")
    return SHARED


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium, which fetches nothing on its own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield opened
        opened.close()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `predicting.command` predicts with."""
    from predicting import MeanColour, as_predictor

    from mltr.tagging import predict

    network = MeanColour()
    monkeypatch.setattr(predict, "load", lambda *_: as_predictor(network))
    return network
