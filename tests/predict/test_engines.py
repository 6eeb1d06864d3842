"""Engines for the same network: the same probabilities, whichever runs it, and the choice."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import save_untrained, write_image
from predicting import rows_of
from serving import COLOURS, save_tiny_bundle

import mltr
from mltr.cli import main
from mltr.data.preprocess import Pixels, Preprocess
from mltr.errors import MltrError, UsageError
from mltr.predict import engines
from mltr.predict.engines import Choosing
from mltr.predict.openvino import is_installed
from mltr.predict.predictor import Floats

SIDE = 8
PHOTOS = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), np.uint8)


# The choice, among networks that anyone can compute by hand.


class Engine:
    """Logits are 10 x (red, green, blue) - 5, plus an error, after some time for each image."""

    fingerprint = "colours"
    takes_pixels = True

    def __init__(self, seconds: float, error: float = 0.0) -> None:
        self.seconds, self.error, self.seen = seconds, error, 0

    def __call__(self, images: Pixels) -> Floats:
        self.seen += len(images)
        time.sleep(self.seconds * len(images))
        return images.mean(axis=(1, 2)).astype(np.float32) / 255 * 10 - 5 + np.float32(self.error)


def choosing(own: Engine, left: float | None, **others: Callable[[], Any]) -> Choosing:
    found = Choosing(own, Preprocess(SIDE), None, others)
    found.images_left = lambda: left
    return found


def use(network: Choosing, batches: int) -> None:
    """Send batches through, and check what comes back."""
    for _ in range(batches):
        np.testing.assert_allclose(network(PHOTOS), Engine(0)(PHOTOS), atol=0.2)


def test_the_fastest_that_agrees_is_taken() -> None:
    own, faster, wrong, slower = Engine(1e-3), Engine(2e-4, 0.02), Engine(0, 2), Engine(2e-3)
    network = choosing(
        own, math.inf, wrong=lambda: wrong, slower=lambda: slower, faster=lambda: faster
    )
    use(network, 3)  # two with the photos of the trial, and the one at which it is held
    assert own.seen == (3 + 1) * len(PHOTOS)  # once more to be timed
    for engine in (faster, wrong, slower):
        assert engine.seen >= engines.TRIAL_IMAGES
    seen = faster.seen
    use(network, 2)
    assert (own.seen, faster.seen) == (4 * len(PHOTOS), seen + 2 * len(PHOTOS))
    assert network.fingerprint == own.fingerprint


def test_an_engine_as_fast_as_the_own_is_not_taken() -> None:
    own, other = Engine(4e-3), Engine(4e-3)  # long beside a busy machine's delays
    network = choosing(own, math.inf, other=lambda: other)
    use(network, 4)
    assert own.seen == (4 + 1) * len(PHOTOS)


@pytest.mark.parametrize("left", [0, 1000, None])
def test_a_short_job_has_no_trial(left: float | None) -> None:
    def fail() -> Any:
        raise AssertionError("made for a short job")

    use(choosing(Engine(1e-4), left, other=fail), 8)


def test_a_job_of_unknown_length_has_one_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LONG_S", 0.3)
    own, other = Engine(1e-3), Engine(0)
    use(choosing(own, None, other=lambda: other), 12)
    assert 0.3 / 1e-3 <= own.seen + len(PHOTOS) < 12 * len(PHOTOS)


@pytest.mark.parametrize(("left", "is_tried"), [(3000, True), (800, False)])
def test_a_trial_takes_less_than_the_job(
    left: float, is_tried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 photos of a trial, and 32 once more, by two engines: 192."""
    monkeypatch.setattr(engines, "LONG_S", 0.1)
    monkeypatch.setattr(engines, "TRIALS", 10)
    other = Engine(0)
    use(choosing(Engine(1e-3), left, other=lambda: other), 4)
    assert bool(other.seen) == is_tried


