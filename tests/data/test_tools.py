"""Labels as labelling tools write them, read through `mltr data`."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from making import write_image, write_voc
from tool_labels import (
    LABELS,
    annotations_of,
    described,
    labels_in,
    rows_of_label_studio,
    tasks_of_label_studio,
    with_bytes,
    write_all,
    write_beside,
    write_csv,
    write_cvat,
    write_full,
    write_image_folder,
    write_inside,
    write_iptc,
    write_metadata,
    write_min,
    write_one_file,
    write_parquet,
    write_parts_in_parquet,
    write_plain_bytes,
    write_roboflow_coco,
    write_roboflow_csv,
    write_voc_xml,
    write_yolo_beside,
    write_yolo_folders,
    write_yolo_lists,
)

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.data.detect import detect_format
from mltr.data.readers.voc import VOC_CLASSES
from mltr.data.records import PackedImage, Record, same_image
from mltr.errors import MltrError, UsageError


@pytest.mark.parametrize("write", [write_full, write_min, write_csv])
def test_label_studio(
    tmp_path: Path, write: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path / "photos")
    write(tmp_path)
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS
    report = described(capsys, tmp_path)
    assert report["understood"]["form"] == "Label Studio"
    assert report["classes"] == ["Boat", "Car"]
    assert sum(split["unknown_cells"] for split in report["splits"].values()) == 0
    if write is write_full:
        assert report["understood"]["counts"]["photos nobody has annotated, left out"] == 1
    [export] = [path for path in tmp_path.iterdir() if path.is_file()]
    assert labels_in(DataConfig(root=str(export))) == LABELS  # the file itself


def test_where_annotators_disagree_a_label_is_unknown(tmp_path: Path) -> None:
    write_all(tmp_path)
    tasks = tasks_of_label_studio()
    other = {"type": "choices", "value": {"choices": ["Car"]}}
    tasks[0]["annotations"].append({"result": [other]})  # the first says Boat and Car
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    records = [record for split in open_splits(DataConfig(root=str(tmp_path))) for record in split]
    [first] = [record for record in records if record.name == "0.jpg"]
    assert first.labels.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"annotations": ', "not a complete JSON file"),
        ('[{"annotations": [], "data": {"text": "x"}}]', "no photo among text"),
        (
            '[{"annotations": [{"result": 3}], "data": {"image": "0.jpg"}}]',
            "not as Label Studio exports it",
        ),
        ('[{"annotations": [], "data": {"image": "0.jpg"}}]', "none of its 1 tasks is annotated"),
        ('["annotations", ' + "[" * 100_000, "not a complete JSON file"),
    ],
)
def test_damaged_exports_are_named(tmp_path: Path, content: str, words: str) -> None:
    write_all(tmp_path)
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(MltrError, match=f"a.json: .*{words}"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_columns_that_may_be_answers_are_asked_about(tmp_path: Path) -> None:
    write_all(tmp_path)
    rows = rows_of_label_studio()
    lines = [f"{n},3,{row['image']},2.5,Rome,{n % 2}" for n, row in enumerate(rows)]
    header = "annotation_id,id,image,lead_time,city,what"
    (tmp_path / "export.csv").write_text("\n".join([header, *lines]))
    with pytest.raises(UsageError, match="the columns city, what may be answers, or what the task"):
        open_splits(DataConfig(root=str(tmp_path)))
    for row in rows:
        row["id"], row["caption"] = row.pop("id"), row.pop("caption")  # behind the answers, too
        row["image"] = row.pop("image")
    (tmp_path / "export.csv").unlink()
    (tmp_path / "export.json").write_text(json.dumps([{**row, "city": "Rome"} for row in rows]))
    with pytest.raises(UsageError, match="may be answers, or what the tasks came with"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_the_photo_of_the_very_name_is_taken(tmp_path: Path) -> None:
    write_all(tmp_path)
    for name in ("IMG_1.jpg", "IMG (1).jpg"):  # alike in the names of uploads
        write_image(tmp_path / name)
    tasks = tasks_of_label_studio()
    tasks[0]["data"]["image"] = "photos/IMG (1).jpg"
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert "IMG (1).jpg" in labels_in(DataConfig(root=str(tmp_path)))


def test_a_photo_under_any_key_of_a_task(tmp_path: Path) -> None:
    write_all(tmp_path)
    tasks = tasks_of_label_studio()
    for task in tasks:
        task["data"]["scan_path"] = task["data"].pop("image")
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS


def test_createml_is_no_export_of_label_studio(tmp_path: Path) -> None:
    write_all(tmp_path)
    box = {"label": "Boat", "coordinates": {"x": 1, "y": 1, "width": 2, "height": 2}}
    rows = [{"image": name, "annotations": [box]} for name in LABELS]
    path = tmp_path / "_annotations.createml.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UsageError, match="in no known format: export the labels as COCO or CSV"):
        open_splits(DataConfig(root=str(path)))
    with pytest.raises(MltrError, match="not as Label Studio exports it"):
        open_splits(DataConfig(root=str(tmp_path), labels=path.name, format="label_studio"))


@pytest.mark.parametrize("folder", ["", "annotations", "Annotations"])
def test_xml_as_in_voc(tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc_xml(tmp_path / "images")
    if folder:
        (tmp_path / folder).mkdir()
        for path in sorted((tmp_path / "images").glob("*.xml")):
            path.rename(tmp_path / folder / path.name)
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS
    assert described(capsys, tmp_path)["understood"]["form"] == "PASCAL VOC's XML"
    path = tmp_path / (folder or "images") / "0.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    for difficult, labels in (("positive", ["Boat", "Car"]), ("negative", []), ("ignore", [])):
        found = labels_in(DataConfig(root=str(tmp_path), difficult=difficult))
        assert found == {**LABELS, "0.jpg": labels}
    path.write_text("<annotation><object/></annotation>")
    with pytest.raises(MltrError, match=r"0.xml: not a VOC annotation \(an object has no name\)"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_xml_beside_photos_in_folders_of_classes_is_asked_about(tmp_path: Path) -> None:
    write_voc_xml(tmp_path / "rose")
    write_image(tmp_path / "tulip" / "x.jpg")
    with pytest.raises(UsageError, match="photos with .xml files: set data.format class_folders"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_annotations_outside_of_the_source_are_no_ones_labels(tmp_path: Path) -> None:
    write_voc_xml(tmp_path / "annotations")
    write_all(tmp_path / "holiday")
    with pytest.raises(UsageError, match="unknown format"):
        open_splits(DataConfig(root=str(tmp_path / "holiday")))


def test_vocs_own_annotations_have_its_classes(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007")
    shutil.rmtree(tmp_path / "VOC2007" / "ImageSets")
    for path in (tmp_path / "VOC2007" / "Annotations").glob("*.xml"):
        owner = "<owner><name>Jinky the Fruit Bat</name></owner></annotation>"
        path.write_text(path.read_text().replace("</annotation>", owner))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert splits.train.classes == VOC_CLASSES


def test_lists_of_photos_divide_classes_that_voc_has_too(tmp_path: Path) -> None:
    write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    for path in lists.glob("*_*.txt"):  # as CVAT and others leave them out
        path.unlink()
    names = sorted(path.stem for path in (tmp_path / "JPEGImages").iterdir())
    named = {"train": names[:-6], "val": names[-6:-3], "test": names[-3:]}
    for part, own in named.items():
        (lists / f"{part}.txt").write_text("\n".join(own))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert {s.name: sorted(Path(r.name).stem for r in s) for s in splits} == named
    assert {*splits.train.classes} < {*VOC_CLASSES}
    config = DataConfig(root=str(tmp_path), format="voc")
    path = tmp_path / "Annotations" / f"{names[0]}.xml"
    path.write_text(path.read_text().replace("<name>", "<name>lamp ", 1))
    with pytest.raises(MltrError, match="set data.format voc_xml"):
        open_splits(config)


def test_lists_of_photos_beside_xml_are_splits(tmp_path: Path) -> None:
    write_voc_xml(tmp_path / "JPEGImages")
    (tmp_path / "JPEGImages").rename(tmp_path / "Annotations")  # photos and all
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations" / "0.jpg").rename(tmp_path / "Annotations" / "my photo 0.jpg")
    (tmp_path / "Annotations" / "0.xml").rename(tmp_path / "Annotations" / "my photo 0.xml")
    named = {"train": ["my photo 0", "1  1", "2 -1", "3", "4", "5.jpg"], "val": ["6", "7", "8"]}
    named |= {"test": ["9", "10", "11", "1"], "trainval": [*map(str, range(1, 9))]}
    for part, names in named.items():
        (lists / f"{part}.txt").write_text("\n".join(names))
    assert [len(split) for split in open_splits(DataConfig(root=str(tmp_path)))] == [6, 3, 3]
    for part in ("train", "val"):
        (lists / f"{part}.txt").unlink()
    assert len(open_splits(DataConfig(root=str(tmp_path))).test) == 4
    (lists / "test.txt").write_text("x\n")
    with pytest.raises(MltrError, match=r"test.txt: none of its photos is in .*, e.g. x"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_photos_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    write_all(tmp_path / "one")
    write_all(tmp_path / "two", "x")
    write_image(tmp_path / "two" / "0.jpg")
    tasks = tasks_of_label_studio()
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    with pytest.raises(MltrError, match=r"0a1b2c3d-0.jpg: may be .*one/0.jpg or .*two/0.jpg"):
        open_splits(DataConfig(root=str(tmp_path)))
    tasks[0]["data"]["image"] = "s3://bucket/data/two/0.jpg"
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    names = {
        record.name for split in open_splits(DataConfig(root=str(tmp_path))) for record in split
    }
    assert {"two/0.jpg", "one/1.jpg"} < names


def test_photos_in_other_capitals_are_found(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(tasks_of_label_studio()))
    plain = labels_in(DataConfig(root=str(tmp_path)))
    for path in tmp_path.glob("*.jpg"):
        path.rename(path.with_suffix(".JPG"))
    found = labels_in(DataConfig(root=str(tmp_path)))
    assert {name.lower(): own for name, own in found.items()} == plain


@pytest.mark.parametrize(
    ("write", "sizes"),
    [(write_cvat, [9, 1, 2]), (write_one_file, [9, 1, 2]), (write_roboflow_coco, [6, 3, 3])],
)
def test_coco_of_other_tools(
    tmp_path: Path,
    write: Callable[[Path], None],
    sizes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    report = described(capsys, tmp_path)
    assert report["classes"] in (["Boat", "Car"], ["Car", "Boat"])
    assert [split["images"] for split in report["splits"].values()] == sizes
    has_boxes = write is write_roboflow_coco
    assert (report["splits"]["train"]["with_boxes"] > 0) == has_boxes
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS
    if write is not write_roboflow_coco:
        [path] = tmp_path.rglob("*.json")
        report = described(capsys, path, "--images", str(tmp_path))
        assert report["understood"]["form"] == "COCO"


def test_files_of_coco_joined_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    write_one_file(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    for number, image in enumerate(content["images"]):
        image["id"] = number % 6
    path.write_text(json.dumps(content))
    with pytest.raises(MltrError, match=r"the image id 0 is given to .*0.jpg and to .*6.jpg"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_categories_of_coco_joined_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    write_one_file(tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"].append(content["categories"][0] | {"name": "Plane"})
    path.write_text(json.dumps(content))
    with pytest.raises(MltrError, match=r"the category id 7 is given to \w+ and to Plane"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_uploads_of_one_name_are_not_taken_for_one_photo(tmp_path: Path) -> None:
    write_min(tmp_path)
    write_all(tmp_path)
    path = tmp_path / "export.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["image"] = row["image"].replace("where/", "where/0a1b2c3d-")
    path.write_text(json.dumps(rows))
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS
    for other in ("ffffffff-", ""):  # another upload, and the photo that is there
        row = rows[0] | {"image": rows[0]["image"].replace("0a1b2c3d-", other)}
        path.write_text(json.dumps([*rows, row]))
        with pytest.raises(MltrError, match=r"may be that of 0a1b2c3d-0.jpg, too"):
            open_splits(DataConfig(root=str(tmp_path)))


def test_photos_of_one_name_in_the_subsets_of_cvat(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        write_all(tmp_path / "images" / part)
        content = annotations_of(list(LABELS), ["Boat", "Car"], bbox=[])
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(content)
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert len(splits.val) == len(LABELS)
    assert {Path(str(record.image)).parent.name for record in splits.val} == {"val"}
    for part in ("train", "val"):  # the folder may be in the names, too
        content = annotations_of([f"{part}/{name}" for name in LABELS], ["Boat", "Car"], bbox=[])
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(content)
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert all(Path(str(record.image)).is_file() for split in splits for record in split)


def test_several_files_of_annotations_are_asked_about(tmp_path: Path) -> None:
    write_cvat(tmp_path)
    path = tmp_path / "annotations" / "instances_default.json"
    (tmp_path / "annotations" / "instances_other.json").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"set data.labels to one file of .*default.* and .*other"):
        open_splits(DataConfig(root=str(tmp_path)))
    labels = "annotations/instances_other.json"
    assert labels_in(DataConfig(root=str(tmp_path), labels=labels)) == LABELS


def counts_of(report: dict[str, Any]) -> dict[str, int]:
    return {label: sum(counts.values()) for label, counts in report["labels"].items()}


@pytest.mark.parametrize(
    ("write", "sizes"),
    [
        (write_roboflow_csv, [6, 3, 3]),
        (write_image_folder, [6, 3, 3]),
        (write_metadata, [9, 1, 2]),
        (write_parquet, [9, 1, 2]),
        (write_plain_bytes, [9, 1, 2]),
        (write_parts_in_parquet, [6, 3, 3]),
    ],
)
def test_tables_of_other_tools(
    tmp_path: Path,
    write: Callable[[Path], None],
    sizes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    report = described(capsys, tmp_path)
    assert report["understood"]["form"] == "table"
    assert counts_of(report) == {"Boat": 6, "Car": 4}
    assert [split["images"] for split in report["splits"].values()] == sizes
    assert sum(split["unknown_cells"] for split in report["splits"].values()) == 0
    assert report["broken"] == []
    if not any(tmp_path.rglob("*.parquet")):
        assert labels_in(DataConfig(root=str(tmp_path))) == LABELS


def test_a_photo_in_a_table_is_another_one_once_the_table_is(tmp_path: Path) -> None:
    def first() -> Record:
        return open_splits(DataConfig(root=str(tmp_path))).train[0]

    write_parquet(tmp_path)
    assert same_image(first()) == same_image(first())
    before = same_image(first())
    pq.write_table(with_bytes(list(LABELS)[::-1]), tmp_path / "photos.parquet")
    assert same_image(first()) != before
    assert isinstance(first().image, PackedImage)
    assert pickle.loads(pickle.dumps(first().image)).load().size == (24, 20)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("coco", "a.json"),
        ("label_studio", "a.json"),
        ("label_studio", "a.csv"),
        ("table", "metadata.jsonl"),
        ("yolo", "0.txt"),
        ("sidecars", "0.txt"),
        ("keywords", "0.xmp"),
    ],
)
def test_pipes_are_not_waited_for(tmp_path: Path, form: str, name: str) -> None:
    write_all(tmp_path)
    os.mkfifo(tmp_path / name)
    with pytest.raises(MltrError):
        open_splits(DataConfig(root=str(tmp_path), format=form, labels=name))
    with pytest.raises(MltrError):
        open_splits(DataConfig(root=str(tmp_path)))


def test_names_of_numbered_classes_as_older_versions_of_datasets_keep_them(tmp_path: Path) -> None:
    table = with_bytes(list(LABELS))
    about = json.loads(table.schema.metadata[b"huggingface"])
    about["info"]["features"] |= {
        "labels": [{"names": ["Boat", "Car"], "_type": "ClassLabel"}],
        "objects": [{"bbox": {"dtype": "float32", "_type": "Value"}}],
    }
    metadata = {"huggingface": json.dumps(about)}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("Boat", "Car")


def test_a_label_that_only_one_part_has_is_absent_in_the_others(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    path = tmp_path / "train" / "metadata.jsonl"
    path.write_text(path.read_text().replace('["Boat"]', '["Boat", "Rare"]'))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert splits.test.classes == ("Boat", "Car", "Rare")
    assert set(splits.test.targets[:, 2].tolist()) == {0}


@pytest.mark.parametrize(
    ("write", "sizes"),
    [
        (write_yolo_beside, [9, 1, 2]),
        (write_yolo_folders, [6, 3, 3]),
        (write_yolo_lists, [6, 3, 3]),
    ],
)
def test_yolo_boxes_become_labels_of_the_photo(
    tmp_path: Path,
    write: Callable[[Path], None],
    sizes: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path)
    assert detect_format(tmp_path) == "yolo"
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS
    report = described(capsys, tmp_path)
    assert report["classes"] == ["Boat", "Car"]
    assert [split["images"] for split in report["splits"].values()] == sizes
    without = sum(not labels for labels in LABELS.values())
    counts = report["understood"]["counts"]
    if write is write_yolo_folders:
        assert counts["photos without a text file, taken as without any class"] == without
        splits = open_splits(DataConfig(root=str(tmp_path), unlabelled="drop"))
        assert sum(map(len, splits)) == len(LABELS) - without


def test_classes_of_yolo_that_no_photo_has_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yolo_beside(tmp_path)
    (tmp_path / "classes.txt").write_text("Boat\nCar\nPlane\n")
    report = described(capsys, tmp_path)
    assert (report["classes"], report["understood"]["passed_over"]) == (["Boat", "Car"], ["Plane"])


def test_a_list_of_categories_beside_yolo_is_no_coco(tmp_path: Path) -> None:
    write_yolo_beside(tmp_path)
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "Boat"}], "info": {}}')
    assert labels_in(DataConfig(root=str(tmp_path))) == LABELS


def test_an_empty_line_among_numbered_classes_is_asked_about(tmp_path: Path) -> None:
    write_yolo_beside(tmp_path)
    (tmp_path / "classes.txt").write_text("Boat\n\nCar\n\n")
    with pytest.raises(MltrError, match=r"classes.txt, line 2: empty, but each line names"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_what_yolo_leaves_open_is_asked_for(tmp_path: Path) -> None:
    write_yolo_beside(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UsageError, match=r"nothing names the classes: write the names to classes"):
        open_splits(DataConfig(root=str(tmp_path)))
    (tmp_path / "names").write_text("Boat\n")
    with pytest.raises(MltrError, match=r"0.txt, line 2: class 1, but only 1 are named"):
        open_splits(DataConfig(root=str(tmp_path), classes="names"))
    with pytest.raises(UsageError, match=r"0.txt: boxes of YOLO, not tags: set data.format yolo"):
        open_splits(DataConfig(root=str(tmp_path), format="sidecars"))
    (tmp_path / "3.txt").write_text("1 0.5 0.5 0.2 0.2\nboat\n")
    (tmp_path / "names").write_text("Boat\nCar\n")
    with pytest.raises(MltrError, match=r"3.txt, line 2: 'boat' is no class with its box"):
        open_splits(DataConfig(root=str(tmp_path), classes="names"))


def each(write: Callable[[Path, str, list[str]], None]) -> Callable[[Path], None]:
    """Return what writes all photos by a function that writes one."""

    def write_labels(root: Path) -> None:
        for name, labels in LABELS.items():
            write(root, name, labels)

    return write_labels


def with_photos(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what writes an export and, in a folder beside it, the photos."""

    def write_both(root: Path) -> None:
        write_all(root / "photos")
        write(root)

    return write_both


