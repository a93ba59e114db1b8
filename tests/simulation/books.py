"""What a terminal's calls came to, by its own journal: one outcome after another."""

from collections import defaultdict
from collections.abc import Iterator

from carbon_points_terminal import Call, Journal
from carbon_points_terminal.call import Capture, Refund, Sale


def calls(journal: Journal) -> list[Call]:
    """All of them. Each must have its end."""
    found = journal.recent(1_000_000)
    assert all(call.outcome for call in found)
    return found


def sales(journal: Journal) -> Iterator[tuple[Call, int]]:
    """Each sale, and what it came to after all that followed it."""
    after: defaultdict[str, list[Call]] = defaultdict(list)
    every = calls(journal)
    for call in every:
        after[getattr(call.ask, "of", "")].append(call)
    for sale in every:
        if isinstance(sale.ask, Sale):
            yield sale, _net(sale, sale.ask, after[sale.reference])


def _net(sale: Call, ask: Sale, after: list[Call]) -> int:
    assert sale.outcome is not None
    if sale.outcome.result != "approved":
        return 0
    points = sale.outcome.points if ask.capture else 0
    for call in after:
        assert call.outcome is not None
        if call.outcome.result == "approved":
            captured, refunded = isinstance(call.ask, Capture), isinstance(call.ask, Refund)
            points += call.outcome.points * (captured - refunded)
    return points
