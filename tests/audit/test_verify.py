"""The verifier finds a right log right, and names the first wrong entry of any other. It never raises."""

import hashlib
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from carbon_points.audit.log import JournalLog
from carbon_points.audit.verify import Report, verify
from carbon_points.domain.account import HoldPoints
from carbon_points.domain.order import PlaceOrder
from carbon_points.domain.posting import postings
from carbon_points.journal import codec
from carbon_points.journal.codec import EVENT_TYPES
from carbon_points.journal.journal import open_journal
from tests.audit import scenario
from tests.audit.scenario import ANN, BOB, CEM, DAY, PARTITIONS, City, china
from tests.audit.stored import Place, Stored

# -- a right log -----------------------------------------------------------------------------------------------------


def test_a_log_with_every_type_of_event_is_found_right(whole: Stored) -> None:
    report = whole.verify()
    assert report.first_wrong is None
    assert report.ok
    assert {name for name in EVENT_TYPES if whole.places(name)} == set(EVENT_TYPES)


def test_the_report_says_what_was_read_and_what_stands(whole: Stored) -> None:
    report = whole.verify()
    assert report.entries == sum(whole.head(p) for p in range(PARTITIONS)) == sum(report.heads.values())
    assert report.actions == len(whole.places("action-credited/1"))
    assert report.trial_balance == {"mg": 0, "points": 0, "fen": 0}
    assert report.balances["fen"] == {
        "buyers": -1200,
        "commitments": 0,
        "fund": 954,
        "merchant": 316,
        "owed": 0,
        "sponsors": -70,
    }
    assert report.balances["mg"]["retired"] == 3_000_000
    assert report.cases == 1, "one record id was sent for two residents of two partitions"
    assert report.read_model == "not compared"
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_an_empty_log_is_right() -> None:
    journal = open_journal("sqlite://", partitions=2)
    report = verify(journal)
    journal.close()
    assert (report.ok, report.entries) == (True, 0)


