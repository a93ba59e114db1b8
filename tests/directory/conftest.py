"""A directory in each place where one can lie."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carbon_points.directory import Directory

KEY = bytes(range(32))
Opening = Callable[..., Directory]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'directory.sqlite'}"
    return request.getfixturevalue("postgres_url").replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def opening(url: str) -> Iterator[Opening]:
    """Opens the same directory, as often as it is asked: each as another process would."""
    made: list[Directory] = []

    def open_one(key: bytes = KEY) -> Directory:
        made.append(Directory(url, key))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


@pytest.fixture
def directory(opening: Opening) -> Directory:
    return opening()
