"""Many actions in one call: a verdict for every line, in order, as they come, in bounded memory, whatever comes."""

import gzip
import json
import shutil
import signal
import socket
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

import h11
import pytest

from tests.api.city import City, apart, city_in, problem, wait_for
from tests.api.conftest import Founded

BATCH = "/v1/actions/batch"
MIB = 1024 * 1024
MEMORY_MOST = 80 * MIB  # above what the server has before; a line, a batch and what waits for the caller


def ndjson(*reports: object) -> bytes:
    return b"".join(json.dumps(report).encode() + b"\n" for report in reports)


def verdicts(city: City, body: Any, *, by: str = "source", **headers: str) -> list[dict[str, Any]]:
    """The lines of the answer, which are all that was sent before any is read."""
    headers |= {"Authorization": f"Bearer {city.keys[by]}", "Content-Type": "application/x-ndjson"}
    with city.http.stream("POST", BATCH, content=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in answer.iter_lines()]


def told(receipts: Iterable[dict[str, Any]]) -> list[tuple[int, str, str]]:
    return [(r["line"], r["verdict"], r.get("code", "")) for r in receipts]


class Open:
    """A call that is written and read a little at a time."""

    def __init__(self, city: City, *, by: str = "source") -> None:
        address = city.http.base_url
        self.socket = socket.create_connection((address.host, address.port), timeout=30)
        self.wire = h11.Connection(h11.CLIENT)
        self.rest = b""
        headers = [("Host", address.host), ("Authorization", f"Bearer {city.keys[by]}")]
        headers += [("Transfer-Encoding", "chunked"), ("Content-Type", "application/x-ndjson")]
        self.send(h11.Request(method="POST", target=BATCH, headers=headers))

    def send(self, event: Any) -> None:
        self.socket.sendall(self.wire.send(event) or b"")

    def write(self, data: bytes) -> None:
        self.send(h11.Data(data=data))

    def read(self, count: int) -> list[dict[str, Any]]:
        """The next so many lines of the answer."""
        while self.rest.count(b"\n") < count:
            event = self.wire.next_event()
            if event is h11.NEED_DATA:
                self.wire.receive_data(self.socket.recv(65_536))
            elif isinstance(event, h11.Data):
                self.rest += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        *lines, self.rest = self.rest.split(b"\n", count)
        return [json.loads(line) for line in lines]


