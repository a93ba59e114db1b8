"""Methodologies: published once, in force by date, and the arithmetic that they name."""

from datetime import date
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.methodology import (
    PERIODS,
    BehaviourUnknown,
    Calculation,
    Methodologies,
    MethodologyAltered,
    MethodologyInvalid,
    MethodologyPublished,
    NoMethodologyInForce,
    PublishMethodology,
    QuantityAboveMost,
    QuantityBelowLeast,
    UnitMismatch,
    Used,
    VersionNotLater,
    calculate,
    check_quantity,
    decide,
    digest_of,
    expires_on,
    parse,
)
from tests.given import NOON, metro, publish, table

UNUSED = {period: Used() for period in PERIODS}


def publishing(text: str, name: str = "bus", version: str = "1") -> PublishMethodology:
    return PublishMethodology(methodology=name, version=version, table=text)


# -- publishing ------------------------------------------------------------------------------------------------------


def test_a_table_is_published_as_its_own_text_with_its_digest() -> None:
    [event] = decide(Methodologies(), publishing(table()), now=NOON)
    assert isinstance(event, MethodologyPublished)
    assert (event.methodology, event.version, event.table) == ("bus", "1", table())
    assert event.digest == digest_of(table())
    assert len(event.digest) == 32


def test_the_same_text_again_changes_nothing() -> None:
    assert decide(publish(table()), publishing(table()), now=NOON) == []


def test_the_refusals_of_publishing_come_in_order() -> None:
    known = publish(table(), table(version="2", begins="2024-01-01"))
    with pytest.raises(MethodologyInvalid):  # the place is wrong, and the text is another, and it is not later
        decide(known, publishing(table(grams="3"), version="9"), now=NOON)
    with pytest.raises(MethodologyAltered):  # the text is another, and it is not later
        decide(known, publishing(table(grams="3")), now=NOON)
    with pytest.raises(VersionNotLater):
        decide(known, publishing(table(version="3", begins="2024-01-01"), version="3"), now=NOON)
    assert decide(known, publishing(table(version="3", begins="2024-01-02"), version="3"), now=NOON)


def test_a_behaviour_is_counted_by_one_methodology_only() -> None:
    known = publish(metro())
    with pytest.raises(MethodologyInvalid):
        decide(known, publishing(table("metro_in"), "metro_in"), now=NOON)
    second = metro().replace('id = "metro"', 'id = "subway"')
    with pytest.raises(MethodologyInvalid):
        decide(known, publishing(second, "subway"), now=NOON)


def test_a_table_with_taps_counts_its_entry_and_its_exit() -> None:
    known = publish(metro())
    for behaviour in ("metro", "metro_in", "metro_out"):
        assert known.for_behaviour(behaviour, NOON.date()).table.id == "metro"


# -- in force --------------------------------------------------------------------------------------------------------


def test_the_version_in_force_is_the_last_that_has_begun() -> None:
    known = publish(table(version="1", begins="2020-01-01"), table(version="2", begins="2024-01-01"))
    found = {day: known.for_behaviour("bus", day).table.version for day in (date(2023, 12, 31), date(2024, 1, 1))}
    assert found == {date(2023, 12, 31): "1", date(2024, 1, 1): "2"}


def test_an_unknown_behaviour_is_refused_before_its_day_is_looked_at() -> None:
    with pytest.raises(BehaviourUnknown):
        publish(table()).for_behaviour("flying", date(1900, 1, 1))


@pytest.mark.parametrize("day", [date(2019, 12, 31), date(2023, 1, 1), date(2030, 1, 1)])
def test_a_day_before_the_first_and_from_the_end_of_the_last_on_has_no_table(day: date) -> None:
    with pytest.raises(NoMethodologyInForce):
        publish(table(until="2023-01-01")).for_behaviour("bus", day)


def test_a_gap_between_two_versions_belongs_to_neither() -> None:
    known = publish(table(until="2021-01-01"), table(version="2", begins="2022-01-01"))
    assert known.for_behaviour("bus", date(2020, 12, 31)).table.version == "1"
    with pytest.raises(NoMethodologyInForce):
        known.for_behaviour("bus", date(2021, 12, 31))
    assert known.for_behaviour("bus", date(2022, 1, 1)).table.version == "2"


