"""The read model: rows and position are one, whoever applies what, how often and in what batches."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import text

from carbon_points.journal.entry import Entry
from carbon_points.journal.journal import Journal
from carbon_points.projections import read_model, trial_balance
from carbon_points.projections.city import Within, by_day
from carbon_points.projections.loop import follow
from carbon_points.projections.read_model import Gap, ReadModel
from carbon_points.projections.rows import Batch, Made
from tests.projections.events import NOW, ride


@contextmanager
def opened(url: str) -> Iterator[ReadModel]:
    made = ReadModel(url)
    try:
        yield made
    finally:
        made.close()


def entries(journal: Journal) -> dict[int, list[Entry]]:
    return {partition: list(journal.entries(partition)) for partition in journal.heads()}


def dumped(journal: Journal, batch: int = 1_000) -> bytes:
    """The rows of a life, made in memory in batches of that size."""
    with opened("sqlite://") as made:
        for partition, all_of_it in entries(journal).items():
            for start in range(0, len(all_of_it), batch):
                made.apply(partition, all_of_it[start : start + batch])
        return made.dump()


class TestBytes:
    """The same log makes the same rows."""

    def test_batches_of_one_and_of_a_thousand_make_the_same_bytes(self, journal: Journal, model: ReadModel) -> None:
        for partition, all_of_it in entries(journal).items():
            for entry in all_of_it:
                model.apply(partition, [entry])
        assert model.dump() == dumped(journal, 1_000)

    def test_every_database_makes_the_same_bytes(self, journal: Journal, model: ReadModel) -> None:
        follow(journal, model)
        assert model.dump() == dumped(journal)

    @pytest.mark.parametrize("seed", range(5))
    def test_partitions_may_be_read_in_any_order(self, journal: Journal, seed: int) -> None:
        dice = random.Random(seed)
        left = {partition: list(some) for partition, some in entries(journal).items()}
        with opened("sqlite://") as made:
            while left:
                partition = dice.choice(sorted(left))
                size = dice.randint(1, 40)
                made.apply(partition, left[partition][:size])
                left[partition] = left[partition][size:]
                if not left[partition]:
                    del left[partition]
            assert made.dump() == dumped(journal)

    def test_a_dump_tells_every_row_of_every_table(self, journal: Journal) -> None:
        lines = dumped(journal).split(b"\n")
        for table in ("actions", "blocks", "accounts", "city", "positions", "retirements", "unpooled"):
            assert not lines[lines.index(table.encode()) + 1].isalpha(), f"{table} has no rows"


class TestPosition:
    """An entry counts once."""

    def test_what_was_applied_before_is_skipped(self, journal: Journal, model: ReadModel) -> None:
        first = entries(journal)[0]
        assert model.apply(0, first[:20]) == 20
        assert model.apply(0, first[:20]) == 20
        assert model.apply(0, first[10:30]) == 30
        with opened("sqlite://") as other:
            other.apply(0, first[:30])
            assert model.dump() == other.dump()

    def test_a_gap_is_refused_and_nothing_changes(self, journal: Journal, model: ReadModel) -> None:
        first = entries(journal)[0]
        model.apply(0, first[:5])
        before = model.dump()
        with pytest.raises(Gap, match=r"entry 7 .* does not follow 5"):
            model.apply(0, first[6:9])
        with pytest.raises(Gap):
            model.apply(0, [*first[5:8], *first[9:12]])
        assert model.dump() == before

    def test_a_crash_in_the_middle_changes_nothing(
        self, journal: Journal, model: ReadModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = entries(journal)[0]
        model.apply(0, first[:10])
        before = model.dump()

        def crash(_batch: Batch, _made: Made) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(read_model, "FEATURES", (*read_model.FEATURES, crash))
            with pytest.raises(KeyboardInterrupt):
                model.apply(0, first[10:])
        assert model.dump() == before
        follow(journal, model)
        assert model.dump() == dumped(journal)

    def test_two_who_apply_at_once_make_the_rows_of_one(self, journal: Journal, read_url: str) -> None:
        all_of_it, failures = entries(journal), list[Exception]()
        ready = threading.Barrier(4)

        def apply(order: Sequence[int]) -> None:
            try:
                with opened(read_url) as own:
                    ready.wait(timeout=60)
                    for partition in order:
                        for start in range(0, len(all_of_it[partition]), 7):
                            own.apply(partition, all_of_it[partition][start : start + 7])
            except Exception as error:  # noqa: BLE001  # told to the test's own thread
                failures.append(error)

        partitions = sorted(all_of_it)
        orders = [partitions, partitions, partitions[::-1], partitions[1:] + partitions[:1]]
        threads = [threading.Thread(target=apply, args=(order,)) for order in orders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        with opened(read_url) as model:
            assert model.positions() == journal.heads()
            assert model.dump() == dumped(journal)

    def test_who_adds_to_the_same_rows_in_other_orders_does_not_wait_in_a_circle(self, read_url: str) -> None:
        """Two partitions share the rows of 500 days, and meet them from both ends."""
        days = [NOW + timedelta(days=n) for n in range(500)]
        orders, failures, batches = (days, days[::-1]), list[Exception](), 8
        ready = threading.Barrier(len(orders))

        def apply(partition: int) -> None:
            try:
                with opened(read_url) as own:
                    ready.wait(timeout=60)
                    for batch in range(batches):
                        first = batch * len(days) + 1
                        own.apply(partition, [ride(partition, first + n, at) for n, at in enumerate(orders[partition])])
            except Exception as error:  # noqa: BLE001  # told to the test's own thread
                failures.append(error)

        threads = [threading.Thread(target=apply, args=(partition,)) for partition in range(len(orders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        with opened(read_url) as model:
            assert {t.actions for t in model.read(by_day, Within())} == {batches * len(orders)}


def test_who_opens_a_new_model_at_once_all_get_it(read_url: str) -> None:
    failures, ready = list[Exception](), threading.Barrier(4)

    def create() -> None:
        ready.wait(timeout=60)
        try:
            ReadModel(read_url).close()
        except Exception as error:  # noqa: BLE001  # told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(ready.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class TestWaiting:
    """A reader can wait for its own write."""

    def test_waiting_ends_when_the_position_is_reached(self, journal: Journal, model: ReadModel) -> None:
        first = entries(journal)[0]
        applying = threading.Timer(0.2, model.apply, (0, first[:10]))
        applying.start()
        assert model.wait_for(0, 10, timeout=30)
        applying.join()
        assert model.positions() == {0: 10}

    def test_another_process_may_be_the_one_who_applies(
        self, journal: Journal, model: ReadModel, read_url: str
    ) -> None:
        with opened(read_url) as other:
            other.apply(0, entries(journal)[0][:10])
        assert model.wait_for(0, 10, timeout=0)

    def test_waiting_in_vain_ends_in_time(self, model: ReadModel) -> None:
        begun = time.monotonic()
        assert not model.wait_for(0, 1, timeout=0.2)
        assert 0.2 <= time.monotonic() - begun < 5


class TestSnapshot:
    """All reads of a snapshot see one moment."""

    def test_what_is_applied_later_is_not_seen(self, journal: Journal, model: ReadModel) -> None:
        first = entries(journal)[0]
        model.apply(0, first[:10])
        with model.snapshot() as at:
            before = trial_balance.trial_balance(at)
            model.apply(0, first[10:])
            assert trial_balance.trial_balance(at) == before
        assert before.positions == {"0": 10}
        assert model.read(trial_balance.trial_balance).positions == {"0": len(first)}


class TestShape:
    """Tables of another program's shape are made anew."""

    def test_tables_of_another_shape_are_made_anew_and_empty(
        self, journal: Journal, model: ReadModel, read_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        follow(journal, model)
        with opened(read_url) as same:
            assert same.positions() == journal.heads()
        monkeypatch.setattr(read_model, "FOLD", read_model.FOLD + 1)
        with opened(read_url) as later:
            assert later.positions() == {}
            follow(journal, later)
            assert later.positions() == journal.heads()

    def test_columns_that_are_no_more_go_with_their_table(self, model: ReadModel, read_url: str) -> None:
        places = "read." if "postgres" in read_url else ""
        with model.engine.begin() as connection:
            connection.execute(text(f"DROP TABLE {places}actions"))
            connection.execute(text(f"CREATE TABLE {places}actions (former int)"))
            connection.execute(text(f"UPDATE {places}shape SET digest = 'former'"))
        with opened(read_url) as later:
            assert later.dump().startswith(b"accounts\nactions\nbatches\nblocks\n")
