"""The first reading: a consistent cut over the partitions, and everything in it that is not a resident's.

Rules (tables, sources, merchants, pools, the fund) are few and decide what residents' entries may say, whichever
partition they lie in. So they are known before any resident is replayed, and the cut holds every rule that an entry
in it may have followed.
"""

from collections.abc import Iterator, Mapping

from carbon_points.audit.envelope import Envelope, is_resident
from carbon_points.audit.finding import found, must
from carbon_points.audit.log import Log, gapless
from carbon_points.audit.replay.merchant import Vector, vector
from carbon_points.audit.replay.order import ORDERS
from carbon_points.domain.event import Event
from carbon_points.domain.fund import MerchantPaid
from carbon_points.domain.lot import GatheringSealed
from carbon_points.domain.merchant import SettlementClosed
from carbon_points.journal.entry import Entry

_TRIES = 1_000


class Survey:
    """`heads`: how far to read each partition. `rules`: every entry up to there that is not a resident's."""

    def __init__(self, log: Log) -> None:
        """Raises Found where a position is missing, or a rule's entry is not well-formed."""
        self._log = log
        self._envelopes = [Envelope(partition, log.partitions) for partition in range(log.partitions)]
        self.rules: list[tuple[Entry, Event]] = []
        self.heads = self._cut()

    def _cut(self) -> Mapping[int, int]:
        """Heads between whose reading and the next no rule was written, and what those rules say they cover.

        Heads are read one after another. An entry below one of them may follow a rule that lies beyond another; it
        cannot if, once all were read, no rule lies beyond any of them.
        """
        heads: dict[int, int] = {}
        for _ in range(_TRIES):
            known, later = len(self.rules), dict(self._log.heads())
            for partition, head in later.items():
                self.rules.extend(self._read(partition, heads.get(partition, 0), head))
            if heads and len(self.rules) == known:
                return self._extended(heads, later)
            heads = later
        return self._extended(heads, self._log.heads())

    def _read(self, partition: int, after: int, until: int) -> Iterator[tuple[Entry, Event]]:
        for entry in gapless(self._log, partition, after, until):
            if is_resident(entry.stream):
                continue
            try:
                event = self._envelopes[partition].open(entry)
            except Exception as error:  # whatever the bytes lead to is a finding
                raise found(entry, error) from error
            if not isinstance(event, ORDERS):  # they are many, and decide nothing
                yield entry, event

    def _extended(self, heads: Mapping[int, int], known: Mapping[int, int]) -> Mapping[int, int]:
        """The heads, further where a rule below them says that it covers more: until none does."""
        settled = {
            (event.merchant, event.settlement_id): {entry.partition: entry.position}
            for entry, event in self.rules
            if isinstance(event, SettlementClosed)
        }
        covers = [(entry, self._covered(entry, event, settled, known)) for entry, event in self.rules]
        cut, before = dict(heads), dict[int, int]()
        while cut != before:
            before = dict(cut)
            for entry, covered in covers:
                if covered and entry.position <= cut[entry.partition]:
                    cut = {partition: max(position, covered.get(partition, 0)) for partition, position in cut.items()}
        return cut

    def _covered(
        self, entry: Entry, event: Event, settled: Mapping[tuple[str, str], Vector], known: Mapping[int, int]
    ) -> Vector:
        """The positions that a rule's own meaning reaches to. A payment of no settlement is found later."""
        try:
            match event:
                case SettlementClosed() | GatheringSealed():
                    covered = vector(event.through, self._log.partitions)
                case MerchantPaid():
                    covered = settled.get((event.merchant, event.settlement_id), {})
                case _:
                    return {}
            beyond = [partition for partition, position in covered.items() if position > known[partition]]
            must(not beyond, f"it covers positions of partitions {beyond} that the log does not have")
        except Exception as error:  # whatever the bytes lead to is a finding
            raise found(entry, error) from error
        return covered