def test_progress_is_told_while_the_log_is_read(whole: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carbon_points.audit.verify._STEP", 50)
    told: list[tuple[int, int]] = []
    journal = open_journal(whole.url)
    report = verify(journal, progress=lambda done, of: told.append((done, of)))
    journal.close()
    assert told == [(n, report.entries) for n in range(50, report.entries + 1, 50)]


def test_a_log_that_is_written_meanwhile_is_read_at_a_consistent_cut(tmp_path: Path) -> None:
    city = City(f"sqlite:///{tmp_path / 'live'}", china("2024-03-01T09:00"))
    scenario.found(city)
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            who = scenario.resident(f"r{n % 40}x", n % PARTITIONS)
            city.bus(who, f"live{n}", china("2024-02-01T08:00") + n * DAY / 40)
            if n % 10 == 0:
                city.hold(who, f"h{n}", 10)
                city.capture(who, f"h{n}", 10)
            if n % 30 == 0:
                city.settle("bakery", f"s{n}")

    writer = threading.Thread(target=write)
    writer.start()
    reader = open_journal(f"sqlite:///{tmp_path / 'live'}")
    try:
        for _ in range(12):
            report = verify(reader)
            assert report.ok, report.first_wrong
    finally:
        stop.set()
        writer.join()
        reader.close()
        city.journal.close()


# -- somebody with the disk ------------------------------------------------------------------------------------------


def _last(stored: Stored, partition: int = 1) -> Place:
    return (partition, stored.head(partition))


def _flip(column: str) -> Callable[[Stored], Place]:
    def spoil(stored: Stored) -> Place:
        place = stored.where("action-credited/1", resident=ANN)
        [(value,)] = stored.sql(place[0], f"SELECT {column} FROM entries WHERE notification_id = ?", place[1])
        bytes_of = value if isinstance(value, bytes) else str(value).encode()
        spoiled = bytes([bytes_of[0], bytes_of[1] ^ 1, *bytes_of[2:]])
        stored.set(place, **{column: spoiled if isinstance(value, bytes) else spoiled.decode()})
        return place

    return spoil


def _version(stored: Stored) -> Place:
    stored.set(place := stored.where("points-held/1"), originator_version=999)
    return place


def _wrong_kind_of_column(stored: Stored) -> Place:
    place = stored.where("points-held/1")
    stored.sql(place[0], "UPDATE entries SET state = CAST(state AS TEXT) WHERE notification_id = ?", place[1])
    return place


def _not_utf8(stored: Stored) -> Place:
    place = stored.where("points-held/1")
    stored.sql(place[0], "UPDATE entries SET topic = CAST(X'FFFE' AS TEXT) WHERE notification_id = ?", place[1])
    return place


def _unknown_type(stored: Stored) -> Place:
    place = stored.where("points-held/1")
    stored.write(place, msgspec.json.encode(stored.state(place)), type="points-held/2")
    return place


def _another_form_of_the_same_json(stored: Stored) -> Place:
    place = stored.where("action-credited/1")
    stored.write(place, msgspec.json.format(msgspec.json.encode(stored.state(place))))
    return place


def _default_said(stored: Stored) -> Place:
    place = stored.where("action-credited/1", limits=None)
    stored.forge(place, lambda e: e.update(limits=[]))
    return place


def _unknown_field(stored: Stored) -> Place:
    stored.forge(place := stored.where("points-held/1"), lambda e: e.update(note="x"))
    return place


def _another_partitions_stream(stored: Stored) -> Place:
    place = stored.where("account-opened/1", resident=ANN)
    stored.write(place, msgspec.json.encode(stored.state(place) | {"resident": BOB}), stream=BOB)
    return place


def _time_goes_back(stored: Stored) -> Place:
    place = stored.where("account-frozen/1", frozen=True)
    stored.forge(place, lambda e: e.update(recorded_at="2024-03-01T00:00:00Z"))
    return place


def _last_deleted(stored: Stored) -> Place:
    place = _last(stored)
    stored.sql(place[0], "DELETE FROM entries WHERE notification_id = ?", place[1])
    return place


def _middle_deleted(stored: Stored) -> Place:
    place = stored.where("points-captured/1")
    stored.sql(place[0], "DELETE FROM entries WHERE notification_id = ?", place[1])
    return place


def _rule_deleted(stored: Stored) -> Place:
    place = stored.where("price-changed/1")
    stored.sql(place[0], "DELETE FROM entries WHERE notification_id = ?", place[1])
    return place


def _swapped(stored: Stored) -> Place:
    held, captured = stored.where("points-held/1"), stored.where("points-captured/1")
    assert held[0] == captured[0]
    for old, new in ((held[1], -1), (captured[1], held[1]), (-1, captured[1])):
        stored.sql(held[0], "UPDATE entries SET notification_id = ? WHERE notification_id = ?", new, old)
    return held


def _hidden_before_the_first(stored: Stored) -> Place:
    copied = "originator_id, 999, topic, state, leaf FROM entries WHERE notification_id = 1"
    stored.sql(0, f"INSERT INTO entries SELECT -7, {copied}")
    return 0, -7


def _hidden_after_the_last(stored: Stored) -> Place:
    head = stored.head(0)
    stored.sql(0, "UPDATE counter SET n = n - 1")
    return 0, head


def _counter_raised(stored: Stored) -> Place:
    stored.sql(1, "UPDATE counter SET n = n + 1")
    return 1, stored.head(1)


SPOILED: dict[str, Callable[[Stored], Place]] = {
    "a byte of the state": _flip("state"),
    "a byte of the type": _flip("topic"),
    "a byte of the stream": _flip("originator_id"),
    "a byte of the leaf hash": _flip("leaf"),
    "the version": _version,
    "a column of another kind": _wrong_kind_of_column,
    "bytes that are no text": _not_utf8,
    "a type that nobody knows": _unknown_type,
    "another form of the same JSON": _another_form_of_the_same_json,
    "a default that is said": _default_said,
    "a field that nobody knows": _unknown_field,
    "a stream of another partition": _another_partitions_stream,
    "a time that goes back": _time_goes_back,
    "the last entry is deleted": _last_deleted,
    "an entry in the middle is deleted": _middle_deleted,
    "a rule is deleted": _rule_deleted,
    "two entries of a stream are swapped": _swapped,
    "an entry before the first": _hidden_before_the_first,
    "an entry after the last": _hidden_after_the_last,
    "a counter that counts more": _counter_raised,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_whatever_is_spoiled_is_found_and_named(stored: Stored, spoil: Callable[[Stored], Place]) -> None:
    place = spoil(stored)
    report = stored.verify()
    assert not report.ok
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.position) == place, report.first_wrong


# -- somebody who knows the format -----------------------------------------------------------------------------------

ADD = object()  # one more than it was
_NO_MORE = {name: {"count": 0, "points": 0, "fen": 0} for name in ("refunds", "reversals")}
_OFFLINE = {"most_points": 5, "most_count": 9, "most_sum": 20, "most_age_hours": 24}
FORGED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("methodology-published/1", {"methodology": "bus"}, {"version": "2024-2"}),
    ("methodology-published/1", {"methodology": "bus"}, {"digest": "0" * 32}),
    ("source-changed/1", {}, {"behaviours": ["walk"], "opens_accounts": None}),
    ("account-opened/1", {"resident": BOB}, {"opened_by": "city"}),
    ("account-opened/1", {"resident": BOB}, {"opened_by": "nobody"}),
    ("consent-given/1", {"resident": BOB}, {"consent": {"id": "x"}}),
    ("consent-given/1", {"resident": ANN}, {"resident": BOB}),
    ("consent-withdrawn/1", {}, {"consent_id": "c9"}),
    ("action-credited/1", {"record_id": "b1"}, {"reduction_mg": ADD}),
    ("action-credited/1", {"record_id": "b1"}, {"points": ADD}),
    ("action-credited/1", {"record_id": "b1"}, {"counted": "2"}),
    ("action-credited/1", {"record_id": "b1"}, {"quantity": "2"}),
    ("action-credited/1", {"record_id": "b1"}, {"quantity": "1.0000000"}),
    ("action-credited/1", {"record_id": "b1"}, {"unit": "km"}),
    ("action-credited/1", {"record_id": "b1"}, {"behaviour": "metro"}),
    ("action-credited/1", {"record_id": "b1"}, {"expires_on": "2027-01-01"}),
    ("action-credited/1", {"record_id": "b1"}, {"digest": "0" * 32}),
    ("action-credited/1", {"record_id": "b1"}, {"version": "2025-1"}),
    ("action-credited/1", {"record_id": "b1"}, {"methodology": "metro"}),
    ("action-credited/1", {"record_id": "b1"}, {"consent_id": "c2"}),
    ("action-credited/1", {"record_id": "b1"}, {"source": "bike"}),
    ("action-credited/1", {"record_id": "b1"}, {"source": "nobody"}),
    ("action-credited/1", {"record_id": "b1"}, {"record_id": "b0"}),
    ("action-credited/1", {"record_id": "b1"}, {"occurred_at": "2025-02-28T01:00:00Z"}),
    ("action-credited/1", {"record_id": "b1"}, {"occurred_at": "2014-02-28T01:00:00Z"}),
    ("action-credited/1", {"record_id": "b1"}, {"occurred_at": "2024-02-28T01:00:00"}),
    ("action-credited/1", {"record_id": "b1"}, {"debt_points": 1}),
    ("action-credited/1", {"record_id": "b1"}, {"debt_mg": 1}),
    ("action-credited/1", {"record_id": "b1"}, {"limits": ["day.points"]}),
    ("action-credited/1", {"record_id": "b6"}, {"limits": None}),
    ("action-credited/1", {"record_id": "b6"}, {"counted": "1", "reduction_mg": 80000}),
    ("action-credited/1", {"record_id": "k1"}, {"occurred_at": "2023-01-01T00:00:00Z"}),
    ("action-credited/1", {"record_id": "k3"}, {"counted": "3.25"}),
    ("action-credited/1", {"record_id": "b102"}, {"debt_points": None}),
    ("action-credited/1", {"record_id": "l7"}, {"debt_mg": ADD}),
    ("action-credited/1", {"record_id": "m2"}, {"paired_with": "m9"}),
    ("action-credited/1", {"record_id": "m2"}, {"paired_with": None, "paired_at": None}),
    ("action-credited/1", {"record_id": "m4"}, {"paired_at": "2024-02-28T03:01:00Z"}),
    ("action-credited/1", {"record_id": "m7"}, {"paired_with": "m5", "paired_at": "2024-02-28T05:00:00Z"}),
    ("tap-recorded/1", {"record_id": "m1"}, {"refused": "exit-without-entry"}),
    ("tap-recorded/1", {"record_id": "m1"}, {"behaviour": "metro_out"}),
    ("tap-recorded/1", {"record_id": "m1"}, {"quantity": "2"}),
    ("tap-recorded/1", {"record_id": "m3"}, {"refused": None}),
    ("action-reversed/1", {"record_id": "b100"}, {"record_id": "b103"}),
    ("action-reversed/1", {"record_id": "b100"}, {"record_id": "same", "source": "szt"}),
    ("action-reversed/1", {"record_id": "b100"}, {"points": ADD}),
    ("action-reversed/1", {"record_id": "b100"}, {"debt_points": ADD}),
    ("action-reversed/1", {"record_id": "b100"}, {"reduction_mg": ADD}),
    ("action-reversed/1", {"record_id": "b100"}, {"debt_mg": 1}),
    ("action-reversed/1", {"record_id": "b100"}, {"taken": [["2026-03-31", 1]]}),
    ("action-reversed/1", {"record_id": "b100"}, {"day": "2024-02-29"}),
    ("action-reversed/1", {"record_id": "b102"}, {"record_id": "b100"}),
    ("points-held/1", {"redemption_id": "d1"}, {"points": ADD, "amount_fen": 155}),
    ("points-held/1", {"redemption_id": "d1"}, {"amount_fen": ADD}),
    ("points-held/1", {"redemption_id": "d1"}, {"merchant": "nobody"}),
    ("points-held/1", {"redemption_id": "d1"}, {"terminal": "till-9"}),
    ("points-held/1", {"redemption_id": "d1"}, {"hold_seconds": ADD}),
    ("points-held/1", {"redemption_id": "d1"}, {"taken": [["2026-04-30", 30]]}),
    ("points-captured/1", {"redemption_id": "d1"}, {"points": ADD}),
    ("points-captured/1", {"redemption_id": "d1"}, {"amount_fen": ADD}),
    ("points-captured/1", {"redemption_id": "d1"}, {"merchant": "tea"}),
    ("points-captured/1", {"redemption_id": "d1"}, {"terminal": "till-9"}),
    ("points-captured/1", {"redemption_id": "d1"}, {"redemption_id": "d9"}),
    ("points-captured/1", {"redemption_id": "d1"}, {"released": [["2026-03-31", 12]]}),
    ("points-captured/1", {"redemption_id": "d1"}, {"debt_points": 1}),
    ("points-captured/1", {"redemption_id": "d6"}, {"recorded_at": "2024-03-01T09:00:00Z"}),
    ("hold-released/1", {"redemption_id": "d2"}, {"cause": "expired"}),
    ("hold-released/1", {"redemption_id": "d3"}, {"cause": "voided"}),
    ("hold-released/1", {"redemption_id": "d2"}, {"released": [["2026-03-31", 9]]}),
    ("hold-released/1", {"redemption_id": "d7"}, {"debt_points": 2}),
    ("points-refunded/1", {"refund_id": "f1"}, {"points": ADD}),
    ("points-refunded/1", {"refund_id": "f1"}, {"amount_fen": ADD}),
    ("points-refunded/1", {"refund_id": "f1"}, {"restored": [["2026-03-31", 4]]}),
    ("points-refunded/1", {"refund_id": "f3"}, {"debt_points": None}),
    ("points-refunded/1", {"refund_id": "f4"}, {"restored": [["2026-03-31", 9]]}),
    ("points-refunded/1", {"refund_id": "f4"}, {"points": 12}),
    ("points-expired/1", {"resident": ANN}, {"taken": [["2026-03-31", 1]]}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"reduction_mg": ADD}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"consent_id": "c1"}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"pool_id": "pool_b"}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"gathering": 4}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"from_month": "2024-02"}),
    ("reductions-pooled/1", {"gathering": 1, "resident": ANN}, {"taken": [["2024-02", 3200000]]}),
    ("account-frozen/1", {"frozen": True}, {"frozen": False}),
    ("merchant-registered/1", {"merchant": "tea"}, {"fen_per_point": 0}),
    ("price-changed/1", {}, {"fen_per_point": 5}),
    ("terminal-key-added/1", {"key_id": "trm_1"}, {"public_key": "AQ=="}),
    ("terminal-key-added/1", {"key_id": "trm_1"}, {"terminal": "till-9"}),
    ("terminal-key-added/1", {"key_id": "trm_2"}, {"replaces": None}),
    ("terminal-key-added/1", {"key_id": "trm_2"}, {"key_id": "trm_1"}),
    ("terminal-key-added/1", {"key_id": "trm_3"}, {"replaces": "trm_1"}),
    ("terminal-key-added/1", {"key_id": "trm_4"}, {"replaces": "trm_3"}),
    ("terminal-key-ended/1", {"key_id": "trm_2", "cause": "rotated"}, {"key_id": "trm_9"}),
    ("terminal-key-ended/1", {"key_id": "trm_2", "cause": "rotated"}, {"cause": "replaced"}),
    ("terminal-key-ended/1", {"key_id": "trm_2", "cause": "rotated"}, {"ends_at": "2030-01-01T00:00:00Z"}),
    ("terminal-suspended/1", {"reason": "stolen"}, {"suspended": False}),
    ("settlement-closed/1", {"settlement_id": "s1"}, {"points": ADD}),
    ("settlement-closed/1", {"settlement_id": "s1"}, {"captures": ADD}),
    ("settlement-closed/1", {"settlement_id": "s1"}, {"refunds": ADD}),
    ("settlement-closed/1", {"settlement_id": "s1"}, {"through": {"0": 10**6}}),
    ("settlement-closed/1", {"settlement_id": "s1"}, {"through": {"7": 1}}),
    ("settlement-closed/1", {"settlement_id": "s3"}, {"after": {}}),
    ("settlement-closed/1", {"settlement_id": "s5"}, {"csv_sha256": "ab"}),
    ("batch-closed/1", {"batch": 1}, {"batch": ADD}),
    ("batch-closed/1", {"batch": 1}, {"terminal": "till-9"}),
    ("batch-closed/1", {"batch": 2}, {"by": "auto", "batch": 3}),
    ("batch-closed/1", {"batch": 2}, {"totals": {"sales": {"count": 1, "points": 5, "fen": 20}} | _NO_MORE}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"day": "2024-02-29"}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"day": "2024-03-03"}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"day": "2025-01-02"}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"day": None}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"roots": {"0": "ab"}}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"json_sha256": "ab"}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"json_sha256": None}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"csv_sha256": "ab"}),
    ("settlement-closed/1", {"settlement_id": "s4"}, {"totals": None}),
    ("pool-opened/1", {}, {"from_month": "2025-01"}),
    ("pool-opened/1", {}, {"until_month": "2024-13"}),
    ("gathering-sealed/1", {"gathering": 1}, {"gathered_mg": ADD}),
    ("gathering-sealed/1", {"gathering": 2}, {"residents": ADD}),
    ("gathering-sealed/1", {"gathering": 2}, {"gathering": 3}),
    ("gathering-sealed/1", {"gathering": 2}, {"through": {}}),
    ("pool-verified/1", {"verification_id": "v2"}, {"verified_mg": 10**8}),
    ("lot-issued/1", {"lot_id": "lot_a1"}, {"kg": 10}),
    ("lot-issued/1", {"lot_id": "lot_a1"}, {"remainder_mg": ADD}),
    ("lot-issued/1", {"lot_id": "lot_a1"}, {"serial": "CN-1"}),
    ("lot-issued/1", {"lot_id": "lot_a2"}, {"number": 1}),
    ("units-sold/1", {"sale_id": "sale2"}, {"kg": 3}),
    ("units-sold/1", {"sale_id": "sale2"}, {"blocks": [[5, 6]]}),
    ("units-sold/1", {"sale_id": "sale2"}, {"serials": ["CN-1"]}),
    ("offer-published/1", {"offer": "cup"}, {"points": 0}),
    ("offer-published/1", {"offer": "pot"}, {"campaign": "winter"}),
    ("offer-published/1", {"offer": "ice"}, {"offer": "cup"}),
    ("offer-changed/1", {"change_id": "h2"}, {"restock": -100}),
    ("offer-changed/1", {"change_id": "h2"}, {"offer": "cake"}),
    ("campaign-changed/1", {"change_id": "h1"}, {"budget_fen": 17}),
    ("campaign-changed/1", {"change_id": "h1"}, {"campaign": "winter"}),
    ("order-placed/1", {"redemption_id": "q6"}, {"items": 1}),
    ("order-placed/1", {"redemption_id": "q6"}, {"amount_fen": ADD}),
    ("order-placed/1", {"redemption_id": "p2"}, {"offer": "ice"}),
    ("order-declined/1", {"redemption_id": "q2"}, {"reason": "offer-not-open"}),
    ("order-declined/1", {"redemption_id": "q2"}, {"items": 2}),
    ("order-declined/1", {"redemption_id": "q7"}, {"reason": "offer-sold-out"}),
    ("order-moved/1", {"redemption_id": "q1", "kind": "sale"}, {"items": 2, "returned": 1}),
    ("order-moved/1", {"redemption_id": "q1", "kind": "refund"}, {"returned": 2}),
    ("order-moved/1", {"redemption_id": "q6"}, {"returned": None}),
    ("order-moved/1", {"redemption_id": "p2"}, {"returned": ADD}),
    ("order-moved/1", {"redemption_id": "p2"}, {"offer": "ice"}),
    ("order-reversed/1", {"redemption_id": "q1"}, {"items": 2}),
    ("terms-changed/1", {"confirm_above": 1}, {"confirm_above": 9, "offline": None}),
    ("terms-changed/1", {"confirm_above": 1}, {"offline": _OFFLINE | {"most_sum": 0}}),
    ("terms-changed/1", {"confirm_above": 1}, {"offline": _OFFLINE | {"most_age_hours": 25}}),
    ("terms-changed/1", {"confirm_above": 1}, {"offline": _OFFLINE | {"most_count": 501}}),
    ("order-placed/1", {"redemption_id": "w1"}, {"points": 6, "amount_fen": 24}),
    ("order-placed/1", {"redemption_id": "w1"}, {"captured_offline_at": None}),
    ("settlement-closed/1", {"settlement_id": "s6"}, {"csv_sha256": "ab"}),
    ("order-placed/1", {"redemption_id": "w1"}, {"captured_offline_at": "2024-01-01T00:00:00Z"}),
    ("order-placed/1", {"redemption_id": "w1"}, {"captured_offline_at": "2030-01-01T00:00:00Z"}),
    ("order-placed/1", {"redemption_id": "w1"}, {"code": "abcd", "confirm_seconds": 60}),
    ("order-placed/1", {"redemption_id": "w1"}, {"confirm_seconds": 60}),
    ("order-placed/1", {"redemption_id": "w1"}, {"capture": None}),
    ("order-placed/1", {"redemption_id": "o2"}, {"captured_offline_at": "2024-03-01T00:00:00Z"}),
    ("units-sold/1", {"sale_id": "sale2"}, {"lot_id": "lot_a9"}),
    ("units-retired/1", {"retirement_id": "t2"}, {"blocks": [[1, 1]]}),
    ("units-retired/1", {"retirement_id": "t2"}, {"holder": "bolt"}),
    ("units-retired/1", {"retirement_id": "t2"}, {"certificate": "CN-R000001"}),
    ("money-received/1", {"receipt_id": "sale1"}, {"amount_fen": ADD}),
    ("money-received/1", {"receipt_id": "sale1"}, {"payer": "bolt"}),
    ("money-received/1", {"receipt_id": "sale1"}, {"sale_id": "sale9"}),
    ("money-received/1", {"receipt_id": "sale1"}, {"receipt_id": "r1"}),
    ("merchant-paid/1", {"settlement_id": "s1"}, {"amount_fen": ADD}),
    ("merchant-paid/1", {"settlement_id": "s2"}, {"settlement_id": "s1", "merchant": "bakery"}),
    ("merchant-paid/1", {"settlement_id": "s2"}, {"amount_fen": 10**6}),
]


