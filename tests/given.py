"""What tests are given: tables with round numbers, commands with everything said, a resident who lives by them.

Tables here are nobody's regulation: their numbers are chosen so that results can be reckoned in the head.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import carbon_points.methodologies
from carbon_points.domain import account, methodology
from carbon_points.domain.account import Account, ActionFacts, ReversalFacts
from carbon_points.domain.consent import Consent
from carbon_points.domain.event import Command, Event
from carbon_points.domain.methodology import Methodologies, MethodologyPublished, PublishMethodology
from carbon_points.domain.quantity import CHINA
from carbon_points.domain.source import Source

SEED = Path(carbon_points.methodologies.__file__).parent
NOON = datetime(2025, 6, 15, 4, tzinfo=UTC)  # in China, on a Sunday
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def china(text: str) -> datetime:
    """An instant from its Chinese civil time: `china("2025-06-15 12:00")`."""
    return datetime.fromisoformat(text).replace(tzinfo=CHINA).astimezone(UTC)


# -- tables ----------------------------------------------------------------------------------------------------------


def table(
    name: str = "bus",
    version: str = "1",
    *,
    begins: str = "2020-01-01",
    until: str | None = None,
    unit: str = "km",
    least: str = "1",
    most: str = "100",
    grams: str = "2",
    how: str = "half-even",
    per: str = "action",
    points: int = 10,
    months: int = 12,
    expire_at: str = "month-end",
    caps: str = "",
    taps: str = "",
) -> str:
    """The text of a table: 2 g a kilometre and 10 points a ride, unless said otherwise."""
    adopted = f"from = {begins}" + (f", until = {until}" if until else "")
    return "\n".join(
        (
            f'id = "{name}"',
            f'version = "{version}"',
            'title = { en = "Test", zh = "测试" }',
            f"adopted = {{ {adopted} }}",
            'formula = "quantity_times_factor"',
            f'quantity = {{ unit = "{unit}", least = "{least}", most = "{most}" }}',
            f'factors.reduction = {{ value = "{grams}", unit = "gCO2e/{unit}", source = "nobody" }}',
            f'rounding = {{ to = "1 mg", how = "{how}" }}',
            f'points.rule = {{ per = "{per}", points = {points} }}',
            f'points.expire = {{ months = {months}, at = "{expire_at}" }}',
            caps and f"[caps]\n{caps}",
            taps and f"[taps]\n{taps}",
        )
    )


METRO_TAPS = 'entry = "metro_in"\nexit = "metro_out"\nunit = "tap"\nwithin_minutes = 240'


def metro(version: str = "1", **said: Any) -> str:
    """A ride made of two taps: 46 g and 10 points."""
    said = {"unit": "trip", "least": "1", "most": "1", "grams": "46", "taps": METRO_TAPS} | said
    return table("metro", version, **said)


def publish(*texts: str, into: Methodologies | None = None) -> Methodologies:
    """The tables of these texts as they stand once published, in that order."""
    known = into if into is not None else Methodologies()
    for text in texts:
        read = methodology.parse(text)
        command = PublishMethodology(methodology=read.id, version=read.version, table=text)
        for event in methodology.decide(known, command, now=NOON):
            assert isinstance(event, MethodologyPublished)
            methodology.evolve(known, event)
    return known


def seed_tables() -> list[Path]:
    """The files of this installation's own tables, each behaviour's in the order of their versions."""
    return sorted(path for path in SEED.glob("*/*.toml") if not path.name.endswith(".examples.toml"))


# -- commands --------------------------------------------------------------------------------------------------------


def source(name: str = "szt", **said: Any) -> Source:
    """A source that opens accounts by the consents it holds."""
    fields = {"name": "深圳通", "behaviours": ("bus",), "opens_accounts": True, "lateness_days": None, "county": None}
    return Source(id=name, **(fields | said))


def ride(record_id: str = "1", **said: Any) -> account.RecordAction:
    """One kilometre by bus at noon, as the source says it."""
    fields = {
        "resident": "res_1",
        "source": "szt",
        "behaviour": "bus",
        "quantity": Decimal(1),
        "unit": "km",
        "occurred_at": NOON,
    }
    return account.RecordAction(record_id=record_id, **(fields | said))


def tap(record_id: str, behaviour: str, at: datetime, **said: Any) -> account.RecordAction:
    return ride(record_id, behaviour=behaviour, quantity=Decimal(1), unit="tap", occurred_at=at, **said)


def reversal(record_id: str = "1", **said: Any) -> account.ReverseAction:
    return account.ReverseAction(
        **({"resident": "res_1", "source": "szt", "reason": "misread"} | said), record_id=record_id
    )


def holding(redemption_id: str = "d1", points: int = 10, **said: Any) -> account.HoldPoints:
    """Points set aside for five minutes at the bakery, worth a fen each."""
    fields = {
        "resident": "res_1",
        "merchant": "bakery",
        "terminal": "till-1",
        "amount_fen": points,
        "hold_seconds": 300,
    }
    return account.HoldPoints(redemption_id=redemption_id, points=points, **(fields | said))


def capturing(redemption_id: str = "d1", points: int = 10, **said: Any) -> account.CapturePoints:
    return account.CapturePoints(**({"resident": "res_1"} | said), redemption_id=redemption_id, points=points)


def voiding(redemption_id: str = "d1", **said: Any) -> account.VoidHold:
    return account.VoidHold(**({"resident": "res_1"} | said), redemption_id=redemption_id)


def refunding(
    refund_id: str = "f1", points: int = 10, *, redemption_id: str = "d1", resident: str = "res_1"
) -> account.RefundPoints:
    return account.RefundPoints(resident=resident, redemption_id=redemption_id, refund_id=refund_id, points=points)


def consent(name: str = "c1", purpose: Any = "record", **said: Any) -> Consent:
    return Consent(
        id=name, purpose=purpose, **({"version": "2025-1", "from_": datetime(2020, 1, 1, tzinfo=UTC)} | said)
    )


def pooling(pool_id: str = "pool_1", **said: Any) -> account.PoolReductions:
    fields = {
        "resident": "res_1",
        "gathering": 1,
        "methodology": "bus",
        "version": "1",
        "from_month": "2025-01",
        "until_month": "2025-12",
    }
    return account.PoolReductions(pool_id=pool_id, **(fields | said))


# -- a life ----------------------------------------------------------------------------------------------------------


class Life:
    """One resident's account, lived through pure decisions: what is due, then what is decided, then evolve.

    `reported` remembers what was credited, as the journal does, so that it can be reversed.
    """

    def __init__(self, *texts: str, at: datetime = NOON, sources: Sequence[Source] = (), opened: bool = True) -> None:
        self.account = Account("res_1")
        self.now = at
        self.tables = publish(*(texts or (table(),)))
        self.sources = {s.id: s for s in sources or (source(),)}
        self.events: list[Event] = []
        self.reported: dict[tuple[str, str], Event] = {}
        if opened:
            self.do(account.OpenAccount(resident="res_1"))
            self.do(account.GiveConsent(resident="res_1", consent=consent()))

    def wait(self, by: timedelta) -> "Life":
        self.now += by
        return self

    def until(self, moment: datetime) -> "Life":
        self.now = moment
        return self

    def do(self, command: Command) -> list[Event]:
        """What the command made happen, without what was due before it."""
        for event in account.due(self.account, self.now):
            self._take(event)
        facts: object = None
        if isinstance(command, account.RecordAction):
            facts = ActionFacts(self.tables, self.sources[command.source])
        elif isinstance(command, account.ReverseAction):
            facts = ReversalFacts(self.reported.get((command.source, command.record_id)))
        made = account.decide(self.account, command, now=self.now, facts=facts)
        for event in made:
            self._take(event)
        return made

    def _take(self, event: Event) -> None:
        account.evolve(self.account, event)
        self.events.append(event)
        if isinstance(event, account.ActionCredited | account.TapRecorded):
            self.reported[(event.source, event.record_id)] = event

    def lapse(self) -> list[Event]:
        """What was due by now."""
        before = len(self.events)
        self.do(account.LapseDue(resident="res_1"))
        return self.events[before:]

    @property
    def available(self) -> int:
        return self.account.available(self.now)

    @property
    def held(self) -> int:
        return self.account.held(self.now)
