"""Send the events of a run to one client, as server-sent events.

Invariants:
- The id of an event is the number of the last update that the client was sent up to it. So a client
  that reconnects with ``Last-Event-ID`` misses no update and gets none twice, whichever process
  answers it.
- A slow client doesn't slow the run down. Updates that it was too slow for are sent from the store,
  at its own pace.
- When the runtime drains, or the store is unreachable, the stream ends without an ``end`` event,
  and the client reconnects.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, final

from anyio import move_on_after
from anyio.lowlevel import checkpoint
from fastapi import HTTPException, Request, Response
from starlette.types import Receive, Scope, Send

from shoal._events.events import Update
from shoal._events.identity import RunPath
from shoal._runtime.handle import RunHandle
from shoal._runtime.runtime import Runtime
from shoal.stores._protocol import NullStore

from ._disconnect import CLIENT_HAS_GONE, cancel_on_disconnect
from ._feed import Feed, Frame, encoded_state, encoded_update, feed_of, lines
from ._looking import Runs, Seen, as_responses, seen

SendPart = Callable[[bytes], Awaitable[None]]

POLL = 0.25
"""Seconds between two polls of the store, for a run that another process executes."""
BUFFER = 1000
"""The most events that wait for a client. A client that is further behind is sent the missing
updates from the store."""
AT_ONCE = 64 * 1024
"""The most bytes of waiting events that are sent with one call: about a socket's buffer."""
MEDIA_TYPE = "text/event-stream"
PING = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection. Proxies
mostly close connections after 30 or 60 seconds of silence."""

DESCRIPTION = """\
The events of the run, until it has ended.

- `state`: the present state: `number` and `state`. It is the first event, unless `Last-Event-ID` is
  given, and is sent again if the updates in between are not available any more.
- `update`: one numbered change of the state: `number`, `step`, `operations`, each with `op`
  (`set`, `extend`, `put`, `put_within`, `increment`, `drop`) and its values. If it applies the
  result of a child, `child` describes that child.
- `item`: a partial item of a running action, of the run or of a descendant: `run_id`, `step`,
  `key`, `item`, `attempt`, `index`. Items are provisional, and never sent again.
- `step`: a step of the run begins or ends: `step`, `status`.
- `child`: a child of the run begins or ends: `step`, `act`, `key`, `status`, `reason`.
- `end`: the end of the run: `status`, `reason`, `number`. If the stream ends without this event,
  reconnect with `Last-Event-ID`.

