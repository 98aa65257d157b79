"""What happens in a run of this process, encoded once for all who follow it. Imports hooks, anyio.

Invariants:
- An event is encoded when the first follower sends it, and never again: followers share its bytes
  (see test_an_event_is_encoded_once).
- A follower holds no run back. Telling one of an event is to append it to a queue; a queue that is
  full loses its oldest event, and its follower knows that it has.
- A feed is a hook of its run while somebody follows, and is gone with the last follower.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, ClassVar, final
from weakref import WeakKeyDictionary

import anyio

from shoal._events.events import (
    Cancelled,
    ChildEnded,
    ChildStarted,
    Done,
    Event,
    Failed,
    Item,
    Outcome,
    Skipped,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
    in_short,
)
from shoal._events.hooks import Hook
from shoal._events.identity import RunPath
from shoal._runtime.handle import RunHandle
from shoal._runtime.root_run import RootRun
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set

from ._looking import Seen
from ._models import as_json, as_plain


@final
class Frame:
    """An event as it is sent, but for its id: that differs by what each client was sent before."""

    __slots__ = ("_body", "_event", "number")

    def __init__(self, event: Event | None, body: bytes | None = None) -> None:
        """Have an event that is yet to be encoded, or what was made of one."""
        self._event = event
        self._body = body
        # Of the update that it tells; None: it tells of something else.
        self.number: int | None = event.update.number if isinstance(event, StateUpdated) else None

    @property
    def body(self) -> bytes:
        """Its lines, encoded by the first follower that asks."""
        if self._body is None:
            assert self._event is not None, "it was not encoded yet"
            self._body = _encoded(self._event)
            self._event = None  # the bytes are all that is needed now
        return self._body


@final
class Follower:
    """What one client has yet to be sent."""

    def __init__(self, most: int) -> None:
        """Keep so many events at most."""
        self._most = most
        self._frames: deque[Frame] = deque()
        self._has_missed = False
        self._is_over = False
        self._news: anyio.Event | None = None  # set while the client waits

    def add(self, frame: Frame) -> None:
        """Have one event more to send; the oldest is lost if there is no room."""
        if len(self._frames) == self._most:
            self._frames.popleft()
            self._has_missed = True
        self._frames.append(frame)
        self._tell()

    def end(self) -> None:
        """Hear that no more events will come."""
        self._is_over = True
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    @property
    def is_over(self) -> bool:
        """Whether all was taken, and no more will come."""
        return self._is_over and not self._frames and not self._has_missed

    async def wait(self) -> None:
        """Wait until there is something to take, or it is over. Cancelled, it takes nothing."""
        if not (self._frames or self._has_missed or self._is_over):
            self._news = anyio.Event()
            try:
                await self._news.wait()
            finally:
                self._news = None

    def take(self) -> tuple[bool, list[Frame]]:
        """Take all there is: whether events were lost before these, and these."""
        taken = self._has_missed, list(self._frames)
        self._has_missed = False
        self._frames.clear()
        return taken


@final
class Feed(Hook):
    """What happens in one run, for all who follow it in this process."""

    observer: ClassVar[bool] = True

    def __init__(self, path: RunPath) -> None:
        """Have no followers yet."""
        self._path = path
        self._followers: list[Follower] = []
        self._state: tuple[int, bytes] | None = None  # the last one that was sent whole

    @contextmanager
    def follower(self, root: RootRun, most: int) -> Generator[Follower]:
        """Within, have one follower more, of at most so many events."""
        follower = Follower(most)
        if not self._followers:
            root.follow(self._end, self)
        self._followers.append(follower)
        if root.has_ended:
            follower.end()
        try:
            yield follower
        finally:
            self._followers.remove(follower)
            if not self._followers:
                root.unfollow(self._end, self)
                self._state = None

    def state(self, run: Seen) -> bytes:
        """Encode the state as it is; once, where several followers begin with the same one."""
        if self._state is None or self._state[0] != run.number:
            self._state = run.number, encoded_state(run)
        return self._state[1]

    def _end(self) -> None:
        for follower in self._followers:
            follower.end()

    def _tell(self, event: Event) -> None:
        frame = Frame(event)
        for follower in self._followers:
            follower.add(frame)

    def _tell_own(self, event: Event) -> None:
        """Tell what happens in the run itself; of its descendants, clients are told items alone."""
        if event.path == self._path:
            self._tell(event)

    def on_item(self, event: Item) -> None:
        """Tell it, whichever run of the tree has it."""
        self._tell(event)

    def on_state_updated(self, event: StateUpdated) -> None:
        """Tell it."""
        self._tell_own(event)

    def on_step_started(self, event: StepStarted) -> None:
        """Tell it."""
        self._tell_own(event)

    def on_step_ended(self, event: StepEnded) -> None:
        """Tell it."""
        self._tell_own(event)

    def on_child_started(self, event: ChildStarted) -> None:
        """Tell it."""
        self._tell_own(event)

    def on_child_ended(self, event: ChildEnded) -> None:
        """Tell it."""
        self._tell_own(event)


_feeds: WeakKeyDictionary[RootRun, Feed] = WeakKeyDictionary()
"""Those of runs that somebody follows, or has followed, by the runs' executions: one each, whatever
router of a service a follower comes by."""


def feed_of(handle: RunHandle[Any]) -> Feed:
    """Find the feed of a run of this process; make it if there is none."""
    root = handle._root
    feed = _feeds.get(root)
    if feed is None:
        feed = _feeds[root] = Feed(root.path)
    return feed


# -- what is sent ----------------------------------------------------------------------------------


def lines(kind: str, data: object) -> bytes:
    """Write an event, but for its id and its end. JSON has no line breaks of its own."""
    return b"event: %b\ndata: %b\n" % (kind.encode(), as_json(data))


def encoded_state(run: Seen) -> bytes:
    """Write where a run stands."""
    return lines("state", {"number": run.number, "state": as_plain(run.state)})


def encoded_update(update: Update, outcome: Outcome | None = None) -> bytes:
    """Write a change of a run's state, and which child's outcome it takes, if it does."""
    data: dict[str, object] = {
        "number": update.number,
        "step": update.step,
        "operations": [_operation(one) for one in update.operations],
    }
    if outcome is not None:
        data["child"] = _child(outcome)
    return lines("update", data)


def _encoded(event: Event) -> bytes:
    match event:
        case StateUpdated():
            return encoded_update(event.update, event.outcome)
        case Item():
            item = {
                "run_id": event.run_id,
                "step": event.step,
                "key": event.path.key,
                "item": event.item,
                "attempt": event.attempt,
                "index": event.index,
            }
            return lines("item", item)
        case StepStarted():
            return lines("step", {"step": event.step, "status": "running"})
        case StepEnded():
            return lines("step", {"step": event.step, "status": event.status})
        case ChildStarted():
            child = {"act": event.child.act, "key": event.child.key, "status": "running"}
            return lines("child", {"step": event.step, **child, "reason": ""})
        case ChildEnded():
            return lines("child", {"step": event.step, **_child(event.outcome)})
        case _:
            msg = f"no client is told of {type(event).__name__}"
            raise AssertionError(msg)


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
