"""Whatever the network and the server do, every call ends in one way, and the books are those of the calls that
succeeded. Each history follows from its seed; a failure prints it.

`make test-terminals` runs a thousand; with `SEEDS=10000` ten thousand; `SEED=n` that one alone, and prints its log.
"""

import os
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from carbon_points.__main__ import Compared
from carbon_points.audit.verify import verify
from carbon_points.domain.account import Account
from carbon_points.domain.merchant import Merchant
from carbon_points_terminal import Call
from carbon_points_terminal.call import Sale
from tests.simulation.books import calls, sales
from tests.simulation.world import POINTS, STOCK, Server, Till, World, server

QUICK, LONG = 1_000, 10_000
CHUNK = 50  # histories on one server, one after another: as much as one worker takes at a time
PRICE = 2
ENDED = {"approved", "declined", "reversed", "not-sent"}
ONLY = os.environ.get("SEED")


def _chunks() -> list[object]:
    """As many seeds as were asked for; else the quick run's, and the others of the long one."""
    if ONLY:
        return [pytest.param(range(int(ONLY), int(ONLY) + 1), id=f"seed {ONLY}")]
    asked = os.environ.get("SEEDS")
    bounds = [*range(0, int(asked or LONG), CHUNK), int(asked or LONG)]
    return [
        pytest.param(
            range(first, end),
            id=f"seeds {first} to {end - 1}",
            marks=[pytest.mark.long] if not asked and first >= QUICK else [],
        )
        for first, end in pairwise(bounds)
    ]


@pytest.mark.parametrize("seeds", _chunks())
def test_every_call_ends_once_and_the_books_are_those_of_the_calls_that_succeeded(seeds: range) -> None:
    if ONLY:
        print("\n".join(history(seeds.start)))  # noqa: T201  # what was asked for
        return
    met = _histories(seeds)
    # What was tried at all: a simulation in which nothing goes wrong proves nothing.
    for event in ("declined", "reversed", "the server dies", "loses power", "the finisher ends"):
        assert met[event] >= len(seeds) // 10, met
    assert met["approved"] > 5 * len(seeds), met


def test_the_same_seed_has_the_same_history() -> None:
    for seed in (3, 17):
        first, again = history(seed), history(seed)
        assert first == again
    assert history(3) != history(4)


def history(seed: int) -> list[str]:
    with server() as one:
        return lived(one, seed).log


def _histories(seeds: range) -> Counter[str]:
    met = Counter[str]()
    with server() as one:
        for seed in seeds:
            log = lived(one, seed).log
            met.update(word for line in log for word in _MET if word in line)
        with one.installation.read_model.snapshot() as snapshot:
            report = verify(one.installation.journal, read_model=Compared(snapshot))
        assert report.ok, (seeds, report.first_wrong, report.read_model)
    return met


_MET = ("approved", "declined", "reversed", "the server dies", "loses power", "the finisher ends")


def lived(one: Server, seed: int) -> World:
    """A history, and what must hold at its end."""
    world = World(one, seed)
    try:
        world.live()
        check(world)
    except BaseException as error:
        tail = "\n".join(world.log[-60:])
        raise AssertionError(f"seed {seed}: {error!r}\n{tail}") from error
    return world


# -- what must hold --------------------------------------------------------------------------------------------------


def check(world: World) -> None:
    spent, items = defaultdict[str, int](int), 0
    for till in world.tills:
        assert not till.terminal.unresolved(), "every call has its end"
        for call in calls(till.journal):
            assert call.outcome is not None
            assert call.outcome.result in ENDED
        for sale, points in sales(till.journal):
            spent[till.buyers[sale.reference]] += points
            if isinstance(sale.ask, Sale) and sale.ask.offer:
                items += points // 5
            same_as_the_platform(world, till, sale, points)
        agreed(world, till)
    journal = world.server.installation.journal
    for resident in world.residents:
        known: Account = journal.state(resident)
        at = world.server.at
        assert (known.available(at), known.held(at)) == (POINTS - spent[resident], 0), resident
    shop: Merchant = journal.state(f"merchant/{world.merchant}", [("offers", "cup")])
    cup = shop.offers["cup"]
    assert (cup.stock, cup.reserved, cup.sold) == (STOCK - items, 0, items), "the stock is exact"
    assert world.server.installation.finisher.finish() == 0, "nothing is left to be finished"


def agreed(world: World, till: Till) -> None:
    """Both sides count the same in every batch, and the last one is closed."""
    closed = till.closed()
    assert closed is not None
    assert closed.answer == "agreed", closed
    totals = till.journal.totals(closed.batch)
    assert (closed.totals.sales, closed.totals.refunds, closed.totals.reversals) == (
        totals.sales,
        totals.refunds,
        totals.reversals,
    )


def same_as_the_platform(world: World, till: Till, sale: Call, points: int) -> None:
    """The platform's redemption of that reference says the same."""
    from carbon_points.api.installation import redemption_id_of  # noqa: PLC0415
    from carbon_points.directory import Caller  # noqa: PLC0415

    installation = world.server.installation
    name = redemption_id_of(Caller("", "terminal", f"{world.merchant}/{till.name}"), sale.reference)
    known: Account = installation.journal.state(till.buyers[sale.reference], [("redemptions", name)])
    redemption = known.redemptions.get(name)
    assert sale.outcome is not None
    if redemption is None:
        assert (sale.outcome.result, points) != ("approved", 0) or points == 0
        assert sale.outcome.result != "approved", sale
        return
    assert redemption.captured_points - redemption.refunded_points == points, (sale, redemption)
    assert redemption.captured_fen - redemption.refunded_fen == _worth(sale, points), (sale, redemption)
    assert redemption.status not in ("held", "confirming")
    assert (redemption.status == "declined") <= (sale.outcome.result in ("declined", "reversed")), (sale, redemption)


def _worth(sale: Call, points: int) -> int:
    assert isinstance(sale.ask, Sale)
    return points // 5 * 9 if sale.ask.offer else points * PRICE
