"""Deciding in other processes: what is told of a file is what became of it."""

import gzip
import json
import shutil
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from carbon_points import judges
from carbon_points.ingest import FileBroken, ingest
from carbon_points.journal.partition import Unavailable
from tests.api.city import opened
from tests.api.conftest import Founded
from tests.conftest import Clock
from tests.given import NOON


@pytest.fixture
def deciding(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], judges.Judges]:
    """What decides in a process of its own, in threads of this one."""
    monkeypatch.setattr(judges.signal, "signal", lambda *_: None)
    monkeypatch.setattr(judges, "calm_collector", lambda: None)

    def started(url: str) -> judges.Judges:
        lines = []
        for _ in range(2):
            mine, theirs = Pipe()
            Thread(target=judges._decide, args=(theirs, url), daemon=True).start()
            mine.recv_bytes()
            lines.append(mine)
        return judges.Judges(lines)

    return started


@pytest.mark.parametrize("alone", [True, False])
def test_of_a_packed_file_that_breaks_off_all_that_came_whole_is_told(
    founded: Founded, tmp_path: Path, deciding: Callable[[str], judges.Judges], alone: bool
) -> None:
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    installation = opened({"CARBON_DATA_DIR": str(folder)}, Clock(NOON))
    file, told = tmp_path / "reports.ndjson.gz", list[int]()
    report = {"source": "szt", "behaviour": "bus", "quantity": "1", "unit": "trip"}
    report["occurred_at"] = "2025-06-15T11:00:00+08:00"
    lines = [json.dumps(report | {"record_id": f"r{n}", "resident": f"c{n % 50}"}) + "\n" for n in range(3_000)]
    file.write_bytes(gzip.compress("".join(lines).encode())[:-200])
    try:
        with pytest.raises(FileBroken):
            ingest(
                installation,
                file,
                "szt",
                report=tmp_path / "report",
                rename={},
                progress=lambda line, tally: told.append(tally.read),
                deciding=None if alone else deciding(installation.settings.journal_url),
            )
        assert told
        assert 2_000 < told[-1] < 3_000
        accepted = sum(installation.journal.heads().values())
        assert accepted > told[-1] - (tmp_path / "report").read_bytes().count(b"\n")
    finally:
        installation.close()


def test_a_failure_without_a_word_is_one_all_the_same() -> None:
    mine, theirs = Pipe()
    theirs.send_bytes(msgspec.msgpack.encode(judges.Judged(unavailable="")))
    with pytest.raises(Unavailable):
        judges.Judges([mine]).take()
