"""Labels as labelling tools and photo managers write them, for the tests of their readers."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping
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
    """Write the columns in the order of their names, as Label Studio does."""
    rows = rows_of_label_studio()
    with (folder / "export.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted(rows[0]))
        writer.writeheader()
        for row in rows:
            what = row["what"]
            writer.writerow(row | {"what": json.dumps(what) if isinstance(what, dict) else what})


def write_voc_xml(root: Path) -> None:
    """Write annotations as LabelImg does, beside the photos."""
    for name, labels in LABELS.items():
        write_image(root / name)
        objects = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox/></object>"
            for label in labels
        )
        text = f"<annotation><filename>{name}</filename>{objects}</annotation>"
        (root / name).with_suffix(".xml").write_text(text)


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
