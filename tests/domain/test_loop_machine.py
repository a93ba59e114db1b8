"""The whole loop, step by step, in any order: a real journal in memory beside a model of paper slips.

After each step the trial balance is zero in every asset, nothing is below its floor, both sides tell the same of
everyone, no unit has two holders, and the log alone gives the same states.
"""

from collections import Counter
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from carbon_points.domain import account, fund, lot, merchant, posting
from carbon_points.domain.account import ActionCredited, ActionReversed, PointsCaptured, PointsRefunded
from carbon_points.domain.event import Command
from carbon_points.domain.lot import GatheringFacts
from carbon_points.domain.merchant import SettlementFacts
from carbon_points.domain.order import Tally, Totals
from carbon_points.domain.refusal import Conflict
from carbon_points.journal import codec
from carbon_points.journal.journal import open_journal
from carbon_points.journal.partition import Outcome, Write
from carbon_points.journal.streams import kind_of, new_state
from tests import given
from tests.conftest import Clock
from tests.domain.loop_model import KG, KM_A_DAY, METRO_A_DAY, MOST_KM, POINTS_A_MONTH, RIDES_A_DAY, Model, No, Pool
from tests.given import DAY, HOUR, MINUTE, NOON
from tests.journal.city import City

RESIDENTS = ["res_1", "res_2", "res_3"]
MERCHANTS = ["bakery", "kiosk"]
BUYERS = ["steelworks", "bank"]
CAPS = f'day = {{ count = {RIDES_A_DAY}, quantity = "{KM_A_DAY}" }}\nmonth = {{ points = {POINTS_A_MONTH} }}'
LIVES = {"per": "1 km", "points": 1, "months": 1, "expire_at": "day"}
TABLES = (
    given.table("bus", "1", grams="400", most=str(MOST_KM), caps=CAPS, **LIVES),
    given.table("bus", "2", grams="300", most=str(MOST_KM), caps=CAPS, begins="2025-07-01", **LIVES),
    given.metro(caps=f"day = {{ count = {METRO_A_DAY} }}", months=1, expire_at="day"),
)
POOLS = {"pool_1": ("1", "2025-01", "2025-06"), "pool_2": ("2", "2025-07", "2026-12")}

residents, merchants, pools = st.sampled_from(RESIDENTS), st.sampled_from(MERCHANTS), st.sampled_from(list(POOLS))
points = st.integers(1, 12)
pick = st.integers(0, 10**6)  # one of what there is by then
earlier = st.sampled_from([0 * HOUR, 0 * HOUR, HOUR, DAY, 3 * DAY, 35 * DAY, -10 * MINUTE])
jumps = st.sampled_from(
    [timedelta(seconds=1), timedelta(seconds=59), 5 * MINUTE, HOUR, DAY, 3 * DAY, 31 * DAY, 400 * DAY]
)


FINAL = ("account-frozen", "insufficient-points")  # a hold is declined for them by an event


