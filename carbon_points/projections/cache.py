"""Answers about the city, kept in Redis for a moment, and its rankings as sorted sets. The only file that knows Redis.

An answer is kept under the positions of the log that it follows from, so it does not grow stale: it is just not asked
for any more. Sorted sets stand at positions, too, and are found there only. Whatever goes wrong, nothing is found:
never an exception, never a wait above a tenth of a second.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

R = TypeVar("R")
Board = tuple[str, str | None]  # a period, and a county or the whole city
Figures = Mapping[Board, tuple[int, Sequence[tuple[str, int]]]]  # how many days they stay, and residents with theirs

KEPT_SECONDS = 30
KEPT_DAYS = 70  # of where the sorted sets stand; each of them goes by itself when its period is not asked for any more
DAY_SECONDS = 86_400
PATIENCE_SECONDS = 0.1
OFF_SECONDS = 5.0
REMAKE_SECONDS = 60.0
THREADS = 4

_log = logging.getLogger(__name__)


class CityCache:
    """Thread-safe. Without a URL it keeps nothing. `scope` names the log, where several share one Redis.

    `patience`: how many seconds it waits for an answer, where not the usual tenth. Raises ValueError of a URL that is
    none.
    """

    def __init__(self, url: str | None, *, scope: str = "", patience: float | None = None) -> None:
        self._scope = scope
        self._patience = patience
        self._off_until = self._not_made_until = 0.0
        self._client: redis.Redis | None = None
        if url:
            self._client = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # its options are untyped
                url,
                socket_timeout=patience or PATIENCE_SECONDS,
                socket_connect_timeout=patience or PATIENCE_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
            # Looking up a name and shaking hands have no limit of their own: another thread waits for them.
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="city-cache")

    def get(self, path: str, query: str, positions: Mapping[int, int]) -> bytes | None:
        """The answer that was kept for this request at these positions, if it is still there."""
        key = self._key(path, query, positions)
        found = self._within_patience(lambda client: client.get(key))
        return found if isinstance(found, bytes) else None

    def put(self, path: str, query: str, positions: Mapping[int, int], answer: bytes) -> None:
        key = self._key(path, query, positions)
        self._within_patience(lambda client: client.set(key, answer, ex=KEPT_SECONDS))

    # -- rankings ----------------------------------------------------------------------------------------------------

    def ranking(
        self, board: Board, positions: Mapping[int, int], *, limit: int, resident: str = ""
    ) -> tuple[int, list[tuple[int, str, int]]] | None:
        """How many are ranked, and the first of them with their places; or a resident with `limit` on each side.

        None where the sorted sets stand at other positions, or one of them is not as it was left.
        """
        told = (_at(positions), resident, limit)
        found = self._script(_READ, [self._header, self._board(board)], *told)
        if found is None:
            return None
        return found[0], [(place, member.decode(), int(float(mg))) for member, mg, place in found[1]]

    def stands_at(self, positions: Mapping[int, int]) -> bool:
        """Whether the sorted sets need nothing: they are there, or nobody can tell."""
        at = self._within_patience(lambda client: client.hget(self._header, "at") or b"")
        return at is None or at == _at(positions).encode()

    def change(self, before: Mapping[int, int], after: Mapping[int, int], figures: Figures) -> bool:
        """Bring the sorted sets from some positions to others. Not from anywhere else: then nothing changes."""
        return self._change(_at(before), _at(after), figures)

    def make(self, positions: Mapping[int, int], pages: Iterable[Figures]) -> bool:
        """Make the sorted sets anew. Whoever flushes or makes them meanwhile stops this, and nobody sees them half.

        All are read for it: where it failed, for want of memory or by a flush, it is not tried again at once.
        """
        making = f"making {secrets.token_hex(8)}"
        if time.monotonic() < self._not_made_until or not self._script(_BEGIN, [self._header], making, DAY_SECONDS):
            return False
        made = all(self._change(making, making, page) for page in pages) and self._change(making, _at(positions), {})
        self._not_made_until = 0.0 if made else time.monotonic() + REMAKE_SECONDS
        return made

    def _change(self, before: str, after: str, figures: Figures) -> bool:
        keys = [self._header, *map(self._board, figures)]
        told = [
            (days * DAY_SECONDS, [word for resident, mg in those for word in (str(mg), resident)])
            for days, those in figures.values()
        ]
        return self._script(_CHANGE, keys, before, after, msgspec.json.encode(told), KEPT_DAYS * DAY_SECONDS) == 1

    @property
    def _header(self) -> str:
        """Where the sorted sets stand, and how many are in each. Braces keep all of a log in one slot of a cluster."""
        return f"carbon-ranking:{{{self._scope}}}"

    def _board(self, board: Board) -> str:
        period, county = board
        return f"{self._header}:{period}:{'city' if county is None else county}"

    def _script(self, script: str, keys: Sequence[str], *told: Any) -> Any:
        return self._within_patience(lambda client: client.eval(script, len(keys), *keys, *told))

    def close(self) -> None:
        if self._client is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._client.close()
            self._client = None

    def _key(self, path: str, query: str, positions: Mapping[int, int]) -> str:
        told = msgspec.json.encode((self._scope, path, query, sorted(positions.items())))
        return f"carbon-city:{hashlib.sha256(told).hexdigest()}"

    def _within_patience(self, ask: Callable[[redis.Redis], R]) -> R | None:
        client = self._client
        if client is None or time.monotonic() < self._off_until:
            return None
        asked = self._threads.submit(ask, client)
        try:
            return asked.result(self._patience or PATIENCE_SECONDS)
        except (redis.RedisError, OSError, TimeoutError) as error:
            asked.cancel()
            self._off_until = time.monotonic() + OFF_SECONDS
            _log.warning("the cache does not answer, and is left alone for %.0f s: %r", OFF_SECONDS, error)
            return None


def _at(positions: Mapping[int, int]) -> str:
    return msgspec.json.encode(sorted(positions.items())).decode()


# Scores are exact below 2^53 mg, nine million tonnes. A set that was lost, in whole or in part, shows by its size.
_READ = """
local header, board, at, resident, limit = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local size = redis.call('ZCARD', board)
if redis.call('HGET', header, 'at') ~= at or size ~= tonumber(redis.call('HGET', header, board) or 0) then
  return false
