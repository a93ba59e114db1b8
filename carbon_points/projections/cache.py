"""Answers about the city, kept in Redis for a moment. The only file that knows Redis.

An answer is kept under the positions of the log that it follows from, so it does not grow stale: it is just not asked
for any more. Whatever goes wrong, nothing is found: never an exception, never a wait above a tenth of a second.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

R = TypeVar("R")

KEPT_SECONDS = 30
PATIENCE_SECONDS = 0.1
OFF_SECONDS = 5.0
THREADS = 4

_log = logging.getLogger(__name__)


class CityCache:
    """Thread-safe. Without a URL it keeps nothing. `scope` names the log, where several share one Redis.

    Raises ValueError of a URL that is none.
    """

    def __init__(self, url: str | None, *, scope: str = "") -> None:
        self._scope = scope
        self._off_until = 0.0
        self._client: redis.Redis | None = None
        if url:
            self._client = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # its options are untyped
                url,
                socket_timeout=PATIENCE_SECONDS,
                socket_connect_timeout=PATIENCE_SECONDS,
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
            return asked.result(PATIENCE_SECONDS)
        except (redis.RedisError, OSError, TimeoutError) as error:
            asked.cancel()
            self._off_until = time.monotonic() + OFF_SECONDS
            _log.warning("the cache does not answer, and is left alone for %.0f s: %r", OFF_SECONDS, error)
            return None
