"""The terminal and the real server: what the model promises, the platform keeps."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carbon_points import codes
from carbon_points_terminal import Answer, Call, Journal, NoAnswer, OverHttp, Request, Sale, Terminal
from carbon_points_terminal.ids import new_reference
from tests.api.city import City, wait_for
from tests.conftest import PROJECT
from tests.terminal.platform import Time


class Lossy:
    """The real transport, of which some requests and some answers are lost."""

    def __init__(self, over: OverHttp, time: Time) -> None:
        self.over, self.time = over, time
        self.faults: Iterator[str] = iter(())
        self.late: list[Request] = []

    def send(self, request: Request) -> Answer:
        match next(self.faults, "ok"):
            case "ok":
                return self.over.send(request)
            case "twice":
                self.over.send(request)
                return self.over.send(request)
            case "answer-lost":
                self.over.send(request)
            case "late":
                self.late.append(request)
        self.time.pass_(10)
        return NoAnswer("nothing came in time")


class Till:
    """A terminal of the city's shop, that waits for nobody."""

    def __init__(self, city: City) -> None:
        self.city, self.time = city, Time()
        over = OverHttp(str(city.http.base_url), city.keys["terminal"], client=city.http)
        self.network = Lossy(over, self.time)
        self.journal = Journal.in_memory("shop", "t1")
        self.terminal = Terminal(self.journal, self.network, self.time, new_reference, self.time.pass_)

    def status(self, call: Call) -> str:
        answer = self.city.get("/v1/redemptions", by="terminal", reference=call.reference)
        return self.city.done(answer)["status"]

    def left(self, resident: str) -> int:
        return self.city.balance(resident)["points_available"]

    def code(self, resident: str) -> str:
        """What the resident's phone shows: a new one each time, whatever the minute."""
        made = self.city.installation.directory.payers.issue(resident)
        return codes.made(made.handle, made.secret, codes.step_at(self.city.installation.clock()))

    def finish(self) -> None:
        self.network.faults = iter(())
        while due := self.terminal.due():
            self.time.pass_(max((due - self.time.at).total_seconds(), 0))
            self.terminal.step()


@pytest.fixture
def till(city: City) -> Till:
    return Till(city)


