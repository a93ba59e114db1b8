"""One city's life in a journal in memory, and read models of it in each database."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from carbon_points.journal.journal import Journal
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import Snapshot
from tests.audit.scenario import live
from tests.conftest import fresh_database


@pytest.fixture(scope="session")
def journal() -> Iterator[Journal]:
    """Every type of event, counted by the tables that this release ships. To be read, never written."""
    lived = live("sqlite://")
    yield lived
    lived.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def read_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each place where rows can lie."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'read.sqlite'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def model(read_url: str) -> Iterator[ReadModel]:
    """An empty read model."""
    made = ReadModel(read_url)
    yield made
    made.close()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def lived(
    request: pytest.FixtureRequest, journal: Journal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ReadModel]:
    """A read model of the whole life, in each database. To be read, never written."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('lived') / 'read.sqlite'}"
        else:
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        made = ReadModel(url)
        follow(journal, made)
        yield made
        made.close()


@pytest.fixture
def at(lived: ReadModel) -> Iterator[Snapshot]:
    """A snapshot of the whole life."""
    with lived.snapshot() as whole:
        yield whole
