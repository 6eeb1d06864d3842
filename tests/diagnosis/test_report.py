"""The report: complete, self-contained, and without errors in a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltr.cli import main
from mltr.evaluation.predictions import load_predictions, save_predictions

pytestmark = pytest.mark.pictures

SCENES = ["--data.scenes.train", "200", "--data.scenes.val", "40", "--data.scenes.test", "300"]
QUICK = ["--train.epochs", "1", "--train.batch_size", "50", "--data.workers", "0"]
QUICK += ["--data.scenes.side", "32", "--model.image_size", "32", "--data.cache", "false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "<b>run"
    assert main(["train", "scenes_nano", "--out", str(folder), *SCENES, *QUICK]) == 0
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    assert main(["report", str(run)]) == 0
    return run / "report.html"


def test_it_holds_all_sections_and_the_runs_own_figures(run: Path, page: Path) -> None:
    text = page.read_text()
    figures = json.loads((run / "metrics.json").read_text())
    assert f"<td>{100 * figures['map']:.2f}</td>" in text
    assert "mAP, non-interpolated" in text
    for heading in ("All figures", "Classes", "Curves", "The three problems", "Examples"):
        assert f">{heading}</h2>" in text
    for name in ("zero", "nine"):
        assert f"<td>{name}</td>" in text
    assert "Small objects" in text
    assert "model:\n  name: mltr_nano" in text
    assert text.count("<figure>") > 12


def test_nothing_is_fetched_and_names_are_escaped(page: Path) -> None:
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "@import" not in text
    assert "url(" not in text
    assert "<b>run" not in text
    assert "&lt;b&gt;run" in text
    assert page.stat().st_size < 10e6


def test_calibration_shows_beside_the_default(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert main(["calibrate", str(copy), "--min-positives", "1"]) == 0
    assert main(["report", str(copy), "--out", str(tmp_path / "page.html"), "--examples", "0"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "own thresholds, %" in text
    assert "Examples" not in text
    assert "Not calibrated" not in text


def test_an_audit_saved_by_a_spreadsheet_is_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy, page = tmp_path / "copy", tmp_path / "page.html"
    shutil.copytree(run, copy)
    issues = copy / "audit" / "issues.csv"
    issues.parent.mkdir()
    name = json.loads((copy / "splits.json").read_text())["test"][0]
    row = f"1;{name};test;größe;1;0;0;0.1;0.1;yes"
    text = f"rank;image;split;class;given;suggested;label;score;probability;likely\n{row}\n"

    def told(*options: str) -> str:
        caplog.clear()
        command = ["report", str(copy), "--out", str(page), "--examples", "0", *options]
        assert main(command) == 0
        return page.read_text("utf-8")

    issues.write_text(text, "cp1252")
    assert f"größe of {name} (test) is given as 1" in told()
    assert "audit" not in told("--data.scenes.test", "5")  # other images
    issues.write_text(text.replace(name, "photo.jpg"), "cp1252")
    assert "audit lists" not in told() and "about other images" in caplog.text
    issues.write_text("no such columns\n1\n")
    assert "audit lists" not in told() and "the audit is left out" in caplog.text
    issues.write_text(text, "cp1252")
    os.utime(issues, (1, 1))  # from before the run was trained again
    assert "audit lists" not in told() and "is from before this training" in caplog.text


def test_it_says_of_the_three_problems_what_diagnose_says(
    run: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["diagnose", str(run)]) == 0
    printed = capsys.readouterr().out.splitlines()
    text = html.unescape(page.read_text())
    sentences = [line.rstrip() for line in printed if line.rstrip().endswith(".")]
    assert len(sentences) >= 7
    assert [line for line in sentences if f">{line}</p>" not in text] == []
    for cell in ("one → seven", "two, five"):
        assert any(cell in line for line in printed)
        assert f"<td>{cell}</td>" in text


@pytest.mark.parametrize("case", ["one image", "a class without positives"])
def test_few_images_and_empty_classes_give_a_page(run: Path, tmp_path: Path, case: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    saved = load_predictions(copy / "predictions.npz")
    targets = saved.targets.copy()
    options: list[str] = []
    if case == "one image":
        options = ["--data.scenes.test", "1"]
    else:
        targets[:, 3] = 0
    changed = type(saved)(saved.probs, targets, saved.images, saved.classes)
    save_predictions(copy / "predictions.npz", changed)
    assert main(["report", str(copy), *options]) == 0
    text = (copy / "report.html").read_text()
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().replace("nano", "")
    if case != "one image":
        assert "Left out of every mean" in text


def test_a_run_without_known_labels_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    saved = load_predictions(copy / "predictions.npz")
    unknown = np.full_like(saved.targets, -1)
    save_predictions(
        copy / "predictions.npz", type(saved)(saved.probs, unknown, saved.images, saved.classes)
    )
    page = tmp_path / "page.html"
    assert main(["report", str(copy), "--out", str(page)]) == 1
    assert "unknown" in capsys.readouterr().err
    assert not page.exists()


@pytest.fixture
def browser_page(page: Path, browser: Any) -> Any:
    """Open the report in headless Chromium; `errors` collects the console's messages."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    fetched: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("request", lambda request: fetched.append(request.url))
    opened.goto(page.as_uri())
    return opened, errors, fetched


def test_it_renders_and_sorts_without_an_error(browser_page: Any) -> None:
    opened, errors, fetched = browser_page
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    opened.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    opened.wait_for_function(f"{broken} === 0")
    column = "table.sorts tbody td:nth-child({})"
    for heading, place in (("recall, %", 4), ("images", 6)):
        opened.get_by_role("button", name=heading).click()
        values = [
            float(cell.get_attribute("data-value"))
            for cell in opened.locator(column.format(place)).all()
        ]
        assert values == sorted(values, reverse=True)
        opened.get_by_role("button", name=heading).click()
        first = opened.locator(column.format(place)).first.get_attribute("data-value")
        assert float(first) == min(values)
    opened.get_by_role("button", name="class").click()
    names = opened.locator(column.format(1)).all_text_contents()
    assert names == sorted(names)
    for width in (1280, 390):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
