"""A server of few lines, which sees what it is sent byte by byte, and sends what it likes."""

import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

Head = dict[str, list[str]]
"""Headers of a request, by names in lower case."""
Handler = Callable[[str, Head], bytes | None]
"""Answers a target; None cuts the connection."""


class RawSite(socketserver.ThreadingTCPServer):
    """Answers GET requests by a function, and keeps what it was asked for."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, handler: Handler) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.handler = handler
        self.asked: list[tuple[str, Head]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a crawler has left."""

    @property
    def targets(self) -> Counter[str]:
        return Counter(target for target, _ in self.asked if target != "/robots.txt")


class Connection(socketserver.StreamRequestHandler):
    server: RawSite  # pyright: ignore[reportIncompatibleVariableOverride] - the base knows no better
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while line := self.rfile.readline():
            _, target, _ = line.decode("latin-1").split(" ", 2)
            head: Head = {}
            while (header := self.rfile.readline().strip()) != b"":
                name, _, value = header.decode("latin-1").partition(":")
                head.setdefault(name.lower(), []).append(value.strip())
            self.server.asked.append((target, head))
            answer = self.server.handler(target, head)
            if answer is None:
                return
            self.wfile.write(answer)


def reply(body: str = "", *headers: str, status: str = "200 OK", kind: str = "text/html") -> bytes:
    """Write an answer. With the empty `kind`, it says nothing of its type."""
    content = body.encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers]
    lines += [f"Content-Type: {kind}"] if kind else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def links(*targets: str) -> bytes:
    return reply("".join(f'<a href="{target}">x</a>' for target in targets))


NOT_FOUND = reply(status="404 Not Found")


@contextmanager
def serving(handler: Handler) -> Generator[RawSite]:
    """Serve while the block lasts."""
    with RawSite(handler) as site:
        thread = threading.Thread(target=site.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield site
        finally:
            site.shutdown()
            thread.join()
