"""Consent: what a resident allows, for which purpose, from when until when.

Recording actions and trading reductions are two purposes, asked for and withdrawn separately. A consent is never
edited: another one is given beside it, or it is withdrawn.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from msgspec import Struct

Purpose = Literal["record", "trade"]


class Consent(
    Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"from_": "from"}, forbid_unknown_fields=True
):
    """`source` and `behaviours` narrow it (None: all). `version` names the text that was agreed to.

    `asserted_by` is the source that holds the consent on paper, where the resident did not give it to us.
    """

    id: str
    purpose: Purpose
    version: str
    from_: datetime
    until: datetime | None = None
    source: str | None = None
    behaviours: tuple[str, ...] | None = None
    asserted_by: str | None = None

    def covers(self, behaviour: str, *, source: str | None, start: datetime, end: datetime) -> bool:
        """Whether the whole span from `start` to `end` of this behaviour (and source, if given) is allowed."""
        return (
            self.from_ <= start
            and (self.until is None or end <= self.until)
            and (self.source is None or source is None or self.source == source)
            and (self.behaviours is None or behaviour in self.behaviours)
        )


def covering(
    consents: Iterable[Consent], purpose: Purpose, behaviour: str, *, source: str | None, start: datetime, end: datetime
) -> Consent | None:
    """The first consent that allows it."""
    for consent in consents:
        if consent.purpose == purpose and consent.covers(behaviour, source=source, start=start, end=end):
            return consent
    return None
