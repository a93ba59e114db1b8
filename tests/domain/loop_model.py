"""The loop as a child would keep it: every point is a slip of paper with its last day on it, every unit has its holder.

Nothing here is taken from the program but its calendar. What time decides happens on time, at each move of the clock;
the program writes it down late, and must come to the same.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from carbon_points.domain.quantity import CHINA, civil_day, month_after, month_of

GRAMS = {"1": 400, "2": 300}  # of a kilometre by bus, by version
SECOND_VERSION = date(2025, 7, 1)
MOST_KM, RIDES_A_DAY, KM_A_DAY, POINTS_A_MONTH = 6, 3, 9, 30
METRO_MG, METRO_POINTS, METRO_A_DAY = 46_000, 10, 1
WITHIN = timedelta(minutes=240)
KG = 1_000_000


class No(Exception):
    """A refusal, by its code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Action:
    kind: tuple[str, str]  # methodology and version
    day: date
    counted: int
    points: int
    mg: int
    last_day: date
    reversed: bool = False


@dataclass
class Redemption:
    merchant: str
    until: datetime
    slips: list[date]
    fen: int
    points: int
    status: str = "held"
    spent: list[date] = field(default_factory=list)
    spent_fen: int = 0
    back: int = 0  # points refunded
    back_fen: int = 0


@dataclass
class Resident:
    opened: bool = False
    frozen: bool = False
    slips: list[date] = field(default_factory=list)
    lapsed: Counter[date] = field(default_factory=Counter)  # slips that ran out unspent
    debt: int = 0
    mg: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by methodology, version and month
    debt_mg: int = 0
    total_mg: int = 0
    actions: dict[str, Action] = field(default_factory=dict)
    taps: list[tuple[datetime, str, bool]] = field(default_factory=list)
    redemptions: dict[str, Redemption] = field(default_factory=dict)
    trade: dict[str, datetime] = field(default_factory=dict)  # consents by id: from when

    @property
    def held(self) -> int:
        return sum(r.points for r in self.redemptions.values() if r.status == "held")

    def give(self, slips: list[date]) -> None:
        """Into the hand; the shortest-lived pay the debt first."""
        slips = sorted(slips)
        pay = min(self.debt, len(slips))
        self.debt -= pay
        self.slips = sorted(self.slips + slips[pay:])

    def live(self) -> list[Action]:
        return [action for action in self.actions.values() if not action.reversed]


@dataclass
class Pool:
    kind: tuple[str, str]
    months: tuple[str, str]
    gathering: int = 1
    moved_mg: int = 0
    sealed_mg: int = 0
    verified_mg: int = 0
    issued_kg: int = 0
    lots: dict[str, dict[int, str]] = field(default_factory=dict)  # holder by unit: "" for sale, "retired" for good


@dataclass
class Merchant:
    points: int = 0  # accepted and not settled
    fen: int = 0
    owed: dict[str, int] = field(default_factory=dict)
    paid_fen: int = 0


