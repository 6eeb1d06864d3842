"""Tables as people have them, through `mltr data`: read right, or asked about."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from making import TINY_ON_PHOTOS, write_image

from mltr.cli import main
from mltr.data import read_csv, read_parquet

COUNT = 12
#: The labels of each photo: sea in 6, sky in 4, both in 2.
LABELS = [["sea"] * (i % 2) + ["sky"] * (i % 3 == 0) for i in range(COUNT)]
RIGHT = {"sea": 6, "sky": 4}

Cell = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(COUNT):
        write_image(folder / f"p{index}.jpg")
    return folder


@pytest.fixture
def photos(many_photos: Path, tmp_path: Path) -> Path:
    """A folder of the photos, and nothing else."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in many_photos.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder


def describe(folder: Path, *options: str) -> dict[str, Any]:
    """Return what `mltr data` says of a source, without a look at the photos."""
    out = folder.parent / "report.json"
    assert main(["data", str(folder), "--quick", "--json", str(out), *options]) == 0
    (report,) = json.loads(out.read_text("utf-8")).values()
    return report


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the line in which `mltr data` refuses a source."""
    capsys.readouterr()
    assert main(["data", str(folder), "--quick", *options]) in (1, 2)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--debug" not in message
    return message


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {name: sum(parts.values()) for name, parts in report["labels"].items()}


def unknown(report: dict[str, Any]) -> int:
    return sum(split["unknown_cells"] for split in report["splits"].values())


def answers(header: str, yes: str, no: str, mark: str = ",") -> str:
    """A column for each class."""
    cells = ((yes if name in own else no for name in RIGHT) for own in LABELS)
    rows = [mark.join([f"p{index}.jpg", *own]) for index, own in enumerate(cells)]
    return "\n".join([header, *rows, ""])


def named(cell: Cell, mark: str = ",", header: str = "path,labels") -> str:
    """One column of labels."""
    rows = [f"p{index}.jpg{mark}{cell(own)}" for index, own in enumerate(LABELS)]
    return "\n".join([header, *rows, ""])


HEADER = "path,sea,sky"
READ_RIGHT: dict[str, tuple[str | bytes, list[str]]] = {
    "1 and 0": (answers(HEADER, "1", "0"), []),
    "TRUE and FALSE": (answers(HEADER, "TRUE", "FALSE"), []),
    "yes and no": (answers(HEADER, "yes", "No"), []),
    "1.00 and 0.00": (answers(HEADER, "1.00", "0.00"), []),
    "WAHR und FALSCH": (answers("Foto;sea;sky", "WAHR", "FALSCH", ";"), []),
    "1,00 of a German Excel": (answers("Foto;sea;sky", "1,00", "0,00", ";"), []),
    "x and blank": (answers(HEADER, "x", ""), ["--data.missing=negative"]),
    "1 and blank": (answers(HEADER, "1", ""), ["--data.missing=negative"]),
    "1 and -1": (answers(HEADER, "1", "-1"), []),
    "semicolons": (answers("path;sea;sky", "1", "0", ";"), []),
    "told by sep=": ("sep=;\r\n" + answers("path;sea;sky", "1", "0", ";"), []),
    "tabs": (answers("path\tsea\tsky", "1", "0", "\t"), []),
    "UTF-8 with a mark": (answers(HEADER, "1", "0").encode("utf-8-sig"), []),
    "UTF-16 with a mark": (answers("path\tsea\tsky", "1", "0", "\t").encode("utf-16"), []),
    "UTF-16 without a mark": (answers(HEADER, "1", "0").encode("utf-16-le"), []),
    "CR LF": (answers(HEADER, "1", "0").replace("\n", "\r\n"), []),
    "CR": (answers(HEADER, "1", "0").replace("\n", "\r"), []),
    "trailing commas": (answers(HEADER, "1", "0").replace("\n", ",\n"), []),
    "commas after the header": (answers(HEADER + ",,", "1", "0").replace("jpg,", "jpg, "), []),
    "an empty line": (answers(HEADER, "1", "0") + "\n,,\n", []),
    "blanks around": (answers(" path , sea,sky ", " 1", "0 "), []),
    "no header": (named(lambda own: "|".join(own)).split("\n", 1)[1], []),
    "bars": (named(lambda own: "|".join(own)), []),
    "hashes": (named(lambda own: "#".join(own)), []),
    "hash tags": (named(lambda own: " ".join(f"#{name}" for name in own)), []),
    "spaces": (named(lambda own: " ".join(own)), []),
    "commas": (named(lambda own: f'"{", ".join(own)}"'), []),
    "semicolons in a cell": (named(lambda own: "; ".join(own)), []),
    "line breaks in a cell": (named(lambda own: '"' + "\n".join(own) + '"'), []),
    "quotes in a cell": (
        named(lambda own: '"' + "; ".join(f'""{name}""' for name in own) + '"'),
        [],
    ),
    "JSON": (named(lambda own: json.dumps(own).replace('"', '""').join('""')), []),
    "lists of Python": (named(lambda own: f'"{own}"'), []),
    "tuples of Python": (named(lambda own: f'"{tuple(own)}"'), []),
    "lists without quotes": (named(lambda own: f'"[{", ".join(own)}]"'), []),
    "arrays of PostgreSQL": (named(lambda own: '"{' + ",".join(own) + '}"'), []),
    "tuples in a list": (named(lambda own: f'"{[own]}"'), []),
    "choices": (named(lambda own: json.dumps({"choices": own}).replace('"', '""').join('""')), []),
    "a dict of answers": (
        named(lambda own: json.dumps({n: n in own for n in RIGHT}).replace('"', '""').join('""')),
        [],
    ),
    "a separator of one's own": (named(lambda own: " and ".join(own)), ["--data.separator= and "]),
    "a comment beside": (
        answers(HEADER, "1", "0")
        .replace("\n", ",a nice one\n")
        .replace("sky,a nice one", "sky,comment"),
        [],
    ),
    "a width beside": (
        answers(HEADER, "1", "0").replace("\n", ",640\n").replace("sky,640", "sky,width"),
        [],
    ),
}


@pytest.mark.parametrize("name", READ_RIGHT)
def test_tables_are_read_right(name: str, photos: Path) -> None:
    content, options = READ_RIGHT[name]
    table = photos / "labels.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    report = describe(photos, *options)
    assert counts(report) == RIGHT
    assert unknown(report) == 0
    assert report["classes_without_negatives"] == []
    columns = report["understood"]["columns"]
    assert len([column for column, use in columns.items() if use == "photos"]) == 1


ROWS = [(f"p{index}.jpg", own) for index, own in enumerate(LABELS)]


def write_rows(folder: Path, header: str, rows: list[str], name: str = "labels.csv") -> None:
    (folder / name).write_text("\n".join([header, *rows, ""]), encoding="utf-8")


def test_one_row_a_label(photos: Path) -> None:
    rows = [f"{name},{label},640" for name, own in ROWS for label in own or [""]]
    write_rows(photos, "path,label,width", rows)
    report = describe(photos)
    assert counts(report) == RIGHT
    assert report["understood"]["passed_over"] == ["width"]
    assert report["understood"]["counts"] == {"rows joined to photos": 2}
    assert report["understood"]["meanings"]["empty"] == "no label"


def test_a_row_for_each_box(photos: Path) -> None:
    rows = [f"{name},640,480,{label},0,1,20,30" for name, own in ROWS for label in own]
    write_rows(photos, "filename,width,height,class,xmin,ymin,xmax,ymax", rows)
    report = describe(photos)
    assert counts(report) == RIGHT
    assert report["understood"]["columns"] == {"filename": "photos", "class": "labels"}


def test_row_numbers_and_paths_anywhere(photos: Path) -> None:
    rows = [f"{i},{int('sea' in own)},{int('sky' in own)},{n}" for i, (n, own) in enumerate(ROWS)]
    write_rows(photos, ",sea,sky,file_name", rows)
    report = describe(photos)
    assert counts(report) == RIGHT
    assert report["understood"]["columns"]["file_name"] == "photos"
    assert report["understood"]["passed_over"] == [""]


def test_ids_without_suffix(photos: Path) -> None:
    rows = [f"{name.removesuffix('.jpg')},{' '.join(own)}" for name, own in ROWS]
    write_rows(photos, "image_name,tags", rows)
    assert counts(describe(photos)) == RIGHT


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ""])
def test_names_in_other_capitals_as_windows_finds_them(suffix: str, photos: Path) -> None:
    for name, _ in ROWS:
        (photos / name).rename(photos / f"{name.removesuffix('.jpg').upper()}{suffix or '.JPG'}")
    rows = [f"{n.removesuffix('.jpg')}{suffix.upper()},{' '.join(own)}" for n, own in ROWS]
    write_rows(photos, "image_name,tags", rows)
    assert counts(describe(photos)) == RIGHT


def test_an_object_a_line(photos: Path) -> None:
    path = photos / "labels.jsonl"
    lines = [json.dumps({"image": name, "labels": own}) for name, own in ROWS]
    path.write_text("\n".join(lines))
    assert main(["data", str(path), "--quick", "--json", str(photos.parent / "r.json")]) == 0
    (report,) = json.loads((photos.parent / "r.json").read_text()).values()
    assert counts(report) == RIGHT


def test_a_name_that_fits_two_files_but_for_capitals_is_missing(photos: Path) -> None:
    write_image(photos / "P1.JPG")
    write_image(photos / "P1.jpg")
    rows = [f"{name.replace('p1.jpg', 'p1.Jpg')},{' '.join(own)}" for name, own in ROWS]
    (photos / "p1.jpg").unlink()
    write_rows(photos, "image_name,tags", rows)
    report = describe(photos)
    assert sum(split["images"] for split in report["splits"].values()) == COUNT - 1


@pytest.mark.parametrize("mark", ["/", " + ", "&"])
def test_labels_between_unusual_marks_are_asked_about(mark: str, photos: Path, capsys) -> None:
    write_rows(photos, "path,tags", [f"{name},{mark.join(own)}" for name, own in ROWS])
    said = refusal(photos, capsys)
    assert f"'sea{mark}sky' one label, or several? Set data.separator to none or to" in said
    assert counts(describe(photos, "--data.separator", mark.strip())) == RIGHT
    whole = {"sea sky": f"AC{mark}DC"}
    rows = [f"{name},{whole.get(' '.join(own)) or ''.join(own)}" for name, own in ROWS]
    write_rows(photos, "path,tags", rows)
    separator = ("--data.separator", "none") if " " in mark else ()  # as of any label with spaces
    assert counts(describe(photos, *separator)) == {f"AC{mark}DC": 2, "sea": 4, "sky": 2}


@pytest.mark.parametrize(("yes", "no"), [("+", "✗"), ("sí", "no"), ("si", "no"), ("✓", "✘")])
def test_answers_in_other_words_and_signs(yes: str, no: str, photos: Path) -> None:
    rows = [f"{n},{yes if 'sea' in own else no},{yes if 'sky' in own else no}" for n, own in ROWS]
    write_rows(photos, "path,sea,sky", rows)
    assert counts(describe(photos)) == RIGHT


def test_a_dash_is_no_answer(photos: Path) -> None:
    dash = "\u2013"
    rows = [
        f"{n},{'x' if 'sea' in own else '-'},{'x' if 'sky' in own else dash}" for n, own in ROWS
    ]
    write_rows(photos, "path,sea,sky", rows)
    report = describe(photos, "--missing", "negative")
    assert counts(report) == RIGHT
    assert report["understood"]["meanings"] == {"x": "present", "-": "absent", dash: "absent"}


def test_answers_that_nobody_knows_are_no_labels(photos: Path, capsys) -> None:
    rows = [f"{n},{','.join('on' if x in own else 'off' for x in ('sea', 'sky', 'a'))}"
            for n, own in ROWS]  # fmt: skip
    write_rows(photos, "path,sea,sky,a", rows)
    said = refusal(photos, capsys)
    assert "what do 'off' and 'on' mean in the columns sea, sky, a? Write 1 where" in said


def test_back_slashes_and_trailing_blanks(photos: Path) -> None:
    parts = ("train", "train", "val", "test")
    rows = [f".\\{n} ,{';'.join(own)},{parts[i % 4]}" for i, (n, own) in enumerate(ROWS)]
    write_rows(photos, "path,tags,split", rows)
    report = describe(photos)
    assert counts(report) == RIGHT
    assert [split["images"] for split in report["splits"].values()] == [6, 3, 3]


@pytest.mark.parametrize("start", ["/content/drive/photos/", "C:\\Users\\me\\", "photos/"])
def test_paths_of_another_machine(start: str, photos: Path, capsys) -> None:
    write_rows(photos, "path,tags", [f"{start}{name},{'|'.join(own)}" for name, own in ROWS])
    report = describe(photos)
    assert counts(report) == RIGHT
    assert "paths without their first" in " ".join(report["understood"]["details"])
    write_rows(photos, "path,tags", ["/a/p0.jpg,cat", "/b/p0.jpg,cat"])
    assert "several paths would mean" in refusal(photos, capsys)


def test_columns_that_divide(photos: Path) -> None:
    rows = [f"{n},{' '.join(own)},{i % 4 == 3}" for i, (n, own) in enumerate(ROWS)]
    write_rows(photos, "fname,labels,is_valid", rows)  # as fast.ai has them
    report = describe(photos, "--data.test_fraction=0.3")
    assert counts(report) == RIGHT
    assert report["splits"]["val"]["images"] == 3
    rows = [
        f"{n},{' '.join(own)},{('Training', 'TEST')[i % 3 == 0]}" for i, (n, own) in enumerate(ROWS)
    ]
    write_rows(photos, "path,labels,subset", rows)
    assert describe(photos)["splits"]["test"]["images"] == 4


def test_numbers_of_classes(photos: Path, capsys) -> None:
    (photos / "names.txt").write_text("sea\nsky\nsand\n")
    numbers = {"sea": 0, "sky": 1}
    rows = [
        f"{name},{numbers[label]}" for name, own in ROWS for label in [*own, *["sea"] * (not own)]
    ]
    write_rows(photos, "path,class_id", [row.replace(",1", ",2") for row in rows])
    assert counts(describe(photos)) == {"0": 10, "2": 4}
    report = describe(photos, "--data.classes=names.txt")
    assert counts(report) == {"sea": 10, "sky": 0, "sand": 4}
    assert "numbers of data.classes, which count from 0" in report["understood"]["details"]


def test_numbers_that_may_count_from_0_or_1_are_asked_about(photos: Path, capsys) -> None:
    (photos / "names.txt").write_text("fog\nsea\nsky\nsand\n")
    rows = [f"{name},{1 + ('sky' in own)}" for name, own in ROWS]
    write_rows(photos, "path,class_id", rows)
    named = "--data.classes=names.txt"
    message = refusal(photos, capsys, named)
    assert "numbers of data.classes, from 1 to 2: is 'fog' 0 or 1? Set data.count_from" in message
    skies = sum("sky" in own for _, own in ROWS)
    others = len(ROWS) - skies
    from_0 = counts(describe(photos, named, "--data.count_from=0"))
    assert from_0 == {"fog": 0, "sea": others, "sky": skies, "sand": 0}
    from_1 = counts(describe(photos, named, "--data.count_from=1"))
    assert from_1 == {"fog": others, "sea": skies, "sky": 0, "sand": 0}


@pytest.mark.parametrize("cell", ["2", "3", "-5", "7", "-128"])
def test_another_number_far_below_is_no_answer(cell: str, photos: Path, capsys) -> None:
    rows = [f"{name},{int('sea' in own)},{int('sky' in own)}" for name, own in ROWS] * 100
    write_rows(photos, "path,sea,sky", [*rows, f"{ROWS[0][0]},{cell},0"])
    message = refusal(photos, capsys)
    assert f"row {len(rows) + 2}, column 'sea': '{cell}' is not 1, 0, -1 or empty" in message


def test_which_table(photos: Path, capsys) -> None:
    write_rows(photos, "path,tags", [f"{name},{'|'.join(own)}" for name, own in ROWS], "LABELS.CSV")
    write_rows(photos, "model,accuracy", ["resnet,0.7"], "results.csv")
    assert counts(describe(photos)) == RIGHT
    (photos / "LABELS.CSV").rename(photos / "tags.tsv")
    message = refusal(photos, capsys)
    assert "set data.labels to the table with the labels; found: results.csv, tags.tsv" in message
    assert counts(describe(photos, "--data.labels=tags.tsv")) == RIGHT
    assert counts(describe(photos / "tags.tsv")) == RIGHT
    (photos / "labels.xlsx").write_bytes(b"PK")
    assert "labels.xlsx: save it as CSV" in refusal(photos / "labels.xlsx", capsys)
    for name in ("results.csv", "tags.tsv"):
        (photos / name).unlink()
    assert "labels.xlsx: save it as CSV" in refusal(photos, capsys)


def test_a_photo_in_the_tables_of_two_splits(photos: Path, capsys) -> None:
    rows = [f"{name},{'|'.join(own)}" for name, own in ROWS]
    write_rows(photos, "path,tags", rows[:9], "train.csv")
    write_rows(photos, "path,tags", rows[9:], "test.csv")
    assert counts(describe(photos)) == RIGHT
    write_rows(photos, "path,tags", rows[8:], "test.csv")
    assert "p8.jpg: this photo is listed twice, for " in refusal(photos, capsys)


def test_cp1252_of_a_german_excel(photos: Path) -> None:
    text = answers("Dateiname;Küste;Grünfläche", "1", "0", ";")
    (photos / "labels.csv").write_bytes(text.encode("cp1252"))
    report = describe(photos)
    assert counts(report) == {"Küste": 6, "Grünfläche": 4}
    assert report["understood"]["details"] == ["in cp1252", "columns separated by semicolons"]


@pytest.mark.parametrize(
    ("label", "encoding"),
    [("собака", "cp1251"), ("海滩", "gb18030"), ("źródło", "cp1250"), ("café", "mac_roman")],
)
def test_other_encodings_are_refused(label: str, encoding: str, photos: Path, capsys) -> None:
    (photos / "labels.csv").write_bytes(
        answers(f"path;{label};sky", "1", "0", ";").encode(encoding)
    )
    assert "not in UTF-8, UTF-16 or cp1252; save it as `CSV UTF-8`" in refusal(photos, capsys)


def test_names_in_two_unicode_forms_are_one(photos: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    rows = [f"{name},{forms[i // 2 % 2] if i % 2 else ''}" for i, (name, _) in enumerate(ROWS)]
    write_rows(photos, "path,tags", rows)
    assert counts(describe(photos)) == {"café": 6}


def test_names_that_differ_in_capitals(photos: Path, capsys) -> None:
    rows = [
        f"{name},{('', 'Sea', '', 'sea', '', 'sea')[i % 6]}" for i, (name, _) in enumerate(ROWS)
    ]
    write_rows(photos, "path,tags", rows)
    assert "'Sea' and 'sea'; set data.merge_case true" in refusal(photos, capsys)
    assert counts(describe(photos, "--data.merge_case=true")) == {"sea": 6}
    assert counts(describe(photos, "--data.merge_case=false")) == {"Sea": 2, "sea": 4}


def test_what_0_and_minus_1_mean(photos: Path, capsys) -> None:
    rows = [f"{name},{(1, 0, -1)[i % 3]}" for i, (name, _) in enumerate(ROWS)]
    write_rows(photos, "path,car", rows)
    message = refusal(photos, capsys)
    assert "set data.absent 0" in message
    assert "data.absent -1" in message
    report = describe(photos, "--data.absent=-1")
    assert (counts(report), unknown(report)) == ({"car": 4}, 4)
    assert report["understood"]["meanings"] == {"1": "present", "-1": "absent", "0": "unknown"}
    meanings = describe(photos, "--data.absent", "0")["understood"]["meanings"]
    assert meanings == {"1": "present", "0": "absent", "-1": "unknown"}


def test_blanks_are_unknown_and_asked_about(photos: Path, capsys) -> None:
    (photos / "labels.csv").write_text(answers(HEADER, "1", ""))
    report = describe(photos)
    assert report["classes_without_negatives"] == ["sea", "sky"]
    assert report["understood"]["meanings"] == {"1": "present", "empty": "unknown"}
    assert "--data.missing negative" in capsys.readouterr().out
    assert main(["train", "scratch", str(photos), "--out", str(photos.parent / "run")]) == 1
    assert "if an empty cell means no, set --data.missing negative" in capsys.readouterr().err


def test_na_is_unknown(photos: Path) -> None:
    rows = [
        f"{name},{('1', '0', 'NA')[i % 3]},{('nan', '1', '0')[i % 3]}"
        for i, (name, _) in enumerate(ROWS)
    ]
    write_rows(photos, HEADER, rows)
    report = describe(photos)
    assert (counts(report), unknown(report)) == ({"sea": 4, "sky": 4}, 8)


REFUSED = {
    "one label or two": (
        "path,tags\np0.jpg,red car\np1.jpg,car\n",
        "data.separator to none or to space",
    ),
    "two separators": ('path,tags\np0.jpg,"a,b"\np1.jpg,a|c\n', "data.separator to comma or bar"),
    "two columns of labels": (
        "path,who,what\np0.jpg,al,cat\np1.jpg,bo,dog\n",
        "data.label_column to one of who, what",
    ),
    "both kinds": (
        "path,tags,good\np0.jpg,cat,1\np1.jpg,dog,0\n",
        "labels by name in tags, and a column a class in good",
    ),
    "a smile": ("path,tags\np0.jpg,sea|:|\np1.jpg,sea|sky\n", "is ':' a label.*data.separator"),
    "a number": (
        "path,cat,dog\np0.jpg,1,1\np1.jpg,0,2\n",
        "row 3, column 'dog': '2' is not 1, 0, -1 or empty",
    ),
    "a typing error": (
        "path,cat,dog\np0.jpg,1,1\np1.jpg,0,l\np2.jpg,0,0\n",
        "row 3, column 'dog': 'l' is not",
    ),
    "an array of numpy": (
        "path,tags\np0.jpg,\"['a' 'b']\"\n",
        "row 2, column 'tags': .*no comma between two texts",
    ),
    "half a list": (
        "path,tags\np0.jpg,\"['a', b]\"\n",
        "row 2, column 'tags': .* is not a list of labels",
    ),
    "multi-hot": (
        'path,tags\np0.jpg,"[1, 0]"\np1.jpg,"[0, 1]"\n',
        "lists of 2 answers.*Set data.classes",
    ),
    "short row": ("path,cat,dog\np0.jpg,1\n", "row 2: 2 columns, but the header has 3"),
    "long row": ("path,tags\np0.jpg,cat,dog\n", "row 2: 3 columns, but the header has 2"),
    "train and test": (
        "path,cat,split\np0.jpg,1,train\np1.jpg,0,val\np0.jpg,1,test\n",
        "row 4: 'p0.jpg' is also in row 2, as train there and test here",
    ),
    "contradiction": (
        "path,cat\np0.jpg,1\np0.jpg,0\n",
        "row 3: 'p0.jpg' is also in row 2, with other labels",
    ),
    "no labels": ("path,width\np0.jpg,640\n", "none of these columns seems to hold labels: width"),
    "no such column": ("path,cat\np0.jpg,1\n", "no column 'tag'"),
    "nothing": ("", "needs a header"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused(name: str, photos: Path, capsys) -> None:
    text, words = REFUSED[name]
    (photos / "labels.csv").write_text(text)
    options = ["--data.label_column=tag"] if name == "no such column" else []
    assert re.search(words, refusal(photos, capsys, *options))


def test_choices_are_options(photos: Path, capsys) -> None:
    rows = [f"{name},al,{'+'.join(own)},{i % 2}" for i, (name, own) in enumerate(ROWS)]
    write_rows(photos, "photo,who,what,good", rows)
    choice = ["--data.label_column=what", "--data.separator=+", "--data.path_column=photo"]
    report = describe(photos, *choice)
    assert counts(report) == RIGHT
    assert report["understood"]["passed_over"] == ["who", "good"]
    assert main(["shard", str(photos), "--out", str(photos.parent / "shards"), *choice]) == 0
    rows = [f"{name},{own[0] if own else ''},{own[-1] if own else ''}" for name, own in ROWS]
    write_rows(photos, "photo,label1,label2", rows)
    assert counts(describe(photos, "--data.label_column=label1,label2")) == RIGHT
    (photos / "labels.csv").write_text(answers(HEADER, "1", "0"))
    assert counts(describe(photos, "--data.label_column=sea")) == {"sea": 6}
    (photos / "labels.csv").write_text(answers(HEADER, "1", "0").replace("p0.jpg,0", "p0.jpg,2"))
    message = refusal(photos, capsys, "--data.label_column=sea,sky")
    assert "row 2, column 'sea': '2' is not 1, 0, -1" in message


def test_columns_beside_the_labels_are_no_classes(photos: Path) -> None:
    rows = [f"{n},{'|'.join(own)},{i % 2},1.0" for i, (n, own) in enumerate(ROWS)]
    write_rows(photos, "path,labels,fold,confidence", rows)
    assert counts(describe(photos)) == RIGHT
    rows = [f"p{i}.jpg,{a},{b},{i % 2}" for i, (a, b) in enumerate(ONE_HOT)]
    write_rows(photos, "path,sea,sky,fold", rows)
    assert counts(describe(photos)) == RIGHT


def test_labels_that_open_images_has_rejected_are_absent(photos: Path) -> None:
    rows = [f"{name.removesuffix('.jpg')},verification,{label},{int(label in own)}"
            for name, own in ROWS for label in RIGHT]  # fmt: skip
    write_rows(photos, "ImageID,Source,LabelName,Confidence", rows)
    report = describe(photos)
    assert (counts(report), unknown(report)) == (RIGHT, 0)
    assert report["understood"]["meanings"]["Confidence 0"] == "absent"


def test_a_split_by_another_word_is_asked_about(photos: Path, capsys) -> None:
    rows = [f"{n},{'|'.join(own)},{'train' if i else 'holdout'}" for i, (n, own) in enumerate(ROWS)]
    write_rows(photos, "path,labels,subset", rows)
    assert "row 2: 'p0.jpg' has split 'holdout'" in refusal(photos, capsys)


def test_a_photo_in_place_of_the_header_is_asked_about(photos: Path, capsys) -> None:
    write_rows(photos, "p0,sea", [f"p{i},sea|sky" for i in range(1, COUNT)])
    assert "there is a photo called 'p0', as in its first row" in refusal(photos, capsys)


def test_one_photo_under_two_spellings_is_one(photos: Path, capsys) -> None:
    write_rows(
        photos, "path,sea", ["p0.jpg,1", "./p0.jpg,0", *(f"p{i}.jpg,0" for i in range(1, 9))]
    )
    assert "row 3: 'p0.jpg' is also in row 2, with other labels" in refusal(photos, capsys)


def test_options_without_effect_are_told(photos: Path, capsys) -> None:
    write_rows(photos, "path,labels", [f"{name},{'|'.join(own)}" for name, own in ROWS])
    assert "data.ignore can't be used with table" in refusal(photos, capsys, "--data.ignore=a*")
    words = "data.labels typo.csv: no such file"
    assert words in refusal(photos, capsys, "--data.labels=typo.csv")
    (photos / "labels.csv").rename(photos.parent / "labels.csv")
    for name, own in ROWS:
        (photos / name).with_suffix(".txt").write_text(" ".join(own))
    words = "data.label_column and data.separator can't be used with sidecars"
    options = ["--data.separator=space", "--data.label_column=x"]
    assert words in refusal(photos, capsys, *options)


# -- Parquet -----------------------------------------------------------------------------------


PARQUET: dict[str, list[Any]] = {
    "lists": LABELS,
    "nested lists": [[own] for own in LABELS],
    "bytes": [", ".join(own).encode() if len(own) != 1 else own[0].encode() for own in LABELS],
    "dicts": [{"sea": int("sea" in own), "sky": int("sky" in own)} for own in LABELS],
    "choices": [{"choices": own} for own in LABELS],
    "texts": ["|".join(own) for own in LABELS],
}


@pytest.mark.parametrize("name", PARQUET)
def test_cells_of_parquet(name: str, photos: Path) -> None:
    paths = [path for path, _ in ROWS]
    pq.write_table(pa.table({"path": paths, "labels": PARQUET[name]}), photos / "labels.parquet")
    assert counts(describe(photos)) == RIGHT


def test_multi_hot_lists_need_names(photos: Path, capsys) -> None:
    cells = [[int("sea" in own), int("sky" in own)] for own in LABELS]
    table = pa.table({"path": [path for path, _ in ROWS], "labels": cells})
    pq.write_table(table, photos / "labels.parquet")
    assert "Set data.classes to a file that lists 2 names" in refusal(photos, capsys)
    (photos / "names.txt").write_text("sea\nsky\n")
    assert counts(describe(photos, "--data.classes=names.txt")) == RIGHT


@pytest.mark.parametrize("cell", ["{} {} {}", '"{},{},{}"', "[{} {} {}]", "{}; {}; {}"])
def test_answers_in_a_text_are_no_class_numbers(cell: str, photos: Path, capsys) -> None:
    (photos / "labels.csv").write_text(
        named(lambda own: cell.format("sea" in own, "sky" in own, 0) if own else "")
        .replace("True", "1")
        .replace("False", "0")
    )
    assert "lists of 3 answers, 1 or 0, but of which classes?" in refusal(photos, capsys)
    (photos / "names.txt").write_text("sea\nsky\nsun\n")
    report = describe(photos, "--data.classes=names.txt")
    assert (counts(report), unknown(report)) == (RIGHT | {"sun": 0}, 0)


def test_null_is_unknown(photos: Path) -> None:
    cells = [None if index == 5 else own for index, own in enumerate(LABELS)]
    table = pa.table({"path": [path for path, _ in ROWS], "labels": cells})
    pq.write_table(table, photos / "labels.parquet")
    report = describe(photos)
    assert (counts(report), unknown(report)) == ({"sea": 5, "sky": 4}, 2)
    assert report["understood"]["meanings"]["null"] == "unknown"
    assert read_parquet(photos / "labels.parquet").targets[5].tolist() == [-1, -1]


def test_columns_of_parquet_with_one_name(photos: Path, capsys) -> None:
    paths = pa.array([path for path, _ in ROWS])
    table = pa.Table.from_arrays(
        [paths, pa.array([0, 1] * 6), pa.array([1, 0] * 6)], ["p", "a", "a"]
    )
    pq.write_table(table, photos / "labels.parquet")
    assert "two columns in the header have the same name" in refusal(photos, capsys)


def test_rows_hold_their_labels(photos: Path) -> None:
    """Counts could be right by chance."""
    (photos / "labels.csv").write_text(named(lambda own: "|".join(own)))
    split = read_csv(photos / "labels.csv")
    for record, own in zip(split, LABELS, strict=True):
        assert [
            name for name, label in zip(split.classes, record.labels, strict=True) if label
        ] == own


# -- other sources -----------------------------------------------------------------------------


def test_names_of_folders_in_two_spellings(many_photos: Path, tmp_path: Path, capsys) -> None:
    names = ["Sea", "sea", unicodedata.normalize("NFD", "café"), "café"]
    for index, path in enumerate(sorted(many_photos.iterdir())):
        folder = tmp_path / "photos" / names[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).hardlink_to(path)
    source = tmp_path / "photos"
    assert "'Sea' and 'sea'; set data.merge_case true" in refusal(source, capsys)
    assert counts(describe(source, "--data.merge_case=true")) == {"Sea": 6, "café": 6}
    report = describe(source, "--data.merge_case=false")
    assert counts(report) == {"Sea": 3, "café": 6, "sea": 3}


# -- the page ----------------------------------------------------------------------------------

SPACED = {"sea": "open sea", "sky": "sky"}
ONE_HOT = [(int("sea" in own), int("sky" in own)) for own in LABELS]
#: The tables of the rows of docs/data.md, in their order.
PAGE: list[bytes | str | pa.Table] = [
    answers(HEADER, "yes", "no"),
    answers(HEADER, "x", ""),
    answers(HEADER, "1", "-1"),
    answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
    answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
    named(lambda own: "|".join(own)),
    named(lambda own: " ".join(own)),
    named(lambda own: SPACED[own[0]] if own else ""),
    named(lambda own: f'"{own}"'),
    named(lambda own: f'"{[int(name in own) for name in RIGHT]}"'),
    named(lambda own: str(len(own) % 2), header="path,label_id"),
    named(lambda own: "1", header="path,label_id"),
    "\n".join(["path,label", *(f"{name},{label}" for name, own in ROWS for label in own or [""])]),
    "\n".join(["photo,label1,label2", *(f"{n},{','.join([*own, '', ''][:2])}" for n, own in ROWS)]),
    "\n".join(["tags,file", *(f"{'|'.join(own)},{name}" for name, own in ROWS)]),
    answers(HEADER, "1", "0").replace("path", "image_id").replace(".jpg", ""),
    "\n".join(
        [
            ",path,sea,sky,comment,width",
            *(f"{i},p{i}.jpg,{a},{b},nice,64{i}" for i, (a, b) in enumerate(ONE_HOT)),
        ]
    ),
    "\n".join(
        [
            "path,sea,sky,split",
            *(
                f"p{i}.jpg,{a},{b},{('train', 'val', 'test')[i % 3]}"
                for i, (a, b) in enumerate(ONE_HOT)
            ),
        ]
    ),
    answers("Foto;Küste;sky", "1", "0", ";").encode("cp1252"),
    answers(HEADER.replace(",", "\t"), "1", "0", "\t").encode("utf-16"),
    named(lambda own: ("sea", "Sea")[len(own) % 2] if own else ""),
    pa.table({"path": [name for name, _ in ROWS], "labels": LABELS}),
]


def rows_of_the_page() -> list[tuple[str, str]]:
    """Return what to type and what will be seen, by the table of docs/data.md on tables."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.partition("### A table")[2].partition("###")[0]
    return re.findall(r"^\|.*\| `(mltr [^`]*)` \| `([^`]*)` \|$", section, re.MULTILINE)


