"""Days are settled by themselves, with files that never change; what is owed is paid in turn, and never beyond the
fund."""

import base64
import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.__main__ import cli
from carbon_points.api import settling
from carbon_points.api.installation import Installation
from carbon_points.api.roots import Roots
from carbon_points.api.settling import Ends, Nightly, due_day
from carbon_points.audit.merkle import root_of
from carbon_points.audit.verify import verify
from carbon_points.domain.merchant import DayNotOver
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal
from carbon_points.projections.loop import rebuild
from carbon_points.projections.settlement_file import COLUMNS, plain
from tests.api.city import Answer, City, opened, problem, same_again, wait_for
from tests.api.test_merchants import captured, settled, shop
from tests.conftest import Clock
from tests.given import DAY, HOUR, china

SUNDAY, MONDAY = date(2025, 6, 15), date(2025, 6, 16)


def refunded(city: City, redemption: str, points: int) -> None:
    city.done(city.post(f"/v1/redemptions/{redemption}/refunds", {"points": points}, by="app"))


def closing(city: City, merchant: str, day: date, **more: Any) -> Answer:
    return city.post(f"/v1/merchants/{merchant}/settlements?day={day}", **more)


def file(city: City, merchant: str, settlement: str, form: str, **more: Any) -> Answer:
    return city.get(f"/v1/merchants/{merchant}/settlements/{settlement}/file?format={form}", **more)


def sponsored(city: City, fen: int) -> None:
    city.done(city.post("/v1/fund/receipts", {"origin": "sponsor", "payer": "电网", "amount_fen": fen}))


def verified(city: City) -> None:
    report = verify(city.installation.journal)
    assert report.ok, report.first_wrong


