"""One message to one address: which addresses may be called at all, and one POST that cannot be led elsewhere.

An address is given by strangers and called from inside. So a name is looked up once, all that it means must lie
outside, and the connection goes to the very address that was looked at: what the name means a moment later (DNS
rebinding) does not matter. Redirects are answers like any other, no proxy of the environment is used, and nothing of
an answer's body is kept.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httpcore
from msgspec import Struct

from carbon_points.domain.refusal import Refusal

TIMEOUT_SECONDS = 15.0  # for everything: the name, the connection, TLS, the question and the answer
BODY_READ_MOST = 4_096  # bytes of an answer; one that is longer, or does not say, is not read but hung up on
URL_MOST = 500
OWN_PORT = {"https": 443, "http": 80}
PORTS_FROM, PORTS_UNTIL = 1_024, 65_535  # free to choose; below are other services'
RESOLVING = 16  # names that are looked up at the same time
IDLE_SECONDS = 30.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA = frozenset(map(ipaddress.ip_address, ("168.63.129.16",)))  # a cloud's own service behind a public address


class WebhookUrlInvalid(Refusal):
    code = "webhook-url-invalid"
    title = "Webhooks go to https://host[:port]/path of a public address: port 443, or from 1024 on"


class AddressRefused(Exception):
    """A name that means an address inside."""


class Allowed(Struct, frozen=True):
    """What an installation lets webhooks reach: `http` and `internal` are for development and closed networks."""

    http: bool = False
    internal: bool = False

    def check(self, url: str) -> None:
        """Refuse a URL that would never be called. What its name means is looked at each time. Raises its refusal."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise WebhookUrlInvalid(url=url[:URL_MOST]) from None
        schemes = {"https", "http"} if self.http else {"https"}
        if (
            len(url) > URL_MOST
            or not url.isascii()
            or not url.isprintable()
            or " " in url
            or parts.scheme not in schemes
            or not parts.hostname
            or "@" in parts.netloc
            or parts.fragment
            or not _port_allowed(parts, port)
            or not self._host_allowed(parts.hostname)
        ):
            raise WebhookUrlInvalid(url=url[:URL_MOST])

    def _host_allowed(self, host: str) -> bool:
        with suppress(ValueError):
            return self.internal or outside(ipaddress.ip_address(host))
        return self.internal or not (host == "localhost" or host.endswith((".localhost", ".internal", ".local")))

    def addresses(self, host: str, found: Iterable[str]) -> list[str]:
        """The addresses of a name, if they all may be called. Raises AddressRefused."""
        found = list(dict.fromkeys(found))
        if not found:
            raise AddressRefused(f"{host} has no address")
        if not self.internal and (
            inside := [one for one in found if not outside(ipaddress.ip_address(one.partition("%")[0]))]
        ):
            raise AddressRefused(f"{host} is {inside[0]}, which is not a public address")
        return found


def _port_allowed(parts: SplitResult, port: int | None) -> bool:
    return port is None or port == OWN_PORT[parts.scheme] or PORTS_FROM <= port <= PORTS_UNTIL


def outside(address: Address) -> bool:
    """Whether an address is one of the public internet, whatever other address is wrapped in it."""
    if isinstance(address, ipaddress.IPv6Address):
        wrapped = address.ipv4_mapped or address.sixtofour
        if wrapped is None and address.teredo:
            wrapped = address.teredo[1]
        if wrapped is None and address in _NAT64:
            wrapped = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if wrapped is not None:
            return outside(wrapped)
        if address.is_site_local:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and address not in _METADATA
    )


class Answer(Struct, frozen=True):
    """What came back: a status, or why there is none."""

    status: int | None
    error: str = ""
    retry_after: str | None = None

    @property
    def ok(self) -> bool:
        return self.status is not None and 200 <= self.status < 300  # noqa: PLR2004  # HTTP's own names

    @property
    def why(self) -> str:
        return self.error or f"HTTP {self.status}"


def retry_after_seconds(told: str | None, now: float, most: float) -> float:
    """What `Retry-After` asks for, as seconds or a date, within bounds; 0 where it asks for nothing readable."""
    if told is None:
        return 0.0
    with suppress(ValueError, TypeError, OverflowError):
        seconds = float(told) if told.strip().isdigit() else parsedate_to_datetime(told).timestamp() - now
        return min(max(seconds, 0.0), most)
    return 0.0


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


class _Guarded(httpcore.AsyncNetworkBackend):
    """Connects to the address that was checked. TLS and `Host` go by the name, as that is what the pool knows."""

    def __init__(self, allowed: Allowed, resolve: Resolve) -> None:
        self._allowed, self._resolve = allowed, resolve
        self._beneath = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())
        # Its own threads: names that nobody answers for must not keep the others' deliveries waiting.
        self._threads = ThreadPoolExecutor(RESOLVING, thread_name_prefix="webhook-names")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the base names it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)
        address = self._allowed.addresses(host, found)[0]
        return await self._beneath.connect_tcp(address, port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Sender:
    """Sends from one event loop, over connections that are kept for a while. `agent` is what it calls itself."""

    def __init__(
        self,
        allowed: Allowed,
        *,
        agent: str,
        most: int = 1,
        resolve: Resolve = look_up,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed, self._agent = allowed, agent
        self._backend = _Guarded(allowed, resolve)
        self._pool = httpcore.AsyncConnectionPool(
            tls, max_connections=most, keepalive_expiry=IDLE_SECONDS, network_backend=self._backend
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, timeout: float | None = None) -> Answer:  # noqa: ASYNC109  # of all of it
        """One try. Whatever goes wrong is an answer, too."""
        try:
            self._allowed.check(url)  # the installation may have been told otherwise since
            async with asyncio.timeout(timeout or TIMEOUT_SECONDS):
                return await self._post(url, headers, body)
        except TimeoutError:
            return Answer(None, f"no answer within {timeout or TIMEOUT_SECONDS:g} s")
        except (AddressRefused, WebhookUrlInvalid) as error:
            return Answer(None, f"not called: {error}")
        except socket.gaierror:
            return Answer(None, "the name has no address")
        except (
            OSError,
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            httpcore.ConnectionNotAvailable,
        ) as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:200].rstrip(": "))

    async def _post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        async with self._pool.stream(
            "POST", url, headers={**headers, "user-agent": self._agent}, content=body
        ) as response:
            told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            length = told.get("content-length", "")
            if length.isdigit() and int(length) <= BODY_READ_MOST:  # read, so that the connection can be used again
                await response.aread()
            return Answer(response.status, retry_after=told.get("retry-after"))

    async def aclose(self) -> None:
        await self._pool.aclose()
        self._backend.close()
