"""A proxy between stores and a PostgreSQL server, which cuts connections, or keeps silent."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from .postgres import PostgresServer


class Proxy:
    """Stands between stores and the server, and cuts connections."""

    def __init__(self, server: PostgresServer, folder: str) -> None:
        self._server = server
        self.address = server.address(host=folder)
        self._listens = socket.socket(socket.AF_UNIX)
        self._listens.bind(f"{folder}/.s.PGSQL.{server.port}")
        self._listens.listen()
        self._cut: tuple[str, bytes, bool] | None = None
        self._open = list[socket.socket]()
        self.is_down = False
        self.speaks = threading.Event()  # cleared: nothing is passed on, in any connection
        self.speaks.set()
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, when: str, what: str = "COMMIT", *, for_good: bool = False) -> None:
        """Cut the next connection that asks for something.

        That is ``before`` the server hears of it; ``after`` it has done it, and no answer
        comes; or as ``after``, but that the connection stays open and nothing comes any more.
        """
        self._cut = (when, what.encode(), for_good)

    def close(self) -> None:
        self.speaks.set()
        for one in (self._listens, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listens.accept()
                if self.is_down:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(f"{self._server.folder}/.s.PGSQL.{self._server.port}")
                self._open += (client, server)
                wire = Wire(self, client, server)
                threading.Thread(target=wire.send, daemon=True).start()
                threading.Thread(target=wire.answer, daemon=True).start()

    def cut_at(self, sent: bytes) -> str:
        """Tell whether, and how, a connection is to be cut that sends this."""
        if self._cut is None or self._cut[1] not in sent:
            return ""
        when, _, for_good = self._cut
        self.is_down |= for_good
        self._cut = None
        self.cuts += 1
        return when


class Wire:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._how = ""

    def _end(self) -> None:
        for one in (self._client, self._server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def send(self) -> None:
        with suppress(OSError):
            while sent := self._client.recv(1 << 16):
                self._proxy.speaks.wait()
                self._how = self._how or self._proxy.cut_at(sent)
                if self._how == "before":
                    break
                self._server.sendall(sent)
        self._end()

    def answer(self) -> None:
        with suppress(OSError):
            while said := self._server.recv(1 << 16):
                self._proxy.speaks.wait()
                if self._how == "after":
                    break
                if not self._how:
                    self._client.sendall(said)
        self._end()