class TestVerdicts:
    def test_every_line_has_one_in_order_and_good_ones_count_beside_bad_ones(self, served_city: City) -> None:
        city = served_city
        first = city.report()
        body = b"".join(
            (
                ndjson(first, first, first | {"occurred_at": "2025-06-15T11:00:01+08:00"}),
                b"\n  \n",
                ndjson(city.report(behaviour="metro_in", unit="tap"), city.report(behaviour="metro_out", unit="tap")),
                b"not json\n" + b'{"source": "\xff"}\n' + b"[[[[\n" + b'{"a": "\\ud800"}\n' + b"null\n",
                ndjson(city.report(quantity=1), city.report(quantity="-1"), city.report(quantity="2")),
                ndjson(city.report(source="hz"), city.report(unit="km"), city.report(points=5)),
                ndjson(city.report(behaviour="flying"), city.report(behaviour="nobody_counts_this")),
                ndjson(city.report(occurred_at="2025-06-15T11:00:00"), city.report(occurred_at="2199-01-01T00:00:00Z")),
                ndjson({"source": "szt"}),
                ndjson(city.report())[:-1],
            )
        )
        assert told(verdicts(city, body)) == [
            (1, "accepted", ""),
            (2, "duplicate", ""),
            (3, "conflict", "identity-reused"),
            (6, "pending", ""),
            (7, "refused", "exit-without-entry"),
            (8, "malformed", "not-json"),
            (9, "malformed", "not-json"),
            (10, "malformed", "wrong-type"),
            (11, "malformed", "unknown-field"),
            (12, "malformed", "wrong-type"),
            (13, "malformed", "quantity-not-text"),
            (14, "refused", "quantity-negative"),
            (15, "refused", "quantity-above-most"),
            (16, "malformed", "not-yours"),
            (17, "refused", "unit-mismatch"),
            (18, "malformed", "unknown-field"),
            (19, "refused", "behaviour-not-allowed"),
            (20, "refused", "behaviour-unknown"),
            (21, "refused", "time-without-offset"),
            (22, "refused", "occurred-in-future"),
            (23, "malformed", "missing-field"),
            (24, "accepted", ""),
        ]

    def test_a_receipt_is_that_of_a_single_report(self, served_city: City) -> None:
        body = served_city.report()
        [many] = verdicts(served_city, ndjson(body))
        one = served_city.post("/v1/actions", body, by="source").json()
        assert many | {"verdict": "duplicate", "line": 1} == one | {"line": 1}

    def test_three_thousand_lines_and_the_same_again(self, served_city: City) -> None:
        cards = [served_city.name("card") for _ in range(700)]
        body = ndjson(*(served_city.report(resident=cards[n % 700]) for n in range(3_000)))
        first = verdicts(served_city, body)
        assert [r["line"] for r in first] == list(range(1, 3_001))
        assert {r["verdict"] for r in first} == {"accepted"}
        again = verdicts(served_city, body)
        assert {r["verdict"] for r in again} == {"duplicate"}
        assert [r["position"] for r in again] == [r["position"] for r in first]

    def test_an_operator_reports_for_all_sources_at_once(self, served_city: City) -> None:
        body = ndjson(served_city.report(), served_city.report(source="hz"), served_city.report(source="nobody"))
        assert told(verdicts(served_city, body, by="operator")) == [
            (1, "accepted", ""),
            (2, "accepted", ""),
            (3, "refused", "source-unknown"),
        ]

    @pytest.mark.parametrize("body", [b"", b"\n", b"\n \r\n\t\n"])
    def test_nothing_is_answered_with_nothing(self, served_city: City, body: bytes) -> None:
        assert verdicts(served_city, body) == []

    @pytest.mark.parametrize("length", [1, 20, 150])
    def test_a_last_line_that_was_cut_off_is_malformed(self, served_city: City, length: int) -> None:
        good, cut = ndjson(served_city.report()), ndjson(served_city.report())[:length]
        assert told(verdicts(served_city, good + cut)) == [(1, "accepted", ""), (2, "malformed", "not-json")]

    def test_lines_that_say_the_same_name_twice_are_one_person(self, served_city: City) -> None:
        card = served_city.name("card")
        found = verdicts(served_city, ndjson(*(served_city.report(resident=card) for _ in range(7))))
        assert [r["balance"]["points_available"] for r in found] == [10, 20, 30, 40, 40, 40, 40]


