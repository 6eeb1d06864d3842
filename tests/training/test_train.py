"""Training through the command, on tiny scenes and photos: what is kept, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from making import TINY, TINY_ON_PHOTOS, train, write_image, write_photos, write_voc
from sklearn.metrics import average_precision_score
from trained import progress, same_weights, train_photos, weights

import mltr
from mltr.cli import main
from mltr.training import step
from mltr.training.labels import Labels
from mltr.training.run import prepare_run
from mltr.training.step import Stepper

# -- what a run leaves -------------------------------------------------------------------------


def test_a_run_folder_holds_everything_to_repeat_it(finished: Path, tmp_path: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "config.yaml", "metrics.json", "predictions.npz",
        "versions.json", "splits.json", "log.jsonl", "curves.png", "tensorboard", "checkpoint",
    }  # fmt: skip
    assert main(["train", str(finished / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    assert same_weights(finished, tmp_path / "again")
    splits = json.loads((finished / "splits.json").read_text())
    assert [len(splits[name]) for name in ("train", "val", "test")] == [48, 16, 24]


def test_the_test_figures_are_those_of_the_saved_predictions(finished: Path) -> None:
    figures = json.loads((finished / "metrics.json").read_text())
    with np.load(finished / "predictions.npz", allow_pickle=False) as saved:
        probs, targets = saved["probs"], saved["targets"]
    assert probs.shape == targets.shape == (24, 10)
    kept = targets.sum(0) > 0
    expected = average_precision_score(targets[:, kept], probs[:, kept], average="macro")
    assert figures["map"] == pytest.approx(expected, abs=1e-6)
    assert figures["of1"] == pytest.approx(mltr.metrics.evaluate(probs, targets)["of1"])


def test_what_to_type_next_is_the_last_line(tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "mltr")
    assert train(tmp_path / "my run", "--data.scenes.val=1", epochs=1) == 0
    assert caplog.messages[-1] == f"next: mltr evaluate '{tmp_path}/my run'"
    assert any("1 epoch, on cpu" in message for message in caplog.messages)


def test_the_epoch_is_chosen_on_validation_images(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    figures = json.loads((finished / "metrics.json").read_text())
    maps = [row[key] for row in rows for key in ("val_map", "val_map_ema")]
    assert figures["best_val_map"] == max(maps)
    assert [row["epoch"] for row in rows] == [1, 2]


def test_the_bundle_gives_the_saved_predictions(finished: Path) -> None:
    predictor = mltr.load(finished)
    test = mltr.data.open_splits(trainer_config(finished).data).test
    with np.load(finished / "predictions.npz") as saved:
        for index in (0, 7):
            probs = predictor(test[index].image.load()).probs
            assert probs == pytest.approx(saved["probs"][index], abs=1e-5)


def trainer_config(run: Path):
    from mltr.config.recipe import load_recipe

    return load_recipe(run / "config.yaml")


def test_any_timm_backbone_trains_by_the_same_command(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = main(
        ["train", "scenes_nano", "--out", str(out), *[a for a in TINY if "overrides" not in a],
         "--model.name=timm/resnet10t", "--train.epochs=1"]
    )  # fmt: skip
    assert code == 0
    assert mltr.load(out).classes[0] == "zero"


def test_init_starts_from_a_bundle(finished: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", f"--model.init={finished}", "--train.lr=1e-12", epochs=1) == 0
    for name, tensor in weights(tmp_path / "run").items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, weights(finished)[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", ["--train.epochs=1", "--train.minutes=0.0001"])
def test_a_run_of_a_single_step_learns(finished: Path, length: str, tmp_path: Path) -> None:
    run, options = tmp_path / "run", ["--train.batch_size=48", "--train.ema_decay=0", length]
    assert train(run, f"--model.init={finished}", *options, epochs=1) == 0
    assert not torch.equal(weights(run)["head.weight"], weights(finished)["head.weight"])


def test_init_from_a_bundle_of_other_classes_begins_a_new_head(
    finished: Path, tmp_path: Path
) -> None:
    """Ten digits, then VOC's twenty classes: all but the head is taken."""
    write_voc(tmp_path / "VOC2007")
    code = main(
        ["train", "voc2007", f"--data.root={tmp_path}", f"--out={tmp_path / 'run'}", *TINY,
         f"--model.init={finished}", "--model.name=mltr_nano", "--train.epochs=1",
         "--train.stop_epoch=0", "--train.lr=1e-12", "--train.warmup=0",
         "--data.difficult=negative"]
    )  # fmt: skip
    assert code == 0
    before, after = weights(finished), weights(tmp_path / "run")
    assert before["head.weight"].shape[0] == 10
    assert after["head.weight"].shape[0] == 20
    for name in before.keys() - {"head.weight", "head.bias"}:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "option",
    [
        "--train.precision=bf16", "--train.accumulation=2", "--augment.cutmix=1.0",
        "--train.schedule=onecycle", "--train.grad_checkpointing=true", "--train.min_size=16",
    ],
)  # fmt: skip
def test_options_of_the_loop(tmp_path: Path, option: str) -> None:
    assert train(tmp_path / "run", option, epochs=1) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 1


