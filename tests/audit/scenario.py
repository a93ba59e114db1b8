"""A small city's life in one log: every type of event, most caps, debts, late and half rides, two gatherings.

Everything is said through the real journal, by a clock that the scenario moves. What facts a decision needs is summed
here from the log, slowly and plainly.
"""

import base64
import hashlib
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from carbon_points.audit.merkle import root_of
from carbon_points.domain import account, fund, lot, merchant, methodology, offer, order, source, terminal
from carbon_points.domain.consent import Consent
from carbon_points.domain.event import Command, Event
from carbon_points.domain.offline import Offline
from carbon_points.domain.quantity import CHINA
from carbon_points.journal import codec
from carbon_points.journal.journal import Journal, open_journal
from carbon_points.journal.partition import Outcome, Write
from carbon_points.methodologies import shipped
from carbon_points.projections.merchants import Row
from carbon_points.projections.settlement_file import Head, files

PARTITIONS = 3
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CLOTHES = "clothes_recycling"
ALL = ("bus", "metro", "shared_bike", "walk", "waste_sorting", "car_parked", CLOTHES)


def china(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+08:00").astimezone(UTC)


def resident(name: str, partition: int) -> str:
    """A resident whose account lies in that partition."""
    return next(r for n in range(100) if zlib.crc32((r := f"res_{name}{n}").encode()) % PARTITIONS == partition)


ANN, BOB, CEM, DAN, EVE = (resident(n, p) for n, p in (("ann", 0), ("bob", 1), ("cem", 2), ("dan", 0), ("eve", 1)))


@contextmanager
def racing(journal: Journal) -> Generator[None]:
    """As if the other partitions had nothing yet: what two reports that race each other see."""
    kept = [partition.others for partition in journal.partitions]
    for partition in journal.partitions:
        partition.others = ()
    yield
    for partition, others in zip(journal.partitions, kept, strict=True):
        partition.others = others


class City:
    """A journal and the clock that it reads. A strict one knows beforehand what is refused."""

    def __init__(self, url: str, at: datetime, *, strict: bool = True) -> None:
        self.now, self.strict = at, strict
        self.journal: Journal = open_journal(url, partitions=PARTITIONS, clock=lambda: self.now)

    def do(self, command: Command, facts: object = None, *, refused: str | None = None) -> Outcome:
        self.now += timedelta(seconds=1)
        if isinstance(command, account.RecordAction):
            self.journal.rules_changed()
            rules = self.journal.rules()
            facts = account.ActionFacts(rules.methodologies, rules.sources.reporting(command.source, command.behaviour))
        if isinstance(command, account.ReverseAction):
            entry = self.journal.find(("action", command.source, command.record_id))
            facts = account.ReversalFacts(codec.decode(entry.type, entry.state) if entry else None)
        [outcome] = self.journal.commit([Write(command, facts)])
        assert outcome.failure is None, outcome.failure
        assert not self.strict or (outcome.refusal.code if outcome.refusal else None) == refused, outcome.refusal
        return outcome

    def events(self) -> Iterator[tuple[int, int, Event]]:
        for partition, head in self.journal.heads().items():
            for entry in self.journal.entries(partition, 0, head):
                yield partition, entry.position, codec.decode(entry.type, entry.state)

    # -- what residents do -------------------------------------------------------------------------------------------

    def act(self, who: str, by: str, record: str, what: str, much: str, unit: str, at: datetime) -> Outcome:  # noqa: PLR0917  # read as a sentence
        return self.do(
            account.RecordAction(
                resident=who,
                source=by,
                record_id=record,
                behaviour=what,
                quantity=Decimal(much),
                unit=unit,
                occurred_at=at,
            )
        )

    def tap(self, who: str, record: str, way: str, at: datetime, *, by: str = "szt") -> Outcome:
        return self.act(who, by, record, f"metro_{way}", "1", "tap", at)

    def bus(self, who: str, record: str, at: datetime) -> Outcome:
        return self.act(who, "szt", record, "bus", "1", "trip", at)

    def hold(self, who: str, name: str, points: int, *, at: str = "bakery", price: int = 5, seconds: int = 300) -> None:
        self.do(
            account.HoldPoints(
                resident=who,
                redemption_id=name,
                merchant=at,
                terminal=f"{at}-1",
                points=points,
                amount_fen=points * price,
                hold_seconds=seconds,
            )
        )

    def capture(self, who: str, name: str, points: int) -> None:
        self.do(account.CapturePoints(resident=who, redemption_id=name, points=points))

    # -- what they have of the tea house's offers --------------------------------------------------------------------

    def at_tea(self, who: str, name: str, what: str, items: int, **said: Any) -> None:
        """An order, and its points on hold; or the decline that the offer makes of it."""
        at: dict[str, Any] = {"merchant": "tea", "terminal": "tea-1", "redemption_id": name, "resident": who}
        hold = {"hold_seconds": said.pop("hold_seconds", 300), "capture": said.pop("capture", False)}
        [told] = self.do(order.PlaceOrder(**at, **hold, **said, offer=what, items=items)).events
        if isinstance(told, order.OrderPlaced):
            cost: dict[str, Any] = {"points": told.points, "amount_fen": told.amount_fen}
            self.do(account.HoldPoints(**at, **hold, **cost, offer=what, items=items))
            return
        assert isinstance(told, order.OrderDeclined)
        self.do(account.DeclineHold(**at, points=told.points, reason=told.reason, code_step=told.code))
        self.told(name, ended="declined")

    def told(self, name: str, **said: Any) -> None:
        self.do(order.FollowOrder(merchant="tea", terminal="tea-1", redemption_id=name, **said))

    def changed(self, name: str, **said: Any) -> None:
        self.do(offer.ChangeOffer(merchant="tea", offer="cup", change_id=name, **said))

    def refund(self, who: str, name: str, refund: str, points: int) -> None:
        self.do(account.RefundPoints(resident=who, redemption_id=name, refund_id=refund, points=points))

    def reverse(self, who: str, by: str, record: str) -> None:
        self.do(account.ReverseAction(resident=who, source=by, record_id=record, reason="misread"))

    def consent(self, who: str, name: str, purpose: Any, **said: Any) -> None:
        given = Consent(id=name, purpose=purpose, version="2024-1", from_=china("2020-01-01T00:00"), **said)
        self.do(account.GiveConsent(resident=who, consent=given))

    # -- what spans partitions ---------------------------------------------------------------------------------------

    def settle(self, who: str, name: str, *, day: date | None = None) -> None:
        """All until now, or as far as each partition goes before its first entry of a later day."""
        through = {str(partition): head for partition, head in self.journal.heads().items()}
        for partition, position, event in self.events():
            if day and event.recorded_at.astimezone(CHINA).date() > day:
                through[str(partition)] = min(through[str(partition)], position - 1)
        of: merchant.Merchant = self.journal.state(f"merchant/{who}")
        after = dict(of.through)
        rows = sorted(self._rows(who, after, through), key=lambda r: (r.recorded_at, r.partition, r.position))
        roots = {
            p: root_of([e.leaf for e in self.journal.entries(int(p), 0, end)]).hex()
            for p, end in through.items()
            if end
        }
        made = files(Head(who, of.name, name, day, after, through, roots), rows)
        sha256 = [hashlib.sha256(content).hexdigest() for content in (made.json, made.csv)]
        facts = merchant.SettlementFacts(after, through, made.totals, roots, *sha256)
        self.do(merchant.CloseSettlement(merchant=who, settlement_id=name, day=day), facts)

    def _rows(self, who: str, after: dict[str, int], through: dict[str, int]) -> Iterator[Row]:
        for partition, position, e in self.events():
            inside = after.get(str(partition), 0) < position <= through[str(partition)]
            if inside and isinstance(e, account.PointsCaptured | account.PointsRefunded) and e.merchant == who:
                back = e if isinstance(e, account.PointsRefunded) else None
                kind = ("reversal" if back.reversal else "refund") if back else "sale"
                figures = (e.redemption_id, back and back.refund_id, e.points, e.amount_fen)
                batch = self._batch(e, kind, through)
                offline = None if back else self._offline(who, e.redemption_id, through)
                yield Row(e.recorded_at, partition, position, kind, f"{who}-1", batch, *figures, offline)

    def _offline(self, who: str, redemption: str, through: dict[str, int]) -> datetime | None:
        """When its order says that it was taken so, as far as the merchant's partition told it."""
        for partition, position, e in self.events():
            if isinstance(e, order.OrderPlaced) and (e.merchant, e.redemption_id) == (who, redemption):
                return e.captured_offline_at if position <= through[str(partition)] else None
        return None

    def _batch(self, of: Any, kind: str, through: dict[str, int]) -> int | None:
        """That of the order's move of this kind, as far as the merchant's partition told it; of the nth refund, nth."""
        batches: list[int] = []
        earlier = 0
        for partition, position, e in self.events():
            if getattr(e, "redemption_id", None) != of.redemption_id:
                continue
            if isinstance(e, order.OrderMoved) and e.kind == kind and position <= through[str(partition)]:
                batches += [e.batch] * e.count
            elif isinstance(e, account.PointsRefunded) and kind == "refund" and not e.reversal:
                earlier += e.recorded_at < of.recorded_at
        return batches[earlier] if len(batches) > earlier else None

    def pay(self, who: str, name: str) -> None:
        owed = next(e for _, _, e in self.events() if getattr(e, "settlement_id", None) == name)
        amount_fen = getattr(owed, "amount_fen", 0)
        self.do(fund.PayMerchant(settlement_id=name, merchant=who, amount_fen=amount_fen))

    def gather(self, who: str, pool: str, gathering: int) -> None:
        of = self.journal.state(f"pool/{pool}")
        self.do(
            account.PoolReductions(
                resident=who,
                pool_id=pool,
                gathering=gathering,
                methodology=of.methodology,
                version=of.version,
                from_month=of.from_month,
                until_month=of.until_month,
            )
        )

    def seal(self, pool: str, gathering: int) -> None:
        through = {str(partition): head for partition, head in self.journal.heads().items()}
        given = [e for _, _, e in self.events() if isinstance(e, account.ReductionsPooled) and e.pool_id == pool]
        facts = lot.GatheringFacts(through, len({e.resident for e in given}), sum(e.reduction_mg for e in given))
        self.do(lot.SealGathering(pool_id=pool, gathering=gathering), facts)


def live(url: str) -> Journal:
    """The journal after all of it."""
    city = City(url, china("2024-03-01T09:00"))
    found(city)
    _ride(city)
    _collect(city)
    _spend(city)
    _take_back(city)
    _order(city)
    _agree(city)
    _offline(city)
    _offer(city)
    _pool(city)
    _sell(city)
    _grow_old(city)
    return city.journal


def found(city: City) -> None:
    for table in shipped():
        read = table.table
        city.do(methodology.PublishMethodology(methodology=read.id, version=read.version, table=table.text))
    szt = ("bus", "metro", "metro_in", "metro_out")
    city.do(source.RegisterSource(source="szt", name="深圳通", behaviours=szt, opens_accounts=True, county="440300"))
    city.do(source.RegisterSource(source="bike", name="单车", behaviours=("walk",), lateness_days=400))
    city.do(source.ChangeSource(source="bike", behaviours=("shared_bike",), lateness_days=400, opens_accounts=True))
    city.do(source.RegisterSource(source="city", name="城管", behaviours=ALL))
    city.do(source.RegisterSource(source="gate", name="闸机", behaviours=("metro_in", "metro_out")))
    for name, price in (("bakery", 5), ("tea", 3)):
        city.do(merchant.RegisterMerchant(merchant=name, name=f"{name} 店", fen_per_point=price, county="330523"))
        city.do(merchant.EnrolTerminal(merchant=name, terminal=f"{name}-1"))
    _sign(city, "bakery", "bakery-1")
    city.do(account.OpenAccount(resident=ANN, county="330523"))
    city.do(account.OpenAccount(resident=DAN))
    for who in (ANN, DAN):
        city.consent(who, "c1", "record")
        city.consent(who, "c2", "trade", behaviours=(CLOTHES, "walk"))


def _sign(city: City, of: str, till: str) -> None:
    """A terminal is activated, changes its key twice in a day, is suspended, activated anew and taken from again."""
    keys = [base64.b64encode(bytes([n]) * 32).decode() for n in range(1, 5)]
    ids = [f"trm_{n}" for n in range(1, 5)]
    for n, earlier in ((0, None), (1, ids[0]), (2, ids[1])):
        told = {"key_id": ids[n], "public_key": keys[n], "replaces": earlier}
        city.do(terminal.AddTerminalKey(merchant=of, terminal=till, **told))
    city.do(terminal.SuspendTerminal(merchant=of, terminal=till, suspended=True, reason="stolen"))
    city.do(terminal.AddTerminalKey(merchant=of, terminal=till, key_id=ids[3], public_key=keys[3]))
    city.do(terminal.SuspendTerminal(merchant=of, terminal=till, suspended=False, reason="another device"))


def _ride(city: City) -> None:
    day = china("2024-02-28T08:00")
    for n in range(8):  # six count as carbon, four earn points
        city.bus(ANN, f"b{n}", day + n * HOUR)
    city.bus(BOB, "b100", day)
    city.bus(BOB, "b101", day - DAY)
    city.tap(ANN, "m1", "in", day)
    city.tap(ANN, "m2", "out", day + 20 * MINUTE)
    city.tap(ANN, "m3", "out", day + 3 * HOUR)  # no entry yet
    city.tap(ANN, "m4", "in", day + 2 * HOUR)  # and now there is
    city.tap(ANN, "m5", "in", day + 5 * HOUR)
    city.tap(ANN, "m6", "in", day + 6 * HOUR)
    city.tap(ANN, "m7", "out", day + 7 * HOUR)  # with the later one
    city.tap(EVE, "m8", "in", china("2024-02-28T23:50"))
    city.tap(EVE, "m9", "out", china("2024-02-29T00:20"))
    city.act(CEM, "bike", "k1", "shared_bike", "0.123456", "km", day)
    city.act(CEM, "bike", "k2", "shared_bike", "19.5", "km", day + HOUR)
    city.act(CEM, "bike", "k3", "shared_bike", "3.25", "km", day + 2 * HOUR)  # cut by the day's 20 km
    city.bus(DAN, "same", day)
    with racing(city.journal):
        city.bus(EVE, "same", day)  # the same record of two residents, in two partitions, at the same moment


def _collect(city: City) -> None:
    day = china("2024-02-27T10:00")
    city.consent(CEM, "c1", "record")
    city.consent(CEM, "c2", "trade")
    for who in (ANN, CEM):
        city.act(who, "city", f"w1-{who}", "walk", "12345", "step", day)
        city.act(who, "city", f"w2-{who}", "walk", "20000", "step", day + HOUR)
        city.act(who, "city", f"s1-{who}", "waste_sorting", "1.234567", "kg", day)
        city.act(who, "city", f"p1-{who}", "car_parked", "1", "day", day)
        city.act(who, "city", f"l1-{who}", CLOTHES, "2.5", "kg", day)
        city.act(who, "city", f"l2-{who}", CLOTHES, "4.75", "kg", day - 30 * DAY)
    city.do(account.WithdrawConsent(resident=CEM, consent_id="c1"))


def _spend(city: City) -> None:
    city.hold(ANN, "d1", 30)
    city.capture(ANN, "d1", 17)
    city.refund(ANN, "d1", "f1", 5)
    city.hold(ANN, "d2", 10, at="tea", price=3)
    city.do(account.VoidHold(resident=ANN, redemption_id="d2"))
    city.hold(ANN, "d3", 7, seconds=60)
    city.now += HOUR
    city.hold(CEM, "d4", 20, at="tea", price=3)
    city.capture(CEM, "d4", 20)
    city.bus(ANN, "b9", china("2024-02-20T08:00"))  # after the hold that has run out
    city.settle("bakery", "s1")
    city.settle("tea", "s2")
    city.do(fund.ReceiveMoney(receipt_id="r1", origin="sponsor", payer="湖州银行", amount_fen=70))
    city.pay("bakery", "s1")
    city.do(fund.PayMerchant(settlement_id="s2", merchant="tea", amount_fen=60), refused="fund-insufficient")
    city.do(merchant.ChangePrice(merchant="bakery", fen_per_point=4))
    city.now += HOUR
    city.hold(ANN, "d5", 20, price=4)
    city.capture(ANN, "d5", 20)
    city.refund(ANN, "d1", "f2", 2)  # of what is settled
    city.settle("bakery", "s3")


def _take_back(city: City) -> None:
    city.hold(BOB, "d6", 20, at="tea", price=3)
    city.capture(BOB, "d6", 18)
    city.reverse(BOB, "szt", "b100")  # 2 points are left: a debt of 8
    city.refund(BOB, "d6", "f3", 1)  # pays one of them
    city.bus(BOB, "b102", china("2024-03-01T08:00"))  # and this the others
    city.do(account.FreezeAccount(resident=BOB, frozen=True, reason="lost card"))
    city.do(account.FreezeAccount(resident=BOB, frozen=False, reason="found"))
    city.hold(BOB, "d7", 3, at="tea", price=3)
    city.reverse(BOB, "szt", "b102")
    city.do(account.VoidHold(resident=BOB, redemption_id="d7"))  # what comes back pays the debt
    city.reverse(ANN, "szt", "m2")


def _close(city: City, batch: int, *, refused: str | None = None, **said: Any) -> None:
    city.do(order.CloseBatch(merchant="bakery", terminal="bakery-1", batch=batch, **said), refused=refused)


def _agree(city: City) -> None:
    counted = order.Totals(order.Tally(1, 5, 20), order.Tally(2, 2, 8), order.Tally(1, 3, 12))
    _close(city, 2, totals=order.Totals(), refused="totals-differ")
    _close(city, 3, totals=counted, refused="batch-not-open")
    _close(city, 2, totals=counted)
    city.settle("bakery", "s5")


def _order(city: City) -> None:
    def placed(name: str, points: int, **said: Any) -> None:
        said = {"resident": CEM, "hold_seconds": 300, **said}
        at = {"merchant": "bakery", "terminal": "bakery-1", "redemption_id": name, "points": points}
        [told] = city.do(order.PlaceOrder(**at, **said)).events
        assert isinstance(told, order.OrderPlaced)
        asks = {"confirm_seconds": told.confirm_seconds, "amount_fen": told.amount_fen}
        step = {"code_step": told.code}
        if name != "o3":
            said.pop("code", None)
            city.do(account.HoldPoints(**at, **said, **asks, **step))

    def followed(name: str, **said: Any) -> None:
        at = {"merchant": "bakery", "terminal": "bakery-1", "redemption_id": name}
        city.do(order.FollowOrder(**at, **({"ended": "captured"} | said)))

    def reversed_(name: str, points: int) -> None:
        at = {"merchant": "bakery", "terminal": "bakery-1", "redemption_id": name, "points": points}
        city.do(order.ReverseOrder(**at, reason="timeout"))
        city.do(account.ReverseRedemption(resident=CEM, **at))

    city.do(merchant.ChangeTerms(merchant="bakery", confirm_above=9))
    placed("o1", 10, code="abcd", capture=True)
    city.do(account.ConfirmHold(resident=CEM, redemption_id="o1", accept=True))
    followed("o1", captured_points=10, captured_fen=40)
    _close(city, 1, by="auto")
    _close(city, 2, by="auto", refused="nothing-in-batch")
    placed("o2", 5, code="efgh", capture=True)
    followed("o2", captured_points=5, captured_fen=20)
    city.refund(CEM, "o2", "f5", 1)
    city.refund(CEM, "o2", "f6", 1)
    sold = {"captured_points": 5, "captured_fen": 20, "refunds": 2, "refunded_points": 2, "refunded_fen": 8}
    followed("o2", **sold)
    reversed_("o2", 5)
    followed("o2", **sold, reversed_points=3, reversed_fen=12)
    placed("o3", 4)
    at = {"merchant": "bakery", "terminal": "bakery-1", "redemption_id": "o3", "points": 4}
    city.do(account.DeclineHold(resident=CEM, **at, reason="hold-abandoned"))
    followed("o3", ended="declined")
    placed("o4", 20, code="ijkl")
    city.do(account.ConfirmHold(resident=CEM, redemption_id="o4", accept=False))
    followed("o4", ended="declined")
    placed("o5", 3)
    reversed_("o5", 3)
    followed("o5", ended="reversed")
    city.do(
        order.ReverseOrder(
            merchant="bakery", terminal="bakery-1", redemption_id="o6", points=1, reason="customer-cancel"
        )
    )
    placed("o7", 9, hold_seconds=60)
    city.now += HOUR
    city.do(account.LapseDue(resident=CEM))
    followed("o7", ended="expired")
    placed("o8", 10, code="mnop")  # nobody agrees in time
    city.now += HOUR
    city.do(account.LapseDue(resident=CEM))
    followed("o8", ended="declined")


def _offline(city: City) -> None:
    """A till that was offline for as long as it may be, and what it took then."""
    terms = Offline(most_points=5, most_count=9, most_sum=20, most_age_hours=24)
    city.do(merchant.ChangeTerms(merchant="bakery", confirm_above=1, offline=terms))
    taken = {"captured_offline_at": city.now - 24 * HOUR + HOUR / 60}
    at: dict[str, Any] = {"merchant": "bakery", "terminal": "bakery-1", "redemption_id": "w1", "resident": CEM}
    at |= {"points": 2, "hold_seconds": 300, "capture": True}
    city.do(order.PlaceOrder(**at, **taken, code="alw:a1"))
    city.do(account.HoldPoints(**at, amount_fen=8, code_step="alw:a1"))
    told = {"ended": "captured", "captured_points": 2, "captured_fen": 8}
    city.do(order.FollowOrder(merchant="bakery", terminal="bakery-1", redemption_id="w1", **told))
    city.settle("bakery", "s6")


def _offer(city: City) -> None:
    cup: dict[str, Any] = {"merchant": "tea", "offer": "cup", "title": "茶一杯", "points": 2, "amount_fen": 9}
    limits = {"per_resident": 4, "per_resident_day": 3, "per_day": 3}
    city.do(offer.PublishOffer(**cup, **limits, stock=5, closes_at=city.now + 9 * DAY))
    city.at_tea(CEM, "q1", "cup", 3, capture=True)
    city.told("q1", ended="captured", captured_points=6, captured_fen=27)
    city.at_tea(DAN, "q2", "cup", 3)  # two are left
    city.at_tea(CEM, "q3", "cup", 1)  # three in a day
    city.at_tea(DAN, "q4", "cup", 1)  # all together, too
    city.now += DAY
    city.at_tea(CEM, "q5", "cup", 2, code="pay_1.q5")  # four in all
    city.changed("h1", restock=4, points=1, per_resident=None, per_resident_day=None, per_day=None)
    city.at_tea(CEM, "q6", "cup", 2)
    city.do(account.VoidHold(resident=CEM, redemption_id="q6"))
    city.told("q6", ended="voided")
    city.refund(CEM, "q1", "f7", 2)
    sold = {"ended": "captured", "captured_points": 6, "captured_fen": 27}
    city.told("q1", **sold, refunds=1, refunded_points=2, refunded_fen=9)
    city.changed("h2", withdrawn=True, restock=-1)
    city.at_tea(CEM, "q7", "cup", 1)  # withdrawn
    city.changed("h3", withdrawn=False, per_day=3)
    at = {"merchant": "tea", "terminal": "tea-1"}
    city.do(order.ReverseOrder(**at, redemption_id="q1", offer="cup", items=3, reason="timeout"))
    city.do(account.ReverseRedemption(resident=CEM, redemption_id="q1", **at, points=6))
    back = {"refunds": 1, "refunded_points": 2, "refunded_fen": 9, "reversed_points": 4, "reversed_fen": 18}
    city.told("q1", **sold, **back)
    city.do(order.ReverseOrder(**at, redemption_id="q8", offer="cup", items=2, reason="mismatch"))
    city.at_tea(CEM, "q9", "cup", 2, hold_seconds=60)
    city.now += HOUR
    city.do(account.LapseDue(resident=CEM))
    city.told("q9", ended="expired")
    city.at_tea(CEM, "q10", "cup", 2)  # what came back leaves room
    _campaign(city, cup)


def _campaign(city: City, cup: dict[str, Any]) -> None:
    city.do(offer.OpenCampaign(merchant="tea", campaign="spring", title="春", budget_points=9))
    city.do(offer.PublishOffer(**(cup | {"offer": "pot"}), campaign="spring", opens_at=city.now + HOUR))
    city.at_tea(CEM, "p1", "pot", 1)  # not yet
    city.now += HOUR
    city.at_tea(CEM, "p2", "pot", 3)
    city.capture(CEM, "p2", 4)
    city.told("p2", ended="captured", captured_points=4, captured_fen=18)
    city.at_tea(CEM, "p3", "pot", 3)  # 4 points and 6
    change = {"merchant": "tea", "campaign": "spring"}
    city.do(offer.ChangeCampaign(**change, change_id="h1", budget_points=None, budget_fen=44))
    city.at_tea(CEM, "p4", "pot", 3)  # 18 fen and 27
    city.at_tea(CEM, "p5", "pot", 2)
    city.do(offer.ChangeCampaign(**change, change_id="h2", closed=True))
    city.do(account.VoidHold(resident=CEM, redemption_id="p5"))
    city.told("p5", ended="voided")
    city.at_tea(CEM, "p6", "pot", 1)  # its campaign is closed
    city.do(offer.OpenCampaign(merchant="tea", campaign="summer", title="夏", budget_fen=900))
    city.do(offer.PublishOffer(**(cup | {"offer": "ice", "stock": 7}), campaign="summer"))
    city.at_tea(CEM, "p7", "ice", 1, capture=True)
    city.told("p7", ended="captured", captured_points=2, captured_fen=9)


def _pool(city: City) -> None:
    opened = {"methodology": CLOTHES, "version": "2024-1", "from_month": "2024-01", "until_month": "2024-12"}
    city.do(lot.OpenPool(pool_id="pool_a", region="330500", scheme="HZ", **opened))
    city.gather(ANN, "pool_a", 1)
    city.gather(CEM, "pool_a", 1)
    city.seal("pool_a", 1)
    city.act(DAN, "city", "l5", CLOTHES, "3", "kg", china("2024-03-01T08:00"))
    city.act(ANN, "city", "l6", CLOTHES, "1", "kg", china("2024-03-01T08:00"))
    city.gather(DAN, "pool_a", 2)
    city.gather(ANN, "pool_a", 2)
    city.reverse(ANN, "city", f"l1-{ANN}")  # pooled already: a debt of milligrams
    city.act(ANN, "city", "l7", CLOTHES, "2", "kg", china("2024-03-01T08:30"))  # which this pays in part


def _sell(city: City) -> None:
    def verified(name: str, mg: int) -> None:
        said = {"verifier": "核查机构", "report": f"report {name}", "verified_mg": mg}
        city.do(lot.VerifyPool(pool_id="pool_a", verification_id=name, **said))

    def sold(name: str, buyer: str, kg: int, price_fen: int, of: str = "lot_a1") -> None:
        said = {"buyer": buyer, "kg": kg, "price_fen": price_fen}
        city.do(lot.SellUnits(pool_id="pool_a", lot_id=of, sale_id=name, **said))

    def retired(name: str, holder: str, kg: int) -> None:
        said: Any = {"holder": holder, "kg": kg, "purpose": "event", "beneficiary": "马拉松", "reason": "2024 湖州"}
        city.do(lot.RetireUnits(pool_id="pool_a", lot_id="lot_a1", retirement_id=name, **said))

    verified("v1", 9_500_001)
    city.do(lot.IssueLot(pool_id="pool_a", lot_id="lot_a1"))
    sold("sale1", "acme", 3, 1200)
    sold("sale2", "bolt", 2, 0)
    sold("sale3", "acme", 1, 500)
    retired("t1", "acme", 2)
    retired("t2", "acme", 1)
    city.do(fund.ReceiveMoney(receipt_id="sale1", origin="sale", payer="acme", amount_fen=1200, sale_id="sale1"))
    city.pay("tea", "s2")
    city.pay("bakery", "s3")
    city.pay("bakery", "s5")
    city.pay("bakery", "s6")
    city.seal("pool_a", 2)
    verified("v2", 5_000_000)
    city.do(lot.IssueLot(pool_id="pool_a", lot_id="lot_a2"))
    sold("sale1b", "acme", 1, 100, of="lot_a2")


def _grow_old(city: City) -> None:
    city.now = china("2025-01-02T09:00")
    city.settle("tea", "s4", day=date(2024, 3, 2))  # what was accepted on the first is carried into the second
    city.pay("tea", "s4")
    city.act(CEM, "bike", "k4", "shared_bike", "7.7", "km", china("2024-12-31T23:59"))  # 40 g
    city.act(CEM, "bike", "k5", "shared_bike", "7.7", "km", china("2025-01-01T00:00"))  # 93.3 g
    city.now = china("2026-04-03T09:00")
    city.do(account.LapseDue(resident=ANN))
    city.refund(ANN, "d5", "f4", 9)  # its grants are gone: granted again
    city.bus(ANN, "b10", china("2026-04-02T08:00"))
