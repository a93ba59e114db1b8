"""Reported actions: one row each, and what became of it."""

from datetime import date
from typing import Any

import pytest
from sqlalchemy import event

from carbon_points.domain.account import ActionCredited, ActionReversed, TapRecorded
from carbon_points.domain.source import RegisterSource
from carbon_points.journal.entry import action_id
from carbon_points.journal.journal import Journal
from carbon_points.projections.actions import Action, action, actions
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import CursorInvalid, Snapshot
from tests.audit.scenario import ANN, City, china, found
from tests.projections.events import events, of, ride


def status(at: Snapshot, record: str, source: str = "szt") -> str:
    found = action(at, source, record)
    assert found is not None
    return found.status


def listed(at: Snapshot, **wanted: Any) -> list[Action]:
    return actions(at, **{"limit": 1_000} | wanted)


def test_every_report_that_is_in_the_log_is_listed_in_its_place(at: Snapshot, journal: Journal) -> None:
    reported = [
        (f"{partition}:{position}", report.source, report.record_id, report.resident)
        for partition, position, report in events(journal)
        if isinstance(report, ActionCredited | TapRecorded)
    ]
    assert [(a.position, a.source, a.record_id, a.resident) for a in listed(at)] == reported


def test_figures_are_those_of_the_event(at: Snapshot, journal: Journal) -> None:
    for said in of(journal, ActionCredited):
        [row] = [
            a for a in listed(at, source=said.source) if (a.record_id, a.resident) == (said.record_id, said.resident)
        ]
        assert row.action_id == action_id(said.source, said.record_id)
        assert (row.methodology, row.version, row.day) == (said.methodology, said.version, said.day)
        assert (row.county, row.reduction_mg, row.points) == (said.county, said.reduction_mg, said.points)


def test_a_tap_is_paired_when_its_ride_is_there_whichever_came_first(at: Snapshot) -> None:
    assert status(at, "m1") == "paired"  # its exit, m2, was taken back later: the tap stays used
    assert status(at, "m2") == "reversed"
    assert status(at, "m3") == "paired"  # refused as an exit without entry, until the entry came
    assert status(at, "m4") == "credited"
    assert status(at, "m5") == "pending"
    assert (status(at, "m6"), status(at, "m7")) == ("paired", "credited")


def test_an_exit_without_entry_is_refused_until_the_entry_comes(journal: Journal) -> None:
    seen = dict[str, str]()
    model = ReadModel("sqlite://")
    for partition in journal.heads():
        for entry in journal.entries(partition):
            model.apply(partition, [entry])
            with model.snapshot() as at:
                if tap := action(at, "szt", "m3"):
                    seen[tap.status] = tap.position
    model.close()
    assert list(seen) == ["refused", "paired"]


def test_another_source_s_tap_of_the_same_record_is_not_the_one_that_a_ride_took_before(model: ReadModel) -> None:
    city = City("sqlite://", china("2024-03-01T09:00"))
    found(city)
    city.do(RegisterSource(source="other", name="地铁", behaviours=("metro_in",), opens_accounts=True))
    city.tap(ANN, "t1", "in", china("2024-02-28T08:00"))
    city.tap(ANN, "t2", "out", china("2024-02-28T08:20"))
    city.act(ANN, "other", "t1", "metro_in", "1", "tap", china("2024-02-28T09:00"))
    follow(city.journal, model)  # in one batch
    city.journal.close()
    with model.snapshot() as at:
        assert (status(at, "t1"), status(at, "t2"), status(at, "t1", "other")) == ("paired", "credited", "pending")


def test_what_was_reversed_is_reversed_and_nothing_else(at: Snapshot, journal: Journal) -> None:
    taken_back = {(said.source, said.record_id) for said in of(journal, ActionReversed)}
    assert {(a.source, a.record_id) for a in listed(at, status="reversed")} == taken_back


def test_a_row_is_changed_without_reading_its_partition(journal: Journal) -> None:
    """However long it is: each statement goes by a whole key of what it looks for."""
    model, plans = ReadModel("sqlite://"), list[str]()

    def explain(connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if "actions" in statement and statement.startswith(("SELECT", "UPDATE", "DELETE")):
            driver = connection.connection.driver_connection
            explained = driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters[0] if many else parameters)
            plans.extend(row[3] for row in explained)

    event.listen(model.engine, "before_cursor_execute", explain)
    for partition in journal.heads():
        for entry in journal.entries(partition):
            model.apply(partition, [entry])
    model.close()
    assert {plan.partition("(")[2] for plan in plans} == {
        "record_id=?)",
        "partition=? AND position=?)",
    }


def test_one_record_that_two_partitions_took_at_once_is_two_rows(model: ReadModel) -> None:
    for partition in (1, 0):
        model.apply(partition, [ride(partition, 1, record_id="same")])
    with model.snapshot() as at:
        assert [a.resident for a in listed(at)] == ["res_0", "res_1"]
        assert action(at, "szt", "same") == listed(at)[0]


@pytest.mark.parametrize(
    "wanted",
    [
        {"source": "szt"},
        {"behaviour": "bus"},
        {"status": "paired"},
        {"from_day": date(2024, 2, 28)},
        {"until_day": date(2024, 2, 28)},
        {"source": "city", "behaviour": "walk", "from_day": date(2024, 2, 27), "until_day": date(2024, 2, 27)},
        {"source": "nobody"},
    ],
    ids=repr,
)
def test_filters_leave_what_they_name(at: Snapshot, wanted: dict[str, Any]) -> None:
    def fits(a: Action) -> bool:
        same = all(getattr(a, name) == value for name, value in wanted.items() if not name.endswith("_day"))
        return same and wanted.get("from_day", date.min) <= a.day <= wanted.get("until_day", date.max)

    assert listed(at, **wanted) == [a for a in listed(at) if fits(a)]


@pytest.mark.parametrize("limit", [1, 5])
def test_pages_follow_each_other_across_partitions(at: Snapshot, limit: int) -> None:
    pages, after = list[Action](), None
    while page := actions(at, behaviour="bus", after=after, limit=limit):
        pages += page
        after = page[-1].position
    assert pages == listed(at, behaviour="bus")
    assert len({a.position.split(":")[0] for a in pages}) > 1


@pytest.mark.parametrize("cursor", ["", "1", "1:", ":1", "a:b", "1:1:1", "-1:2", "1:9999999999999999", "²:1"])
def test_a_cursor_that_no_page_ended_with_is_refused(at: Snapshot, cursor: str) -> None:
    with pytest.raises(CursorInvalid):
        actions(at, after=cursor)


def test_an_action_that_was_not_reported_is_not_there(at: Snapshot) -> None:
    assert action(at, "szt", "nothing") is None
    assert action(at, "bike", "b1") is None
    assert action(at, "szt", "b1") is not None
    assert ANN in {a.resident for a in listed(at)}
