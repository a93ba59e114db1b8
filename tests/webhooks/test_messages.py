"""What is told of an entry, under which name, and signed so that the published vectors agree."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import time_machine
from standardwebhooks import Webhook, WebhookVerificationError

from carbon_points.domain.account import (
    HoldConfirmed,
    HoldDeclined,
    HoldReleased,
    PointsCaptured,
    PointsHeld,
    PointsRefunded,
)
from carbon_points.domain.fund import MerchantPaid
from carbon_points.domain.merchant import SettlementClosed
from carbon_points.domain.order import BatchClosed, OrderReversed, Tally, Totals
from carbon_points.journal import codec
from carbon_points.journal.entry import Entry, leaf_hash
from carbon_points.webhooks.messages import BODY_MOST, EVENT_TYPES, TEST, TOLD, Message, message, place_of, signed
from tests.given import NOON

VECTORS = msgspec.json.decode((Path(__file__).parent.parent / "vectors" / "standard-webhooks.json").read_bytes())
AT = datetime.fromtimestamp(VECTORS["timestamp"], UTC)


class TestSignatures:
    @pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-5))])
    @pytest.mark.parametrize("spelling", ["secret", "other_spelling_of_the_secret"])
    def test_the_published_message_gets_the_published_signature_wherever_the_clock_stands(
        self, zone: timezone, spelling: str
    ) -> None:
        made = signed([VECTORS[spelling]], VECTORS["id"], AT.astimezone(zone), VECTORS["payload"].encode())
        assert made == headers({})

    @pytest.mark.parametrize("vector", VECTORS["accepted"])
    def test_what_the_vectors_accept_is_accepted(self, vector: str) -> None:
        with time_machine.travel(AT, tick=False):
            told = Webhook(VECTORS["secret"]).verify(VECTORS["payload"], headers(VECTORS["accepted"][vector]))
        assert told == {"test": 2432232314}

    @pytest.mark.parametrize("vector", VECTORS["refused"])
    def test_what_the_vectors_refuse_is_refused(self, vector: str) -> None:
        with time_machine.travel(AT, tick=False), pytest.raises(WebhookVerificationError):
            Webhook(VECTORS["secret"]).verify(VECTORS["payload"], headers(VECTORS["refused"][vector]))

    @pytest.mark.parametrize(("seconds", "taken"), [(-301, False), (-300, True), (300, True), (301, False)])
    def test_a_message_is_valid_for_five_minutes_around_its_time(self, seconds: int, taken: bool) -> None:
        with time_machine.travel(AT + timedelta(seconds=seconds), tick=False):
            try:
                Webhook(VECTORS["secret"]).verify(VECTORS["payload"], headers({}))
            except WebhookVerificationError:
                assert not taken
            else:
                assert taken

    def test_while_a_secret_is_rotated_both_verify(self) -> None:
        secrets = ["whsec_" + "QUJD" * 8, VECTORS["secret"]]
        made = signed(secrets, "evt_0_1_abcdefghij", AT, b"{}")
        with time_machine.travel(AT, tick=False):
            assert [Webhook(secret).verify("{}", made) for secret in secrets] == [{}, {}]


def headers(changed: dict[str, Any]) -> dict[str, str]:
    whole = {"webhook-id": VECTORS["id"], "webhook-timestamp": str(VECTORS["timestamp"])}
    whole |= {"webhook-signature": VECTORS["signature"]} | changed
    return {name: value for name, value in whole.items() if value is not None}


# -- what is told ----------------------------------------------------------------------------------------------------

ID = {"redemption_id": "rdm_1", "merchant": "shop"}
TILL = ID | {"terminal": "t1"}
WHOSE = {"resident": "res_1"}
AMOUNTS = {"points": 10, "amount_fen": 20}
HOLD = {"hold_seconds": 300, "expires_at": NOON, "taken": ()}
UNTIL = {"expires_at": "2025-06-15T04:00:00Z"}
SETTLED = {"settlement_id": "stl_1", "merchant": "shop"}


def happened(kind: Any, **fields: Any) -> Any:
    return kind(recorded_at=NOON, **fields)


HAPPENED: dict[str, tuple[Any, str, Any]] = {
    "a hold": (happened(PointsHeld, **WHOSE, **TILL, **AMOUNTS, **HOLD), "redemption.held", TILL | AMOUNTS | UNTIL),
    "a hold that the resident must agree to": (
        happened(PointsHeld, **WHOSE, **TILL, **AMOUNTS, **HOLD, confirm_seconds=60),
        "redemption.confirming",
        TILL | AMOUNTS | UNTIL,
    ),
    "an agreement": (happened(HoldConfirmed, **WHOSE, **ID, expires_at=NOON), "redemption.held", ID | UNTIL),
    "a decline": (
        happened(HoldDeclined, **WHOSE, **TILL, points=10, reason="insufficient-points"),
        "redemption.declined",
        TILL | {"points": 10, "reason": "insufficient-points"},
    ),
    "a capture": (
        happened(PointsCaptured, **WHOSE, **TILL, **AMOUNTS, taken=()),
        "redemption.captured",
        TILL | AMOUNTS,
    ),
    **{
        f"a hold that ended {cause}": (
            happened(HoldReleased, **WHOSE, **ID, cause=cause),
            f"redemption.{name}",
            ID | {"cause": cause},
        )
        for cause, name in {
            "voided": "voided",
            "expired": "expired",
            "reversed": "reversed",
            "declined": "declined",
            "unconfirmed": "declined",
        }.items()
    },
    "a refund": (
        happened(PointsRefunded, **WHOSE, **ID, **AMOUNTS, refund_id="rfd_1"),
        "redemption.refunded",
        ID | AMOUNTS | {"refund_id": "rfd_1"},
    ),
    "a reversal": (
        happened(PointsRefunded, **WHOSE, **ID, **AMOUNTS, refund_id="rev_1", reversal=True),
        "redemption.reversed",
        ID | AMOUNTS | {"refund_id": "rev_1"},
    ),
    "a reversal of what never came": (
        happened(OrderReversed, **TILL, points=10, reason="timeout"),
        "redemption.reversed",
        TILL | {"points": 10, "reason": "timeout"},
    ),
    "a batch": (
        happened(BatchClosed, merchant="shop", terminal="t1", batch=7, totals=Totals(sales=Tally(2, 30, 60))),
        "batch.closed",
        {
            "merchant": "shop",
            "terminal": "t1",
            "batch": 7,
            "by": "terminal",
            "totals": {
                "sales": {"count": 2, "points": 30, "fen": 60},
                "refunds": {"count": 0, "points": 0, "fen": 0},
                "reversals": {"count": 0, "points": 0, "fen": 0},
            },
        },
    ),
    "a settlement": (
        happened(SettlementClosed, **SETTLED, **AMOUNTS, after={}, through={}, captures=2, refunds=1),
        "settlement.closed",
        SETTLED | AMOUNTS | {"captures": 2, "refunds": 1},
    ),
    "a payment": (
        happened(MerchantPaid, **SETTLED, amount_fen=20),
        "settlement.paid",
        SETTLED | {"amount_fen": 20},
    ),
}


def entry(event: Any, *, partition: int = 3, position: int = 1042) -> Entry:
    name, state = codec.encode(event)
    return Entry(partition, position, "s", 1, name, state, leaf_hash(partition, "s", 1, name, state))


def told(event: Any) -> Message:
    found = message(entry(event))
    assert found is not None
    return found


@pytest.mark.parametrize("what", HAPPENED)
def test_each_kind_of_entry_is_told_by_its_name_with_ids_and_amounts(what: str) -> None:
    event, name, data = HAPPENED[what]
    said = msgspec.json.decode(told(event).body(7, whole=False))
    assert said == {
        "type": name,
        "id": told(event).id,
        "sequence": 7,
        "created_at": "2025-06-15T04:00:00Z",
        "data": data,
    }


def test_a_merchant_is_not_told_whose_redemption_it_was_and_an_app_is() -> None:
    for event, *_ in HAPPENED.values():
        assert b"res_1" not in told(event).body(1, whole=False)
        assert (b"res_1" in told(event).body(1, whole=True)) == bool(getattr(event, "resident", None))


def test_every_type_that_is_promised_is_told_of_some_entry_and_no_other() -> None:
    assert {name for _, name, _ in HAPPENED.values()} | {TEST} == set(EVENT_TYPES)
    assert {event.type_name for event, *_ in HAPPENED.values()} == set(TOLD)


def test_a_reversal_of_what_came_is_told_once_by_the_residents_entry() -> None:
    assert message(entry(happened(OrderReversed, **WHOSE, **TILL, points=10, reason="timeout"))) is None


def test_what_is_told_stays_small() -> None:
    longest = dict.fromkeys(("redemption_id", "merchant", "terminal"), "界" * 200)
    event = PointsCaptured(recorded_at=NOON, resident="r" * 64, points=10**15, amount_fen=10**15, taken=(), **longest)
    assert len(told(event).body(10**15, whole=True)) < BODY_MOST / 4


def test_an_event_is_named_by_its_place_and_content_the_same_whoever_reads_the_log() -> None:
    event = HAPPENED["a capture"][0]
    name = told(event).id
    assert name.startswith("evt_3_1042_")
    assert place_of(name) == (3, 1042)
    assert message(entry(event)).id == name  # type: ignore[union-attr]
    other = msgspec.structs.replace(event, points=11)
    assert told(other).id != name, "after a restore the log may go another way: that is another event"


@pytest.mark.parametrize(
    "name", ["", "evt_", "evt_0_1", "evt_0_1_abc", "evt_x_1_abcdefghij", "evt_0_1_abcdefghij\n", "evt_test_a"]
)
def test_what_is_no_events_name_has_no_place(name: str) -> None:
    assert place_of(name) is None