def test_a_version_is_found_by_its_name_or_not_at_all() -> None:
    known = publish(table())
    assert (found := known.exact("bus", "1"))
    assert found.digest == digest_of(table())
    assert known.exact("bus", "2") is None
    assert known.exact("tram", "1") is None


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=fault)
        for fault, text in {
            "empty": "",
            "not TOML": "\x00",
            "a key twice": table() + '\nid = "x"',
            "an unknown key": table() + "\nextra = 1",
            "a cap of an unknown period": table(caps="week = { count = 1 }"),
            "no title in Chinese": table().replace(', zh = "测试"', ""),
            "an unknown formula": table().replace("quantity_times_factor", "eval"),
            "an unknown rounding": table(how="up"),
            "rounded to something else": table().replace("1 mg", "1 g"),
            "an id in capitals": table("Bus"),
            "an id with a space": table("b us"),
            "an id with a slash": table("b/us"),
            "a long id": table("b" * 33),
            "a version with a space": table(version="2025 1"),
            "a long version": table(version="1" * 17),
            "a least of nothing": table(least="0"),
            "a least below zero": table(least="-1"),
            "a most below the least": table(least="2", most="1"),
            "an endless most": table(most="Infinity"),
            "a factor below zero": table(grams="-1"),
            "an endless factor": table(grams="Infinity"),
            "a factor of another unit": table().replace("gCO2e/km", "gCO2e/mile"),
            "points per another unit": table(per="1 mile"),
            "points per nothing": table(per="0 km"),
            "points per nobody knows what": table(per="ride"),
            "points below zero": table(points=-1),
            "no time to live": table(months=0),
            "a day with a time": table().replace("2020-01-01", "2020-01-01T00:00:00"),
            "a factor that is a float": table().replace('value = "2"', "value = 2.5"),
            "a cap that is a float": table(caps="day = { quantity = 1.5 }"),
            "a factor with an exponent": table(grams="1e5"),
            "a factor with an underscore": table(grams="1_0"),
            "a factor in full-width digits": table(grams="１"),
            "a factor that is no number": table(grams="NaN"),
            "a bound that is no number": table(least="NaN"),
            "a cap that is no number": table(caps='day = { quantity = "NaN" }'),
            "a cap below zero": table(caps="day = { count = -1 }"),
            "points per what is no number": table(per="x km"),
            "an end before its beginning": table(until="2019-12-31"),
            "an end on its first day": table(until="2020-01-01"),
            "points that outlive the calendar": table(months=120_000),
            "more points than a ledger holds": table(points=2**63),
            "an entry that is also the exit": metro(
                taps='entry = "tap"\nexit = "tap"\nunit = "tap"\nwithin_minutes = 240'
            ),
            "no time between the taps": metro(taps='entry = "in"\nexit = "out"\nunit = "tap"\nwithin_minutes = 0'),
            "a number of five thousand digits": table().replace("points = 10", "points = 1" + "0" * 5000),
            "three thousand brackets": "a = " + "[" * 3000,
        }.items()
    ],
)
def test_a_table_that_makes_no_sense_is_refused_before_it_is_published(text: str) -> None:
    with pytest.raises(MethodologyInvalid):
        parse(text)


# -- the quantity ----------------------------------------------------------------------------------------------------


def test_the_refusals_of_a_quantity_come_in_order() -> None:
    rule = parse(table(least="1", most="100"))
    with pytest.raises(UnitMismatch):
        check_quantity(rule, Decimal(0), "mile")
    with pytest.raises(QuantityBelowLeast):
        check_quantity(rule, Decimal("0.999999"), "km")
    with pytest.raises(QuantityAboveMost):
        check_quantity(rule, Decimal("100.000001"), "km")
    for edge in ("1", "100"):
        check_quantity(rule, Decimal(edge), "km")


# -- arithmetic ------------------------------------------------------------------------------------------------------


def used(**periods: Used) -> dict[str, Used]:
    return UNUSED | periods


def test_a_quantity_within_all_caps_counts_whole() -> None:
    rule = parse(table(caps="day = { count = 3, quantity = 50, points = 30 }".replace("50", '"50"')))
    found = calculate(rule, Decimal(30), used(day=Used(2, Decimal(20), 20)))
    assert found == Calculation(Decimal(30), 60_000, 10, ())


@pytest.mark.parametrize("period", PERIODS)
def test_a_used_up_count_leaves_nothing(period: str) -> None:
    rule = parse(table(caps=f"{period} = {{ count = 2 }}"))
    assert calculate(rule, Decimal(5), used(**{period: Used(1)})).counted == 5
    for had in (2, 3):
        found = calculate(rule, Decimal(5), used(**{period: Used(had)}))
        assert found == Calculation(Decimal(0), 0, 0, (f"{period}.count",))