def _forge(stored: Stored, type_name: str, where: dict[str, Any], said: dict[str, Any]) -> Place:
    place = stored.where(type_name, **where)

    def edit(event: dict[str, Any]) -> None:
        for name, value in said.items():
            if value is None:
                del event[name]
            else:
                event[name] = event.get(name, 0) + 1 if value is ADD else value

    before = stored.state(place)
    stored.forge(place, edit)
    assert stored.state(place) != before, "the forgery changes something"
    return place


@pytest.mark.parametrize(
    ("type_name", "where", "said"), FORGED, ids=[f"{t} {' '.join(s)} {n}" for n, (t, _, s) in enumerate(FORGED)]
)
def test_a_forged_entry_is_named_though_its_hash_fits(
    stored: Stored, type_name: str, where: dict[str, Any], said: dict[str, Any]
) -> None:
    place = _forge(stored, type_name, where, said)
    report = stored.verify()
    assert not report.ok
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.position) == place, report.first_wrong


def test_an_altered_table_is_named_though_its_digest_and_hash_fit(stored: Stored) -> None:
    place = stored.where("methodology-published/1", methodology="bus")
    table = stored.state(place)["table"].replace('value = "80"', 'value = "81"')
    digest = hashlib.sha256(table.encode()).hexdigest()[:32]
    stored.forge(place, lambda e: e.update(table=table, digest=digest))
    report = stored.verify()
    assert report.first_wrong is not None
    assert report.first_wrong.type == "action-credited/1", "the first action that was counted by the text before"
    assert "digest" in report.first_wrong.reason


