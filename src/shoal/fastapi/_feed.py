"""Distribute the events of a run of this process to all clients that follow it.

Invariants:
- An event is encoded when the first follower sends it, and never again: followers share its bytes
  (see test_an_event_is_encoded_once).
- A follower doesn't slow the run down. An event is only appended to the queue of each follower; a
  full queue drops its oldest event, and the follower is told that it has missed some.
- A feed is a hook of its run only while it has followers.
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
    LeaderChanged,
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
    """An event to be sent, without its id, which depends on the updates each client has."""

    __slots__ = ("_body", "_event", "number")

    def __init__(self, event: Event | None, body: bytes | None = None) -> None:
        """Create a frame of an event, which is encoded later, or of encoded bytes."""
        # Exactly one of the two is None: encoding replaces the event by its bytes.
        self._event = event
        self._body = body
        # The number of the event's update; None if the event has no update.
        self.number: int | None = event.update.number if isinstance(event, StateUpdated) else None

    @property
    def body(self) -> bytes:
        """The lines of the event, encoded on first use."""
        if self._body is None:
            assert self._event is not None, "an event without bytes has not been encoded yet"
            self._body = _encoded(self._event)
            self._event = None  # the event may hold large values; only the bytes are needed now
        return self._body


@final
class Follower:
    """The events that one client has yet to be sent."""

    def __init__(self, most: int) -> None:
        """Keep at most that many events."""
        self._most = most
        self._frames: deque[Frame] = deque()
        self._has_missed = False  # whether events were dropped since the last ``take``
        self._is_over = False  # whether the run has ended, or the runtime drains; never reset
        self._news: anyio.Event | None = None  # only while the client waits

    def add(self, frame: Frame) -> None:
        """Queue an event; drop the oldest one if the queue is full."""
        if len(self._frames) == self._most:
            self._frames.popleft()
            self._has_missed = True
        self._frames.append(frame)
        self._notify()

    def end(self) -> None:
        """Note that no more events will come."""
        self._is_over = True
        self._notify()

    def _notify(self) -> None:
        if self._news is not None:
            self._news.set()

    @property
    def is_over(self) -> bool:
        """Whether all events were taken, and no more will come."""
        return self._is_over and not self._frames and not self._has_missed

    async def wait(self) -> None:
        """Wait for an event or the end. Takes nothing, so cancelling it loses no event."""
        if not (self._frames or self._has_missed or self._is_over):
            self._news = anyio.Event()
            try:
                await self._news.wait()
            finally:
                self._news = None

    def take(self) -> tuple[bool, list[Frame]]:
        """Return whether events were dropped, and the queued events; empty the queue."""
        taken = self._has_missed, list(self._frames)
        self._has_missed = False
        self._frames.clear()
        return taken


@final
class Feed(Hook):
    """Distributes the events of one run to all its followers in this process."""

    observer: ClassVar[bool] = True

    def __init__(self, path: RunPath) -> None:
        """Create a feed without followers."""
        self._path = path
        self._followers: list[Follower] = []
        # The last state that was sent as a whole: its number and bytes.
        self._state: tuple[int, bytes] | None = None

    @contextmanager
    def follower(self, root: RootRun, most: int) -> Generator[Follower]:
        """Add a follower for the block; its queue holds at most that many events."""
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
        """Encode the present state; several followers that begin with it share the bytes."""
        if self._state is None or self._state[0] != run.number:
            self._state = run.number, encoded_state(run)
        return self._state[1]

    def _end(self) -> None:
        for follower in self._followers:
            follower.end()

    def _publish(self, event: Event) -> None:
        frame = Frame(event)
        for follower in self._followers:
            follower.add(frame)

    def _publish_own(self, event: Event) -> None:
        """Queue an event of the run itself. Of its descendants, clients get only items."""
        if event.path == self._path:
            self._publish(event)

    def on_item(self, event: Item) -> None:
        """Queue an item of the run or a descendant."""
        self._publish(event)

    def on_leader_changed(self, event: LeaderChanged) -> None:
        """Queue an event of the run or a descendant, whose items clients get as well."""
        self._publish(event)

    def on_state_updated(self, event: StateUpdated) -> None:
        """Queue the event."""
        self._publish_own(event)

    def on_step_started(self, event: StepStarted) -> None:
        """Queue the event."""
        self._publish_own(event)

    def on_step_ended(self, event: StepEnded) -> None:
        """Queue the event."""
        self._publish_own(event)

    def on_child_started(self, event: ChildStarted) -> None:
        """Queue the event."""
        self._publish_own(event)

    def on_child_ended(self, event: ChildEnded) -> None:
        """Queue the event."""
        self._publish_own(event)


_feeds: WeakKeyDictionary[RootRun, Feed] = WeakKeyDictionary()
"""The feeds of runs that have, or had, followers. One for each execution of a run, shared by all
routers of a service."""


def feed_of(handle: RunHandle[Any]) -> Feed:
    """Return the feed of a run of this process; create it if there is none."""
    root = handle._root
    feed = _feeds.get(root)
    if feed is None:
        feed = _feeds[root] = Feed(root.path)
    return feed


# -- encoding --------------------------------------------------------------------------------------


def lines(kind: str, data: object) -> bytes:
    """Return the lines of an event, without its id and end. JSON text has no line breaks."""
    return b"event: %b\ndata: %b\n" % (kind.encode(), as_json(data))


def encoded_state(run: Seen) -> bytes:
    """Return the event that has the whole state of a run."""
    return lines("state", {"number": run.number, "state": as_plain(run.state)})


def encoded_update(update: Update, outcome: Outcome | None = None) -> bytes:
    """Return the event of an update, with the child whose outcome it applies, if there is one."""
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
        case LeaderChanged():
            leader = event.leader
            told = {
                "step": event.step,
                "leader": None if leader is None else leader.id,
                "act": None if leader is None else leader.act,
                "key": None if leader is None else leader.key,
                "reason": event.reason,
            }
            return lines("leader", told)
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
            msg = f"the feed doesn't handle {type(event).__name__}"
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