@pytest.mark.parametrize("period", PERIODS)
def test_a_quantity_cap_cuts_the_quantity_and_the_points_that_follow_from_it(period: str) -> None:
    rule = parse(table(per="1 km", points=1, caps=f'{period} = {{ quantity = "10" }}'))
    found = calculate(rule, Decimal(5), used(**{period: Used(1, Decimal("7.5"))}))
    assert found == Calculation(Decimal("2.5"), 5_000, 2, (f"{period}.quantity",))
    beyond = calculate(rule, Decimal(5), used(**{period: Used(1, Decimal(11))}))
    assert beyond == Calculation(Decimal(0), 0, 0, (f"{period}.quantity",))


@pytest.mark.parametrize("period", PERIODS)
def test_a_points_cap_cuts_the_points_alone(period: str) -> None:
    rule = parse(table(caps=f"{period} = {{ points = 12 }}"))
    found = calculate(rule, Decimal(5), used(**{period: Used(1, Decimal(5), 10)}))
    assert found == Calculation(Decimal(5), 10_000, 2, (f"{period}.points",))


def test_only_what_cut_something_is_listed_day_before_month_before_year() -> None:
    caps = 'day = { quantity = "8", points = 9 }\nmonth = { quantity = "9" }\nyear = { quantity = "4", points = 20 }'
    found = calculate(parse(table(caps=caps)), Decimal(10), UNUSED)
    assert found == Calculation(Decimal(4), 8_000, 9, ("day.quantity", "day.points", "year.quantity"))


def test_points_are_earned_by_whole_amounts_only() -> None:
    rule = parse(table(per="0.5 km", points=3, least="0.1"))
    earned = [calculate(rule, Decimal(q), UNUSED).points for q in ("0.499999", "0.5", "0.999999", "1", "1.5")]
    assert earned == [0, 3, 3, 6, 9]


def test_the_program_s_own_decimal_context_changes_no_figure() -> None:
    rule = parse(table(grams="0.123456789123", most="999999999", per="0.000001 km", points=1, how="down"))
    quantity = Decimal("999999999.999999") - 1
    expected = calculate(rule, quantity, UNUSED)
    with localcontext() as context:
        context.prec = 3
        assert calculate(rule, quantity, UNUSED) == expected


@given(
    st.decimals("0.000001", "999999", places=6),
    st.decimals("0", "999999", places=9),
    st.sampled_from(["half-even", "half-up", "down"]),
)
def test_a_reduction_is_quantity_times_factor_rounded_once(quantity: Decimal, grams: Decimal, how: str) -> None:
    rule = parse(table(grams=f"{grams:f}", least="0.000001", most="999999", how=how))
    exact = Fraction(quantity) * Fraction(grams) * 1000
    floor = exact.numerator // exact.denominator
    rest = exact - floor
    up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (how == "half-up" or floor % 2 == 1))
    assert calculate(rule, quantity, UNUSED).reduction_mg == floor + (up and how != "down")


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(0, 5), st.integers(0, 60), st.integers(0, 40))
def test_a_day_s_actions_together_never_pass_its_caps(kms: list[int], count: int, quantity: int, points: int) -> None:
    caps = f'day = {{ count = {count}, quantity = "{quantity}", points = {points} }}'
    rule = parse(table(caps=caps))
    total, counting = Used(), 0
    for km in kms:
        found = calculate(rule, Decimal(km), used(day=total))
        counting += found.counted > 0
        total = Used(total.count + 1, total.quantity + found.counted, total.points + found.points)
    assert counting <= count
    assert total.quantity == (min(sum(kms[:count]), quantity))
    assert total.points <= points


@pytest.mark.parametrize(
    ("months", "at", "day", "last"),
    [
        (12, "month-end", date(2025, 6, 15), date(2026, 6, 30)),
        (24, "month-end", date(2025, 2, 28), date(2027, 2, 28)),
        (12, "day", date(2024, 2, 29), date(2025, 2, 28)),
        (1, "day", date(2025, 1, 31), date(2025, 2, 28)),
    ],
)
def test_points_live_for_the_months_of_their_rule(months: int, at: Any, day: date, last: date) -> None:
    assert expires_on(parse(table(months=months, expire_at=at)), day) == last
