"""What happens in a run, as server-sent events. Imports FastAPI, anyio, and ``_looking``.

Invariants:
- The id of an event is the number of the run's last update that it, or one before it, has told. So
  a client that comes back with ``Last-Event-ID`` misses no update and gets none twice, whichever
  process it comes to.
- A slow client holds no run back. What it had no time to read, it is sent from the store.
- When the runtime is drained the stream ends, without ``end``: the client comes back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, final

from anyio import move_on_after
from fastapi.sse import ServerSentEvent

from shoal._events import (
    Cancelled,
    ChildEnded,
    ChildStarted,
    Done,
    Event,
    Failed,
    Item,
    Missed,
    Outcome,
    Skipped,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
    in_short,
)
from shoal._handle import RunHandle
from shoal._ids import RunPath
from shoal._runtime import Runtime
from shoal._state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal._store import NullStore

from ._looking import Runs, Seen, as_responses, seen
from ._models import as_json, as_plain

POLL = 0.25
"""Seconds from one look into the store to the next, for a run that another process executes."""
BUFFER = 1000
"""Events that a client may be behind before it is sent what it lacks from the store."""

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

    async def read(self) -> AsyncIterator[ServerSentEvent]:
        """Give events, until the run has ended or the runtime is drained."""
        while not self._runtime.draining:
            handle = self._runs.here(self._runtime, self._run_id)
            if handle is not None:
                async for event in self._follow(handle):
                    yield event
                if handle.is_interrupted:
                    return
                ended = seen(handle) if handle.status is not None else None
            else:
                ended = None
                run = await self._runs.find(self._runtime, self._run_id)
                for event in await self._news(run):
                    yield event
                if run.has_ended:
                    ended = run
            if ended is not None:
                yield self._end(ended)
                return
            if handle is None:
                with move_on_after(POLL):
                    await self._runtime.wait_draining()

    async def _follow(self, handle: RunHandle[Any]) -> AsyncIterator[ServerSentEvent]:
        """Give what happens in a run of this process."""
        with handle.events(buffer=BUFFER) as events, self._runtime.on_draining(events.end):
            for event in await self._news(seen(handle)):
                yield event
            async for happened in events:
                if isinstance(happened, Missed):
                    for event in await self._news(seen(handle)):
                        yield event
                elif (event := self._told(happened)) is not None:
                    yield event

    async def _news(self, run: Seen) -> Sequence[ServerSentEvent]:
        """Say what the client lacks: updates if the store has them, else the state as it is."""
        if self._sent is not None and self._sent == run.number:
            return ()
        if self._sent is not None and self._sent < run.number:
            updates = await self._recorded(self._sent)
            if updates:
                return [self._update(update) for update in updates]
        self._sent = run.number
        state = {"number": run.number, "state": as_plain(run.state)}
        return [self._event("state", state)]

    async def _recorded(self, after: int) -> Sequence[Update]:
        store = self._runs.store(self._runtime)
        if isinstance(store, NullStore):
            return ()
        with as_responses():
            entries = await store.read(self._path, after + 1)
        updates = [one for one in entries if isinstance(one, Update) and one.number > after]
        return updates if updates and updates[0].number == after + 1 else ()

    def _told(self, event: Event) -> ServerSentEvent | None:
        """Turn what happened into what is sent; None: that is nothing for clients."""
        is_own = event.path == self._path
        match event:
            case StateUpdated() if is_own and event.update.number > (self._sent or 0):
                return self._update(event.update, event.outcome)
            case Item():
                item = {
                    "run_id": event.run_id,
                    "step": event.step,
                    "key": event.path.key,
                    "item": event.item,
                    "attempt": event.attempt,
                    "index": event.index,
                }
                return self._event("item", item)
            case StepStarted() if is_own:
                return self._event("step", {"step": event.step, "status": "running"})
            case StepEnded() if is_own:
                return self._event("step", {"step": event.step, "status": event.status})
            case ChildStarted() if is_own:
                child = {"act": event.child.act, "key": event.child.key, "status": "running"}
                return self._event("child", {"step": event.step, **child, "reason": ""})
            case ChildEnded() if is_own:
                return self._event("child", {"step": event.step, **_child(event.outcome)})
            case _:
                return None

    def _update(self, update: Update, outcome: Outcome | None = None) -> ServerSentEvent:
        self._sent = update.number
        data: dict[str, object] = {
            "number": update.number,
            "step": update.step,
            "operations": [_operation(one) for one in update.operations],
        }
        if outcome is not None:
            data["child"] = _child(outcome)
        return self._event("update", data)

    def _end(self, run: Seen) -> ServerSentEvent:
        data = {"status": run.status, "reason": run.reason, "number": run.number}
        return self._event("end", data)

    def _event(self, kind: str, data: object) -> ServerSentEvent:
        number = None if self._sent is None else str(self._sent)
        return ServerSentEvent(event=kind, id=number, raw_data=as_json(data).decode())


def _child(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case Done():
            status, reason = "succeeded", ""
        case Failed():
            status, reason = "failed", in_short(outcome.error)
        case Cancelled():
            status, reason = "cancelled", outcome.reason
        case Skipped():
            status, reason = "skipped", outcome.reason
    return {"act": outcome.act, "key": outcome.key, "status": status, "reason": reason}


_NAMES: dict[type[Operation], str] = {
    Set: "set",
    Extend: "extend",
    Put: "put",
    PutWithin: "put_within",
    Increment: "increment",
    Drop: "drop",
}


def _operation(operation: Operation) -> dict[str, object]:
    return {"op": _NAMES[type(operation)], **operation._asdict()}
