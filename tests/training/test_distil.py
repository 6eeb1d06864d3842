"""A teacher: what a student learns from it, beside labels and in their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
import yaml
from making import TINY, TINY_ON_PHOTOS, train, write_image, write_photos
from test_train import checkpoints, same_weights
from torch import Tensor

from mltr.cli import main
from mltr.config.recipe import find_recipe, load_recipe
from mltr.data.preprocess import IMAGENET, Preprocess
from mltr.data.sources import open_splits
from mltr.network.model import create_model
from mltr.runs.folder import RunFolder
from mltr.training.distil import Distilled, Teacher
from mltr.training.run import prepare_run
from mltr.weights.bundle import load_bundle, save_bundle

SMALL: dict[str, Any] = {"image_size": 32, "depths": [0, 1], "conv_depths": [1, 0]}
HALVED = ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))  #: another mean and standard deviation


def write_teacher(
    folder: Path,
    classes: tuple[str, ...],
    preprocess: Preprocess | None = None,
    name: str = "mltr_nano",
    **options: Any,
) -> Path:
    """Write a bundle that tells photos apart, as an initialisation wouldn't."""
    torch.manual_seed(5)
    overrides = SMALL if name == "mltr_nano" else {}
    model = create_model(name, len(classes), **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.2 if overrides else 0.05) * torch.randn_like(parameter))
    save_bundle(
        folder,
        model=model,
        name=name,
        overrides=overrides,
        classes=classes,
        preprocess=preprocess or Preprocess(32),
        **options,
    )
    return folder


def photos_student(photos: Path, out: Path, teacher: Path, *options: str) -> int:
    options = ("--augment.crop=squash", *TINY_ON_PHOTOS, *options)
    command = ["train", "scratch", str(photos), "--out", str(out), f"--train.teacher={teacher}"]
    return main([*command, *options])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    assert train(run) == 0
    return run


# -- what is learnt ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mltr_nano", "timm/test_efficientnet"])
def test_a_teacher_sees_the_images_as_it_was_trained(tmp_path: Path, name: str) -> None:
    """Of another size, mean and standard deviation; and its classes are found by name."""
    raw = torch.rand(3, 3, 32, 32)
    wanted = Preprocess(48, *IMAGENET)
    folder = write_teacher(tmp_path / "teacher", ("cat", "dog", "owl"), wanted, name)
    mean, std = (torch.tensor(values)[:, None, None] for values in HALVED)
    teacher = Teacher(
        str(folder), ("owl", "cat"), Preprocess(32, *HALVED), False, torch.device("cpu")
    )
    probs, features = teacher((raw - mean) / std)
    resized = tv.resize(raw, [48, 48], antialias=True)
    expected = load_bundle(folder).model(tv.normalize(resized, *map(list, IMAGENET))).sigmoid()
    torch.testing.assert_close(probs, expected[:, [2, 0]], atol=1e-4, rtol=1e-4)
    assert expected.std(dim=0).min() > 1e-3
    assert len(features) == 3
    assert not probs.requires_grad


