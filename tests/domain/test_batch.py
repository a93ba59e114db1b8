"""A batch is ended by its terminal, if both sides count the same, or by itself if anything moved in it; once."""

from typing import Any

import pytest

from carbon_points.domain.event import Command
from carbon_points.domain.merchant import EnrolTerminal, Merchant, RegisterMerchant, TerminalUnknown, decide, evolve
from carbon_points.domain.order import (
    BatchClosed,
    BatchNotOpen,
    CloseBatch,
    FollowOrder,
    NothingInBatch,
    PlaceOrder,
    ReversalMismatch,
    ReverseOrder,
    Tally,
    Totals,
    TotalsDiffer,
    UseRefund,
)
from tests.given import NOON

AT: dict[str, Any] = {"merchant": "bakery", "terminal": "till-1"}
SALE = {"ended": "captured", "captured_points": 10, "captured_fen": 20}
ONE_SALE = Totals(sales=Tally(1, 10, 20))


def closing(batch: int = 1, **said: Any) -> CloseBatch:
    return CloseBatch(**({"batch": batch} | AT | said))


def does(merchant: Merchant, command: Command) -> list[Any]:
    events = decide(merchant, command, now=NOON)
    for event in events:
        evolve(merchant, event)
    return events


@pytest.fixture
def merchant() -> Merchant:
    """With a sale of 10 points in the first batch of its terminal."""
    made = Merchant("bakery")
    does(made, RegisterMerchant(merchant="bakery", name="面包坊", fen_per_point=2))
    for terminal in ("till-1", "till-2"):
        does(made, EnrolTerminal(merchant="bakery", terminal=terminal))
    sold(made, "d1")
    return made


def sold(merchant: Merchant, name: str, **more: Any) -> list[Any]:
    does(merchant, PlaceOrder(redemption_id=name, resident="res_1", points=10, hold_seconds=300, **AT))
    return does(merchant, FollowOrder(redemption_id=name, **(AT | SALE | more)))


def test_what_both_count_alike_is_closed_and_what_comes_then_is_in_the_next(merchant: Merchant) -> None:
    [closed] = does(merchant, closing(totals=ONE_SALE))
    assert isinstance(closed, BatchClosed)
    assert (closed.batch, closed.totals, closed.by) == (1, ONE_SALE, "terminal")
    assert merchant.tills["till-1"].batch == 2
    assert merchant.tills["till-1"].totals == Totals()
    [moved] = sold(merchant, "d2")
    assert moved.batch == 2


@pytest.mark.parametrize(
    "totals",
    [
        Totals(),
        Totals(sales=Tally(1, 10, 21)),
        Totals(sales=Tally(2, 10, 20)),
        Totals(Tally(1, 10, 20), Tally(1, 1, 2)),
    ],
)
def test_what_is_counted_otherwise_is_refused_with_our_count(merchant: Merchant, totals: Totals) -> None:
    with pytest.raises(TotalsDiffer) as refused:
        does(merchant, closing(totals=totals))
    assert refused.value.facts["totals"] == ONE_SALE


def test_refunds_and_reversals_are_counted_apart(merchant: Merchant) -> None:
    back = {"refunds": 2, "refunded_points": 3, "refunded_fen": 6, "reversed_points": 7, "reversed_fen": 14}
    does(merchant, FollowOrder(redemption_id="d1", **(AT | SALE | back)))
    [closed] = does(merchant, closing())
    assert closed.totals == Totals(Tally(1, 10, 20), Tally(2, 3, 6), Tally(1, 7, 14))


@pytest.mark.parametrize("batch", [0, 2, 3])
def test_another_batch_than_the_open_one_is_refused_before_its_totals(merchant: Merchant, batch: int) -> None:
    with pytest.raises(BatchNotOpen) as refused:
        does(merchant, closing(batch, totals=Totals()))
    assert refused.value.facts["open_batch"] == 1


def test_a_terminal_may_end_an_empty_batch_and_nobody_else(merchant: Merchant) -> None:
    with pytest.raises(NothingInBatch):
        does(merchant, closing(terminal="till-2", by="auto"))
    assert does(merchant, closing(terminal="till-2", totals=Totals()))
    with pytest.raises(TerminalUnknown):
        does(merchant, closing(terminal="till-9", totals=Totals()))


def test_a_sale_is_reversed_until_its_batch_is_closed(merchant: Merchant) -> None:
    does(merchant, closing(totals=ONE_SALE))
    with pytest.raises(UseRefund):
        does(merchant, ReverseOrder(redemption_id="d1", points=10, reason="timeout", **AT))


def test_what_an_order_is_told_late_takes_nothing_back(merchant: Merchant) -> None:
    """Two processes pass on what became of it, and the finisher what it read a moment ago: in any order."""
    given_back = {"refunds": 1, "refunded_points": 4, "refunded_fen": 8}
    [refund] = does(merchant, FollowOrder(redemption_id="d1", **(AT | SALE | given_back)))
    assert (refund.kind, refund.count, refund.points) == ("refund", 1, 4)
    assert does(merchant, FollowOrder(redemption_id="d1", **(AT | SALE))) == []
    assert merchant.tills["till-1"].totals == Totals(sales=Tally(1, 10, 20), refunds=Tally(1, 4, 8))


def test_a_reversal_that_names_another_terminal_undoes_nothing(merchant: Merchant) -> None:
    """An app names the terminal: of another, the open batch says nothing of this sale."""
    does(merchant, closing(totals=ONE_SALE))
    for terminal in ("till-1", "till-2"):
        with pytest.raises((UseRefund, ReversalMismatch)):
            does(
                merchant, ReverseOrder(redemption_id="d1", points=10, reason="timeout", **(AT | {"terminal": terminal}))
            )
    sold(merchant, "d2")
    with pytest.raises(ReversalMismatch) as refused:
        does(merchant, ReverseOrder(redemption_id="d2", points=10, reason="timeout", **(AT | {"terminal": "till-2"})))
    assert refused.value.facts["terminal"] == "till-1"


def test_a_batch_has_one_end_whoever_asks_and_whatever_they_count(merchant: Merchant) -> None:
    command = closing(totals=ONE_SALE)
    assert command.claim() == ("batch", "bakery", "till-1", "1")
    [closed] = does(merchant, closing(by="auto"))
    assert command.differs(closed) == closing(totals=Totals()).differs(closed) == []
