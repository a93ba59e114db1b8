"""Servers that a test may kill: a PostgreSQL of its own, and `carbon-points serve` processes."""

import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import msgspec
import psutil
import psycopg
from click.testing import CliRunner

from carbon_points.__main__ import cli
from carbon_points.domain import methodology
from carbon_points.domain.source import RegisterSource
from carbon_points.journal.journal import open_journal
from carbon_points.journal.partition import Write
from tests.api.city import green, opened
from tests.conftest import PROJECT, postgres_in

PARTITIONS = 2
START_MOST = 120  # seconds: nothing is promised of it, and the machine may do other things meanwhile
SOURCE = RegisterSource(source="szt", name="深圳通", behaviours=("green",), opens_accounts=True)


def free_port() -> int:
    """One that stays free until it is used, and again while its server is away: below those that systems give to
    whoever asks for any, so that no connection of another test takes it meanwhile, nor a test beside this one."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.SystemRandom().randrange(10_000 + worker % 8, 32_000, 8)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


def wait_for(promised: Callable[[], object], seconds: float, what: str) -> float:
    """How long it took until it was so."""
    begun = monotonic()
    while not promised():
        assert monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        sleep(0.02)
    return monotonic() - begun


class PostgreSQL:
    """A server in a folder, on a port that it keeps. `postgres_in` knows the binaries and whom to run them as."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._package = postgres_in(folder, start=False)
        self._package.ensure_pgdata_inited()
        self.folder, self.port = folder, free_port()
        self._options = [word for option in ("max_connections=200", *options) for word in ("-c", option)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> "PostgreSQL":
        place = ["-D", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)]
        command = [str(self._package.bin_path / "postgres"), *place, *self._options]
        user: dict[str, Any] = {"user": self._package.system_user} if self._package.system_user else {}
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user)
        wait_for(self.answers, START_MOST, "PostgreSQL answers")
        return self

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "PostgreSQL ended by itself"
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """The postmaster and each of its children with SIGKILL: nobody is left to say goodbye or to write."""
        assert self._process is not None
        postmaster = psutil.Process(self._process.pid)
        postmaster.suspend()  # it would make new children of those that die
        children = postmaster.children(recursive=True)
        for process in [*children, postmaster]:
            process.kill()
        self._process.wait()
        # On a busy machine one may die late, and as long as it holds their shared memory no server starts here again.
        wait_for(lambda: not any(map(_lives, children)), START_MOST, "each of them is dead")

    def stop(self) -> None:
        """Fast: open transactions are rolled back, connections closed."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)
            self._process.wait(60)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _lives(process: psutil.Process) -> bool:
    """Whoever has no parent left to ask how it ended may stay a name in the system's table, and holds nothing."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Server:
    """A `carbon-points serve` process on a port that it keeps, and what it writes to its log."""

    def __init__(self, environment: dict[str, str], log: Path, port: int = 0) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("CARBON_")}
        self.environment = clean | {"CARBON_PARTITIONS": str(PARTITIONS)} | environment
        self.log, self.port = log, port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Server":
        command = [sys.executable, "-m", "carbon_points", "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, cwd=PROJECT, stdout=log, stderr=log)
        wait_for(self._ready, START_MOST, "the server is ready")
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def no_mistake_of_ours(self) -> None:
        """What is not expected is logged so before it is answered with 500."""
        told = self.log.read_text()
        found = re.search(r"^unexpected$", told, re.MULTILINE)
        assert not found, told[found.start() :][:3000]

    def verified(self) -> None:
        """By the command, in this process: another one would be a second of imports."""
        told = CliRunner(env=self.environment).invoke(cli, ["verify", "--json"])
        assert told.exit_code == 0, (told.output[-2000:], told.exception)
        assert msgspec.json.decode(told.stdout.splitlines()[-1])["ok"]


def founded(environment: dict[str, str]) -> str:
    """Make an installation with one source and an uncapped table; the secret of the source's key."""
    installation = opened({"CARBON_PARTITIONS": str(PARTITIONS), **environment}, lambda: datetime.now(UTC))
    try:
        table = methodology.parse(green())
        publish = methodology.PublishMethodology(methodology=table.id, version=table.version, table=green())
        assert all(not outcome.refusal for outcome in installation.journal.commit([Write(publish), Write(SOURCE)]))
        return installation.directory.issue_key("source", "szt")[1]
    finally:
        installation.close()


@contextmanager
def running(*servers: Server) -> Iterator[None]:
    """They run until the end, and none of them has met a mistake of ours."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()
    for server in servers:
        server.no_mistake_of_ours()


@contextmanager
def journal_at(url: str) -> Iterator[Any]:
    """The log, looked at from outside."""
    journal = open_journal(url, partitions=PARTITIONS)
    try:
        yield journal
    finally:
        journal.close()
