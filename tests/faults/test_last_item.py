"""Fifty terminals at two servers want the same last item at the same moment: one of them gets it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from threading import Barrier
from typing import Any

import httpx

from carbon_points.domain.account import ActionFacts, RecordAction
from carbon_points.domain.merchant import EnrolTerminal, RegisterMerchant
from carbon_points.domain.offer import PublishOffer
from carbon_points.journal.partition import Write
from tests.api.city import opened
from tests.faults.conftest import Place
from tests.faults.servers import PARTITIONS, running, wait_for

TERMINALS = 50
OFFER = "/v1/merchants/shop/offers/tea"


def resident(number: int) -> str:
    return "res_" + f"{number:02d}".translate(str.maketrans("0123456789", "abcdefghij")).rjust(20, "z")


def shelf(place: Place) -> str:
    """A shop with one cup of tea, its terminals, and a resident for each; the secret of a key that may order."""
    installation = opened({"CARBON_PARTITIONS": str(PARTITIONS), **place.environment}, lambda: datetime.now(UTC))
    try:
        shop: list[Any] = [
            RegisterMerchant(merchant="shop", name="茶馆", fen_per_point=2),
            PublishOffer(merchant="shop", offer="tea", title="茶一杯", points=20, amount_fen=50, stock=1),
            *(EnrolTerminal(merchant="shop", terminal=f"t{n}") for n in range(TERMINALS)),
        ]
        rules, ride = installation.journal.rules(), {"behaviour": "green", "quantity": Decimal(1), "unit": "km"}
        facts = ActionFacts(rules.methodologies, rules.sources.reporting("szt", "green"))
        rides = [
            RecordAction(resident=resident(n), source="szt", record_id=f"r{n}", occurred_at=datetime.now(UTC), **ride)
            for n in range(TERMINALS)
        ]
        writes = [*(Write(command) for command in shop), *(Write(command, facts) for command in rides)]
        assert all(not outcome.refusal for outcome in installation.journal.commit(writes))
        return installation.directory.issue_key("app", "test")[1]
    finally:
        installation.close()


def test_the_last_item_is_never_sold_twice_under_fifty_concurrent_terminals(place: Place) -> None:
    """Nor when it comes back and is wanted again: by a void, by a hold that runs out, by a refund."""
    secret = shelf(place)
    servers = [place.server(f"serve-{number}") for number in range(2)]
    with running(*servers), ThreadPoolExecutor(TERMINALS) as threads:
        tills = [
            httpx.Client(
                base_url=servers[n % 2].url,
                headers={"Authorization": f"Bearer {secret}"},
                limits=httpx.Limits(max_connections=1, keepalive_expiry=1),  # before the server closes an idle one
                timeout=60,
            )
            for n in range(TERMINALS)
        ]
        ready = Barrier(TERMINALS)

        def order(turn: int, n: int, **said: Any) -> httpx.Response:
            body = {"resident": resident(n), "merchant": "shop", "terminal": f"t{n}", "offer": "tea", **said}
            ready.wait(60)
            return tills[n].post("/v1/redemptions", json=body, headers={"Idempotency-Key": f"{turn}-{n}"})

        def left() -> int:
            return tills[0].get(OFFER).json()["stock"]

        def sold_once(turn: int, **said: Any) -> Any:
            """The one that was answered otherwise than all others."""
            assert left() == 1
            answers = list(threads.map(lambda n: order(turn, n, **said), range(TERMINALS)))
            codes = Counter(a.json().get("code", "sold") for a in answers)
            assert codes == {"sold": 1, "offer-sold-out": TERMINALS - 1}, codes
            assert left() == 0
            return next(a.json() for a in answers if a.status_code == 201)

        held = sold_once(0)
        assert tills[1].post(f"/v1/redemptions/{held['redemption_id']}/void").status_code == 201
        wait_for(lambda: left() == 1, 60, "what was voided is back")
        body = {"resident": resident(0), "merchant": "shop", "terminal": "t0", "offer": "tea", "hold_seconds": 1}
        assert tills[0].post("/v1/redemptions", json=body, headers={"Idempotency-Key": "1"}).status_code == 201
        wait_for(lambda: left() == 1, 60, "what ran out is back")
        bought = sold_once(2, capture=True)
        refund = f"/v1/redemptions/{bought['redemption_id']}/refunds"
        assert tills[2].post(refund, json={"points": 20}, headers={"Idempotency-Key": "f"}).status_code == 201
        wait_for(lambda: left() == 1, 60, "what was refunded is back")
        assert tills[0].get(OFFER).json()["sold"] == 0
        for till in tills:
            till.close()
    servers[0].verified()
