"""City totals: what was done where and when, exactly, with reversed actions taken back."""

from collections import Counter
from datetime import date
from decimal import Decimal

import pytest

from carbon_points.domain.account import ActionCredited, ActionReversed, RecordAction, ReverseAction
from carbon_points.journal.journal import Journal
from carbon_points.projections.city import Within, by_behaviour, by_county, by_day
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import Snapshot
from tests.audit.scenario import ANN, City, china, found
from tests.projections.events import of

ALL = Within()


def counting(journal: Journal) -> list[ActionCredited]:
    """Credited actions that were not reversed. The scenario reverses no record that two residents have."""
    taken_back = {(event.source, event.record_id) for event in of(journal, ActionReversed)}
    return [event for event in of(journal, ActionCredited) if (event.source, event.record_id) not in taken_back]


def test_days_add_up_what_still_counts(at: Snapshot, journal: Journal) -> None:
    actions, mg, points = Counter[date](), Counter[date](), Counter[date]()
    for event in counting(journal):
        actions[event.day] += 1
        mg[event.day] += event.reduction_mg
        points[event.day] += event.points
    assert [(t.day, t.actions, t.reduction_mg, t.points) for t in by_day(at, ALL) if t.actions] == [
        (day, actions[day], mg[day], points[day]) for day in sorted(actions)
    ]


def test_behaviours_add_up_quantities_exactly(at: Snapshot, journal: Journal) -> None:
    counted = dict[str, Decimal]()
    for event in counting(journal):
        counted[event.methodology] = counted.get(event.methodology, Decimal(0)) + event.counted
    assert {t.behaviour: t.counted for t in by_behaviour(at, ALL)} == counted
    assert counted["waste_sorting"] == Decimal("2.469134")


def test_quantities_of_a_city_do_not_outgrow_the_database(model: ReadModel) -> None:
    steps = 9_000_000_000_000_000_000
    for day in ("2030-01-01", "2030-01-02"):
        values = f"('{day}', 'walk', '', 1, {steps}, 0, 0)"
        name = "read.city" if model.engine.dialect.name == "postgresql" else "city"
        with model.engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO {name} VALUES {values}")
    [walk] = model.read(by_behaviour, Within(from_day=date(2030, 1, 1)))
    assert walk.counted == Decimal(18_000_000_000_000)


def test_counties_add_up_and_one_is_nobodys(at: Snapshot, journal: Journal) -> None:
    expected = Counter(event.county for event in counting(journal))
    assert {t.county: t.actions for t in by_county(at, ALL)} == expected
    assert None in expected


@pytest.mark.parametrize(
    "within",
    [
        Within(from_day=date(2024, 2, 28)),
        Within(until_day=date(2024, 2, 27)),
        Within(from_day=date(2024, 2, 28), until_day=date(2024, 2, 28), behaviour="bus"),
        Within(county="440300"),
        Within(from_day=date(2031, 1, 1)),
    ],
    ids=repr,
)
def test_what_lies_outside_is_not_counted(at: Snapshot, journal: Journal, within: Within) -> None:
    expected = [
        event
        for event in counting(journal)
        if (within.from_day or date.min) <= event.day <= (within.until_day or date.max)
        and within.behaviour in (None, event.methodology)
        and within.county in (None, event.county)
    ]
    for totals in (by_day(at, within), by_behaviour(at, within), by_county(at, within)):
        assert sum(t.actions for t in totals) == len(expected)
        assert sum(t.reduction_mg for t in totals) == sum(e.reduction_mg for e in expected)


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "in two"])
def test_a_reversal_takes_back_all_of_an_action_where_it_was_done(model: ReadModel, together: bool) -> None:
    city = City("sqlite://", china("2024-03-01T09:00"))
    found(city)
    city.bus(ANN, "kept", china("2024-02-28T08:00"))
    record = RecordAction(
        resident=ANN,
        source="szt",
        record_id="taken-back",
        behaviour="bus",
        quantity=Decimal(1),
        unit="trip",
        occurred_at=china("2024-02-28T09:00"),
        county="330502",
    )
    city.do(record)
    if not together:
        follow(city.journal, model)
        assert {t.county: t.actions for t in model.read(by_county, ALL)} == {"330502": 1, "330523": 1}
    city.do(ReverseAction(resident=ANN, source="szt", record_id="taken-back", reason="misread"))
    follow(city.journal, model)
    city.journal.close()
    totals = {t.county: (t.actions, t.reduction_mg, t.points) for t in model.read(by_county, ALL)}
    assert totals == {"330502": (0, 0, 0), "330523": (1, 80_000, 10)}
    [bus] = model.read(by_behaviour, ALL)
    assert bus.counted == 1
