"""Labels as labelling tools and photo managers write them, read through `mltr data`."""

from __future__ import annotations

import csv
import json
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import write_image
from PIL import Image, IptcImagePlugin

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.data.detect import detect_format
from mltr.data.records import PackedImage, Record, same_image
from mltr.errors import MltrError, UsageError
from mltr.predict.sidecars import XmpSidecars

#: What the photos of every source here show.
LABELS: Mapping[str, list[str]] = {
    f"{k}.jpg": [name for name, every in (("Boat", 2), ("Car", 3)) if k % every == 0]
    for k in range(12)
}


def write_all(folder: Path, prefix: str = "") -> None:
    for name in LABELS:
        write_image(folder / f"{prefix}{name}")


def described(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """Return what `mltr data --json` says of a source."""
    assert main(["data", *map(str, words), "--json", "-"]) == 0
    [report] = json.loads(capsys.readouterr().out).values()
    return dict(report)


def labels_in(config: DataConfig) -> dict[str, list[str]]:
    """Return the labels of each photo, by the end of its name."""
    return {
        PureWindowsPath(record.name).name: sorted(
            np.array(split.classes)[record.labels == 1].tolist()
        )
        for split in open_splits(config)
        for record in split
    }


# -- Label Studio ------------------------------------------------------------------------------


def tasks_of_label_studio() -> list[dict[str, Any]]:
    def task(name: str, labels: list[str]) -> dict[str, Any]:
        result = {"type": "choices", "from_name": "what", "value": {"choices": labels}}
        annotations = [{"id": 1, "was_cancelled": False, "result": [result] if labels else []}]
        reference = f"/data/upload/3/0a1b2c3d-{name}"
        return {"id": 1, "data": {"image": reference, "caption": "x"}, "annotations": annotations}

    tasks = [task(name, labels) for name, labels in LABELS.items()]
    boxes = {"type": "rectanglelabels", "value": {"x": 1, "y": 2, "rectanglelabels": ["Boat"]}}
    tasks[0]["annotations"][0]["result"] = [boxes, *tasks[0]["annotations"][0]["result"]]
    return tasks


def write_full(folder: Path) -> None:
    tasks = tasks_of_label_studio()
    bare = {"id": 99, "data": {"image": "/data/upload/3/ffffffff-bare.jpg"}, "annotations": []}
    cancelled = json.loads(json.dumps(tasks[1]["annotations"][0]))
    cancelled |= {"was_cancelled": True, "result": tasks[0]["annotations"][0]["result"]}
    tasks[1]["annotations"].append(cancelled)
    (folder / "project-3.json").write_text("\ufeff" + json.dumps([*tasks, bare]), "utf-8")


def rows_of_label_studio() -> list[dict[str, Any]]:
    return [
        {
            "image": f"/data/local-files/?d=any/where/{name}",
            "caption": "Plane",
            "id": number,
            "what": {"choices": labels} if len(labels) > 1 else "".join(labels),
            "annotator": 1,
            "annotation_id": number + 5,
            "lead_time": 2.5,
        }
        for number, (name, labels) in enumerate(LABELS.items())
    ]


def write_min(folder: Path) -> None:
    (folder / "export.json").write_text(json.dumps(rows_of_label_studio()))


def write_csv(folder: Path) -> None:
    rows = rows_of_label_studio()
    with (folder / "export.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            what = row["what"]
            writer.writerow(row | {"what": json.dumps(what) if isinstance(what, dict) else what})


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


# -- COCO, as tools write it -------------------------------------------------------------------


def annotations_of(names: list[str], order: list[str], **more: Any) -> str:
    """Return a file of annotations, with the categories in some order."""
    categories = [{"id": 7 + place, "name": name} for place, name in enumerate(order)]
    ids = {category["name"]: category["id"] for category in categories}
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    marks = [
        {"image_id": number, "category_id": ids[label], **more}
        for number, name in enumerate(names)
        for label in LABELS[PureWindowsPath(name).name]
    ]
    return json.dumps({"images": images, "categories": categories, "annotations": marks})


def write_cvat(root: Path) -> None:
    write_all(root / "images" / "default")
    (root / "annotations").mkdir()
    content = annotations_of(list(LABELS), ["Boat", "Car"], bbox=[], iscrowd=0)
    (root / "annotations" / "instances_default.json").write_text("\ufeff" + content, "utf-8")


def write_one_file(root: Path) -> None:
    write_all(root / "pictures")
    content = annotations_of([f"D:\\work\\{name}" for name in LABELS], ["Car", "Boat"])
    (root / "annotations.json").write_text(content)


def write_roboflow_coco(root: Path) -> None:
    names = list(LABELS)
    for part, own in (("train", names[:6]), ("valid", names[6:9]), ("test", names[9:])):
        for name in own:
            write_image(root / part / name)
        order = ["Boat", "Car"] if part == "train" else ["Car", "Boat"]
        content = annotations_of(own, order, bbox=[1, 2, 3, 4])
        (root / part / "_annotations.coco.json").write_text(content)


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


def test_several_files_of_annotations_are_asked_about(tmp_path: Path) -> None:
    write_cvat(tmp_path)
    path = tmp_path / "annotations" / "instances_default.json"
    (tmp_path / "annotations" / "instances_other.json").write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"set data.labels to one file of .*default.* and .*other"):
        open_splits(DataConfig(root=str(tmp_path)))
    labels = "annotations/instances_other.json"
    assert labels_in(DataConfig(root=str(tmp_path), labels=labels)) == LABELS


# -- tables of parts, and photos in tables -----------------------------------------------------


def parts_of_photos() -> dict[str, list[str]]:
    names = list(LABELS)
    return {"train": names[:6], "valid": names[6:9], "test": names[9:]}


def write_roboflow_csv(root: Path) -> None:
    for part, names in parts_of_photos().items():
        rows = ["filename, Boat, Car" if part == "train" else "filename, Car, Boat"]
        for name in names:
            write_image(root / part / name)
            own = [str(int(label in LABELS[name])) for label in ("Boat", "Car")]
            rows.append(", ".join([name, *(own if part == "train" else own[::-1])]))
        (root / part / "_classes.csv").write_text("\n".join(rows))


def write_image_folder(root: Path) -> None:
    for part, names in parts_of_photos().items():
        for name in names:
            write_image(root / part / name)
        rows = [json.dumps({"file_name": name, "labels": LABELS[name]}) for name in names]
        (root / part / "metadata.jsonl").write_text("\n".join(rows))


def write_metadata(root: Path) -> None:
    write_all(root)
    rows = [json.dumps({"labels": own, "file_name": name}) for name, own in LABELS.items()]
    (root / "metadata.jsonl").write_text("\n".join(rows))


def with_bytes(names: list[str]) -> pa.Table:
    """Return a table as `datasets` writes it to Parquet, of photos and numbers of classes."""
    with tempfile.TemporaryDirectory() as folder:
        photos = [write_image(Path(folder) / name).read_bytes() for name in names]
    structs = [{"bytes": photo, "path": None} for photo in photos]
    numbers = [[("Boat", "Car").index(label) for label in LABELS[name]] for name in names]
    feature = {"feature": {"names": ["Boat", "Car"], "_type": "ClassLabel"}, "_type": "List"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "labels": feature}}}
    table = pa.table({"image": structs, "labels": numbers, "source": names})
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


