"""The identity that each event used: the words whose hash is its claim. None where the state alone decides."""

from collections.abc import Callable
from typing import Any

from carbon_points.domain import account, fund, lot, merchant, source
from carbon_points.domain.event import Event

Words = tuple[str, ...]

WORDS: dict[type[Event], Callable[[Any], Words | None]] = {
    source.SourceRegistered: lambda e: ("source", e.source),
    account.AccountOpened: lambda e: None if e.opened_by else ("account", e.resident),
    account.ConsentGiven: lambda e: ("consent", e.resident, e.consent.id),
    account.ConsentWithdrawn: lambda e: ("withdrawal", e.resident, e.consent_id),
    account.ActionCredited: lambda e: ("action", e.source, e.record_id),
    account.TapRecorded: lambda e: ("action", e.source, e.record_id),
    account.ActionReversed: lambda e: ("reversal", e.source, e.record_id),
    account.PointsHeld: lambda e: ("redemption", e.redemption_id),
    account.PointsCaptured: lambda e: ("capture", e.redemption_id),
    account.HoldReleased: lambda e: ("void", e.redemption_id) if e.cause == "voided" else None,
    account.PointsRefunded: lambda e: ("refund", e.redemption_id, e.refund_id),
    account.ReductionsPooled: lambda e: ("pooling", e.pool_id, str(e.gathering), e.resident),
    merchant.MerchantRegistered: lambda e: ("merchant", e.merchant),
    merchant.TerminalEnrolled: lambda e: ("terminal", e.merchant, e.terminal),
    merchant.SettlementClosed: lambda e: ("settlement", e.merchant, e.settlement_id),
    lot.PoolOpened: lambda e: ("pool", e.pool_id),
    lot.GatheringSealed: lambda e: ("seal", e.pool_id, str(e.gathering)),
    lot.PoolVerified: lambda e: ("verification", e.pool_id, e.verification_id),
    lot.LotIssued: lambda e: ("lot", e.pool_id, e.lot_id),
    lot.UnitsSold: lambda e: ("sale", e.lot_id, e.sale_id),
    lot.UnitsRetired: lambda e: ("retirement", e.lot_id, e.retirement_id),
    fund.MoneyReceived: lambda e: ("receipt", e.receipt_id),
    fund.MerchantPaid: lambda e: ("payment", e.merchant, e.settlement_id),
}


def identity(event: Event) -> Words | None:
    words = WORDS.get(type(event))
    return words(event) if words else None
