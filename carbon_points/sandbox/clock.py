"""The clock of a sandbox: the real one, and how far tests have moved it on.

Each move is a row, so that it outlasts a restart, is made once however often it is asked for, and is seen by the other
processes of the installation within a second. It goes forwards only: the log's time never goes back.
"""

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Column, Engine, MetaData, String, Table, func, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from carbon_points.domain.refusal import Conflict, Refusal

FRESH_SECONDS = 1.0  # how long another process may not know of a move
MOST_DAYS = 3650  # in all: as far as rules and consents of a test are likely to reach

metadata = MetaData()
MOVES = Table(
    "clock_moves",
    metadata,
    Column("move_id", String(64), primary_key=True),
    Column("seconds", BigInteger, nullable=False),
)
_TOTAL = select(func.coalesce(func.sum(MOVES.c.seconds), 0))


class ClockTooFar(Refusal):
    code = "clock-too-far"
    title = "The clock of a sandbox is moved on by ten years in all"


class Moves:
    """The rows. Thread-safe; the directory makes the table, and closes the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def total(self) -> timedelta:
        with self._engine.connect() as connection:
            return timedelta(seconds=int(connection.execute(_TOTAL).scalar_one()))

    def add(self, move_id: str, seconds: int) -> bool:
        """Whether it is new. Refusals, in order: Conflict, ClockTooFar."""
        of = MOVES.c.move_id == move_id
        with self._engine.connect() as connection:
            earlier = connection.execute(select(MOVES.c.seconds).where(of)).scalar()
            moved = int(connection.execute(_TOTAL).scalar_one())
        if earlier is None:
            if moved + seconds > MOST_DAYS * 86_400:
                raise ClockTooFar(moved_seconds=moved, advance_seconds=seconds)
            try:
                with self._engine.begin() as connection:
                    connection.execute(MOVES.insert().values(move_id=move_id, seconds=seconds))
            except IntegrityError:  # the same call, at the same moment
                return self.add(move_id, seconds)
            return True
        if earlier != seconds:
            raise Conflict(fields=["advance_seconds"])
        return False


class MovedClock:
    """What an installation that is a sandbox asks for the time. `real` is what it was moved on from."""

    def __init__(self, real: Callable[[], datetime]) -> None:
        self.real = real
        self.by = timedelta(0)
        self._moves: Moves | None = None
        self._until = 0.0

    def __call__(self) -> datetime:
        if self._moves is not None and time.monotonic() >= self._until:
            try:
                self.look()
            except SQLAlchemyError:  # as far as it was known to be: it tells in its own calls that it is away
                self._until = time.monotonic() + FRESH_SECONDS
        return self.real() + self.by

    def follow(self, moves: Moves) -> None:
        """Go by these from now on."""
        self._moves = moves
        self.look()

    def look(self) -> None:
        """Take in every move that was made until now."""
        assert self._moves is not None, "there is nothing to follow"
        self.by = max(self.by, self._moves.total())
        self._until = time.monotonic() + FRESH_SECONDS