def write_parquet(root: Path) -> None:
    pq.write_table(with_bytes(list(LABELS)), root / "photos.parquet", row_group_size=5)


def write_parts_in_parquet(root: Path) -> None:
    (root / "data").mkdir()
    names = list(LABELS)
    parts = {
        "train-00000-of-00002": names[:3],
        "train-00001-of-00002": names[3:6],
        "validation-00000-of-00001": names[6:9],
        "test-00000-of-00001": names[9:],
    }
    for part, own in parts.items():
        pq.write_table(with_bytes(own), root / "data" / f"{part}.parquet")


def write_plain_bytes(root: Path) -> None:
    table = with_bytes(list(LABELS))
    photos = pa.array([cell["bytes"] for cell in table["image"].to_pylist()], pa.binary())
    answers = {label: [int(label in own) for own in LABELS.values()] for label in ("Boat", "Car")}
    pq.write_table(pa.table({"jpeg": photos, **answers}), root / "a.parquet")


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


def test_a_label_that_only_one_part_has_is_absent_in_the_others(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    path = tmp_path / "train" / "metadata.jsonl"
    path.write_text(path.read_text().replace('["Boat"]', '["Boat", "Rare"]'))
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert splits.test.classes == ("Boat", "Car", "Rare")
    assert set(splits.test.targets[:, 2].tolist()) == {0}


# -- YOLO --------------------------------------------------------------------------------------


def write_boxes(path: Path, labels: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{['Boat', 'Car'].index(name)} 0.5 0.5 0.2 0.25" for name in labels]
    path.write_text("\n".join(lines * 2))


def write_yolo_beside(root: Path) -> None:
    for name, labels in LABELS.items():
        write_image(root / name)
        write_boxes((root / name).with_suffix(".txt"), labels)
    (root / "classes.txt").write_text("Boat\nCar\n")


def write_yolo_folders(root: Path) -> None:
    for number, (name, labels) in enumerate(LABELS.items()):
        part = ("train", "train", "valid", "test")[number % 4]
        write_image(root / part / "images" / name)
        if labels:
            write_boxes(root / part / "labels" / f"{number}.txt", labels)
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['Boat', 'Car']\n"
    )


def write_yolo_lists(root: Path) -> None:
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (name, labels) in enumerate(LABELS.items()):
        write_image(root / "images" / name)
        write_boxes(root / "labels" / f"{number}.txt", labels)
        lists[("train", "train", "val", "test")[number % 4]].append(f"./images/{name}")
    for part, names in lists.items():
        (root / f"{part}.txt").write_text("\n".join(names))
    names = "names:\n  0: Boat\n  1: Car\n"
    (root / "data.yaml").write_text(
        f"path: .\ntrain: train.txt\nval: val.txt\ntest: test.txt\n{names}"
    )


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


# -- keywords ----------------------------------------------------------------------------------

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:lr="http://ns.adobe.com/lightroom/1.0/"><dc:subject><rdf:Bag>{}</rdf:Bag></dc:subject>
<lr:hierarchicalSubject><rdf:Bag><rdf:li>Things|Boat</rdf:li></rdf:Bag></lr:hierarchicalSubject>
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def xmp_with(labels: list[str]) -> bytes:
    return XMP.format("".join(f"<rdf:li>{label}</rdf:li>" for label in labels)).encode()


def iptc_with(labels: list[str]) -> bytes:
    """Return IPTC keywords as Photoshop keeps them in a JPEG: resource 0x0404 of an APP13."""
    records = b"\x1c\x01\x5a\x00\x03\x1b%G" + b"".join(
        b"\x1c\x02\x19" + len(label.encode()).to_bytes(2, "big") + label.encode()
        for label in labels
    )
    padded = records + b"\0" * (len(records) % 2)
    resource = b"8BIM\x04\x04\0\0" + len(records).to_bytes(4, "big") + padded
    content = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + (len(content) + 2).to_bytes(2, "big") + content


def write_beside(folder: Path, name: str, labels: list[str]) -> None:
    write_image(folder / name)
    (folder / f"{name}.xmp").write_bytes(xmp_with(labels))


def write_adobe(folder: Path, name: str, labels: list[str]) -> None:
    write_image(folder / name)
    (folder / name).with_suffix(".xmp").write_bytes(xmp_with(labels))


def write_inside(folder: Path, name: str, labels: list[str]) -> None:
    path = write_image(folder / name)
    with Image.open(path) as image:
        image.load()
    image.save(path, xmp=xmp_with(labels))


def write_iptc(folder: Path, name: str, labels: list[str]) -> None:
    path = write_image(folder / name)
    content = path.read_bytes()
    path.write_bytes(content[:2] + iptc_with(labels) + content[2:])
    with Image.open(path) as image:  # as Pillow understands it
        assert IptcImagePlugin.getiptcinfo(image)


@pytest.mark.parametrize("write", [write_beside, write_adobe, write_inside, write_iptc])
def test_keywords_of_photo_managers(
    tmp_path: Path,
    write: Callable[[Path, str, list[str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lxml")
    for name, labels in LABELS.items():
        write(tmp_path, name, [*labels, "Größe / 5"] if labels else [])
    expected = {name: [*labels, "Größe / 5"] for name, labels in LABELS.items() if labels}
    assert labels_in(DataConfig(root=str(tmp_path))) == expected
    report = described(capsys, tmp_path)
    assert report["classes"] == ["Boat", "Car", "Größe / 5"]
    counts = report["understood"]["counts"]
    assert counts["photos without a keyword, left out"] == len(LABELS) - len(expected)
    (tmp_path / "names").write_text("Boat\nCar\n")
    chosen = labels_in(DataConfig(root=str(tmp_path), classes="names"))
    assert chosen == {name: labels for name, labels in LABELS.items() if labels}


def test_the_file_beside_a_photo_counts_before_what_is_in_it(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    for name, labels in LABELS.items():
        write_inside(tmp_path, name, [*labels, "Plane"])
        (tmp_path / f"{name}.xmp").write_bytes(xmp_with([*labels, "Other"]))
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("Boat", "Car", "Other")
    (tmp_path / "3.jpg.xmp").write_bytes(b"<x:xmpmeta")
    with pytest.raises(MltrError, match=r"3.jpg.xmp: can't be read \(not XMP"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_keywords_that_a_network_has_added_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lxml")
    for name, labels in LABELS.items():
        write_beside(tmp_path, name, labels)
    XmpSidecars().write(tmp_path / "2.jpg", ["Boat", "Plane"])
    assert labels_in(DataConfig(root=str(tmp_path)))["2.jpg"] == ["Boat", "Plane"]
    details = described(capsys, tmp_path)["understood"]["details"]
    assert details == ["7 in files beside the photos", "1 in files that mltr has added to"]


def test_keywords_in_class_folders_are_asked_about(tmp_path: Path) -> None:
    for name, labels in LABELS.items():
        write_beside(tmp_path / "2019", name, labels)
        write_image(tmp_path / "2020" / f"x{name}")
    with pytest.raises(UsageError, match="set data.format class_folders .* or keywords"):
        open_splits(DataConfig(root=str(tmp_path)))
    assert labels_in(DataConfig(root=str(tmp_path), format="keywords")) == {
        name: labels for name, labels in LABELS.items() if labels
    }
    splits = open_splits(DataConfig(root=str(tmp_path), format="class_folders"))
    assert splits.train.classes == ("2019", "2020")


# -- folders -----------------------------------------------------------------------------------


def test_a_photo_in_several_class_folders_is_one_with_their_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, labels in LABELS.items():
        for label in labels or ["Plane"]:  # the same file, under another name
            write_image(tmp_path / label / f"{label}-{name}", seed=int(Path(name).stem))
    write_image(tmp_path / "Plane" / "again.jpg", seed=1)  # a copy in the same folder stays
    write_image(tmp_path / "outside.jpg")
    for hidden in (".ipynb_checkpoints", "@eaDir", ".git"):
        write_image(tmp_path / hidden / "x.jpg")
        write_image(tmp_path / "Boat" / hidden / "x.jpg")
    both = sum(len(labels) == 2 for labels in LABELS.values())
    report = described(capsys, tmp_path)
    assert report["classes"] == ["Boat", "Car", "Plane"]
    assert sum(split["images"] for split in report["splits"].values()) == len(LABELS) + 1
    counts = report["understood"]["counts"]
    assert counts["copies of a photo in several class folders, merged"] == both
    assert counts["@eaDir/ passed over"] == 1
    assert counts["photos outside of the class folders, left out"] == 1
    records = [record for split in open_splits(DataConfig(root=str(tmp_path))) for record in split]
    assert (
        sorted(int(record.labels.sum()) for record in records)
        == [1] * (len(LABELS) + 1 - both) + [2] * both
    )


def test_tags_stay_whole(tmp_path: Path) -> None:
    for name in LABELS:
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(';), :|, |_|, "AC, DC"\nsea;sun')
    classes = open_splits(DataConfig(root=str(tmp_path))).train.classes
    assert classes == tuple(sorted([";)", ":|", "|_|", "AC, DC", "sea", "sun"]))


def test_tags_and_names_in_other_encodings(tmp_path: Path) -> None:
    write_all(tmp_path)
    for number, name in enumerate(LABELS):
        tags = "Größe\r\nFluß" if number % 2 else "Größe"
        encoding = ("utf-8", "utf-16", "cp1252", "utf-8-sig")[number % 4]
        (tmp_path / name).with_suffix(".txt").write_bytes(tags.encode(encoding))
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("Fluß", "Größe")
    (tmp_path / "names").write_text("Größe\nFluß\n", "cp1252")
    splits = open_splits(DataConfig(root=str(tmp_path), classes="names"))
    assert splits.train.classes == ("Größe", "Fluß")


def test_a_class_that_no_bundle_takes_is_named(tmp_path: Path) -> None:
    for name in LABELS:
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("sea\u202egnp")
    with pytest.raises(MltrError, match=r"the class sea\\u202egnp has control characters"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_a_sidecar_of_two_photos_is_asked_about(tmp_path: Path) -> None:
    for name, labels in LABELS.items():
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(", ".join(labels))
    write_image(tmp_path / "4.png")
    with pytest.raises(
        UsageError, match=r"4.txt: it may be of 4.jpg or of 4.png: name it 4.png.tx"
    ):
        open_splits(DataConfig(root=str(tmp_path)))
    assert labels_in(DataConfig(root=str(tmp_path), ignore="*.png, nothing")) == LABELS
    (tmp_path / "4.png.txt").write_text("Car")
    assert labels_in(DataConfig(root=str(tmp_path)))["4.png"] == ["Car"]


# -- photos that lack their last bytes ---------------------------------------------------------


def test_truncated_jpegs_are_salvaged_if_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_yolo_beside(tmp_path)
    for name in ("2.jpg", "3.jpg"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
    (tmp_path / "5.jpg").write_bytes((tmp_path / "5.jpg").read_bytes()[:100])
    with (tmp_path / "6.jpg").open("ab") as file:  # sound, with something behind the end
        file.write(b"trailer" * 9)
    assert len(described(capsys, tmp_path)["broken"]) == 3
    report = described(capsys, tmp_path, "--truncated", "allow")
    assert [Path(error.partition(": ")[0]).name for error in report["broken"]] == ["5.jpg"]
    notes = [split.get("truncated_photos_salvaged", 0) for split in report["notes"].values()]
    assert sum(notes) == 2


# -- the documentation -------------------------------------------------------------------------


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
    "SIDECARS": each(write_beside),
    "XMP": each(write_inside),
    "IPTC": each(write_iptc),
}


def documented_rows() -> list[tuple[str, str]]:
    """Return what to type, and what will be seen, of the rows of docs/data.md for these."""
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = text.partition("### Labelling tools and photo managers")[2].partition("\n- ")[0]
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
    _, command, source = words.split()
    Path(source).mkdir()
    DOCUMENTED[source](Path(source))
    assert main([command, source]) == 0
    assert seen in capsys.readouterr().out.partition("\n")[0]
