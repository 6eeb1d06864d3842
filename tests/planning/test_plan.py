"""`mltr plan`: its figures match independent sources, and its advice works."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from making import write_photos, write_plain
from torch import nn

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data.preprocess import Preprocess
from mltr.network.model import create_model
from mltr.planning.published import public_set
from mltr.planning.workload import measure_step
from mltr.weights.bundle import save_bundle

ROOT = Path(__file__).parents[2]
NANO = ["coco", "--model.name=mltr_nano", "--model.image_size=96"]


def plan(*arguments: str, capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["plan", *arguments, "--json=-"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_a_known_recipe_has_the_documented_figures(capsys) -> None:
    figures = plan("coco", "--gpus=8xH200", capsys=capsys)
    assert figures["network"]["parameters"] == 33_039_086
    # 6.096 G of the plain network, less the savings of two products for four (test_model.py).
    assert figures["network"]["multiply_adds"] == pytest.approx(6.018e9, rel=1e-3)
    images = figures["images"]
    assert images["train"] + images["val"] == 82_081
    assert (images["test"], images["classes"]) == (40_137, 80)
    assert figures["batch"]["steps"] == 40 * (images["train"] // 128)
    # Weights, two moments and the average: four times 132 MB.
    assert figures["memory_gib"]["states"] == pytest.approx(4 * 33_039_086 * 4 / 2**30, rel=0.01)
    assert figures["device_hours"] == pytest.approx(8 * figures["hours"])


def test_hours_scale_with_epochs_images_and_devices(capsys) -> None:
    base = [*NANO, "--images=16500", "--data.val_fraction=0.0001", "--train.stop_epoch=0"]
    large = [*base, "--train.batch_size=2048", "--train.epochs=4", "--gpus=A100-80GB"]
    one = plan(*large, capsys=capsys)["train_hours"]
    twice = plan(*large, "--train.epochs=8", capsys=capsys)["train_hours"]
    assert twice == pytest.approx(2 * one)
    assert plan(*large, "--images=33000", capsys=capsys)["train_hours"] == pytest.approx(2 * one)
    four = plan(*large, "--gpus=4xA100-80GB", "--train.batch_size=8192", capsys=capsys)
    assert four["train_hours"] == pytest.approx(one / 4 / 0.95)


def test_growing_images_take_less_time(capsys) -> None:
    whole = plan(*NANO, "--gpus=L4", capsys=capsys)["train_hours"]
    growing = plan(*NANO, "--gpus=L4", "--train.min_size=48", capsys=capsys)["train_hours"]
    assert whole / 4 < growing < whole


def test_a_frozen_backbone_sees_each_photo_once_for_each_view(capsys) -> None:
    command = ["probe", "--gpus=L4", "--images=18000", "--model.init=", "--train.precision=fp32"]
    frozen = plan(*command, capsys=capsys)
    whole = plan(*command, "--train.freeze=none", "--train.views=1", capsys=capsys)
    seen = 2 * 16_200 + 1800 + 3600
    hours = seen / frozen["speed"]["val_images_per_s"] / 3600
    assert frozen["hours"] == pytest.approx(hours)
    assert frozen["memory_gib"]["step"] < 0.2 * whole["memory_gib"]["step"]
    assert main(["plan", *command]) == 0
    assert "Frozen backbone" in capsys.readouterr().out


def test_a_run_by_time_takes_that_time(capsys) -> None:
    by_epochs = plan(*NANO, "--gpus=L4", capsys=capsys)
    minutes = 60 * by_epochs["hours"] / 4
    by_time = plan(*NANO, "--gpus=L4", f"--train.minutes={minutes}", "--train.stop_epoch=0",
                   capsys=capsys)  # fmt: skip
    assert by_time["hours"] == pytest.approx(by_epochs["hours"] / 4)
    assert by_time["batch"]["epochs"] <= by_epochs["batch"]["epochs"]


def test_advice_fits_when_it_is_followed(capsys) -> None:
    """The options work as printed, and keep the number of images per optimiser step."""
    command = [*NANO, "--gpus=A10", "--train.precision=fp32", "--train.batch_size=16384"]
    figures = plan(*command, capsys=capsys)
    assert not figures["memory_gib"]["fits"]
    assert len(figures["advice"]) >= 3
    for found in figures["advice"][:3]:
        options = [word for option in found["options"] for word in option.split()]
        followed = plan(*command, *options, capsys=capsys)
        assert followed["memory_gib"]["fits"], options
        assert followed["memory_gib"]["total"] == found["estimate"]["memory_gib"]["total"]
        assert followed["batch"]["all"] * followed["batch"]["accumulation"] == 16384
    capsys.readouterr()
    assert main(["plan", *command]) == 0
    printed = capsys.readouterr().out
    assert "doesn't fit" in printed
    assert figures["advice"][0]["options"][0] in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco", "--gpus=8xH20"], "no device 'H20'; did you mean 'H200'?"),
        (["coco", "--gpus=8xA100"], "did you mean 'A100-"),
        (["coco", "--gpus=0xH200"], "at least one"),
        (["coco", "--gpus=2xcpu"], "this machine counts as one"),
        (["coco", "--gpus=256xH200"], "128 images a batch can't be shared by 256 processes"),
        (["coco", "--gpus=H200", "--images=0"], "--images 0 must be positive"),
        (["scratch", "--gpus=H200"], "the number of images is unknown: give it with --images N"),
        (["coco", "--gpus=H200", "--model.name=mltr_sx"], "did you mean 'mltr_s'?"),
        (["coco", "--gpus=H200", "--train.epoch=3"], "did you mean '--train.epochs'?"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments: list[str], message: str, capsys) -> None:
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_own_photos_are_counted_or_reported(tmp_path: Path, capsys) -> None:
    figures = plan("scratch", "--gpus=L4", "--images=1000", "--classes=7", capsys=capsys)
    assert figures["images"] == {
        "train": 900, "val": 100, "test": 200, "classes": 7, "disk_gb": 0.0
    }  # fmt: skip
    scenes = plan(
        "scenes_nano", "--gpus=L4", "--data.scenes.train=30", "--data.scenes.val=5",
        "--data.scenes.test=6", capsys=capsys,
    )  # fmt: skip
    assert [scenes["images"][name] for name in ("train", "val", "test")] == [30, 5, 6]


def test_own_sources_are_opened_or_refused_as_in_training(tmp_path: Path, capsys) -> None:
    photos = write_photos(tmp_path / "photos", 20)
    more = write_plain(tmp_path / "more", 30)
    known = plan("scratch", str(photos), "--gpus=L4", capsys=capsys)["images"]["train"]
    command = ["scratch", str(photos), "--gpus=L4", f"--data.unlabelled_root={more}"]
    taught = plan(*command, "--train.teacher=x", capsys=capsys)["images"]["train"]
    assert taught == known + 30
    capsys.readouterr()
    assert main(["plan", "coco", "--data.root", str(tmp_path / "typo"), "--gpus=L4"]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_the_size_is_that_of_the_weights(tmp_path: Path, capsys) -> None:
    name, start = "timm/test_resnet", tmp_path / "start"
    overrides = {"image_size": 64}
    save_bundle(start, model=create_model(name, 1, **overrides), name=name, overrides=overrides,
                classes=["a"], preprocess=Preprocess(64))  # fmt: skip
    options = [f"--model.name={name}", f"--model.init={start}", "--gpus=L4", "--images=100"]
    assert plan("photos", *options, capsys=capsys)["network"]["image_size"] == 64


def test_disk_has_room_for_what_is_kept(capsys) -> None:
    few, many = (
        plan(*NANO, "--gpus=L4", f"--train.keep={keep}", capsys=capsys)["disk_gb"]["run"]
        for keep in (2, 12)
    )
    states = plan(*NANO, "--gpus=L4", capsys=capsys)["memory_gib"]["states"]
    assert many - few == pytest.approx(10 * states * 2**30 / 1e9, rel=0.01)
    probe = ["probe", "--images=100000", "--gpus=L4", "--model.init=", "--data.cache=false"]
    found = plan(*probe, "--train.views=2", capsys=capsys)["disk_gb"]["cache"]
    photo = 2 * 7 * 7 * 1280 + 4 * 1280  # map and vector of EfficientNet-Lite0 at 224 px
    assert found == pytest.approx((2 * 90_000 + 10_000 + 20_000) * photo / 1e9)


def test_one_label_an_image_is_measured(capsys) -> None:
    options = ["--images=100", "--classes=3", "--model.name=mltr_nano", "--model.image_size=32"]
    figures = plan(
        "imagenet1k", *options, "--data.workers=0", "--train.threads=1", "--train.batch_size=8",
        "--gpus=cpu", capsys=capsys,
    )  # fmt: skip
    assert figures["speed"]["limited_by"] == "measured"


def test_the_numbers_of_voc_are_those_of_its_lists(shared: Path) -> None:
    lists = shared / "data" / "voc2007_imagesets"
    known = public_set(DataConfig(format="voc", year="2007"))
    folder = next(path.parent for path in lists.rglob("trainval.txt"))
    counts = [len((folder / f"{name}.txt").read_text().split()) for name in ("trainval", "test")]
    assert known is not None
    assert counts == [known.train, known.test]


def test_memory_of_a_step_by_hand() -> None:
    """One linear layer with ReLU: the ReLU's output is kept; the weights' gradients are added."""
    B, inputs, outputs = 32, 3 * 8 * 8, 16

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs), nn.ReLU())

    work = measure_step(build, B, 8)
    parameters = inputs * outputs + outputs
    assert (work.parameters, work.weight_bytes) == (parameters, 4 * parameters)
    assert work.multiply_adds == inputs * outputs
    assert work.kept_bytes == 4 * B * outputs
    assert work.peak_bytes >= work.kept_bytes + 4 * parameters


def test_bf16_and_checkpointing_keep_less() -> None:
    def build() -> nn.Module:
        return create_model("mltr_nano", 10)

    plain = measure_step(build, 16, 64)
    half = measure_step(build, 16, 64, "bf16")
    again = measure_step(build, 16, 64, "fp32", True)
    assert half.kept_bytes < 0.75 * plain.kept_bytes
    assert again.peak_bytes < 0.75 * plain.peak_bytes
    twice = measure_step(build, 32, 64)
    assert twice.kept_bytes == pytest.approx(2 * plain.kept_bytes, rel=0.02)


def test_this_machine_is_measured(capsys, caplog) -> None:
    figures = plan(
        "scenes_nano", "--gpus=cpu", "--data.scenes.train=200", "--data.scenes.val=40",
        "--data.scenes.test=40", "--data.workers=0", "--train.threads=1",
        "--train.precision=fp32", capsys=capsys,
    )  # fmt: skip
    assert figures["speed"]["limited_by"] == "measured"
    assert figures["speed"]["share_of_peak"] is None
    assert 0 < figures["hours"] < math.inf
    assert figures["memory_gib"]["program"] > 0.1
    assert caplog.messages == ["measuring the speed of this machine"]  # nothing of the trials


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_plans_hold_beside_short_runs() -> None:
    """The benchmark's comparison holds within 25 % in time and 15 % in memory."""
    path = ROOT / "benchmarks" / "plan.py"
    spec = importlib.util.spec_from_file_location("plan_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    fixed = ["--train.threads=1", "--data.workers=0"]
    for name, options in benchmark.CASES.items():
        row = benchmark.compare(name, [*options, *fixed], 1, cpu_time=True)
        assert row["time_ratio"] == pytest.approx(1, abs=0.25), name
        assert row["memory_ratio"] == pytest.approx(1, abs=0.15), name