def test_every_number_in_the_log_matters(whole: Stored, tmp_path: Path) -> None:
    """One more in any number of any type of event, with the hash that fits, is never right."""
    for type_name in EVENT_TYPES:
        first = whole.state(whole.places(type_name)[0])
        for name in [n for n, value in first.items() if isinstance(value, int) and not isinstance(value, bool)]:
            stored = Stored(Path(shutil.copytree(whole.folder, tmp_path / f"{type_name.replace('/', '-')}-{name}")))
            _forge(stored, type_name, first, {name: ADD})
            assert not stored.verify().ok, (type_name, name)


@pytest.mark.parametrize("ended", ["voided", "expired", "declined", "reversed"])
def test_an_order_that_says_nothing_was_sold_of_what_was_captured_is_found(stored: Stored, ended: str) -> None:
    """It would put what was sold back on the shelf, and leave the sale out of its batch."""
    city = City(stored.url, china("2026-04-04T12:00"))
    asked: dict[str, Any] = {"merchant": "tea", "terminal": "tea-1", "redemption_id": "z1", "resident": CEM}
    asked |= {"points": 1, "hold_seconds": 300, "capture": True}
    city.do(PlaceOrder(**asked))
    city.do(HoldPoints(**asked, amount_fen=3))
    city.told("z1", ended=ended)
    city.journal.close()
    report = stored.verify()
    assert report.first_wrong is not None
    assert "z1" in report.first_wrong.reason