def make_objective(tmp_path: Path, teacher: Path, *options: str) -> Distilled:
    config = load_recipe(
        find_recipe("scenes_nano"), [*TINY, f"--train.teacher={teacher}", *options]
    )
    return Distilled(prepare_run(config, open_splits(config.data), RunFolder(tmp_path / "run")))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradient_are_those_of_a_loop_over_images_and_classes(
    teacher: Path, tmp_path: Path, reduction: str
) -> None:
    objective = make_objective(
        tmp_path,
        teacher,
        "--train.teacher_weight=0.3",
        "--train.teacher_features=2",
        f"--loss.reduction={reduction}",
    )
    student = objective.build_network().train()
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((4, 3, 32, 32), np.float32))
    images[3] = 0  # a broken one
    targets = torch.from_numpy(rng.integers(-1, 2, (4, 10)).astype(np.int8))
    targets[2] = -1  # without labels
    targets[3] = -1
    losses, cells = objective.losses(student, images, targets, rng)
    assert cells.tolist() == [10, 10, 10, 0]
    assert losses[3] == 0

    said, wanted = objective.teacher(images)
    with torch.no_grad():
        assert torch.allclose(said, load_bundle(teacher).model(images).sigmoid(), atol=1e-5)
    logits, guessed = student(images)
    total = torch.zeros(())
    for image in range(3):
        for k in range(10):
            p, t, y = logits[image, k].sigmoid(), said[image, k], int(targets[image, k])
            against_teacher = -t * p.log() - (1 - t) * (1 - p).log()
            against_label = -p.log() if y == 1 else -(1 - p).log()
            total = total + (
                against_teacher if y < 0 else 0.7 * against_label + 0.3 * against_teacher
            )
        a, b = guessed[image], wanted[image]
        cosine = (a * b).sum() / (a.norm() * b.norm())
        total = total + 2 * (1 - cosine) * (10 if reduction == "mean" else 1)
    assert losses.sum().item() == pytest.approx(total.item(), rel=1e-4)
    parameters = [p for p in student.parameters() if p.requires_grad]
    own = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    naive = torch.autograd.grad(total, parameters, allow_unused=True)
    for first, second in zip(own, naive, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


def test_a_teacher_sees_what_is_mixed(teacher: Path, tmp_path: Path) -> None:
    objective = make_objective(tmp_path, teacher, "--augment.cutmix=1", "--train.teacher_weight=1")
    student, seen = objective.build_network().train(), []
    objective.teacher = spy(objective.teacher, seen)  # type: ignore[assignment]
    images = torch.rand(4, 3, 32, 32)

    def forward(mixed: Tensor) -> Any:
        seen.append(mixed)
        return student(mixed)

    objective.losses(forward, images, torch.ones(4, 10), np.random.default_rng(1))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], images)


def spy(teacher: Teacher, seen: list[Tensor]) -> Any:
    def called(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images)
        return teacher(images)

    return called


def test_a_student_comes_to_say_what_its_teacher_says(teacher: Path, tmp_path: Path) -> None:
    """Without a label: the more so, the longer it learns."""
    objective = make_objective(tmp_path, teacher, "--train.teacher_weight=1")
    student = objective.build_network().train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    images, nothing = torch.rand(8, 3, 32, 32), torch.full((8, 10), -1)
    apart = []
    for _ in range(30):
        losses, _ = objective.losses(student, images, nothing, np.random.default_rng(0))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        with torch.no_grad():
            apart.append((student(images)[0].sigmoid() - objective.teacher(images)[0]).abs().mean())
    assert apart[-1] < apart[0] / 4


# -- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--train.teacher_features=1", "--augment.mixup=0.5")])
def test_a_student_leaves_an_ordinary_bundle_and_resumes_to_the_same_bits(
    teacher: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    options = (f"--train.teacher={teacher}", "--train.save_minutes=0", "--train.keep=9", *options)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, *options) == 0
    plain = {name for name, _ in load_bundle(teacher).model.named_parameters()}
    assert {name for name, _ in load_bundle(whole).model.named_parameters()} == plain
    shutil.copytree(whole, cut)
    (cut / "metrics.json").unlink()
    for path in checkpoints(cut)[2:]:
        shutil.rmtree(path)
    assert train(cut, *options, "--resume") == 0
    assert same_weights(whole, cut)