def test_nobody_waits_for_a_long_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LONG_S", 0.05)
    monkeypatch.setattr(engines, "PAUSE_S", 0.1)
    other = Engine(0)
    use(choosing(Engine(1e-3), None, other=lambda: other), 6)
    assert not other.seen


def test_an_engine_that_cannot_be_made_or_fails_is_passed_over() -> None:
    def absent() -> Any:
        raise MltrError("not here")

    def failing(images: Pixels) -> Floats:
        raise MltrError("no memory")

    own, other = Engine(1e-3), Engine(0)
    network = choosing(own, math.inf, absent=absent, failing=lambda: failing, other=lambda: other)
    use(network, 5)
    assert own.seen == (3 + 1) * len(PHOTOS)


def test_threads_share_one_trial() -> None:
    made = []

    def make() -> Engine:
        made.append(1)
        return Engine(0)

    network = choosing(Engine(1e-3), math.inf, other=make)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(network, [PHOTOS] * 16))
    assert len(made) == 1
    for logits in found:
        np.testing.assert_allclose(logits, Engine(0)(PHOTOS))


# Real engines.


def need_openvino() -> None:
    """Skip without OpenVINO, which isn't imported here: it would tell its makers."""
    if not is_installed():
        pytest.skip("needs OpenVINO")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        write_image(folder / f"{number}.png", (40, 30))
    return folder


@pytest.fixture(scope="module")
def onnx_file(run: Path, photos: Path) -> Path:
    pytest.importorskip("onnxscript")
    assert main(["export", str(run), "--images", str(photos)]) == 0
    return run / "model.onnx"


def logits_of(path: Path, engine: str | None, *counts: int) -> list[Floats]:
    """Return the logits of as many images, for each of the counts."""
    predictor = mltr.load(path, "cpu", 3, engine=engine)
    side = predictor.preprocess.image_size
    return [
        predictor.logits(
            np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)
        )
        for count in counts
    ]


def test_openvino_computes_what_torch_does(
    run: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_openvino()
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.05)):
        monkeypatch.setenv("MLTR_PRECISION", precision)
        expected = logits_of(run, None, 3, 1)
        for path in (run, onnx_file):
            for found, wanted in zip(logits_of(path, "openvino", 3, 1), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=tolerance)


