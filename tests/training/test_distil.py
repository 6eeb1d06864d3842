"""A teacher: what a student learns from it, beside labels and in their place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from making import TINY_ON_PHOTOS, train, write_image, write_photos
from PIL import Image
from trained import checkpoints, same_weights

from mltr.cli import main
from mltr.config.recipe import find_recipe, load_recipe
from mltr.config.schema import DataConfig
from mltr.data.preprocess import IMAGENET, Preprocess
from mltr.data.sources import open_splits, open_unlabelled
from mltr.files.cache import Cache
from mltr.network.model import create_model
from mltr.runs.folder import RunFolder
from mltr.training.distil import Distilled
from mltr.training.run import prepare_run
from mltr.weights.bundle import load_bundle, save_bundle
from mltr.weights.metadata import SOFTMAX

SMALL: dict[str, Any] = {"image_size": 32, "depths": [0, 1], "conv_depths": [1, 0]}


def write_teacher(
    folder: Path,
    classes: tuple[str, ...],
    preprocess: Preprocess | None = None,
    name: str = "mltr_nano",
    seed: int = 5,
    **options: Any,
) -> Path:
    """Write a bundle that tells photos apart, as an initialisation wouldn't."""
    torch.manual_seed(seed)
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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep answers in a folder of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mltr" / "photos"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "teacher"
    assert train(run) == 0
    return run


# -- what is learnt ----------------------------------------------------------------------------


def make_objective(tmp_path: Path, recipe: str, *options: str) -> Distilled:
    config = load_recipe(find_recipe(recipe), list(options))
    splits = open_splits(config.data)
    if config.data.unlabelled_root:
        splits.unlabelled = open_unlabelled(config.data, splits)
    objective = Distilled(prepare_run(config, splits, RunFolder(tmp_path / "run")))
    objective.build_network()
    return objective


def test_what_is_ignored_and_salvaged_is_so_without_labels(tmp_path: Path) -> None:
    photos, more = write_photos(tmp_path / "photos", 16), tmp_path / "more"
    for name in ("a.jpg", "cut.jpg", "bad/b.jpg"):
        write_image(more / name, (300, 200), seed=len(name))
    whole = (more / "cut.jpg").read_bytes()
    (more / "cut.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    config = DataConfig(
        root=str(photos), unlabelled_root=str(more), ignore="bad", truncated="allow"
    )
    found = open_unlabelled(config, open_splits(config))
    assert sorted(found.names) == ["a.jpg", "cut.jpg"]
    assert found.notes["truncated_photos_salvaged"] == 1


def test_salvaged_photos_of_the_splits_are_not_learnt_from_again(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 16)
    rows = (photos / "labels.csv").read_text().replace(".png", ".jpg")
    (photos / "labels.csv").write_text(rows)
    for path in photos.glob("*.png"):
        Image.open(path).resize((300, 200)).save(path.with_suffix(".jpg"))
        path.unlink()
    for path in photos.glob("1*.jpg"):
        path.write_bytes(path.read_bytes()[:-2000])
    write_image(photos / "other.jpg")
    config = DataConfig(root=str(photos), unlabelled_root=str(photos), truncated="allow")
    assert open_unlabelled(config, open_splits(config)).names == ["other.jpg"]


@pytest.mark.parametrize("name", ["mltr_nano", "timm/test_efficientnet"])
def test_targets_are_a_mean_of_labels_and_of_what_the_teacher_says_of_whole_photos(
    tmp_path: Path, name: str
) -> None:
    """At the teacher's size and normalisation, by the names of classes, whatever the crops."""
    photos, own = write_photos(tmp_path / "photos", 16), Preprocess(48, *IMAGENET)
    table = photos / "labels.csv"
    table.write_text(table.read_text().replace("2.png,0,1", "2.png,,1"))  # one isn't known
    for index in range(4):
        write_image(tmp_path / "more" / f"{index}.png", (40, 30), seed=100 + index)
    teacher = write_teacher(tmp_path / "teacher", ("cat", "sunset", "sea"), own, name)
    objective = make_objective(
        tmp_path, "scratch", *TINY_ON_PHOTOS, f"--data.root={photos}", "--train.batch_size=4",
        f"--train.teacher={teacher}", "--train.teacher_weight=0.3", "--train.seed=3",
        f"--data.unlabelled_root={tmp_path / 'more'}",
    )  # fmt: skip
    model, said = load_bundle(teacher).model, []
    for batch in objective.load_training().epoch(0):
        for index, targets in zip(batch.indices.tolist(), batch.targets, strict=True):
            record = objective.run.splits.learnt[index]
            with Image.open(record.image) as image, torch.inference_mode():
                probs = model(torch.from_numpy(own(image))[None]).sigmoid()[0, [2, 1]]
            labels = torch.from_numpy(record.labels)
            expected = torch.where(labels < 0, probs, 0.7 * labels + 0.3 * probs)
            torch.testing.assert_close(targets, expected, atol=5e-4, rtol=0)
            said.append(probs)
    assert len(said) == 16
    assert torch.stack(said).std(dim=0).min() > 5e-3


