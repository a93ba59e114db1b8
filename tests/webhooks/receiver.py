"""A server of a merchant's own, on this machine: it answers as it is told to, and remembers what it got."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from msgspec import Struct

Answering = Callable[["Got"], "Say"]


class Got(Struct, frozen=True):
    headers: dict[str, str]
    body: bytes
    path: str = "/"

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def told(self) -> Any:
        return msgspec.json.decode(self.body)


class Say(Struct, frozen=True):
    """`drip`: send this much of a body that never ends, byte by byte. `before`: wait so many seconds first."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    before: float = 0.0
    drip: bool = False


class Receiver:
    def __init__(self, url: str) -> None:
        self.url = url
        self.got: list[Got] = []
        self.answering: Answering = lambda _: Say()
        self.at_once, self.at_once_most = 0, 0
        self.lock = threading.Lock()

    def says(self, *said: Say | int) -> None:
        """The next answers, the last of them for ever."""
        waiting = [one if isinstance(one, Say) else Say(one) for one in said]
        self.answering = lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]

    @property
    def sequences(self) -> list[int]:
        return [got.told["sequence"] for got in self.got]

    @property
    def types(self) -> list[str]:
        return [got.told["type"] for got in self.got]


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    server = _Server(("127.0.0.1", 0), _Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    host = "hooks.example.com" if tls else "127.0.0.1"
    receiver = Receiver(f"{'https' if tls else 'http'}://{host}:{server.server_address[1]}/hook")
    server.receiver = receiver  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # of five, the sixth that connects at once is reset


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["content-length"]))
        got = Got({name.lower(): value for name, value in self.headers.items()}, body, self.path)
        with receiver.lock:
            receiver.got.append(got)
            receiver.at_once += 1
            receiver.at_once_most = max(receiver.at_once, receiver.at_once_most)
            said = receiver.answering(got)
        try:
            time.sleep(said.before)
        finally:
            with receiver.lock:
                receiver.at_once -= 1
        try:
            self._answer(said)
        except OSError:
            self.close_connection = True  # whoever asked has hung up

    def _answer(self, said: Say) -> None:
        self.send_response(said.status)
        for name, value in said.headers.items():
            self.send_header(name, value)
        if not said.drip:
            self.send_header("content-length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)
            return
        self.close_connection = True
        self.end_headers()
        for _ in range(60_000):
            self.wfile.write(b".")
            time.sleep(0.01)

    def log_message(self, *args: Any) -> None:
        pass