def mixing(folder: Path, *options: str) -> Labels:
    from mltr.config.recipe import find_recipe, load_recipe
    from mltr.data import open_splits
    from mltr.runs.folder import RunFolder

    config = load_recipe(find_recipe("scenes_nano"), [*TINY, "--augment.mixup=1", *options])
    return Labels(prepare_run(config, open_splits(config.data), RunFolder(folder)))


def test_images_are_mixed_once_they_were_seen_that_often(tmp_path: Path) -> None:
    objective = mixing(tmp_path, "--augment.mix_from=2")
    images, targets = torch.rand(4, 3, 8, 8), torch.zeros(4, 10, dtype=torch.int8)
    for epoch, is_mixed in enumerate([False, False, True, True]):
        objective.run.progress.epoch = epoch
        mixed, _ = objective.mix(images, targets, objective.run.batch_rng())
        assert torch.equal(mixed, images) != is_mixed


def test_no_batch_of_a_run_is_mixed_like_another(tmp_path: Path) -> None:
    """However many batches an epoch has: a 10,008th one is not the first of the next epoch."""
    objective = mixing(tmp_path)
    run, images, targets = (
        objective.run,
        torch.rand(4, 3, 8, 8),
        torch.zeros(4, 10, dtype=torch.int8),
    )
    seen = set()
    for epoch in range(4):
        for batch in (0, 1, 10_007, 10_008, 20_014, 20_015, 30_021, 30_022):
            run.progress.epoch, run.progress.batch = epoch, batch
            mixed, _ = objective.mix(images, targets, run.batch_rng())
            assert torch.equal(mixed, objective.mix(images, targets, run.batch_rng())[0])
            seen.add(mixed.numpy().tobytes())
    assert len(seen) == 4 * 8


def test_patience_ends_a_run_early(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "--train.patience=1", "--train.lr=1e-12", epochs=9) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] < 9


def test_patience_waits_for_a_first_validation(tmp_path: Path) -> None:
    options = ("--train.patience=1", "--train.lr=1e-12", "--train.eval_every=3")
    assert train(tmp_path / "run", *options, epochs=9) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 6