def test_one_label_an_image_is_taught_by_a_softmax(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for index in range(12):
        write_image(photos / ("cat", "dog")[index % 2] / f"{index}.png", (40, 30), seed=index)
    teacher = write_teacher(
        tmp_path / "teacher", ("owl", "dog", "cat"), Preprocess(48), calibration=SOFTMAX
    )
    objective = make_objective(
        tmp_path, "scratch", *TINY_ON_PHOTOS, f"--data.root={photos}", "--loss.name=ce",
        f"--train.teacher={teacher}", "--train.teacher_weight=1",
    )  # fmt: skip
    (batch,) = objective.load_training().epoch(0)
    assert batch.targets.sum(dim=1) == pytest.approx(1, abs=1e-3)
    model, split = load_bundle(teacher).model, objective.run.splits.learnt
    for index, targets in zip(batch.indices.tolist(), batch.targets, strict=True):
        with Image.open(split[index].image) as image, torch.inference_mode():
            logits = model(torch.from_numpy(Preprocess(48)(image))[None])[0, [2, 1]]
        torch.testing.assert_close(targets, logits.softmax(0), atol=1e-3, rtol=0)


def test_photos_that_cannot_be_read_are_not_learnt(tmp_path: Path) -> None:
    """Neither what is broken now, nor what was when the teacher looked."""
    photos = write_photos(tmp_path / "photos", 16)
    teacher = write_teacher(tmp_path / "teacher", ("sunset", "sea"))
    options = ("scratch", *TINY_ON_PHOTOS, f"--data.root={photos}", f"--train.teacher={teacher}",
               "--train.batch_size=16")  # fmt: skip
    learnt = make_objective(tmp_path, *options).run.splits.learnt
    first, second = (Path(learnt[index].image) for index in (0, 1))
    for path in (first, second):
        path.write_bytes(b"no picture")
    objective = make_objective(tmp_path, *options)
    write_image(first, (40, 30))
    (batch,) = objective.load_training().epoch(0)
    places = batch.indices.argsort()
    assert batch.broken[places].tolist() == [False, True] + [False] * (len(learnt) - 2)
    assert (batch.targets[places][:2] == -1).all()
    assert (batch.targets[places][2:] >= 0).all()


def test_the_teacher_is_asked_once_about_the_same_photos(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By all students of whatever seed; another teacher is asked anew."""
    caplog.set_level("INFO", "mltr")
    photos = write_photos(tmp_path / "photos", 16)
    teacher = write_teacher(tmp_path / "teacher", ("sunset", "sea"))
    for seed in (0, 1):
        assert photos_student(photos, tmp_path / str(seed), teacher, f"--train.seed={seed}") == 0
    assert caplog.text.count("asking the teacher about 12 photos once") == 1
    other = write_teacher(tmp_path / "other", ("sunset", "sea"), seed=6)
    assert photos_student(photos, tmp_path / "2", other) == 0
    assert caplog.text.count("asking the teacher about 12 photos once") == 2


def test_a_student_learns_to_predict_as_its_teacher(tmp_path: Path) -> None:
    """Without a label: the more so, the longer it learns."""
    photos = write_photos(tmp_path / "photos", 16)
    teacher = write_teacher(tmp_path / "teacher", ("sea", "sunset"))
    objective = make_objective(
        tmp_path, "scratch", *TINY_ON_PHOTOS, f"--data.root={photos}", "--augment.crop=squash",
        f"--train.teacher={teacher}", "--train.teacher_weight=1", "--augment.flip=false",
        "--augment.jitter=0",
    )  # fmt: skip
    student = objective.build_network().train()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    (batch,) = objective.load_training().epoch(0)
    apart = []
    for _ in range(30):
        losses, _ = objective.losses(student, batch.images, batch.targets, np.random.default_rng(0))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        with torch.no_grad():
            apart.append((student(batch.images).sigmoid() - batch.targets).abs().mean())
    assert apart[-1] < apart[0] / 4


# -- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--augment.mixup=0.5",)])
def test_a_student_leaves_an_ordinary_bundle_and_resumes_to_the_same_bits(
    teacher: Path, tmp_path: Path, cache: Path, options: tuple[str, ...]
) -> None:
    """Also where the teacher has to be asked again."""
    options = (f"--train.teacher={teacher}", "--train.save_minutes=0", "--train.keep=9", *options)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, *options) == 0
    plain = {name for name, _ in load_bundle(teacher).model.named_parameters()}
    assert {name for name, _ in load_bundle(whole).model.named_parameters()} == plain
    shutil.copytree(whole, cut)
    (cut / "metrics.json").unlink()
    for path in checkpoints(cut)[2:]:
        shutil.rmtree(path)
    Cache(cache).clear()
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
    assert train(run, *every_step, "--resume") == 2
    assert "train.teacher was" in capsys.readouterr().err
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
    assert "would be overwritten: choose another --out" in capsys.readouterr().err
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