def test_a_run_goes_on_with_a_teacher_that_moved_but_not_with_another(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved, other = tmp_path / "run", tmp_path / "moved", tmp_path / "other"
    every_step = ("--train.save_minutes=0", "--train.keep=9")
    assert train(run, f"--train.teacher={teacher}", *every_step) == 0
    (run / "metrics.json").unlink()
    shutil.copytree(teacher, moved)
    write_teacher(other, load_bundle(teacher).classes)
    assert train(run, f"--train.teacher={other}", *every_step, "--resume") == 2
    assert "the weights of train.teacher are others" in capsys.readouterr().err
    assert train(run, f"--train.teacher={moved}", *every_step, "--resume") == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["teacher"] == str(moved)


def test_photos_without_labels_are_learnt_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder holds the labelled photos, too, which aren't taken again; one is broken."""
    caplog.set_level("INFO", "mltr")
    photos = write_photos(tmp_path / "photos", 16)
    for index in range(8):
        write_image(photos / "more" / f"{index}.png", (40, 30), seed=100 + index)
    (photos / "more" / "broken.png").write_bytes(b"no picture")
    teacher = write_teacher(tmp_path / "teacher", ("sunset", "sea"))
    more = f"--data.unlabelled_root={photos}"
    assert photos_student(photos, tmp_path / "run", teacher, more, "--data.max_broken=0.1") == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["images_in_splits"] == {"train": 12, "val": 1, "test": 3, "unlabelled": 9}
    assert len(figures["broken_training_images"]) == 1
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())
    assert set(splits["unlabelled"]) == {f"more/{name}.png" for name in (*range(8), "broken")}
    assert "9 unlabelled" in caplog.text
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    # Other photos beside are another run.
    (tmp_path / "run" / "metrics.json").unlink()
    (photos / "more" / "7.png").unlink()
    assert (
        photos_student(photos, tmp_path / "run", teacher, more, "--data.max_broken=0.1", "--resume")
        == 1
    )
    assert "on other unlabelled images (9 then, 8 now): more/7.png" in capsys.readouterr().err


# -- what isn't accepted -----------------------------------------------------------------------


def test_a_teacher_that_does_not_suit_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 16)
    out, classes = tmp_path / "run", ("sea", "sunset")
    softmax = {"method": "softmax", "scale": [], "shift": []}
    unlike = write_teacher(tmp_path / "unlike", ("sea", "sunsets"))
    single = write_teacher(tmp_path / "single", classes)
    config = json.loads((single / "config.json").read_text()) | {"calibration": softmax}
    (single / "config.json").write_text(json.dumps(config))
    own = write_teacher(tmp_path / "own", classes)
    for teacher, message in (
        (tmp_path / "gone", "train.teacher {}: no such folder"),
        (unlike, "train.teacher {}: it doesn't know 'sunset'; did you mean 'sunsets'?"),
        (single, "train.teacher {}: it was trained for one label an image"),
    ):
        assert photos_student(photos, out, teacher) in (1, 2)
        error = capsys.readouterr().err
        assert message.format(teacher) in error
        assert "Traceback" not in error
        assert not out.exists() or not any(out.iterdir())
    assert photos_student(photos, own, own, "--overwrite") == 2
    assert "this is the run itself" in capsys.readouterr().err
    assert load_bundle(own)  # it isn't harmed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.teacher="], "data.unlabelled_root needs train.teacher"),
        (["--data.unlabelled_root=", "--train.freeze=backbone"], "not train.freeze backbone"),
        ([], "no photos but those of the labelled data"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    photos = write_photos(tmp_path / "photos", 16)
    teacher = write_teacher(tmp_path / "teacher", ("sea", "sunset"))
    beside = f"--data.unlabelled_root={photos}"
    assert photos_student(photos, tmp_path / "run", teacher, beside, *options) in (1, 2)
    assert message in capsys.readouterr().err


def test_pretraining_has_no_use_for_a_teacher(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    assert (
        main(
            [
                "pretrain",
                "pretrain",
                str(photos),
                "--out",
                str(tmp_path / "run"),
                f"--train.teacher={teacher}",
                *TINY_ON_PHOTOS,
            ]
        )
        == 2
    )
    assert "train.teacher: mltr pretrain has no use for one" in capsys.readouterr().err
