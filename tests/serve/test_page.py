"""The page of `mltr serve` in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving import colour_predictor, live_server, picture, save_tiny_bundle

from mltr.data.tables.cells import from_cells
from mltr.data.tables.tags import split_tags
from mltr.predict.predictor import Predictor, load
from mltr.serve.settings import Settings

pytest.importorskip("fastapi")
from mltr.serve.app import create_app

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    predictor = load(save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"), "cpu")
    with live_server(create_app(predictor, Settings(name="tiny", max_body_mb=1))) as server:
        yield f"http://127.0.0.1:{server.port}"


class Visit:
    """A page in the browser, with its console messages and its requests to other sites."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.said: list[str] = []
        self.elsewhere: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("request", self._note)
        self._own = (address, "blob:", "data:")
        self.page.goto(address)

    def _note(self, request: Any) -> None:
        if not request.url.startswith(self._own):
            self.elsewhere.append(request.url)

    def add(self, *files: tuple[str, bytes]) -> None:
        self.page.set_input_files(
            "#files",
            [{"name": n, "mimeType": "image/png", "buffer": content} for n, content in files],
        )

    def wait(self, selector: str, words: str) -> None:
        """Wait until the element contains the words; polls, as the page's policy forbids eval."""
        end = time.monotonic() + 20
        while words not in self.page.locator(selector).first.inner_text():
            assert time.monotonic() < end, self.page.locator(selector).first.inner_text()
            self.page.wait_for_timeout(50)

    def reached(self) -> list[str]:
        return self.page.locator(".reached .name").all_inner_texts()


def test_photos_are_tagged_shown_and_saved(browser: Any, served: str, tmp_path: Path) -> None:
    visit = Visit(browser, served)
    page = visit.page
    visit.wait("#about", "red, green, blue")
    visit.add(("one.png", picture("red")), ("two, b.png", picture("navy", (300, 900))))
    visit.wait("#status", "2 photos tagged")
    first = page.locator(".card").first
    probs = {
        tag.locator(".name").inner_text(): int(tag.locator(".prob").inner_text().split()[0])
        for tag in first.locator(".tag").all()
    }
    assert len(probs) == 3
    for tag in first.locator(".tag").all():
        share = tag.evaluate("t => t.querySelector('.fill').clientWidth / t.clientWidth")
        assert 100 * share == pytest.approx(probs[tag.locator(".name").inner_text()], abs=1.5)
    own = {"red": 40, "green": 45, "blue": 90}
    assert set(first.locator(".reached .name").all_inner_texts()) == {
        name for name, prob in probs.items() if prob >= own[name]
    }

    page.locator("#slider").fill("0")
    assert len(visit.reached()) == 6
    assert page.locator("[name=rule][value=one]").is_checked()
    page.locator("#slider").fill("100")
    assert visit.reached() == []
    assert "Nothing reaches" in first.locator(".message").inner_text()
    page.locator("[name=rule][value=own]").check()
    names = first.locator(".reached .name").all_inner_texts()
    assert names

    saved = {}
    for form in ("csv", "json", "txt"):
        with page.expect_download() as download:
            page.locator(f"[data-form={form}]").click()
        assert download.value.suggested_filename == f"tags.{form}"
        download.value.save_as(tmp_path / form)
        saved[form] = (tmp_path / form).read_text()
    rows = json.loads(saved["json"])
    assert [row["path"] for row in rows] == ["one.png", "two, b.png"]
    assert rows[0]["labels"] == names
    lines = saved["csv"].splitlines()
    assert lines[0] == "path,labels,probs"
    assert lines[1].startswith(f"one.png,{'; '.join(names)},")
    assert lines[2].startswith('"two, b.png",')
    assert saved["txt"].splitlines()[0] == f"one.png: {', '.join(names)}"
    page.locator("#clear").click()
    assert page.locator(".card").count() == 0
    assert page.locator("#tools").is_hidden()
    assert (visit.said, visit.elsewhere) == ([], [])


def test_tags_and_their_table_are_those_of_predict(browser: Any, tmp_path: Path) -> None:
    plain = colour_predictor()
    names = ("=warm", "green, dark", "colour")
    tree = {"=warm": "colour", "green, dark": "colour"}
    limits = np.array([0.5, 0.5, 1], np.float32)
    predictor = Predictor(plain.network, names, plain.preprocess, limits, hierarchy=tree)
    with live_server(create_app(predictor, Settings(name="tree"))) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}")
        visit.wait("#about", "colour")
        visit.add(("=1.png", picture("yellow")))
        visit.wait("#status", "1 photo tagged")
        predicted = predictor(Image.open(io.BytesIO(picture("yellow"))))
        assert visit.reached() == [name for name, _ in predicted.labels]
        assert len(predicted.labels) == 3  # two reach their thresholds, and imply the third
        with visit.page.expect_download() as download:
            visit.page.locator("[data-form=csv]").click()
        download.value.save_as(tmp_path / "tags.csv")
    (path, labels, _), *_ = list(csv.reader((tmp_path / "tags.csv").open()))[1:]
    assert from_cells([path]) == ["=1.png"]
    assert split_tags(from_cells([labels])[0]) == [name for name, _ in predicted.labels]


