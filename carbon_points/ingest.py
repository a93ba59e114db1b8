"""A file of reports into the journal: any size, in bounded memory, resumable, and safe to repeat.

Progress is kept beside the data: a run that was stopped goes on where its last durable batch ended, and ends with the
counts of one that was not. A run that was finished starts again from the beginning, and finds everything there already.
"""

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
from msgspec import Struct

from carbon_points.api.installation import Installation, name_of
from carbon_points.api.intake import Receipt, Tally, decided, in_brief, judge, understood
from carbon_points.api.lines import Lines
from carbon_points.api.problems import NOT_DECODED
from carbon_points.judges import Judged, Judges, judges

BATCH = 2_000
LARGE_BATCH = 8_000  # of processes that decide, all together
LARGE, PACKED = 4 * 1024 * 1024, 20  # bytes of a file that is worth starting them; how much reports pack
CHUNK = 1024 * 1024
_REASONS = {"duplicate": "it was reported before: nothing changed", "pending": "it waits for the ride's other half"}

Numbered = tuple[int, bytes]


class FileBroken(ValueError):
    """A packed file that does not open to its end. What came whole before was taken in."""


class _Progress(Struct):
    """`heads`: how far the log went then, by partition. `reported`: bytes of the report file. `in_hand`: at most so
    many lines after it may have been recorded."""

    heads: dict[int, int]
    in_hand: int
    lines: int = 0
    reported: int = 0
    tally: Tally = msgspec.field(default_factory=Tally)


class Ingested(Struct, frozen=True):
    """`resumed_at` is the line after which this run began. `seconds` and the rate are of this run alone."""

    tally: Tally
    resumed_at: int
    seconds: float
    actions_per_second: int
    report: str


def ingest(
    installation: Installation,
    file: Path,
    source: str,
    *,
    report: Path,
    rename: Mapping[str, str],
    progress: Callable[[int, Tally], None],
    deciding: Judges | None = None,
) -> Ingested:
    """Judge every line of a file. What was not accepted goes to the report file, with its line number and reason.

    Raises Unavailable, FileBroken, FileNotFoundError; run again, it goes on. `rename` reads behaviours by other names.
    `deciding` are the processes that decide, if this one alone is not enough.
    """
    journal, place = installation.journal, _place(installation, file, source, rename)
    # What is done once a batch (names looked up, a report written) is short where a server works beside it.
    size = BATCH if deciding is None or journal.served() else LARGE_BATCH
    in_hand = size if deciding is None else 2 * size  # while one batch is counted, others decide the next
    earlier = _read(place)
    done = earlier or _Progress(journal.heads(), in_hand)
    began, resumed_at, read_before = time.monotonic(), done.lines, done.tally.read
    _keep(place, done)
    with report.open("ab" if earlier else "wb") as told:
        told.truncate(min(done.reported, told.tell()))
        first = done.in_hand if earlier else BATCH  # so that who decides soon begins
        batches = _batches(file, rename, after=resumed_at, first=first, size=size)
        for last, judged, heads in _judged(installation, batches, source, deciding, done.heads if earlier else None):
            done.tally.join(judged.tally)
            done.reported += _write(told, judged.receipts)
            done.lines, done.heads, done.in_hand = last, heads, in_hand
            _keep(place, done)
            progress(done.lines, done.tally)
    place.unlink(missing_ok=True)
    seconds = time.monotonic() - began
    rate = round((done.tally.read - read_before) / seconds) if seconds else 0
    return Ingested(done.tally, resumed_at, round(seconds, 3), rate, str(report))


@contextmanager
def judges_for(installation: Installation, file: Path) -> Generator[Judges | None]:
    """Processes to decide with, where the file is large and the database serves several at once."""
    unpacked = file.stat().st_size * (PACKED if file.suffix == ".gz" else 1)
    alone = not installation.settings.postgres or installation.sandbox  # whose clock those processes do not have
    if alone or unpacked < LARGE:
        yield None
        return
    with judges(installation.settings.journal_url) as deciding:
        yield deciding


def _judged(
    installation: Installation,
    batches: Iterator[list[Numbered]],
    source: str,
    deciding: Judges | None,
    resumed: Mapping[int, int] | None,
) -> Iterator[tuple[int, Judged, dict[int, int]]]:
    """What became of each batch, with its last line and how far the log went then.

    While one is decided elsewhere, the next is read; and while that is, it is told what became of the one before.
    `resumed`: the heads when an earlier run was stopped. What it had in hand is judged here, whoever did it then.
    """
    journal, last, waiting, broken = installation.journal, 0, Judged(), None
    while True:
        try:
            batch = next(batches, None)
        except FileBroken as error:
            batch, broken = None, error
        if batch is None:
            break
        if deciding is None or resumed is not None:
            receipts = judge(installation, batch, only=source, told=in_brief)
            judged = _summed(receipts if resumed is None else _not_counted(receipts, resumed))
            yield batch[-1][0], judged, journal.heads()
            resumed = None
            continue
        refused, commands = understood(installation, batch, only=source)
        parts = deciding.share(commands)
        before = (last, _in_order(waiting, deciding.take()), journal.heads()) if last else None
        if parts:
            deciding.give(parts)
        if before:
            yield before
        last, waiting = batch[-1][0] if parts else 0, _summed(list(refused.values()))
        if not parts:
            alone = _summed(list(decided(journal, commands, told=in_brief).values()))
            yield batch[-1][0], _in_order(waiting, alone), journal.heads()
    if last and deciding:
        yield last, _in_order(waiting, deciding.take()), journal.heads()
    if broken:
        raise broken


def _summed(receipts: Sequence[Receipt]) -> Judged:
    judged = Judged()
    judged.add(receipts)
    return judged


def _in_order(some: Judged, others: Judged) -> Judged:
    some.join(others)
    some.receipts.sort(key=lambda receipt: receipt.line)
    return some


def _batches(file: Path, rename: Mapping[str, str], *, after: int, first: int, size: int) -> Iterator[list[Numbered]]:
    """The lines after one: `first` of them, then `size` at a time."""
    lines, batch, most = Lines(), list[Numbered](), first
    broken: Exception | None = None
    try:
        for chunk in _chunks(file):
            batch += _named(lines.feed(chunk), after, rename)
            while len(batch) >= most:
                yield batch[:most]
                del batch[:most]
                most = size
        batch += _named(lines.end(), after, rename)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        broken = error
    if batch:
        yield batch
    if broken:
        raise FileBroken(f"{file} cannot be opened after line {lines.number}: {broken}")


def _named(lines: Iterable[Numbered], after: int, rename: Mapping[str, str]) -> list[Numbered]:
    return [(n, _renamed(line, rename) if rename else line) for n, line in lines if n > after]


def _chunks(file: Path) -> Iterator[bytes]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        while chunk := opened.read1(CHUNK):  # what comes before a fault, too
            yield chunk


def _not_counted(receipts: Sequence[Receipt], heads: Mapping[int, int]) -> list[Receipt]:
    """The receipts of a batch that a run was stopped in: what it recorded and did not come to count is no duplicate."""
    counted, told = set[str](), list[Receipt]()
    for receipt in receipts:
        partition, _, position = receipt.position.partition(":")
        new = receipt.verdict == "duplicate" and int(position) > heads.get(int(partition), 0)
        if new and receipt.position not in counted:
            told.append(msgspec.structs.replace(receipt, verdict="accepted" if receipt.version else "pending"))
        else:
            told.append(receipt)
        counted.add(receipt.position)
    return told


def _renamed(line: bytes, rename: Mapping[str, str]) -> bytes:
    try:
        told: Any = msgspec.json.decode(line)
    except NOT_DECODED:
        return line  # whoever judges it says what is wrong
    if not isinstance(told, dict):
        return line
    fields = cast(dict[str, Any], told)
    behaviour = fields.get("behaviour")
    if isinstance(behaviour, str) and behaviour in rename:
        return msgspec.json.encode({**fields, "behaviour": rename[behaviour]})
    return line


def _write(told: BinaryIO, receipts: Sequence[Receipt]) -> int:
    """Report what was not accepted, and say how many bytes that took."""
    written = 0
    for receipt in receipts:
        reason = receipt.detail or _REASONS.get(receipt.verdict, receipt.code)
        written += told.write(msgspec.json.encode(msgspec.structs.replace(receipt, detail=reason)) + b"\n")
    told.flush()
    return written


# -- progress --------------------------------------------------------------------------------------------------------


def _place(installation: Installation, file: Path, source: str, rename: Mapping[str, str]) -> Path:
    """Where a run's progress is kept: another log, or another size or time of the file, is another run."""
    seen = file.stat()
    told = f"{name_of(installation.journal)} {file.absolute()} {seen.st_size} {seen.st_mtime_ns} {source}"
    told += f" {sorted(rename.items())}"
    folder = Path(installation.settings.data_dir) / "ingest"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (hashlib.sha256(told.encode()).hexdigest()[:24] + ".json")


def _read(place: Path) -> _Progress | None:
    try:
        return msgspec.json.decode(place.read_bytes(), type=_Progress)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _keep(place: Path, done: _Progress) -> None:
    following = place.with_suffix(".next")
    following.write_bytes(msgspec.json.encode(done))
    following.replace(place)
