"""This installation's tables: each is read, says what its worked examples say, and is known by its digest."""

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from carbon_points.domain import methodology
from carbon_points.domain.methodology import (
    Methodologies,
    MethodologyAltered,
    NoMethodologyInForce,
    PublishMethodology,
    Used,
    calculate,
    check_quantity,
    digest_of,
    parse,
)
from carbon_points.domain.quantity import civil_day, decimal
from carbon_points.domain.refusal import Refusal
from carbon_points.methodologies import check, shipped
from tests.given import NOON, SEED, china, publish, seed_tables

TABLES = seed_tables()
EXAMPLES = sorted(SEED.glob("*/*.examples.toml"))


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def examples() -> list[Any]:
    """Every worked example, beside the text of its table."""
    return [
        pytest.param(path.with_name(path.name.replace(".examples", "")), example, id=f"{name(path)}: {example['why']}")
        for path in EXAMPLES
        for example in tomllib.loads(path.read_text())["example"]
    ]


@pytest.fixture(scope="module")
def known() -> Methodologies:
    return publish(*(path.read_text() for path in TABLES))


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_a_table_is_read_and_lies_where_its_id_and_version_say(path: Path) -> None:
    table = parse(path.read_text())
    assert (table.id, table.version) == (path.parent.name, path.stem)
    assert path.with_suffix(".examples.toml").exists(), "write its worked examples beside it"


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_worked_examples_lie_beside_a_table(path: Path) -> None:
    assert path.with_name(path.name.replace(".examples", "")) in TABLES


@pytest.mark.parametrize(("path", "example"), examples())
def test_a_worked_example_comes_out_as_written(path: Path, example: dict[str, Any]) -> None:
    table = parse(path.read_text())
    unit = example.get("unit", table.quantity.unit)
    if code := example.get("refused"):
        with pytest.raises(Refusal) as refused:
            check_quantity(table, decimal(example["quantity"]), unit)
        assert refused.value.code == code
        return
    used = {period: told(example.get("used", {}).get(period, {})) for period in methodology.PERIODS}
    check_quantity(table, decimal(example["quantity"]), unit)
    found = calculate(table, decimal(example["quantity"]), used)
    assert (found.counted, found.reduction_mg, found.points, list(found.limits)) == (
        Decimal(example["counted"]),
        example["reduction_mg"],
        example["points"],
        example["limits"],
    )


def told(used: dict[str, Any]) -> Used:
    return Used(used.get("count", 0), Decimal(used.get("quantity", "0")), used.get("points", 0))


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_every_table_has_examples_at_and_beyond_its_bounds(path: Path) -> None:
    table = parse(path.read_text())
    said = tomllib.loads(path.with_suffix(".examples.toml").read_text())["example"]
    counted = {Decimal(e["quantity"]) for e in said if "refused" not in e}
    assert {table.quantity.least, table.quantity.most} <= counted
    assert {e["refused"] for e in said if "refused" in e} >= {"quantity-below-least", "quantity-above-most"}


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_every_cap_of_a_table_cuts_something_in_its_examples(path: Path) -> None:
    table = parse(path.read_text())
    said = tomllib.loads(path.with_suffix(".examples.toml").read_text())["example"]
    caps = {
        f"{period}.{what}"
        for period in methodology.PERIODS
        for what in ("count", "quantity", "points")
        if getattr(getattr(table.caps, period), what) is not None
    }
    assert {limit for example in said for limit in example.get("limits", [])} == caps


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_a_factor_is_quoted_in_its_file_and_names_its_source(path: Path) -> None:
    factor = tomllib.loads(path.read_text())["factors"]["reduction"]
    assert isinstance(factor["value"], str), "quote it: a bare number is read as a float"
    assert factor["source"].strip()


def test_there_are_at_least_twelve_behaviours() -> None:
    assert len({path.parent.name for path in TABLES}) >= 12


def test_all_tables_together_can_be_published(known: Methodologies) -> None:
    assert {p.parent.name for p in TABLES} == set(known.tables)
    assert sum(len(versions) for versions in known.tables.values()) == len(TABLES)


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_a_file_altered_by_one_comment_has_another_digest_and_is_refused_once_published(
    path: Path, known: Methodologies
) -> None:
    text = path.read_text()
    altered = text + "# nobody will see this\n"
    table = parse(altered)
    assert digest_of(altered) != digest_of(text)
    with pytest.raises(MethodologyAltered):
        methodology.decide(
            known, PublishMethodology(methodology=table.id, version=table.version, table=altered), now=NOON
        )


def test_no_two_tables_share_a_digest() -> None:
    assert len({digest_of(path.read_text()) for path in TABLES}) == len(TABLES)


def test_versions_of_one_behaviour_begin_on_different_days(known: Methodologies) -> None:
    for versions in known.tables.values():
        begins = [p.table.adopted.from_ for p in versions]
        assert begins == sorted(set(begins))


@pytest.mark.parametrize(
    ("moment", "grams"),
    [
        ("2015-01-01 00:00", "40"),
        ("2024-12-31 23:59:59", "40"),
        ("2025-01-01 00:00", "93.3"),
        ("2030-01-01 00:00", "93.3"),
    ],
)
def test_a_shared_bicycle_counts_by_the_version_in_force_on_the_day_in_china(
    known: Methodologies, moment: str, grams: str
) -> None:
    published = known.for_behaviour("shared_bike", civil_day(china(moment)))
    assert published.table.factors.reduction.value == Decimal(grams)


def test_no_table_is_in_force_before_the_first_was_adopted(known: Methodologies) -> None:
    with pytest.raises(NoMethodologyInForce):
        known.for_behaviour("shared_bike", civil_day(china("2014-12-31 23:59")))


# -- what the program ships ------------------------------------------------------------------------------------------


def test_every_table_is_shipped_in_an_order_in_which_it_can_be_published() -> None:
    texts = [one.text for one in shipped()]
    assert sorted(texts) == sorted(path.read_text() for path in TABLES)
    assert sum(len(versions) for versions in publish(*texts).tables.values()) == len(TABLES)


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_the_program_s_own_check_finds_every_example_right(path: Path) -> None:
    text, examples = path.read_text(), path.with_suffix(".examples.toml").read_text()
    checked = check(text, examples)
    assert checked.wrong == []
    assert checked.examples == len(tomllib.loads(examples)["example"])


def test_the_program_s_own_check_names_the_example_that_comes_out_otherwise() -> None:
    [path] = [path for path in TABLES if name(path) == "walk/2024-1.toml"]
    examples = path.with_suffix(".examples.toml").read_text()
    wrong = check(path.read_text(), examples.replace("reduction_mg = 8200", "reduction_mg = 8201")).wrong
    assert len(wrong) == 1
    assert "500 steps are 8.2 g and a point" in wrong[0]
