"""Labels in, beside and above photos: keywords, tags and class folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import write_image
from PIL import Image, IptcImagePlugin, PngImagePlugin
from tool_labels import (
    LABELS,
    described,
    labels_in,
    write_adobe,
    write_all,
    write_beside,
    write_inside,
    write_iptc,
    write_yolo_beside,
    xmp_with,
)

from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.data.detect import detect_format
from mltr.errors import MltrError, UsageError
from mltr.predict.sidecars import XmpSidecars


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif", "heic"])
def test_keywords_in_every_kind_of_photo(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("lxml")
    if suffix == "heic":
        pytest.importorskip("pillow_heif")
    picture = Image.new("RGB", (20, 20), "red")
    for name, labels in LABELS.items():
        xmp = xmp_with(labels)
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"png": {"pnginfo": text}, "tif": {"tiffinfo": {700: xmp}}}
        path = (tmp_path / name).with_suffix(f".{suffix}")
        picture.save(path, **options.get(suffix, {"xmp": xmp}))
    found = labels_in(DataConfig(root=str(tmp_path)))
    assert {Path(name).stem: own for name, own in found.items()} == {
        Path(name).stem: own for name, own in LABELS.items() if own
    }


def test_the_file_beside_a_photo_counts_before_what_is_in_it(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    for name, labels in LABELS.items():
        write_inside(tmp_path, name, [*labels, "Plane"])
        (tmp_path / f"{name}.xmp").write_bytes(xmp_with([*labels, "Other"]))
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("Boat", "Car", "Other")
    (tmp_path / "3.jpg.xmp").write_bytes(b"")  # a program was interrupted
    assert "Plane" in open_splits(DataConfig(root=str(tmp_path))).train.classes
    (tmp_path / "3.jpg.xmp").write_bytes(b"<x:xmpmeta")
    with pytest.raises(MltrError, match=r"3.jpg.xmp: can't be read \(not XMP"):
        open_splits(DataConfig(root=str(tmp_path)))


def test_keywords_in_other_capitals_than_the_classes_are_asked_about(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    for number, (name, labels) in enumerate(LABELS.items()):
        own = [label.lower() if number % 2 else label for label in labels]
        write_beside(tmp_path, name, [*own, "Family", "family"])
    (tmp_path / "classes.txt").write_text("Boat\nCar\n")
    config = DataConfig(root=str(tmp_path), classes="classes.txt")
    with pytest.raises(UsageError, match="differ only in capitals: 'Car' and 'car'"):
        open_splits(config)
    merged = replace(config, merge_case=True)
    assert labels_in(merged) == LABELS
    assert open_splits(merged).understood.counts["other keywords, skipped"] == 2
    apart = labels_in(replace(config, merge_case=False))
    assert sum(map(len, apart.values())) < sum(map(len, LABELS.values()))


def test_damaged_iptc_hides_no_keywords_in_xmp(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    for name, labels in LABELS.items():
        # Photoshop's resource of IPTC-IIM, which doesn't begin as one does.
        broken = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x06\x1dxx\0\0\0"
        segment = b"\xff\xed" + (len(broken) + 2).to_bytes(2, "big") + broken
        path = tmp_path / name
        Image.new("RGB", (20, 20)).save(path, xmp=xmp_with([*labels, "Plane"]))
        content = path.read_bytes()
        path.write_bytes(content[:2] + segment + content[2:])
        with Image.open(path) as picture, pytest.raises(SyntaxError):
            IptcImagePlugin.getiptcinfo(picture)
    found = labels_in(DataConfig(root=str(tmp_path)))
    assert found == {name: sorted([*own, "Plane"]) for name, own in LABELS.items()}


def test_keywords_added_by_a_network_are_reported(
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
    assert counts["@eaDir/ skipped"] == 1
    assert counts["photos outside of the class folders, left out"] == 1
    records = [record for split in open_splits(DataConfig(root=str(tmp_path))) for record in split]
    assert (
        sorted(int(record.labels.sum()) for record in records)
        == [1] * (len(LABELS) + 1 - both) + [2] * both
    )


def test_a_separator_behind_the_last_tag_is_no_part_of_it(tmp_path: Path) -> None:
    for name in LABELS:
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("sea; sky;\nsun|")
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("sea", "sky", "sun")


def test_predictions_beside_photos_are_no_labels(tmp_path: Path) -> None:
    for name in LABELS:
        write_image(tmp_path / "Boat" / name)
        write_image(tmp_path / "Car" / name, seed=int(Path(name).stem))
    header = ["path", "labels", "probs", "error", "Boat"]
    (tmp_path / "tags.csv").write_text(",".join(header) + "\nBoat/1.jpg,Boat,0.9,,0.9\n")
    (tmp_path / "tags.tsv").write_text("\t".join(header) + "\n")
    (tmp_path / "tags.csv.errors.csv").write_text("path,error\n1.jpg,cut short\n")
    pq.write_table(pa.table({name: ["x"] for name in header}), tmp_path / "tags.parquet")
    assert detect_format(tmp_path) == "class_folders"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in LABELS:
        for label in ("train", "bus"):
            write_image(tmp_path / label / f"{label}-{name}")
    assert open_splits(DataConfig(root=str(tmp_path))).train.classes == ("bus", "train")


@pytest.mark.parametrize("folders", [("train", "val"), ("Train", "Valid", "test"), ("training",)])
def test_folders_of_splits_are_no_classes(folders: tuple[str, ...], tmp_path: Path) -> None:
    for folder in folders:
        write_image(tmp_path / folder / "1.jpg")
    with pytest.raises(UsageError, match="those of splits, .* not of classes"):
        detect_format(tmp_path)


def test_test_photos_of_classes_without_training_photos_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in LABELS:
        for label in ("train/Boat", "train/Car", "test/Boat", "test/Car", "test/Plane"):
            write_image(tmp_path / label / f"{label.replace('/', '-')}-{name}")
    counts = described(capsys, tmp_path)["understood"]["counts"]
    assert counts["photos in test/Plane, which train lacks, left out"] == len(LABELS)


@pytest.mark.parametrize(
    ("name", "words"),
    [("annotations.xml", "in no known format"), ("labels.xlsx", "save it as CSV")],
)
def test_a_file_beside_a_single_folder_is_asked_about(
    name: str, words: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "images" / "1.jpg")
    (tmp_path / name).write_text("<annotations/>")
    with pytest.raises(UsageError, match=f"{name}: {words}"):
        detect_format(tmp_path)


def test_folders_of_kinds_of_files_are_no_classes(tmp_path: Path) -> None:
    for folder in ("images", "Masks"):
        write_image(tmp_path / folder / f"{folder}.png")
    with pytest.raises(UsageError, match="those of kinds of files, Masks and images, not of class"):
        detect_format(tmp_path)


def test_tags_stay_whole(tmp_path: Path) -> None:
    for name in LABELS:
        write_image(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(';), :|, |_|, "AC, DC"\nsea;sun')
    classes = open_splits(DataConfig(root=str(tmp_path))).train.classes
    assert classes == tuple(sorted([";)", ":|", "|_|", "AC, DC", "sea", "sun"]))


def test_the_suffix_of_a_sidecar_may_be_in_capitals(tmp_path: Path) -> None:
    for number, name in enumerate(LABELS):
        write_image(tmp_path / name)
        suffix = (".txt", ".TXT")[number % 2]
        (tmp_path / name).with_suffix(suffix).write_text("sea")
    splits = open_splits(DataConfig(root=str(tmp_path)))
    assert sum(map(len, splits)) == len(LABELS)
    assert "left_out" not in str(splits.train.notes)


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
