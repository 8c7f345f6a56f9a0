"""A relay between a browser and a server, whose connections falter."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit, urlunsplit


class Relay:
    """Passes bytes on between its own port and that of an address.

    Attributes:
        late: seconds that each piece of an event stream takes longer.
        cut: refuse every connection.
    """

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self.late = 0.0
        self.cut = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The address by way of the relay."""
        return urlunsplit(self._to._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}"))

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Cut every connection, and refuse new ones within the block."""
        self.cut = True
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        yield
        self.cut = False

    def close(self) -> None:
        self._listener.close()
        with self.broken():
            pass

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.cut:
                near.close()
                continue
            far = socket.create_connection((self._to.hostname, self._to.port))
            self._open |= {near, far}
            threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        streams = False
        with suppress(OSError):
            while data := source.recv(65536):
                if data.startswith(b"HTTP/1.1"):
                    streams = b"text/event-stream" in data
                if streams:
                    time.sleep(self.late)
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
            self._open.discard(each)
