"""Pretraining with one label an image: judged by accuracy, and a start for several labels."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from making import write_image
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import top_k_accuracy_score

import mltr
from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.weights.bundle import load_bundle

TINY = [
    "--data.workers=0", "--model.name=mltr_nano", "--model.image_size=32",
    "--model.overrides.depths=[0,1]", "--model.overrides.conv_depths=[1,0]",
    "--train.batch_size=8", "--train.precision=fp32", "--data.val_fraction=0.25",
]  # fmt: skip
COLOURS = {"n01": (200, 30, 30), "n02": (30, 200, 30), "n03": (30, 30, 200)}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as ImageNet has them; each class is a colour."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 16), ("val", 4)):
        for name, colour in COLOURS.items():
            for index in range(count):
                path = root / part / name / f"{name}_{index}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                shade = tuple(min(255, c + 3 * index) for c in colour)
                Image.new("RGB", (50, 40), shade).save(path, "JPEG")
    return root


@pytest.fixture(scope="module")
def run(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    recipe = ["imagenet1k", "--data.root", str(imagenet), *TINY, "--train.epochs=12",
              "--train.warmup=0.08", "--train.lr=3e-3"]  # fmt: skip
    assert main(["train", *recipe, "--out", str(out)]) == 0
    return out


def test_the_epoch_is_chosen_by_accuracy(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["best_val_top1"] == max(row["val_top1"] for row in rows)
    assert figures["images_in_splits"] == {"train": 36, "val": 12, "test": 12}
    with np.load(run / "predictions.npz", allow_pickle=False) as saved:
        probs, targets = saved["probs"], saved["targets"]
    assert np.allclose(probs.sum(1), 1, atol=1e-5)
    expected = top_k_accuracy_score(targets.argmax(1), probs, k=1)
    assert figures["top1"] == pytest.approx(expected)
    assert figures["top1"] > 0.9  # three colours
    assert "top5" not in figures  # of three classes


def test_no_command_leads_to_thresholds_that_are_refused(run: Path, caplog, capsys) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert caplog.messages[-1] == f"next: mltr diagnose {run}"
    assert main(["calibrate", str(run)]) == 2
    assert "one class per image" in capsys.readouterr().err


def test_predictions_are_shares_of_one(run: Path, imagenet: Path, tmp_path: Path, capsys) -> None:
    tagger = mltr.load(run)
    image = imagenet / "val" / "n02" / "n02_0.JPEG"
    prediction = tagger(image)
    assert prediction.probs.sum() == pytest.approx(1, abs=1e-5)
    bundle = load_bundle(run)
    pixels = torch.from_numpy(bundle.preprocess(Image.open(image)))[None]
    with torch.inference_mode():
        logits = bundle.model(pixels).numpy()
    assert np.allclose(prediction.probs, softmax(logits[0]), atol=1e-5)
    again = tmp_path / "again.json"
    assert main(["evaluate", str(run), "--rerun", "--json", str(again)]) == 0
    assert "top1" in capsys.readouterr().out
    assert json.loads(again.read_text())["top1"] == pytest.approx(
        json.loads((run / "metrics.json").read_text())["top1"]
    )
    for options in ([], ["--reset"]):
        assert main(["calibrate", str(run), *options]) == 2
        assert "predicts one class" in capsys.readouterr().err
    assert mltr.load(run)(image).probs.sum() == pytest.approx(1, abs=1e-5)


def test_an_audit_judges_by_shares_of_one(run: Path, imagenet: Path, tmp_path: Path) -> None:
    asked = ["--split", "test", "--top", "36", "--no-duplicates", "--out", str(tmp_path)]
    assert main(["audit", str(run), *asked]) == 0
    with (tmp_path / "issues.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    tagger = mltr.load(run)
    for row in rows:
        prediction = tagger(imagenet / "val" / row["image"])
        prob = prediction.probs[prediction.classes.index(row["class"])]
        assert float(row["probability"]) == pytest.approx(prob, abs=2e-3)


def test_a_multi_label_training_starts_from_it(run: Path, tmp_path: Path, capsys) -> None:
    rows = ["path,sea,sky"]
    for index in range(24):
        write_image(tmp_path / "photos" / f"{index}.png", (40, 30))
        rows.append(f"{index}.png,{index % 2},{index // 2 % 2}")
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    out = tmp_path / "tuned"
    photos = ["--data.root", str(tmp_path / "photos"), "--data.base_size=0", "--data.cache=false"]
    command = ["train", "scratch", *photos, *TINY, "--train.epochs=1"]
    assert main([*command, "--model.init", str(run), "--out", str(out)]) == 0
    assert "best_val_map" in json.loads((out / "metrics.json").read_text())
    tuned = mltr.load(out)
    assert tuned.classes == ("sea", "sky")
    assert tuned.calibration is None
    assert main([*command, "--loss.name=ce", "--out", str(tmp_path / "wrong")]) == 2
    message = capsys.readouterr().err
    assert "needs one label per image; " in message
    table = [
        "path,sea,sky,sand",
        *(f"{i}.png,{('1,0,', ',1,0', '0,,1')[i % 3]}" for i in range(24)),
    ]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(table))
    assert main([*command, "--loss.name=ce", "--out", str(tmp_path / "wrong")]) == 2
    assert "--data.missing negative takes them as absent" in capsys.readouterr().err


def test_the_folders_of_imagenet_and_their_splits(imagenet: Path, tmp_path: Path) -> None:
    config = DataConfig(root=str(imagenet), val_fraction=0.25)
    splits = open_splits(config)
    assert splits.train.classes == tuple(COLOURS)
    assert splits.test.names[0] == "n01/n01_0.JPEG"
    assert splits.val.targets.sum(0).tolist() == [4, 4, 4]
    assert main(["shard", str(imagenet), "--val_fraction", "0.25", "--out", str(tmp_path)]) == 0
    packed = open_splits(DataConfig(root=str(tmp_path)))
    assert [len(split) for split in packed] == [len(split) for split in splits]
    assert sorted(packed.val.names) == sorted(splits.val.names)