class TestPacked:
    def test_a_packed_body_is_opened(self, served_city: City) -> None:
        body = ndjson(*(served_city.report() for _ in range(100)))
        found = verdicts(served_city, gzip.compress(body), **{"Content-Encoding": "gzip"})
        assert Counter(r["verdict"] for r in found) == {"accepted": 100}

    def test_of_a_packed_body_that_was_cut_off_the_whole_lines_count(self, served_city: City) -> None:
        body = ndjson(*(served_city.report(unit=served_city.name("unit")) for _ in range(2_000)))
        packed = gzip.compress(body)
        *found, last = verdicts(served_city, packed[: len(packed) // 2], **{"Content-Encoding": "gzip"})
        assert (last["code"], last["status"]) == ("gzip-invalid", 400)
        assert 100 < len(found) < 2_000
        assert [r["line"] for r in found] == list(range(1, len(found) + 1))
        assert {r["code"] for r in found} == {"unit-mismatch"}

    def test_what_is_no_gzip_says_so_at_once(self, served_city: City) -> None:
        [last] = verdicts(served_city, ndjson(served_city.report()), **{"Content-Encoding": "gzip"})
        assert last["code"] == "gzip-invalid"

    def test_another_encoding_is_refused_before_anything_is_read(self, served_city: City) -> None:
        answer = served_city.post(BATCH, by="source", raw=b"x", headers={"Content-Encoding": "br"})
        problem(answer, 415, "media-type-unsupported")


class TestStreaming:
    def test_verdicts_come_while_the_caller_still_sends(self, served_city: City) -> None:
        call = Open(served_city)
        for turn in range(3):
            call.write(ndjson(*(served_city.report() for _ in range(4))))
            assert [r["line"] for r in call.read(4)] == [turn * 4 + n for n in range(1, 5)]
        call.write(ndjson(served_city.report())[:-1])
        call.send(h11.EndOfMessage())
        assert told(call.read(2)) == [(13, "accepted", "")]
        call.socket.close()

    def test_a_line_that_comes_in_pieces_is_one(self, served_city: City) -> None:
        call, line = Open(served_city), ndjson(served_city.report())
        for start in range(0, len(line), 17):
            call.write(line[start : start + 17])
        assert told(call.read(1)) == [(1, "accepted", "")]
        call.socket.close()

    def test_a_caller_that_sends_all_before_it_reads_is_answered(self, served_city: City) -> None:
        lines = 20 * MIB // 100
        body = b"".join(b'"%098d"\n' % n for n in range(lines))
        assert len(body) > 20_000_000
        found = verdicts(served_city, body)
        assert len(found) == lines
        assert told(found[-1:]) == [(lines, "malformed", "wrong-type")]
        assert sum(len(json.dumps(r)) for r in found[:100]) > 100 * 80  # more to read than any socket holds

    def test_of_a_caller_that_goes_away_whole_lines_count_and_no_others(self, served_city: City) -> None:
        source = served_city.name("source")
        body = {"source": source, "name": "x", "behaviours": ["bus"], "opens_accounts": True}
        served_city.done(served_city.post("/v1/sources", body))
        reports = [served_city.report(source=source) for _ in range(2_500)]
        lines = [ndjson(report) for report in reports]
        served_city.keys["leaving"] = served_city.installation.directory.issue_key("source", source)[1]
        for sent in (0, 1, 1_200, 2_400):
            call = Open(served_city, by="leaving")
            call.write(b"".join(lines[:sent]) + lines[sent][:-20])
            call.read(min(sent, 1))
            call.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            call.socket.close()  # with a reset, not a farewell
        wait_for(lambda: quiet(served_city))
        taken = set(records(served_city, source))
        found = verdicts(served_city, b"".join(lines), by="leaving")
        assert {r["verdict"] for r in found} == {"accepted", "duplicate"}
        # On a busy machine one of the calls may have been on its way still.
        known = {r["record_id"] for r in found if r["verdict"] == "duplicate"}
        assert reports[0]["record_id"] in known
        assert taken <= known <= {report["record_id"] for report in reports[:2_400]}
        assert Counter(records(served_city, source)) == Counter(report["record_id"] for report in reports)


def quiet(city: City) -> bool:
    """Nothing is being written any more."""
    before = city.installation.journal.heads()
    sleep(0.5)  # what was sent is on its way for a moment, of a busy machine
    wait_for(lambda: city.installation.follower.catch_up(1))
    return before == city.installation.journal.heads()


def records(city: City, source: str) -> Iterator[str]:
    """The record ids of a source's actions, by the read models."""
    cursor: dict[str, str] = {}
    while True:
        page = city.settled().get("/v1/actions", source=source, limit=100, **cursor).json()
        yield from (action["record_id"] for action in page["data"])
        if page["next_cursor"] is None:
            return
        cursor = {"cursor": page["next_cursor"]}


# -- stopping --------------------------------------------------------------------------------------------------------


def test_a_server_that_was_asked_to_stop_answers_what_it_has_taken(founded: Founded, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    with apart({"CARBON_DATA_DIR": str(folder)}, founded[1]) as (city, process):
        call = Open(city)
        call.write(ndjson(city.report()))
        assert told(call.read(1)) == [(1, "accepted", "")]
        process.terminate()
        call.write(ndjson(city.report()))
        call.send(h11.EndOfMessage())
        assert told(call.read(2)) == [(2, "accepted", "")]
        call.socket.close()
        assert process.wait(40) in {0, -signal.SIGTERM}


def test_what_a_server_acknowledged_before_it_was_killed_is_there_and_the_rest_may_be_sent_again(
    founded: Founded, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(founded[0], tmp_path / "data"))
    where = {"CARBON_DATA_DIR": str(folder)}
    with apart(where, founded[1]) as (city, process):
        reports = [city.report() for _ in range(4_000)]
        call = Open(city)
        call.write(ndjson(*reports))
        acknowledged = call.read(1_500)
        process.send_signal(signal.SIGKILL)
        process.wait()
        call.socket.close()
    assert {receipt["verdict"] for receipt in acknowledged} == {"accepted"}
    with city_in(where, datetime.now(UTC), founded[1]) as city:
        again = verdicts(city, ndjson(*reports))
        assert len(again) == 4_000
        for before, after in zip(acknowledged, again, strict=False):
            assert after["verdict"] == "duplicate"
            assert after["position"] == before["position"]
        totals = city.settled().get("/v1/city/behaviours").json()
        assert [(total["behaviour"], total["actions"]) for total in totals] == [("bus", 4_000)]


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(founded: Founded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[City, int]]:
    """A city in a process of its own, which has answered one batch, and the process's number."""
    folder = Path(shutil.copytree(founded[0], tmp_path_factory.mktemp("measured") / "data"))
    with apart({"CARBON_DATA_DIR": str(folder)}, founded[1]) as (city, process):
        verdicts(city, ndjson(*(city.report() for _ in range(3_000))))
        yield city, process.pid


@contextmanager
def bounded(process: int) -> Iterator[None]:
    """The process takes no more memory than it may, at any moment meanwhile."""
    before = _memory(process, "VmRSS")
    Path(f"/proc/{process}/clear_refs").write_text("5")  # its peak begins anew
    yield
    assert _memory(process, "VmHWM") - before < MEMORY_MOST


def _memory(process: int, name: str) -> int:
    """Bytes, by a line of the process's status."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured where Linux tells it")
class TestMemory:
    def test_a_line_of_100_megabytes(self, measured: tuple[City, int]) -> None:
        city, process = measured
        good = [ndjson(city.report()), ndjson(city.report())]

        def body() -> Iterator[bytes]:
            yield good[0] + b'{"source": "'
            yield from (b"x" * MIB for _ in range(100))
            yield b'"}\n' + good[1]

        with bounded(process):
            found = verdicts(city, body())
        assert told(found) == [(1, "accepted", ""), (2, "malformed", "line-too-long"), (3, "accepted", "")]

    def test_a_last_line_without_end(self, measured: tuple[City, int]) -> None:
        city, process = measured
        with bounded(process):
            found = verdicts(city, (b"[" * MIB for _ in range(50)))
        assert told(found) == [(1, "malformed", "line-too-long")]

    @pytest.mark.parametrize("of", [b"\0", b"\n", b"[", b" \r\n"])
    def test_two_gigabytes_in_a_small_packed_body(self, measured: tuple[City, int], of: bytes) -> None:
        city, process = measured
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        begin = packer.compress(ndjson(city.report())) + packer.flush(zlib.Z_FULL_FLUSH)
        more = packer.compress(of * (16 * MIB // len(of))) + packer.flush(zlib.Z_FULL_FLUSH)
        body = begin + more * 128
        assert len(body) < 8 * MIB
        with bounded(process):
            first, *_, last = verdicts(city, body, **{"Content-Encoding": "gzip"})
        assert (first["verdict"], last["code"], last["status"]) == ("accepted", "too-large", 413)

    def test_what_a_caller_does_not_read(self, measured: tuple[City, int]) -> None:
        city, process = measured
        with bounded(process):
            found = verdicts(city, (b"1\n" * 50_000 for _ in range(4)))
        assert len(found) == 200_000