# -- what lies beside the entries ------------------------------------------------------------------------------------

CLAIMS = {
    "deleted": "DELETE FROM claims WHERE stream = ? AND version = ?",
    "of another key": "UPDATE claims SET key = X'00' WHERE stream = ? AND version = ?",
    "of another version": "UPDATE claims SET version = version + 1 WHERE stream = ? AND version = ?",
    "of another stream": "UPDATE claims SET stream = 'res_x' WHERE stream = ? AND version = ?",
}


@pytest.mark.parametrize("sql", CLAIMS.values(), ids=CLAIMS.keys())
def test_a_claim_that_is_not_its_events_is_found(stored: Stored, sql: str) -> None:
    place = stored.where("action-credited/1", record_id="b1")
    [(stream, version)] = stored.sql(
        place[0], "SELECT originator_id, originator_version FROM entries WHERE notification_id = ?", place[1]
    )
    stored.sql(place[0], sql, stream, version)
    report = stored.verify()
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.position) == place, report.first_wrong


def test_a_claim_of_no_event_is_found(stored: Stored) -> None:
    stored.sql(0, "INSERT INTO claims VALUES (X'0102', ?, 3)", ANN)
    report = stored.verify()
    assert report.first_wrong is not None
    assert report.first_wrong.reason == "a claim names it, and it used no such identity"
    assert (report.first_wrong.partition, report.first_wrong.stream, report.first_wrong.version) == (0, ANN, 3)
    [(position,)] = stored.sql(
        0, "SELECT notification_id FROM entries WHERE originator_id = ? AND originator_version = 3", ANN
    )
    assert report.first_wrong.position == position


