"""A network between a server and its database that does what networks do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

COMMITTED = b"last\x00"  # the column of the one answer of an append, which is a transaction by itself
OF_THE_LOG = (b'"p000"', b'"p001"')  # what connections of the journal speak of


class Network:
    """Forwards between a port of its own and the database's, as long as it is not told to fail."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = threading.Event()
        self._flows.set()
        self._losing = threading.Lock()
        self._to_lose = 0
        self.lost = 0  # answers to a COMMIT that were dropped
        self._open: list[socket.socket] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Connections stay open, and nothing comes through."""
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def lose_answers(self, count: int) -> None:
        """The next so many times that the log was committed, the connection breaks before anybody is told."""
        with self._losing:
            self._to_lose = count

    def close(self) -> None:
        """What was held back does not come through any more."""
        with suppress(OSError):  # whoever waits in accept is woken by a shutdown, not by a close
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            _cut(end)
        self._closed = True
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._flows.wait()
            if self._closed:
                near.close()
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._open += (near, far)
            of_the_log = threading.Event()
            for ends in ((near, far, of_the_log, True), (far, near, of_the_log, False)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, come: socket.socket, go: socket.socket, of_the_log: threading.Event, asks: bool) -> None:
        with suppress(OSError):
            while piece := come.recv(65_536):
                self._flows.wait()
                if asks and any(name in piece for name in OF_THE_LOG):
                    of_the_log.set()
                if not asks and COMMITTED in piece and of_the_log.is_set() and self._loses():
                    break
                go.sendall(piece)
        _cut(come)
        _cut(go)

    def _loses(self) -> bool:
        with self._losing:
            if not self._to_lose:
                return False
            self._to_lose -= 1
            self.lost += 1
            return True


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
