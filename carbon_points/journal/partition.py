"""The only writer: commands in, entries out, a batch a transaction.

`commit` decides each command of a batch in turn against states kept in memory, and appends what followed in one
transaction, with the claims and the states. A refused command leaves its neighbours alone. Another process may write
too: whoever loses the race for a stream's version or a claim reads again and decides again.
"""

import random
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter

from eventsourcing.persistence import InterfaceError, InternalError, StoredEvent
from msgspec import Struct, structs

from carbon_points.domain.event import Command, Event
from carbon_points.domain.refusal import Conflict, Refusal
from carbon_points.journal import codec
from carbon_points.journal.entry import Claim, Entry, StateRow, claim_key
from carbon_points.journal.recorder import Claimed, Contended, Recorder, Unreachable
from carbon_points.journal.streams import (
    Kind,
    State,
    decode_state,
    encode_main,
    encode_part,
    kind_of,
    new_state,
    stream_of,
)

STATES_KEPT = 12 * 2**20  # bytes about as stored, of all partitions of a process: in memory they take seven times that
STATE_BYTES, PART_BYTES = 200, 70  # of one that is empty, or not there
PARTS_KEPT = 24  # of one state, before it is dropped from memory
TRIES = 20  # lost races for the same streams before the caller is told
PATIENT = 3  # of them before the partition is locked for the next
CLOCK_BEHIND_MOST = timedelta(seconds=30)  # behind the newest entry; the verifier allows a minute
PAUSE_MOST_SECONDS = 0.05  # between two of them, so that busy processes do not keep meeting
RECONNECTS = 2
RECONNECT_MOST_SECONDS = 10.0  # after which no try is begun anew
LOOKS = 100  # batches that look for their identities first, after one of those was found
AWAY_SECONDS = 1.0  # in which others are told what one has found out by waiting


class Write(Struct, frozen=True):
    """One command, with the facts from other streams that its decision needs. `view` sums up the state after it."""

    command: Command
    facts: object = None
    view: Callable[[State, datetime], object] | None = None


class Outcome(Struct, frozen=True):
    """What became of a write: the events it made, or made when it came first (`replayed`), or the refusal.

    `position` is of the last event; `view` is what the write's own view made of the state after it. `failure` is a
    mistake of ours that met this command: it did not happen, and its neighbours did.
    """

    stream: str
    events: tuple[Event, ...] = ()
    replayed: bool = False
    refusal: Refusal | None = None
    partition: int = 0
    position: int = 0
    version: int = 0
    view: object = None
    failure: Exception | None = None


class Unavailable(Exception):
    """The journal cannot be written now. The same command may be sent again."""


Part = tuple[str, str]  # a field of the state, and its key
MAIN: Part = ("", "")


class _Loaded:
    """A state in memory: its version, which of its parts are here, which have a row, and which are to be written."""

    __slots__ = ("counted", "dirty", "kind", "parts", "read_by", "size", "state", "stream", "version")

    def __init__(self, stream: str, kind: Kind) -> None:
        self.stream = stream
        self.kind = kind
        self.state: State = None  # until it is filled in, or made new
        self.version = 0
        self.read_by: Batch | None = None  # None: kept from earlier ones
        self.parts: dict[Part, bool] = {MAIN: False}  # those that are here, and whether they have a row
        self.dirty: list[Part] = []
        self.size = self.counted = 0  # bytes of the main part, now and as it stands in what all states take


class _Stale(Exception):
    """What was read is not the newest: another process wrote meanwhile."""


class Repeated(Exception):
    """An identity of the batch before is in this one: what to say of it is not known before that is appended."""