STATES = {
    "another number": "UPDATE states SET state = replace(state, '\"total_mg\":', '\"total_mg\":1') WHERE part = ''",
    "another usage": "UPDATE states SET state = replace(state, ':[1,', ':[2,') WHERE part LIKE 'usage/%'",
    "another version": "UPDATE states SET version = version + 1 WHERE part = ''",
    "a part of another version": "UPDATE states SET version = 1 WHERE part LIKE 'usage/%'",
    "no JSON": "UPDATE states SET state = X'7B' WHERE part = ''",
    "a redemption with another status": (
        "UPDATE states SET state = replace(state, 'captured', 'refunded') WHERE part LIKE 'redemptions/%'"
    ),
    "a stream that the log does not have": "INSERT INTO states VALUES ('res_ghost', '', 1, X'7B7D')",
    "a part that the log does not have": (
        "INSERT INTO states SELECT DISTINCT stream, 'usage/1999-01', 1, '{}' FROM states"
    ),
    "a missing state": "DELETE FROM states WHERE part = ''",
    "a missing part": "DELETE FROM states WHERE part LIKE 'redemptions/%'",
}


@pytest.mark.parametrize("sql", STATES.values(), ids=STATES.keys())
def test_a_state_that_is_not_what_the_log_comes_to_is_found(stored: Stored, sql: str) -> None:
    stored.sql(0, sql)
    report = stored.verify()
    assert not report.ok
    assert report.first_wrong is not None
    assert report.first_wrong.partition == 0
    assert report.first_wrong.stream, "the stream is named"


