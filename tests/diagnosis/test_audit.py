"""`mltr audit`: planted errors come first, and corrected labels are used in training."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import TINY_ON_PHOTOS, save_untrained, write_image
from PIL import Image

import mltr
from mltr.cli import main
from mltr.config.recipe import load_recipe, to_yaml
from mltr.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    ScenesConfig,
    TrainConfig,
)
from mltr.data import open_splits, read_csv
from mltr.data.records import Record, Split, Splits
from mltr.diagnosis.audit import training_command
from mltr.diagnosis.corrections import write_corrected, write_labels
from mltr.diagnosis.label_issues import OWN, PROBES
from mltr.errors import MltrError

CLASSES = ("red", "green", "blue")
PARTS = ("train", "train", "train", "val", "test")
NETWORK = {"image_size": 32, "depths": [1], "conv_depths": [0]}


def write_photos(folder: Path, count: int = 100, first: int = 0) -> dict[str, list[int]]:
    """Write photos tinted by their labels; return the labels."""
    truth = {}
    for number in range(first, first + count):
        generator = np.random.default_rng(number)
        labels = (generator.random(3) < 0.4).astype(int)
        pixels = generator.integers(0, 120, (30, 40, 3)) + 120 * labels
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        truth[f"{number}.png"] = labels.tolist()
    return truth


def write_table(path: Path, labels: dict[str, list[object]], classes=CLASSES) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *classes, "split"])
        for index, (name, row) in enumerate(labels.items()):
            writer.writerow([name, *row, PARTS[index % len(PARTS)]])


def write_run(folder: Path, root: Path, classes=CLASSES, **data: object) -> None:
    """Write an untrained run, whose random features already separate the colours."""
    save_untrained(folder, classes, NETWORK)
    config = Config(
        data=DataConfig(root=str(root), workers=0, **data),
        augment=AugmentConfig(randaugment_ops=0, cutout=0),
        model=ModelConfig(image_size=32, overrides={"depths": [1], "conv_depths": [0]}),
        train=TrainConfig(epochs=1, warmup=0, batch_size=16),
    )  # fmt: skip
    (folder / "config.yaml").write_text(to_yaml(config))


@pytest.fixture
def flipped(tmp_path: Path) -> dict[str, int]:
    """Write photos and a run; return the flipped class of each training photo with an error."""
    labels = write_photos(tmp_path / "photos")
    training = [name for i, name in enumerate(labels) if PARTS[i % len(PARTS)] == "train"]
    errors = {name: i % 3 for i, name in enumerate(training[::6])}
    for name, k in errors.items():
        labels[name][k] = 1 - labels[name][k]
    write_table(tmp_path / "photos" / "labels.csv", labels)
    write_run(tmp_path / "run", tmp_path / "photos")
    return errors


@pytest.fixture
def photos_came_later(tmp_path: Path) -> list[str]:
    """Train on 40 photos, to which 6 are then added; return the options of the training."""
    labels = write_photos(tmp_path / "photos", 40)
    table = tmp_path / "photos" / "labels.csv"

    def write(labels: dict[str, list[int]]) -> None:  # without splits, which then follow the labels
        rows = [f"{name},{','.join(map(str, own))}" for name, own in labels.items()]
        table.write_text("\n".join([f"path,{','.join(CLASSES)}", *rows]))

    write(labels)
    run = tmp_path / "run"
    options = ["--data.root", str(tmp_path / "photos"), "--out", str(run), *TINY_ON_PHOTOS]
    assert main(["train", "scratch", *options]) == 0
    write(labels | write_photos(tmp_path / "photos", 6, first=40))
    return options


def run_audit(tmp_path: Path, *arguments: object) -> dict:
    out = tmp_path / "figures.json"
    command = ["audit", "--run", str(tmp_path / "run"), "--json", str(out)]
    assert main([*command, *map(str, arguments)]) == 0
    return json.loads(out.read_text())


def read_issues(folder: Path) -> list[dict[str, str]]:
    with (folder / "issues.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def labels_of(splits: Splits) -> dict[tuple[str, str], list[int]]:
    return {(s.name, Path(r.name).name): r.labels.tolist() for s in splits for r in s}


def original(tmp_path: Path) -> dict[tuple[str, str], list[int]]:
    return labels_of(open_splits(DataConfig(root=str(tmp_path / "photos"))))


def corrected(folder: Path) -> dict[tuple[str, str], list[int]]:
    return labels_of(open_splits(DataConfig(root=str(folder / "corrected.csv"))))


# -- finding -----------------------------------------------------------------------------------


def test_planted_errors_come_first(flipped: dict[str, int], tmp_path: Path, capsys) -> None:
    figures = run_audit(tmp_path, "--split", "train", "--top", "12")
    issues = read_issues(tmp_path / "run" / "audit")
    assert [issue["rank"] for issue in issues] == [str(n) for n in range(1, 13)]
    planted = [flipped.get(i["image"]) == CLASSES.index(i["class"]) for i in issues]
    assert len(flipped) == 10
    assert sum(planted[:10]) >= 9
    assert figures["images"] == 60
    assert figures["labels_judged"] == 180
    (method,) = figures["probabilities"]
    assert method == f"train (60 images): {PROBES}"
    scores = [float(issue["score"]) for issue in issues if issue["likely"] == "yes"]
    assert scores == sorted(scores, reverse=True)
    for issue in issues:
        given, prob = int(issue["given"]), float(issue["probability"])
        assert int(issue["suggested"]) == 1 - given
        assert float(issue["score"]) == pytest.approx(prob if given == 0 else 1 - prob, abs=1e-3)
        assert issue["label"] == issue["given"]
    per_class = figures["per_class"].values()
    total = sum(counts["missing"] + counts["wrong"] for counts in per_class)
    assert total == figures["likely_errors"]
    printed = capsys.readouterr().out
    assert issues[0]["image"] in printed
    assert "mltr train" in printed


def test_what_the_run_has_not_learnt_it_judges_itself(
    flipped: dict[str, int], tmp_path: Path
) -> None:
    figures = run_audit(tmp_path, "--split", "test", "val", "--top", "120")
    assert figures["probabilities"] == [f"val, test (40 images): {OWN}"]
    predictor = mltr.load(tmp_path / "run")
    for issue in read_issues(tmp_path / "run" / "audit")[::15]:
        probs = predictor(tmp_path / "photos" / issue["image"]).probs
        expected = probs[CLASSES.index(issue["class"])]
        assert float(issue["probability"]) == pytest.approx(expected, abs=1e-3)


def test_another_source_is_new_unless_its_images_are_the_run_s_own(
    flipped: dict[str, int], tmp_path: Path
) -> None:
    run_audit(tmp_path, "--apply", "3")
    table = tmp_path / "run" / "audit" / "corrected.csv"
    figures = run_audit(tmp_path, table, "--out", tmp_path / "again")
    assert figures["probabilities"] == [
        f"train (60 images): {PROBES}", f"val, test (40 images): {OWN}",
    ]  # fmt: skip
    write_table(tmp_path / "new" / "tags.csv", write_photos(tmp_path / "new", 40, first=500))
    figures = run_audit(tmp_path, f"table:{tmp_path / 'new'}", "--out", tmp_path / "third")
    assert figures["probabilities"] == [f"train, val, test (40 images): {OWN}"]
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    figures = run_audit(tmp_path, tmp_path / "new", "--out", tmp_path / "fourth")
    assert figures["probabilities"] == [f"train, val, test (40 images): {PROBES}"]


def test_what_the_run_learnt_from_counts_not_how_the_source_is_divided_now(
    flipped: dict[str, int], tmp_path: Path
) -> None:
    then = {"val": ["3.png", "8.png"], "test": [f"{n}.png" for n in range(4, 100, 5)]}
    then["train"] = [f"{n}.png" for n in range(100) if n % 5 < 3 or n > 8]
    (tmp_path / "run" / "splits.json").write_text(json.dumps(then))
    probes, own = run_audit(tmp_path)["probabilities"]
    assert probes == f"train, val (78 images): {PROBES}"
    assert own == f"val, test (22 images): {OWN}"
    (tmp_path / "run" / "splits.json").write_text("{}")
    assert main(["audit", "--run", str(tmp_path / "run")]) == 1


@pytest.mark.parametrize("sign", ["=", " "])
def test_fields_of_a_recipe_say_how_the_source_is_read(
    flipped: dict[str, int], tmp_path: Path, sign: str
) -> None:
    photos = tmp_path / "photos"
    write_table(photos / "other.csv", {f"{n}.png": [n % 2, 1, 0] for n in range(50)})
    figures = run_audit(tmp_path, *f"--data.labels{sign}other.csv".split())
    assert figures["images"] == 50
    assert figures["not_judged"] == ["green", "blue"]
    figures = run_audit(tmp_path, photos, *f"--data.labels{sign}labels.csv".split())
    assert figures["images"] == 100


def test_networks_trained_on_the_other_folds(flipped: dict[str, int], tmp_path: Path) -> None:
    own = ("--split", "train", "--no-duplicates", "--train.epochs", "1")
    command = ["audit", "--run", str(tmp_path / "run"), *own]
    assert main(command) == 2  # no network is trained
    figures = run_audit(tmp_path, "--folds", "2", *own)
    recipe = load_recipe(tmp_path / "run" / "audit" / "folds" / "fold1" / "config.yaml")
    assert recipe.train.epochs == 1
    assert "2 networks" in figures["probabilities"][0]
    assert "duplicates" not in figures
    assert figures["labels_judged"] == 180
    folds = [
        json.loads((tmp_path / f"run/audit/folds/fold{n}/splits.json").read_text()) for n in (1, 2)
    ]
    for own, other in (folds, folds[::-1]):
        assert not set(own["test"]) & set(own["train"])
        assert set(own["test"]) == set(other["train"])


def test_repeated_pictures_are_reported(flipped: dict[str, int], tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    shutil.copy(photos / "0.png", photos / "4.png")  # train and test
    shutil.copy(photos / "5.png", photos / "6.png")
    figures = run_audit(tmp_path)
    labels = original(tmp_path)
    expected = {("train: 0.png", "test: 4.png"): True, ("train: 5.png", "train: 6.png"): False}
    assert {tuple(g["images"]): g["over_splits"] for g in figures["duplicates"]} == expected
    for group in figures["duplicates"]:
        first, second = (labels[tuple(image.split(": "))] for image in group["images"])
        differ = [name for name, a, b in zip(CLASSES, first, second, strict=True) if a != b]
        assert group["conflict"] == differ
    assert "2 pictures have duplicates: 1 in two splits" in capsys.readouterr().out
    audit = tmp_path / "run" / "audit"
    with (audit / "duplicates.csv").open() as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["1", "1", "2", "2"]
    assert Image.open(audit / "duplicates.png").width > 500
    for name in ("4.png", "6.png"):
        write_image(photos / name, (40, 30))
    run_audit(tmp_path)  # must not leave files of the previous audit
    assert not (audit / "duplicates.csv").exists()
    assert not (audit / "duplicates.png").exists()


def test_broken_images_are_reported_and_no_issues(flipped: dict[str, int], tmp_path: Path) -> None:
    for name in ("0.png", "4.png"):
        (tmp_path / "photos" / name).write_bytes(b"broken")
    figures = run_audit(tmp_path, "--top", "500")
    assert figures["labels_judged"] == 3 * 98
    assert len(figures["broken"]) == 2
    issues = read_issues(tmp_path / "run" / "audit")
    assert len(issues) == 3 * 98
    assert not {"0.png", "4.png"} & {issue["image"] for issue in issues}
    assert corrected(tmp_path / "run" / "audit") == original(tmp_path)


# -- correcting --------------------------------------------------------------------------------


def test_the_corrected_table_has_the_same_images_splits_and_labels(
    flipped: dict[str, int], tmp_path: Path
) -> None:
    figures = run_audit(tmp_path)
    assert figures["accepted"] == 0
    audit = tmp_path / "run" / "audit"
    assert {str(audit / name) for name in ("issues.csv", "corrected.csv")} < set(figures["files"])
    assert corrected(audit) == original(tmp_path)
    assert read_csv(audit / "corrected.csv").classes == CLASSES
    assert Image.open(audit / "wrong.png").height > 100


@pytest.mark.parametrize(
    ("option", "is_accepted"),
    [
        (["--apply", "8"], lambda issue: int(issue["rank"]) <= 8),
        (["--apply-above", "0.9"], lambda issue: float(issue["score"]) >= 0.9),
    ],
)
def test_accepted_suggestions_are_in_the_corrected_table(
    flipped: dict[str, int], tmp_path: Path, option: list[str],
    is_accepted: Callable[[dict[str, str]], bool],
) -> None:  # fmt: skip
    figures = run_audit(tmp_path, *option)
    expected = original(tmp_path)
    issues = read_issues(tmp_path / "run" / "audit")
    accepted = [issue for issue in issues if is_accepted(issue)]
    assert 0 < len(accepted) == figures["accepted"] < len(issues)
    for issue in accepted:
        k = CLASSES.index(issue["class"])
        expected[issue["split"], issue["image"]][k] = int(issue["suggested"])
    assert [issue["label"] == issue["suggested"] for issue in issues] == [
        is_accepted(issue) for issue in issues
    ]
    assert corrected(tmp_path / "run" / "audit") == expected


def edit(path: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    rows = read_issues(path.parent)
    change(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_a_review_changes_what_was_edited_and_nothing_else(
    flipped: dict[str, int], tmp_path: Path
) -> None:
    run_audit(tmp_path, "--split", "train")
    path = tmp_path / "run" / "audit" / "issues.csv"

    def change(rows: list[dict[str, str]]) -> None:
        rows[0]["label"] = f"{rows[0]['suggested']}.0"  # as a spreadsheet may save it
        rows[1]["label"] = ""
        del rows[3]

    edit(path, change)
    first, second, *_ = read_issues(path.parent)
    figures = run_audit(tmp_path, "--review", path)
    assert figures["accepted"] == 2
    expected = original(tmp_path)
    expected["train", first["image"]][CLASSES.index(first["class"])] = int(first["suggested"])
    expected["train", second["image"]][CLASSES.index(second["class"])] = -1
    assert corrected(path.parent) == expected
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="", encoding="cp1252") as file:  # as a German Excel saves it
        csv.writer(file, delimiter=";").writerows([*row, "geprüft"] for row in rows)
    assert run_audit(tmp_path, "--review", path)["accepted"] == 2
    assert corrected(path.parent) == expected


def test_changed_labels_are_not_lost(flipped: dict[str, int], tmp_path: Path, capsys) -> None:
    own = ("--split", "train", "--no-duplicates")
    run_audit(tmp_path, *own)
    for count in (3, 5):  # nothing was changed by hand
        run_audit(tmp_path, *own, "--apply", count)
    run_audit(tmp_path, *own)
    path = tmp_path / "run" / "audit" / "issues.csv"
    edit(path, lambda rows: rows[0].update(label=rows[0]["suggested"]))
    before = path.read_bytes()
    assert main(["audit", str(tmp_path / "run"), *own]) == 2
    assert f"--review {path} applies them" in capsys.readouterr().err
    assert path.read_bytes() == before
    run_audit(tmp_path, *own, "--overwrite")
    assert path.read_bytes() != before


def test_the_printed_review_reads_the_source_as_the_audit_did(
    photos_came_later: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source that has other photos since, and with fields of a recipe that only train."""
    monkeypatch.setenv("COLUMNS", "500")
    run = tmp_path / "run"
    then = json.loads((run / "splits.json").read_text())
    capsys.readouterr()
    fields = ("--data.workers=0", "--train.epochs=1")
    assert main(["audit", str(run), "--folds", "2", "--no-duplicates", *fields]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "--review" in x)
    assert main(line.split()[1:]) == 0
    found = corrected(run / "audit")
    assert len(found) == 46
    for part in ("val", "test"):
        assert {name for split, name in found if split == part} == set(then[part])


