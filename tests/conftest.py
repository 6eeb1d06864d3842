"""Fixtures and options for all tests."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from making import TINY_ON_PHOTOS, write_photos

from mltr.cli import main

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle", metavar="SEED", help="go through the files in random order (0: a new seed)"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.shuffle == "0":  # drawn before xdist passes it to its processes
        config.option.shuffle = str(random.randrange(1, 10**6))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.shuffle:
        files = sorted({str(item.path) for item in items})
        random.Random(config.option.shuffle).shuffle(files)
        items.sort(key=lambda item: files.index(str(item.path)))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    told = os.environ.get("MLTR_PRECISION", "")
    if told:
        terminalreporter.write_line(f"precision auto was {told}, by MLTR_PRECISION")
    if config.option.shuffle:
        terminalreporter.write_line(f"again in this order: --shuffle {config.option.shuffle}")


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos, annotations and reference numbers outside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data and reference numbers in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def _small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_photos(root / "photos", 20)
    recipe = ["scratch", "--data.root", str(root / "photos"), *TINY_ON_PHOTOS]
    assert main(["train", *recipe, "--out", str(root / "run")]) == 0
    return root


@pytest.fixture
def small_run(_small_run: Path, tmp_path: Path) -> Path:
    """A short run on 20 photos of noise, which are in `photos` beside it."""
    return Path(shutil.copytree(_small_run, tmp_path / "small")) / "run"


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium without background network requests."""
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
    """The network that `predicting.command` uses."""
    from predicting import MeanColour, as_predictor

    network = MeanColour()
    monkeypatch.setattr("mltr.predict.predictor.load", lambda *_: as_predictor(network))
    return network
