"""Fixtures and options for all tests."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything reads them: a test neither fills nor finds what its user has in caches.
_CACHES = tempfile.TemporaryDirectory(prefix="mltr-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHES.name
os.environ["HF_HOME"] = str(Path(_CACHES.name, "huggingface"))

from making import TINY_ON_PHOTOS, write_photos  # noqa: E402

from mltr.cli import main  # noqa: E402

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

DOT = b"\x89PNG\r\n\x1a\n"  #: how the file of a picture begins that no test looks at


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Skip what takes most of a short training's time: drawing its curves, and waiting for disks.

    Tests marked with `pictures` look at what is drawn.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        if item.get_closest_marker("pictures") is None:
            patch.setattr("matplotlib.figure.Figure.savefig", _write_dot)
        return (yield)


def _write_dot(figure: Any, file: Any, **_: Any) -> None:
    if isinstance(file, str | Path):
        Path(file).write_bytes(DOT)
    else:
        file.write(DOT)


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
