"""Trackers see what the run's own log says: TensorBoard's files, and fakes of the libraries."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from making import train

from mltr.runs.folder import RunFolder
from mltr.training.tracking import Tracking


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class Wandb(types.ModuleType):
    """What accelerate asks of wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.starts: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = 0
        self.fails = ""
        self.config = types.SimpleNamespace(
            update=lambda values, allow_val_change: self.settings.update(values)
        )

    def init(self, **arguments: Any) -> Any:
        if self.fails == "init":
            raise RuntimeError("api_key not configured")
        self.starts.append(arguments)
        own = arguments["id"] or "first"
        return types.SimpleNamespace(id=own, log=self.log, finish=self.finish)

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails == "log":
            raise RuntimeError("no network")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    @staticmethod
    def Image(pixels: Any) -> Any:  # noqa: N802
        return "image", pixels.shape[2]


class Mlflow(types.ModuleType):
    """What accelerate asks of MLflow."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        limits = types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        self.utils = types.SimpleNamespace(validation=limits)
        self.starts: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.pictures: list[str] = []
        self.ended = 0

    def search_experiments(self, filter_string: str) -> list[Any]:
        return []

    def create_experiment(self, name: str, **_: Any) -> str:
        return name

    def start_run(self, **arguments: Any) -> Any:
        self.starts.append(arguments)
        own = types.SimpleNamespace(run_id=arguments["run_id"] or "first")
        return types.SimpleNamespace(info=own)

    def log_params(self, values: dict[str, Any]) -> None:
        changed = [key for key in values if self.settings.get(key, values[key]) != values[key]]
        if changed:
            raise ValueError(f"Changing param values is not allowed: {changed}")
        self.settings |= values

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def log_image(self, pixels: Any, artifact_file: str) -> None:
        self.pictures.append(artifact_file)

    def end_run(self) -> None:
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    module = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def check_rows(rows: list[tuple[int, dict[str, Any]]], run: Path) -> None:
    own = logged(run)
    assert [step for step, _ in rows] == [row.pop("epoch") for row in own]
    assert [values for _, values in rows] == own


def test_tensorboard_has_the_figures_and_a_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path / "run") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    own = logged(tmp_path / "run")
    assert set(events.Tags()["scalars"]) == set(own[0]) - {"epoch"}
    for name in ("train_loss", "val_map"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in own]
    assert events.Images("validation")[0].step == 2


def test_wandb_has_them_and_finds_the_run_again(wandb: Wandb, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "--train.tracker=wandb") == 0
    assert [(start["project"], start["name"], start["id"]) for start in wandb.starts] == [
        ("mltr", "run", None)
    ]
    *rows, (last, picture) = wandb.rows
    check_rows(rows, run)
    assert (last, picture) == (2, {"validation": [("image", 3)]})
    assert wandb.settings["train.tracker"] == "wandb" and wandb.settings["train.batch_size"] == 16
    assert wandb.finished == 1
    assert not (run / "tensorboard").exists()
    with Tracking("wandb", RunFolder(run)).begun({}):
        assert wandb.starts[1]["id"] == "first" and wandb.starts[1]["resume"] == "allow"
    assert train(run, "--train.tracker=wandb", "--overwrite", epochs=1) == 0
    assert wandb.starts[2]["id"] is None  # another run


def test_mlflow_has_them_and_finds_the_run_again(mlflow: Mlflow, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "--train.tracker=mlflow") == 0
    check_rows(mlflow.rows, run)
    assert mlflow.settings["train.epochs"] == 2
    assert mlflow.pictures == ["validation.png"] and mlflow.ended == 1
    assert [(s["experiment_id"], s["run_name"]) for s in mlflow.starts] == [("mltr", "run")]
    with Tracking("mlflow", RunFolder(run)).begun({}):
        assert mlflow.starts[1]["run_id"] == "first"
    with Tracking("mlflow", RunFolder(run)).begun({"data": {"root": "elsewhere"}}):
        assert mlflow.settings["data.root"] != "elsewhere"  # resumed with what may change


def test_a_tracker_that_fails(
    wandb: Wandb, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    wandb.fails = "init"
    assert train(tmp_path / "run", "--train.tracker=wandb", epochs=1) == 1
    assert "error: train.tracker wandb: api_key not configured" in capsys.readouterr().err
    wandb.fails = "log"
    assert train(tmp_path / "other", "--train.tracker=wandb", epochs=1) == 0
    assert "going on, although: train.tracker wandb: no network" in caplog.text
    assert (tmp_path / "other" / "metrics.json").is_file()


def test_none_and_what_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "--train.tracker=none", epochs=1) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert train(tmp_path / "other", "--train.tracker=wandb", epochs=1) == 2
    assert "pip install 'mltr[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_real_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train(tmp_path / "run", "--train.tracker=mlflow") == 0
    own = json.loads((tmp_path / "run" / "tracker.json").read_text())["id"]
    client = library.MlflowClient()
    history = client.get_metric_history(own, "val_map")
    assert [(each.step, each.value) for each in history] == [
        (row["epoch"], row["val_map"]) for row in logged(tmp_path / "run")
    ]
    assert [each.path for each in client.list_artifacts(own)] == ["validation.png"]


def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert train(tmp_path / "run", "--train.tracker=wandb", epochs=1) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
