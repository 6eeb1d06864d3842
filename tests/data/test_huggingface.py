"""Hugging Face data sets: saved, as Parquet, as image folders, and from a Hub on loopback."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from fake_hub import running_hub
from making import write_image
from PIL import Image

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data.readers.huggingface import DatasetImage, read_dataset
from mltr.data.sources import open_splits
from mltr.errors import BrokenImage, MltrError, UsageError

NAMES = ["cat", "dog", "sea"]


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (12 + index, 10), (index * 5 % 256, 40, 90))


def make(
    count: int, labels: list[Any], feature: Any, image: str = "image", column: str = "labels"
) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {image: [picture(i) for i in range(count)], column: labels},
        features=datasets.Features({image: datasets.Image(), column: feature}),
    )


LISTS = datasets.List(datasets.ClassLabel(names=NAMES))


def test_class_labels_of_a_saved_data_set(tmp_path: Path) -> None:
    parts = {
        "train": make(12, [[i % 3] if i % 4 else [0, 2] for i in range(12)], LISTS),
        "validation": make(4, [[0], [1], [2], []], LISTS),
        "test": make(3, [[0, 1, 2], None, [1]], LISTS),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    splits = open_splits(DataConfig(root=str(tmp_path / "saved")))
    assert splits.train.classes == tuple(NAMES)
    assert [len(split) for split in splits] == [12, 4, 3]
    assert splits.val.targets.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert splits.test.targets.tolist() == [[1, 1, 1], [-1, -1, -1], [0, 1, 0]]
    assert splits.train[0].labels.tolist() == [1, 0, 1]
    hidden = make(4, [[-1], [None], [2, None], []], LISTS)
    hidden.save_to_disk(tmp_path / "hidden")
    assert read_dataset(tmp_path / "hidden")["train"].targets.tolist() == [
        [-1, -1, -1], [-1, -1, -1], [0, 0, 1], [0, 0, 0],
    ]  # fmt: skip
    opened = splits.train[5].image.load()  # type: ignore[union-attr]
    assert np.array_equal(np.asarray(opened), np.asarray(picture(5)))
    assert len({record.name for split in splits for record in split}) == 19


def test_lists_of_names_in_parquet_and_one_split_only(tmp_path: Path) -> None:
    texts = [["sea", "dog"], ["cat"], [], *([["sea"], ["cat", "dog"]] * 10)]
    part = make(len(texts), texts, datasets.List(datasets.Value("string")))
    (tmp_path / "data").mkdir()
    part.to_parquet(tmp_path / "data" / "train-00000.parquet")
    config = DataConfig(root=str(tmp_path / "data"), format="huggingface", test_fraction=0.25)
    splits = open_splits(config)
    assert splits.train.classes == ("cat", "dog", "sea")
    assert sum(len(split) for split in splits) == len(texts)
    together = {record.name: record.labels.tolist() for split in splits for record in split}
    assert together["train/0"] == [0, 1, 1]
    assert together["train/2"] == [0, 0, 0]


def test_a_folder_of_images_with_metadata(tmp_path: Path) -> None:
    lines = []
    for index in range(4):
        write_image(tmp_path / "train" / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "tags": NAMES[: index % 3 + 1]}))
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    split = read_dataset(tmp_path, labels="tags")["train"]
    assert split.targets.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert split[1].image.load().size == (24, 20)  # type: ignore[union-attr]


def test_one_label_a_row_and_a_hidden_one(tmp_path: Path) -> None:
    make(3, [2, -1, 0], datasets.ClassLabel(names=NAMES)).save_to_disk(tmp_path / "saved")
    split = read_dataset(tmp_path / "saved")["train"]
    assert split.targets.tolist() == [[0, 0, 1], [-1, -1, -1], [1, 0, 0]]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": None}, None], "labels": [[0], [1]]},
        features=datasets.Features({"image": datasets.Image(), "labels": LISTS}),
    )
    part.save_to_disk(tmp_path / "saved")
    split = read_dataset(tmp_path / "saved")["train"]
    with pytest.raises(BrokenImage, match="row 0: .*not an image"):
        split[0].image.load()  # type: ignore[union-attr]
    with pytest.raises(BrokenImage, match="row 1: no image"):
        split[1].image.load()  # type: ignore[union-attr]


def test_records_travel_to_workers_and_are_recognised(tmp_path: Path) -> None:
    make(3, [[0], [1], [2]], LISTS).save_to_disk(tmp_path / "saved")
    first, again = (read_dataset(tmp_path / "saved")["train"] for _ in range(2))
    image = pickle.loads(pickle.dumps(first[2].image))
    assert isinstance(image, DatasetImage)
    assert np.array_equal(np.asarray(image.load()), np.asarray(picture(2)))
    assert repr(first[2].image) == repr(again[2].image) != repr(first[1].image)


def test_a_run_trains_on_a_saved_data_set(tmp_path: Path) -> None:
    labels = [[i % 3] for i in range(36)]
    datasets.DatasetDict(
        {"train": make(36, labels, LISTS), "test": make(9, labels[:9], LISTS)}
    ).save_to_disk(tmp_path / "saved")
    options = ["--data.root", str(tmp_path / "saved"), "--train.epochs", "1"]
    options += ["--train.batch_size", "8", "--data.base_size", "32", "--model.image_size", "32"]
    assert main(["train", "scratch", "--out", str(tmp_path / "run"), *options]) == 0
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["images_in_splits"]["test"] == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": "imag"}, "did you mean 'image'"),
        ({"labels": "image"}, "no labels column 'image'; .*: labels, more"),
        ({}, "set data.labels to the column of the labels.*: labels, more"),
    ],
)
def test_columns_are_asked_for(tmp_path: Path, options: dict[str, str], words: str) -> None:
    part = make(2, [[0], [1]], LISTS)
    part.add_column("more", [["a"], ["b"]]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match=words):
        read_dataset(tmp_path / "saved", **options)


def test_what_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MltrError, match="can't be loaded"):
        read_dataset(tmp_path)
    make(2, [[0], [1]], LISTS).save_to_disk(tmp_path / "saved")
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(MltrError, match="can't be loaded"):
        read_dataset(tmp_path / "saved")
    datasets.DatasetDict({"odd": make(1, [[0]], LISTS)}).save_to_disk(tmp_path / "odd")
    with pytest.raises(MltrError, match="split 'odd'"):
        read_dataset(tmp_path / "odd")


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    """`hf-datasets:OWNER/NAME`, from a server on loopback, described by `mltr data`."""
    buffer = io.BytesIO()
    make(24, [[i % 3] for i in range(24)], LISTS).to_parquet(buffer)
    with running_hub() as hub:
        hub.repositories["me/photos"] = {"data/train-00000-of-00001.parquet": buffer.getvalue()}
        result = subprocess.run(
            [sys.executable, "-m", "mltr", "data", "hf-datasets:me/photos", "--json", "-"],
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr + "\n".join(hub.requests)
        missing = subprocess.run(
            [sys.executable, "-m", "mltr", "data", "hf-datasets:me/none"],
            env=os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    figures = json.loads(result.stdout)["hf-datasets:me/photos"]
    assert sum(part["images"] for part in figures["splits"].values()) == 24
    assert missing.returncode == 1
    assert "hf-datasets:me/none can't be loaded" in missing.stderr
