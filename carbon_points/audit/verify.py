"""The verifier: reads the whole log and derives every number of it again, trusting nobody.

Neither a read model nor a decision of the domain is asked. Every check, in the order of the log: the entry's form,
then what it says against what came before. Memory grows with accounts; what grows with actions lies in a temporary
database. Nothing that a log holds makes it raise: what is wrong is reported, and the first wrong entry is named.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Protocol

from msgspec import Struct

from carbon_points.audit.beside import Beside
from carbon_points.audit.envelope import Envelope, is_resident
from carbon_points.audit.finding import Finding, Found, Wrong, found, must, reason_of
from carbon_points.audit.log import Journal, Log, gapless, log_of, uncounted
from carbon_points.audit.merkle import Frontier
from carbon_points.audit.replay.account import Resident, Residents
from carbon_points.audit.replay.book import Book
from carbon_points.audit.replay.identity import identity, used_up
from carbon_points.audit.replay.merchant import Mark
from carbon_points.audit.replay.order import ORDERS, Orders
from carbon_points.audit.replay.terminal import OF_TERMINALS, keep
from carbon_points.audit.scratch import Scratch
from carbon_points.audit.survey import Survey
from carbon_points.domain.account import ActionCredited
from carbon_points.domain.event import Event
from carbon_points.domain.posting import Posting, floor, postings
from carbon_points.journal.entry import Claim, Entry, claim_key

Progress = Callable[[int, int], object]
_ASSETS = ("mg", "points", "fen")
_STEP = 2_000
_OF_RESIDENTS = ("resident", "held", "debt")  # account classes of which every resident has one
NOT_COMPARED = "not compared"


class ReadModel(Protocol):
    """What the read models say, to be held against the log. Rows of residents come in any order."""

    def positions(self) -> Mapping[int, int]:
        """How far each partition is taken in."""
        ...

    def residents(self) -> Iterable[tuple[str, int, int, int, int, int]]:
        """Resident, milligrams ever credited less reversed, points available and held, debts in points and mg."""
        ...

    def trial_balance(self) -> Mapping[tuple[str, str], int]:
        """What stands on each account, by asset and name; residents' together as `resident`, `held` and `debt`."""
        ...


class Report(Struct, frozen=True, kw_only=True):
    """What was read, and whether all of it holds. `actions` were credited; `cases` are identities used in two
    partitions: legal in each, and to be looked into. `roots` are the Merkle roots in hex."""

    ok: bool
    entries: int
    actions: int
    streams: int
    first_wrong: Finding | None
    trial_balance: dict[str, int]
    balances: dict[str, dict[str, int]]
    cases: int
    read_model: str
    heads: dict[int, int]
    roots: dict[int, str]
    seconds: float


def verify(log: Log | Journal, *, read_model: ReadModel | None = None, progress: Progress | None = None) -> Report:
    """`progress` is told the entries done and all of them."""
    started = perf_counter()
    run = _Run(log_of(log), read_model, progress)
    wrong: Finding | None = None
    compared = NOT_COMPARED
    try:
        run.replay()
        compared = run.compared()
    except Found as error:
        wrong = error.finding
    except Exception as error:  # noqa: BLE001  # a log that cannot be read at all is a finding, too
        wrong = Finding(partition=0, position=0, reason=f"cannot be read: {reason_of(error)}")
    finally:
        run.scratch.close()
    return Report(
        ok=wrong is None and not compared.startswith("differs"),
        entries=run.entries,
        actions=run.actions,
        streams=run.streams,
        first_wrong=wrong,
        trial_balance={asset: sum(n for (a, _), n in run.standing.items() if a == asset) for asset in _ASSETS},
        balances=run.balances(),
        cases=run.cases,
        read_model=compared,
        heads=dict(run.heads),
        roots=run.roots,
        seconds=round(perf_counter() - started, 3),
    )