class Loop(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(NOON)
        self.city = City(open_journal("sqlite://", partitions=2, clock=self.clock)).found(*TABLES)
        self.model = Model(NOON, RESIDENTS, MERCHANTS)
        self.said: list[tuple[Write, Outcome]] = []  # every command that was carried out
        self.claimed: set[tuple[str, ...]] = set()
        self.named = 0
        self.read = dict.fromkeys(self.city.journal.heads(), 0)
        self.states: dict[str, Any] = {}  # folded from the log as it grows
        self.standing: Counter[tuple[str, str]] = Counter()
        self.counted: dict[tuple[str, str, str], list[ActionCredited]] = {}
        self.city.do(merchant.RegisterMerchant(merchant="kiosk", name="报亭", fen_per_point=2))
        for pool, (version, first, last) in POOLS.items():
            self.model.pools[pool] = Pool(("bus", version), (first, last))
            self.city.do(
                lot.OpenPool(
                    pool_id=pool,
                    methodology="bus",
                    version=version,
                    from_month=first,
                    until_month=last,
                    region="330500",
                    scheme="T",
                )
            )

    @initialize(riders=st.integers(1, 3), bought=st.booleans())
    def a_few_have_lived_already(self, riders: int, bought: bool) -> None:
        """So that what takes many steps to reach is reached: rides, a consent, points on hold, a lot."""
        for who in RESIDENTS[:riders]:
            for n in range(9):
                self.record(who, 3, n * DAY)
            self.agree_to_trade(who, datetime(2020, 1, 1, tzinfo=UTC))
            self.hold(who, "bakery", 8, 21, 604_800)
            self.capture(1, 5)
            self.hold(who, "kiosk", 18, 9, 604_800)
        if riders and bought:
            for who in RESIDENTS[:riders]:
                self.gather(who, "pool_1")
            self.seal("pool_1")
            self.verify("pool_1", None)
            self.issue("pool_1")
            self.sell("pool_1", 1, "steelworks", 3, 100)

    def teardown(self) -> None:
        self.the_trial_balance_is_zero_and_nothing_is_below_its_floor()
        replayed: dict[str, Any] = {}
        for number in self.city.journal.heads():
            for entry in self.city.journal.entries(number):
                state = replayed.setdefault(entry.stream, new_state(entry.stream))
                kind_of(entry.stream).evolve(state, codec.decode(entry.type, entry.state))
        assert replayed == self.states
        self.city.journal.close()

    # -- one step on both sides --------------------------------------------------------------------------------------

    def name(self) -> str:
        self.named += 1
        return f"n{self.named}"

    def do(self, command: Command, expected: str | None, facts: object = None) -> Outcome:
        write = self.city.write(command) if facts is None else Write(command, facts)
        [outcome] = self.city.journal.commit([write])
        assert outcome.failure is None
        assert (outcome.refusal.code if outcome.refusal else None) == expected
        if expected is None:
            self.said.append((write, outcome))
            self.claimed.add(command.claim() or ())
        return outcome

    def both(self, command: Command, modelled: Any, *args: Any, facts: object = None) -> tuple[Any, Outcome]:
        """What the model makes of it, and the journal: both do it, or both refuse it for the same reason.

        What was claimed before is not decided again: the model is not even asked.
        """
        if command.claim() in self.claimed:
            [outcome] = self.city.journal.commit([self.city.write(command)])
            assert outcome.replayed
            assert outcome.refusal is None or isinstance(outcome.refusal, Conflict)
            return None, outcome
        try:
            result, expected = modelled(*args), None
        except No as no:
            result, expected = None, no.code
        return result, self.do(command, expected, facts)

    # -- actions -----------------------------------------------------------------------------------------------------

    @rule(who=residents, km=st.integers(0, MOST_KM + 1), ago=earlier)
    def record(self, who: str, km: int, ago: timedelta) -> None:
        record, at = self.name(), self.clock.at - ago
        command = given.ride(record, resident=who, quantity=Decimal(km), occurred_at=at)
        action, outcome = self.both(command, self.model.ride, who, record, km, at)
        self.same_action(action, outcome)

    @rule(who=residents, entry=st.booleans(), ago=st.integers(0, 400))
    def tap(self, who: str, entry: bool, ago: int) -> None:
        record, at = self.name(), self.clock.at - ago * MINUTE
        command = given.tap(record, "metro_in" if entry else "metro_out", at, resident=who)
        action, outcome = self.both(command, self.model.tap, who, record, entry, at)
        self.same_action(action, outcome)

    def same_action(self, action: Any, outcome: Outcome) -> None:
        if outcome.refusal is None:
            made = outcome.events[-1]
            assert isinstance(made, ActionCredited) == (action is not None)
            if isinstance(made, ActionCredited):
                told = (made.day, made.counted, made.points, made.reduction_mg, made.expires_on)
                assert told == (action.day, action.counted, action.points, action.mg, action.last_day)

    @precondition(lambda self: any(r.opened for r in self.model.residents.values()))
    @rule(one=pick)
    def reverse(self, one: int) -> None:
        known = [(who, r) for who, p in self.model.residents.items() for r, a in p.actions.items() if not a.reversed]
        known += [(who, tap[1]) for who, p in self.model.residents.items() for tap in p.taps] + [("res_1", "unknown")]
        who, record = known[one % len(known)]
        self.both(given.reversal(record, resident=who), self.model.reverse, who, record)

    @rule(who=residents, frozen=st.booleans())
    def freeze(self, who: str, frozen: bool) -> None:
        command = account.FreezeAccount(resident=who, frozen=frozen, reason="-")
        self.both(command, self.model.freeze, who, frozen)

    # -- time --------------------------------------------------------------------------------------------------------

    @rule(by=jumps)
    def wait(self, by: timedelta) -> None:
        self.clock.move(by)
        self.model.move(by)

    @precondition(lambda self: any(r.opened for r in self.model.residents.values()))
    @rule(who=residents)
    def write_down_what_is_due(self, who: str) -> None:
        self.do(account.LapseDue(resident=who), None if self.model.residents[who].opened else "account-unknown")
        self.said = [one for one in self.said if not isinstance(one[0].command, account.LapseDue)]

    # -- points ------------------------------------------------------------------------------------------------------

    @rule(who=residents, where=merchants, n=points, fen=st.integers(0, 40), seconds=st.sampled_from([1, 300, 604_800]))
    def hold(self, who: str, where: str, n: int, fen: int, seconds: int) -> None:
        name = self.name()
        command = given.holding(name, n, resident=who, merchant=where, amount_fen=fen, hold_seconds=seconds)
        refused = None
        try:
            self.model.hold(who, name, where, n, fen, seconds)
        except No as no:
            refused = no.code
        outcome = self.do(command, None if refused in FINAL else refused)
        declined = [e.reason for e in outcome.events if isinstance(e, account.HoldDeclined)]
        assert declined == ([refused] if refused in FINAL else [])

    def redemption(self, one: int, *likely: str) -> tuple[str, str]:
        """Someone's, rather one in that state; now and then one that is unknown."""
        every = [(who, name, r.status) for who, p in self.model.residents.items() for name, r in p.redemptions.items()]
        known = [found for found in every if found[2] in likely and one % 7] or every
        who, name, _ = known[one % len(known)]
        return who, name if one % 17 else "unknown"

    @precondition(lambda self: any(r.redemptions for r in self.model.residents.values()))
    @rule(one=pick, n=points)
    def capture(self, one: int, n: int) -> None:
        who, name = self.redemption(one, "held")
        self.both(given.capturing(name, n, resident=who), self.model.capture, who, name, n)

    @precondition(lambda self: any(r.redemptions for r in self.model.residents.values()))
    @rule(one=pick)
    def void(self, one: int) -> None:
        who, name = self.redemption(one, "held")
        self.both(given.voiding(name, resident=who), self.model.void, who, name)

    @precondition(lambda self: any(r.redemptions for r in self.model.residents.values()))
    @rule(one=pick, n=points)
    def refund(self, one: int, n: int) -> None:
        who, name = self.redemption(one, "captured", "refunded")
        command = given.refunding(self.name(), n, redemption_id=name, resident=who)
        self.both(command, self.model.refund, who, name, n)

    # -- lots --------------------------------------------------------------------------------------------------------

    @rule(who=residents, since=st.sampled_from([datetime(2020, 1, 1, tzinfo=UTC), datetime(2025, 6, 20, tzinfo=UTC)]))
    def agree_to_trade(self, who: str, since: datetime) -> None:
        name = self.name()
        command = account.GiveConsent(resident=who, consent=given.consent(name, "trade", from_=since))
        self.both(command, self.model.consent, who, name, since)

    @precondition(lambda self: any(r.trade for r in self.model.residents.values()))
    @rule(who=residents, one=pick)
    def withdraw(self, who: str, one: int) -> None:
        known = [*self.model.residents[who].trade, "unknown"]
        name = known[one % len(known)]
        command = account.WithdrawConsent(resident=who, consent_id=name)
        self.both(command, self.model.consent, who, name, None)

    @rule(who=residents, pool=pools)
    def gather(self, who: str, pool: str) -> None:
        version, first, last = POOLS[pool]
        gathering = self.model.pools[pool].gathering
        command = account.PoolReductions(
            resident=who,
            pool_id=pool,
            gathering=gathering,
            methodology="bus",
            version=version,
            from_month=first,
            until_month=last,
        )
        mg, outcome = self.both(command, self.model.gather, who, pool)
        if not outcome.replayed and outcome.refusal is None:
            assert outcome.events[-1].reduction_mg == mg

    @precondition(lambda self: any(p.moved_mg > p.sealed_mg for p in self.model.pools.values()))
    @rule(pool=pools)
    def seal(self, pool: str) -> None:
        facts = GatheringFacts(self.heads(), 0, self.gathered(pool))
        command = lot.SealGathering(pool_id=pool, gathering=self.model.pools[pool].gathering)
        self.both(command, self.model.seal, pool, facts=facts)

    def heads(self) -> dict[str, int]:
        return {str(number): head for number, head in self.city.journal.heads().items()}

    def gathered(self, pool: str) -> int:
        """What the log says was moved into the pool."""
        moved = [event for event in self.events() if isinstance(event, account.ReductionsPooled)]
        return sum(event.reduction_mg for event in moved if event.pool_id == pool)

    @precondition(lambda self: any(p.sealed_mg > p.verified_mg for p in self.model.pools.values()))
    @rule(pool=pools, mg=st.one_of(st.integers(0, 3 * KG), st.just(None)))
    def verify(self, pool: str, mg: int | None) -> None:
        """Some milligrams, or all that there are."""
        into = self.model.pools[pool]
        mg = into.sealed_mg - into.verified_mg if mg is None else mg
        command = lot.VerifyPool(pool_id=pool, verification_id=self.name(), verifier="CQC", report="-", verified_mg=mg)
        self.both(command, self.model.verify, pool, mg)

    @precondition(lambda self: any(p.verified_mg // KG > p.issued_kg for p in self.model.pools.values()))
    @rule(pool=pools)
    def issue(self, pool: str) -> None:
        name = self.name()
        kg, outcome = self.both(lot.IssueLot(pool_id=pool, lot_id=name), self.model.issue, pool, name)
        if outcome.refusal is None:
            assert outcome.events[-1].kg == kg

    def lot_of(self, pool: str, one: int) -> str:
        known = [*self.model.pools[pool].lots]
        return known[one % len(known)] if known and one % 17 else "unknown"

    @precondition(lambda self: any(p.lots for p in self.model.pools.values()))
    @rule(pool=pools, one=pick, buyer=st.sampled_from(BUYERS), kg=st.integers(1, 4), fen=st.integers(0, 500))
    def sell(self, pool: str, one: int, buyer: str, kg: int, fen: int) -> None:
        of, sale = self.lot_of(pool, one), self.name()
        command = lot.SellUnits(pool_id=pool, lot_id=of, sale_id=sale, buyer=buyer, kg=kg, price_fen=fen)
        units, outcome = self.both(command, self.model.hand_over, pool, of, "", buyer, kg)
        if outcome.refusal is None:
            assert spelled(outcome.events[-1].blocks) == units
            if fen:
                self.receive("sale", buyer, fen, sale)

    @precondition(lambda self: any(p.lots for p in self.model.pools.values()))
    @rule(pool=pools, one=pick, holder=st.sampled_from(BUYERS), kg=st.integers(1, 3))
    def retire(self, pool: str, one: int, holder: str, kg: int) -> None:
        of = self.lot_of(pool, one)
        command = lot.RetireUnits(
            pool_id=pool,
            lot_id=of,
            retirement_id=self.name(),
            holder=holder,
            kg=kg,
            purpose="voluntary",
            beneficiary="-",
            reason="-",
        )
        units, outcome = self.both(command, self.model.hand_over, pool, of, holder, "retired", kg)
        if outcome.refusal is None:
            assert spelled(outcome.events[-1].blocks) == units

    # -- money -------------------------------------------------------------------------------------------------------

    def receive(self, origin: Any, payer: str, fen: int, sale: str | None = None) -> None:
        self.model.fund_fen += fen
        self.do(
            fund.ReceiveMoney(receipt_id=self.name(), origin=origin, payer=payer, amount_fen=fen, sale_id=sale), None
        )

    @rule(fen=st.integers(1, 60))
    def sponsor(self, fen: int) -> None:
        self.receive("sponsor", "bank", fen)

    @precondition(lambda self: any(m.points for m in self.model.merchants.values()))
    @rule(where=merchants)
    def settle(self, where: str) -> None:
        after = self.city.journal.state(f"merchant/{where}").through
        through = self.heads()
        found = [
            event
            for number in self.city.journal.heads()
            for event in self.events(number, after.get(str(number), 0))
            if isinstance(event, PointsCaptured | PointsRefunded) and event.merchant == where
        ]
        sales, refunds = (
            Tally(len(some), sum(e.points for e in some), sum(e.amount_fen for e in some))
            for some in ([e for e in found if isinstance(e, kind)] for kind in (PointsCaptured, PointsRefunded))
        )
        facts = SettlementFacts(after=after, through=through, totals=Totals(sales, refunds))
        name = self.name()
        command = merchant.CloseSettlement(merchant=where, settlement_id=name)
        settled, _ = self.both(command, self.model.settle, where, name, facts=facts)
        assert settled in (None, (facts.totals.points, facts.totals.fen))

    @precondition(lambda self: any(m.owed for m in self.model.merchants.values()))
    @rule(one=pick)
    def pay(self, one: int) -> None:
        owed = [(where, s, fen) for where, m in self.model.merchants.items() for s, fen in m.owed.items()]
        where, settlement, fen = owed[one % len(owed)]
        command = fund.PayMerchant(settlement_id=settlement, merchant=where, amount_fen=fen)
        self.both(command, self.model.pay, where, settlement)

    # -- the same again ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.said)
    @rule(one=pick)
    def repeat(self, one: int) -> None:
        """The earlier answer, and nothing else happens."""
        write, first = self.said[one % len(self.said)]
        if write.command.claim() is None:
            return
        [again] = self.city.journal.commit([write])
        assert (again.failure, again.refusal, again.replayed) == (None, None, True)
        assert (again.partition, again.position, again.events) == (first.partition, first.position, first.events[-1:])

    @precondition(lambda self: self.said)
    @rule(one=pick)
    def repeat_with_other_content(self, one: int) -> None:
        write, first = self.said[one % len(self.said)]
        fields = ("quantity", "points", "kg", "verified_mg", "reason", "amount_fen", "version")
        changed = next((f for f in fields if hasattr(write.command, f)), None)
        if write.command.claim() is None or changed is None:
            return
        said = getattr(write.command, changed)
        other = structs.replace(write.command, **{changed: said + ("!" if isinstance(said, str) else 1)})
        [conflict] = self.city.journal.commit([structs.replace(write, command=other)])
        assert isinstance(conflict.refusal, Conflict)
        assert conflict.refusal.facts == {"fields": [changed]}
        assert (conflict.partition, conflict.position) == (first.partition, first.position)

    # -- what holds after each step ----------------------------------------------------------------------------------

    def events(self, number: int | None = None, after: int = 0) -> list[Any]:
        chosen = self.city.journal.heads() if number is None else [number]
        return [codec.decode(e.type, e.state) for n in chosen for e in self.city.journal.entries(n, after)]

    @invariant()
    def everything_holds(self) -> None:
        self.the_trial_balance_is_zero_and_nothing_is_below_its_floor()
        self.what_the_journal_keeps_is_what_its_log_says()
        self.no_day_and_no_month_holds_more_than_its_caps()
        self.everyone_has_what_the_model_says()
        self.everything_issued_has_one_holder()
        self.the_money_is_where_the_model_says()

    def the_trial_balance_is_zero_and_nothing_is_below_its_floor(self) -> None:
        for number in self.read:
            for entry in self.city.journal.entries(number, self.read[number]):
                assert entry.position == self.read[number] + 1
                self.read[number] = entry.position
                event = codec.decode(entry.type, entry.state)
                state = self.states.setdefault(entry.stream, new_state(entry.stream))
                assert entry.version >= 1
                kind_of(entry.stream).evolve(state, event)
                for asset, name, amount in posting.postings(event):
                    self.standing[(asset, name)] += amount
                    least = posting.floor(asset, name)
                    assert least is None or self.standing[(asset, name)] >= least, (asset, name)
                    assert not name.startswith("debt/") or self.standing[(asset, name)] <= 0
                self.count(event)
        for asset in ("mg", "points", "fen"):
            assert sum(amount for (of, _), amount in self.standing.items() if of == asset) == 0

    def count(self, event: Any) -> None:
        """What the log says was counted of each day and month, without what was reversed."""
        if isinstance(event, ActionCredited):
            key = (event.resident, event.methodology, f"{event.day:%Y-%m}")
            self.counted.setdefault(key, []).append(event)
        elif isinstance(event, ActionReversed):
            key = (event.resident, event.methodology, f"{event.day:%Y-%m}")
            self.counted[key] = [a for a in self.counted[key] if a.record_id != event.record_id]

    def no_day_and_no_month_holds_more_than_its_caps(self) -> None:
        for (_, behaviour, _), actions in self.counted.items():
            for day in {a.day for a in actions}:
                same = [a for a in actions if a.day == day]
                most = RIDES_A_DAY if behaviour == "bus" else METRO_A_DAY
                assert sum(a.counted > 0 for a in same) <= most
                assert sum(a.counted for a in same) <= KM_A_DAY
            assert behaviour != "bus" or sum(a.points for a in actions) <= POINTS_A_MONTH

    def everyone_has_what_the_model_says(self) -> None:
        now = self.clock.at
        for name, person in self.model.residents.items():
            kept = self.city.journal.state(name)
            shown = (kept.available(now), kept.held(now))
            for event in account.due(kept, now):
                account.evolve(withall(kept, self.states[name]), event)
            assert sorted(day for day, n in kept.grants.items() for _ in range(n)) == person.slips
            assert shown == (len(person.slips), person.held) == (kept.available(now), kept.held(now))
            assert (kept.debt_points, kept.debt_mg, kept.total_mg) == (person.debt, person.debt_mg, person.total_mg)
            assert {tuple(b.split(" ")): mg for b, mg in kept.unpooled.items()} == +person.mg
            assert (kept.opened, kept.frozen) == (person.opened, person.frozen)

    def everything_issued_has_one_holder(self) -> None:
        for name, pool in self.model.pools.items():
            found = self.states.get(f"pool/{name}", lot.Pool(name))
            assert (found.gathered_mg, found.verified_mg) == (pool.sealed_mg, pool.verified_mg)
            assert found.issued_mg == pool.issued_kg * KG == KG * sum(one.kg for one in found.lots.values())
            for lot_id, units in pool.lots.items():
                one = found.lots[lot_id]
                held = [(u, who) for who, blocks in one.held.items() for u in spelled(blocks)]
                held += [(u, "retired") for u in spelled(one.retired)]
                assert len(held) == len(dict(held)) == one.kg
                assert dict(held) == units
            assert self.standing[("mg", f"pool/{name}")] == pool.moved_mg - pool.issued_kg * KG

    def the_money_is_where_the_model_says(self) -> None:
        assert self.standing[("fen", "fund")] == self.model.fund_fen
        for name, found in self.model.merchants.items():
            assert self.standing[("points", f"merchant/{name}")] == found.points
            assert self.standing[("fen", f"owed/{name}")] == sum(found.owed.values())
            assert self.standing[("fen", f"merchant/{name}")] == found.paid_fen

    def what_the_journal_keeps_is_what_its_log_says(self) -> None:
        for stream, folded in self.states.items():
            parts = [(field, key) for field in kind_of(stream).parted for key in getattr(folded, field)]
            assert self.city.journal.state(stream, parts) == folded


def withall(kept: account.Account, folded: account.Account) -> account.Account:
    """The state with its redemptions, which what is due may end."""
    kept.redemptions = kept.redemptions or deepcopy(folded.redemptions)
    return kept


def spelled(blocks: tuple[tuple[int, int], ...]) -> list[int]:
    return [unit for first, last in blocks for unit in range(first, last + 1)]


class TestLoop(Loop.TestCase):
    settings = settings(stateful_step_count=60)


@pytest.mark.long
class TestLongLoop(Loop.TestCase):
    settings = settings(stateful_step_count=300, max_examples=300)