class Model:
    def __init__(self, now: datetime, residents: list[str], merchants: list[str]) -> None:
        self.now = now
        self.residents = {name: Resident() for name in residents}
        self.merchants = {name: Merchant() for name in merchants}
        self.pools: dict[str, Pool] = {}
        self.fund_fen = 0

    # -- time --------------------------------------------------------------------------------------------------------

    def move(self, by: timedelta) -> None:
        self.now += by
        for who in self.residents.values():
            over = [r for r in who.redemptions.values() if r.status == "held" and r.until <= self.now]
            for redemption in sorted(over, key=lambda r: r.until):
                redemption.status = "expired"
                who.give(redemption.slips)
            self.expire(who)

    def expire(self, who: Resident) -> None:
        today = civil_day(self.now)
        who.lapsed.update(slip for slip in who.slips if slip < today)
        who.slips = [slip for slip in who.slips if slip >= today]

    # -- actions -----------------------------------------------------------------------------------------------------

    def arrive(self, who: Resident, at: datetime) -> None:
        if at > self.now + timedelta(minutes=5):
            raise No("occurred-in-future")
        if who.frozen:
            raise No("account-frozen")
        who.opened = True  # by the source, which may

    def ride(self, name: str, record: str, km: int, at: datetime) -> Action:
        who, day = self.residents[name], civil_day(at)
        if km < 1:
            raise No("quantity-below-least")
        if km > MOST_KM:
            raise No("quantity-above-most")
        self.arrive(who, at)
        version = "2" if day >= SECOND_VERSION else "1"
        of_day = [a for a in who.live() if a.kind[0] == "bus" and a.day == day]
        of_month = [a for a in who.live() if a.kind[0] == "bus" and month_of(a.day) == month_of(day)]
        counted = min(km, KM_A_DAY - sum(a.counted for a in of_day))
        if sum(a.counted > 0 for a in of_day) >= RIDES_A_DAY:
            counted = 0
        points = min(counted, POINTS_A_MONTH - sum(a.points for a in of_month))
        mg = counted * GRAMS[version] * 1000
        return self.credit(who, record, Action(("bus", version), day, counted, points, mg, self.last_day()))

    def tap(self, name: str, record: str, entry: bool, at: datetime) -> Action | None:
        """The ride, if this tap makes one."""
        who = self.residents[name]
        self.arrive(who, at)
        if entry:
            fitting = [t for t in who.taps if not t[2] and at < t[0] <= at + WITHIN]
            other = min(fitting, default=None)
        else:
            fitting = [t for t in who.taps if t[2] and at - WITHIN <= t[0] < at]
            other = max(fitting, default=None)
        if other is None:
            who.taps = [*who.taps, (at, record, entry)][-16:]
            return None
        who.taps.remove(other)
        day = civil_day(max(at, other[0]))
        ridden = sum(a.counted > 0 for a in who.live() if a.kind[0] == "metro" and a.day == day)
        counted = 0 if ridden >= METRO_A_DAY else 1
        points, mg = METRO_POINTS * counted, METRO_MG * counted
        return self.credit(who, record, Action(("metro", "1"), day, counted, points, mg, self.last_day()))

    def credit(self, who: Resident, record: str, action: Action) -> Action:
        who.actions[record] = action
        who.give([action.last_day] * action.points)
        pay = min(who.debt_mg, action.mg)
        who.debt_mg -= pay
        who.mg[(*action.kind, month_of(action.day))] += action.mg - pay
        who.total_mg += action.mg
        return action

    def last_day(self) -> date:
        return month_after(civil_day(self.now), 1, at_end=False)

    def reverse(self, name: str, record: str) -> None:
        who = self.residents[name]
        if not who.opened:
            raise No("account-unknown")
        if record not in who.actions:
            raise No("action-not-reversible" if record in {t[1] for t in who.taps} else "action-unknown")
        action = who.actions[record]
        action.reversed = True
        forgiven = min(action.points, who.lapsed[action.last_day])
        who.lapsed[action.last_day] -= forgiven
        for _ in range(action.points - forgiven):
            if action.last_day in who.slips:
                who.slips.remove(action.last_day)
            elif who.slips:
                who.slips.pop(0)
            else:
                who.debt += 1
        bucket = (*action.kind, month_of(action.day))
        there = min(action.mg, who.mg[bucket])
        who.mg[bucket] -= there
        who.debt_mg += action.mg - there
        who.total_mg -= action.mg

    def freeze(self, name: str, frozen: bool) -> None:
        who = self.residents[name]
        if not who.opened:
            raise No("account-unknown")
        if who.frozen == frozen:
            raise No("frozen-already")
        who.frozen = frozen

    # -- points ------------------------------------------------------------------------------------------------------

    def hold(self, name: str, redemption: str, merchant: str, points: int, fen: int, seconds: int) -> None:
        who = self.residents[name]
        if not who.opened:
            raise No("account-unknown")
        if who.frozen:
            raise No("account-frozen")
        if len(who.slips) < points:
            raise No("insufficient-points")
        taken, who.slips = who.slips[:points], who.slips[points:]
        until = self.now + timedelta(seconds=seconds)
        who.redemptions[redemption] = Redemption(merchant, until, taken, fen, points)

    def on_hold(self, who: Resident, redemption: str) -> Redemption:
        if not who.opened:
            raise No("account-unknown")
        if redemption not in who.redemptions:
            raise No("redemption-unknown")
        found = who.redemptions[redemption]
        if found.status == "expired":
            raise No("hold-expired")
        if found.status != "held":
            raise No("redemption-not-held")
        return found

    def capture(self, name: str, redemption: str, points: int) -> None:
        who = self.residents[name]
        found = self.on_hold(who, redemption)
        if points > found.points:
            raise No("capture-exceeds-hold")
        found.status, found.spent = "captured", found.slips[:points]
        found.spent_fen = found.fen * points // found.points
        merchant = self.merchants[found.merchant]
        merchant.points += points
        merchant.fen += found.spent_fen
        who.give(found.slips[points:])
        self.expire(who)

    def void(self, name: str, redemption: str) -> None:
        who = self.residents[name]
        found = self.on_hold(who, redemption)
        found.status = "voided"
        who.give(found.slips)
        self.expire(who)

    def refund(self, name: str, redemption: str, points: int) -> None:
        who = self.residents[name]
        if not who.opened:
            raise No("account-unknown")
        if redemption not in who.redemptions:
            raise No("redemption-unknown")
        found = who.redemptions[redemption]
        if found.status not in ("captured", "refunded"):
            raise No("redemption-not-captured")
        left = found.spent[: len(found.spent) - found.back]
        if points > len(left):
            raise No("refund-exceeds-captured")
        today = civil_day(self.now)
        who.give([slip if slip >= today else today + timedelta(days=30) for slip in left[len(left) - points :]])
        found.back += points
        fen = found.spent_fen * found.back // len(found.spent) - found.back_fen
        found.back_fen += fen
        found.status = "refunded"
        merchant = self.merchants[found.merchant]
        merchant.points -= points
        merchant.fen -= fen

    # -- lots --------------------------------------------------------------------------------------------------------

    def consent(self, name: str, consent: str, since: datetime | None) -> None:
        """To trade from then on; None takes it back."""
        who = self.residents[name]
        if not who.opened:
            raise No("account-unknown")
        if since is not None:
            who.trade[consent] = since
        elif consent in who.trade:
            del who.trade[consent]
        else:
            raise No("consent-unknown")

    def gather(self, name: str, pool: str) -> int:
        who, into = self.residents[name], self.pools[pool]
        if not who.opened:
            raise No("account-unknown")
        there = {m: mg for (*kind, m), mg in sorted(who.mg.items()) if mg and tuple(kind) == into.kind}
        there = {m: mg for m, mg in there.items() if into.months[0] <= m <= into.months[1]}
        if not there:
            raise No("nothing-to-pool")
        agreed = {m: c for m in there if (c := next((c for c, since in who.trade.items() if since <= begins(m)), None))}
        if not agreed:
            raise No("consent-missing")
        first = next(iter(agreed.values()))
        taken = {m: mg for m, mg in there.items() if agreed.get(m) == first}
        for month in taken:
            del who.mg[(*into.kind, month)]
        into.moved_mg += sum(taken.values())
        return sum(taken.values())

    def seal(self, pool: str) -> None:
        into = self.pools[pool]
        if into.moved_mg == into.sealed_mg:
            raise No("nothing-gathered")
        into.sealed_mg = into.moved_mg
        into.gathering += 1

    def verify(self, pool: str, mg: int) -> None:
        into = self.pools[pool]
        if mg < 1:
            raise No("amount-invalid")
        if mg > into.sealed_mg - into.verified_mg:
            raise No("verified-exceeds-gathered")
        into.verified_mg += mg

    def issue(self, pool: str, lot: str) -> int:
        into = self.pools[pool]
        kg = into.verified_mg // KG - into.issued_kg
        if kg < 1:
            raise No("less-than-one-kilogram")
        into.issued_kg += kg
        into.lots[lot] = dict.fromkeys(range(1, kg + 1), "")
        return kg

    def hand_over(self, pool: str, lot: str, of: str, to: str, kg: int) -> list[int]:
        """Units from one to the other, lowest first: a sale from "", a retirement to "retired"."""
        units = self.pools[pool].lots.get(lot)
        if units is None:
            raise No("lot-unknown")
        theirs = sorted(unit for unit, holder in units.items() if holder == of)
        if len(theirs) < kg:
            raise No("units-not-held" if of else "units-not-for-sale")
        units |= dict.fromkeys(theirs[:kg], to)
        return theirs[:kg]

    # -- money -------------------------------------------------------------------------------------------------------

    def settle(self, merchant: str, settlement: str) -> tuple[int, int]:
        found = self.merchants[merchant]
        if found.fen <= 0:
            raise No("nothing-to-settle")
        settled = (found.points, found.fen)
        found.owed[settlement] = found.fen
        found.points = found.fen = 0
        return settled

    def pay(self, merchant: str, settlement: str) -> None:
        found = self.merchants[merchant]
        if found.owed[settlement] > self.fund_fen:
            raise No("fund-insufficient")
        self.fund_fen -= found.owed[settlement]
        found.paid_fen += found.owed.pop(settlement)


def begins(month: str) -> datetime:
    return datetime.fromisoformat(f"{month}-01").replace(tzinfo=CHINA)
