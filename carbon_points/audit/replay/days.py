"""Days in China, and what was in force around an instant. The verifier's own, not the domain's."""

from datetime import UTC, date, datetime, timedelta
from typing import Generic, TypeVar

T = TypeVar("T")

# Rules lie in one partition and what they decide in another; each is stamped by the clock of whoever wrote it, and a
# writer may know a rule a moment late. So a rule counts as known within this time before and after it was recorded.
GRACE = timedelta(seconds=60)
_CHINA = timedelta(hours=8)
_MONTHS = 12


def china_day(at: datetime) -> date:
    return (at.astimezone(UTC) + _CHINA).date()


def month(day: date) -> str:
    return day.isoformat()[:7]


def span(of_month: str) -> tuple[datetime, datetime]:
    """The instants at which a month begins and the next one does, in China."""
    first = date.fromisoformat(f"{of_month}-01")
    return _midnight(first), _midnight(month_end(first, 0) + timedelta(days=1))


def month_end(day: date, months: int) -> date:
    """The last day of the month that many months later."""
    count = day.year * _MONTHS + day.month + months  # counted from 1: this is the month after the wanted one
    return date(count // _MONTHS, count % _MONTHS + 1, 1) - timedelta(days=1)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC) - _CHINA


class History(Generic[T]):
    """What something was, from when on."""

    def __init__(self) -> None:
        self._changes: list[tuple[datetime, T]] = []

    def add(self, since: datetime, value: T) -> None:
        self._changes.append((since, value))

    @property
    def latest(self) -> T | None:
        return self._changes[-1][1] if self._changes else None

    def around(self, at: datetime) -> list[T]:
        """Everything that it was at some instant within GRACE of this one."""
        if len(self._changes) == 1:
            since, value = self._changes[0]
            return [value] if since <= at + GRACE else []
        ends = [since for since, _ in self._changes[1:]]
        return [
            value
            for index, (since, value) in enumerate(self._changes)
            if since <= at + GRACE and (index == len(ends) or ends[index] >= at - GRACE)
        ]
