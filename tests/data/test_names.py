"""Names of classes in any script, with quotes, separators and emoji: read as they were written."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_image

from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.data.tables.cells import from_cells, to_cells
from mltr.data.tables.tags import join_tags, split_tags
from mltr.predict.results import Row, Vocabulary, write_rows
from mltr.predict.sidecars import TextSidecars, XmpSidecars
from mltr.terminal import UNPRINTABLE

#: Three, of which the photos here have some each.
HARD = (
    ["AC/DC", "a|b, c; d", 'say "no"'],
    ["Größe", "日本 海", "شاطئ البحر"],
    ["👩‍👩‍👧 family", "🏖️", ";)"],
    ["=1+1", "'quoted'", "-x"],
    ["a\\b", "<b>&amp;", "%s {0}"],
    ["null", "nan", "True"],
    ["1", "0", "-1"],
    ["path", "labels", "split"],
)
PHOTOS = {"0.png": [0], "1.png": [0, 1], "2.png": [1, 2], "3.png": [2], "4.png": [0, 1, 2]}
PHOTOS |= {f"{k}.png": [k % 3] for k in range(5, 12)}


def is_name(text: str) -> bool:
    """Whether a class may be called so: what a bundle refuses can't be trained."""
    plain = unicodedata.normalize("NFC", text)
    return text.strip() == text == plain and text != "" and not UNPRINTABLE.search(text)


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=9)
    .map(lambda text: unicodedata.normalize("NFC", text.strip()))
    .filter(is_name),
    min_size=3,
    max_size=3,
    unique_by=str.casefold,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name in PHOTOS:
        write_image(folder / name)
    return folder


def write_coco(folder: Path, classes: Sequence[str]) -> None:
    content = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(PHOTOS)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        "annotations": [
            {"image_id": k, "category_id": index}
            for k, own in enumerate(PHOTOS.values())
            for index in own
        ],
    }
    (folder / "annotations.json").write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def write_label_studio(folder: Path, classes: Sequence[str]) -> None:
    tasks = [
        {
            "id": 1,
            "data": {"image": name},
            "annotations": [
                {"result": [{"type": "choices", "value": {"choices": [classes[k] for k in own]}}]}
            ],
        }
        for name, own in PHOTOS.items()
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks), "utf-8")


def write_yolo(folder: Path, classes: Sequence[str]) -> None:
    for name, own in PHOTOS.items():
        boxes = [f"{index} 0.5 0.5 0.5 0.5" for index in own]
        (folder / name).with_suffix(".txt").write_text("\n".join(boxes))
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": list(classes)}), "utf-8")


def write_text_sidecars(folder: Path, classes: Sequence[str]) -> None:
    for name, own in PHOTOS.items():
        TextSidecars().write(folder / name, [classes[k] for k in own])


def write_xmp_sidecars(folder: Path, classes: Sequence[str]) -> None:
    for name, own in PHOTOS.items():
        XmpSidecars().write(folder / name, [classes[k] for k in own])


def write_one_hot(folder: Path, classes: Sequence[str]) -> None:
    text = io.StringIO()
    rows = [[name, *(int(k in own) for k in range(3))] for name, own in PHOTOS.items()]
    csv.writer(text).writerows(map(to_cells, [["path", *classes], *rows]))
    (folder / "labels.csv").write_text(text.getvalue(), "utf-8")


def write_lists(folder: Path, classes: Sequence[str]) -> None:
    lists = [[classes[k] for k in own] for own in PHOTOS.values()]
    pq.write_table(pa.table({"path": list(PHOTOS), "tags": lists}), folder / "labels.parquet")


def write_class_folders(folder: Path, classes: Sequence[str]) -> None:
    for name, own in PHOTOS.items():
        for index in own:
            path = folder / classes[index] / name
            path.parent.mkdir(exist_ok=True)
            path.hardlink_to(folder / name)
    for name in PHOTOS:
        (folder / name).unlink()


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "coco": write_coco,
    "label_studio": write_label_studio,
    "yolo": write_yolo,
    "sidecars": write_text_sidecars,
    "keywords": write_xmp_sidecars,
    "one_hot": write_one_hot,
    "lists": write_lists,
    "class_folders": write_class_folders,
}
#: Names that mean something else there, or that no file can have.
OTHERWISE = {
    "one_hot": {"path", "labels", "split"},
    "lists": {"1", "0", "-1"},
    "class_folders": {"AC/DC"},
}


