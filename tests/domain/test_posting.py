"""Postings: every event moves what it moves from somewhere to somewhere, in every asset."""

from collections import Counter

import pytest

from carbon_points.domain import account, fund, lot, merchant
from carbon_points.domain.event import Event
from carbon_points.domain.posting import NO_FLOOR, Asset, Posting, floor, postings
from carbon_points.journal.codec import EVENT_TYPES
from tests.golden.events import EVENTS

SILENT = {  # they say something, and move nothing
    "methodology-published/1",
    "source-registered/1",
    "source-changed/1",
    "account-opened/1",
    "consent-given/1",
    "consent-withdrawn/1",
    "tap-recorded/1",
    "account-frozen/1",
    "hold-declined/1",
    "hold-confirmed/1",
    "terms-changed/1",
    "order-placed/1",
    "order-reversed/1",
    "order-moved/1",
    "batch-closed/1",
    "order-declined/1",
    "offer-published/1",
    "offer-changed/1",
    "campaign-opened/1",
    "campaign-changed/1",
    "merchant-registered/1",
    "price-changed/1",
    "terminal-enrolled/1",
    "terminal-key-added/1",
    "terminal-key-ended/1",
    "terminal-suspended/1",
    "pool-opened/1",
    "gathering-sealed/1",
    "pool-verified/1",
}


def shown(event: Event) -> str:
    return f"{event.type_name} {EVENTS.index(event)}"


def test_every_event_type_moves_something_or_is_known_to_move_nothing() -> None:
    moving = {event.type_name for event in EVENTS if postings(event)}
    assert moving | SILENT == set(EVENT_TYPES), "say in domain/posting.py what the new type moves, or add it to SILENT"
    assert not moving & SILENT


@pytest.mark.parametrize("event", EVENTS, ids=shown)
def test_the_postings_of_an_event_sum_to_zero_in_every_asset(event: Event) -> None:
    totals: Counter[str] = Counter()
    for asset, _, amount in postings(event):
        assert amount != 0
        totals[asset] += amount
    assert not any(totals.values())


@pytest.mark.parametrize("event", EVENTS, ids=shown)
def test_only_accounts_of_the_page_are_moved(event: Event) -> None:
    kinds = {
        "mg": {"issued", "resident", "debt", "pool", "lot", "buyer", "retired"},
        "points": {"issued", "resident", "held", "debt", "merchant", "redeemed", "expired"},
        "fen": {"buyers", "sponsors", "fund", "commitments", "owed", "merchant"},
    }
    for asset, name, _ in postings(event):
        assert name.partition("/")[0] in kinds[asset]


R = "res_0hk5n1d2x8"
MOVED = {
    account.ActionCredited: {
        ("mg", "issued"): -46_000,
        ("mg", f"debt/{R}"): 4_000,
        ("mg", f"resident/{R}"): 42_000,
        ("points", "issued"): -10,
        ("points", f"debt/{R}"): 3,
        ("points", f"resident/{R}"): 7,
    },
    account.ActionReversed: {
        ("mg", "issued"): 46_000,
        ("mg", f"debt/{R}"): -6_000,
        ("mg", f"resident/{R}"): -40_000,
        ("points", "issued"): 10,
        ("points", f"debt/{R}"): -3,
        ("points", f"resident/{R}"): -7,
    },
    account.PointsHeld: {("points", f"resident/{R}"): -15, ("points", f"held/{R}"): 15},
    account.PointsCaptured: {
        ("points", f"held/{R}"): -15,
        ("points", "merchant/bakery"): 7,
        ("points", f"resident/{R}"): 6,
        ("points", f"debt/{R}"): 2,
    },
    account.HoldReleased: {
        ("points", f"held/{R}"): -15,
        ("points", f"resident/{R}"): 5,
        ("points", f"debt/{R}"): 10,
    },
    account.PointsRefunded: {
        ("points", "merchant/bakery"): -5,
        ("points", f"resident/{R}"): 4,
        ("points", f"debt/{R}"): 1,
    },
    account.PointsExpired: {("points", f"resident/{R}"): -11, ("points", "expired"): 11},
    account.ReductionsPooled: {("mg", f"resident/{R}"): -138_000, ("mg", "pool/pool_1"): 138_000},
    lot.LotIssued: {("mg", "pool/pool_1"): -2_000_000, ("mg", "lot/lot_1"): 2_000_000},
    lot.UnitsSold: {("mg", "lot/lot_1"): -2_000_000, ("mg", "buyer/steelworks"): 2_000_000},
    lot.UnitsRetired: {("mg", "buyer/steelworks"): -1_000_000, ("mg", "retired"): 1_000_000},
    merchant.SettlementClosed: {
        ("points", "merchant/bakery"): -22,
        ("points", "redeemed"): 22,
        ("fen", "commitments"): -110,
        ("fen", "owed/bakery"): 110,
    },
    fund.MoneyReceived: {("fen", "buyers"): -150, ("fen", "fund"): 150},
    fund.MerchantPaid: {
        ("fen", "fund"): -110,
        ("fen", "merchant/bakery"): 110,
        ("fen", "owed/bakery"): -110,
        ("fen", "commitments"): 110,
    },
}


@pytest.mark.parametrize("kind", MOVED, ids=lambda kind: kind.type_name)
def test_an_event_moves_what_the_page_says(kind: type[Event]) -> None:
    event = next(event for event in EVENTS if isinstance(event, kind))
    moved: Counter[tuple[str, str]] = Counter()
    for asset, name, amount in postings(event):
        moved[(asset, name)] += amount
    assert moved == MOVED[kind]


def test_what_an_event_moves_is_told_for_every_type_that_moves_something() -> None:
    assert {kind.type_name for kind in MOVED} == set(EVENT_TYPES) - SILENT


def test_a_sponsor_s_money_comes_from_sponsors() -> None:
    [event] = [e for e in EVENTS if isinstance(e, fund.MoneyReceived) and e.origin == "sponsor"]
    assert postings(event)[0] == Posting("fen", "sponsors", -(10**15))


@pytest.mark.parametrize(
    ("asset", "name", "least"),
    [
        ("mg", "issued", None),
        ("mg", "resident/res_1", 0),
        ("mg", "debt/res_1", None),
        ("mg", "pool/pool_1", 0),
        ("mg", "retired", 0),
        ("points", "held/res_1", 0),
        ("points", "merchant/bakery", None),
        ("points", "redeemed", 0),
        ("fen", "merchant/bakery", 0),
        ("fen", "owed/bakery", 0),
        ("fen", "fund", 0),
        ("fen", "sponsors", None),
    ],
)
def test_an_account_has_the_floor_of_its_kind(asset: Asset, name: str, least: int | None) -> None:
    assert floor(asset, name) == least


def test_the_kinds_without_floor_are_those_that_stand_below_zero_by_their_nature() -> None:
    assert {"issued", "debt", "buyers", "sponsors", "commitments"} == NO_FLOOR