end
local first, last = 0, limit - 1
if resident ~= '' then
  local rank = redis.call('ZREVRANK', board, resident)
  if not rank then return {size, {}} end
  first, last = math.max(rank - limit, 0), rank + limit
end
local found, told = redis.call('ZREVRANGE', board, first, last, 'WITHSCORES'), {}
for i = 1, #found, 2 do
  told[#told + 1] = {found[i], found[i + 1], redis.call('ZCOUNT', board, '(' .. found[i + 1], '+inf') + 1}
end
return {size, told}
"""
_BEGIN = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'at', ARGV[1])
return redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
_CHANGE = """
local header, before, after, told = KEYS[1], ARGV[1], ARGV[2], cjson.decode(ARGV[3])
if redis.call('HGET', header, 'at') ~= before then return 0 end
for i = 2, #KEYS do
  local known = redis.call('HGET', header, KEYS[i])
  if string.sub(before, 1, 6) == 'making' and not known then
    redis.call('UNLINK', KEYS[i])
  elseif redis.call('ZCARD', KEYS[i]) ~= tonumber(known or 0) then
    return 0
  end
end
for i = 2, #KEYS do
  local seconds, figures = told[i - 1][1], told[i - 1][2]
  for j = 1, #figures, 2000 do
    redis.call('ZADD', KEYS[i], unpack(figures, j, math.min(j + 1999, #figures)))
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', 0)
  redis.call('HSET', header, KEYS[i], redis.call('ZCARD', KEYS[i]))
  redis.call('EXPIRE', KEYS[i], seconds)
end
redis.call('HSET', header, 'at', after)
redis.call('EXPIRE', header, ARGV[4])
return 1
"""
