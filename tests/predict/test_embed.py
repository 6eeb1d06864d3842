"""Features of photos: those of the network, resumable, and searched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from making import count_done, write_image
from PIL import Image

from mltr.cli import main
from mltr.weights.bundle import load_bundle, save_bundle


@pytest.fixture
def photos(small_run: Path) -> Path:
    return small_run.parent / "photos"


def features_in(path: Path) -> dict[str, np.ndarray]:
    rows = pq.read_table(path).to_pylist()
    return {Path(row["path"]).name: np.array(row["features"], np.float32) for row in rows}


def test_features_are_those_that_the_classifier_sees(
    small_run: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.parquet"
    assert main(["embed", str(small_run), str(photos), "--out", str(out)]) == 0
    assert pq.read_schema(out).field("features").type == pa.list_(pa.float16())
    bundle = load_bundle(small_run)
    found = features_in(out)
    assert list(found) == sorted(path.name for path in photos.glob("*.png"))
    for name in ("3.png", "17.png"):
        image = bundle.preprocess(Image.open(photos / name))
        with torch.inference_mode():
            maps = bundle.model.forward_features(torch.as_tensor(image)[None])
        expected = maps.mean(dim=(1, 2))[0].numpy()
        assert np.allclose(found[name], expected, atol=2e-3 * np.abs(expected).max())


def test_another_head_continues_the_work_and_another_backbone_does_not(
    small_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.parquet"
    command = ["embed", str(small_run), str(photos), "--out", str(out)]
    assert main(command) == 0
    assert count_done(Path(f"{out}.journal")) == 20
    first = features_in(out)

    def change(part: str) -> None:
        bundle = load_bundle(small_run)
        with torch.no_grad():
            next(getattr(bundle.model, part).parameters()).add_(0.1)
        model = bundle.config["model"]
        save_bundle(
            small_run, model=bundle.model, name=model["name"], overrides=model["overrides"],
            classes=bundle.classes, preprocess=bundle.preprocess,
        )  # fmt: skip

    change("head")
    write_image(photos / "new.png", seed=99)
    capsys.readouterr()
    assert main(command) == 0
    assert "20 of 21 images are done" in capsys.readouterr().err
    assert all(np.array_equal(features_in(out)[name], first[name]) for name in first)
    change("embed")
    assert main(command) == 0
    assert "is from another model" in capsys.readouterr().err
    assert not np.allclose(features_in(out)["3.png"], first["3.png"])


def test_a_broken_photo_is_listed_and_left_out(
    small_run: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    out = tmp_path / "features.parquet"
    assert main(["embed", str(small_run), str(photos), "--out", str(out)]) == 1
    assert len(features_in(out)) == 20
    assert "broken.jpg" in Path(f"{out}.errors.csv").read_text()


@pytest.fixture
def table(small_run: Path, photos: Path, tmp_path: Path) -> Path:
    """Features of 20 photos and of a smaller copy of one of them."""
    Image.open(photos / "7.png").resize((36, 27)).save(photos / "copy.png")
    out = tmp_path / "features.parquet"
    assert main(["embed", str(small_run), str(photos), "--out", str(out)]) == 0
    return out


def test_the_nearest_photos_are_those_of_a_naive_search(
    table: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = features_in(table)
    query = found["7.png"]
    cosine = {
        name: float(own @ query / np.linalg.norm(own) / np.linalg.norm(query))
        for name, own in found.items()
        if name != "7.png"
    }
    expected = sorted(cosine, key=lambda name: -cosine[name])[:5]
    listed, sheet = tmp_path / "near.json", tmp_path / "near.png"
    command = ["similar", str(table), str(photos / "7.png"), "--count", "5"]
    capsys.readouterr()
    assert main([*command, "--json", str(listed), "--sheet", str(sheet)]) == 0
    near = json.loads(listed.read_text())["similar"]
    assert [Path(row["path"]).name for row in near] == expected
    assert [row["similarity"] for row in near] == pytest.approx([cosine[n] for n in expected])
    assert expected[0] == "copy.png"
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].endswith("copy.png")
    with Image.open(sheet) as picture:
        assert picture.width > 600


def test_a_photo_that_the_table_has_not_is_embedded(
    table: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "7.png", tmp_path / "elsewhere.png")
    capsys.readouterr()
    assert main(["similar", str(table), str(tmp_path / "elsewhere.png"), "--count", "1"]) == 0
    assert capsys.readouterr().out.strip() == f"1.000  {photos / '7.png'}"


def test_a_photo_here_counts_before_one_of_its_name_in_the_table(
    small_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table, name = tmp_path / "relative.parquet", f"{photos.name}/3.png"
    monkeypatch.chdir(photos.parent)
    assert main(["embed", str(small_run), photos.name, "--out", str(table)]) == 0
    (tmp_path / "elsewhere" / photos.name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    near = []
    for _ in range(2):
        capsys.readouterr()
        assert main(["similar", str(table), name, "--count", "1"]) == 0
        near.append(capsys.readouterr().out.strip())
        shutil.copy(photos / "7.png", name)
    assert near[1] == f"1.000  {photos.name}/7.png"
    assert near[0] != near[1]


def test_impossible_requests_are_reported_in_one_line(
    table: Path, small_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"path": ["a"], "features": [[1.0]]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    shutil.move(small_run, tmp_path / "moved")
    new = write_image(tmp_path / "new.png")
    photo = str(photos / "7.png")
    for words, message in (
        (["embed", str(tmp_path / "moved"), photo, "--out", "x.csv"], "must end in .parquet"),
        (["embed", "run.onnx", photo, "--out", str(tmp_path / "x.parquet")], "use its run"),
        (["embed", str(tmp_path / "moved"), photo], "--out"),
        (["similar", str(tmp_path / "none.parquet"), photo], "mltr embed"),
        (["similar", str(tmp_path / "other.parquet"), photo], "wasn't written by"),
        (["similar", str(tmp_path / "text.parquet"), photo], "not a complete Parquet file"),
        (["similar", str(table), "none.jpg"], "no such photo in"),
        (["similar", str(table), photo, "--count", "0"], "must be at least 1"),
        (["similar", str(table), photo, "--sheet", "x.pdf"], "must end in"),
        (["similar", str(table), str(new)], "give it by --run"),
    ):
        assert main(words) in (1, 2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["similar", str(table), str(new), "--run", str(tmp_path / "moved")]) == 0
