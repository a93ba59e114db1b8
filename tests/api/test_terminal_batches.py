"""The reference terminal's close of day, against the real server."""

from typing import Any

import msgspec
import pytest

from tests.api.city import City
from tests.api.test_reference_terminal import Till


@pytest.fixture
def till(own_city: City) -> Till:
    return Till(own_city)


@pytest.fixture
def resident(own_city: City) -> str:
    return own_city.resident(points=1000)


def there(city: City, number: int) -> Any:
    """The batch as the platform shows it."""
    city.settled()
    return city.done(city.get(f"/v1/merchants/shop/terminals/t1/batches/{number}", by="terminal"))


def answer(call: Any) -> str:
    assert call.outcome, call
    return call.outcome.code


def test_a_day_that_went_badly_is_closed_and_agreed(till: Till, resident: str, own_city: City) -> None:
    till.network.faults = iter(["ok", "answer-lost", "ok", "lost", "lost", "lost", "twice", "answer-lost", "lost"])
    first = till.terminal.pay(100, till.code(resident))
    for points in (30, 40):
        till.terminal.resolve()
        till.terminal.pay(points, till.code(resident))
    till.finish()
    till.terminal.refund(first.reference, 10)
    till.terminal.cancel(first.reference)
    till.network.faults = iter(["answer-lost"])
    assert answer(till.terminal.close_batch()) == "agreed"
    assert till.journal.batch == 2
    shown = there(own_city, 1)
    assert (shown["status"], shown["totals"]) == ("closed", msgspec.to_builtins(till.journal.totals(1)))
    assert shown["totals"]["reversals"]["points"] >= 90


def test_an_empty_batch_is_agreed_too(till: Till) -> None:
    assert answer(till.terminal.close_batch()) == "agreed"


def test_what_somebody_else_did_is_a_line_that_differs(till: Till, resident: str, own_city: City) -> None:
    paid = till.terminal.pay(100, till.code(resident))
    own_city.done(own_city.post(f"/v1/redemptions/{paid.redemption_id}/refunds", {"points": 30}, by="app"))
    call = till.terminal.close_batch()
    assert (answer(call), till.journal.batch) == ("not-agreed", 1)
    closed = call.outcome.closed  # type: ignore[union-attr]
    assert closed
    assert [(line.kind, line.points, line.fen) for line in closed.lines] == [("sale", 100, 200), ("refund", 30, 60)]
    assert answer(till.terminal.close_batch(closed.totals)) == "agreed"
    assert till.journal.batch == 2


def test_a_batch_that_was_closed_at_night_is_closed_by_what_it_had_then(
    till: Till, resident: str, own_city: City
) -> None:
    from carbon_points.domain.order import CloseBatch  # noqa: PLC0415  # it comes with batches

    first = till.terminal.pay(100, till.code(resident))
    assert own_city.installation.finisher.settled("shop", 5)
    own_city.installation.write_now(CloseBatch(merchant="shop", terminal="t1", batch=1, by="auto"))
    till.terminal.refund(first.reference, 10)
    till.terminal.pay(20, till.code(resident))
    assert answer(till.terminal.close_batch()) == "agreed"
    assert answer(till.terminal.close_batch()) == "agreed"
    assert till.journal.batch == 3
    for number in (1, 2):
        assert there(own_city, number)["totals"] == msgspec.to_builtins(till.journal.totals(number))
    assert till.journal.totals(2).refunds.points == 10


def test_a_reversal_that_comes_after_the_night_is_a_refund(till: Till, resident: str, own_city: City) -> None:
    from carbon_points.domain.order import CloseBatch  # noqa: PLC0415  # it comes with batches

    till.network.faults = iter(["answer-lost", "lost", "lost"])
    waiting = till.terminal.pay(100, till.code(resident))
    assert waiting.state == "REVERSING"
    assert own_city.installation.finisher.settled("shop", 5)
    own_city.installation.write_now(CloseBatch(merchant="shop", terminal="t1", batch=1, by="auto"))
    till.finish()
    assert till.left(resident) == 1000
    told = till.terminal.sale(waiting.reference)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("reversed", "use-refund")
    for number in (1, 2):
        assert answer(till.terminal.close_batch()) == "agreed"
        assert there(own_city, number)["totals"] == msgspec.to_builtins(till.journal.totals(number))