def write_project(root: Path) -> None:
    (root / "project.json").write_text(json.dumps(tasks_of_label_studio()))


def write_tags(root: Path) -> None:
    write_all(root)
    for name, labels in LABELS.items():
        (root / name).with_suffix(".txt").write_text(", ".join(labels))


def write_class_folders(root: Path) -> None:
    for name, labels in LABELS.items():
        write_image(root / "".join(labels[:1] or ["Plane"]) / name)


def write_copies(root: Path) -> None:
    for name, labels in LABELS.items():
        for label in labels or ["Plane"]:
            write_image(root / label / name)


def write_mixed(root: Path) -> None:
    write_tags(root)
    for name in ("a.jxl", "b.jxl"):
        (root / name).touch()


def write_cut(root: Path) -> None:
    write_tags(root)
    for name in list(LABELS)[:2]:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[:-40])


DOCUMENTED: Mapping[str, Callable[[Path], None]] = {
    "EXPORT": with_photos(write_project),
    "EXPORT_CSV": with_photos(write_csv),
    "CVAT": write_cvat,
    "COCO_FILE": write_one_file,
    "ROBOFLOW": write_roboflow_coco,
    "ROBOFLOW_CSV": write_roboflow_csv,
    "IMAGEFOLDER": write_image_folder,
    "METADATA": write_metadata,
    "PARQUET": write_parquet,
    "PARQUET_PARTS": write_parts_in_parquet,
    "YOLO": write_yolo_folders,
    "DARKNET": write_yolo_beside,
    "VOC_XML": write_voc_xml,
    "SIDECARS": each(write_beside),
    "XMP": each(write_inside),
    "IPTC": each(write_iptc),
    "TAGS": write_tags,
    "CLASSES": write_class_folders,
    "COPIES": write_copies,
    "MIXED": write_mixed,
    "CUT": write_cut,
}


