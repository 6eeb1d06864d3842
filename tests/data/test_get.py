"""`mltr data get`: whole, checked and in its place, whatever the network does."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_server import Faults, serving
from making import write_image, write_voc

from mltr.cli import main
from mltr.config.schema import DataConfig
from mltr.data import get, open_splits
from mltr.errors import MltrError
from mltr.files import download

TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small VOC 2007 in its two archives; the digests are those of these archives."""
    write_voc(tmp_path / "VOCdevkit" / "VOC2007")
    folder = tmp_path / "mirror"
    folder.mkdir()
    archives = []
    for archive in get.DATA_SETS["voc2007"].archives:
        # The real ones share a few files; ours hold the same, which does no harm.
        with tarfile.open(folder / archive.name, "w") as tar:
            tar.add(tmp_path / "VOCdevkit", "VOCdevkit")
        content = (folder / archive.name).read_bytes()
        digest = f"md5:{hashlib.md5(content).hexdigest()}"
        archives.append(replace(archive, size=len(content), digest=digest))
    small = replace(get.DATA_SETS["voc2007"], archives=tuple(archives))
    monkeypatch.setitem(get.DATA_SETS, "voc2007", small)
    return folder


def fetch(out: Path, address: str, *options: str) -> int:
    return main(["data", "get", "voc2007", "--out", str(out), "--mirror", address, *options])


def fail_at_first(name: str, *faults: str) -> Faults:
    """The faults befall the first requests of one file, in turn."""
    return lambda asked, number: faults[number] if asked == name and number < len(faults) else ""


@pytest.mark.parametrize(
    ("faults", "requests"),
    [
        ((), 1),
        (("break", "500", "break"), 4),
        (("break", "no range"), 2),
        (("corrupt",), 2),
        (("break", "corrupt"), 3),
    ],
)
def test_it_arrives_where_the_reader_expects_it(
    mirror: Path, tmp_path: Path, faults: tuple[str, ...], requests: int, capsys
) -> None:
    out = tmp_path / "out"
    with serving(mirror, fail_at_first(TRAINVAL, *faults)) as server:
        assert fetch(out, server.address) == 0
    assert [name for name, _ in server.requests].count(TRAINVAL) == requests
    splits = open_splits(DataConfig(root=str(out), year="2007"))
    assert [len(split) for split in splits] == [14, 2, 8]
    assert not list((out / get.DOWNLOADS).glob("*.tar*part"))
    printed = capsys.readouterr().out
    assert f"mltr train voc2007 --data.root {out}" in printed


def test_what_has_come_is_not_fetched_again(mirror: Path, tmp_path: Path, capsys) -> None:
    out, size = tmp_path / "out", (mirror / TRAINVAL).stat().st_size
    with serving(mirror, lambda name, number: "break" if number == 0 else "500") as server:
        assert fetch(out, server.address) == 1
    assert "the server says 500" in (message := capsys.readouterr().err)
    part = out / get.DOWNLOADS / f"{TRAINVAL}.part"
    assert f"kept in {part}" in message
    assert part.stat().st_size == size // 2
    with serving(mirror) as server:
        assert fetch(out, server.address, "--keep") == 0
        assert server.requests == [(TRAINVAL, f"bytes={size // 2}-"), (TEST, "")]
        assert fetch(out, server.address) == 0
        assert len(server.requests) == 2  # already unpacked
    assert (out / get.DOWNLOADS / TRAINVAL).read_bytes() == (mirror / TRAINVAL).read_bytes()
    assert "already unpacked" in capsys.readouterr().out


def test_a_crash_between_the_last_byte_and_the_check_does_no_harm(
    mirror: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / get.DOWNLOADS).mkdir(parents=True)
    shutil.copy(mirror / TRAINVAL, out / get.DOWNLOADS / f"{TRAINVAL}.part")
    with serving(mirror) as server:
        assert fetch(out, server.address) == 0
    assert [name for name, _ in server.requests] == [TRAINVAL, TEST]


@pytest.mark.parametrize(
    ("fault", "words", "requests"),
    [("corrupt", "its md5 is", 3), ("404", "404", 1), ("500", "500", download.ATTEMPTS)],
)
def test_it_gives_up_with_a_reason(
    mirror: Path, tmp_path: Path, fault: str, words: str, requests: int, capsys
) -> None:
    with serving(mirror, lambda name, number: fault) as server:
        assert fetch(tmp_path / "out", server.address) == 1
    assert len(server.requests) == requests
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "VOCdevkit").exists()


def test_the_second_site_helps_out(mirror: Path, tmp_path: Path) -> None:
    with serving(mirror, lambda name, number: "404" if name.startswith("gone") else "") as server:
        gone = f"{server.address}/gone/{TEST}"
        with pytest.raises(MltrError, match="404"):
            download.download_file([gone], tmp_path / "a")
    with serving(mirror, lambda name, number: "500" if name.startswith("ill") else "") as server:
        addresses = [f"{server.address}/ill/{TEST}", f"{server.address}/{TEST}"]
        download.download_file(addresses, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (mirror / TEST).read_bytes()


def test_the_disk_is_looked_at_first(mirror: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with serving(mirror) as server:
        assert fetch(tmp_path / "out", server.address) == 1
    assert not server.requests
    assert "free some space" in capsys.readouterr().err


def tar_of(path: Path, name: str, link: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 0 if link else 4
        member.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
        member.linkname = link
        tar.addfile(member, None if link else io.BytesIO(b"evil"))
    return path


def zip_of(path: Path, name: str, link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(name)
        member.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(member, "/etc" if link else "evil")
    return path


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tar_of, {"name": "../evil"}),
        (tar_of, {"name": "in", "link": "/etc"}),
        (zip_of, {"name": "../evil"}),
        (zip_of, {"name": "/evil"}),
        (zip_of, {"name": "in", "link": True}),
    ],
)
def test_nothing_is_unpacked_elsewhere(tmp_path: Path, make, options: dict) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(MltrError, match="can't be unpacked"):
        get.unpack(make(tmp_path / "archive", **options), out)
    assert not list(out.iterdir())
    assert not (tmp_path / "deep" / "evil").exists()


def test_zips_and_damaged_archives(tmp_path: Path) -> None:
    write_image(tmp_path / "photo.png")
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as archive:
        archive.write(tmp_path / "photo.png", "train2014/photo.png")
    get.unpack(tmp_path / "good.zip", tmp_path / "out")
    unpacked = tmp_path / "out" / "train2014" / "photo.png"
    assert unpacked.read_bytes() == (tmp_path / "photo.png").read_bytes()
    (tmp_path / "bad").write_bytes(b"neither tar nor zip")
    with pytest.raises(MltrError, match="bad can't be unpacked"):
        get.unpack(tmp_path / "bad", tmp_path / "out")