def test_a_review_keeps_the_run_s_own_splits(tmp_path: Path) -> None:
    labels = write_photos(tmp_path / "photos")
    write_table(tmp_path / "photos" / "labels.csv", labels)
    run = tmp_path / "run"
    options = ["--data.root", str(tmp_path / "photos"), "--out", str(run), *TINY_ON_PHOTOS]
    table = tmp_path / "photos" / "labels.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:  # without splits, which then follow the labels
        writer = csv.DictWriter(file, [n for n in rows[0] if n != "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert main(["train", "scratch", *options]) == 0
    before = original(tmp_path)
    text = table.read_text().splitlines()
    name, *answers = text[-1].split(",")
    text[-1] = ",".join([name, *("1" if answer == "0" else "0" for answer in answers)])
    table.write_text("\n".join(text))
    run_audit(tmp_path)
    run_audit(tmp_path, "--review", run / "audit" / "issues.csv")
    assert corrected(run / "audit").keys() == before.keys()


def test_photos_that_came_later_leave_the_others_in_their_splits(
    photos_came_later: list[str], tmp_path: Path, caplog
) -> None:
    run = tmp_path / "run"
    then = json.loads((run / "splits.json").read_text())
    run_audit(tmp_path, "--apply", "1")
    for _ in range(2):  # as the audit and as the review writes it
        found = labels_of(open_splits(DataConfig(root=str(run / "audit" / "corrected.csv"))))
        for part in ("val", "test"):
            assert {name for split, name in found if split == part} == set(then[part])
        assert len(found) == 46
        run_audit(tmp_path, "--review", run / "audit" / "issues.csv")
    assert "6 images that came after" in caplog.text and "in the training split" in caplog.text
    # What is fine-tuned from it on another division is told.
    caplog.clear()
    again = [
        "train",
        "scratch",
        *photos_came_later,
        "--model.init",
        str(run),
        "--data.split_seed",
        "5",
    ]
    assert main([*again, "--out", str(tmp_path / "again")]) == 0
    assert "of the validation and test images here, whose figures will be too good" in caplog.text


def test_folds_start_from_no_run_that_knows_the_photos(
    flipped: dict[str, int], tmp_path: Path, capsys
) -> None:
    photos = ["--data.root", str(tmp_path / "photos"), *TINY_ON_PHOTOS]
    run, first = str(tmp_path / "run"), str(tmp_path / "first")
    assert main(["train", "scratch", *photos, "--out", first]) == 0
    start = ["--model.init", first, "--train.teacher", first, "--out", run, "--overwrite"]
    assert main(["train", "scratch", *photos, *start]) == 0
    capsys.readouterr()
    command = ["audit", run, "--split", "train", "--folds", "2"]
    assert main(command) == 2
    assert "was trained on these images, so no fold would be new" in capsys.readouterr().err
    assert main([*command, "--train.teacher="]) == 0
    fold = load_recipe(tmp_path / "run" / "audit" / "folds" / "fold1" / "config.yaml")
    assert fold.model.init == ""  # as the first run's


def test_corrections_that_contradict_the_labels_beside_them_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_image(photos / "a.png")
    write_image(photos / "b.png")
    labels = np.array([[1, 1, 0], [0, 0, 1]], np.int8)
    records = [Record(photos / f"{n}.png", f"{n}.png", labels[i]) for i, n in enumerate("ab")]
    train = Split(("animal", "dog", "sea"), records, "train")
    empty = Split(train.classes, [])
    splits = Splits(train, empty, empty, hierarchy={"dog": "animal"})
    with pytest.raises(MltrError, match="a.png: animal can't be absent there"):
        write_corrected(tmp_path, splits, {("train", "a.png"): {0: 0}})
    assert write_corrected(tmp_path, splits, {("train", "a.png"): {0: 0, 1: 0}})
    single = Splits(train, empty, empty)
    with pytest.raises(MltrError, match=r"b.png: it would have 2 labels, and each image has one"):
        write_corrected(tmp_path, single, {("train", "b.png"): {1: 1}}, one_each=True)
    assert write_corrected(tmp_path, single, {("train", "b.png"): {1: 1, 2: 0}}, one_each=True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("label", "2", "row 2: label '2' is not 1, 0, or empty"),
        ("image", "none.png", "row 2: this source has no image 'none.png' in its train split"),
        ("class", "rod", "row 2: unknown class 'rod'; did you mean 'red'?"),
        ("label", None, "no column label; is it an issues.csv?"),
    ],
)
def test_mistakes_in_a_review_are_named(
    flipped: dict[str, int], tmp_path: Path, capsys, key: str, value: str | None, words: str
) -> None:
    run_audit(tmp_path, "--split", "train", "--no-duplicates")
    path = tmp_path / "run" / "audit" / "issues.csv"

    def change(rows: list[dict[str, str]]) -> None:
        rows[0][key] = str(value)
        if value is None:
            del rows[0][key]

    edit(path, change)
    assert main(["audit", "--run", str(tmp_path / "run"), "--review", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_the_printed_command_leaves_out_what_a_table_has_no_use_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", tmp_path / "photos", ignore="*.bak")
    assert "--data.ignore=" in training_command(str(tmp_path / "run"), tmp_path / "corrected.csv")


def test_zeros_of_the_corrected_table_are_zeros_whatever_they_were_before(
    tmp_path: Path, capsys
) -> None:
    labels = write_photos(tmp_path / "photos")
    signs = {name: [1 if label else -1 for label in own] for name, own in labels.items()}
    signs["0.png"][0] = 0  # difficult, as in VOC
    write_table(tmp_path / "photos" / "labels.csv", signs)
    write_run(tmp_path / "run", tmp_path / "photos", absent=-1)
    run_audit(tmp_path, "--apply", "1", "--no-duplicates")
    line = next(x for x in capsys.readouterr().out.splitlines() if "mltr train" in x)
    out = tmp_path / "second"
    assert main([*line.split()[1:], "--out", str(out)]) == 0
    read = open_splits(load_recipe(out / "config.yaml").data)
    before = open_splits(load_recipe(tmp_path / "run" / "config.yaml").data)
    assert (before.train.targets != read.train.targets).sum() <= 1
    assert (read.train.targets == 0).sum() > 50
    # So are they where the table is audited as another source.
    again = open_splits(DataConfig(root=str(tmp_path / "run" / "audit" / "corrected.csv")))
    table = str(tmp_path / "run" / "audit" / "corrected.csv")
    figures = run_audit(tmp_path, table, "--no-duplicates", "--out", tmp_path / "again")
    assert figures["per_class"]["red"]["positives"] == sum(
        int((split.targets[:, 0] == 1).sum()) for split in again
    )
    assert figures["labels_judged"] > 200


def test_another_source_is_read_by_its_own_rules(tmp_path: Path) -> None:
    labels = write_photos(tmp_path / "photos", 50)
    write_run(tmp_path / "run", tmp_path / "photos", ignore="*.bak", separator=";")
    write_table(tmp_path / "other.csv", {f"photos/{name}": own for name, own in labels.items()})
    assert run_audit(tmp_path, tmp_path / "other.csv", "--no-duplicates")["images"] == 50


def test_the_printed_command_trains(flipped: dict[str, int], tmp_path: Path, capsys) -> None:
    (tmp_path / "photos" / "names.txt").write_text("\n".join(CLASSES))
    config = load_recipe(tmp_path / "run" / "config.yaml")
    config.data.labels, config.data.classes = "labels.csv", "names.txt"  # as in some recipes
    (tmp_path / "photos" / "labels.csv").write_text(
        (tmp_path / "photos" / "labels.csv").read_text().replace("path,", "photo,", 1)
    )
    config.data.path_column, config.data.label_column = "photo", ",".join(CLASSES)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    run_audit(tmp_path, "--apply", "5")
    line = next(x for x in capsys.readouterr().out.splitlines() if "mltr train" in x)
    out = tmp_path / "second"
    assert main([*line.split()[1:], "--out", str(out)]) == 0
    assert load_recipe(out / "config.yaml").data.root.endswith("corrected.csv")
    assert json.loads((out / "metrics.json").read_text())["images"] == 20


# -- what may be odd ---------------------------------------------------------------------------


def test_odd_classes_are_left_out_and_reported(tmp_path: Path, capsys) -> None:
    labels = write_photos(tmp_path / "photos", 60)
    classes = (*CLASSES, "never", "unknown", "once")
    rows = {
        name: [*row, 0, "", int(name == "0.png")]
        for number, (name, row) in enumerate(labels.items())
    }
    rows["5.png"] = [""] * 6
    write_table(tmp_path / "photos" / "labels.csv", rows, classes)
    write_run(tmp_path / "run", tmp_path / "photos", classes)
    figures = run_audit(tmp_path, "--top", "1000")
    assert figures["not_judged"] == ["never", "unknown", "once"]
    assert "images: never, unknown, once" in " ".join(capsys.readouterr().out.split())
    issues = read_issues(tmp_path / "run" / "audit")
    assert len(issues) == 59 * 3
    assert not [issue for issue in issues if issue["image"] == "5.png"]
    table = (tmp_path / "run" / "audit" / "corrected.csv").read_text().splitlines()
    assert next(line for line in table if "/5.png" in line).endswith("5.png,,,,,,,train")
    assert corrected(tmp_path / "run" / "audit") == original(tmp_path)


def test_one_class_and_one_image_a_split(tmp_path: Path, capsys) -> None:
    labels = {name: [1] for name in write_photos(tmp_path / "photos", 5)}
    write_table(tmp_path / "photos" / "labels.csv", labels, ("red",))
    write_run(tmp_path / "run", tmp_path / "photos", ("red",))
    for arguments in (["--split", "test"], ["--apply-above", "0"]):
        figures = run_audit(tmp_path, *arguments)
        assert figures["labels_judged"] == figures["likely_errors"] == figures["accepted"] == 0
        assert figures["not_judged"] == ["red"]
        assert read_issues(tmp_path / "run" / "audit") == []
        assert corrected(tmp_path / "run" / "audit") == original(tmp_path)
    assert "0 likely errors" in capsys.readouterr().out


def test_composed_scenes_get_no_table(tmp_path: Path, caplog, capsys) -> None:
    scenes = ScenesConfig(train=30, val=4, test=6, side=32)
    names = open_splits(DataConfig(format="scenes", scenes=scenes)).train.classes
    write_run(tmp_path / "run", Path(), names, format="scenes", scenes=scenes)
    figures = run_audit(tmp_path)
    assert [Path(f).suffix for f in figures["files"]].count(".csv") == 1
    assert "no corrected.csv" in caplog.text
    run = str(tmp_path / "run")
    review = str(tmp_path / "run" / "audit" / "issues.csv")
    assert main(["audit", "--run", run, "--review", review]) == 1
    assert "are not files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--folds", "1"], "--folds 1 must be at least 2"),
        (["--folds", "200"], "--folds 200: there are only 60 images to split"),
        (["--top", "0"], "--top 0 must be at least 1"),
        (["--apply", "-1"], "--apply -1 must be at least 0"),
        (["--apply-above", "1.5"], "must lie in 0..1"),
        (["--apply", "3", "--apply-above", "0.5"], "not allowed with"),
        (["--review", "none.csv"], "none.csv: no such file of issues"),
        (["tabel:x"], "no format 'tabel'; did you mean 'table'"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["--split", "tset"], "invalid choice"),
    ],
)
def test_mistakes_are_named(
    flipped: dict[str, int], tmp_path: Path, capsys, arguments: list[str], words: str
) -> None:
    assert main(["audit", *arguments, "--run", str(tmp_path / "run")]) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path: Path, capsys) -> None:
    assert main(["audit", "--run", str(tmp_path / "none")]) == 1
    assert "no such run folder" in capsys.readouterr().err
    assert main(["audit", "x", "--run", str(tmp_path)]) == 1
    assert "no config.yaml" in capsys.readouterr().err


def test_classes_that_are_called_like_columns_are_read_back(tmp_path: Path) -> None:
    names = ("path", "split", "index", "fold", "labels", "Polish", "polish")
    rng = np.random.default_rng(0)
    records = [
        Record(write_image(tmp_path / "photos" / f"{n}.png"), f"{n}.png", rng.permutation(7) % 2)
        for n in range(12)
    ]
    splits = Splits(*(Split(names, records[start::3]) for start in range(3)))
    for split, name in zip(splits, ("train", "val", "test"), strict=True):
        split.name = name
    table = write_labels(tmp_path / "labels.csv", splits)
    assert table is not None
    again = open_splits(DataConfig(root=str(table), classes="labels.classes.txt", merge_case=False))
    assert again.train.classes == names
    for split, own in zip(splits, again, strict=True):
        assert [r.labels.tolist() for r in own] == [r.labels.tolist() for r in split]
    plain = Splits(*(replace(split, classes=tuple("abcdefg")) for split in splits))
    write_labels(table, plain)
    assert not (tmp_path / "labels.classes.txt").exists()