def documented_rows() -> list[tuple[str, str]]:
    """Return what to type, and what will be seen, of the rows of docs/data.md for these."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    heading = "### Labelling tools, photo managers and folders"
    section = text.partition(heading)[2].partition("\n- ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "`mltr" in line]
    return [(row[1].strip("`"), row[2].strip("`")) for row in rows]


def test_every_row_is_documented() -> None:
    assert {words.split()[2] for words, _ in documented_rows()} == set(DOCUMENTED)


@pytest.mark.parametrize(("words", "seen"), documented_rows())
def test_the_documentation_says_what_is_seen(
    words: str,
    seen: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lxml")
    monkeypatch.chdir(tmp_path)
    _, command, source, *options = words.split()
    Path(source).mkdir()
    DOCUMENTED[source](Path(source))
    assert main([command, source, *options]) == 0
    assert seen in "\n".join(capsys.readouterr().out.splitlines()[:2])


@pytest.mark.parametrize(
    ("source", "options"), [("PARQUET", []), ("CUT", ["--truncated", "allow"]), ("YOLO", [])]
)
def test_shards_hold_the_same(
    source: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "source", tmp_path / "shards"
    folder.mkdir()
    DOCUMENTED[source](folder)
    assert main(["shard", str(folder), "--out", str(out), "--verify", *options]) == 0
    capsys.readouterr()
    before, after = (described(capsys, *words) for words in ([folder, *options], [out]))
    assert counts_of(after) == counts_of(before) == {"Boat": 6, "Car": 4}
    assert after["splits"] == before["splits"]
    assert after["broken"] == []
