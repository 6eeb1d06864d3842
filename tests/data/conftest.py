"""The photos that tables of the tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import write_plain
from tables import COUNT


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("photos"), COUNT)


@pytest.fixture
def photos(many_photos: Path, tmp_path: Path) -> Path:
    """A folder of the photos, and nothing else."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in many_photos.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder
