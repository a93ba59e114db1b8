"""A file of reports into the journal: any size, in bounded memory, resumable, and safe to repeat.

Progress is kept beside the data: a run that was stopped goes on where its last durable batch ended, and ends with the
counts of one that was not. A run that was finished starts again from the beginning, and finds everything there already.
"""

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
from msgspec import Struct

from carbon_points.api.installation import Installation, name_of
from carbon_points.api.intake import Receipt, Tally, in_brief, judge
from carbon_points.api.lines import Lines
from carbon_points.api.problems import NOT_DECODED

BATCH = 2_000
CHUNK = 1024 * 1024
_REASONS = {"duplicate": "it was reported before: nothing changed", "pending": "it waits for the ride's other half"}

Numbered = tuple[int, bytes]


class FileBroken(ValueError):
    """A packed file that does not open to its end. What came whole before was taken in."""


class _Progress(Struct):
    """`heads`: how far the log went then, by partition. `reported`: bytes of the report file."""

    heads: dict[int, int]
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
) -> Ingested:
    """Judge every line of a file. What was not accepted goes to the report file, with its line number and reason.

    Raises Unavailable, FileBroken, FileNotFoundError; run again, it goes on. `rename` reads behaviours by other names.
    """
    journal, place = installation.journal, _place(installation, file, source, rename)
    earlier = _read(place)
    done = earlier or _Progress(journal.heads())
    began, resumed_at, read_before = time.monotonic(), done.lines, done.tally.read
    _keep(place, done)
    with report.open("ab" if earlier else "wb") as told:
        told.truncate(min(done.reported, told.tell()))
        for batch in _batches(file, after=resumed_at):
            named = [(n, _renamed(line, rename)) for n, line in batch] if rename else batch
            receipts = judge(installation, named, only=source, told=in_brief)
            if earlier and done.lines == resumed_at:
                receipts = _not_counted(receipts, done.heads)
            done.tally.add(receipts)
            done.reported += _write(told, receipts)
            done.lines, done.heads = batch[-1][0], journal.heads()
            _keep(place, done)
            progress(done.lines, done.tally)
    place.unlink(missing_ok=True)
    seconds = time.monotonic() - began
    rate = round((done.tally.read - read_before) / seconds) if seconds else 0
    return Ingested(done.tally, resumed_at, round(seconds, 3), rate, str(report))


def _batches(file: Path, *, after: int) -> Iterator[list[Numbered]]:
    lines, batch = Lines(), list[Numbered]()
    broken: Exception | None = None
    try:
        for chunk in _chunks(file):
            batch.extend(item for item in lines.feed(chunk) if item[0] > after)
            while len(batch) >= BATCH:
                yield batch[:BATCH]
                del batch[:BATCH]
        batch.extend(item for item in lines.end() if item[0] > after)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        broken = error
    if batch:
        yield batch
    if broken:
        raise FileBroken(f"{file} cannot be opened after line {lines.number}: {broken}")


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
        if receipt.verdict != "accepted":
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