def test_every_row_of_the_page_has_its_table() -> None:
    assert len(rows_of_the_page()) == len(PAGE) > 20


@pytest.mark.parametrize("index", range(len(PAGE)))
def test_rows_of_the_page(index: int, photos: Path, capsys) -> None:
    command, words = rows_of_the_page()[index]
    content = PAGE[index]
    if isinstance(content, pa.Table):
        pq.write_table(content, photos / "labels.parquet")
    else:
        content = content.encode() if isinstance(content, str) else content
        (photos / "labels.csv").write_bytes(content)
    (photos / "names.txt").write_text("sea\nsky\n")
    arguments = shlex.split(command)[1:]
    code = main([str(photos) if word == "PHOTOS" else word for word in arguments] + ["--quick"])
    output = capsys.readouterr()
    assert code == 2 * words.startswith("set ")
    assert words in output.err + output.out


# -- training ----------------------------------------------------------------------------------

TRAINED: dict[str, tuple[str | bytes, list[str], str]] = {
    "German Excel": (
        answers("Foto;sea;sky", "1", "0", ";").replace("\n", ";schön\n").encode("cp1252"),
        [],
        "in cp1252, columns separated by semicolons; photos from 'Foto'",
    ),
    "names": (
        named(lambda own: " ".join(own)),
        ["--data.separator=space"],
        "labels separated by spaces",
    ),
    "VOC": (
        answers(HEADER, "1", "-1").replace("p0.jpg,-1", "p0.jpg,0"),
        ["--data.absent=-1"],
        "-1 = absent, 0 = unknown",
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_an_epoch_of_training(name: str, photos: Path, caplog) -> None:
    content, options, words = TRAINED[name]
    (photos / "labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    run = photos.parent / "run"
    options = [*TINY_ON_PHOTOS, *options, "--data.test_fraction=0.3", "--data.val_fraction=0.3"]
    assert main(["train", "scratch", str(photos), "--out", str(run), *options]) == 0
    assert json.loads((run / "config.json").read_text())["classes"] == ["sea", "sky"]
    first, second = (
        record.getMessage() for record in caplog.records if "understood" in record.name
    )
    assert words in first + second


# -- what is large -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_table_is_read_within_seconds(tmp_path: Path) -> None:
    """100,000 rows of 1,000 classes, in a process of its own to see its memory."""

    rows, classes = 100_000, 1_000
    generator = np.random.default_rng(0)
    names = ",".join(f"class {index}" for index in range(classes))
    with (tmp_path / "labels.csv").open("wb") as file:
        file.write(f"path,{names}\n".encode())
        for start in range(0, rows, 1000):
            cells = np.full((1000, 2 * classes), ord(","), np.uint8)
            cells[:, ::2] = ord("0") + (generator.random((1000, classes)) < 0.01)
            file.writelines(
                b"%06d.jpg,%s\n" % (start + i, row[:-1].tobytes()) for i, row in enumerate(cells)
            )
    for index in range(rows):
        (tmp_path / f"{index:06d}.jpg").touch()
    program = (
        "import resource, sys, time\n"
        "from mltr.data import read_csv\n"
        "start = time.process_time()\n"
        "split = read_csv(sys.argv[1])\n"
        "print(len(split), len(split.classes), time.process_time() - start,\n"
        "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "labels.csv")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found_rows, found_classes, seconds, gigabytes = map(float, output.split())
    assert (found_rows, found_classes) == (rows, classes)
    assert seconds < 10  # 3 on a core of its own
    assert gigabytes < 1


def test_paths_on_the_command_line_are_found_from_the_current_folder(
    photos: Path, monkeypatch
) -> None:
    rows = [f"{name},{'|'.join(own)}" for name, own in ROWS]
    write_rows(photos, "path,tags", rows)
    tables = photos.parent / "tables"
    tables.mkdir()
    (photos / "labels.csv").rename(tables / "mine.csv")
    (tables / "names.txt").write_text("sky\nsea\n")
    monkeypatch.chdir(photos.parent)
    classes = ("--classes", "tables/names.txt")
    for source in (
        ("photos", "--labels", "tables/mine.csv"),
        ("tables/mine.csv", "--images", "photos"),
        ("tables/mine.csv", "--images", "../photos"),
    ):
        out = photos.parent / "report.json"
        assert main(["data", *source, *classes, "--quick", "--json", str(out)]) == 0
        (report,) = json.loads(out.read_text("utf-8")).values()
        assert counts(report) == RIGHT
        assert report["classes"] == ["sky", "sea"]
    run = photos.parent / "run"
    options = ["--data.images=photos", "--data.classes=tables/names.txt", *TINY_ON_PHOTOS]
    train = ["train", "scratch", "tables/mine.csv", "--out", str(run), *options]
    assert main(train) == 0
    monkeypatch.chdir("/")
    assert main(["evaluate", str(run)]) == 0
