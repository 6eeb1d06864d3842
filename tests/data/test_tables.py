"""Tables as people have them, through `mltr data`: read right, or asked about."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from making import write_image
from tables import (
    COUNT,
    HEADER,
    ONE_HOT,
    RIGHT,
    ROWS,
    answers,
    counts,
    describe,
    named,
    refusal,
    unknown,
    write_rows,
)

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data import open_splits
from mltr.errors import MltrError

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
    "an empty line at the top": ("\r\n\n" + answers(HEADER, "1", "0"), []),
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
    "quotes and line breaks": (
        named(lambda own: '"' + ";\r\n".join(f'""{name}""' for name in own) + '"'),
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


def test_names_in_other_capitals_in_a_folder_beside(photos: Path) -> None:
    (photos / "images").mkdir()
    for name, _ in ROWS:
        (photos / name).rename(photos / "images" / name.upper())
    write_rows(photos, "image_name,tags", [f"{n},{' '.join(own)}" for n, own in ROWS])
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


def test_minus_one_means_the_same_in_the_tables_of_all_splits(photos: Path) -> None:
    rows = [f"p{n}.jpg,{(1, 0, -1)[n % 3]}" for n in range(6)]
    write_rows(photos, "path,sea", rows, "train.csv")
    write_rows(photos, "path,sea", [f"p{n}.jpg,{n % 2}" for n in range(6, 10)], "test.csv")
    splits = open_splits(DataConfig(root=str(photos), absent=-1))
    assert sorted(splits.test.targets[:, 0].tolist()) == [-1, -1, 1, 1]


def test_numbers_of_classes_in_a_table_that_has_few_of_them(photos: Path) -> None:
    write_rows(photos, "path,label", [f"p{n}.jpg,{n % 3}" for n in range(8)], "train.csv")
    write_rows(photos, "path,label", [f"p{n}.jpg,{n % 2}" for n in range(8, 12)], "test.csv")
    splits = open_splits(DataConfig(root=str(photos)))
    assert splits.train.classes == ("0", "1", "2")
    assert splits.test.targets.tolist() == [[1, 0, 0], [0, 1, 0]] * 2


def test_a_photo_in_two_tables_of_one_split(photos: Path) -> None:
    rows = [f"{name},{'|'.join(own) or 'none'}" for name, own in ROWS]
    write_rows(photos, "path,tags", rows[:6], "train_a.csv")
    write_rows(photos, "path,tags", rows[5:9], "train_b.csv")
    write_rows(photos, "path,tags", rows[9:], "test.csv")
    splits = open_splits(DataConfig(root=str(photos)))
    assert sum(len(split) for split in splits) == len(rows)
    # A photo may have some labels in one table and others in the other.
    answers = [f"p{n}.jpg,{n % 2},{1 - n % 2}" for n in range(9)]
    write_rows(photos, "path,sea,sky", answers, "train_a.csv")
    write_rows(photos, "path,sun,moon", answers[:6], "train_b.csv")
    write_rows(photos, "path,sea,sky", [f"p{n}.jpg,1,0" for n in range(9, 12)], "test.csv")
    splits = open_splits(DataConfig(root=str(photos)))
    both = {r.name: r.labels.tolist() for split in (splits.train, splits.val) for r in split}
    assert both["p5.jpg"] == [0, 1, 0, 1] and both["p8.jpg"] == [-1, 0, 1, -1]
    write_rows(photos, "path,tags", rows[:6], "train_a.csv")
    write_rows(photos, "path,tags", ["p5.jpg,other", *rows[6:9]], "train_b.csv")
    write_rows(photos, "path,tags", rows[9:], "test.csv")
    with pytest.raises(MltrError, match=r"p5.jpg is in two tables, with other labels"):
        open_splits(DataConfig(root=str(photos)))


def test_a_class_list_in_other_capitals_is_asked_about(photos: Path, capsys) -> None:
    write_rows(photos, "path,tags", [f"{n},{' '.join(own)}" for n, own in ROWS])
    (photos / "names.txt").write_text("Sea\nsky\n")
    options = ["--data.classes=names.txt"]
    assert "differ only in capitals: 'Sea' and 'sea'" in refusal(photos, capsys, *options)
    report = describe(photos, *options, "--data.merge_case=true")
    assert counts(report) == {"Sea": 6, "sky": 4}


def test_lines_that_are_no_objects_are_told(photos: Path, capsys) -> None:
    (photos / "metadata.jsonl").write_text('{"file_name": "p0.jpg", "labels": ["sea"]}\n[]\n')
    assert "not an object of JSON in each line" in refusal(photos, capsys)


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
    assert report["understood"]["details"] == [
        "in cp1252",
        "columns separated by semicolons",
        "in which it reads 'Küste', 'Grünfläche'",
    ]


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
    rows = [row.removesuffix(",1") + ",0.7" if row.endswith(",1") else row for row in rows]
    write_rows(photos, "ImageID,Source,LabelName,Confidence", rows)  # those that a machine gave
    assert counts(describe(photos)) == RIGHT


def test_a_blank_last_row_hides_no_split(photos: Path) -> None:
    rows = [
        f"{n},{'|'.join(own)},{'test' if i > 8 else 'train'}" for i, (n, own) in enumerate(ROWS)
    ]
    write_rows(photos, "path,labels,usage", [*rows, ",,"])
    report = describe(photos)
    assert report["understood"]["columns"]["usage"] == "split"
    assert report["splits"]["test"]["images"] == 3


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
