"""A whole log put into an empty model, as a rebuild does it: what following makes, whatever is held for how long."""

from typing import Any

import pytest
from sqlalchemy import inspect

from carbon_points.journal.journal import Journal
from carbon_points.projections import filling
from carbon_points.projections.actions import ACTIONS
from carbon_points.projections.filling import fill
from carbon_points.projections.loop import follow, rebuild
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import metadata
from tests.projections.events import ride


@pytest.fixture(scope="session")
def followed(journal: Journal) -> bytes:
    made = ReadModel("sqlite://")
    follow(journal, made)
    dumped = made.dump()
    made.close()
    return dumped


def _where(index: Any) -> dict[str, str]:
    return {name: str(option) for name, option in index.get("dialect_options", {}).items()}


def keys_and_indexes(model: ReadModel) -> dict[str, Any]:
    looked, schema = inspect(model.engine), model.schema if model.on_postgres else None
    return {
        name: (
            looked.get_pk_constraint(name, schema),
            sorted((str(i["name"]), i["column_names"], _where(i)) for i in looked.get_indexes(name, schema)),
        )
        for name in metadata.tables
    }


@pytest.mark.parametrize(
    "sizes",
    [(1_000, 20_000, 200_000), (1, 1, 1), (3, 5, 10), (7, 1_000, 1), (2, 1, 1_000)],
    ids=["all held", "nothing held", "a little", "no keys", "no rows"],
)
def test_it_makes_what_following_makes(
    journal: Journal, model: ReadModel, followed: bytes, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    stood = keys_and_indexes(model)
    for name, size in zip(("CHUNK", "ROWS_HELD", "KEYS_HELD"), sizes, strict=True):
        monkeypatch.setattr(filling, name, size)
    fill(model, journal)
    assert model.dump() == followed
    assert model.positions() == journal.heads()
    assert keys_and_indexes(model) == stood
    assert follow(journal, model) == 0


@pytest.mark.parametrize("record", ['a "b"', "a\\b", "\\N", "null", "a,b", "公交,1", "a\nb\r\tc", "]\n[", "\\."])
def test_a_text_is_stored_as_it_is(model: ReadModel, record: str) -> None:
    model.apply(0, [ride(0, 1, record_id=record), ride(0, 2)])
    with model.snapshot() as at:
        assert at.one(ACTIONS.select().where(ACTIONS.c.position == 1)).record_id == record


def test_what_breaks_off_leaves_nothing(
    journal: Journal, model: ReadModel, read_url: str, followed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(journal, model)
    monkeypatch.setattr(filling, "ROWS_HELD", 10)
    calls, copied = iter(range(100)), filling.write

    def failing(*arguments: Any) -> None:
        if next(calls) == 3:
            raise OSError("no space left")
        copied(*arguments)

    monkeypatch.setattr(filling, "write", failing)
    monkeypatch.setattr(filling, "copy", lambda *_: False)
    with pytest.raises(OSError, match="no space left"):
        rebuild(journal, read_url)
    assert model.dump() == followed
    if model.on_postgres:
        assert "read_next" not in inspect(model.engine).get_schema_names()
