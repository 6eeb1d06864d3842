"""Going on after anything: killed, preempted, with damaged checkpoints; to the same bits."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from making import TINY, TINY_ON_PHOTOS, train, write_photos
from trained import checkpoints, progress, same_weights

from mltr.cli import main
from mltr.machine.processes import join_processes
from mltr.runs.checkpoints import States
from mltr.weights.bundle import load_bundle, save_bundle

EVERY_STEP = "--train.save_minutes=0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with a checkpoint after every step."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train(run, EVERY_STEP, "--train.keep=100") == 0
    return run


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that seems to have been killed at its very end."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    return tmp_path / "run"


def resume(run: Path, *options: str) -> int:
    return train(run, EVERY_STEP, "--train.keep=100", "--resume", *options)


@pytest.mark.parametrize("kept", [1, 3, 4, 6])
def test_every_checkpoint_leads_to_the_same_weights(
    whole: Path, unfinished: Path, kept: int
) -> None:
    """There are four an epoch: after each of three batches, and after the validation."""
    assert len(checkpoints(unfinished)) == 8
    for path in checkpoints(unfinished)[kept:]:
        shutil.rmtree(path)
    assert resume(unfinished) == 0
    assert same_weights(whole, unfinished)


def test_a_run_goes_on_in_the_precision_that_it_began_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (EVERY_STEP, "--train.keep=100", "--train.precision=auto")
    monkeypatch.setenv("MLTR_PRECISION", "bf16")
    assert train(tmp_path / "whole", *options) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    for path in checkpoints(tmp_path / "run")[3:]:
        shutil.rmtree(path)
    monkeypatch.setenv("MLTR_PRECISION", "fp32")  # as another processor would have it
    assert train(tmp_path / "run", *options, "--resume") == 0
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_the_weights_that_a_run_started_from_may_have_moved(whole: Path, tmp_path: Path) -> None:
    start, moved, run = tmp_path / "start", tmp_path / "moved", tmp_path / "run"
    shutil.copytree(whole, start)
    assert train(run, EVERY_STEP, f"--model.init={start}") == 0
    (run / "metrics.json").unlink()
    start.rename(moved)
    assert train(run, EVERY_STEP, "--resume") == 2
    assert train(run, EVERY_STEP, f"--model.init={moved}", "--resume") == 0


def test_images_are_prepared_as_before(whole: Path, tmp_path: Path, capsys) -> None:
    start, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(whole, start)
    assert train(run, EVERY_STEP, f"--model.init={start}") == 0
    (run / "metrics.json").unlink()
    bundle = load_bundle(start)
    preprocess = replace(bundle.preprocess, mean=(0.4,) * 3)
    model = bundle.config["model"]
    save_bundle(start, model=bundle.model, name=model["name"], overrides=model["overrides"],
                classes=bundle.classes, preprocess=preprocess)  # fmt: skip
    assert train(run, EVERY_STEP, f"--model.init={start}", "--resume") == 1
    assert (
        "images are prepared differently from when it began: mean was [0.0, 0.0, 0.0] and is"
        in capsys.readouterr().err
    )


def test_checkpoints_of_many_epochs_stay_in_order(tmp_path: Path) -> None:
    states = States(tmp_path, join_processes(60))
    numbers = [*range(9_997, 10_003)]
    for number in numbers:
        states.write(f"epoch-{number:04d}-batch-000000", {"number": number})
    states.prune(2)
    assert states.latest() == "epoch-10002-batch-000000"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-10001-batch-000000", "epoch-10002-batch-000000",
    ]  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize("what", ["part-0.pt", "sums.json", "best"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    whole: Path, unfinished: Path, caplog: pytest.LogCaptureFixture, harm, what: str
) -> None:
    latest = checkpoints(unfinished)[-1]
    best = sorted((unfinished / "checkpoint").glob("best-*"))[-1]
    harm(best / "part-0.pt" if what == "best" else latest / what)
    assert resume(unfinished) == 0
    assert "deleted it and going back to the one before" in caplog.text
    assert same_weights(whole, unfinished)


def test_without_an_intact_checkpoint_resuming_fails(unfinished: Path, capsys) -> None:
    for path in checkpoints(unfinished):
        flip(path / "part-0.pt")
    assert resume(unfinished) == 1
    assert "holds no valid checkpoint: start again with --overwrite" in capsys.readouterr().err


def test_the_last_few_checkpoints_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    assert train(tmp_path / "run", EVERY_STEP, "--train.keep=3", epochs=3) == 0
    assert [path.name for path in checkpoints(tmp_path / "run")] == [
        "epoch-0003-batch-000002", "epoch-0003-batch-000003", "epoch-0004-batch-000000",
    ]  # fmt: skip
    best = progress(tmp_path / "run")["best_epoch"]
    assert (tmp_path / "run" / "checkpoint" / f"best-{best + 1:04d}").is_dir()


def test_auto_resume_starts_resumes_and_accepts_a_finished_run(
    whole: Path, unfinished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = (EVERY_STEP, "--train.keep=100", "--auto-resume")
    assert train(unfinished, *options) == 0
    assert same_weights(whole, unfinished)
    caplog.set_level("INFO", "mltr")
    assert train(unfinished, *options) == 0
    assert "is already finished" in caplog.text
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.yaml", "versions.json"):  # killed before its first checkpoint
        shutil.copy(whole / name, begun)
    assert train(begun, *options) == 0
    assert same_weights(whole, begun)


def test_what_changes_no_result_may_change(unfinished: Path) -> None:
    free = ["--train.timeout_s=7200", "--train.save_minutes=5", "--train.keep=3"]
    free.append("--data.max_broken=0.5")
    assert train(unfinished, *free, "--train.threads=1", "--resume") == 0


def test_tables_and_trees_may_move_and_not_change(tmp_path: Path, capsys) -> None:
    table = write_photos(tmp_path / "photos") / "labels.csv"
    tree = tmp_path / "tree.yaml"
    tree.write_text("sunset: sea\n")
    run = tmp_path / "run"
    options = ("--data.root", str(table.parent), *TINY_ON_PHOTOS, "--out", str(run))

    def go_on(labels: Path, tree: Path) -> int:
        (run / "metrics.json").unlink(missing_ok=True)
        places = ("--data.labels", str(labels), "--data.hierarchy", str(tree))
        return main(["train", "scratch", *options, *places, "--auto-resume"])

    assert go_on(table, tree) == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [Path(shutil.move(path, elsewhere / f"my {path.name}")) for path in (table, tree)]
    assert go_on(*moved) == 0
    moved[1].write_text("{}")
    assert go_on(*moved) == 1
    assert "hierarchy" in capsys.readouterr().err


def test_auto_resume_overwrites_no_other_run(unfinished: Path, capsys) -> None:
    assert train(unfinished, "--auto-resume", "--train.lr=0.5") == 2
    assert "train.lr was" in capsys.readouterr().err
    assert train(unfinished) == 2
    message = capsys.readouterr().err
    assert "already holds a run: continue it with `mltr train" in message
    assert "--resume`, replace it" in message
    shutil.rmtree(unfinished / "checkpoint")  # so it can't be continued
    assert train(unfinished, "--auto-resume") == 2
    assert "already holds a run: replace it" in capsys.readouterr().err
    assert train(unfinished, "--auto-resume", "--overwrite") == 2
    assert "can't be combined with --resume or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "log.jsonl", "metrics.json", "predictions.npz"])
def test_what_is_left_of_a_run_is_not_deleted(name: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_text("figures")
    options = [[], ["--auto-resume"]]
    for option in options[: 1 if name == "metrics.json" else 2]:  # by which a run has ended
        assert train(tmp_path, *option) == 2
        assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "figures"


def test_a_checkpoint_that_cannot_be_read_now_is_kept(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    before = checkpoints(unfinished)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("mltr.runs.checkpoints.sha256_of", fail)
        assert resume(unfinished) == 1
    assert "part-0.pt: can't be read (Input/output error)" in capsys.readouterr().err
    assert checkpoints(unfinished) == before


def test_what_was_exported_of_a_deleted_run_is_deleted(unfinished: Path) -> None:
    others = ("model.onnx", "model.int8.onnx", "model.pt2", "mine.onnx")
    for name in others:
        (unfinished / name).write_bytes(b"of before")
    assert train(unfinished, "--overwrite", epochs=1) == 0
    assert [name for name in others if (unfinished / name).exists()] == ["mine.onnx"]


def start(run: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mltr", "train", "scenes_nano", "--out", str(run), *TINY,
               EVERY_STEP, "--auto-resume", *options]  # fmt: skip
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )


def wait_for_new_checkpoint(process: subprocess.Popen[str], run: Path) -> None:
    before = [path.name for path in checkpoints(run)]
    deadline = time.monotonic() + 120
    while [path.name for path in checkpoints(run)] == before and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_sigterm_saves_and_asks_to_be_started_again(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--train.epochs=500")
    wait_for_new_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "interrupted: finishing this step" in messages
    assert "Traceback" not in messages


def fork(run: Path, *options: str) -> int:
    """Train in a child of this process, which needn't load torch again; return its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os._exit(train(run, EVERY_STEP, "--auto-resume", *options, epochs=40))


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_ten_times_a_run_ends_as_if_it_never_was(tmp_path: Path, workers: int) -> None:
    """SIGKILL at random moments: within steps, saves, validations."""
    options = (f"--data.workers={workers}", "--train.eval_every=4")
    assert exit_code(fork(tmp_path / "whole", *options)) == 0
    run, moments = tmp_path / "run", random.Random(workers)
    for _ in range(10):
        before, child = checkpoints(run), fork(run, *options)
        while checkpoints(run) == before:
            time.sleep(0.003)
        time.sleep(moments.uniform(0, 0.6))
        assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it had not ended by itself
        os.kill(child, signal.SIGKILL)
        assert exit_code(child) == -signal.SIGKILL
    assert exit_code(fork(run, *options)) == 0
    assert same_weights(tmp_path / "whole", run)
