"""Every reader on real files, where they are, and on small ones that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import write_image, write_voc

from mltr.config.schema import DataConfig
from mltr.data import (
    Split,
    detect_format,
    open_splits,
    read_class_folders,
    read_coco,
    read_csv,
    read_folder,
    read_nuswide,
    read_parquet,
    read_voc,
)
from mltr.errors import MltrError, UsageError


def positives(split: Split, name: str) -> int:
    return int((split.targets[:, split.classes.index(name)] == 1).sum())


# -- real annotation files ---------------------------------------------------------------------


def test_voc2007_lists(shared: Path) -> None:
    root = shared / "data" / "voc2007_imagesets"
    counts = {name: len(read_voc(root, name)) for name in ("train", "val", "trainval", "test")}
    assert counts == {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952}
    trainval = read_voc(root, "trainval")
    assert (positives(trainval, "person"), positives(trainval, "car")) == (2008, 713)
    assert len(trainval.missing()) == 5011  # lists only: told, not hidden
    with pytest.raises(MltrError, match=r"9963 of 9,963 image files are missing"):
        open_splits(DataConfig(root=str(root)))


def test_voc2012_xml(shared: Path) -> None:
    root = shared / "data" / "voc2012_100"
    by_choice = {
        choice: read_voc(root, "all", difficult=choice)
        for choice in ("ignore", "negative", "positive")
    }
    ignored = by_choice["ignore"].targets == -1
    assert ignored.any()
    assert (by_choice["negative"].targets[ignored] == 0).all()
    assert (by_choice["positive"].targets[ignored] == 1).all()
    with_difficult = sum(any(b.difficult for b in r.boxes) for r in by_choice["ignore"])
    assert with_difficult == 23
    splits = open_splits(DataConfig(root=str(root)))
    assert sum(len(split) for split in splits) == 100


def test_coco_mini(shared: Path) -> None:
    root = shared / "data" / "coco_mini"
    val = read_coco(root, "val")
    content = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    by_image = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].add(annotation["category_id"])
    assert len(read_coco(root, "train")) == 80
    assert len(val) == 79  # 80 more files lie beside them
    assert len(val.classes) == 80
    assert val.classes[0] == "person"
    assert val.classes[-1] == "toothbrush"
    ids = sorted(category["id"] for category in content["categories"])
    for record, image in zip(val, content["images"], strict=True):
        assert {ids[k] for k in np.flatnonzero(record.labels)} == by_image[image["id"]]
    areas = sorted(a["area"] for a in content["annotations"])
    assert sorted(box.area for record in val for box in record.boxes) == areas
    assert val.missing() == []


def test_nuswide_rows(shared: Path) -> None:
    root = shared / "data" / "nuswide_rows"
    train = read_nuswide(root)
    assert (len(train), len(train.classes)) == (5000, 81)
    assert "\\" not in train[0].name
    assert train.notes["missing_files"] == 5000
    column = (root / "TrainTestLabels" / f"Labels_{train.classes[5]}_Train.txt").read_text()
    assert train.targets[:, 5].tolist() == [int(value) for value in column.split()]
    labelled = read_nuswide(root, "test", "labelled")
    assert labelled.targets.any(axis=1).all()
    assert len(labelled) + labelled.notes["unlabelled_dropped"] == 5000


def test_miml_tables_agree(shared: Path) -> None:
    root = shared / "data" / "miml"
    one_hot, lists = (read_csv(root / f"miml_labels_{number}.csv") for number in (1, 2))
    assert one_hot.classes == lists.classes == ("desert", "mountains", "sea", "sunset", "trees")
    assert np.array_equal(one_hot.targets, lists.targets)
    assert len(one_hot) == 2000
    assert one_hot.targets.sum() / 2000 == pytest.approx(1.24, abs=0.005)
    splits = open_splits(DataConfig(root=str(root), labels="miml_labels_1.csv"))
    names = [record.name for split in splits for record in split]
    assert len(set(names)) == len(names) == 2000
    assert len(splits.test) == pytest.approx(400, abs=4)


# -- COCO --------------------------------------------------------------------------------------


def write_coco(root: Path, year: str = "2017") -> None:
    for split in ("train", "val"):
        images = [{"id": 10 + i, "file_name": f"{split}{i}.jpg"} for i in range(6)]
        boxes = [
            {"image_id": 10 + i, "category_id": (90, 3)[i % 2], "bbox": [1, 2, 3, 4], "area": 9.5,
             "iscrowd": int(i == 4)}
            for i in range(5)
        ]  # fmt: skip
        categories = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}]
        path = root / "annotations" / f"instances_{split}{year}.json"
        path.parent.mkdir(exist_ok=True)
        content = {"images": images, "annotations": boxes, "categories": categories}
        path.write_text(json.dumps(content))
        for image in images:
            write_image(root / f"{split}{year}" / image["file_name"])


def test_coco_order_crowds_and_unlabelled(tmp_path: Path) -> None:
    write_coco(tmp_path)
    kept = read_coco(tmp_path)
    assert kept.classes == ("car", "toothbrush")
    assert kept.targets.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]
    box = kept[4].boxes[0]
    assert (box.crowd, box.area, box.x) == (True, 9.5, 1)
    assert kept.notes == {"unlabelled_kept": 1}
    assert len(read_coco(tmp_path, unlabelled="drop")) == 5


def test_an_image_that_coco_lists_twice_counts_once_or_is_refused(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"].append({"id": 99, "file_name": "train5.jpg"})
    path.write_text(json.dumps(content))
    assert len(read_coco(tmp_path)) == 6
    content["annotations"].append({"image_id": 99, "category_id": 3, "bbox": [1, 2, 3, 4]})
    path.write_text(json.dumps(content))
    with pytest.raises(MltrError, match=r"train5.jpg is listed twice, with other labels"):
        read_coco(tmp_path)


def test_coco_files_are_matched_by_name(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 3, "name": "toothbrush"}, {"id": 90, "name": "car"}]
    path.write_text(json.dumps(content))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert splits.test.classes == ("car", "toothbrush")
    assert splits.test.targets.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 0]]
    assert [box.class_index for box in splits.test[1].boxes] == [1]


def test_categories_of_coco_without_annotations_are_reported(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for path in (tmp_path / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        content["categories"] += [{"id": 0, "name": "car"}, {"id": 1, "name": "objects"}]
        path.write_text(json.dumps(content))
    assert read_coco(tmp_path).classes == ("car", "objects", "toothbrush")
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert splits.train.classes == splits.test.classes == ("car", "toothbrush")
    assert splits.test.targets.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [0, 0]]
    assert splits.understood.passed_over == ("objects",)
    known = open_splits(DataConfig(root=str(tmp_path)), known=["objects"])
    assert known.train.classes == ("car", "objects", "toothbrush")


def test_photos_of_coco_are_those_that_are_named(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for number in range(6):
        for split in ("train", "val"):
            write_image(tmp_path / "large" / f"{split}{number}.jpg")
    for labels in ("", "annotations/instances_train2017.json"):
        splits = open_splits(DataConfig(root=str(tmp_path), labels=labels, images="large"))
        records = [record for split in splits for record in split]
        assert {record.image.parent.name for record in records} == {"large"}
    with pytest.raises(MltrError, match="elsewhere"):
        open_splits(DataConfig(root=str(tmp_path), images="elsewhere"))


def test_coco_of_two_years_asks_which(tmp_path: Path) -> None:
    write_coco(tmp_path, "2014")
    write_coco(tmp_path, "2017")
    with pytest.raises(UsageError, match=r"2014 and 2017: choose one with data.year"):
        read_coco(tmp_path)
    assert read_coco(tmp_path, year="2014")[0].image.parent.name == "train2014"


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not a complete JSON"), ("{}", "not COCO"), ('{"categories": 3}', "not COCO")],
)
def test_damaged_coco_is_named(tmp_path: Path, content: str, words: str) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(MltrError, match=f"instances_val2017.json.*{words}"):
        read_coco(tmp_path, "val")


# -- VOC ---------------------------------------------------------------------------------------


def test_voc_lists_and_xml_agree(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        for difficult in ("ignore", "negative", "positive"):
            lists = read_voc(root, "trainval", difficult=difficult, source="lists")
            xml = read_voc(root, "trainval", difficult=difficult, source="xml")
            assert np.array_equal(lists.targets, xml.targets)
    assert lists[0].boxes[0].x == 9  # VOC counts from 1
    assert lists[0].boxes[0].area == 11 * 21
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert [split.name for split in splits] == ["train", "val", "test"]
    assert {r.name for r in splits.test} == {r.name for r in read_voc(tmp_path, "test")}


def test_voc_2012_reports_on_its_val(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2012")
    lists = tmp_path / "VOC2012" / "ImageSets" / "Main"
    for path in lists.glob("*.txt"):
        if path.stem.endswith("test"):
            path.rename(path.with_name(path.name.replace("test", "val")))
    for path in list(lists.glob("*_trainval.txt")):
        path.rename(path.with_name(path.name.replace("trainval", "train")))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert {r.name for r in splits.test} == {r.name for r in read_voc(tmp_path, "val")}


def test_damaged_voc_is_named(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    write_voc(root)
    (root / "Annotations" / "000000.xml").write_text("<annotation><object>")
    with pytest.raises(MltrError, match="000000.xml: not a VOC annotation"):
        read_voc(root, "trainval")
    (root / "ImageSets" / "Main" / "car_trainval.txt").write_text("000000 2\n")
    with pytest.raises(MltrError, match=r"car_trainval.txt, line 1: expected 'IMAGE 1\|0\|-1'"):
        read_voc(root, "trainval")


# -- NUS-WIDE ----------------------------------------------------------------------------------


def write_nuswide(root: Path, labels_folder: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "Concepts81.txt").write_text("sky\nsea\n")
    for part, count in (("Train", 20), ("Test", 10)):
        names = [f"{part.lower()}\\{i:04d}.jpg" for i in range(count)]
        (root / "ImageList").mkdir(exist_ok=True)
        (root / "ImageList" / f"{part}Imagelist.txt").write_text("\r\n".join(names) + "\r\n")
        for concept, step in (("sky", 2), ("sea", 3)):
            path = root / labels_folder / f"Labels_{concept}_{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{int(i % step == 0)}\n" for i in range(count)))
        for name in names:
            write_image(root / "Flickr" / name.replace("\\", "/"))


@pytest.mark.parametrize("folder", ["TrainTestLabels", "Groundtruth/TrainTestLabels"])
def test_nuswide_protocols(tmp_path: Path, folder: str) -> None:
    write_nuswide(tmp_path, folder)
    assert [len(read_nuswide(tmp_path, split)) for split in ("train", "test")] == [20, 10]
    labelled = read_nuswide(tmp_path, "train", "labelled")
    assert len(labelled) == sum(i % 2 == 0 or i % 3 == 0 for i in range(20))
    (tmp_path / "Flickr" / "train" / "0003.jpg").unlink()
    parts = [read_nuswide(tmp_path, split, "ratio_70_30") for split in ("train", "test")]
    assert [len(part) for part in parts] == [20, 9]
    assert parts[0].notes == {"missing_files": 1}
    assert not {r.name for r in parts[0]} & {r.name for r in parts[1]}
    assert detect_format(tmp_path) == "nuswide"


def test_nuswide_labels_that_disagree_are_named(tmp_path: Path) -> None:
    write_nuswide(tmp_path, "TrainTestLabels")
    (tmp_path / "TrainTestLabels" / "Labels_sea_Test.txt").write_text("1\n0\n")
    with pytest.raises(MltrError, match=r"Labels_sea_Test.txt: expected 10 lines of 0 or 1"):
        read_nuswide(tmp_path, "test")


# -- tables ------------------------------------------------------------------------------------


def write_table(folder: Path, text: str, images: int = 4) -> Path:
    for index in range(images):
        write_image(folder / f"{index}.jpg")
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_one_hot_with_unknown_cells(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,cat,dog\n0.jpg,1,0\n1.jpg,-1,1\n2.jpg,,0\n3.jpg,0,0\n")
    assert read_csv(path, absent=0).targets.tolist() == [[1, 0], [-1, 1], [-1, 0], [0, 0]]


def test_label_lists(tmp_path: Path) -> None:
    path = write_table(
        tmp_path, '\ufeffpath,tags\n0.jpg,"cat, dog"\n1.jpg,"dog,fox"\n2.jpg,\n3.jpg,cat\n'
    )
    split = read_csv(path)
    assert split.classes == ("cat", "dog", "fox")
    assert split.targets.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]


def test_parquet_of_lists_and_one_hot(tmp_path: Path) -> None:
    write_table(tmp_path, "")
    paths = [f"{i}.jpg" for i in range(3)]
    pq.write_table(
        pa.table({"path": paths, "tags": [["a", "b"], [], ["b"]]}), tmp_path / "l.parquet"
    )
    pq.write_table(
        pa.table({"path": paths, "a": [1, 0, None], "b": [1, 0, 1]}), tmp_path / "o.parquet"
    )
    assert read_parquet(tmp_path / "l.parquet").targets.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert read_parquet(tmp_path / "o.parquet").targets.tolist() == [[1, 1], [0, 0], [-1, 1]]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(MltrError, match="bad.parquet: not a complete Parquet file"):
        read_parquet(tmp_path / "bad.parquet")


def test_repeated_rows(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,cat\n0.jpg,1\n1.jpg,0\n0.jpg,1\n")
    split = read_csv(path)
    assert (len(split), split.notes["duplicate_rows_dropped"]) == (2, 1)
    path.write_text("path,cat\n0.jpg,1\n1.jpg,0\n0.jpg,0\n")
    with pytest.raises(MltrError, match=r"row 4: '0.jpg' is also in row 2, with other labels"):
        read_csv(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,cat,dog\n0.jpg,1,2\n", r"row 2, column 'dog': '2' is not 1, 0, -1 or empty"),
        ("path,cat,dog\n0.jpg,1\n", r"row 2: 2 columns, but the header has 3"),
        ("path,cat\n", "at least one row"),
        ("path\n0.jpg\n", "needs a header"),
        ("path,cat,cat\n0.jpg,1,1\n", "same name"),
        ("path,cat,dog\n,1,1\n", "no image path"),
        (
            "path,cat\nelsewhere.jpg,1\n",
            r"none of its 1 images is in .*'elsewhere.jpg'.*data.images",
        ),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = write_table(tmp_path, text)
    with pytest.raises(MltrError, match=words):
        read_csv(path)


def test_unknown_class_in_a_list(tmp_path: Path) -> None:
    write_table(tmp_path, 'path,tags\n0.jpg,"cat,dgo"\n')
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    config = DataConfig(root=str(tmp_path), classes="classes.txt")
    with pytest.raises(MltrError, match=r"row 2: unknown class 'dgo'; did you mean 'dog'"):
        open_splits(config)


def test_a_split_column_is_kept(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{i % 2},{('train', 'train', 'val', 'test')[i % 4]}" for i in range(20)]
    write_table(tmp_path, "path,cat,split\n" + "\n".join(rows), images=20)
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert [len(split) for split in splits] == [10, 5, 5]
    assert splits.train.classes == ("cat",)
    write_table(tmp_path, "path,cat,split\n" + "\n".join(rows).replace("val", "vla"), images=20)
    with pytest.raises(MltrError, match="has split 'vla'"):
        open_splits(DataConfig(root=str(tmp_path)))


# -- folders -----------------------------------------------------------------------------------


def test_sidecars(tmp_path: Path) -> None:
    for name, tags in (
        ("a.jpg", "sea, sky\n"),
        ("b.png", "sky\nsea\n"),
        ("sub/c.jpg", ""),
        ("d.jpg", None),
    ):
        write_image(tmp_path / name)
        if tags is not None:
            (tmp_path / name).with_suffix(".txt").write_text(tags)
    split = read_folder(tmp_path)
    assert split.classes == ("sea", "sky")
    assert split.targets.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert split.understood.counts == {"photos without a .txt file, left out": 1}
    assert detect_format(tmp_path) == "sidecars"
    with pytest.raises(MltrError, match=r"a.jpg: unknown class 'sky'"):
        read_folder(tmp_path, ["sea", "beach"])


def test_class_folders(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3)):
        for number, name in enumerate(("cat", "dog")):
            for index in range(count):
                write_image(tmp_path / part / name / f"{index}.jpg", seed=2 * index + number)
    split = read_class_folders(tmp_path / "train")
    assert split.classes == ("cat", "dog")
    assert split.targets.sum(0).tolist() == [10, 10]
    assert detect_format(tmp_path) == "class_folders"
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert [len(part) for part in splits] == [18, 2, 6]  # val is what everybody reports on


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (read_coco, "no instances_train"),
        (read_voc, "holds no VOC"),
        (read_nuswide, "no such list of classes"),
        (read_folder, "none of its 0 images"),
        (read_class_folders, "no folders of images"),
        (read_csv, "no such table"),
    ],
)
def test_an_empty_folder_is_explained(tmp_path: Path, reader, words: str) -> None:
    path = tmp_path / "x.csv" if reader is read_csv else tmp_path
    with pytest.raises(MltrError, match=words):
        reader(path)


def test_sources_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data.root is not set"):
        open_splits(DataConfig())
    with pytest.raises(MltrError, match="no such file or folder"):
        open_splits(DataConfig(root=str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="unknown format"):
        open_splits(DataConfig(root=str(tmp_path)))
    write_table(tmp_path, "path,cat,split\n0.jpg,1,train\n1.jpg,1,train\n", images=2)
    with pytest.raises(MltrError, match="2 images can't be split with .* at least 6"):
        open_splits(DataConfig(root=str(tmp_path)))
    write_table(tmp_path, "path,cat,dog\n" + "".join(f"{i}.jpg,0,0\n" for i in range(30)), 30)
    with pytest.raises(MltrError, match="no training image has any label"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_missing_files_of_one_name_are_counted_in_each_split(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        lines = []
        for number in range(10):
            write_image(tmp_path / part / f"{number}.jpg")
            lines.append(f"{number}.jpg,{'sea' if number % 2 else 'sky'}")
        (tmp_path / part / "metadata.csv").write_text("\n".join(["file_name,labels", *lines]))
        (tmp_path / part / "3.jpg").unlink()
    with pytest.raises(MltrError, match="3 of 30 image files are missing, e.g. "):
        open_splits(DataConfig(root=str(tmp_path), max_broken=0.05))


def test_a_few_missing_files_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,{i % 2}\n" for i in range(40))
    write_table(tmp_path, "path,cat\n" + rows, images=38)
    splits = open_splits(DataConfig(root=str(tmp_path), max_broken=0.2))
    assert sum(len(split) for split in splits) == 38
    assert sum(split.notes.get("missing_files_dropped", 0) for split in splits) == 2
    with pytest.raises(MltrError, match=r"more than data.max_broken=0 allows"):
        open_splits(DataConfig(root=str(tmp_path), max_broken=0.0))


@pytest.mark.parametrize(
    ("count", "sizes"), [(6, [4, 1, 1]), (8, [5, 1, 2]), (10, [7, 1, 2]), (200, [144, 16, 40])]
)
def test_held_out_parts_have_the_size_asked_for(
    tmp_path: Path, count: int, sizes: list[int]
) -> None:
    rows = "".join(f"{index}.jpg,{index % 2},{1 - index % 2}\n" for index in range(count))
    write_table(tmp_path, f"path,cat,dog\n{rows}", images=count)
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert [len(split) for split in splits] == sizes


def test_too_few_photos_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    write_table(tmp_path, "path,cat\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(5)), images=5)
    with pytest.raises(MltrError, match="5 images can't be split with .* at least 6 images"):
        open_splits(DataConfig(root=str(tmp_path)))
    splits = open_splits(DataConfig(root=str(tmp_path), val_fraction=0.3))
    assert [len(split) for split in splits] == [3, 1, 1]
