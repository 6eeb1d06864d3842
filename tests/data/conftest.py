"""The photos that tables of the tests are about."""

from __future__ import annotations

from pathlib import Path

import pytest
from making import write_image
from tables import COUNT


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
