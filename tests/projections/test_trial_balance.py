"""The trial balance: zero in every asset, after every single event."""

from collections import Counter

from carbon_points.domain.posting import postings
from carbon_points.journal.journal import Journal
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import ReadModel
from carbon_points.projections.rows import Batch, Made, Snapshot
from carbon_points.projections.trial_balance import ACCOUNTS, ASSETS, fold, trial_balance
from tests.projections.events import events

ZERO = {"mg": 0, "points": 0, "fen": 0}


def test_it_is_zero_after_each_event_that_is_applied(journal: Journal) -> None:
    model = ReadModel("sqlite://")
    for partition in journal.heads():
        for entry in journal.entries(partition):
            model.apply(partition, [entry])
            found = model.read(trial_balance)
            assert found.totals == ZERO, (partition, entry.position)
            assert found.positions[str(partition)] == entry.position
    model.close()


def test_each_event_alone_adds_nothing(journal: Journal) -> None:
    for partition, position, event in events(journal):
        made = Made()
        fold(Batch(partition, [(position, event)]), made)
        for asset in ASSETS:
            assert sum(amount for of, _, amount in made[ACCOUNTS].tuples() if of == asset) == 0


def test_accounts_stand_as_the_postings_of_the_log_add_up(at: Snapshot, journal: Journal) -> None:
    standing = Counter[tuple[str, str]]()
    for _, _, event in events(journal):
        for asset, name, amount in postings(event):
            kind = name.partition("/")[0]
            standing[asset, kind if kind in ("resident", "held", "debt") else name] += amount
    found = {(a.asset, a.account): a.amount for a in trial_balance(at).accounts}
    assert found == dict(standing)


def test_when_all_is_read_no_account_is_below_its_floor(at: Snapshot, journal: Journal) -> None:
    found = trial_balance(at)
    assert found.below_floor == []
    assert found.positions == {str(partition): head for partition, head in journal.heads().items()}


def test_an_account_below_its_floor_is_named(journal: Journal, model: ReadModel) -> None:
    follow(journal, model)
    name = "read.accounts" if model.engine.dialect.name == "postgresql" else "accounts"
    with model.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {name} SET amount = -1 WHERE asset = 'fen' AND account = 'fund'")
    found = model.read(trial_balance)
    assert found.below_floor == ["fen fund"]
    assert found.totals["fen"] != 0


def test_of_an_empty_log_it_is_zero(model: ReadModel) -> None:
    found = model.read(trial_balance)
    assert (found.totals, found.accounts, found.positions) == (ZERO, [], {})