The `id` of each event is the number of the last update up to this event.
"""


@final
class RunEventStream:
    """The events of a run for one client."""

    def __init__(self, runs: Runs, runtime: Runtime, run: Seen, after: int | None) -> None:
        """Begin after the update of that number, or, if None, with the present state."""
        self._runs = runs
        self._runtime = runtime
        self._run_id = run.run_id
        self._path = RunPath(run_id=run.run_id, act=run.application)
        # The number of the last update that the client has; None before the first event. It only
        # grows, and is the id of each event.
        self._sent = after

    async def send_to(self, send_part: SendPart) -> None:
        """Send events with ``send_part``, until the run has ended or the runtime drains.

        Raises:
            HTTPException: The store has become unreachable.
        """
        silence = 0.0  # seconds without news of a run that another process executes
        while not self._runtime.draining:
            handle = self._runs.here(self._runtime, self._run_id)
            if handle is not None:
                await self._follow(handle, send_part)
                if handle.is_interrupted:
                    return
                ended = seen(handle) if handle.status is not None else None
            else:
                run = await self._runs.find(self._runtime, self._run_id)
                before = self._sent
                await self._send_news(run, send_part)
                silence = 0.0 if before != self._sent else silence + POLL
                if silence >= PING:
                    silence = 0.0
                    await send_part(_COMMENT)
                ended = run if run.has_ended else None
            if ended is not None:
                await send_part(self._framed(_end(ended)))
                return
            if handle is None:
                with move_on_after(POLL):
                    await self._runtime.wait_draining()

    async def _follow(self, handle: RunHandle[Any], send_part: SendPart) -> None:
        """Send the events of a run of this process."""
        feed = feed_of(handle)
        with (
            feed.follower(handle._root, BUFFER) as follower,
            self._runtime.on_draining(follower.end),
        ):
            # After joining the feed, so that no event is lost in between. An update that arrives
            # both ways has a number that was sent, and ``_send`` leaves it out.
            await self._send_news(seen(handle), send_part, feed)
            while not follower.is_over:
                with move_on_after(PING) as silence:
                    await follower.wait()
                if silence.cancelled_caught:
                    await send_part(_COMMENT)
                    continue
                has_missed, frames = follower.take()
                if has_missed:
                    await self._send_news(seen(handle), send_part, feed)
                await self._send(frames, send_part)

    async def _send_news(self, run: Seen, send_part: SendPart, feed: Feed | None = None) -> None:
        """Send the updates that the client lacks, if the store has them, else the whole state."""
        if self._sent is not None and self._sent == run.number:
            return
        if self._sent is not None and self._sent < run.number:
            updates = await self._recorded(self._sent)
            if updates:
                await self._send(map(_Recorded, updates), send_part)
                return
        self._sent = run.number
        await send_part(self._framed(encoded_state(run) if feed is None else feed.state(run)))

    async def _recorded(self, after: int) -> Sequence[Update]:
        store = self._runs.store(self._runtime)
        if isinstance(store, NullStore):
            return ()
        with as_responses():
            entries = await store.read(self._path, after + 1)
        updates = [one for one in entries if isinstance(one, Update) and one.number > after]
        return updates if updates and updates[0].number == after + 1 else ()

    async def _send(self, frames: Iterable[Frame | _Recorded], send_part: SendPart) -> None:
        """Send events, several with one call. Updates that were sent before are left out."""
        waiting, size = list[bytes](), 0
        for frame in frames:
            if frame.number is not None:
                if frame.number <= (self._sent or 0):
                    continue
                self._sent = frame.number
            waiting.append(self._framed(frame.body))
            size += len(waiting[-1])
            if size >= AT_ONCE:
                await send_part(b"".join(waiting))
                waiting, size = [], 0
                await checkpoint()  # sending to a fast client may never wait: let others run
        if waiting:
            await send_part(b"".join(waiting))

    def _framed(self, body: bytes) -> bytes:
        return body + (b"\n" if self._sent is None else b"id: %d\n\n" % self._sent)


@final
class _Recorded:
    """An update from the store; encoded when it is sent, so at the client's pace."""

    __slots__ = ("_update",)

    def __init__(self, update: Update) -> None:
        self._update = update

    @property
    def number(self) -> int | None:
        return self._update.number

    @property
    def body(self) -> bytes:
        return encoded_update(self._update)


_COMMENT = b": ping\n\n"


def _end(run: Seen) -> bytes:
    return lines("end", {"status": run.status, "reason": run.reason, "number": run.number})


@final
class EventStreamResponse(Response):
    """A response that sends the events of a run until they end or the client disconnects."""

    # ``__init__`` passes the media type. As a class attribute it would make FastAPI describe the
    # response as one string, beside the router's own description.
    media_type = None

    def __init__(self, request: Request, events: RunEventStream, status_code: int = 200) -> None:
        """Prepare to send ``events`` to the client of ``request``.

        FastAPI reads the default of ``status_code`` for its documentation.
        """
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(status_code=status_code, headers=headers, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._request = request
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events.

        FastAPI's streaming of a generator would take two tasks and two queues for each client.
        """
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})

        async def send_part(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        try:
            async with cancel_on_disconnect(self._request):
                await self._events.send_to(send_part)
        except HTTPException as error:
            if error.status_code == CLIENT_HAS_GONE:
                return
            # The response has begun with 200, so the status can't be changed. The stream ends
            # without an ``end`` event, which makes the client reconnect.
        await send({"type": "http.response.body", "body": b"", "more_body": False})
