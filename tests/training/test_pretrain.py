"""Learning without labels: what is hidden stays hidden, and the result starts a training."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from making import write_image
from PIL import Image

import mltr
from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data.sources import open_images
from mltr.errors import MltrError
from mltr.training.hidden_pixels import MaskedImageModel, masked_error, random_mask
from mltr.weights.bundle import load_bundle

QUICK = ["--train.epochs", "2", "--train.batch_size", "8", "--train.eval_every", "1"]
QUICK += ["--model.image_size", "32", "--data.base_size", "40", "--data.cache", "false"]
QUICK += ["--data.workers", "0", "--train.precision", "fp32"]
IMAGES = ["--data.format", "images"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(24):
        write_image(tmp_path / "photos" / f"{index % 3}" / f"{index}.png", seed=index)
    (tmp_path / "photos" / "notes.doc").write_text("no image")
    return tmp_path / "photos"


@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 9))
def test_the_same_share_is_hidden_in_every_image(count: int, side: int, seed: int) -> None:
    mask = random_mask(count, side, np.random.default_rng(seed))
    assert mask.shape == (count, side, side)
    assert mask.dtype == torch.bool
    assert mask.sum(dim=(1, 2)).tolist() == [max(1, round(0.6 * side * side))] * count


@pytest.mark.parametrize("name", ["mltr_nano", "cat_t"])
def test_guesses_do_not_depend_on_what_is_hidden(name: str) -> None:
    torch.manual_seed(0)
    network = mltr.create_model(name, 0, image_size=64)
    model = MaskedImageModel(network).eval()  # type: ignore[arg-type]
    side = 64 // model.stride
    mask = random_mask(2, side, np.random.default_rng(1))
    pixels = mask.repeat_interleave(model.stride, 1).repeat_interleave(model.stride, 2)[:, None]
    images = torch.rand(2, 3, 64, 64)
    others = torch.where(pixels, torch.rand(2, 3, 64, 64), images)
    with torch.no_grad():
        assert torch.equal(model(images, mask), model(others, mask))
        assert model(images, mask).shape == images.shape
        visible = torch.where(pixels, images, torch.rand(2, 3, 64, 64))
        assert not torch.allclose(model(images, mask), model(visible, mask))


def test_the_error_counts_hidden_pixels_alone() -> None:
    """Against a loop over cells."""
    stride, side = 4, 3
    images, guess = torch.rand(2, 3, 12, 12), torch.rand(2, 3, 12, 12)
    mask = random_mask(2, side, np.random.default_rng(2))
    expected = []
    for image, guessed, hidden in zip(images, guess, mask, strict=True):
        errors = []
        for row in range(side):
            for column in range(side):
                if hidden[row, column]:
                    cell = np.s_[:, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
                    errors.append((image[cell] - guessed[cell]).abs().mean())
        expected.append(torch.stack(errors).mean())
    found = masked_error(lambda *_: guess, images, mask, stride)
    torch.testing.assert_close(found, torch.stack(expected))


def test_every_part_learns() -> None:
    model = MaskedImageModel(mltr.create_model("mltr_nano", 0))  # type: ignore[arg-type]
    mask = random_mask(2, 4, np.random.default_rng(0))
    masked_error(model, torch.rand(2, 3, 64, 64), mask, model.stride).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_photos_without_labels_become_a_start(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "pretrained"
    arguments = ["pretrain", "pretrain", "--data.root", str(photos), "--out", str(out)]
    more = ["--train.epochs", "30", "--train.eval_every", "30"]
    assert main([*arguments, *QUICK, *IMAGES, *more]) == 0
    bundle = load_bundle(out)
    assert bundle.classes == ()
    assert bundle.model(torch.rand(1, 3, 32, 32)).shape == (1, 128)  # features, pooled
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["val_loss"] == pytest.approx(rows[-1]["val_loss"])
    assert figures["images_in_splits"] == {"train": 22, "val": 2, "test": 0}
    assert Image.open(out / "reconstruction.png").size == (2 * 32, 3 * 32)

    run = tmp_path / "run"
    options = ["--data.format", "class_folders", "--model.init", str(out)]
    assert (
        main(["train", "scratch", "--data.root", str(photos), "--out", str(run), *QUICK, *options])
        == 0
    )
    assert mltr.load(run).classes == ("0", "1", "2")


def test_training_starts_from_the_weights(photos: Path, tmp_path: Path, caplog) -> None:
    from mltr.config.schema import ModelConfig
    from mltr.training.build import build_model

    out = tmp_path / "pretrained"
    assert (
        main(["pretrain", "pretrain", "--data.root", str(photos), "--out", str(out), *QUICK]) == 0
    )
    model = build_model(ModelConfig(init=str(out)), num_classes=5, image_size=32)
    assert "tensors taken" in caplog.text
    assert not any("\n" in message for message in caplog.messages)  # each line is printed in one
    pretrained = load_bundle(out).model.state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, pretrained[name]), name


def test_an_interrupted_pretraining_goes_on_to_the_same_weights(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mltr.training.hidden_pixels import HiddenPixels

    arguments = ["pretrain", "pretrain", "--data.root", str(photos), *QUICK, *IMAGES]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    losses = HiddenPixels.losses

    def interrupt(self: HiddenPixels, *batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.run.progress.step == 1:
            signal.raise_signal(signal.SIGINT)
        return losses(self, *batch)

    monkeypatch.setattr(HiddenPixels, "losses", interrupt)
    assert main([*arguments, "--out", str(tmp_path / "cut")]) == 130
    monkeypatch.undo()
    assert main([*arguments, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    whole, cut = (load_bundle(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_first_weights_are_kept_however_great_their_loss(tmp_path: Path) -> None:
    """Black and white lie two deviations from the mean, so that a guess of grey is off by two."""
    for index in range(12):
        picture = Image.new("L", (40, 40), 255 * (index % 2)).convert("RGB")
        picture.save(write_image(tmp_path / "photos" / f"{index}.png"))
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    options = [*QUICK, *IMAGES, "--augment.normalize", "imagenet", "--train.lr", "1e-12"]
    arguments = ["pretrain", "pretrain", "--data.root", str(tmp_path / "photos"), *options]
    assert main([*arguments, "--out", str(out), "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["val_loss"] > 1
    assert (out / "model.safetensors").is_file()


def test_test_images_of_a_labelled_source_are_never_seen(photos: Path) -> None:
    config = DataConfig(root=str(photos), format="class_folders")
    splits = open_images(config)
    assert len(splits.test) == 0
    assert 0 < len(splits.train) + len(splits.val) < 24


def test_what_cannot_be_pretrained_is_reported(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", "pretrain", "--data.root", str(photos), "--out", str(tmp_path / "o")]
    for options, words in (
        (["--model.name", "timm/resnet18"], "only MlTr's variants"),
        (["--model.image_size", "40"], "multiple of 16"),
        (["--train.min_size", "16"], "image size is constant"),
    ):
        assert main([*arguments, *QUICK, *options]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o" / "model.safetensors").exists()
    with pytest.raises(MltrError, match="no images"):
        (tmp_path / "empty").mkdir()
        open_images(DataConfig(root=str(tmp_path / "empty"), format="images"))


def test_a_bundle_without_labels_does_not_predict(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pretrained"
    assert (
        main(["pretrain", "pretrain", "--data.root", str(photos), "--out", str(out), *QUICK]) == 0
    )
    assert main(["predict", str(out), str(photos)]) == 1
    assert "has no labels yet; train from it" in capsys.readouterr().err
    assert main(["train", "scratch", "--data.root", str(photos), "--data.format", "images"]) == 2
    assert "mltr pretrain" in capsys.readouterr().err
