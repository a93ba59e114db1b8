"""What each event moves between accounts: three assets, one mechanism, one page.

The postings of an event sum to zero in every asset. The loop is closed when all accounts together do (the trial
balance), and no account is below its floor. Assets: milligrams of CO2e, points, fen.

| asset  | account      | floor | what stands on it |
|--------|--------------|-------|-------------------|
| mg     | issued       | none  | less all reductions ever credited, reversals taken back |
| mg     | resident/R   | 0     | the resident's reductions that are not pooled |
| mg     | debt/R       | none, never above 0 | reductions to be taken back that were pooled already |
| mg     | pool/P       | 0     | gathered and not issued |
| mg     | lot/L        | 0     | issued and for sale |
| mg     | buyer/B      | 0     | sold and not retired |
| mg     | retired      | 0     | used, for good |
| points | issued       | none  | less all points ever granted |
| points | resident/R   | 0     | available |
| points | held/R       | 0     | set aside for redemptions |
| points | debt/R       | none, never above 0 | to be taken back, spent already |
| points | merchant/M   | none  | captured less refunded, not settled (below 0: refunds after a settlement) |
| points | redeemed     | 0     | settled |
| points | expired      | 0     | run out |
| fen    | buyers, sponsors | none | less what they paid in |
| fen    | fund         | 0     | money at hand |
| fen    | commitments  | none  | less what settlements owe |
| fen    | owed/M       | 0     | what settlements owe a merchant |
| fen    | merchant/M   | 0     | what a merchant was paid |
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from carbon_points.domain import account, fund, lot, merchant
from carbon_points.domain.event import Event
from carbon_points.domain.quantity import MG_PER_KG

Asset = Literal["mg", "points", "fen"]
NO_FLOOR = frozenset({"issued", "debt", "buyers", "sponsors", "commitments"})


class Posting(NamedTuple):
    """`amount` is added to the account; postings of one event sum to zero in each asset."""

    asset: Asset
    account: str
    amount: int


def floor(asset: Asset, name: str) -> int | None:
    """The least that may stand on an account, or None."""
    kind = name.partition("/")[0]
    return None if kind in NO_FLOOR or (asset, kind) == ("points", "merchant") else 0


def postings(event: Event) -> list[Posting]:
    """The movements of an event, without those of nothing. Events that move nothing have none."""
    return [posting for posting in _moves(event) if posting.amount]


def _move(asset: Asset, origin: str, target: str, amount: int) -> tuple[Posting, Posting]:
    return Posting(asset, origin, -amount), Posting(asset, target, amount)


def _moves(event: Event) -> Iterable[Posting]:
    match event:
        case account.ActionCredited(resident=r):
            yield from _move("mg", "issued", f"resident/{r}", event.reduction_mg - event.debt_mg)
            yield from _move("mg", "issued", f"debt/{r}", event.debt_mg)
            yield from _move("points", "issued", f"resident/{r}", event.points - event.debt_points)
            yield from _move("points", "issued", f"debt/{r}", event.debt_points)
        case account.ActionReversed(resident=r):
            yield from _move("mg", f"resident/{r}", "issued", event.reduction_mg - event.debt_mg)
            yield from _move("mg", f"debt/{r}", "issued", event.debt_mg)
            yield from _move("points", f"resident/{r}", "issued", _sum(event.taken))
            yield from _move("points", f"debt/{r}", "issued", event.debt_points)
        case account.PointsHeld(resident=r):
            yield from _move("points", f"resident/{r}", f"held/{r}", _sum(event.taken))
        case account.PointsCaptured(resident=r):
            yield from _move("points", f"held/{r}", f"merchant/{event.merchant}", _sum(event.taken))
            yield from _move("points", f"held/{r}", f"resident/{r}", _sum(event.released))
            yield from _move("points", f"held/{r}", f"debt/{r}", event.debt_points)
        case account.HoldReleased(resident=r):
            yield from _move("points", f"held/{r}", f"resident/{r}", _sum(event.released))
            yield from _move("points", f"held/{r}", f"debt/{r}", event.debt_points)
        case account.PointsRefunded(resident=r):
            yield from _move("points", f"merchant/{event.merchant}", f"resident/{r}", _sum(event.restored))
            yield from _move("points", f"merchant/{event.merchant}", f"debt/{r}", event.debt_points)
        case account.PointsExpired(resident=r):
            yield from _move("points", f"resident/{r}", "expired", _sum(event.taken))
        case account.ReductionsPooled(resident=r):
            yield from _move("mg", f"resident/{r}", f"pool/{event.pool_id}", event.reduction_mg)
        case lot.LotIssued():
            yield from _move("mg", f"pool/{event.pool_id}", f"lot/{event.lot_id}", event.kg * MG_PER_KG)
        case lot.UnitsSold():
            yield from _move("mg", f"lot/{event.lot_id}", f"buyer/{event.buyer}", event.kg * MG_PER_KG)
        case lot.UnitsRetired():
            yield from _move("mg", f"buyer/{event.holder}", "retired", event.kg * MG_PER_KG)
        case merchant.SettlementClosed(merchant=m):
            yield from _move("points", f"merchant/{m}", "redeemed", event.points)
            yield from _move("fen", "commitments", f"owed/{m}", event.amount_fen)
        case fund.MoneyReceived():
            yield from _move("fen", "buyers" if event.origin == "sale" else "sponsors", "fund", event.amount_fen)
        case fund.MerchantPaid(merchant=m):
            yield from _move("fen", "fund", f"merchant/{m}", event.amount_fen)
            yield from _move("fen", f"owed/{m}", "commitments", event.amount_fen)
        case _:
            return


def _sum(allocations: Iterable[tuple[object, int]]) -> int:
    return sum(points for _, points in allocations)
