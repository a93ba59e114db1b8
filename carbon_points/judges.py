"""Several processes that decide a large file's reports, each those of residents of its own.

An interpreter decides on one core. Here whoever reads the file hands each process the commands of its residents, in
their order, and goes on reading while they decide and the database writes. They share the journal as any processes
do: nothing rests on there being one. A process that ends takes nothing with it but the answer.
"""

import gc
import multiprocessing
import os
import signal
import time
import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import msgspec
from msgspec import Struct

from carbon_points.api.intake import Receipt, Tally, decided, in_brief
from carbon_points.domain.account import RecordAction
from carbon_points.journal.journal import open_journal
from carbon_points.journal.partition import Unavailable
from carbon_points.journal.recorder import Unreachable

MOST = 4
PIECE = 2_000  # commands of one transaction
SERVED_PIECE = 50  # where a server works on the database: while one is written, a terminal's customer waits
LOOK_SECONDS = 2.0  # how often one looks whether there is a server
PATIENCE_SECONDS = 20.0  # for one that decides what it has in hand, though nobody waits for it

Commands = Mapping[int, RecordAction]  # by line


class Judged(Struct):
    """Verdicts counted, and the receipts of what was not accepted; or why nothing more could be decided."""

    tally: Tally = msgspec.field(default_factory=Tally)
    receipts: list[Receipt] = []
    unavailable: str | None = None

    def add(self, receipts: Sequence[Receipt]) -> None:
        self.tally.add(receipts)
        self.receipts += [receipt for receipt in receipts if receipt.verdict != "accepted"]

    def join(self, other: "Judged") -> None:
        self.tally.join(other.tally)
        self.receipts += other.receipts


class Judges:
    """Processes that were given nothing yet, or the commands of one batch."""

    def __init__(self, lines: Sequence[Connection]) -> None:
        self._lines = lines

    def share(self, commands: Commands) -> list[bytes] | None:
        """Whose commands are whose, as they are sent.

        None where one record is told of residents of two: they must be decided in turn.
        """
        parts: list[list[tuple[int, RecordAction]]] = [[] for _ in self._lines]
        where: dict[tuple[str, str], int] = {}
        for line, command in commands.items():
            mine = zlib.crc32(command.resident.encode()) // 7 % len(parts)
            if where.setdefault((command.source, command.record_id), mine) != mine:
                return None
            parts[mine].append((line, command))
        return [_encode(part) for part in parts]

    def give(self, parts: Sequence[bytes]) -> None:
        for line, part in zip(self._lines, parts, strict=True):
            with _heard():
                line.send_bytes(part)

    def take(self) -> Judged:
        """What became of the commands that were given. Raises Unavailable."""
        judged = Judged()
        for line in self._lines:
            with _heard():
                answer = msgspec.msgpack.decode(line.recv_bytes(), type=Judged)
            if answer.unavailable is not None:
                raise Unavailable(answer.unavailable)
            judged.join(answer)
        return judged


@contextmanager
def judges(journal_url: str) -> Generator[Judges]:
    """As many as there are cores to decide on, up to `MOST`."""
    context = multiprocessing.get_context("spawn")
    lines: list[Any] = []
    processes: list[Any] = []
    try:
        for _ in range(min(cores(), MOST)):
            line, theirs = context.Pipe()
            process = context.Process(target=_decide, args=(theirs, journal_url), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            lines.append(line)
            processes.append(process)
        for line in lines:
            with _heard():
                line.recv_bytes()
        yield Judges(lines)
    finally:
        for line in lines:
            line.close()
        for process in processes:
            process.join(PATIENCE_SECONDS)
            process.kill()  # it waits for a database that does not answer


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def calm_collector() -> None:
    """What was loaded stays, and a batch makes a hundred thousand small things that need no cycle collector.

    Measured on the Shenzhen taps: a fifth less processor time than with Python's own thresholds.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@contextmanager
def _heard() -> Generator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise Unavailable("a process that decides has ended: run the same again, and it goes on") from error


def _decide(line: Connection, journal_url: str) -> None:
    """What each of them does, until whoever started it says no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    journal = open_journal(journal_url)
    calm_collector()
    piece_of, looked = PIECE, -LOOK_SECONDS
    try:
        with suppress(EOFError, OSError):
            line.send_bytes(b"")
            while True:
                commands, judged = _decode(line.recv_bytes()), Judged()
                try:
                    if time.monotonic() - looked > LOOK_SECONDS:
                        piece_of, looked = SERVED_PIECE if journal.served() else PIECE, time.monotonic()
                    for start in range(0, len(commands), piece_of):
                        piece = dict(commands[start : start + piece_of])
                        judged.add(list(decided(journal, piece, told=in_brief).values()))
                except (Unavailable, Unreachable) as error:
                    judged = Judged(unavailable=str(error))
                line.send_bytes(msgspec.msgpack.encode(judged))
    finally:
        journal.close()


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[int, RecordAction]]).decode