class _Run:
    """One verification, as far as it has come."""

    def __init__(self, log: Log, read_model: ReadModel | None, progress: Progress | None) -> None:
        self._log, self._read_model, self._progress = log, read_model, progress
        self.scratch = Scratch()
        self.entries = self.actions = self.streams = self.cases = 0
        self.heads: Mapping[int, int] = {}
        self.roots: dict[int, str] = {}
        self.standing: Counter[tuple[str, str]] = Counter()  # by asset and account; residents' by class
        self._residents: dict[str, tuple[int, int, int, int, int]] = {}  # only where a read model will be asked
        self._rules: dict[tuple[int, int], bytes] = {}
        self._marks: dict[tuple[int, int], Mark] = {}

    # -- the log -----------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Raises Found at the first entry that is wrong."""
        survey = Survey(self._log)
        self.heads = survey.heads
        self._book = Book(self._log.partitions)
        self._book.replay(survey.rules)
        self._rules = {(entry.partition, entry.position): entry.leaf for entry, _ in survey.rules}
        for partition in range(self._log.partitions):
            self._partition(partition)
        self._check_orders()
        self._book.check_sums()
        self._check_floors()
        self._book.check_files(self._marks, self.scratch)
        self.cases = self.scratch.used_in_two_partitions()

    def _check_orders(self) -> None:
        """Orders and residents' entries agree on what was asked for, and neither says what only the other could have
        led to, unless that has come since they were read."""
        if otherwise := self.scratch.held_otherwise():
            reason = f"redemption {otherwise} was held on other terms than its order says"
            raise Found(Finding(partition=0, position=0, reason=reason))
        if denied := self.scratch.denied():
            reason = (
                f"the order of redemption {denied} says that nothing was sold, and its resident's entries say it was"
            )
            raise Found(Finding(partition=0, position=0, reason=reason))
        if dict(self._log.heads()) != dict(self.heads):
            return
        if nothing := self.scratch.held_of_nothing():
            reason = f"redemption {nothing} was held for an offer, and there is no such order"
            raise Found(Finding(partition=0, position=0, reason=reason))
        if more := self.scratch.overstated():
            redemption, kind = more
            reason = f"the order of redemption {redemption} says more of its {kind} than the resident's entries do"
            raise Found(Finding(partition=0, position=0, reason=reason))

    def _partition(self, partition: int) -> None:
        head = self.heads[partition]
        envelope, tree = Envelope(partition, self._log.partitions), Frontier()
        residents = Residents(partition, self._book, self.scratch)
        orders = Orders(self._book, self.scratch)
        places: dict[str, tuple[int, int]] = {}  # version and last position of the other streams
        ends = self._book.ends(partition)
        for entry in gapless(self._log, partition, 0, head):
            try:
                event = envelope.open(entry)
                words = self._take(entry, event, residents, orders)
                if not is_resident(entry.stream):
                    places[entry.stream] = (entry.version, entry.position)
                self._use(entry, words, residents.kept(event))
                self._use(entry, used_up(event), None)
            except Exception as error:  # whatever the bytes lead to is a finding
                raise found(entry, error) from error
            tree.append(entry.leaf)
            if entry.position in ends:
                self._marks[partition, entry.position] = Mark(tree.root().hex(), envelope.latest)
            self._told(event)
        self.streams += envelope.streams
        self.roots[partition] = tree.root().hex()
        uncounted(self._log, partition, head)
        self._check_opened(partition, residents)
        self._check_beside(partition, residents, places)
        if reason := self._log.disagrees(partition, tree.size, tree.root()):
            raise Found(Finding(partition=partition, position=0, reason=reason))
        self._remember(residents)

    def _take(self, entry: Entry, event: Event, residents: Residents, orders: Orders) -> tuple[str, ...] | None:
        """Replay an entry, put its postings on the accounts, and say which identity it used."""
        if is_resident(entry.stream):
            self._post(residents.take(entry, event))
            return residents.identity(event)
        if isinstance(event, ORDERS):
            orders.take(entry, event)
            return identity(event)
        # Its meaning was checked before. What is read now must be what was read then.
        must(self._rules.get((entry.partition, entry.position)) == entry.leaf, "the entry changed while it was read")
        if isinstance(event, OF_TERMINALS):
            keep(self.scratch, entry, event)
        self._post(postings(event))
        return identity(event)

    def _post(self, moved: list[Posting]) -> None:
        if not moved:
            return
        sums: Counter[str] = Counter()
        for asset, name, amount in moved:
            kind = name.partition("/")[0]
            self.standing[asset, kind if kind in _OF_RESIDENTS else name] += amount
            sums[asset] += amount
        must(not any(sums.values()), f"the postings do not balance: {dict(sums)}")

    def _use(self, entry: Entry, words: tuple[str, ...] | None, kept: bytes | None) -> None:
        if words is None:
            return
        claim = Claim(claim_key(words), entry.stream, entry.version)
        if not self.scratch.use(entry.partition, claim, entry.position, kept):
            earlier = self.scratch.used_by(entry.partition, claim.key)
            raise Wrong(f"the identity {' '.join(words)} was used before, at {earlier[1] if earlier else 0}")

    def _told(self, event: Event) -> None:
        self.entries += 1
        self.actions += isinstance(event, ActionCredited)
        if self._progress and self.entries % _STEP == 0:
            self._progress(self.entries, sum(self.heads.values()))

    def _check_opened(self, partition: int, residents: Residents) -> None:
        """No account is left that a source opened and reported nothing for, unless the report has just come."""
        for stream, r in residents.by_stream.items():
            if r.opening is not None and self._log.heads()[partition] == self.heads[partition]:
                reason = "a source opened the account and reported nothing"
                raise Found(
                    Finding(partition=partition, position=r.position, stream=stream, version=r.version, reason=reason)
                )

    def _check_beside(self, partition: int, residents: Residents, places: dict[str, tuple[int, int]]) -> None:
        beside = Beside(self._log, partition, self.heads[partition], self.scratch)
        versions = places | {stream: (r.version, r.position) for stream, r in residents.by_stream.items()}
        try:
            beside.check_claims(versions)
            beside.check_states(
                residents, {stream: (self._book.states[stream], *place) for stream, place in places.items()}
            )
        except Found:
            raise
        except Exception as error:  # rows that cannot be read are a finding, too
            reason = f"claims or states cannot be read: {reason_of(error)}"
            raise Found(Finding(partition=partition, position=0, reason=reason)) from error

    def _check_floors(self) -> None:
        for (asset, name), amount in sorted(self.standing.items()):
            least = floor(asset, name)  # pyright: ignore[reportArgumentType]  # the assets of postings and no others
            if least is not None and amount < least:
                raise Found(Finding(partition=0, position=0, stream=name, reason=f"{asset} {name} stands at {amount}"))

    def _remember(self, residents: Residents) -> None:
        self.scratch.forget_parts()
        if self._read_model:
            self._residents |= {stream: _figures(r) for stream, r in residents.by_stream.items()}

    # -- what it comes to --------------------------------------------------------------------------------------------

    def balances(self) -> dict[str, dict[str, int]]:
        """What stands on each class of accounts, by asset."""
        classes: dict[str, Counter[str]] = {asset: Counter() for asset in _ASSETS}
        for (asset, name), amount in sorted(self.standing.items()):
            classes[asset][name.partition("/")[0]] += amount
        return {asset: dict(sums) for asset, sums in classes.items()}

    def compared(self) -> str:
        """`equal`, `differs: ...` or `not compared...`."""
        try:
            return self._compare(self._read_model) if self._read_model else NOT_COMPARED
        except Exception as error:  # noqa: BLE001  # the log is right, whatever the read models do
            return f"differs: the read models cannot be asked: {reason_of(error)}"

    def _compare(self, model: ReadModel) -> str:
        positions = dict.fromkeys(self.heads, 0) | dict(model.positions())
        if positions != dict(self.heads):
            return f"{NOT_COMPARED}: the read models stand at {positions}, the log was verified to {dict(self.heads)}"
        left = dict(self._residents)
        for resident, *figures in model.residents():
            if (log := left.pop(resident, None)) != tuple(figures):
                return f"differs: {resident} has {figures}, by the log {log}"
        if left:
            return f"differs: {len(left)} residents are missing, {min(left)} among them"
        said = {key: amount for key, amount in model.trial_balance().items() if amount}
        found = {key: amount for key, amount in self.standing.items() if amount}
        for key in sorted(said.keys() | found.keys()):
            if said.get(key, 0) != found.get(key, 0):
                return f"differs: {' '.join(key)} stands at {said.get(key, 0)}, by the log at {found.get(key, 0)}"
        return "equal"


def _figures(resident: Resident) -> tuple[int, int, int, int, int]:
    account = resident.account
    held = sum(points for hold in account.holds.values() for _, points in hold.taken)
    return (account.total_mg, sum(account.grants.values()), held, account.debt_points, account.debt_mg)
