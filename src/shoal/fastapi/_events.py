"""What happens in a run, as server-sent events to one client. Imports FastAPI, anyio, ``_feed``.

Invariants:
- The id of an event is the number of the run's last update that it, or one before it, has told. So
  a client that comes back with ``Last-Event-ID`` misses no update and gets none twice, whichever
  process it comes to.
- A slow client holds no run back. What it had no time to read, it is sent from the store, at its
  own pace.
- When the runtime is drained the stream ends, without ``end``: the client comes back. So it does
  where the store can't be asked.
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

Say = Callable[[bytes], Awaitable[None]]

POLL = 0.25
"""Seconds from one look into the store to the next, for a run that another process executes."""
BUFFER = 1000
"""Events that a client may be behind before it is sent what it lacks from the store."""
AT_ONCE = 64 * 1024
"""Bytes that are sent at once, of all that waits: as much as a socket's buffer mostly takes."""
MEDIA_TYPE = "text/event-stream"
PING = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection."""

DESCRIPTION = """\
What happens in the run, until it has ended.

- `state`: where it stands: `number` and `state`. The first event, unless `Last-Event-ID` is given;
  and whenever what came between can't be told any more.
- `update`: one numbered change of its state: `number`, `step`, `operations`, each with `op`
  (`set`, `extend`, `put`, `put_within`, `increment`, `drop`) and what that takes; and, if it takes
  what a child returned, `child`.
- `item`: a partial item of an action that runs, of the run or of a descendant: `run_id`, `step`,
  `key`, `item`, `attempt`, `index`. Provisional, and never sent again.
- `step`: a step of the run begins or ends: `step`, `status`.
- `child`: a child of the run begins or ends: `step`, `act`, `key`, `status`, `reason`.
- `end`: how the run has ended: `status`, `reason`, `number`. A stream that ends without it is to be
  taken up again, with `Last-Event-ID`.

The `id` of each event is the number of the last update before it, itself included.
"""


@final
class RunEventStream:
    """What one client reads of a run."""

    def __init__(self, runs: Runs, runtime: Runtime, run: Seen, after: int | None) -> None:
        """Begin behind the update of number ``after``; None: with the state as it is."""
        self._runs = runs
        self._runtime = runtime
        self._run_id = run.run_id
        self._path = RunPath(run_id=run.run_id, act=run.application)
        self._sent = after

    async def tell(self, say: Say) -> None:
        """Send events with ``say``, until the run has ended or the runtime is drained.

        Raises:
            HTTPException: The store can't be asked any more.
        """
        silence = 0.0  # of a run that goes on elsewhere
        while not self._runtime.draining:
            handle = self._runs.here(self._runtime, self._run_id)
            if handle is not None:
                await self._follow(handle, say)
                if handle.is_interrupted:
                    return
                ended = seen(handle) if handle.status is not None else None
            else:
                run = await self._runs.find(self._runtime, self._run_id)
                before = self._sent
                await self._tell_news(run, say)
                silence = 0.0 if before != self._sent else silence + POLL
                if silence >= PING:
                    silence = 0.0
                    await say(_COMMENT)
                ended = run if run.has_ended else None
            if ended is not None:
                await say(self._framed(_end(ended)))
                return
            if handle is None:
                with move_on_after(POLL):
                    await self._runtime.wait_draining()

    async def _follow(self, handle: RunHandle[Any], say: Say) -> None:
        """Send what happens in a run of this process."""
        feed = feed_of(handle)
        with (
            feed.follower(handle._root, BUFFER) as follower,
            self._runtime.on_draining(follower.end),
        ):
            # Behind joining the feed, so that nothing is lost in between: what is told twice by
            # that has a number that was sent.
            await self._tell_news(seen(handle), say, feed)
            while not follower.is_over:
                with move_on_after(PING) as silence:
                    await follower.wait()
                if silence.cancelled_caught:
                    await say(_COMMENT)
                    continue
                has_missed, frames = follower.take()
                if has_missed:
                    await self._tell_news(seen(handle), say, feed)
                await self._send(frames, say)

    async def _tell_news(self, run: Seen, say: Say, feed: Feed | None = None) -> None:
        """Send what the client lacks: updates if the store has them, else the state as it is."""
        if self._sent is not None and self._sent == run.number:
            return
        if self._sent is not None and self._sent < run.number:
            updates = await self._recorded(self._sent)
            if updates:
                await self._send(map(_Recorded, updates), say)
                return
        self._sent = run.number
        await say(self._framed(encoded_state(run) if feed is None else feed.state(run)))

    async def _recorded(self, after: int) -> Sequence[Update]:
        store = self._runs.store(self._runtime)
        if isinstance(store, NullStore):
            return ()
        with as_responses():
            entries = await store.read(self._path, after + 1)
        updates = [one for one in entries if isinstance(one, Update) and one.number > after]
        return updates if updates and updates[0].number == after + 1 else ()

    async def _send(self, frames: Iterable[Frame | _Recorded], say: Say) -> None:
        """Send events, several at once; updates that were sent before are left out."""
        waiting, size = list[bytes](), 0
        for frame in frames:
            if frame.number is not None:
                if frame.number <= (self._sent or 0):
                    continue
                self._sent = frame.number
            waiting.append(self._framed(frame.body))
            size += len(waiting[-1])
            if size >= AT_ONCE:
                await say(b"".join(waiting))
                waiting, size = [], 0
                await checkpoint()  # a client that takes everything at once keeps none waiting
        if waiting:
            await say(b"".join(waiting))

    def _framed(self, body: bytes) -> bytes:
        return body + (b"\n" if self._sent is None else b"id: %d\n\n" % self._sent)


@final
class _Recorded:
    """An update that the store had: encoded when it is sent, at the client's pace."""

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
    """The events of a run, sent as they happen, until they end or the client hangs up."""

    # None here, though it has one: FastAPI would describe the stream as one string, besides what
    # the router says of it.
    media_type = None

    def __init__(self, request: Request, events: RunEventStream, status_code: int = 200) -> None:
        """Send ``events`` to the client of ``request``; FastAPI reads the status for its docs."""
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(status_code=status_code, headers=headers, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._request = request
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. Not FastAPI's own generator: that takes two tasks and two queues a client."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})

        async def say(part: bytes) -> None:
            await send({"type": "http.response.body", "body": part, "more_body": True})

        try:
            async with cancel_on_disconnect(self._request):
                await self._events.tell(say)
        except HTTPException as error:
            if error.status_code == CLIENT_HAS_GONE:
                return
            # It has begun with 200, so all there is to be said is that it isn't the end.
        await send({"type": "http.response.body", "body": b"", "more_body": False})