class TestSettlingADay:
    def test_a_day_is_what_was_recorded_until_its_end_and_settled_before(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        time.at = china("2025-06-15 23:59:59") + timedelta(microseconds=999_999)
        captured(own_city, merchant, 10)
        time.at = china("2025-06-16 00:00")
        captured(own_city, merchant, 7)
        time.move(HOUR)
        first = own_city.done(closing(own_city, merchant, SUNDAY))
        assert (first["day"], first["captures"], first["points"]) == ("2025-06-15", 1, 10)
        time.move(DAY)
        second = own_city.done(closing(own_city, merchant, MONDAY))
        assert (second["captures"], second["points"], second["after"]) == (1, 7, first["through"])
        verified(own_city)

    def test_a_day_is_settled_once_whatever_the_key(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        captured(own_city, merchant, 10)
        time.move(DAY)
        first = closing(own_city, merchant, SUNDAY)
        captured(own_city, merchant, 5)
        same_again(first, closing(own_city, merchant, SUNDAY))
        with ThreadPoolExecutor(8) as pool:
            time.move(DAY)
            answers = list(pool.map(lambda _: closing(own_city, merchant, MONDAY), range(8)))
        assert sorted(a.status_code for a in answers) == [200] * 7 + [201]
        assert len({a.text for a in answers}) == 1

    def test_a_day_that_is_not_over_is_refused(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        captured(own_city, merchant, 10)
        problem(closing(own_city, merchant, SUNDAY), 409, "day-not-over")
        time.at = china("2025-06-16 00:04")
        problem(closing(own_city, merchant, SUNDAY), 409, "day-not-over")
        problem(own_city.post(f"/v1/merchants/{merchant}/settlements?day=soon"), 400, "parameter-invalid")

    def test_what_is_given_back_beyond_a_day_s_sales_is_carried_into_the_next(
        self, own_city: City, time: Clock
    ) -> None:
        merchant = shop(own_city)
        early = captured(own_city, merchant, 30)
        settled(own_city, merchant)
        refunded(own_city, early, 20)
        captured(own_city, merchant, 5)
        time.move(DAY)
        assert settling.settle(own_city.installation, SUNDAY).carried == (merchant,)
        problem(closing(own_city, merchant, SUNDAY), 409, "nothing-to-settle")
        captured(own_city, merchant, 100)
        time.move(DAY)
        [closed] = settling.settle(own_city.installation, MONDAY).closed
        assert (closed.day, closed.points, closed.amount_fen) == ("2025-06-16", 100 + 5 - 20, 2 * (100 + 5 - 20))
        told = json.loads(file(own_city, merchant, closed.settlement_id, "json").content)
        assert sorted(row["kind"] for row in told["rows"]) == ["refund", "sale", "sale"]
        assert told["carried"]["refunds"] == {"count": 1, "points": 20, "fen": 40}
        assert told["carried"]["sales"] == {"count": 1, "points": 5, "fen": 10}
        assert told["totals"]["sales"] == {"count": 2, "points": 105, "fen": 210}
        verified(own_city)

    def test_who_accepted_nothing_gets_nothing(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        time.move(DAY)
        found = settling.settle(own_city.installation, SUNDAY)
        assert (found.closed, found.carried) == ((), ())
        assert own_city.settled().get(f"/v1/merchants/{merchant}/settlements").json()["data"] == []

    def test_days_that_nobody_settled_are_settled_one_by_one(self, own_city: City, time: Clock) -> None:
        merchants = [shop(own_city) for _ in range(2)]
        for day in range(3):
            captured(own_city, merchants[day % 2], 10 + day)
            time.move(DAY)
        found = settling.settle(own_city.installation, date(2025, 6, 17))
        told = sorted((c.day, c.merchant, c.points) for c in found.closed)
        assert told == [(f"2025-06-{15 + day}", merchants[day % 2], 10 + day) for day in range(3)]
        again = settling.settle(own_city.installation, date(2025, 6, 17))
        assert (again.closed, again.carried) == ((), ())
        verified(own_city)

    def test_what_was_settled_by_hand_is_not_settled_again_with_its_day(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        captured(own_city, merchant, 10)
        assert settled(own_city, merchant)["day"] is None
        captured(own_city, merchant, 3)
        time.move(DAY)
        captured(own_city, merchant, 50)
        settled(own_city, merchant)
        captured(own_city, merchant, 4)
        problem(closing(own_city, merchant, SUNDAY), 409, "nothing-to-settle")
        time.move(DAY)
        assert own_city.done(closing(own_city, merchant, MONDAY))["points"] == 4
        verified(own_city)


class TestTheFiles:
    @pytest.fixture
    def day(self, own_city: City, time: Clock) -> tuple[str, Any]:
        """A merchant whose name a spreadsheet would reckon with, and its settled day of two sales and a refund."""
        merchant = own_city.name("shop")
        own_city.post("/v1/merchants", {"merchant": merchant, "name": '=1+2, "茶"', "fen_per_point": 2})
        own_city.post(f"/v1/merchants/{merchant}/terminals", {"terminal": "t1"})
        refunded(own_city, captured(own_city, merchant, 50), 20)
        time.move(HOUR)
        captured(own_city, merchant, 30)
        time.move(DAY)
        return merchant, own_city.done(closing(own_city, merchant, SUNDAY))

    def test_each_has_the_digest_that_the_log_says(self, own_city: City, day: tuple[str, Any]) -> None:
        merchant, closed = day
        for form, media in (("json", "application/json"), ("csv", "text/csv; charset=utf-8")):
            answer = file(own_city, merchant, closed["settlement_id"], form, by="auditor")
            sha256 = hashlib.sha256(answer.content)
            assert sha256.hexdigest() == closed[f"{form}_sha256"]
            assert answer.headers["content-type"] == media
            assert answer.headers["etag"] == f'"{sha256.hexdigest()}"'
            assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(sha256.digest()).decode()}:"
            assert answer.headers["content-disposition"].endswith(f'{merchant}-2025-06-15.{form}"')
            again = file(
                own_city, merchant, closed["settlement_id"], form, headers={"If-None-Match": answer.headers["etag"]}
            )
            assert (again.status_code, again.content) == (304, b"")

    def test_the_json_says_everything_once_and_in_one_form(self, own_city: City, day: tuple[str, Any]) -> None:
        merchant, closed = day
        content = file(own_city, merchant, closed["settlement_id"], "json").content
        told = json.loads(content)
        assert json.dumps(told, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n" == content
        assert {name: told[name] for name in ("merchant", "day", "currency", "schema")} == {
            "merchant": merchant,
            "day": "2025-06-15",
            "currency": "CNY",
            "schema": "carbon-points-settlement/1",
        }
        for name in ("settlement_id", "after", "through", "roots", "totals", "points", "amount_fen"):
            assert told[name] == closed[name]
        assert [(r["kind"], r["points"], r["amount_fen"], r["terminal"]) for r in told["rows"]] == [
            ("sale", 50, 100, "t1"),
            ("refund", 20, 40, "t1"),
            ("sale", 30, 60, "t1"),
        ]
        assert told["rows"][0]["redemption_id"] == told["rows"][1]["redemption_id"]
        assert told["rows"][2]["recorded_at"] == "2025-06-15T13:00:00.000000+08:00"
        assert not any(word in content for word in (b"resident", b"res_")), "a merchant is not told who it was"

    def test_the_csv_opens_in_a_spreadsheet_and_reckons_nothing(self, own_city: City, day: tuple[str, Any]) -> None:
        merchant, closed = day
        content = file(own_city, merchant, closed["settlement_id"], "csv").content
        assert content.startswith(b"\xef\xbb\xbf")
        assert content.count(b"\n") == content.count(b"\r\n")
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        heads = {line[0]: line[1] for line in lines if line[0].startswith("#")}
        assert heads["#商户名称 name"] == '\'=1+2, "茶"'
        table = [line for line in lines if not line[0].startswith("#")]
        assert table[0] == list(COLUMNS)
        assert [(row[0], row[6], row[7]) for row in table[1:]] == [
            ("销售 sale", "50", "100"),
            ("退款 refund", "20", "40"),
            ("销售 sale", "30", "60"),
        ]
        assert lines[-1] == ["#应付 payable", "", str(closed["points"]), str(closed["amount_fen"])]

    def test_they_are_the_same_bytes_after_more_events_and_after_a_rebuild(
        self, own_city: City, time: Clock, day: tuple[str, Any]
    ) -> None:
        merchant, closed = day
        first = [file(own_city, merchant, closed["settlement_id"], form).content for form in ("json", "csv")]
        late = json.loads(first[0])["rows"][0]["redemption_id"]
        refunded(own_city, late, 5)
        captured(own_city, merchant, 70)
        own_city.call("PATCH", f"/v1/merchants/{merchant}", {"fen_per_point": 9})
        time.move(DAY)
        own_city.done(closing(own_city, merchant, MONDAY))
        assert [file(own_city, merchant, closed["settlement_id"], f).content for f in ("json", "csv")] == first
        rebuild(own_city.installation.journal, own_city.installation.settings.read_url)
        assert [file(own_city, merchant, closed["settlement_id"], f).content for f in ("json", "csv")] == first
        verified(own_city)

    def test_a_file_that_is_not_as_it_was_is_never_handed_out(
        self, own_city: City, day: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        merchant, closed = day
        monkeypatch.setattr("carbon_points.projections.settlement_file.CURRENCY", "EUR")
        own_city.http.raise_server_exceptions = False  # pyright: ignore[reportAttributeAccessIssue]  # the test client's
        problem(file(own_city, merchant, closed["settlement_id"], "csv"), 500, "internal")

    def test_a_terminal_sees_its_own_merchant_s(self, city: City) -> None:
        made = settled(city, "shop") if captured(city, "shop", 10) else None
        assert file(city, "shop", made["settlement_id"], "csv", by="terminal").status_code == 200
        problem(file(city, "shop", made["settlement_id"], "csv", by="other terminal"), 403, "not-yours")
        problem(file(city, "shop", "stl_" + "a" * 20, "csv"), 404, "settlement-unknown")
        problem(file(city, "mall", made["settlement_id"], "csv"), 404, "settlement-unknown")
        problem(file(city, "shop", made["settlement_id"], "pdf"), 400, "parameter-invalid")

    @pytest.mark.parametrize("mark", ["=", "+", "-", "@", "\t", "\r", "＝", "＠"])
    def test_text_that_begins_like_a_formula_is_told_as_text(self, mark: str) -> None:
        assert plain(f"{mark}cmd") == f"'{mark}cmd"
        assert plain(f"x{mark}") == f"x{mark}"
        assert plain("") == ""


class TestTheLogAtAMoment:
    def test_a_day_ends_before_the_first_later_entry_though_others_are_out_of_order(
        self, own_city: City, time: Clock
    ) -> None:
        """Several writers' clocks: what was stamped before midnight and lies behind a later entry is the next day's."""
        moments = [china("2025-06-15 23:59:10") + timedelta(seconds=step) for step in (0, 20, 45, 55, 40, 49, 48, 62)]
        journal = own_city.installation.journal
        for moment in moments:
            time.at = moment
            own_city.resident()
        for day in (SUNDAY, SUNDAY - DAY, MONDAY):
            for partition, head in journal.heads().items():
                stamps = [codec.decode(e.type, e.state).recorded_at for e in journal.entries(partition, 0, head)]
                late = [n for n, at in enumerate(stamps) if (at + 8 * HOUR).date() > day]
                assert Ends(journal).of(day)[str(partition)] == (late[0] if late else head)

    @given(
        steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), min_size=20, max_size=60),
        start=st.integers(0, 99),
    )
    def test_a_day_ends_there_in_any_order_that_clocks_may_make(self, steps: list[tuple[int, int]], start: int) -> None:
        """Each entry is up to a minute behind the latest before it."""
        latest, stamps = china("2025-06-15 23:59:59") - timedelta(seconds=start), list[datetime]()
        for ahead, behind in steps:
            latest += timedelta(seconds=ahead)
            stamps.append(latest - timedelta(seconds=behind) if stamps else latest)
        late = [n for n, at in enumerate(stamps) if at >= china("2025-06-16 00:00")]
        journal: Any = Stamped(stamps)
        assert Ends(journal).of(SUNDAY) == {"0": late[0] if late else len(stamps)}

    def test_roots_are_those_of_the_auditor_wherever_one_begins(self, own_city: City, tmp_path: Path) -> None:
        journal, kept = own_city.installation.journal, tmp_path / "here" / "roots.json"
        captured(own_city, shop(own_city), 10)
        heads = journal.heads()
        roots = Roots(journal, kept)
        for part in (0.3, 1.0, 0.6):
            through = {str(p): int(head * part) for p, head in heads.items()}
            expected = {
                p: root_of([e.leaf for e in journal.entries(int(p), 0, n)]).hex() for p, n in through.items() if n
            }
            assert roots.at(through) == expected
            assert Roots(journal, kept).at(through) == expected, "by what was kept"
        read = Counting(journal)
        Roots(read, kept).at({str(p): head for p, head in heads.items()})  # pyright: ignore[reportArgumentType]  # reads
        assert read.entries_read <= 2 * len(heads), "only the last leaf is looked at again"

    @pytest.mark.parametrize("spoiled", [b"", b"[]", b'{"0":{"size":3,"leaf":"ab","roots":["cd"]}}', b"\xff"])
    def test_what_was_kept_of_another_log_is_not_believed(self, own_city: City, tmp_path: Path, spoiled: bytes) -> None:
        journal, kept = own_city.installation.journal, tmp_path / "roots.json"
        through = {str(p): head for p, head in journal.heads().items()}
        expected = Roots(journal, kept).at(through)
        told = msgspec.json.decode(kept.read_bytes())
        kept.write_bytes(spoiled)
        assert Roots(journal, kept).at(through) == expected
        for one in told.values():
            one["leaf"] = "00" * 32  # it was another entry
            one["roots"] = ["11" * 32 for _ in one["roots"]]
        kept.write_bytes(msgspec.json.encode(told))
        assert Roots(journal, kept).at(through) == expected


class Stamped:
    """A journal of one partition in which nothing is known but when its entries were recorded."""

    def __init__(self, stamps: list[datetime]) -> None:
        self._states = [msgspec.json.encode({"recorded_at": at}) for at in stamps]

    def heads(self) -> dict[int, int]:
        return {0: len(self._states)}

    def entries(self, partition: int, after: int, until: int) -> Iterator[Entry]:
        for position in range(after + 1, until + 1):
            yield Entry(partition, position, "", 0, "", self._states[position - 1], b"")


class Counting:
    """A journal that counts what is read of it."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self.partitions, self.entries_read = journal, journal.partitions, 0

    def entries(self, partition: int, after: int = 0, until: int | None = None) -> Iterator[Any]:
        for entry in self._journal.entries(partition, after, until):
            self.entries_read += 1
            yield entry


class TestEachNight:
    @pytest.mark.parametrize(
        ("now", "day"),
        [("2025-06-16 02:29", "2025-06-14"), ("2025-06-16 02:30", "2025-06-15"), ("2025-06-16 23:59", "2025-06-15")],
    )
    def test_a_day_is_due_on_the_next_at_the_time_that_was_set(self, now: str, day: str) -> None:
        assert due_day(china(now), time(2, 30)).isoformat() == day

    def test_no_day_is_due_before_it_may_be_settled(self) -> None:
        assert due_day(china("2025-06-16 00:04"), time.min) == SUNDAY - DAY
        assert due_day(china("2025-06-16 00:05"), time.min) == SUNDAY

    def test_the_server_settles_once_it_is_time_and_pays_if_it_was_told_to(self, own_city: City, time: Clock) -> None:
        merchant = shop(own_city)
        captured(own_city, merchant, 10)
        sponsored(own_city, 15)
        nightly = Nightly(set_to(own_city, settle_at="02:30"))
        time.at = china("2025-06-16 02:29")
        nightly.look()
        assert listed(own_city, merchant) == []
        time.at = china("2025-06-16 02:30")
        nightly.look()
        assert listed(own_city, merchant) == [("2025-06-15", 20, False)]
        captured(own_city, merchant, 10)
        time.move(DAY)
        sponsored(own_city, 5)
        Nightly(set_to(own_city, settle_at="02:30", pay_daily=True)).look()
        assert listed(own_city, merchant) == [("2025-06-15", 20, True), ("2025-06-16", 20, False)]
        time.move(DAY)
        Nightly(set_to(own_city, settle_at="off", pay_daily=True)).look()
        assert len(listed(own_city, merchant)) == 2

    def test_the_thread_looks_by_itself_and_survives_what_fails(
        self, own_city: City, time: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(settling, "LOOK_SECONDS", 0.05)
        merchant = shop(own_city)
        captured(own_city, merchant, 10)
        time.move(DAY)
        failing = iter([True])

        def settle(*args: Any, **more: Any) -> Any:
            if next(failing, False):
                raise OSError("the disk is away")
            return settled_really(*args, **more)

        settled_really: Callable[..., Any] = settling.settle
        monkeypatch.setattr(settling, "settle", settle)
        nightly = Nightly(set_to(own_city, settle_at="02:30"))
        nightly.start()
        try:
            wait_for(lambda: listed(own_city, merchant) == [("2025-06-15", 20, False)])
        finally:
            nightly.stop()
        assert "trying again" in caplog.text

    def test_several_servers_settle_a_day_once(self, own_city: City, time: Clock) -> None:
        merchants = [shop(own_city) for _ in range(6)]
        for merchant in merchants:
            captured(own_city, merchant, 10)
        time.move(DAY)
        folder = own_city.installation.settings.data_dir
        with several(folder, time, 3) as installations, ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda one: settling.settle(one, SUNDAY), installations))
        closed = [c.merchant for one in found for c in one.closed]
        assert sorted(closed) == sorted(merchants), "each by one of them"
        assert all(listed(own_city, m) == [("2025-06-15", 20, False)] for m in merchants)
        verified(own_city)


class TestPayingInTurn:
    def owed(self, city: City, time: Clock, *points: int) -> list[tuple[str, str]]:
        """Merchants with their settlements, closed one after another."""
        made: list[tuple[str, str]] = []
        for one in points:
            merchant = shop(city)
            captured(city, merchant, one)
            time.move(timedelta(seconds=1))
            made.append((merchant, settled(city, merchant)["settlement_id"]))
        return made

    def test_the_first_that_the_fund_cannot_pay_stops_it_though_a_later_is_smaller(
        self, own_city: City, time: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second, third = self.owed(own_city, time, 10, 50, 5)
        sponsored(own_city, 60)
        with caplog.at_level(logging.WARNING):
            found = settling.pay(own_city.installation)
        assert [p.settlement_id for p in found.paid] == [first[1]]
        assert (found.balance_fen, found.queued, found.owed_fen, found.short_fen) == (40, 2, 110, 70)
        assert "the fund is short: 2 settlements wait for 110 fen, it has 40 and lacks 70" in caplog.text
        fund = own_city.get("/v1/fund").json()
        assert (fund["queued"], fund["owed_fen"], fund["short_fen"]) == (2, 110, 70)
        queue = own_city.get("/v1/fund/queue", by="auditor").json()["data"]
        assert [s["settlement_id"] for s in queue] == [second[1], third[1]]
        sponsored(own_city, 70)
        found = settling.pay(own_city.installation)
        assert [p.settlement_id for p in found.paid] == [second[1], third[1]]
        assert (found.balance_fen, found.queued, found.short_fen) == (0, 0, 0)
        verified(own_city)

    def test_whom_the_operator_names_is_paid_before_his_turn(self, own_city: City, time: Clock) -> None:
        _, (merchant, settlement) = self.owed(own_city, time, 50, 5)
        sponsored(own_city, 60)
        own_city.done(own_city.post(f"/v1/merchants/{merchant}/settlements/{settlement}/payment"))
        found = settling.pay(own_city.installation)
        assert (found.paid, found.queued, found.short_fen) == ((), 1, 50)

    def test_fifty_payers_at_once_pay_each_once_and_never_beyond_the_fund(self, own_city: City, time: Clock) -> None:
        made = self.owed(own_city, time, *range(10, 22))
        enough = sum(2 * points for points in range(10, 18))
        sponsored(own_city, enough + 1)
        with ThreadPoolExecutor(50) as pool:
            found = list(pool.map(lambda _: settling.pay(own_city.installation), range(50)))
        paid = [p.settlement_id for one in found for p in one.paid]
        assert sorted(paid) == sorted(settlement for _, settlement in made[:8])
        assert own_city.settled().get("/v1/fund").json()["balance_fen"] == 1
        verified(own_city)


def listed(city: City, merchant: str) -> list[tuple[str, int, bool]]:
    rows = city.settled().get(f"/v1/merchants/{merchant}/settlements").json()["data"]
    return sorted((row["day"], row["amount_fen"], row["paid"]) for row in rows)


def set_to(city: City, **settings: Any) -> Installation:
    known = msgspec.structs.replace(city.installation.settings, **settings)
    return msgspec.structs.replace(city.installation, settings=known)


@contextmanager
def several(folder: str, clock: Clock, number: int) -> Iterator[list[Installation]]:
    """More installations over the same databases, as other processes would have them."""
    made = [opened({"CARBON_DATA_DIR": folder}, clock) for _ in range(number)]
    try:
        yield made
    finally:
        for one in made:
            one.close()


class TestTheCommands:
    def run(self, city: City, *words: str, code: int = 0) -> Any:
        """By the real time, over the city's databases."""
        environment = {"CARBON_DATA_DIR": city.installation.settings.data_dir, "CARBON_SETTLE_AT": "off"}
        result = CliRunner(env=environment).invoke(cli, [*words, "--json"])
        assert result.exit_code == code, (result.output, result.exception)
        return json.loads(result.stdout.splitlines()[-1])

    def test_settle_closes_what_is_due_and_pay_says_by_its_code_that_the_fund_is_short(self, own_city: City) -> None:
        merchants = [shop(own_city) for _ in range(2)]
        for merchant in merchants:
            captured(own_city, merchant, 10)
        assert self.run(own_city, "settle", "--day", "2025-06-14")["closed"] == []
        found = self.run(own_city, "settle")
        assert [(c["merchant"], c["day"], c["amount_fen"]) for c in found["closed"]] == [
            (merchant, "2025-06-15", 20) for merchant in sorted(merchants)
        ]
        assert self.run(own_city, "settle")["closed"] == []
        sponsored(own_city, 30)
        told = self.run(own_city, "pay", code=3)
        assert ([p["amount_fen"] for p in told["paid"]], told["queued"], told["short_fen"]) == ([20], 1, 10)
        sponsored(own_city, 10)
        assert self.run(own_city, "pay")["queued"] == 0
        assert self.run(own_city, "pay") == {
            "paid": [],
            "balance_fen": 0,
            "queued": 0,
            "owed_fen": 0,
            "short_fen": 0,
        }

    def test_a_day_that_is_not_over_is_refused(self, own_city: City) -> None:
        result = CliRunner(env={"CARBON_DATA_DIR": own_city.installation.settings.data_dir}).invoke(
            cli, ["settle", "--day", "2199-01-01"]
        )
        assert isinstance(result.exception, DayNotOver)
