"""Merchants: registered, priced, with terminals; each settlement covers its own piece of the log."""

from datetime import date, timedelta
from typing import Any

import pytest

from carbon_points.domain.event import Command
from carbon_points.domain.merchant import (
    PRICE_MOST_FEN,
    ChangePrice,
    CloseSettlement,
    DayNotOver,
    EnrolTerminal,
    Merchant,
    MerchantUnknown,
    NothingToSettle,
    PriceInvalid,
    PriceUnchanged,
    RegisterMerchant,
    SettlementClosed,
    SettlementFacts,
    SettlementOverlaps,
    TerminalUnknown,
    decide,
    evolve,
)
from carbon_points.domain.order import Tally, Totals
from tests.given import DAY, NOON, china


def registering(**said: Any) -> RegisterMerchant:
    return RegisterMerchant(**({"merchant": "bakery", "name": "面包坊", "fen_per_point": 5} | said))


ENROL = EnrolTerminal(merchant="bakery", terminal="till-1")
CLOSE = CloseSettlement(merchant="bakery", settlement_id="s1")


def said(**facts: Any) -> SettlementFacts:
    """Three sales less a refund and a reversal: 20 points, 100 fen, unless said otherwise."""
    points, fen = facts.pop("points", 20), facts.pop("amount_fen", 100)
    totals = Totals(Tally(3, points + 9, fen + 45), Tally(1, 5, 25), Tally(1, 4, 20))
    return SettlementFacts(**({"after": {}, "through": {"0": 9}, "totals": totals} | facts))


def after(*commands: Command) -> Merchant:
    merchant = Merchant("bakery")
    for command in commands:
        for event in decide(merchant, command, now=NOON):
            evolve(merchant, event)
    return merchant


def test_a_merchant_accepts_at_its_own_terminals() -> None:
    merchant = after(registering(county="330502"), ENROL)
    assert merchant.accepting("till-1") is merchant
    assert (merchant.name, merchant.fen_per_point, merchant.county) == ("面包坊", 5, "330502")


def test_who_may_not_redeem_is_refused_in_order() -> None:
    with pytest.raises(MerchantUnknown):
        Merchant("bakery").accepting("till-9")
    with pytest.raises(TerminalUnknown) as refused:
        after(registering(), ENROL).accepting("till-9")
    assert refused.value.facts == {"merchant": "bakery", "terminal": "till-9"}


@pytest.mark.parametrize("price", [0, -1, PRICE_MOST_FEN + 1])
def test_a_price_out_of_bounds_is_refused_before_anything_else(price: int) -> None:
    for command in (registering(fen_per_point=price), ChangePrice(merchant="bakery", fen_per_point=price)):
        with pytest.raises(PriceInvalid):
            decide(Merchant("bakery"), command, now=NOON)


@pytest.mark.parametrize("price", [1, PRICE_MOST_FEN])
def test_the_least_and_the_highest_price_are_taken(price: int) -> None:
    assert after(registering(fen_per_point=price)).fen_per_point == price


@pytest.mark.parametrize("command", [ChangePrice(merchant="bakery", fen_per_point=5), ENROL, CLOSE])
def test_what_is_said_of_a_merchant_that_is_not_registered_is_refused(command: Command) -> None:
    with pytest.raises(MerchantUnknown):
        decide(Merchant("bakery"), command, now=NOON, facts=said(after={"0": 1}, points=0))


def test_a_price_that_stands_already_is_refused_and_another_stands_afterwards() -> None:
    with pytest.raises(PriceUnchanged):
        after(registering(), ChangePrice(merchant="bakery", fen_per_point=5))
    assert after(registering(), ChangePrice(merchant="bakery", fen_per_point=6)).fen_per_point == 6


def test_a_settlement_tells_its_piece_of_the_log_and_the_next_begins_there() -> None:
    merchant = after(registering())
    [closed] = decide(merchant, CLOSE, now=NOON, facts=said())
    assert isinstance(closed, SettlementClosed)
    assert (closed.captures, closed.refunds, closed.points, closed.amount_fen) == (3, 2, 20, 100)
    evolve(merchant, closed)
    assert merchant.through == {"0": 9}
    assert decide(merchant, CLOSE, now=NOON, facts=said(after={"0": 9}, through={"0": 12}))


def test_a_settlement_over_a_piece_that_is_settled_is_refused_before_its_amount_is_looked_at() -> None:
    merchant = after(registering())
    evolve(merchant, decide(merchant, CLOSE, now=NOON, facts=said())[0])
    with pytest.raises(SettlementOverlaps):
        decide(merchant, CLOSE, now=NOON, facts=said(points=0, amount_fen=0))


@pytest.mark.parametrize("facts", [{"amount_fen": 0}, {"points": -3, "amount_fen": -15}])
def test_a_settlement_of_nothing_or_less_is_refused(facts: dict[str, int]) -> None:
    with pytest.raises(NothingToSettle):
        decide(after(registering()), CLOSE, now=NOON, facts=said(**facts))


def test_a_settlement_keeps_its_totals_and_what_its_files_were() -> None:
    merchant = after(registering())
    facts = said(roots={"0": "ab"}, json_sha256="cd", csv_sha256="ef")
    [closed] = decide(merchant, CLOSE, now=NOON, facts=facts)
    assert isinstance(closed, SettlementClosed)
    assert closed.totals == facts.totals
    assert (closed.day, closed.roots, closed.json_sha256, closed.csv_sha256) == (None, {"0": "ab"}, "cd", "ef")


@pytest.mark.parametrize(("now", "over"), [("00:04:59", False), ("00:05:00", True), ("12:00:00", True)])
def test_a_day_is_settled_once_it_has_been_over_for_five_minutes(now: str, over: bool) -> None:
    merchant, day = after(registering()), date(2025, 6, 14)
    closing = CloseSettlement(merchant="bakery", settlement_id="s1", day=day)
    moment = china(f"2025-06-15 {now}")
    if over:
        [closed] = decide(merchant, closing, now=moment, facts=said())
        assert isinstance(closed, SettlementClosed)
        assert closed.day == day
        assert closing.differs(closed) == []
    else:
        with pytest.raises(DayNotOver):
            decide(merchant, closing, now=moment, facts=said(after={"0": 1}, amount_fen=0))
    for late in (timedelta(0), DAY):
        with pytest.raises(DayNotOver):
            decide(merchant, closing, now=china("2025-06-14 23:59") - late, facts=said())


def test_identities_are_claimed_within_their_merchant() -> None:
    assert registering().claim() == ("merchant", "bakery")
    assert ENROL.claim() == ("terminal", "bakery", "till-1")
    assert CLOSE.claim() == ("settlement", "bakery", "s1")
    assert ChangePrice(merchant="bakery", fen_per_point=1).claim() is None
    [event] = decide(Merchant("bakery"), registering(), now=NOON)
    assert registering(name="其他").differs(event) == ["name"]
