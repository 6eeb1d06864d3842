"""Splits that folders, lists and columns state: kept as they are, or asked about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from making import write_image
from tables import write_rows
from tool_labels import LABELS, described, write_beside, write_boxes, write_yolo_lists

from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.errors import MltrError, UsageError

NAMES = list(LABELS)
PARTS: Mapping[str, list[str]] = {"train": NAMES[:6], "val": NAMES[6:9], "test": NAMES[9:]}


def photos_in(root: Path) -> dict[str, set[str]]:
    """Return the photos of each split, by their names alone."""
    splits = open_splits(DataConfig(root=str(root)))
    return {split.name: {Path(record.name).name for record in split} for split in splits}


def as_stated() -> dict[str, set[str]]:
    return {part: set(names) for part, names in PARTS.items()}


@pytest.mark.parametrize("called", [("train", "val", "test"), ("Training", "Valid", "Testing")])
@pytest.mark.parametrize("kind", ["tags", "keywords", "classes"])
def test_splits_in_folders(tmp_path: Path, called: tuple[str, ...], kind: str) -> None:
    for folder, names in zip(called, PARTS.values(), strict=True):
        for place, name in enumerate(names):
            if kind == "tags":
                path = write_image(tmp_path / folder / name)
                path.with_suffix(".txt").write_text(", ".join(LABELS[name]) or "Plane")
            elif kind == "keywords":
                pytest.importorskip("lxml")
                (tmp_path / folder).mkdir(exist_ok=True)
                write_beside(tmp_path / folder, name, LABELS[name] or ["Plane"])
            else:
                write_image(tmp_path / folder / ("Boat", "Car")[place % 2] / name)
    assert photos_in(tmp_path) == as_stated()


@pytest.mark.parametrize(
    "folders", [("2019", "train station", "Training"), ("Test 1", "Test 2"), ("Test",), ("dev1",)]
)
def test_a_folder_that_happens_to_be_called_so_is_no_split(
    tmp_path: Path, folders: tuple[str, ...]
) -> None:
    for number, name in enumerate(NAMES):
        path = write_image(tmp_path / folders[number % len(folders)] / name)
        path.with_suffix(".txt").write_text(", ".join(LABELS[name]) or "Plane")
    assert sum(map(len, photos_in(tmp_path).values())) == len(NAMES)


def test_photos_beside_splits_are_asked_about(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        path = write_image(tmp_path / ("train", "train", "test", "holidays")[number % 4] / name)
        path.with_suffix(".txt").write_text(", ".join(LABELS[name]) or "Plane")
    with pytest.raises(UsageError, match="holidays holds photos, and is none of the splits"):
        open_splits(DataConfig(root=str(tmp_path)))
    assert sum(map(len, open_splits(DataConfig(root=str(tmp_path), ignore="holidays")))) == 9


def test_classes_that_are_called_like_splits(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES * 2):
        label = ("Training/2019", "Matches/2020", "Travel/2019")[number % 3]
        write_image(tmp_path / label / f"{number}-{name}")
    splits = open_splits(DataConfig(root=str(tmp_path), format="class_folders"))
    assert splits.train.classes == ("Matches", "Training", "Travel")
    assert sum(map(len, splits)) == 2 * len(NAMES)


def test_a_class_that_a_split_lacks_has_no_photo_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("train/Boat", "train/Car", "val/Boat"):
        for name in NAMES:
            write_image(tmp_path / folder / f"{folder.replace('/', '-')}-{name}")
    write_image(tmp_path / "test" / "0.jpg")  # as Kaggle has it, without labels
    (tmp_path / "train" / "empty").mkdir()
    report = described(capsys, tmp_path)
    assert report["classes"] == ["Boat", "Car"]
    assert report["splits"]["test"]["images"] == len(NAMES)
    counts = report["understood"]["counts"]
    assert counts["photos in test, which has no class folders, left out"] == 1


def test_two_folders_of_one_split_are_asked_about(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "val/a", "valid/a"):
        write_image(tmp_path / folder / f"{folder.replace('/', '-')}.jpg")
    with pytest.raises(UsageError, match="val and valid are both folders of the split val"):
        open_splits(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize(
    "start", ["./images/", "/content/drive/set/images/", "data/images/", "images\\", "D:\\set\\"]
)
def test_lists_of_yolo_by_paths_of_another_machine(tmp_path: Path, start: str) -> None:
    write_yolo_lists(tmp_path)
    for part, names in PARTS.items():
        (tmp_path / f"{part}.txt").write_text("\n".join(start + name for name in names))
    assert photos_in(tmp_path) == as_stated()
    path = tmp_path / "data.yaml"
    path.write_text(path.read_text().replace("train: train.txt", "train: D:\\set\\train.txt"))
    assert photos_in(tmp_path) == as_stated()
    (tmp_path / "val.txt").write_text("x.jpg\n")
    with pytest.raises(MltrError, match=r"val.txt: none of its photos is in"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_lists_of_yolo_name_photos_by_the_whole_path_first(tmp_path: Path) -> None:
    write_yolo_lists(tmp_path)
    for name in NAMES:
        write_image(tmp_path / "backup" / "images" / name)
    found = open_splits(DataConfig(root=str(tmp_path), unlabelled="drop"))
    assert [len(split) for split in found] == [6, 3, 3]
    (tmp_path / "train.txt").write_text("/elsewhere/0.jpg\n")
    with pytest.raises(MltrError, match=r"may be one of several photos called 0.jpg"):
        open_splits(DataConfig(root=str(tmp_path)))


@pytest.mark.parametrize("called", ["obj_{}_data", "VisDrone2019-DET-{}", "clips-{}"])
def test_folders_of_yolo_that_say_their_split_among_other_words(
    tmp_path: Path, called: str
) -> None:
    for part, names in PARTS.items():
        folder = tmp_path / called.format(part)
        for name in names:
            write_image(folder / "images" / name)
            write_boxes((folder / "labels" / name).with_suffix(".txt"), LABELS[name])
    (tmp_path / "classes.txt").write_text("Boat\nCar\n")
    assert photos_in(tmp_path) == as_stated()


def test_a_split_that_yolo_states_has_no_other_photos(tmp_path: Path) -> None:
    folders = {"train": "train", "val": "val", "test": "train_unlabelled"}
    for part, names in PARTS.items():
        for name in names:
            write_image(tmp_path / "images" / folders[part] / name)
            text = (tmp_path / "labels" / folders[part] / name).with_suffix(".txt")
            if part != "test":
                write_boxes(text, LABELS[name])
    yaml = tmp_path / "data.yaml"
    yaml.write_text("train: images/train\nval: images/val\nnames: [Boat, Car]\n")
    splits = open_splits(DataConfig(root=str(tmp_path), test_fraction=0.3))
    assert sum(len(split) for split in splits) == 9
    assert splits.train.notes["photos_in_no_split_left_out"] == 3


def test_a_copy_of_yolo_has_its_own_splits(tmp_path: Path) -> None:
    for root in (tmp_path / "original", tmp_path / "copy"):
        for place, (part, names) in enumerate(PARTS.items()):
            for name in names:
                write_image(root / "images" / f"fold{place}" / name)
                text = (root / "labels" / f"fold{place}" / name).with_suffix(".txt")
                write_boxes(text, LABELS[name])
            with (root / "data.yaml").open("a") as file:
                file.write(f"{part}: images/fold{place}\n")
        with (root / "data.yaml").open("a") as file:
            file.write(f"path: {tmp_path / 'original'}\nnames: [Boat, Car]\n")
    assert photos_in(tmp_path / "copy") == as_stated()


def test_photos_of_yolo_in_two_splits_are_in_the_first(tmp_path: Path) -> None:
    for name, labels in LABELS.items():
        write_image(tmp_path / "images" / "train2017" / name)
        write_boxes((tmp_path / "labels" / "train2017" / name).with_suffix(".txt"), labels)
    (tmp_path / "data.yaml").write_text(
        "train: images/train2017\nval: images/train2017\nnames: [Boat, Car]\n"
    )
    assert {part: len(own) for part, own in photos_in(tmp_path).items()} == {
        "train": 9,
        "val": 1,
        "test": 2,
    }


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("split", ("train", "val", "test")),
        ("usage", ("Training", "Validation", "Test")),
        ("is_valid", ("0", "1", None)),
        ("is_training_image", ("1", None, "0")),
        ("coco_split,split", ("val,train", "train,val", "train,test")),
        ("is_test", ("False", None, "True")),
    ],
)
def test_columns_that_divide(
    tmp_path: Path, column: str, words: tuple[str | None, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    rows, sizes = [], {}
    for (part, names), word in zip(PARTS.items(), words, strict=True):
        sizes[part] = len(names) if word else None
        for name in names if word else ():
            write_image(tmp_path / name)
            rows.append(f"{name},{' '.join(LABELS[name]) or 'Plane'},{word}")
    write_rows(tmp_path, f"path,labels,{column}", rows, "train.csv")  # called so or not
    report = described(capsys, tmp_path, "--data.test_fraction=0.2")
    found = {part: split["images"] for part, split in report["splits"].items()}
    assert all(found[part] == size for part, size in sizes.items() if size and part != "train")
    assert report["classes"] == ["Boat", "Car", "Plane"]


def test_a_column_divides_the_table_for_training(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / name)
    rows = [f"{name},Boat,{part}" for part in ("train", "val") for name in PARTS[part]]
    write_rows(tmp_path, "path,labels,split", rows, "train.csv")
    write_rows(tmp_path, "path,labels", [f"{name},Boat" for name in PARTS["test"]], "test.csv")
    assert photos_in(tmp_path) == as_stated()


@pytest.mark.parametrize(
    "header", ["path,is_car,is_bus,is_train", "path,is_valid_image,car,is_train"]
)
def test_a_class_or_a_mark_that_is_called_like_a_flag(
    tmp_path: Path, header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{name},{n % 2},{n % 3 % 2},{n % 4 % 2}" for n, name in enumerate(NAMES)]
    for name in NAMES:
        write_image(tmp_path / name)
    write_rows(tmp_path, header, rows, "labels.csv")
    report = described(capsys, tmp_path)
    assert report["classes"] == header.split(",")[1:]


def test_columns_and_tables_that_disagree_are_asked_about(tmp_path: Path) -> None:
    for part in ("train", "test"):
        rows = [f"{name},{' '.join(LABELS[name]) or 'Plane'},train" for name in PARTS[part]]
        write_rows(tmp_path, "path,labels,split", rows, f"{part}.csv")
        for name in PARTS[part]:
            write_image(tmp_path / name)
    with pytest.raises(UsageError, match="its name says test, and a column of it train"):
        open_splits(DataConfig(root=str(tmp_path)))
    rows = [f"{name},Boat,{int(n > 3)},{int(n < 3)}" for n, name in enumerate(PARTS["train"])]
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").unlink()
    write_rows(tmp_path, "path,labels,is_valid,is_test", rows, "labels.csv")
    with pytest.raises(UsageError, match="is_valid, is_test all say which split"):
        open_splits(DataConfig(root=str(tmp_path)))