def test_a_tag_shows_its_heat_map_by_keyboard(browser: Any, served: str) -> None:
    visit = Visit(browser, served)
    page = visit.page
    visit.wait("#about", "red")
    visit.add(("one.png", picture("red", (90, 60))))
    visit.wait("#status", "tagged")
    page.locator(".tag").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".heat:not([hidden])")
    second = page.locator(".tag").nth(1)
    assert second.get_attribute("aria-pressed") == "true"
    assert page.locator(".legend .what").inner_text() == second.locator(".name").inner_text()
    page.wait_for_timeout(100)
    assert page.locator(".heat").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [90, 60]
    page.keyboard.press("Escape")
    assert page.locator(".heat").is_hidden()
    assert page.locator("[aria-pressed=true]").count() == 0
    assert (visit.said, visit.elsewhere) == ([], [])


def test_what_cannot_be_read_says_why_on_its_card(browser: Any, served: str) -> None:
    visit = Visit(browser, served)
    visit.wait("#about", "red")
    name = "<img src=x onerror=alert(1)>.png"
    visit.add((name, b"nothing to see"), ("huge.png", bytes(1_000_001)))
    visit.wait("#status", "2 failed")
    cards = visit.page.locator(".card.failed")
    assert "Not an image" in cards.nth(0).locator(".message").inner_text()
    assert cards.nth(0).locator("h2").inner_text() == name
    assert "Larger than 1 MB" in cards.nth(1).locator(".message").inner_text()
    # Chromium itself logs the response to the first.
    assert [words for words in visit.said if "status of 422" not in words] == []
    assert len(visit.said) == 1


def test_what_failed_for_now_can_be_tried_again(browser: Any, served: str) -> None:
    visit = Visit(browser, served)
    visit.wait("#about", "red")
    visit.page.route("**/v1/predict*", lambda route: route.abort())
    visit.add(("a.png", picture("red")), ("b.png", bytes(1_000_001)))
    visit.wait("#status", "2 failed")
    first, second = visit.page.locator(".card").all()
    assert "be reached" in first.locator(".message").inner_text()
    assert second.locator(".again").is_hidden()  # too large is too large
    visit.page.unroute("**/v1/predict*")
    first.locator(".again").click()
    visit.wait("#status", "1 photo tagged, 1 failed")
    assert first.locator(".again").is_hidden()
    assert first.get_attribute("aria-busy") == "false"
    assert first.locator(".tag").count() == 3


def test_pasted_and_dropped_photos_count_too(browser: Any, served: str) -> None:
    visit = Visit(browser, served)
    visit.wait("#about", "red")
    for number, (kind, carrier) in enumerate(
        [("paste", "clipboardData"), ("drop", "dataTransfer")], start=1
    ):
        event = "ClipboardEvent" if kind == "paste" else "DragEvent"
        visit.page.evaluate(
            """([bytes, kind, event, carrier]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
              document.dispatchEvent(new window[event](kind, {[carrier]: data, cancelable: true}));
            }""",
            [list(picture("lime")), kind, event, carrier],
        )
        visit.wait("#status", f"{number} photo")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(browser: Any, served: str, scheme: str) -> None:
    visit = Visit(browser, served, viewport=PHONE, color_scheme=scheme)
    visit.wait("#about", "red")
    visit.add(("x" * 90 + ".png", picture("red")), ("two.png", b"broken"))
    visit.wait("#status", "1 failed")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    background = visit.page.locator("body").evaluate("b => getComputedStyle(b).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    assert (brightness > 128) == (scheme == "light")


def test_a_key_is_asked_for_and_used(browser: Any) -> None:
    key = "a-key-of-many-letters"
    app = create_app(colour_predictor(), Settings(keys=(key,)))
    with live_server(app) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}")
        visit.page.get_by_label("API key").fill("schlüssel-für-mich")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_text("A key consists of letters and signs of ASCII").wait_for()
        visit.page.get_by_label("API key").fill("wrong")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_label("API key").fill(key)
        visit.page.keyboard.press("Enter")
        visit.wait("#about", "red")
        visit.add(("one.png", picture("red")))
        visit.wait("#status", "1 photo tagged")
        assert visit.page.locator(".tag").first.is_disabled()  # no heat maps without torch
        assert key not in visit.page.content()
        visit.page.close()


def test_a_late_refusal_of_one_key_does_not_forget_the_next(browser: Any) -> None:
    app, held = create_app(colour_predictor(), Settings(keys=("a-key-of-many-letters",))), []

    def hold(route: Any) -> None:
        is_wrong = "wrong" in route.request.headers.get("authorization", "")
        held.append(route) if is_wrong else route.continue_()

    with live_server(app) as server:
        visit = Visit(browser, f"http://127.0.0.1:{server.port}")
        visit.page.route("**/v1/labels", hold)
        for key in ("wrong", "a-key-of-many-letters"):
            visit.page.get_by_label("API key").fill(key)
            visit.page.keyboard.press("Enter")
        visit.wait("#about", "red")
        with visit.page.expect_response("**/v1/labels"):
            held[0].continue_()
        visit.add(("one.png", picture("red")))
        visit.wait("#status", "1 photo tagged")
        assert "red" in visit.page.locator("#about").inner_text()


def test_the_description_of_the_api_needs_no_other_server(browser: Any, served: str) -> None:
    visit = Visit(browser, f"{served}/docs")
    visit.page.wait_for_selector(".opblock-summary-path")
    paths = visit.page.locator(".opblock-summary-path").all_inner_texts()
    assert "/v1/predict" in [path.replace("\u200b", "") for path in paths]
    visit.page.wait_for_timeout(300)
    assert [url for url in visit.elsewhere if not url.startswith(served)] == []
    assert visit.said == []