def test_an_end_that_is_cut_off_and_not_counted_shows_in_what_lies_beside_it(stored: Stored) -> None:
    [(stream, version)] = stored.sql(
        0, "SELECT originator_id, originator_version FROM entries WHERE notification_id = ?", stored.head(0)
    )
    stored.sql(0, "DELETE FROM entries WHERE notification_id = ?", stored.head(0))
    stored.sql(0, "UPDATE counter SET n = n - 1")
    report = stored.verify()
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.stream) == (0, stream)
    assert report.first_wrong.version == version


# -- anything --------------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_one_changed_bit_of_any_entry_is_found_and_named(whole: Stored, data: st.DataObject) -> None:
    place = data.draw(
        st.sampled_from([(p, n) for p in range(PARTITIONS) for n in range(1, whole.head(p) + 1)]), label="place"
    )
    column = data.draw(
        st.sampled_from(["state", "topic", "originator_id", "leaf", "originator_version"]), label="column"
    )
    folder = whole.folder.parent / "flipped"
    shutil.rmtree(folder, ignore_errors=True)
    stored = Stored(Path(shutil.copytree(whole.folder, folder)))
    [(value,)] = stored.sql(place[0], f"SELECT {column} FROM entries WHERE notification_id = ?", place[1])
    if isinstance(value, int):
        changed: Any = value ^ 1 << data.draw(st.integers(0, 40), label="bit")
        rows = stored.sql(
            place[0],
            "SELECT 1 FROM entries a, entries b WHERE a.notification_id = ? AND b.originator_id = a.originator_id "
            "AND b.originator_version = ?",
            place[1],
            changed,
        )
        assume(not rows)  # the database itself refuses two of one version
        stored.set(place, **{column: changed})
    else:
        raw = bytearray(value if isinstance(value, bytes) else value.encode())
        raw[data.draw(st.integers(0, len(raw) - 1), label="byte")] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        kind = "BLOB" if isinstance(value, bytes) else "TEXT"
        stored.sql(
            place[0],
            f"UPDATE entries SET {column} = CAST(? AS {kind}) WHERE notification_id = ?",
            bytes(raw),
            place[1],
        )
    report = stored.verify()
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.position) == place, report.first_wrong


@given(data=st.data())
def test_one_changed_byte_of_the_file_is_found_or_changes_nothing_of_the_record(
    whole: Stored, data: st.DataObject
) -> None:
    folder = whole.folder.parent / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    stored = Stored(Path(shutil.copytree(whole.folder, folder)))
    before = stored.record()
    file = stored.file(data.draw(st.integers(0, PARTITIONS - 1), label="partition"))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), label="byte")] ^= data.draw(st.integers(1, 255), label="bits")
    file.write_bytes(content)
    report = stored.verify()
    assert not report.ok or stored.record() == before