def test_init_takes_the_head_by_label(small_run: Path, tmp_path: Path) -> None:
    photos = small_run.parent / "photos"
    lines = [line.split(",") for line in (photos / "labels.csv").read_text().splitlines()]
    lines[0] = ["path", "sea", "dawn"]  # for sunset
    (photos / "labels.csv").write_text("\n".join(f"{a},{c},{b}" for a, b, c in lines))
    arguments = ["scratch", str(photos), *TINY_ON_PHOTOS, f"--model.init={small_run}"]
    out = tmp_path / "again"
    assert main(["train", *arguments, "--train.lr=1e-12", f"--out={out}"]) == 0
    assert mltr.load(out).classes == ("dawn", "sea")
    before, after = weights(small_run)["head.weight"], weights(out)["head.weight"]
    torch.testing.assert_close(after[1], before[0], atol=1e-6, rtol=0)
    assert (after[0] - before[1]).abs().max() > 1e-3


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_run_is_never_overwritten_unasked(finished: Path, capsys) -> None:
    before = weights(finished)
    assert train(finished) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(finished).items())


@pytest.mark.parametrize(
    "mistake", ["--model.name=mltr_none", "--data.format=coco", "--model.init=nowhere"]
)
def test_a_failed_start_neither_blocks_the_next_nor_harms_the_last(
    finished: Path, tmp_path: Path, mistake: str
) -> None:
    run = tmp_path / "run"
    assert train(run, mistake) in (1, 2)
    assert not run.exists()
    shutil.copytree(finished, run, dirs_exist_ok=True)
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert train(run, mistake, "--overwrite") in (1, 2)
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.mark.parametrize("option", ["model.init", "train.teacher"])
def test_what_a_run_starts_from_is_not_deleted(
    finished: Path, tmp_path: Path, capsys, option: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert train(run, f"--{option}={run}", "--overwrite") == 2
    assert f"{option} {run} would be overwritten" in capsys.readouterr().err
    assert weights(run).keys() == weights(finished).keys()


@pytest.mark.parametrize(
    ("network", "option", "words"),
    [
        ("dla34", "--train.grad_checkpointing=true", "leave out train.grad_checkpointing"),
    ],
)
def test_what_a_network_cannot_do_is_told(
    tmp_path: Path, capsys, network: str, option: str, words: str
) -> None:
    options = [a for a in TINY if "overrides" not in a]
    run = ["train", "scenes_nano", "--out", str(tmp_path / "run"), *options]
    assert main([*run, f"--model.name=timm/{network}", option]) == 2
    assert words in capsys.readouterr().err


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    assert train(tmp_path / "run", epochs=1) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(tmp_path / "run", "--overwrite", epochs=2) == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_a_loss_that_stays_bad_names_step_and_images(tmp_path: Path, capsys) -> None:
    options = ("--train.lr=1e30", "--train.clip_grad=0", "--train.max_bad_steps=0")
    assert train(tmp_path / "run", *options) == 1
    message = capsys.readouterr().err
    assert "the loss is nan at step" in message or "the loss is inf at step" in message
    assert "train-000" in message


def spoil(monkeypatch: pytest.MonkeyPatch, steps: list[int], factor: float) -> None:
    """Multiply the losses of the first image of the batch at these steps."""
    original = Labels.losses

    def compute(self: Labels, *batch: Any):
        losses, cells = original(self, *batch)
        if self.run.progress.step in steps:
            losses = losses * torch.tensor([factor] + [1.0] * (len(losses) - 1))
        return losses, cells

    monkeypatch.setattr(Labels, "losses", compute)


@pytest.mark.parametrize(("factor", "words"), [(float("nan"), "is nan"), (1e6, "times the usual")])
def test_bad_steps_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch, factor: float, words: str
) -> None:
    monkeypatch.setattr(step, "SETTLED", 2)
    spoil(monkeypatch, [2, 3], factor)
    assert train(tmp_path / "run", "--train.batch_size=8", epochs=1) == 0
    left_out = [text for text in caplog.messages if "this step is left out" in text]
    assert len(left_out) == 2
    assert words in left_out[0]
    assert left_out[0].count("train-000") == (1 if factor != factor else 8)
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["skipped_steps"] == 2
    assert "on the way: 2 steps left out" in caplog.text