def test_pay_authorise_capture_void_and_refund(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    paid = till.terminal.pay(100, till.code(resident))
    assert paid.outcome
    assert (paid.outcome.result, paid.outcome.points, paid.outcome.fen) == ("approved", 100, 200)
    held = till.terminal.authorise(100, till.code(resident))
    captured = till.terminal.capture(held.reference, 60)
    assert captured.outcome
    assert (captured.outcome.result, captured.outcome.points, captured.outcome.fen) == ("approved", 60, 120)
    refunded = till.terminal.refund(held.reference, 10)
    assert refunded.outcome
    assert (refunded.outcome.result, refunded.outcome.points, refunded.outcome.fen) == ("approved", 10, 20)
    voided = till.terminal.void(till.terminal.authorise(100, till.code(resident)).reference)
    assert voided.outcome
    assert (voided.outcome.result, voided.outcome.status) == ("approved", "voided")
    assert till.left(resident) == 1000 - 100 - 60 + 10
    totals = till.journal.totals(1)
    assert (totals.sales.points, totals.sales.fen, totals.refunds.points) == (160, 320, 10)


def test_a_refusal_carries_the_servers_code_and_is_final(till: Till, city: City) -> None:
    resident = city.resident(points=100)
    refused = till.terminal.pay(500, till.code(resident))
    assert refused.outcome
    assert (refused.outcome.result, refused.outcome.code) == ("declined", "insufficient-points")
    assert till.status(refused) == "declined"
    held = till.terminal.authorise(100, till.code(resident))
    till.terminal.void(held.reference)
    late = till.terminal.capture(held.reference, 100)
    assert late.outcome
    assert (late.outcome.code, late.outcome.status) == ("redemption-not-held", "voided")


def test_a_code_that_was_used_or_is_none_is_told(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    code = till.code(resident)
    till.terminal.pay(100, code)
    for shown, told in ((code, "code-used"), ("801234567890123456", "code-malformed"), ("hello", "code-malformed")):
        refused = till.terminal.pay(100, shown)
        assert refused.outcome
        assert (refused.outcome.result, refused.outcome.code) == ("declined", told)
    assert till.left(resident) == 900


def test_a_frozen_account_is_asked_for_once_more_and_declined(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    code = till.code(resident)
    city.done(city.post(f"/v1/residents/{resident}/freeze", {"frozen": True, "reason": "test"}))
    refused = till.terminal.pay(100, code)
    assert refused.outcome
    assert (refused.outcome.result, refused.outcome.code) == ("declined", "account-frozen")
    assert till.status(refused) == "declined"


def test_why_it_was_declined_is_known_also_where_the_answer_was_lost(city: City, tmp_path: Path) -> None:
    till, resident = Till(city), city.resident(points=100)
    till.journal = Journal.create(tmp_path / "journal.sqlite", "shop", "t1")
    till.terminal = Terminal(till.journal, till.network, till.time, new_reference, till.time.pass_)
    till.network.faults = iter(["answer-lost"])
    reference = till.terminal.pay(500, till.code(resident)).reference
    till.journal.close()
    with closing(Journal.open(tmp_path / "journal.sqlite", "shop", "t1")) as journal:
        refused = journal.find(reference)
    assert refused
    assert refused.outcome
    assert (refused.outcome.result, refused.outcome.code) == ("declined", "insufficient-points")


def test_a_lost_answer_is_found_by_the_reference(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    till.network.faults = iter(["answer-lost"])
    paid = till.terminal.pay(100, till.code(resident))
    assert paid.outcome
    assert paid.outcome.result == "approved"
    till.network.faults = iter(["lost"])
    paid = till.terminal.pay(100, till.code(resident))
    assert paid.outcome
    assert paid.outcome.result == "approved"
    assert till.left(resident) == 800


@pytest.mark.parametrize("faults", [["answer-lost", *["lost"] * 3], ["late", *["lost"] * 3], ["lost", *["lost"] * 3]])
@pytest.mark.parametrize("do", ["pay", "authorise"])
def test_what_stays_unknown_is_reversed_and_never_happens(till: Till, city: City, do: str, faults: list[str]) -> None:
    resident = city.resident(points=1000)
    till.network.faults = iter(faults)
    call = getattr(till.terminal, do)(100, till.code(resident))
    assert call.state == "REVERSING"
    till.finish()
    for request in till.network.late:  # the sale itself comes at last
        till.network.over.send(request)
    call = till.terminal.sale(call.reference)
    assert call.outcome
    assert (call.outcome.result, till.status(call)) == ("reversed", "reversed")
    assert till.left(resident) == 1000
    totals = till.journal.totals(1)
    assert totals.sales == totals.reversals, "both rows, or none"
    assert totals.sales.count == (faults[0] == "answer-lost" and do == "pay")


def test_a_customer_who_changes_their_mind_gets_all_of_it_back(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    held = till.terminal.authorise(100, till.code(resident))
    till.terminal.capture(held.reference, 60)
    till.terminal.refund(held.reference, 10)
    told = till.terminal.cancel(held.reference)
    assert told.outcome
    assert told.outcome.result == "reversed"
    assert till.left(resident) == 1000
    totals = till.journal.totals(1)
    assert (totals.sales.points, totals.refunds.points, totals.reversals.points) == (60, 10, 50)


def test_every_call_repeated_and_lost_in_turn_moves_what_it_says_once(till: Till, city: City) -> None:
    resident = city.resident(points=1000)
    till.network.faults = cycle(["twice", "answer-lost", "ok", "twice", "lost"])
    spent = 0
    for points in (10, 20, 30, 40):
        till.terminal.resolve()
        held = till.terminal.authorise(points, till.code(resident))
        if held.outcome and held.outcome.result == "approved":
            captured = till.terminal.capture(held.reference, points - 5)
            refunded = till.terminal.refund(held.reference, 3)
            assert captured.outcome
            assert refunded.outcome
            spent += captured.outcome.points - refunded.outcome.points
    till.finish()
    assert spent > 0
    assert till.left(resident) == 1000 - spent
    totals = till.journal.totals(1)
    assert totals.sales.points - totals.refunds.points - totals.reversals.points == spent


def test_an_offer_is_had_for_the_platforms_price_and_returned_when_nobody_knows(own_city: City) -> None:
    till, resident = Till(own_city), own_city.resident(points=1000)
    tea = {"offer": "tea", "title": "茶一杯", "points": 20, "amount_fen": 50, "stock": 3}
    own_city.done(own_city.post("/v1/merchants/shop/offers", tea))
    own_city.settled()
    assert [(one["offer"], one["points"]) for one in till.terminal.offers()] == [("tea", 20)]  # type: ignore[union-attr]

    paid = till.terminal.pay(40, till.code(resident), offer="tea", items=2)
    assert paid.outcome
    assert (paid.outcome.result, paid.outcome.points, paid.outcome.fen) == ("approved", 40, 100)
    till.network.faults = iter(["answer-lost", "lost", "lost"])
    till.terminal.pay(999, till.code(resident), offer="tea")  # the till has the price wrong, and learns of nothing
    till.finish()
    assert till.left(resident) == 960

    def stock() -> tuple[int, int]:
        told = own_city.done(own_city.get("/v1/merchants/shop/offers/tea"))
        return told["stock"], told["reserved"]

    wait_for(lambda: stock() == (1, 0))
    till.terminal.pay(20, till.code(resident), offer="tea")
    sold_out = till.terminal.pay(20, till.code(resident), offer="tea")
    assert sold_out.outcome
    assert (sold_out.outcome.result, sold_out.outcome.code) == ("declined", "offer-sold-out")
    assert till.status(sold_out) == "declined"


@pytest.mark.parametrize("says", [True, False, None])
def test_a_sale_that_the_resident_must_agree_to_ends_as_they_say(own_city: City, says: bool | None) -> None:
    till, resident = Till(own_city), own_city.resident(points=1000)
    own_city.done(own_city.call("PUT", "/v1/merchants/shop/terms", {"confirm_above": 50}))
    asked = till.terminal.begin(Sale(100, till.code(resident)))
    for _ in range(3):
        till.terminal.step()
        till.time.pass_(4)
    assert till.terminal.unresolved()[0].state == "UNKNOWN"
    [waiting] = own_city.done(own_city.get(f"/v1/residents/{resident}/confirmations", by="app"))["data"]
    if says is not None:
        path = f"/v1/redemptions/{waiting['redemption_id']}/confirmation"
        own_city.done(own_city.post(path, {"accept": says}, by="app"))
    told = till.terminal.settle(asked.reference)
    assert told.outcome
    assert told.outcome.result == {True: "approved", False: "declined", None: "reversed"}[says]
    assert says is not False or told.outcome.code == "not-agreed"
    assert till.left(resident) == (900 if says else 1000)


def test_both_sides_count_the_same_in_the_batch(own_city: City) -> None:
    till, resident = Till(own_city), own_city.resident(points=1000)
    till.network.faults = cycle(["ok", "ok", "answer-lost", "twice", "ok", "lost", "lost"])
    for points in range(10, 50, 10):
        till.terminal.resolve()
        call = till.terminal.pay(points, till.code(resident))
        if call.outcome and call.outcome.result == "approved":
            till.terminal.refund(call.reference, points // 2)
            if points % 20:
                till.terminal.cancel(call.reference)
    till.finish()
    here = msgspec.to_builtins(till.journal.totals(1))
    assert all(here[kind]["count"] for kind in ("sales", "refunds", "reversals")), here

    def there() -> Any:
        till = own_city.installation.journal.state("merchant/shop", [("tills", "t1")]).tills.get("t1")
        return till and {kind: msgspec.to_builtins(getattr(till, kind)) for kind in ("sales", "refunds", "reversals")}

    wait_for(lambda: there() == here)


def test_a_hold_that_ran_out_cannot_be_captured(own_city: City, time: Any) -> None:
    till, resident = Till(own_city), own_city.resident(points=1000)
    held = till.terminal.authorise(100, till.code(resident), hold_seconds=30)
    time.move(timedelta(seconds=31))
    told = till.terminal.capture(held.reference, 100)
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("declined", "hold-expired")


def test_over_a_real_socket_nothing_is_different(served_city: City) -> None:
    till, resident = Till(served_city), served_city.resident(points=1000)
    with OverHttp(str(served_city.http.base_url), served_city.keys["terminal"]) as over:
        till.network.over = over
        paid = till.terminal.pay(100, till.code(resident))
        assert paid.outcome
        assert paid.outcome.result == "approved"
        shown = till.terminal.query(paid.reference)
        assert getattr(shown, "status", "") == "captured"
        told = till.terminal.cancel(paid.reference)
        assert told.outcome
        assert told.outcome.result == "reversed"
    assert till.left(resident) == 1000


def test_the_program_pays_and_shows_its_batch(served_city: City, tmp_path: Path) -> None:
    """As it is run: processes of its own, one after the other, and nothing between them but the folder."""
    till, resident = Till(served_city), served_city.resident(points=1000)
    url, environment = str(served_city.http.base_url), {"CARBON_TERMINAL_DIR": str(tmp_path), "PYTHONPATH": "."}

    def run(*words: str, typed: str = "") -> Any:
        command = [sys.executable, "-m", "carbon_points_terminal", *words, "--json"]
        done = subprocess.run(
            command, cwd=PROJECT, env=os.environ | environment, input=typed, text=True, capture_output=True, check=True
        )
        return msgspec.json.decode(done.stdout.splitlines()[-1])

    key = served_city.keys["terminal"]
    assert run("activate", "--url", url, "--merchant", "shop", "--terminal", "t1", typed=f"{key}\n")["terminal"] == "t1"
    paid = run("pay", "100", typed=till.code(resident) + "\n")
    assert (paid["result"], paid["points"], paid["amount_fen"]) == ("approved", 100, 200)
    assert run("query", paid["reference"])["status"] == "captured"
    assert run("batch", "show")["totals"]["sales"] == {"count": 1, "points": 100, "fen": 200}
    assert till.left(resident) == 900


def test_a_key_that_is_none_declines_at_the_door(city: City) -> None:
    till, resident = Till(city), city.resident(points=1000)
    till.network.over = OverHttp(str(city.http.base_url), "cp_live_nobody", client=city.http)
    told = till.terminal.pay(100, till.code(resident))
    assert told.outcome
    assert (told.outcome.result, told.outcome.code) == ("declined", "unauthenticated")
    assert till.left(resident) == 1000
