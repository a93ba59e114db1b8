"""What a journal keeps beside its entries, held against what the entries come to: claims and states."""

from collections.abc import Iterable, Iterator
from typing import Any

from carbon_points.audit.finding import Finding, Found, Wrong, must, number, reason_of, same, text
from carbon_points.audit.log import Log
from carbon_points.audit.replay.account import Residents
from carbon_points.audit.scratch import Scratch
from carbon_points.domain.account import Redemption
from carbon_points.domain.methodology import Used
from carbon_points.domain.offer import Offer, Use
from carbon_points.domain.order import Order, Till
from carbon_points.domain.terminal import Identity
from carbon_points.journal.entry import Claim, StateRow
from carbon_points.journal.streams import decode_state, kind_of

_PARTS = {
    "usage": dict[str, Used],
    "redemptions": Redemption,
    "orders": Order,
    "tills": Till,
    "offers": Offer,
    "uses": Use,
    "identities": Identity,
}
_OWN = "year/"  # a part that only the verifier keeps


class Beside:
    """One partition that was read up to `head`."""

    def __init__(self, log: Log, partition: int, head: int, scratch: Scratch) -> None:
        self._log, self._partition, self._head, self._scratch = log, partition, head, scratch

    def _moved(self) -> bool:
        """Whether entries came after what was read: then rows may be newer than that, and nothing is wrong with it."""
        return self._log.heads()[self._partition] > self._head

    # -- claims ------------------------------------------------------------------------------------------------------

    def check_claims(self, versions: dict[str, tuple[int, int]]) -> None:
        """Each claim is the identity of the event that it names, and each identity has its claim. Raises Found.

        `versions`: the version and last position of each stream.
        """
        if (stored := self._log.claims(self._partition)) is None:
            return
        nowhere = self._head + 1
        first: tuple[int, Claim, str] | None = None
        for claim, used in _side_by_side(stored, self._scratch.identities(self._partition)):
            newer = claim is not None and claim.version > versions.get(claim.stream, (0, 0))[0]
            reason = "" if newer and used is None and self._moved() else _mismatch(claim, used)
            if reason:
                place, position = used or (claim, nowhere)
                assert place is not None
                if first is None or position < first[0]:
                    first = (position, place, reason)
        if first:
            position, place, reason = first
            position = self._position_of(place) if position == nowhere else position
            raise Found(self._finding(place.stream, place.version, position, reason))

    def _position_of(self, claim: Claim) -> int:
        """Where the event lies that a wrong claim names, if anywhere."""
        entries = self._log.entries(self._partition, 0, self._head)
        return next((e.position for e in entries if (e.stream, e.version) == (claim.stream, claim.version)), 0)

    # -- states ------------------------------------------------------------------------------------------------------

    def check_states(self, residents: Residents, others: dict[str, tuple[Any, int, int]]) -> None:
        """Each state row is what its stream's events come to, and none is missing. Raises Found.

        `others` are the state, version and last position of the streams that are not residents'.
        """
        if (rows := self._log.states(self._partition)) is None:
            return
        left = set(residents.by_stream) | set(others)
        parts = (key for key in self._scratch.parts() if not key[1].startswith(_OWN))
        expected = next(parts, None)
        for row in rows:
            resident = residents.by_stream.get(row.stream)
            state, version, position = (
                (resident.account, resident.version, resident.position)
                if resident
                else others.get(row.stream, (None, 0, 0))
            )
            try:
                if row.part == "":
                    left.discard(row.stream)
                elif (row.stream, row.part) == expected:
                    expected = next(parts, None)
                self._check_row(row, state, version)
            except Exception as error:  # whatever the bytes lead to is a finding
                raise Found(self._finding(row.stream, row.version, position, reason_of(error))) from error
        if left or expected:
            stream = min(left) if left else expected[0] if expected else ""
            resident = residents.by_stream.get(stream)
            place = (resident.version, resident.position) if resident else others[stream][1:]
            raise Found(self._finding(stream, *place, "its state, or a part of it, has no row"))

    def _check_row(self, row: StateRow, state: Any, version: int) -> None:
        if row.version > version and self._moved():
            return
        must(state is not None, "a state row names a stream that the log does not have")
        if row.part == "":
            same("version of the state row", row.version, version)
            _same_state(decode_state(kind_of(row.stream).state_type, row.state), state)
            return
        changed = self._scratch.changed_at(row.stream, row.part)
        if changed is None or row.part.startswith(_OWN):
            raise Wrong(f"a state row names a part that the log does not have: {row.part}")
        must(changed <= row.version <= version, f"the state row of {row.part} is of another version")
        kind = row.part.partition("/")[0]
        value = self._scratch.part(row.stream, row.part)
        assert value is not None
        same(row.part, decode_state(_PARTS[kind], row.state), decode_state(_PARTS[kind], value))

    def _finding(self, stream: object, version: object, position: int, reason: str) -> Finding:
        return Finding(
            partition=self._partition, position=position, stream=text(stream), version=number(version), reason=reason
        )


def _mismatch(claim: Claim | None, used: tuple[Claim, int] | None) -> str:
    if claim is None:
        return "its identity has no claim"
    if used is None:
        return "a claim names it, and it used no such identity"
    return "" if claim == used[0] else f"its claim names {claim.stream} {claim.version}"


def _same_state(said: Any, found: Any) -> None:
    """The difference is named by its field, so that the reason is short."""
    if said == found:
        return
    for field in found.__struct_fields__:
        same(f"state row: {field}", getattr(said, field), getattr(found, field))


def _side_by_side(
    stored: Iterable[Claim], used: Iterable[tuple[Claim, int]]
) -> Iterator[tuple[Claim | None, tuple[Claim, int] | None]]:
    """Two runs in the order of their keys, as pairs of the same key."""
    left, right = iter(stored), iter(used)
    claim, use = next(left, None), next(right, None)
    while claim or use:
        if use is None or (claim is not None and claim.key < use[0].key):
            yield claim, None
            claim = next(left, None)
        elif claim is None or use[0].key < claim.key:
            yield None, use
            use = next(right, None)
        else:
            yield claim, use
            claim, use = next(left, None), next(right, None)
