"""The identities that each event used: the words whose hashes are its claims. None where the state alone decides."""

from collections.abc import Callable
from typing import Any

from carbon_points.domain import account, fund, lot, merchant, offer, order, source, terminal
from carbon_points.domain.event import Event

Words = tuple[str, ...]

_CAPTURED = {"capture": "capture", "hold": "redemption", "confirmation": "confirmation"}
_RELEASED = {"voided": "void", "declined": "confirmation", "reversed": "redemption-reversal"}
WORDS: dict[type[Event], Callable[[Any], Words | None]] = {
    source.SourceRegistered: lambda e: ("source", e.source),
    account.AccountOpened: lambda e: None if e.opened_by else ("account", e.resident),
    account.ConsentGiven: lambda e: ("consent", e.resident, e.consent.id),
    account.ConsentWithdrawn: lambda e: ("withdrawal", e.resident, e.consent_id),
    account.ActionCredited: lambda e: ("action", e.source, e.record_id),
    account.TapRecorded: lambda e: ("action", e.source, e.record_id),
    account.ActionReversed: lambda e: ("reversal", e.source, e.record_id),
    account.PointsHeld: lambda e: None if e.capture and not e.confirm_seconds else ("redemption", e.redemption_id),
    account.HoldDeclined: lambda e: (
        ("redemption-reversal", e.redemption_id) if e.reason == "reversed" else ("redemption", e.redemption_id)
    ),
    account.PointsCaptured: lambda e: (_CAPTURED[e.by], e.redemption_id),
    account.HoldReleased: lambda e: (_RELEASED[e.cause], e.redemption_id) if e.cause in _RELEASED else None,
    account.PointsRefunded: lambda e: (
        ("redemption-reversal", e.redemption_id) if e.reversal else ("refund", e.redemption_id, e.refund_id)
    ),
    account.ReductionsPooled: lambda e: ("pooling", e.pool_id, str(e.gathering), e.resident),
    merchant.MerchantRegistered: lambda e: ("merchant", e.merchant),
    merchant.TerminalEnrolled: lambda e: ("terminal", e.merchant, e.terminal),
    order.OrderPlaced: lambda e: ("order", e.redemption_id),
    order.OrderDeclined: lambda e: ("order", e.redemption_id),
    order.OrderReversed: lambda e: ("order-reversal", e.redemption_id),
    offer.OfferPublished: lambda e: ("offer", e.merchant, e.offer),
    offer.OfferChanged: lambda e: ("offer-change", e.merchant, e.offer, e.change_id),
    offer.CampaignOpened: lambda e: ("campaign", e.merchant, e.campaign),
    offer.CampaignChanged: lambda e: ("campaign-change", e.merchant, e.campaign, e.change_id),
    terminal.TerminalKeyAdded: lambda e: ("terminal-key", e.public_key),
    order.BatchClosed: lambda e: ("batch", e.merchant, e.terminal, str(e.batch)),
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


def used_up(event: Event) -> Words | None:
    """The payment code that a call used up, whether or not it held anything."""
    if isinstance(event, account.PointsHeld | account.HoldDeclined) and event.code_step is not None:
        return ("code", event.code_step)
    return None
