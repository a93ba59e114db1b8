"""For a developer's own machine: follow the events of an installation over HTTP and hand them to a local server.

What arrives there looks as a webhook does: the same names, bodies and headers, signed by a secret of this session.
Unlike a webhook, it is sent once: a local server that is not up yet misses it.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from carbon_points.webhooks.messages import signed
from carbon_points.webhooks.sending import TIMEOUT_SECONDS

POLL_SECONDS = 1.0
PAGE = 100
START = "start"  # of the log


class Forwarded(Struct, frozen=True):
    """One event, and what the local server said to it: a status, or why there is none."""

    sequence: int
    type: str
    id: str
    answer: str


class NotFollowed(ValueError):
    """The installation does not let us follow it."""


def listen(
    at: str, key: str, forward_to: str, secret: str, *, merchant: str | None = None, after: str = "now"
) -> Iterator[Forwarded]:
    """Each event from `after` on, as it is handed on, for ever. Raises NotFollowed, httpx.TransportError."""
    sequence = 0
    asked: dict[str, Any] = {"limit": PAGE} | ({"merchant": merchant} if merchant else {})
    with (
        httpx.Client(base_url=at, headers={"Authorization": f"Bearer {key}"}, timeout=30) as server,
        httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False) as local,
    ):
        while True:
            page = _page(server.get("/v1/events", params=asked | ({} if after == START else {"after": after})))
            for event in page["data"]:
                sequence += 1
                yield _forwarded(local, forward_to, secret, event, sequence)
            after = page["after"]
            if not page["more"]:
                time.sleep(POLL_SECONDS)


def _page(answer: httpx.Response) -> Any:
    if not answer.is_success:
        raise NotFollowed(f"the server answered {answer.status_code}: {answer.text[:300]}")
    return answer.json()


def _forwarded(local: httpx.Client, url: str, secret: str, event: dict[str, Any], sequence: int) -> Forwarded:
    said = {"type": event["type"], "id": event["id"], "sequence": sequence}
    body = msgspec.json.encode({**said, "created_at": event["created_at"], "data": event["data"]})
    headers = signed([secret], event["id"], datetime.now(UTC), body)
    headers |= {"webhook-sequence": str(sequence), "content-type": "application/json"}
    try:
        told = f"HTTP {local.post(url, headers=headers, content=body).status_code}"
    except httpx.HTTPError as error:
        told = f"{type(error).__name__}: {error}"
    return Forwarded(sequence, event["type"], event["id"], told)
