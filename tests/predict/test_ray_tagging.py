"""`mltr predict --engine ray`: the same rows, each once, whatever dies on the way."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from making import count_done, write_image
from serving import COLOURS, save_tiny_bundle

from mltr.cli import main
from mltr.predict import on_ray

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def write_many(folder: Path, count: int) -> Path:
    for number in range(count):
        write_image(folder / f"{number:05d}.bmp", seed=number)
    (folder / "00007.bmp").write_bytes(b"no image")
    return folder


class Command:
    """`mltr predict --engine ray` in a process of its own, without a Ray of anyone else's."""

    def __init__(self, *words: object) -> None:
        environment = {name: v for name, v in os.environ.items() if not name.startswith("RAY_")}
        self.process = psutil.Popen(
            [sys.executable, "-m", "mltr", "predict", *map(str, words), "--engine", "ray",
             "--device", "cpu"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def taggers(self, doing: str = "") -> list[psutil.Process]:
        """Return the processes that hold the network, by the titles that Ray gives them."""
        found = []
        for process in self.process.children(recursive=True):
            try:
                if " ".join(process.cmdline()).startswith(f"ray::Tagger{doing}"):
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
        return found

    def wait_for(self, journal: Path, images: int) -> None:
        """Wait until about so many images are noted."""
        while not journal.exists() or count_done(journal) < images:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.1)

    def end(self) -> tuple[int, str]:
        """Return the exit code and stderr; checks that no process is left."""
        offspring = self.process.children(recursive=True) if self.process.poll() is None else []
        out, told = self.process.communicate(timeout=240)
        _, left = psutil.wait_procs(offspring, timeout=30)
        for process in left:
            process.kill()
        assert (out, left, "Traceback" in told) == ("", [], False), told
        return self.process.returncode, told


def plain(bundle: Path, photos: object, out: Path, *options: str) -> Any:
    """Return what the command writes without Ray."""
    command = [sys.executable, "-m", "mltr", "predict", str(bundle), str(photos), "--out", str(out)]
    # The engine of the cluster's processes: a slow machine would try others, which round otherwise.
    command += ["--device", "cpu", "--engine", "torch", *options]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    return pq.read_table(out)


def assert_same(table: Any, expected: Any, classes: tuple[str, ...] = COLOURS) -> None:
    """Compare rows and order; probabilities may differ in what batches of other sizes do."""
    for name in ("path", "labels", "error"):
        assert table[name].to_pylist() == expected[name].to_pylist()
    for name in classes:
        pairs = zip(table[name].to_pylist(), expected[name].to_pylist(), strict=True)
        assert all(a == b or a == pytest.approx(b, abs=1e-5) for a, b in pairs)


def test_parts_come_in_order_whoever_is_first() -> None:
    ray = InThisProcess(random.Random(0))
    cluster = on_ray.Cluster(ray, [Echo(ray), Echo(ray), Echo(ray)], 2)
    parts = [(f"part {k}", [Path(f"{k}-{i}") for i in range(k % 4)]) for k in range(60)]
    found = list(cluster.predict(iter(parts)))
    assert found == [(key, [path.name for path in paths]) for key, paths in parts]
    assert ray.most_ahead <= on_ray.AHEAD * 3


class InThisProcess:
    """As much of Ray as `Cluster.predict` uses; what was asked for ends in random order."""

    def __init__(self, random: random.Random) -> None:
        self.random, self.most_ahead = random, 0

    def wait(self, references: list[Any]) -> tuple[list[Any], list[Any]]:
        self.most_ahead = max(self.most_ahead, len(references))
        return [self.random.choice(references)], []

    def get(self, reference: Any) -> Any:
        return reference.value


class Echo:
    """A process that answers with the names of what it gets."""

    def __init__(self, ray: InThisProcess) -> None:
        self.predict = self

    def remote(self, images: list[Path]) -> Any:
        return type("Reference", (), {"value": [path.name for path in images]})()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_that_are_killed_cost_nothing(bundle: Path, tmp_path: Path) -> None:
    photos, out = write_many(tmp_path / "photos", 5000), tmp_path / "tags.parquet"
    command = Command(bundle, photos, "--out", out, "--replicas", 2, "--batch-size", 8)
    for moment in (300, 1500, 3000):
        command.wait_for(tmp_path / "tags.parquet.journal", moment)
        random.Random(moment).choice(command.taggers()).kill()
    code, told = command.end()
    assert (code, "1 of 5,000 images can't be read" in told) == (1, True), told
    assert_same(pq.read_table(out), plain(bundle, photos, tmp_path / "expected.parquet"))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("views", ["", "mirror,tiles"])
def test_a_trained_run_predicts_the_same_with_and_without(
    small_run: Path, views: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = small_run.parent / "photos", small_run.parent / "tags.parquet"
    options = ["--views", views, "--batch-size", "3"]
    code, told = Command(small_run, photos, "--out", out, *options).end()
    assert code == 0, told
    found = pq.read_table(out)
    expected = plain(small_run, photos, out.with_name("expected.parquet"), *options)
    assert expected.num_rows == 20
    assert_same(found, expected, ("sea", "sunset"))
    # The engine that is chosen by default goes on where Ray has stopped.
    words = ["predict", str(small_run), str(photos), "--out", str(out), "--device", "cpu"]
    assert main([*words, *options]) == 0
    assert "continuing: 20 of 20 images are done" in capsys.readouterr().err
    assert pq.read_table(out) == found


class Begun:
    """A command that has tagged some of its images."""

    def __init__(self, bundle: Path, tmp_path: Path) -> None:
        self.photos = write_many(tmp_path / "photos", 3000)
        self.out = tmp_path / "tags.parquet"
        self._bundle = bundle
        self._words = (bundle, self.photos, "--out", self.out, "--batch-size", 8)
        self.command = Command(*self._words)
        self.command.wait_for(tmp_path / "tags.parquet.journal", 300)

    def goes_on(self) -> None:
        """Give it again, and check that it goes on to the whole output."""
        code, told = Command(*self._words).end()
        assert (code, "continuing: " in told) == (1, True), told
        expected = self.out.with_name("expected.parquet")
        assert_same(pq.read_table(self.out), plain(self._bundle, self.photos, expected))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(bundle: Path, tmp_path: Path, number: int) -> None:
    begun = Begun(bundle, tmp_path)
    begun.command.process.send_signal(number)
    code, told = begun.command.end()
    assert (code, "interrupted after" in told) == (128 + number, True), told
    assert 0 < pq.read_metadata(begun.out).num_rows < 3000
    begun.goes_on()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_itself_it_leaves_nothing_running(bundle: Path, tmp_path: Path) -> None:
    begun = Begun(bundle, tmp_path)
    taggers = begun.command.taggers()
    begun.command.process.kill()
    begun.command.process.communicate()
    _, left = psutil.wait_procs(taggers, timeout=60)
    assert (left, begun.out.exists()) == ([], False)
    begun.goes_on()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_images_that_end_every_process_end_the_run(bundle: Path, tmp_path: Path) -> None:
    photos, out = write_many(tmp_path / "photos", 2000), tmp_path / "tags.parquet"
    command = Command(bundle, photos, "--out", out, "--replicas", 1, "--batch-size", 8)
    killed: set[int] = set()
    command.wait_for(tmp_path / "tags.parquet.journal", 100)
    while command.process.poll() is None:
        for process in command.taggers(".predict"):
            killed.add(process.pid)
            process.kill()
        time.sleep(0.05)
    code, told = command.end()
    assert code == 1 and len(killed) > on_ray.MAX_RETRIES
    assert told.count("\n") == 1 and "mltr: error: on the Ray cluster: " in told


@pytest.mark.slow
def test_names_mean_the_same_on_a_cluster_that_was_started_elsewhere(
    bundle: Path, tmp_path: Path
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    write_image(here / "photos" / "0.png", seed=1)
    write_image(elsewhere / "photos" / "0.png", seed=2)
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", "--port=0", "--num-cpus=1", "--include-dashboard=false"]
    told = subprocess.run(
        start, cwd=elsewhere, env=environment, text=True, capture_output=True, check=True
    ).stdout
    try:
        address = re.search(r"--address='([^']+)'", told)
        assert address is not None, told
        words = ["predict", str(bundle), "photos", "--device", "cpu", "--out"]
        command = [sys.executable, "-m", "mltr", *words]
        subprocess.run([*command, "plain.csv"], cwd=here, check=True, timeout=60)
        subprocess.run(
            [*command, "ray.csv", "--engine", "ray"], cwd=here, check=True, timeout=120,
            env=environment | {"RAY_ADDRESS": address[1]},
        )  # fmt: skip
    finally:
        subprocess.run([ray, "stop", "--force"], env=environment, capture_output=True, check=False)
    assert (here / "ray.csv").read_text() == (here / "plain.csv").read_text()


@pytest.mark.slow
def test_tables_and_their_errors(bundle: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    photos = sorted(write_many(tmp_path / "photos", 40).iterdir())
    table, out = tmp_path / "photos.parquet", tmp_path / "tags.parquet"
    columns = {"path": [p.name for p in photos], "image": [p.read_bytes() for p in photos]}
    pq.write_table(pa.table(columns), table, row_group_size=7)
    code, _ = Command(bundle, table, "--out", out).end()
    assert code == 1
    assert_same(pq.read_table(out), plain(bundle, table, tmp_path / "expected.parquet"))
    code, told = Command(bundle / "nowhere", table, "--out", out).end()
    assert code == 1 and told.startswith("mltr: error: ")
