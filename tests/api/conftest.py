import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from carbon_points.projections.rankings import making
from tests.api.city import City, city_in, served, wait_for
from tests.conftest import Clock
from tests.given import NOON

Founded = tuple[Path, dict[str, str]]


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Founded:
    """The data folder of a city where nothing has happened yet, and the secrets of its keys. To be copied."""
    folder = tmp_path_factory.mktemp("founded") / "data"
    with city_in({"CARBON_DATA_DIR": str(folder)}, NOON) as city:
        city.found()
        return folder, city.keys


@pytest.fixture(scope="session")
def city(founded: Founded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """One city for all tests that mind their own residents only, on 15 June 2025."""
    folder = Path(shutil.copytree(founded[0], tmp_path_factory.mktemp("city") / "data"))
    with city_in({"CARBON_DATA_DIR": str(folder)}, NOON, founded[1]) as running:
        wait_for(lambda: not running.installation.read_model.read(making))  # before its first rankings there are none
        yield running


@pytest.fixture(scope="session")
def served_city(founded: Founded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """Like `city`, behind a real server."""
    folder = Path(shutil.copytree(founded[0], tmp_path_factory.mktemp("served") / "data"))
    with served({"CARBON_DATA_DIR": str(folder)}, Clock(NOON), founded[1]) as running:
        yield running


@pytest.fixture(scope="module")
def served_apart(founded: Founded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[City]:
    """Like `served_city`, for tests of one file that change what others rest on: its clock, or anything at all."""
    folder = Path(shutil.copytree(founded[0], tmp_path_factory.mktemp("apart") / "data"))
    with served({"CARBON_DATA_DIR": str(folder)}, Clock(NOON), founded[1]) as running:
        yield running


@pytest.fixture
def own_city(founded: Founded, tmp_path: Path) -> Iterator[City]:
    """A city for one test alone: its totals are that test's, and so is its clock."""
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    with city_in({"CARBON_DATA_DIR": str(folder)}, NOON, founded[1]) as running:
        yield running


@pytest.fixture
def time(own_city: City) -> Clock:
    """The clock of the test's own city."""
    clock = own_city.installation.clock
    assert isinstance(clock, Clock)
    return clock
