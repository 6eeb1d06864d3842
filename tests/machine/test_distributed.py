"""Several processes take the same steps as one, count every image once, and survive a loss."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from making import ENVIRONMENT, TORCHRUN
from safetensors.torch import load_file

from mltr.cli import main

pytestmark = pytest.mark.timeout(900)  # each launch loads torch in every process

# One batch per epoch, so that each line of the log is a step; a deterministic network.
STEPS = [
    "--data.scenes.train=24", "--data.scenes.val=7", "--data.scenes.test=401",
    "--data.scenes.side=32", "--data.base_size=32", "--data.cache=false", "--data.workers=0",
    "--model.image_size=32", "--model.overrides.depths=[0,1]", "--model.drop_path=0",
    "--model.overrides.conv_depths=[0,0]", "--model.overrides.conv_stem=false",
    "--train.batch_size=24", "--train.precision=fp32", "--train.ema_decay=0.9",
    "--train.epochs=20", "--train.eval_every=10", "--train.min_size=0",
]  # fmt: skip


def start(processes: int, out: Path, *options: str, launch: tuple[str, ...] = ()):
    """Start a training under torchrun; `launch` holds options of torchrun."""
    command = [*TORCHRUN, str(processes), *launch, "-m", "mltr", "train", "scenes_nano",
               "--out", str(out), *STEPS, *options]  # fmt: skip
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def train(processes: int, out: Path, *options: str) -> str:
    process = start(processes, out, *options)
    _, messages = process.communicate(timeout=240)
    assert process.returncode == 0, messages
    return messages


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path, number: int) -> None:
    """Wait until the run has a checkpoint of this epoch or a later one."""
    deadline = time.monotonic() + 120
    while not any(
        path.name >= f"epoch-{number:04d}" for path in (run / "checkpoint").glob("epoch-*")
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


def losses(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def figures(run: Path) -> dict[str, float]:
    content = json.loads((run / "metrics.json").read_text())
    return {key: content[key] for key in ("map", "map_voc2010", "of1", "cf1", "images")}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", "scenes_nano", "--out", str(run), *STEPS]) == 0
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "two"
    messages = train(2, run)
    assert messages.count("images: 24 train") == 1  # only rank 0 logs
    assert messages.count("run folder:") == 2  # at the start and at the end
    return run


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(one: Path, two: Path) -> None:
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--loss.reduction=sum",), ("--train.batch_size=7",)])
def test_three_processes_with_unequal_shares_take_the_steps_of_one(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """24 or 7 images per batch over 3 processes; summed or mean loss; two batches per step."""
    options = (*options, "--train.accumulation=2", "--train.epochs=4", "--data.scenes.test=10")
    command = ["train", "scenes_nano", "--out", str(tmp_path / "one"), *STEPS, *options]
    assert main(command) == 0
    train(3, tmp_path / "three", *options)
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_backbone_with_parts_that_its_head_does_not_use(tmp_path: Path) -> None:
    """MobileNetV4's last convolution stands behind its pooling."""
    options = (
        "--model.name=timm/mobilenetv4_conv_small", "--model.head=csra", "--model.overrides={}",
        "--train.epochs=3", "--data.scenes.test=10",
    )  # fmt: skip
    train(2, tmp_path / "two", *options)
    assert len(losses(tmp_path / "two")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_student_of_two_processes_learns_the_same(
    one: Path, tmp_path: Path, sharding: str
) -> None:
    teaching = (f"--train.teacher={one}",)
    options = (*teaching, "--train.epochs=4", "--data.scenes.test=10")
    command = ["train", "scenes_nano", "--out", str(tmp_path / "one"), *STEPS, *options]
    assert main(command) == 0
    train(2, tmp_path / "two", *options, f"--train.sharding={sharding}")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    plain, student = (load_file(run / "model.safetensors") for run in (one, tmp_path / "two"))
    assert student.keys() == plain.keys()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_every_image_counts_once_in_the_figures(one: Path, processes: int) -> None:
    """401 images over 2 and 3 processes in batches of 24: the last batch has 17."""
    before = figures(one)
    assert before["images"] == 401
    (one / "metrics.json").unlink()
    train(processes, one, "--resume")  # only the test is left to do
    assert figures(one) == pytest.approx(before, abs=1e-9)


@pytest.mark.slow
def test_a_divided_network_learns_the_same_and_becomes_an_ordinary_bundle(
    one: Path, tmp_path: Path
) -> None:
    run = tmp_path / "divided"
    train(2, run, "--train.sharding=fsdp")
    assert losses(run) == pytest.approx(losses(one), abs=1e-5)
    before, whole = load_file(run / "model.safetensors"), load_file(one / "model.safetensors")
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in whole.items()}
    parts = sorted((run / "checkpoint").glob("epoch-*"))[-1].glob("part-*.pt")
    assert len(list(parts)) == 2
    # One process resumes from the shards of two and writes the same bundle.
    (run / "metrics.json").unlink()
    (run / "model.safetensors").unlink()
    command = ["train", "scenes_nano", "--out", str(run), *STEPS, "--train.sharding=fsdp"]
    assert main([*command, "--resume"]) == 0
    after = load_file(run / "model.safetensors")
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_job_finishes(two: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(2, run, "--auto-resume", launch=("--max-restarts=1",))
    wait_for_checkpoint(process, run, 3)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    _, messages = process.communicate(timeout=400)
    assert process.returncode == 0, messages
    assert losses(run) == losses(two)
    again, whole = (load_file(path / "model.safetensors") for path in (run, two))
    assert all(again[name].equal(whole[name]) for name in whole)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_the_same_step(two: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(2, run, "--auto-resume")
    wait_for_checkpoint(process, run, 3)
    psutil.Process(process.pid).children()[1].send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "exitcode" in messages.replace(" ", "").lower()
    assert ": 75" in messages
    assert not (run / "metrics.json").exists()
    train(2, run, "--auto-resume")
    assert losses(run) == losses(two)
    train(2, run, "--auto-resume")  # a finished run is no error


@pytest.mark.slow
def test_a_process_that_hangs_is_named(tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(
        "import os, sys, time\n"
        "from mltr.cli import main\n"
        "from mltr.data.loading import ImageDataset\n"
        "get = ImageDataset.__getitem__\n"
        "def hang(self, key):\n"
        "    if os.environ['RANK'] == '2' and key[0] == 3:\n"
        "        time.sleep(600)\n"
        "    return get(self, key)\n"
        "ImageDataset.__getitem__ = hang\n"
        "sys.exit(main())\n"
    )
    command = [*TORCHRUN, "3", str(script), "train", "scenes_nano", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *STEPS, "--train.timeout_s=8"], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode != 0
    assert "mltr: error: process 0 of 3 waited" in done.stderr
    assert "process 2 hangs or has ended" in done.stderr


def test_fewer_images_than_processes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mltr.machine.processes import Processes
    from mltr.training import run

    monkeypatch.setattr(run, "join_processes", lambda _: Processes(count=32))
    assert main(["train", "scenes_nano", "--out", str(tmp_path / "run"), *STEPS]) == 2
    assert "24 images a batch can't be shared by 32 processes" in capsys.readouterr().err


def test_processes_need_a_folder_that_all_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "scenes_nano", *STEPS]) == 2
    assert "give the run folder with --out" in capsys.readouterr().err