def check_round_trip(form: str, classes: Sequence[str], photos: Path) -> None:
    """Write labels for the photos, read them, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in photos.iterdir():
            (folder / path.name).hardlink_to(path)
        WRITERS[form](folder, classes)
        splits = open_splits(DataConfig(root=name))
        found = {
            Path(record.name).name: set(np.array(split.classes)[record.labels == 1].tolist())
            for split in splits
            for record in split
        }
    expected = {name: {classes[index] for index in own} for name, own in PHOTOS.items()}
    assert {frozenset(own) for own in found.values()} == {frozenset(s) for s in expected.values()}
    if form != "class_folders":  # one of the copies is kept
        assert found == expected


@pytest.mark.parametrize("classes", HARD, ids=" ".join)
@pytest.mark.parametrize("form", WRITERS)
def test_hard_names_are_read_as_written(form: str, classes: list[str], photos: Path) -> None:
    if OTHERWISE.get(form, set()) & set(classes):
        pytest.skip("these mean something else there")
    check_round_trip(form, classes, photos)


@pytest.mark.parametrize("form", ["coco", "label_studio", "yolo", "sidecars", "keywords"])
@settings(max_examples=15, deadline=None)
@given(classes=names)
def test_any_names_are_read_as_written(form: str, classes: list[str], photos: Path) -> None:
    check_round_trip(form, classes, photos)


@pytest.mark.parametrize("form", ["sidecars", "keywords", "label_studio", "lists", "one_hot"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_a_list_of_classes_names_them_in_either_unicode_form(
    form: str, listed: str, photos: Path, tmp_path: Path
) -> None:
    classes = ["café", "mer", "plage"]
    written = "NFD" if listed == "NFC" else "NFC"
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    WRITERS[form](folder, [unicodedata.normalize(written, name) for name in classes])
    names = folder / "names.txt"
    names.write_text(unicodedata.normalize(listed, "\n".join(classes)), "utf-8")
    splits = open_splits(DataConfig(root=str(folder), classes=str(names)))
    assert splits.train.classes == tuple(classes)
    found = {
        Path(record.name).name: np.flatnonzero(record.labels == 1)
        for split in splits
        for record in split
    }
    assert {name: own.tolist() for name, own in found.items()} == PHOTOS


texts = st.lists(
    st.one_of(names.map(lambda own: own[0]), st.text('ab ;|,"_)', min_size=1, max_size=6))
    .map(str.strip)
    .filter(bool),
    unique=True,
)


@settings(max_examples=300)
@given(texts, st.sampled_from([", ", "; ", "\n"]))
def test_tags_in_one_text_are_told_apart(tags: list[str], separator: str) -> None:
    assert split_tags(join_tags(tags, separator)) == tags
    assert from_cells(to_cells(tags)) == tags


@pytest.mark.parametrize("classes", HARD, ids=" ".join)
def test_results_hold_names_as_they_are(classes: list[str], tmp_path: Path) -> None:
    labels = [(name, 0.75) for name in classes]
    row = Row(Path("a.jpg"), labels, np.full(3, 0.75, np.float32))
    for form in ("csv", "tsv", "json", "jsonl", "parquet"):
        write_rows([row], Vocabulary(classes), tmp_path / f"t.{form}", form, 40)
    for form, delimiter in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"t.{form}").open(newline="", encoding="utf-8") as file:
            header, cells = map(from_cells, csv.reader(file, delimiter=delimiter))
        assert split_tags(cells[1]) == classes
        assert [name.removeprefix("class:") for name in header[4:]] == classes
    assert json.loads((tmp_path / "t.json").read_text())[0]["labels"] == classes
    assert json.loads((tmp_path / "t.jsonl").read_text())["labels"] == classes
    table = pq.read_table(tmp_path / "t.parquet")
    assert table["labels"].to_pylist() == [classes]
    assert [name.removeprefix("class:") for name in table.column_names[4:]] == classes