@pytest.mark.parametrize("method", ["heads", "entries", "claims", "states", "disagrees"])
def test_a_log_that_cannot_be_read_is_a_finding(whole: Stored, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise OSError("the disk is gone")

    journal = open_journal(whole.url)
    log = JournalLog(journal)
    monkeypatch.setattr(log, method, fail)
    report = verify(log)
    journal.close()
    assert not report.ok
    assert report.first_wrong is not None
    assert "the disk is gone" in report.first_wrong.reason


def test_a_journal_whose_last_entry_is_spoiled_can_be_opened_and_its_entry_named(stored: Stored) -> None:
    stored.set((1, stored.head(1)), state=b"{")
    journal = open_journal(stored.url)
    report = verify(journal)
    journal.close()
    assert report.first_wrong is not None
    assert (report.first_wrong.partition, report.first_wrong.position) == (1, stored.head(1))


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_a_log_on_postgresql_has_the_same_roots_and_its_spoiled_entry_is_named(
    whole: Stored, postgres_url: str
) -> None:
    scenario.live(postgres_url).close()
    journal = open_journal(postgres_url)
    try:
        right = verify(journal)
        with psycopg.connect(postgres_url) as connection:
            connection.execute("UPDATE p001.entries SET state = set_byte(state, 20, 33) WHERE notification_id = 7")
        wrong = verify(journal)
    finally:
        journal.close()
    assert right.first_wrong is None
    assert right.roots == whole.verify().roots
    assert wrong.first_wrong is not None
    assert (wrong.first_wrong.partition, wrong.first_wrong.position) == (1, 7)


# -- read models -----------------------------------------------------------------------------------------------------


class Model:
    """A read model that says what it is told to."""

    def __init__(self, stored: Stored) -> None:
        journal = open_journal(stored.url)
        self.heads = journal.heads()
        self.standing: Counter[tuple[str, str]] = Counter()
        self.rows: dict[str, list[int]] = {}
        self.totals: Counter[str] = Counter()
        for partition in self.heads:
            for entry in journal.entries(partition):
                event = codec.decode(entry.type, entry.state)
                if entry.stream.startswith("res_"):
                    self.rows.setdefault(entry.stream, [0] * 5)
                for asset, account, amount in postings(event):
                    kind, _, owner = account.partition("/")
                    self.standing[asset, kind if kind in ("resident", "held", "debt") else account] += amount
                    if kind in ("resident", "held", "debt") and asset == "points":
                        index = ("resident", "held", "debt").index(kind) + 1
                        self.rows[owner][index] += -amount if kind == "debt" else amount
                    if (asset, account) == ("mg", "issued"):
                        self.rows[entry.stream][0] -= amount
                    if (asset, kind) == ("mg", "debt"):
                        self.rows[owner][4] -= amount
        journal.close()

    def positions(self) -> dict[int, int]:
        return self.heads

    def residents(self) -> list[tuple[str, int, int, int, int, int]]:
        return [(resident, *row) for resident, row in reversed(self.rows.items())]  # type: ignore[misc]

    def trial_balance(self) -> dict[tuple[str, str], int]:
        return dict(self.standing)


def _compared(stored: Stored, model: Model) -> Report:
    journal = open_journal(stored.url)
    try:
        return verify(journal, read_model=model)
    finally:
        journal.close()


def test_read_models_that_say_what_the_log_says_are_equal(whole: Stored) -> None:
    report = _compared(whole, Model(whole))
    assert (report.ok, report.read_model) == (True, "equal")


def test_a_read_model_that_says_something_else_is_not_ok(whole: Stored) -> None:
    model = Model(whole)
    model.rows[CEM][1] += 1
    report = _compared(whole, model)
    assert not report.ok
    assert report.first_wrong is None, "the log is right"
    assert report.read_model.startswith(f"differs: {CEM}")


def test_a_read_model_without_a_resident_is_not_ok(whole: Stored) -> None:
    model = Model(whole)
    del model.rows[CEM]
    assert _compared(whole, model).read_model.startswith("differs: 1 residents are missing")


def test_a_read_model_with_another_balance_is_not_ok(whole: Stored) -> None:
    model = Model(whole)
    model.standing["fen", "fund"] += 1
    assert _compared(whole, model).read_model == "differs: fen fund stands at 955, by the log at 954"


def test_a_read_model_at_other_positions_is_not_compared(whole: Stored) -> None:
    model = Model(whole)
    model.heads = model.heads | {0: 5}
    report = _compared(whole, model)
    assert report.ok
    assert report.read_model.startswith("not compared: ")


def test_a_read_model_that_cannot_be_asked_is_not_ok_and_the_log_is_right(
    whole: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(whole)
    monkeypatch.delattr(Model, "residents")
    report = _compared(whole, model)
    assert (report.ok, report.first_wrong) == (False, None)
    assert report.read_model.startswith("differs: the read models cannot be asked")