def test_a_gradient_that_is_not_finite_changes_nothing(
    tmp_path: Path, capsys, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss may be: the square root of zero, for one."""
    original = Labels.losses

    def compute(self: Labels, *batch: Any):
        losses, cells = original(self, *batch)
        return losses + (losses * 0).sqrt(), cells

    monkeypatch.setattr(Labels, "losses", compute)
    assert train(tmp_path / "run", "--train.max_bad_steps=2", epochs=1) == 1
    assert "the gradient is nan at step 2 (epoch 1), after 2 steps left out" in (
        capsys.readouterr().err
    )
    assert caplog.text.count("this step is left out") == 2


class Overflow(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def test_gradients_that_overflow_at_any_scale_end_the_run(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Labels.losses

    def compute(self: Labels, *batch: Any):
        losses, cells = original(self, *batch)
        return Overflow.apply(losses), cells

    monkeypatch.setattr(Labels, "losses", compute)
    options = ("--train.precision=fp16", "--train.batch_size=8")
    assert train(tmp_path / "run", *options, epochs=20) == 1
    assert "overflows in fp16 at any scale: use --train.precision" in capsys.readouterr().err


def test_a_network_that_diverges_is_no_damaged_bundle(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stepper._update

    def update(self: Stepper, *batch: Any) -> None:
        original(self, *batch)
        with torch.no_grad():
            next(self.learner.plain.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Stepper, "_update", update)
    assert train(tmp_path / "run", "--train.batch_size=100", epochs=1) == 1
    message = capsys.readouterr().err
    assert "says nan of validation images after epoch 1: lower train.lr" in message


def test_a_worker_that_dies_is_reported_in_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    from mltr.data.loading import ImageDataset

    monkeypatch.setattr(ImageDataset, "__getitem__", lambda *_: os.kill(os.getpid(), 9))
    assert train(tmp_path / "run", "--data.workers=1") == 1
    message = capsys.readouterr().err
    assert "a data worker died" in message
    assert "lower data.workers" in message


def fail_saves(monkeypatch: pytest.MonkeyPatch, first: int, kind: str = "optimizer") -> None:
    """Let the disk be full from the save number `first` on, of states that hold a `kind`."""
    original, saves = torch.save, 0

    def save(state, file, *rest):
        nonlocal saves
        saves += kind in state["shared"]
        if saves >= first and kind in state["shared"]:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        return original(state, file, *rest)

    monkeypatch.setattr(torch, "save", save)


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run_goes_on(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    run = tmp_path / "run"
    fail_saves(monkeypatch, first=2)
    assert train(run) == 0
    assert "going on, although: can't write" in caplog.text
    assert "No space left on device; free some space" in caplog.text
    assert "on the way: 1 file not saved" in caplog.text
    assert same_weights(run, finished)
    (run / "metrics.json").unlink()
    assert progress(run)["epoch"] == 1
    assert not list((run / "checkpoint").glob(".tmp-*"))
    monkeypatch.undo()
    assert train(run, "--resume") == 0
    assert same_weights(run, finished)


def test_a_disk_that_is_full_from_the_beginning_stops_the_run(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.save

    def save(state, file, *rest):
        if "shared" in state:
            raise OSError(28, "No space left on device")
        return original(state, file, *rest)

    monkeypatch.setattr(torch, "save", save)
    assert train(tmp_path / "run", epochs=5) == 1
    message = capsys.readouterr().err
    assert "stopped, because nothing of this run can be saved: can't write" in message
    assert "No space left on device; free some space" in message
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


def test_a_disk_that_never_has_room_ends_in_one_line(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_saves(monkeypatch, first=1, kind="weights")
    assert train(tmp_path / "run", epochs=1) == 1
    assert "no weights to keep: none could be saved" in capsys.readouterr().err


def test_broken_images_are_counted_and_past_a_limit_stop_the_run(tmp_path: Path, capsys) -> None:
    folder = write_photos(tmp_path / "photos")
    for index in (3, 4, 5, 6):
        (folder / f"{index}.png").write_bytes(b"broken")
    assert train_photos(folder, tmp_path / "kept", "--data.max_broken=0.2") == 0
    figures = json.loads((tmp_path / "kept" / "metrics.json").read_text())
    assert 1 <= len(figures["broken_training_images"]) + len(figures["broken_images"]) <= 4
    assert all("not an image" in message for message in figures["broken_training_images"])
    assert train_photos(folder, tmp_path / "stopped", "--data.max_broken=0.001") == 1
    message = capsys.readouterr().err
    assert "training images can't be read, more than data.max_broken=0.001 allows" in message
    assert ".png: not an image" in message


def test_a_class_that_no_training_image_has_is_refused(tmp_path: Path, capsys) -> None:
    folder = write_photos(tmp_path / "photos")
    table = folder / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},never", *(f"{line},0" for line in lines[1:])]))
    assert train_photos(folder, tmp_path / "run") == 1
    assert "no training image has: never; add images" in capsys.readouterr().err


def test_a_class_of_a_public_list_may_be_missing(tmp_path: Path, caplog) -> None:
    write_voc(tmp_path / "VOC2007")
    arguments = ["train", "voc2007", f"--data.root={tmp_path}", f"--out={tmp_path / 'run'}"]
    caplog.set_level("WARNING", "mltr")
    options = ["--model.name=mltr_nano", "--train.epochs=1", "--data.difficult=negative"]
    assert main([*arguments, *TINY, *options]) == 0
    assert "no training image has: aeroplane, bicycle" in caplog.text


def write_only_ones(folder: Path) -> Path:
    """Photos whose table has 1 for "has it" and nothing otherwise."""
    write_photos(folder)
    table = folder / "labels.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *(line.replace(",0", ",") for line in lines)]))
    return folder


def test_a_table_without_negatives_is_refused_with_a_hint(tmp_path: Path, capsys) -> None:
    folder, run = write_only_ones(tmp_path / "photos"), tmp_path / "run"
    assert train_photos(folder, run) == 1
    message = capsys.readouterr().err
    assert "no training image is a known negative for: sea, sunset" in message
    assert "--data.missing negative" in message
    assert train_photos(folder, run, "--data.missing=negative") == 0
    assert train_photos(write_photos(tmp_path / "told"), tmp_path / "other") == 0
    with (
        np.load(run / "predictions.npz") as ours,
        np.load(tmp_path / "other" / "predictions.npz") as theirs,
    ):  # the same photos, with 0 in the cells
        assert np.array_equal(ours["targets"], theirs["targets"])
        assert np.array_equal(ours["probs"], theirs["probs"])


def test_a_class_that_every_image_has_is_refused(tmp_path: Path, capsys) -> None:
    for index in range(12):
        write_image(tmp_path / "photos" / "beach" / f"{index}.png")
    options = [a for a in TINY if "scenes" not in a]
    for more in ((), ("--loss.name=ce",)):
        command = ["train", "scratch", "--data.root", str(tmp_path / "photos"), *options, *more]
        assert main([*command, "--out", str(tmp_path / "run")]) == 1
        message = capsys.readouterr().err
        assert "no training image is a known negative for: beach" in message
        assert "add images without them" in message


def test_errors_come_without_a_traceback_unless_asked(tmp_path: Path, capsys) -> None:
    arguments = ["train", "miml_nano", "--data.root", str(tmp_path / "none"), "--out",
                 str(tmp_path / "run")]  # fmt: skip
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "no such file or folder" in message
    assert "Traceback" not in message
    with pytest.raises(mltr.errors.MltrError):
        main([*arguments, "--overwrite", "--debug"])


def test_the_resolved_recipe_is_plain_yaml(finished: Path) -> None:
    content = yaml.safe_load((finished / "config.yaml").read_text())
    assert content["train"]["epochs"] == 2
    assert content["data"]["scenes"]["train"] == 48
