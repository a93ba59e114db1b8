"""Payments that a terminal took while it was offline, with an allowance that the resident's phone had fetched before.

The merchant bears the risk: whoever spends more than they have is found out when the payment is sent, and the goods are
gone. So it is off unless the merchant's terms say how much of it there may be. What one payment may be worth, and how
late it may come, is decided here; how many payments a terminal keeps, and their sum, only the terminal can know.
"""

from datetime import datetime, timedelta
from typing import Annotated

from msgspec import Meta, Struct

from carbon_points.domain.refusal import Refusal

CLOCK_SKEW = timedelta(minutes=5)  # how far ahead of ours a terminal's clock may run
CLAIM = "alw:"  # before an allowance's id, where an order says the payment code that it uses up


class Offline(Struct, frozen=True, forbid_unknown_fields=True):
    """`most_points` of one payment; `most_count` and `most_sum` of all that a terminal keeps until they are sent;
    `most_age_hours` from the payment until it is sent."""

    most_points: Annotated[int, Meta(ge=1, le=10**9)]
    most_count: Annotated[int, Meta(ge=1, le=500)]
    most_sum: Annotated[int, Meta(ge=1, le=10**9)]
    most_age_hours: Annotated[int, Meta(ge=1, le=24)]


class OfflineNotAllowed(Refusal):
    code = "offline-not-allowed"
    title = "The merchant takes nothing offline"


class OfflineInFuture(Refusal):
    code = "offline-in-future"
    title = "The terminal's clock is ahead: the payment is of a time that has not come"


class OfflineTooLate(Refusal):
    code = "offline-too-late"
    title = "The payment was taken longer ago than the merchant's terms allow"


class OfflineExceedsTerms(Refusal):
    code = "offline-exceeds-terms"
    title = "More points than the merchant takes offline at once"


def admit(points: int, captured_at: datetime, terms: Offline | None, *, now: datetime) -> None:
    """Refusals, in order: OfflineNotAllowed, OfflineInFuture, OfflineTooLate, OfflineExceedsTerms."""
    if terms is None:
        raise OfflineNotAllowed
    if captured_at > now + CLOCK_SKEW:
        raise OfflineInFuture(captured_offline_at=captured_at)
    if now - captured_at > timedelta(hours=terms.most_age_hours):
        raise OfflineTooLate(captured_offline_at=captured_at, most_age_hours=terms.most_age_hours)
    within(points, terms)


def within(points: int, terms: Offline | None) -> None:
    """The same of a payment that is yet to be made. Refusals, in order: OfflineNotAllowed, OfflineExceedsTerms."""
    if terms is None:
        raise OfflineNotAllowed
    if points > terms.most_points:
        raise OfflineExceedsTerms(points=points, most_points=terms.most_points)
