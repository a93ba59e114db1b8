"""Reference terminals at work, each in a thread of its own, and residents whose points they take."""

import hashlib
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from time import sleep
from typing import Any

from carbon_points import codes
from carbon_points.api.installation import redemption_id_of
from carbon_points.directory import Caller
from carbon_points.domain import account, consent, merchant
from carbon_points.journal.journal import Journal
from carbon_points.journal.partition import Write
from carbon_points_terminal import Journal as TillJournal
from carbon_points_terminal import OverHttp, Terminal
from carbon_points_terminal.call import Sale
from carbon_points_terminal.course import Timing
from carbon_points_terminal.ids import new_reference
from carbon_points_terminal.terminal import NotNow
from tests.api.city import opened
from tests.faults.conftest import Place
from tests.faults.servers import PARTITIONS
from tests.simulation.books import calls, sales

MERCHANT, POINTS, RESIDENTS = "shop", 2_000, 400
# As the guide has it, but for a customer who waits for nothing.
HURRIED = Timing(
    answer=5, query_after=0, reverse_after=1, again_first=1, ask_again_for=10, exception_first=1, exception_most=2
)
WANTED = ("code-used", "insufficient-points")
_BASE32 = str.maketrans("0189", "wxyz")


class City:
    """What is there before the first customer comes."""

    def __init__(self, place: Place, terminals: int) -> None:
        installation = opened({"CARBON_PARTITIONS": str(PARTITIONS), **place.environment}, lambda: datetime.now(UTC))
        commands: list[Any] = [merchant.RegisterMerchant(merchant=MERCHANT, name="小店", fen_per_point=2)]
        commands += [merchant.EnrolTerminal(merchant=MERCHANT, terminal=f"t{n}") for n in range(terminals)]
        given = consent.Consent(id="c", purpose="record", version="1", from_=datetime(2020, 1, 1, tzinfo=UTC))
        names = [hashlib.sha256(str(n).encode()).hexdigest()[:20] for n in range(RESIDENTS)]
        self.residents = ["res_" + name.translate(_BASE32) for name in names]
        for resident in self.residents:
            commands += [
                account.OpenAccount(resident=resident),
                account.GiveConsent(resident=resident, consent=given),
            ]
        try:
            _done(installation.journal.commit([Write(command) for command in commands]))
            rules = installation.journal.rules()
            facts = account.ActionFacts(rules.methodologies, rules.sources.reporting("szt", "green"))
            _done(installation.journal.commit([Write(_ride(resident), facts) for resident in self.residents]))
            self.phones = [installation.directory.payers.issue(resident) for resident in self.residents]
            issue = installation.directory.issue_key
            self.keys = [issue("terminal", f"{MERCHANT}/t{n}")[1] for n in range(terminals)]
        finally:
            installation.close()