class Batch:
    """Commands that were decided together, and what they will append."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self.writes = writes
        self.used: set[str] = set()  # streams
        self.outcomes: list[Outcome] = []
        self.kept: dict[str, int] = {}  # streams that it only looked at, in memory, and the version it found
        self.unsure: list[bytes] = []  # identities of commands that append nothing: perhaps used before
        self.rows: list[StateRow] = []
        self.events: list[StoredEvent] = []
        self.claims: dict[bytes, Claim] = {}
        self.made: dict[bytes, tuple[Event, int]] = {}  # by claim: the event and its number in the batch
        self.now: datetime | None = None  # one moment for all of it; looked up by the first decision
        self.touched: dict[str, _Loaded] = {}


_part = attrgetter("part")


class _Turn:
    """Whose turn it is to write: a lock that tells its holder whether others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = threading.Lock()
        self.wanted = 0

    def __enter__(self) -> None:
        with self._count:
            self.wanted += 1
        self._lock.acquire()
        with self._count:
            self.wanted -= 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Partition:
    """One partition of the journal. Batches of one process go one after another: whoever writes has the `turn`.

    `commit` is thread-safe. `decided`, `appended`, `forget` and `retried` are its steps, for who has the turn and lets
    the next batch be decided while one is appended.
    """

    def __init__(self, recorder: Recorder, clock: Callable[[], datetime], states_kept: int = STATES_KEPT) -> None:
        self.recorder = recorder
        self.number = recorder.partition
        self.others: Sequence[Recorder] = ()  # of the other partitions: asked for identities that are one in all
        self._clock = clock
        self._states_kept = states_kept
        self._last: datetime | None = None  # when the newest entry was recorded; looked up by the first decision
        self._loaded: OrderedDict[str, _Loaded] = OrderedDict()
        self._size = 0
        self.crowded = False  # a state has outgrown memory, and is used again by the batch that was decided since
        self.turn = _Turn()
        self._looks = 0  # batches that are still to look for their identities before they are decided
        self._away = ("", 0.0)  # why the last batch could not be written, and until when nobody tries again

    def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Decide and append, in order; durable when it returns. Raises Unavailable, and then each may be sent again.

        It is safe to try again after a lost answer: a command that did happen is found by its claim.
        """
        with self.turn:
            return self.retried(writes)

    def retried(self, writes: Sequence[Write], failed: Exception | None = None, begun: float = 0.0) -> list[Outcome]:
        """The same by whoever has the turn. `failed` is what met the first try, `begun` when that was."""
        begun = begun or time.monotonic()
        if isinstance(failed, Claimed):  # it did not look: this time it does
            failed = None
        why, until = self._away
        if begun < until:  # whoever waited meanwhile would else find it out one after another
            raise Unavailable(why)
        for attempt in range(TRIES):
            try:
                if failed is not None and attempt == 0:
                    raise failed
                if attempt < PATIENT:
                    return self._attempt(writes)
                # Whoever lost must read again before it decides, and would go on losing to one who need not.
                with self.recorder.alone():
                    return self._attempt(writes)
            except (Contended, _Stale):
                self.drop()
                time.sleep(random.uniform(0, min(0.002 * 2**attempt, PAUSE_MOST_SECONDS)))  # noqa: S311  # no secret
            except (Unreachable, InterfaceError, InternalError) as error:  # the last: a standby, which only reads
                self.drop()
                now = time.monotonic()
                # A server that restarts is given a moment; the caller a clear answer.
                if attempt >= RECONNECTS or now - begun > RECONNECT_MOST_SECONDS:
                    self._away = (str(error), now + AWAY_SECONDS)
                    raise Unavailable(str(error)) from error
                time.sleep(0.2 * (attempt + 1))
            except Unavailable:
                self.drop()
                raise
            except Exception as error:  # noqa: BLE001  # a mistake in one command must not fail its neighbours
                self.drop()
                if len(writes) == 1 and (failed is None or attempt):
                    return [Outcome(stream_of(writes[0].command), partition=self.number, failure=error)]
                break
            except BaseException:
                self.drop()
                raise
        else:
            raise Unavailable("other processes kept winning the race for the same streams")
        return [outcome for write in writes for outcome in self.retried([write])]

    def _attempt(self, writes: Sequence[Write]) -> list[Outcome]:
        batch = self.decided(writes, None, True)
        outcomes = self.appended(batch)
        self.forget(batch)
        return outcomes

    def drop(self) -> None:
        """What is in memory may not be what is stored: read it again."""
        self._loaded.clear()
        self._size, self.crowded = 0, False

    def undo(self, failed: Exception, *batches: Batch) -> None:
        """What these decided is in memory, and nowhere else, since one of them failed.

        Where an identity was found, that is all: what others left in memory is as good as before.
        """
        if isinstance(failed, Contended):  # perhaps for an identity, if it does not say so
            self._looks = LOOKS
        if not isinstance(failed, Claimed):
            self.drop()
            return
        for stream in {stream for batch in batches for stream in batch.used}:
            if loaded := self._loaded.pop(stream, None):
                self._size -= loaded.counted
        self.crowded = False

    def decided(self, writes: Sequence[Write], before: Batch | None = None, careful: bool = False) -> Batch:
        """Decide, in order, on the states as they are in memory or in the database.

        `before` may not be appended yet; it will be, or this batch is not either. Raises Repeated, before anything.

        Identities are nearly always new, and the append finds those that are not: they are looked for beforehand only
        where that costs no round trip of its own, where one was found lately, or by who is `careful`.
        """
        why, until = self._away
        if time.monotonic() < until:
            raise Unavailable(why)
        batch = Batch(writes)
        keys = [claim_key(words) if (words := w.command.claim()) else None for w in writes]
        uses = [claim_key(words) if (words := w.command.uses_up()) else None for w in writes]
        asked = {key for key in (*keys, *uses) if key}
        if before and not before.claims.keys().isdisjoint(asked):
            raise Repeated
        streams = [stream_of(w.command) for w in writes]
        kinds = [kind_of(stream) for stream in streams]
        needed = [
            (stream, kind, kind.parts(w.command, w.facts))
            for w, stream, kind in zip(writes, streams, kinds, strict=True)
        ]
        wanted = self._missing(needed, batch)
        everywhere = bool(self.others) and any(w.command.claimed_everywhere for w in writes)
        known = dict[bytes, Claim]()
        if careful or wanted or everywhere or self._looks:
            claims, rows = self.recorder.look(list(asked), wanted)
            self._fill(self._loaded, rows)
            known = {claim.key: claim for claim in claims}
            self._looks = LOOKS if known else max(self._looks - 1, 0)
        replays = {(claim.stream, claim.version) for claim in known.values()}
        earlier = self.recorder.read_at(sorted(replays)) if replays else {}
        wide = [k for w, k in zip(writes, keys, strict=True) if k and w.command.claimed_everywhere and k not in known]
        for other in self.others if wide else ():
            if elsewhere := other.claimed(wide):
                known |= elsewhere
                earlier |= other.read_at([(claim.stream, claim.version) for claim in elsewhere.values()])
        left = Counter(streams)
        for write, stream, pair in zip(writes, streams, zip(keys, uses, strict=True), strict=True):
            batch.outcomes.append(self._decide(write, stream, pair, known, earlier, batch))
            left[stream] -= 1
            # Nothing more comes for it: its state is encoded while the processor has it at hand.
            if not left[stream] and (loaded := batch.touched.get(stream)):
                self._encode(loaded, batch)
        for outcome, key, use in zip(batch.outcomes, keys, uses, strict=True):
            if not outcome.refusal and not outcome.replayed:
                continue
            loaded = self._loaded.get(outcome.stream)
            if loaded and loaded.read_by is not batch and outcome.stream not in batch.touched:
                batch.kept[outcome.stream] = loaded.version
            if outcome.refusal or not outcome.events:
                batch.unsure += [each for each in (key, use) if each and each not in known]
        return batch

    def appended(self, batch: Batch) -> list[Outcome]:
        """Append what was decided, durably: the outcomes. Needs nothing of what is in memory."""
        if batch.kept or batch.unsure:
            # Of what nothing is appended to, nothing else would notice that another process wrote it meanwhile.
            claims, rows = self.recorder.look(batch.unsure, [(stream, "") for stream in batch.kept])
            stored = {row.stream: row.version for row in rows}
            if any(stored.get(stream, 0) != version for stream, version in batch.kept.items()):
                raise _Stale
            if claims:
                raise Claimed  # the answer is the earlier one, not a refusal
        first = 0
        if batch.events:
            first = self.recorder.append(batch.events, list(batch.claims.values()), batch.rows) - len(batch.events)
        return [_placed(outcome, first) for outcome in batch.outcomes]

    def _decide(
        self,
        write: Write,
        stream: str,
        keys: tuple[bytes | None, bytes | None],
        known: dict[bytes, Claim],
        earlier: dict[tuple[str, int], Entry],
        batch: Batch,
    ) -> Outcome:
        key, use = keys
        if key and (claim := batch.claims.get(key) or known.get(key)):
            return self._replay(write, stream, claim, earlier, batch)
        loaded, now = self._at_hand(stream), self._moment(batch)
        if use and (use in batch.claims or use in known):
            refusal = write.command.used_up()
            return Outcome(stream, refusal=refusal, partition=self.number, version=loaded.version)
        for event in loaded.kind.due(loaded.state, now):
            self._take(loaded, event, batch)
        try:
            events = loaded.kind.decide(loaded.state, write.command, now=now, facts=write.facts)
        except Refusal as refusal:
            return Outcome(stream, refusal=refusal, partition=self.number, version=loaded.version)
        for event in events:
            self._take(loaded, event, batch)
        if key and events:
            batch.claims[key] = Claim(key, stream, loaded.version)
            batch.made[key] = (events[-1], len(batch.events))
        if use and events:
            batch.claims[use] = Claim(use, stream, loaded.version - len(events) + 1)
        view = write.view(loaded.state, now) if write.view else None
        return Outcome(
            stream,
            events=tuple(events),
            replayed=not events,
            partition=self.number,
            position=len(batch.events) if events else 0,
            version=loaded.version,
            view=view,
        )

    def _replay(
        self, write: Write, stream: str, claim: Claim, earlier: dict[tuple[str, int], Entry], batch: Batch
    ) -> Outcome:
        """The earlier answer again, or a refusal that names what differs."""
        made, partition = batch.made.get(claim.key), self.number
        if made:
            event, position = made
        else:
            entry = earlier[claim.stream, claim.version]
            event, position, partition = codec.decode(entry.type, entry.state), -entry.position, entry.partition
        refusal = None
        if fields := write.command.differs(event):
            refusal = Conflict(fields=sorted(fields))
        told = write.view is not None and refusal is None
        return Outcome(
            stream,
            events=(event,),
            replayed=True,
            refusal=refusal,
            partition=partition,
            position=position,
            version=claim.version,
            view=write.view(self._at_hand(stream).state, self._moment(batch)) if told and write.view else None,
        )

    def _take(self, loaded: _Loaded, event: Event, batch: Batch) -> None:
        """Put an event into the state and the batch."""
        for part in loaded.kind.parts(event):
            if part not in loaded.parts:
                missing = self._missing([(loaded.stream, loaded.kind, [part])], batch)
                self._fill(self._loaded, self.recorder.states(missing))
            if part not in loaded.dirty:
                loaded.dirty.append(part)
        loaded.kind.evolve(loaded.state, event)
        loaded.version += 1
        type_name, state = codec.encode(event)
        batch.events.append(StoredEvent(loaded.stream, loaded.version, type_name, state))
        batch.touched[loaded.stream] = loaded

    @staticmethod
    def _encode(loaded: _Loaded, batch: Batch) -> None:
        """The state as the batch leaves it."""
        stream, version, kept = loaded.stream, loaded.version, loaded.parts
        state = encode_main(loaded.kind, loaded.state)
        loaded.size = len(state)
        batch.rows.append(StateRow(stream, "", version, state, kept[MAIN]))
        kept[MAIN] = True
        for part in loaded.dirty:
            if (state := encode_part(loaded.state, *part)) is not None:
                batch.rows.append(StateRow(stream, "/".join(part), version, state, kept[part]))
                kept[part] = True
        loaded.dirty.clear()

    def forget(self, batch: Batch, following: Batch | None = None) -> None:
        """Keep memory bounded: the states that were used longest ago go, and those that grew many parts.

        Those that are used again by the batch that was decided meanwhile stay until it is appended.
        """
        busy: set[str] = following.used if following else set()
        self.crowded = False
        for stream in batch.used:
            loaded = self._loaded[stream]
            size = STATE_BYTES + loaded.size + PART_BYTES * len(loaded.parts)
            self._size += size - loaded.counted
            loaded.counted = size
            grown = len(loaded.parts) > PARTS_KEPT
            if stream in busy:
                self.crowded |= grown
                continue
            loaded.read_by = None
            if grown:
                self._size -= size
                del self._loaded[stream]
        while self._size > self._states_kept and (oldest := next(iter(self._loaded))) not in busy:
            self._size -= self._loaded.pop(oldest).counted

    # -- states ------------------------------------------------------------------------------------------------------

    def _missing(self, wanted: Sequence[tuple[str, Kind, Sequence[Part]]], batch: Batch) -> list[tuple[str, str]]:
        """The rows of states and their parts that are not in memory, where they get their place."""
        rows: list[tuple[str, str]] = []
        for stream, kind, parts in wanted:
            loaded = self._loaded.get(stream)
            if loaded is None:
                loaded = self._loaded[stream] = _Loaded(stream, kind)
                loaded.read_by = batch
                rows.append((stream, ""))
            elif stream not in batch.used:
                self._loaded.move_to_end(stream)
            batch.used.add(stream)
            for part in parts:
                if part not in loaded.parts:
                    loaded.parts[part] = False
                    rows.append((stream, "/".join(part)))
        return rows

    @staticmethod
    def _fill(into: "dict[str, _Loaded] | OrderedDict[str, _Loaded]", rows: Sequence[StateRow]) -> None:
        for row in sorted(rows, key=_part):  # the main part comes first: ""
            loaded = into[row.stream]
            if not row.part:
                # Parts that are here already stay: only a state that is new in memory reads its main part.
                loaded.state, loaded.version = decode_state(loaded.kind.state_type, row.state), row.version
                loaded.parts[MAIN], loaded.size = True, len(row.state)
            elif row.version > loaded.version:
                raise _Stale  # the main part was kept from before another process wrote both
            else:
                field, _, key = row.part.partition("/")
                getattr(loaded.state, field)[key] = decode_state(loaded.kind.parted[field], row.state)
                loaded.parts[field, key] = True

    def _at_hand(self, stream: str) -> _Loaded:
        """A stream's state, a new one where nothing is stored."""
        loaded = self._loaded[stream]
        if loaded.state is None:
            loaded.state = new_state(stream)
        return loaded

    def state(self, stream: str, parts: Sequence[tuple[str, str]] = ()) -> tuple[State, int]:
        """A stream's state as it is committed, and its version. Only the named parts are filled in."""
        loaded = _Loaded(stream, kind_of(stream))
        wanted = [(stream, ""), *((stream, "/".join(part)) for part in parts)]
        self._fill({stream: loaded}, self.recorder.states(wanted))
        return new_state(stream) if loaded.state is None else loaded.state, loaded.version

    def _last_recorded(self) -> datetime:
        """When the newest entry was recorded: a clock that went back since must not show."""
        for entry in self.recorder.read(self.recorder.head() - 1, 1):
            return codec.decode(entry.type, entry.state).recorded_at
        return datetime.min.replace(tzinfo=UTC)

    def _moment(self, batch: Batch) -> datetime:
        if batch.now is None:
            batch.now = self._now()
        return batch.now

    def _now(self) -> datetime:
        """The time, never earlier than it was before in this partition."""
        now = self._clock()
        if self._last is None:
            self._last = self._last_recorded()
        if self._last - now > CLOCK_BEHIND_MOST:
            raise Unavailable(f"the clock is at {now}, before the newest entry's {self._last}")
        self._last = max(self._last, now)
        return self._last


def _placed(outcome: Outcome, first: int) -> Outcome:
    """A position counted in the batch becomes one of the partition. Those of earlier entries are negative till here."""
    if outcome.position == 0:
        return outcome
    return structs.replace(outcome, position=-outcome.position if outcome.position < 0 else first + outcome.position)
