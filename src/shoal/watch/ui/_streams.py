"""Keep an open page current: one stream of server-sent events, each the page's whole live part.

Invariants:
- A stream sends only what differs from what it sent last, at most four times a second. All streams
  together spend at most a share of the time of one core on it: if queries are slow, or pages many,
  updates come less often.
- A stream ends after ``LIFE`` seconds, and at once when the server shuts down; the browser connects
  again. Otherwise a server that waits for open connections would never end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import blake2b
from typing import final

from anyio import Event, current_time, move_on_after
from starlette.requests import Request

from shoal._errors.exceptions import StoreFailed

QUICKEST = 0.25
"""Seconds between two updates: four a second are read as moving."""

LIFE = 20.0
"""Seconds of a stream. Between 15 and 30: proxies cut connections that live longer, and connecting
again costs one request."""

AGING = 1.0
"""Seconds after which a page with something that runs is made again although nothing was saved:
ages and rates change."""

SHARE = 0.15
"""The part of one core that all streams may take. A fifth is promised; the rest is for requests."""


Render = Callable[[], Awaitable[tuple[str | None, bool]]]
"""Returns the live part of a page, or None if it can't be made now; and whether it changes with
time alone, because something in it runs."""


@final
class Streams:
    """The open streams of one application."""

    def __init__(self) -> None:
        """Make the streams' common state."""
        self._open = 0
        self._closing: set[Event] = set()
        self._is_closed = False

    def close(self) -> None:
        """End all streams, now and from now on. Call it from the event loop."""
        self._is_closed = True
        for event in self._closing:
            event.set()

    async def stream(
        self, request: Request, mark: Callable[[], Awaitable[object]], render: Render
    ) -> AsyncIterator[str]:
        """Yield updates of a page as server-sent events, until the stream ends.

        Args:
            request: The client's request; the stream ends when the client has gone.
            mark: Returns a value that changes with each save.
            render: Returns the page's live part.
        """
        closing = Event()
        self._closing.add(closing)
        self._open += 1
        try:
            yield "retry: 500\n\n"
            async for update in self._updates(request, closing, mark, render):
                yield update
        finally:
            self._open -= 1
            self._closing.discard(closing)

    async def _updates(
        self,
        request: Request,
        closing: Event,
        mark: Callable[[], Awaitable[object]],
        render: Render,
    ) -> AsyncIterator[str]:
        ends_at = current_time() + LIFE
        seen, ages = None, True
        rendered_at = -AGING
        sent = request.headers.get("last-event-id", "")
        while not (self._is_closed or closing.is_set()) and current_time() < ends_at:
            begun = current_time()
            try:
                now = await mark()
            except StoreFailed:  # it may be readable later, as in ``render``
                now = seen
            if now != seen or (ages and begun - rendered_at >= AGING):
                seen, rendered_at = now, begun
                text, ages = await render()
                id_ = sent if text is None else _digest(text)
                if text is not None and id_ != sent:
                    sent = id_
                    yield _event(id_, text)
            cost = current_time() - begun
            with move_on_after(max(QUICKEST, cost * self._open / SHARE) - cost):
                await closing.wait()
            if await request.is_disconnected():
                return


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()


def _event(id_: str, text: str) -> str:
    data = "".join(f"data: {line}\n" for line in text.splitlines())
    return f"id: {id_}\n{data}\n"
