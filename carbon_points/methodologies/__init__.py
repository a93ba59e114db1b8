"""The tables that this release ships: data, with their worked examples beside them. See README.md in this folder."""

import tomllib
from collections.abc import Iterator
from decimal import Decimal
from importlib.resources import files

import msgspec
from msgspec import Struct, structs

from carbon_points.domain.methodology import PERIODS, Table, Used, calculate, check_quantity, parse
from carbon_points.domain.quantity import decimal
from carbon_points.domain.refusal import Refusal


class Shipped(Struct, frozen=True):
    table: Table
    text: str
    examples: str


def shipped() -> list[Shipped]:
    """Every shipped version, in the order in which it can be published: by its first day."""
    return sorted(_read(), key=lambda s: (s.table.adopted.from_, s.table.id))


def _read() -> Iterator[Shipped]:
    for folder in files(__name__).iterdir():
        if not folder.is_dir():
            continue
        for file in folder.iterdir():
            if file.name.endswith(".toml") and not file.name.endswith(".examples.toml"):
                examples = folder / file.name.replace(".toml", ".examples.toml")
                text = file.read_text("utf-8")
                yield Shipped(parse(text), text, examples.read_text("utf-8"))


# -- worked examples -------------------------------------------------------------------------------------------------


class _Period(Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 0
    quantity: Decimal = Decimal(0)
    points: int = 0


class _Example(Struct, frozen=True, forbid_unknown_fields=True):
    """An input with either its exact result or the code of its refusal."""

    why: str
    quantity: str
    used: dict[str, _Period] = {}
    counted: str | None = None
    reduction_mg: int | None = None
    points: int | None = None
    limits: tuple[str, ...] = ()
    refused: str | None = None


class _Examples(Struct, frozen=True, forbid_unknown_fields=True):
    example: list[_Example]


class Checked(Struct, frozen=True):
    """How many examples of a table were run, and a sentence for each that came out otherwise."""

    table: str
    examples: int
    wrong: list[str]


def check(text: str, examples: str) -> Checked:
    """Run a table's worked examples. Raises MethodologyInvalid, or msgspec's errors for examples that are none."""
    table = parse(text)
    found = msgspec.convert(tomllib.loads(examples), _Examples).example
    name = f"{table.id} {table.version}"
    wrong = [f"{name}: {e.why}: {got}" for e in found if (got := _result(table, e)) != _expected(e)]
    return Checked(name, len(found), wrong)


def _result(table: Table, example: _Example) -> object:
    used = {p: Used(*structs.astuple(example.used.get(p, _Period()))) for p in PERIODS}
    try:
        quantity = decimal(example.quantity)
        check_quantity(table, quantity, table.quantity.unit)
    except Refusal as refusal:
        return refusal.code
    return structs.astuple(calculate(table, quantity, used))


def _expected(example: _Example) -> object:
    if example.refused:
        return example.refused
    return (Decimal(example.counted or "NaN"), example.reduction_mg, example.points, example.limits)
