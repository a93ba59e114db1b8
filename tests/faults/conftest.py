"""A PostgreSQL that may be killed, and cities in databases of it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.faults.servers import PostgreSQL, Server, founded

SUBJECT_KEY = "5a" * 32


@pytest.fixture(scope="session")
def own_postgres() -> Iterator[PostgreSQL]:
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = PostgreSQL(folder).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres(own_postgres: PostgreSQL) -> PostgreSQL:
    """It runs, whatever the test before did to it."""
    return own_postgres if own_postgres.runs else own_postgres.start()


@pytest.fixture
def database(postgres: PostgreSQL) -> str:
    """A new one. It goes with its server: no connection lasts long enough here to drop it."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return postgres.url_of(name)


class Place:
    """Where an installation lies, and the key of its source."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.environment = {
            "CARBON_DATABASE_URL": url,
            "CARBON_DATA_DIR": str(folder),
            "CARBON_SUBJECT_KEY": SUBJECT_KEY,
        }
        self.secret = founded(self.environment)

    def server(self, name: str = "serve", *, through: str = "", **more: object) -> Server:
        """A server of it, on its database's own address or another."""
        environment = self.environment | {"CARBON_DATABASE_URL": through or self.url}
        return Server(environment, self.folder / f"{name}.log", **more)  # type: ignore[arg-type]


@pytest.fixture
def place(database: str, tmp_path: Path) -> Place:
    return Place(database, tmp_path)
