"""Labels that imply others: read from a file, in the labels of photos, in predictions."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import TINY_ON_PHOTOS, write_image, write_photos

import mltr
from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data.hierarchy import ancestors, path_of, read_hierarchy
from mltr.data.sources import open_splits
from mltr.errors import MltrError
from mltr.predict.predictor import Prediction
from mltr.weights.bundle import load_bundle, update_config

CLASSES = ("animal", "dog", "no", "car")
TREE = {"dog": "pet", "pet": "animal", "no": "car"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("h.yaml", "dog: pet\npet: animal\nno: car  # to YAML, `no` is false\n"),
        ("h.json", json.dumps(TREE)),
        ("h.csv", "\ufeffChild,Parent\r\ndog,pet\r\n\r\npet, animal\r\nno,car\r\n"),
    ],
)
def test_forms_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert read_hierarchy(tmp_path / name, CLASSES) == TREE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.yaml", "dog: animal\ndgo: animal\n", "'dgo' is no class, and above none; did you mean"),
        ("h.yaml", "dog: pet\npet: dog\n", "is its own ancestor"),
        ("h.yaml", "dog: dog\n", "'dog' is its own ancestor"),
        ("h.yaml", "dog: animal\ndog: car\n", "'dog' has two parents, 'animal' and 'car'"),
        ("h.yaml", "animal: [dog]\n", "expected lines such as dog: animal"),
        ("h.yaml", "- dog\n", "expected lines such as dog: animal"),
        ("h.yaml", "dog: '\n", "it isn't YAML"),
        ("h.yaml", "", "expected lines such as dog: animal"),
        ("h.yaml", "[" * 5000, "expected lines such as dog: animal"),
        ("h.csv", "dog,animal\n", "its first line must be child,parent"),
        ("h.csv", "child,parent\ndog\n", "a line must be child,parent, not 'dog'"),
        ("h.csv", "child,parent\ndog,\n", "a line must be child,parent, not 'dog,'"),
    ],
)
def test_what_is_no_hierarchy(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MltrError) as told:
        read_hierarchy(tmp_path / name, CLASSES)
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_tree_as_a_spreadsheet_saves_it(tmp_path: Path, separator: str, encoding: str) -> None:
    rows = [("child", "parent"), ("dog", "animal"), ("animal", "vivant ou animé")]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "h.csv").write_bytes(text.encode(encoding))
    found = read_hierarchy(tmp_path / "h.csv", CLASSES)
    assert found == {"dog": "animal", "animal": "vivant ou animé"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.yaml", tmp_path):
        with pytest.raises(MltrError, match="data.hierarchy .*: can't be read"):
            read_hierarchy(path, CLASSES)


forests = st.lists(st.integers(-1, 8), min_size=1, max_size=9).map(
    # Each name's parent is one before it, or none.
    lambda above: {str(child): str(p) for child, p in enumerate(above) if 0 <= p < child}
)


@given(forests, st.integers(0, 2**9 - 1))
def test_ancestors_are_those_of_a_naive_walk(parents: dict[str, str], chosen: int) -> None:
    """Of classes that are only some of the names."""
    classes = [str(number) for number in range(9) if chosen >> number & 1]
    above = ancestors(classes, parents)
    for index, label in enumerate(classes):
        naive, name = [], label
        while name in parents:
            name = parents[name]
            naive.append(name)
        assert path_of(label, parents) == [*naive[::-1], label]
        assert {classes[place] for place in above.get(index, ())} == set(naive) & set(classes)


def test_photos_have_what_their_labels_imply(tmp_path: Path) -> None:
    rows = [
        "path,animal,dog,no,car",
        "a.png,0,1,0,0",
        "b.png,0,0,1,",
        "c.png,,1,,1",
        "d.png,1,,0,0",
    ]
    rows += [f"{number}.png,0,0,0,0" for number in range(6)]
    for row in rows[1:]:
        write_image(tmp_path / "photos" / row.split(",")[0])
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "tree.yaml").write_text(json.dumps(TREE))
    config = DataConfig(root=str(tmp_path / "photos"), hierarchy=str(tmp_path / "tree.yaml"))
    splits = open_splits(config)
    found = {record.name: record.labels.tolist() for split in splits for record in split}
    assert [found[name] for name in ("a.png", "b.png", "c.png", "d.png")] == [
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [1, 1, -1, 1],
        [1, -1, 0, 0],
    ]
    assert splits.hierarchy == TREE


def test_shards_hold_implied_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, tree = write_photos(tmp_path / "photos", 16), tmp_path / "tree.yaml"
    tree.write_text("sunset: sea\n")
    shards = str(tmp_path / "shards")
    assert main(["shard", str(photos), "--out", shards, "--hierarchy", str(tree)]) == 0
    splits = open_splits(DataConfig(root=shards))
    sea, sunset = (splits.train.classes.index(name) for name in ("sea", "sunset"))
    whole = open_splits(DataConfig(root=str(photos)))
    expected = {record.name: record.labels.copy() for split in whole for record in split}
    for labels in expected.values():
        labels[sea] = max(labels[sea], labels[sunset])
    found = {record.name: record.labels for split in splits for record in split}
    assert found.keys() == expected.keys()
    assert all(found[name].tolist() == expected[name].tolist() for name in expected)
    with pytest.raises(MltrError, match="for shards, give it to mltr shard"):
        open_splits(DataConfig(root=shards, hierarchy=str(tree)))


def test_a_category_may_have_images_by_what_implies_it_alone(tmp_path: Path) -> None:
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(12)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(("animal", "dog", "ufo"))],
        "annotations": [{"image_id": n, "category_id": 1} for n in range(0, 12, 2)],
    }
    for n in range(12):
        write_image(tmp_path / f"{n}.png", seed=n)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "tree.yaml").write_text("dog: animal\n")
    config = DataConfig(root=str(tmp_path), hierarchy=str(tmp_path / "tree.yaml"))
    splits = open_splits(config)
    assert splits.train.classes == ("animal", "dog")
    assert all(record.labels[0] == record.labels[1] for split in splits for record in split)


def test_names_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (tmp_path / "tree.yaml").write_text(f"{two}: {two} bar\n", "utf-8")
    assert read_hierarchy(tmp_path / "tree.yaml", [one]) == {one: f"{one} bar"}


def test_a_label_brings_what_it_implies() -> None:
    probs, thresholds = np.array([0.3, 0.9, 0.1, 0.4]), np.full(4, 0.5)
    plain = Prediction(probs, CLASSES, thresholds)
    assert [name for name, _ in plain.labels] == ["dog"]
    implied = Prediction(probs, CLASSES, thresholds, TREE)
    assert implied.labels == [("dog", 0.9), ("animal", 0.3)]
    assert implied.only([0, 3]).labels == [("animal", 0.3)]  # though the dog isn't shown
    assert implied.only([1, 0]).labels == [("dog", 0.9), ("animal", 0.3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hierarchy")
    photos = write_photos(folder / "photos", 16)
    (folder / "tree.yaml").write_text("sunset: sea\nsea: water\n")
    out = folder / "run"
    options = [f"--data.hierarchy={folder / 'tree.yaml'}", *TINY_ON_PHOTOS]
    assert main(["train", "scratch", str(photos), "--out", str(out), *options]) == 0
    return out


def test_a_run_learns_it_and_its_bundle_predicts_by_it(run: Path, tmp_path: Path) -> None:
    bundle = load_bundle(run)
    assert bundle.config["hierarchy"] == {"sunset": "sea", "sea": "water"}
    classes = json.loads((run / "splits.json").read_text())["classes"]
    assert tuple(classes) == bundle.classes
    photos = sorted((run.parent / "photos").glob("*.png"))
    predictor = mltr.load(run)
    sea, sunset = (predictor.classes.index(name) for name in ("sea", "sunset"))
    predictor.thresholds[[sea, sunset]] = 1.0, 0.0
    for found in predictor([str(path) for path in photos]):
        assert found.probs[sea] >= found.probs[sunset]
        assert {name for name, _ in found.labels} == {"sea", "sunset"}
    before = predictor.fingerprint
    (run.parent / "tree.yaml").unlink()  # the bundle has its own
    assert mltr.load(run).fingerprint == before
    without = shutil.copytree(run, tmp_path / "without")
    update_config(without, {"hierarchy": {}})
    assert mltr.load(without).fingerprint != before


def test_predict_writes_trees_of_keywords(run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "beach.png")
    assert main(["predict", str(run), str(tmp_path), "--xmp", "--threshold", "0"]) == 0
    root = ElementTree.parse(tmp_path / "beach.png.xmp").getroot()
    found = {
        name: {item.text for item in root.iterfind(f".//{{*}}{name}//{{*}}li")}
        for name in ("subject", "hierarchicalSubject", "TagsList")
    }
    assert found == {
        "subject": {"sea", "sunset"},
        "hierarchicalSubject": {"water|sea", "water|sea|sunset"},
        "TagsList": {"water/sea", "water/sea/sunset"},
    }


@pytest.mark.parametrize("wrong", [["sea"], {"sea": 1}, {"sea": "sunset", "sunset": "sea"}])
def test_a_bundle_with_a_hierarchy_that_is_none(run: Path, wrong: object) -> None:
    with pytest.raises(MltrError, match=r"config.json: .*(hierarchy|ancestor)"):
        update_config(run, {"hierarchy": wrong})
