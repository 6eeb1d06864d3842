"""`mltr results`: which run counts for which published row, and which doesn't."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mltr.cli import main
from mltr.config.recipe import find_recipe, load_recipe, to_yaml
from mltr.planning.published import PEERS, ROWS

COUNTS = {"coco": (77_977, 4_104, 40_137), "voc2007": (4_510, 501, 4_952)}
PARTS = ("train", "val", "test")
WEIGHTS = "--model.init=weights/imagenet"


def make_run(
    path: Path, recipe: str, *options: str, test_map: float | None = 0.812,
    counts: tuple[int, int, int] | None = None,
) -> Path:  # fmt: skip
    path.mkdir(parents=True)
    config = load_recipe(find_recipe(recipe), options)
    (path / "config.yaml").write_text(to_yaml(config))
    if test_map is not None:
        sizes = counts or COUNTS[recipe]
        figures = {"map": test_map, "images_in_splits": dict(zip(PARTS, sizes, strict=True))}
        (path / "metrics.json").write_text(json.dumps(figures))
    return path


def results(capsys, *runs: Path) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert main(["results", *map(str, runs), "--json=-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert main(["results", *map(str, runs)]) == 0
    return figures, capsys.readouterr().out


def cells(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_of_a_row_give_mean_and_range(tmp_path: Path, capsys) -> None:
    runs = [
        make_run(tmp_path / f"s{seed}", "coco", WEIGHTS, f"--train.seed={seed}",
                 "--data.root=/elsewhere", "--data.workers=3", test_map=0.810 + seed / 500)
        for seed in range(3)
    ]  # fmt: skip
    figures, page = results(capsys, *runs, runs[0])  # the same folder twice counts once
    row = cells(page, "MS-COCO 2014 | mltr_s, 224 px")
    assert row[2:] == ["81.9", "81.2 (81.0 to 81.4, 3 runs)", ""]
    ran = [bool(row["ours"]) for row in figures["rows"]]
    assert ran == [True] + [False] * (len(ROWS) - 1)
    assert figures["deviating"] == []


def test_map_is_map_where_each_photo_has_one_label(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "run", "coco", "--data.format=class_folders", test_map=0.42)
    figures = json.loads((run / "metrics.json").read_text()) | {"top1": 0.91}
    (run / "metrics.json").write_text(json.dumps(figures))
    page = results(capsys, run)[1]
    assert "| 42.0 |" in page
    assert "91.0" not in page


def test_one_seed_is_said_to_be_one(tmp_path: Path, capsys) -> None:
    _, page = results(capsys, make_run(tmp_path / "run", "coco", WEIGHTS))
    assert cells(page, "MS-COCO 2014 | mltr_s, 224")[3] == "81.2 (one seed)"


def test_a_batch_in_parts_is_the_same_recipe(tmp_path: Path, capsys) -> None:
    parts = ["--train.batch_size=32", "--train.accumulation=4", "--train.grad_checkpointing=true"]
    figures, _ = results(capsys, make_run(tmp_path / "run", "coco", WEIGHTS, *parts))
    assert figures["rows"][0]["ours"]


@pytest.mark.parametrize(
    ("options", "counts", "difference"),
    [
        ((WEIGHTS, "--loss.gamma_neg=2"), None, "loss.gamma_neg 2.0 instead of 4.0"),
        ((WEIGHTS, "--model.image_size=448"), None, "448 px instead of 224"),
        ((WEIGHTS, "--train.batch_size=64"), None, "64 images per step instead of 128"),
        ((), None, "from scratch instead of ImageNet weights"),
        ((WEIGHTS,), (70, 10, 79), "80 + 79 images instead of 82,081 + 40,137"),
        ((WEIGHTS, "--model.head=csra"), None, "model.head 'csra' instead of 'average'"),
        (
            (WEIGHTS, "--data.unlabelled=keep"), (78_644, 4_139, 40_504),
            "data.unlabelled 'keep' instead of 'drop'",
        ),
    ],
)  # fmt: skip
def test_a_run_that_deviates_is_listed_and_does_not_count(
    tmp_path: Path, capsys, options: tuple[str, ...], counts: Any, difference: str
) -> None:
    run = make_run(tmp_path / "odd", "coco", *options, counts=counts)
    figures, page = results(capsys, run)
    assert not any(row["ours"] for row in figures["rows"])
    assert figures["deviating"][0]["deviations"] == [difference]
    assert cells(page, "odd |")[2:] == ["81.2", difference]
    assert cells(page, "MS-COCO 2014 | mltr_s, 224")[3] == ""


def test_voc_from_coco_is_another_row(tmp_path: Path, capsys) -> None:
    coco = tmp_path / "coco"
    coco.mkdir()
    (coco / "config.json").write_text(json.dumps({"extra": {"data": "coco"}}))
    large = ["--model.name=mltr_l", "--train.batch_size=56"]
    first = make_run(tmp_path / "voc", "voc2007", *large, WEIGHTS, test_map=0.95)
    second = make_run(
        tmp_path / "voc-coco", "voc2007", *large, f"--model.init={coco}", test_map=0.96
    )
    _, page = results(capsys, first, second)
    assert cells(page, "PASCAL VOC 2007 | mltr_l, 384 px")[3] == "95.0 (one seed)"
    assert cells(page, "PASCAL VOC 2007, from COCO |")[3] == "96.0 (one seed)"


def test_imagenet_is_recognised_by_its_images_and_judged_by_top1(tmp_path: Path, capsys) -> None:
    options = ["--model.name=cat_t", "--train.batch_size=256", "--train.accumulation=2"]
    full, few = (1_268_355, 12_812, 50_000), (900, 100, 200)
    run = make_run(tmp_path / "cat", "imagenet1k", *options, counts=full)
    own = make_run(tmp_path / "own", "imagenet1k", *options, counts=few)
    for folder, top1 in ((run, 0.799), (own, 0.5)):
        content = json.loads((folder / "metrics.json").read_text()) | {"top1": top1}
        (folder / "metrics.json").write_text(json.dumps(content))
    figures, page = results(capsys, run, own)
    assert cells(page, "ImageNet-1K | cat_t, 224 px")[2:] == ["80.3", "79.9 (one seed)", ""]
    assert [other["run"] for other in figures["others"]] == [str(own)]


def test_unfinished_and_other_runs(tmp_path: Path, capsys) -> None:
    begun = make_run(tmp_path / "begun", "coco", WEIGHTS, test_map=None)
    own = make_run(tmp_path / "own", "scenes_nano", test_map=0.969, counts=(9, 1, 2))
    nano = make_run(tmp_path / "nano", "coco", "--model.name=mltr_nano")
    _, page = results(capsys, begun, own, nano)
    assert cells(page, "MS-COCO 2014 | mltr_s, 224")[3:] == ["", "under way: begun"]
    assert cells(page, "own |") == ["own", "scenes", "mltr_nano", "96.9"]
    assert cells(page, "nano |") == ["nano", "coco", "mltr_nano", "81.2"]


def test_rows_that_were_not_run_say_why(capsys) -> None:
    _, page = results(capsys)
    for row in ROWS:
        assert row.command in page
    assert page.count("needs the ") == len(ROWS)
    assert "| ASL, TResNet-L, 448 px | 86.6 |" in page
    assert len(PEERS) > 10


def test_folders_that_are_no_runs_are_refused(tmp_path: Path, capsys) -> None:
    assert main(["results", str(tmp_path)]) == 1
    assert "is not a run folder: it has no config.yaml" in capsys.readouterr().err
    run = make_run(tmp_path / "run", "coco")
    (run / "metrics.json").write_text('{"loss": 1}')
    assert main(["results", str(run)]) == 1
    assert "no test map or top1" in capsys.readouterr().err
    (run / "metrics.json").write_text("{")
    assert main(["results", str(run)]) == 1
    assert "can't be read" in capsys.readouterr().err
    assert main(["results", "--gpus", "H2"]) == 2
    assert "did you mean 'H200'" in capsys.readouterr().err


def test_the_page_of_the_documents_has_every_row(tmp_path: Path) -> None:
    """The slow tests check the plans' figures; the published rows and commands are checked here."""
    out = tmp_path / "results.md"
    assert main(["results", "--out", str(out)]) == 0
    fresh = [line for line in out.read_text().splitlines() if line.startswith("mltr train")]
    kept = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    assert all(line in kept for line in fresh)
    for row in ROWS:
        assert f"| {row.data} | {row.network}, " in kept


def test_a_figure_that_is_none_stops_no_other(tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "one", "coco", WEIGHTS, "--train.tracker=none", test_map=0.812)
    empty = make_run(tmp_path / "two", "coco", WEIGHTS, test_map=math.nan)
    text = (empty / "metrics.json").read_text().replace("NaN", "null")
    (empty / "metrics.json").write_text(text)
    figures, page = results(capsys, run, empty)
    assert cells(page, "MS-COCO 2014 | mltr_s, 224 px")[2:] == ["81.9", "81.2 (one seed)", ""]
    assert figures["deviating"] == []
    assert cells(page, "two |") == ["two", "coco", "mltr_s", "none"]


def test_rows_are_planned_for_devices_of_the_table(capsys) -> None:
    assert main(["results", "--gpus", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "--gpus cpu: the rows are planned for devices of the table only" in error
    assert error.count("\n") == 1
