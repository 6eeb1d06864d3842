"""`mltr data get`: download a public data set to where its reader expects it."""

from __future__ import annotations

import argparse
import shlex
import shutil
import stat
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mltr.errors import MltrError
from mltr.files.locks import locked_out
from mltr.terminal import make_console

if TYPE_CHECKING:
    from rich.progress import Progress

VOC = ("https://thor.robots.ox.ac.uk/pascal/VOC/", "http://host.robots.ox.ac.uk/pascal/VOC/")
COCO = (
    "http://images.cocodataset.org/",  # whose certificate is another host's; the digest decides
    "https://s3.amazonaws.com/images.cocodataset.org/",
)
DOWNLOADS = ".downloads"  #: within the folder, until all is unpacked
JSON_GROWTH = 4  #: roughly how much larger COCO's annotations are when unpacked


@dataclass(frozen=True)
class Archive:
    """A file of a data set as it is published."""

    path: str  #: below each of the sites
    size: int  #: bytes
    digest: str  #: as `download_file` takes it
    unpacked: int = 0  #: bytes, roughly; 0: as many as the archive (photos don't shrink)

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """What belongs to a data set, where it is, and how it is used afterwards."""

    sites: tuple[str, ...]
    archives: tuple[Archive, ...]
    train: str  #: recipe and options of a training
    year: str


def _annotations(year: str, size: int, sha256: str) -> Archive:
    path = f"annotations/annotations_trainval{year}.zip"
    return Archive(path, size, f"sha256:{sha256}", JSON_GROWTH * size)


# VOC: the MD5 sums that torchvision.datasets.VOCDetection checks. COCO: the SHA-256 sums and sizes
# that TensorFlow Datasets checks. Neither is published by the data sets' own sites.
DATA_SETS = {
    "voc2007": DataSet(
        VOC,
        (
            Archive(
                "voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000,
                "md5:c52e279531787c972589f7e41ab4ae64",
            ),
            Archive(
                "voc2007/VOCtest_06-Nov-2007.tar", 451_020_800,
                "md5:b6e924de25625d8de591ea690078ad9f",
            ),
        ),
        "voc2007", "2007",
    ),
    "voc2012": DataSet(
        VOC,
        (
            Archive(
                "voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040,
                "md5:6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        "voc2007", "2012",
    ),
    "coco2014": DataSet(
        COCO,
        (
            _annotations(
                "2014", 252_872_794,
                "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            ),
            Archive(
                "zips/val2014.zip", 6_645_013_297,
                "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            ),
            Archive(
                "zips/train2014.zip", 13_510_573_713,
                "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            ),
        ),
        "coco", "2014",
    ),
    "coco2017": DataSet(
        COCO,
        (
            _annotations(
                "2017", 252_907_541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ),
            Archive(
                "zips/val2017.zip", 815_585_330,
                "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ),
            Archive(
                "zips/train2017.zip", 19_336_861_798,
                "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ),
        ),
        "coco", "2017",
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", choices=sorted(DATA_SETS), help="the data set")
    parser.add_argument("--out", required=True, metavar="DIR", help="destination folder")
    parser.add_argument(
        "--mirror",
        metavar="URL",
        help="download the archives from URL/FILE instead of the official site; they are verified "
        "in the same way",
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the archives, in DIR/{DOWNLOADS}"
    )
    parser.epilog = "After an interruption, repeat the command: it resumes where it stopped."


def run(args: argparse.Namespace) -> int:
    """Download, verify and unpack each archive that is missing."""
    chosen, out = DATA_SETS[args.name], Path(args.out)
    if not get(chosen, out, args.mirror, keep=args.keep):
        print(f"already unpacked; to download it again, delete {out / DOWNLOADS}")
    print(
        f"{args.name} is in {out}. Look at it, then train:\n"
        f"  mltr data {shlex.quote(str(out))} --year {chosen.year} --quick\n"
        f"  mltr train {chosen.train} --data.root {shlex.quote(str(out))} --data.year {chosen.year}"
    )
    return 0


def get(data_set: DataSet, out: Path, mirror: str | None = None, keep: bool = False) -> int:
    """Download a data set to the folder `out`, from its official sites or from `mirror`.

    Archives that were already unpacked are not downloaded again. Returns the number of downloaded
    archives. Raises `MltrError` if the disk is too small, or an archive is unavailable or fails its
    checksum; partial downloads are then kept.
    """
    with locked_out(out):
        try:
            return _get(data_set, out, mirror, keep)
        except OSError as error:
            raise MltrError(f"can't write to {out}: {error.strerror or error}") from error


def _get(data_set: DataSet, out: Path, mirror: str | None, keep: bool) -> int:
    folder = out / DOWNLOADS
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [archive for archive in data_set.archives if not _mark(folder, archive).is_file()]
    _check_room(folder, waiting, keep)
    for archive in waiting:
        path = folder / archive.name
        if not path.is_file():
            sites = (f"{mirror.rstrip('/')}/{archive.name}",) if mirror else ()
            _fetch(sites or tuple(site + archive.path for site in data_set.sites), archive, path)
        unpack(path, out)
        _mark(folder, archive).touch()
        if not keep:
            path.unlink()
    return len(waiting)


def _mark(folder: Path, archive: Archive) -> Path:
    """Return the empty file that says that an archive is unpacked."""
    return folder / f"{archive.name}.unpacked"


def _check_room(folder: Path, archives: list[Archive], keep: bool) -> None:
    """Raise `MltrError` unless the disk has enough free space."""
    unpacked = sum(archive.unpacked or archive.size for archive in archives)
    sizes = [archive.size for archive in archives]
    # Unless kept, an archive goes once it is unpacked, so the largest of them is the most beside.
    beside = sum(sizes) if keep else max(sizes, default=0)
    there = sum(path.stat().st_size for path in folder.iterdir())
    needed, free = unpacked + beside - there, shutil.disk_usage(folder).free
    if needed > free:
        raise MltrError(
            f"{folder.parent}: needs about {needed / 1e9:.1f} GB and the disk has "
            f"{free / 1e9:.1f} GB left: choose another --out, or free some space"
        )


def _fetch(addresses: tuple[str, ...], archive: Archive, path: Path) -> None:
    from mltr.files.download import download_file

    with _progress() as progress:
        come = path.with_name(path.name + ".part")
        have = come.stat().st_size if come.is_file() else 0
        task = progress.add_task(archive.name, total=archive.size, completed=have)
        download_file(
            addresses,
            path,
            archive.digest,
            lambda count: progress.advance(task, count),
            archive.size,
        )


def _progress() -> Progress:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = make_console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip


def unpack(path: Path, out: Path) -> None:
    """Unpack a .tar or .zip file to `out`; nothing in it may be written outside that folder.

    Raises `MltrError` for one that tries to, that is damaged, or for which the disk is too small.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_members(archive, out)
                archive.extractall(out)
        else:
            with tarfile.open(path) as tar:
                tar.extractall(out, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MltrError(f"{path} can't be unpacked into {out}: {reason}") from error


def _check_members(archive: zipfile.ZipFile, out: Path) -> None:
    """Refuse what `ZipFile` would mend in silence: paths out of the folder, and links."""
    root = out.resolve()
    for member in archive.infolist():
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if is_link or not (root / member.filename).resolve().is_relative_to(root):
            raise zipfile.BadZipFile(f"it would write outside, to {member.filename!r}")