@pytest.mark.parametrize(
    "overrides",
    [{"image_size": 64}, {"image_size": 192, "window_size": 6, "depths": (0, 0, 1, 0)}],
    ids=["convolutions", "projections between large windows"],
)
def test_openvino_computes_int8_as_onnxruntime_does(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    need_openvino()
    pytest.importorskip("onnxscript")
    for number in range(16):
        write_image(tmp_path / "photos" / f"{number}.png", (4, 4))
    side = Preprocess(overrides["image_size"])
    run = save_untrained(tmp_path / "run", COLOURS, overrides, sharpness=10, preprocess=side)
    command = ["export", str(run), "--precision", "int8", "--images", str(tmp_path / "photos")]
    assert main(command) == 0
    path = run / "model.int8.onnx"
    of_each = [  # a full batch, more, and one
        logits_of(*given, 3, 4, 1) for given in ((run, "torch"), (path, "onnx"), (path, "openvino"))
    ]
    for exact, expected, found in zip(*of_each, strict=True):
        error = np.abs(expected - exact).mean()
        assert error < 0.2 * np.abs(exact).mean()
        assert np.abs(found - exact).mean() < 1.5 * error


def test_signals_are_survived_once_networks_are_gone(run: Path) -> None:
    """In a process of its own, which OpenVINO with a core for each network would end."""
    need_openvino()
    code = (
        "import gc, os, signal, mltr\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('received'))\n"
        "for _ in range(2):\n"
        f"    tagger = mltr.load({str(run)!r}, engine='openvino')\n"
        "del tagger\n"
        "gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert found.stdout == b"received\n"


def test_openvino_needs_neither_torch_nor_onnxruntime(onnx_file: Path, photos: Path) -> None:
    need_openvino()
    code = (
        "import sys, mltr\n"
        f"found = mltr.load({str(onnx_file)!r}, engine='openvino')({str(photos / '0.png')!r})\n"
        "assert found.classes == ('red', 'green', 'blue')\n"
        "assert not {'torch', 'onnxruntime', 'openvino_telemetry.main'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_keeps_its_heat_maps(run: Path, onnx_file: Path) -> None:
    need_openvino()
    assert mltr.load(run, engine="openvino").model is not None
    assert mltr.load(run, engine="auto").model is not None
    with pytest.raises(UsageError, match="an exported network can only predict"):
        _ = mltr.load(onnx_file, engine="openvino").model


def test_rows_are_the_same_and_done_for_every_engine(
    run: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    need_openvino()
    out = tmp_path / "tags.csv"
    command = ["predict", str(run), str(photos), "--out", str(out), "--engine"]
    assert main([*command, "torch"]) == 0
    rows = rows_of(out)
    assert main([*command, "openvino"]) == 0
    assert "6 of them done before" in capsys.readouterr().err
    assert rows_of(out) == rows
    assert main([*command, "openvino", "--overwrite"]) == 0
    for row, expected in zip(rows_of(out), rows, strict=True):
        assert row["path"] == expected["path"]
        assert [float(row[c]) for c in ("red", "green", "blue")] == pytest.approx(
            [float(expected[c]) for c in ("red", "green", "blue")], abs=0.02
        )


def test_the_command_changes_its_engine(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """By measurement, on this machine's own engines: whichever wins, the rows stay."""
    monkeypatch.setattr(engines, "LONG_S", 0.0)
    monkeypatch.setattr(engines, "TRIALS", 0.0)
    monkeypatch.setattr(engines, "TRIAL_IMAGES", 2)
    monkeypatch.setattr(engines, "GAIN", 1e-9)  # any
    out = tmp_path / "tags.csv"
    command = ["predict", str(run), str(photos), "--out", str(out), "--batch-size", "1"]
    with caplog.at_level("INFO"):
        assert main(command) == 0
    assert "runs the network from here on" in caplog.text or not is_installed()
    expected = mltr.load(run)(sorted(photos.iterdir()))
    for row, prediction in zip(rows_of(out), expected, strict=True):
        found = [float(row[c]) for c in ("red", "green", "blue")]
        assert found == pytest.approx(prediction.probs.tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("name", "engine", "told"),
    [
        ("run", "onnx", "write one by `mltr export RUN`"),
        ("onnx", "torch", "use the run, or --engine onnx"),
    ],
)
def test_an_engine_that_cannot_run_it_is_reported(
    run: Path, onnx_file: Path, photos: Path, capsys: Any, name: str, engine: str, told: str
) -> None:
    path = {"run": run, "onnx": onnx_file}[name]
    assert main(["predict", str(path), str(photos), "--engine", engine]) == 2
    assert told in capsys.readouterr().err


def test_what_is_not_installed_is_reported(
    run: Path, photos: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["predict", str(run), str(photos), "--engine", "openvino"]) == 2
    assert "pip install 'mltr[openvino]'" in capsys.readouterr().err


def test_an_unknown_engine_is_reported(run: Path) -> None:
    with pytest.raises(UsageError, match="must be one of auto, torch, onnx, openvino"):
        mltr.load(run, engine="tensorrt")


def test_openvino_is_for_the_cpu(run: Path) -> None:
    with pytest.raises(UsageError, match="leave out --device"):
        mltr.load(run, "cuda", engine="openvino")


def test_a_file_that_openvino_cannot_read_is_reported(tmp_path: Path, capfd: Any) -> None:
    need_openvino()
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network" * 20)
    with pytest.raises(MltrError, match=r"model\.onnx can't be run by OpenVINO: .") as caught:
        mltr.load(path, engine="openvino")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