def _ride(resident: str) -> account.RecordAction:
    return account.RecordAction(
        resident=resident,
        source="szt",
        record_id=resident,
        behaviour="green",
        quantity=Decimal(POINTS // 100),
        unit="km",
        occurred_at=datetime.now(UTC),
    )


def _done(outcomes: Any) -> None:
    assert not [o.refusal or o.failure for o in outcomes if o.refusal or o.failure]


class Tills:
    """So many terminals, each with a queue of customers that does not end until it is stopped."""

    def __init__(self, place: Place, url: str, count: int, seed: int) -> None:
        self.city = City(place, count)
        self.journals = [place.folder / f"t{n}.sqlite" for n in range(count)]
        for number, path in enumerate(self.journals):
            TillJournal.create(path, MERCHANT, f"t{number}").close()
        self.buyers: dict[str, str] = {}
        self.served = 0
        self._url, self._seed = url, seed
        self._stopping, self._counting = threading.Event(), threading.Lock()

    @contextmanager
    def running(self) -> Iterator["Tills"]:
        with ThreadPoolExecutor(len(self.journals)) as threads:
            work = [threads.submit(self._serve, number) for number in range(len(self.journals))]
            try:
                yield self
            finally:
                self._stopping.set()
                for done in work:
                    done.result()

    def progress(self, more: int) -> Any:
        wanted = self.served + more
        return lambda: self.served >= wanted

    @contextmanager
    def _terminal(self, number: int) -> Iterator[Terminal]:
        with (
            TillJournal.open(self.journals[number]) as journal,
            OverHttp(self._url, self.city.keys[number], seconds=HURRIED.answer) as over,
        ):
            yield Terminal(journal, over, lambda: datetime.now(UTC), new_reference, sleep, HURRIED)

    def _serve(self, number: int) -> None:
        with self._terminal(number) as terminal:
            self._customers(terminal, random.Random(self._seed * 100 + number))

    def _customers(self, terminal: Terminal, chance: random.Random) -> None:
        while not self._stopping.is_set():
            terminal.resolve()
            resident = chance.randrange(RESIDENTS)
            phone = self.city.phones[resident]
            # Of a minute that nobody else uses: three are good at a time, and each of them once. The last minute's
            # is shown in the first half of this one only, since it must still be good when a slow call arrives.
            now = datetime.now(UTC)
            earliest = -1 if now.second < 30 else 0
            code = codes.made(phone.handle, phone.secret, codes.step_at(now) + chance.randint(earliest, 1))
            try:
                self._customer(terminal, chance, code, self.city.residents[resident])
            except NotNow:
                sleep(0.05)

    def _customer(self, terminal: Terminal, chance: random.Random, code: str, resident: str) -> None:
        points = chance.randint(1, 20)
        pays = chance.random() < 0.5
        sale = terminal.begin(Sale(points, code, capture=pays))
        self.buyers[sale.reference] = resident
        sale = terminal.settle(sale.reference)
        if sale.outcome is None or sale.outcome.result != "approved":
            return
        with self._counting:
            self.served += 1
        if not pays:
            part = chance.randint(1, points)
            terminal.void(sale.reference) if chance.random() < 0.3 else terminal.capture(sale.reference, part)
        elif chance.random() < 0.3:
            terminal.refund(sale.reference, chance.randint(1, points))
        elif chance.random() < 0.2:
            terminal.cancel(sale.reference)

    # -- afterwards --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Every terminal, begun anew from its journal, brings what is open to its end."""
        for number in range(len(self.journals)):
            with self._terminal(number) as terminal:
                for _ in range(600):
                    if not terminal.unresolved():
                        break
                    terminal.catch_up()
                    sleep(0.05)
                assert not terminal.unresolved(), terminal.unresolved()

    def failed(self) -> list[Any]:
        """Calls that came to an end which nobody wanted: for want of an answer, not of points or of a fresh code."""
        found: list[Any] = []
        for path in self.journals:
            with TillJournal.open(path) as own:
                ended = [call.outcome for call in calls(own) if call.outcome]
            found += [o for o in ended if o.result not in ("approved", "reversed") and o.code not in WANTED]
            found += [o for o in ended if o.result == "reversed" and o.code not in ("customer-cancel", "")]
        return found

    def must_hold(self, journal: Journal) -> int:
        """The platform's redemptions and balances are those of the calls that succeeded. How many sales there were."""
        spent, count = dict.fromkeys(self.city.residents, 0), 0
        for number, path in enumerate(self.journals):
            caller = Caller("", "terminal", f"{MERCHANT}/t{number}")
            with TillJournal.open(path) as own:
                for sale, points in sales(own):
                    resident = self.buyers[sale.reference]
                    name = redemption_id_of(caller, sale.reference)
                    known = journal.state(resident, [("redemptions", name)]).redemptions.get(name)
                    assert (known.captured_points - known.refunded_points if known else 0) == points, (sale, known)
                    spent[resident] += points
                    count += 1
        for resident, points in spent.items():
            known, at = journal.state(resident), datetime.now(UTC)
            assert known.available(at) + known.held(at) == POINTS - points
        return count
