"""Runs that were interrupted go on as if nothing had happened, and can be used meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from making import TINY, train, write_image, write_photos
from trained import checkpoints, interrupt_at, progress, same_weights, train_photos

from mltr.cli import main
from mltr.training import step, trainer


def test_a_resumed_run_ends_as_the_uninterrupted_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of an epoch; the final weights are equal to the bit."""
    run = tmp_path / "run"
    interrupt_at(monkeypatch, 4)  # of 3 an epoch
    assert train(run) == 130
    assert not (run / "metrics.json").exists()
    monkeypatch.undo()
    assert train(run, "--resume") == 0
    assert same_weights(run, finished)
    assert train(run, "--resume") == 2  # finished: nothing to resume


def test_a_resumed_run_goes_on_with_images_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 16 to 32 pixels in the midst of the third epoch, with batches drawn ahead."""
    options = ("--train.min_size=16", "--data.workers=1")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, *options, epochs=3) == 0
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["image_size"] for row in rows] == [16, 16, 32]
    interrupt_at(monkeypatch, 7)  # of 3 an epoch
    assert train(run, *options, epochs=3) == 130
    monkeypatch.undo()
    assert train(run, "--resume", *options, epochs=3) == 0
    assert same_weights(run, whole)


def test_after_ctrl_c_a_run_can_be_used(tmp_path: Path, monkeypatch, caplog) -> None:
    """In the third epoch: the weights are those of the best of two."""
    run = tmp_path / "run"
    caplog.set_level("INFO", "mltr")
    interrupt_at(monkeypatch, 7)
    assert train(run, epochs=3) == 130
    monkeypatch.undo()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    scores = {(row["epoch"], key): row[key] for row in rows for key in ("val_map", "val_map_ema")}
    epoch, kind = max(scores, key=scores.__getitem__)
    assert len(rows) == 2
    assert f"the run can be used as it is, with its weights after epoch {epoch}" in caplog.text
    assert f"next: mltr evaluate {run}" in caplog.text
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(run), "--split", "val", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["map"] == pytest.approx(scores[epoch, kind], abs=1e-6)
    photo = write_image(tmp_path / "photo.png")
    assert main(["predict", str(run), str(photo), "--out", str(tmp_path / "tags.csv")]) == 0
    assert train(run, "--resume", epochs=3) == 0


def test_ctrl_c_before_the_first_validation_says_that_there_is_nothing_yet(
    tmp_path: Path, monkeypatch, caplog, capsys
) -> None:
    interrupt_at(monkeypatch, 2)
    assert train(tmp_path / "run") == 130
    assert "no epoch has been validated yet" in caplog.text
    assert main(["evaluate", str(tmp_path / "run")]) == 1
    assert "stopped by Ctrl-C after a validation" in capsys.readouterr().err


def test_a_killed_run_resumes_exactly_when_accumulation_does_not_divide_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 batches an epoch, 2 to a step: the second step of each epoch has a single batch."""
    option = "--train.accumulation=2"
    assert train(tmp_path / "whole", option) == 0
    assert progress(tmp_path / "whole")["step"] == 4
    original = trainer.Trainer.train_epoch

    def fail_in_the_second_epoch(self: trainer.Trainer) -> Iterator[step.Wishes]:
        if self.run.progress.epoch == 1:
            raise RuntimeError("killed")
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "train_epoch", fail_in_the_second_epoch)
    assert train(tmp_path / "killed", option) == 1
    monkeypatch.undo()
    assert train(tmp_path / "killed", option, "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


def test_ctrl_c_during_the_last_validation_stops_too(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original = tmp_path / "run", trainer.Trainer._validate

    def interrupt(self: trainer.Trainer) -> dict[str, float]:
        if self.run.progress.epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(trainer.Trainer, "_validate", interrupt)
    assert train(run) == 130
    assert not (run / "metrics.json").exists()
    monkeypatch.undo()
    assert train(run, "--resume") == 0
    assert same_weights(run, finished)


def test_ctrl_c_saves_and_says_how_to_go_on_once(tmp_path: Path) -> None:
    """A terminal sends it to the whole process group, of which the workers are."""
    command = [sys.executable, "-m", "mltr", "train", "scenes_nano", "--out", "run", *TINY,
               "--train.epochs=500", "--data.workers=1"]  # fmt: skip
    short = tempfile.TemporaryDirectory(dir="/tmp")  # workers share memory by sockets in it
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": short.name},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "run"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    assert list(Path(short.name).glob("pymp-*"))
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert messages.count("interrupted:") == 1
    assert "resume with: mltr train run/config.yaml --out run --resume" in messages
    assert "Traceback" not in messages
    assert not list(Path(short.name).glob("pymp-*"))
    short.cleanup()


def test_patience_that_ended_a_run_still_ends_it_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--train.patience=1", "--train.lr=1e-12")
    monkeypatch.setattr(trainer.Trainer, "finish", lambda self, quiet: {})
    assert train(tmp_path / "run", *options, epochs=9) == 0
    before = (tmp_path / "run" / "log.jsonl").read_text()
    monkeypatch.undo()
    assert train(tmp_path / "run", *options, "--resume", epochs=9) == 0
    assert (tmp_path / "run" / "log.jsonl").read_text() == before


def test_other_images_do_not_resume(tmp_path: Path, capsys, monkeypatch) -> None:
    folder = write_photos(tmp_path / "photos")
    monkeypatch.setattr(trainer.Trainer, "finish", lambda self, quiet: {})
    assert train_photos(folder, tmp_path / "run") == 0
    text = (folder / "labels.csv").read_text()
    write_image(folder / "new.png", (40, 30))
    (folder / "labels.csv").write_text(f"{text}\nnew.png,1,0")
    assert train_photos(folder, tmp_path / "run", "--resume") == 1
    assert "was started on other" in capsys.readouterr().err


def test_ten_epochs_of_photos_do_not_warm_up_for_five(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    options = [a for a in TINY if "scenes" not in a and "batch_size" not in a]
    command = ["train", "scratch", "--data.root", str(folder), "--out", str(tmp_path / "run")]
    options += ["--train.epochs=10", "--train.batch_size=4", "--train.eval_every=10"]
    assert main([*command, *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[0]["lr"] > 0.99e-3  # the full rate, at the end of the first epoch
    assert rows[4]["lr"] < 0.7e-3


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, monkeypatch) -> None:
    """It says its warm-up in epochs."""
    monkeypatch.setattr(trainer.Trainer, "finish", lambda self, quiet: {})
    assert train(tmp_path / "run", epochs=8) == 0
    monkeypatch.undo()
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("warmup: 0.125", "warmup_epochs: 1.0"))
    assert path.read_text() != text
    assert train(tmp_path / "run", "--resume", epochs=8) == 0


def test_a_run_keeps_its_own_split(tmp_path: Path, capsys, monkeypatch) -> None:
    """As if an earlier version had divided the same photos otherwise."""
    folder = write_photos(tmp_path / "photos")
    monkeypatch.setattr(trainer.Trainer, "finish", lambda self, quiet: {})
    assert train_photos(folder, tmp_path / "run") == 0
    monkeypatch.undo()
    path = tmp_path / "run" / "splits.json"
    splits = json.loads(path.read_text())
    del splits["label_sums"], splits["file_sizes"]  # which earlier versions didn't write
    splits["train"][3], splits["test"][2] = splits["test"][2], splits["train"][3]
    splits["test"].append(splits["val"].pop())
    path.write_text(json.dumps(splits))
    assert train_photos(folder, tmp_path / "run", "--resume") == 0
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        assert saved["images"].tolist() == splits["test"]
    (tmp_path / "run" / "predictions.npz").unlink()
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(out)]) == 0
    assert json.loads(out.read_text())["images"] == len(splits["test"]) == 9


def test_another_recipe_does_not_resume(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(trainer.Trainer, "finish", lambda self, quiet: {})
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "run", "--resume", "--train.lr=0.5") == 2
    assert "train.lr was" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path: Path, capsys) -> None:
    assert train(tmp_path / "nowhere", "--resume") == 1
    assert "no checkpoint to resume" in capsys.readouterr().err
