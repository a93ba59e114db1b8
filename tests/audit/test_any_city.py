"""Whatever a city does, in any order, what the journal makes of it is found right: two opinions that agree."""

from collections.abc import Callable
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from carbon_points.audit.verify import verify
from carbon_points.domain import account, lot, source
from carbon_points.domain.refusal import Refusal
from tests.audit.scenario import ANN, BOB, CEM, CLOTHES, DAN, DAY, HOUR, MINUTE, City, china, found

WHO = (ANN, BOB, CEM, DAN)
START = china("2024-03-01T09:00")
Deed = Callable[[City, str, int], object]


def _reverse(city: City, record: str) -> None:
    """By whichever source it has, of its own resident: so the front of the program asks."""
    for by in ("szt", "city", "bike", "gate"):
        if entry := city.journal.find(("action", by, record)):
            city.reverse(entry.stream, by, record)


DEEDS: dict[str, Deed] = {
    "bus": lambda c, who, n: c.bus(who, f"r{n}", c.now - (n % 9) * HOUR),
    "late": lambda c, who, n: c.bus(who, f"r{n}", c.now - (n % 90) * DAY),
    "in": lambda c, who, n: c.tap(who, f"r{n}", "in", c.now - (n % 12) * 25 * MINUTE),
    "out": lambda c, who, n: c.tap(who, f"r{n}", "out", c.now - (n % 12) * 25 * MINUTE),
    "gate in": lambda c, who, n: c.tap(who, f"r{n}", "in", c.now - (n % 12) * 25 * MINUTE, by="gate"),
    "gate out": lambda c, who, n: c.tap(who, f"r{n}", "out", c.now - (n % 12) * 25 * MINUTE, by="gate"),
    "clothes": lambda c, who, n: c.act(
        who, "city", f"r{n}", CLOTHES, f"{n % 7 + 1}.{n:03d}", "kg", c.now - n % 5 * DAY
    ),
    "walk": lambda c, who, n: c.act(who, "city", f"r{n}", "walk", str(n * 997 + 1), "step", c.now - n % 3 * HOUR),
    "bike": lambda c, who, n: c.act(who, "bike", f"r{n}", "shared_bike", f"{n % 13}.{n}5", "km", c.now - n % 2 * DAY),
    "reverse": lambda c, who, n: _reverse(c, f"r{n}"),
    "hold": lambda c, who, n: c.hold(who, f"{who}-{n % 5}", n % 31 + 1, seconds=n * 60 + 1),
    "capture": lambda c, who, n: c.capture(who, f"{who}-{n % 5}", n % 4 + 1),
    "void": lambda c, who, n: c.do(account.VoidHold(resident=who, redemption_id=f"{who}-{n % 5}")),
    "refund": lambda c, who, n: c.refund(who, f"{who}-{n % 5}", f"f{c.now}", n % 5 + 1),
    "record": lambda c, who, n: c.consent(who, f"c{n}", "record", until=c.now + n * DAY + HOUR),
    "trade": lambda c, who, n: c.consent(who, f"t{n}", "trade"),
    "withdraw": lambda c, who, n: c.do(account.WithdrawConsent(resident=who, consent_id=f"{'ct'[n % 2]}{n}")),
    "freeze": lambda c, who, n: c.do(account.FreezeAccount(resident=who, frozen=n % 2 == 0, reason="asked")),
    "lapse": lambda c, who, n: c.do(account.LapseDue(resident=who)),
    "gather": lambda c, who, n: c.gather(who, "pool_a", c.journal.state("pool/pool_a").gathering),
    "seal": lambda c, who, n: c.seal("pool_a", c.journal.state("pool/pool_a").gathering),
    "verify": lambda c, who, n: c.do(
        lot.VerifyPool(pool_id="pool_a", verification_id=f"v{c.now}", verifier="v", report="r", verified_mg=n * 777_777)
    ),
    "issue": lambda c, who, n: c.do(lot.IssueLot(pool_id="pool_a", lot_id=f"lot_{n}")),
    "sell": lambda c, who, n: c.do(
        lot.SellUnits(
            pool_id="pool_a",
            lot_id=f"lot_{n}",
            sale_id=f"s{c.now}",
            buyer=("acme", "bolt")[n % 2],
            kg=n % 3 + 1,
            price_fen=n,
        )
    ),
    "retire": lambda c, who, n: c.do(
        lot.RetireUnits(
            pool_id="pool_a",
            lot_id=f"lot_{n}",
            retirement_id=f"t{c.now}",
            holder=("acme", "bolt")[n % 2],
            kg=n % 2 + 1,
            purpose="event",
            beneficiary="b",
            reason="r",
        )
    ),
    "settle": lambda c, who, n: c.settle("bakery", f"s{c.now}"),
    "suspend": lambda c, who, n: c.do(
        source.ChangeSource(source="szt", behaviours=("bus", "metro_in", "metro_out"), suspended=n % 4 == 0)
    ),
    "age": lambda c, who, n: setattr(c, "now", c.now + n * 90 * DAY),
    "wait": lambda c, who, n: setattr(c, "now", c.now + n * n * n * MINUTE),
}
deeds = st.lists(st.tuples(st.sampled_from(sorted(DEEDS)), st.sampled_from(WHO), st.integers(0, 12)), max_size=120)


@given(done=deeds)
def test_whatever_a_city_does_is_found_right(done: list[tuple[str, str, int]]) -> None:
    city = City("sqlite://", START, strict=False)
    try:
        found(city)
        opened = {"methodology": CLOTHES, "version": "2024-1", "from_month": "2024-01", "until_month": "2024-12"}
        city.do(lot.OpenPool(pool_id="pool_a", region="330500", scheme="HZ", **opened))
        for what, who, n in done:
            try:
                DEEDS[what](city, who, n)
            except Refusal:
                continue
            city.now += timedelta(seconds=n)
        report = verify(city.journal)
    finally:
        city.journal.close()
    assert report.ok, report.first_wrong
