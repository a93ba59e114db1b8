"""The fund: what came in less what went out, never below zero."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carbon_points.domain.fund import (
    FEN_MOST,
    Fund,
    FundInsufficient,
    MoneyInvalid,
    PayMerchant,
    ReceiveMoney,
    decide,
    evolve,
)
from tests.given import NOON


def receiving(amount_fen: int, **said: Any) -> ReceiveMoney:
    fields = {"receipt_id": "m1", "origin": "sponsor", "payer": "bank"} | said
    return ReceiveMoney(amount_fen=amount_fen, **fields)


def paying(amount_fen: int, **said: Any) -> PayMerchant:
    return PayMerchant(amount_fen=amount_fen, **({"settlement_id": "s1", "merchant": "bakery"} | said))


def test_money_in_raises_the_balance_and_money_out_lowers_it() -> None:
    fund = Fund()
    for command in (receiving(500, origin="sale", sale_id="sale-1"), receiving(20), paying(520)):
        for event in decide(fund, command, now=NOON):
            evolve(fund, event)
    assert fund.balance_fen == 0


@pytest.mark.parametrize("amount", [0, -1, FEN_MOST + 1])
@pytest.mark.parametrize("command", [receiving, paying])
def test_an_amount_that_is_none_is_refused_before_the_balance_is_looked_at(command: Any, amount: int) -> None:
    with pytest.raises(MoneyInvalid):
        decide(Fund(), command(amount), now=NOON)


def test_a_payment_that_the_fund_cannot_cover_is_refused_to_the_fen() -> None:
    with pytest.raises(FundInsufficient) as refused:
        decide(Fund(balance_fen=99), paying(100), now=NOON)
    assert refused.value.facts == {"balance_fen": 99, "wanted_fen": 100}
    assert decide(Fund(balance_fen=100), paying(100), now=NOON)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 100)), max_size=30))
def test_the_balance_is_what_came_in_less_what_went_out_and_never_below_zero(moves: list[tuple[bool, int]]) -> None:
    fund, expected = Fund(), 0
    for incoming, amount in moves:
        try:
            [event] = decide(fund, receiving(amount) if incoming else paying(amount), now=NOON)
        except FundInsufficient:
            assert amount > expected
            continue
        evolve(fund, event)
        expected += amount if incoming else -amount
        assert fund.balance_fen == expected >= 0


def test_a_receipt_and_a_payment_are_claimed_by_their_own_ids() -> None:
    [event] = decide(Fund(), receiving(5), now=NOON)
    assert receiving(5).claim() == ("receipt", "m1")
    assert paying(5).claim() == ("payment", "bakery", "s1")
    assert receiving(5).differs(event) == []
    assert receiving(6, payer="other").differs(event) == ["payer", "amount_fen"]
