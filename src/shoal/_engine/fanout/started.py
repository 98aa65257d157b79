"""What an action has started in a fan-out of its own, as a source of children. Imports sources.

Invariants:
- What was ``start``ed is the action's own list, and comes first; what ``start_each`` pulls, only
  while there is room for it and for what the action has not consumed.
- Keys are told apart by act, over all that was started.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, final

from shoal._engine.config import RunConfig
from shoal._engine.disposition import DONE
from shoal._engine.run import Run
from shoal._errors.exceptions import BadKey, brief
from shoal._events.identity import Key, plain_key

from .entries import (
    AsyncFeed,
    Backpressure,
    ChildTemplate,
    Dropped,
    PendingChild,
    child_of,
    entry_of,
)
from .recorded import RecordedChildren
from .source import ElementSource


@final
class Started:
    """The source of an action's own fan-out: what it has started, and what is left of it."""

    def __init__(
        self,
        who: str,
        *,
        has_room: Callable[[], bool],
        unconsumed: Callable[[], int],
        tell: Callable[[], None],
    ) -> None:
        """Begin with nothing.

        Args:
            who: The fan-out, for errors.
            has_room: Whether an element may be pulled.
            unconsumed: Counts the outcomes that the action has yet to consume.
            tell: Wakes the action, if it waits for an outcome.
        """
        self._who = who
        self._has_room = has_room
        self._unconsumed = unconsumed
        self._tell = tell
        self._single: deque[PendingChild] = deque()
        self._each: deque[StartedEach] = deque()  # in turns: an infinite one lets others pass
        self._keys: set[tuple[str, Key]] = set()  # of each act
        self.position = 0  # of the next one
        self._closed = False
        self.made = 0  # children
        self.recorded: RecordedChildren | None = None

    def add(self, kind: ChildTemplate, key: Key | None, given: object) -> None:
        """Add a child to be."""
        self._single.append(self.entry(kind, self.position if key is None else key, given))

    def add_each(self, each: StartedEach) -> None:
        """Add a child to be for each of many elements."""
        self._each.append(each)

    def entry(self, kind: ChildTemplate, key: object, element: object) -> PendingChild:
        """Tell a child to be apart from the others."""
        position, name = self.position, plain_key(key)
        if name is None:
            msg = f"{self._who}: keys are str or int, not {brief(key)}"
            raise BadKey(msg)
        if (kind.config.act, name) in self._keys:
            msg = (
                f"{self._who}: a child of {kind.config.act!r} with the key {brief(name)} "
                f"was started before; give each its own key, or none at all"
            )
            raise BadKey(msg)
        self._keys.add((kind.config.act, name))
        self.position = position + 1
        return PendingChild(name, position, element, kind)

    def close(self) -> None:
        """Hear that nothing more will be started."""
        self._closed = True

    @property
    def is_exhausted(self) -> bool:
        """Whether there is nothing left of what was started."""
        return not self._single and all(each.dry() for each in self._each)

    def left_over(self) -> list[Run]:
        """Make children of what was started and never began, or was done before."""
        entries = list(self._single)
        self._single.clear()
        self.made += len(entries)
        return [self._child(entry) for entry in entries]

    # what a group asks of its source

    def take(self) -> Run | Dropped | None:
        if self._single:
            child = self._child(self._single.popleft())
            self.made += 1
            return child
        if self._has_room():
            child = self._take_in_turn()
            if child is not None:
                self.made += child != "dropped"
                return child
        self.tell_exhausted()
        return None

    def _child(self, entry: PendingChild) -> Run:
        """Make a child, unless it was taken back; it goes on from what is recorded of it."""
        return self._begin(child_of(entry)) if entry.child is None else entry.child

    def _begin(self, child: Run) -> Run:
        """Have a child go on from what is recorded of it."""
        if self.recorded is not None:
            fate, record = self.recorded.judge(child)
            if fate == "runs anew":
                child.resume_state().is_afresh = True
            elif fate == "rests" and record is not None:
                child.rest(record)
            elif fate == "is done" and record is not None:
                child.take_over(record)
            elif fate != "begins again":
                child.resume_state().record = record
        return child

    def take_back(self, child: Run) -> None:
        self.made -= 1
        self._single.appendleft(entry_of(child))

    def _take_in_turn(self) -> Run | Dropped | None:
        for _ in range(len(self._each)):
            each = self._each[0]
            child = each.take()
            if each.dry():
                self._each.popleft()
            else:
                self._each.rotate(-1)
            if child is not None:
                return child if child == "dropped" else self._begin(child)
        return None

    def tell_exhausted(self) -> None:
        """Have the action hear it if nothing is left: it may wait for an outcome."""
        if self.is_exhausted:
            self._tell()

    def left(self) -> int:
        return len(self._single) + sum(each.left() for each in self._each)

    def waiting(self) -> int:
        pulled = sum(each.waiting() for each in self._each)
        return self._unconsumed() + len(self._single) + pulled

    def dry(self) -> bool:
        return self._closed and self.is_exhausted

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        begun = [self._begin(child) for each in self._each for child in each.drop(is_meant)]
        entries, self._single = self._single, deque()
        for entry in entries:
            if is_meant(entry.kind.config, entry.key):
                begun.append(self._child(entry))
            else:
                self._single.append(entry)
        done = [child for child in begun if child.disposition is DONE]
        self._single.extendleft(entry_of(child) for child in reversed(done))
        dropped = [child for child in begun if child.disposition is not DONE]
        self.made += len(dropped)
        return dropped

    def feeds(self) -> Iterable[AsyncFeed]:
        return [each for each in self._each if each.waits]

    def end(self) -> None:
        """Close what is iterated, all of it, whatever one of them raises."""
        with ExitStack() as closing:
            for each in self._each:
                closing.callback(each.close)


@final
class StartedEach(ElementSource):
    """The elements of one ``start_each``, told apart from everything else that was started."""

    __slots__ = ("_key_by", "_started_by")

    def __init__(
        self,
        over: object,
        *,
        who: str,
        kind: ChildTemplate,
        item: str,
        key: Callable[[Any], object] | None,
        started_by: Started,
    ) -> None:
        super().__init__(over, who=who, kinds=[kind], item=item)
        self._only = None  # what it is told apart from is not only its own elements
        self._key_by = key
        self._started_by = started_by

    def _entries(self, element: object, position: int) -> Sequence[PendingChild]:
        started_by, kind = self._started_by, self.kinds[0]
        if self._key_by is None:
            return (started_by.entry(kind, started_by.position, element),)
        return (started_by.entry(kind, self._key_by(element), element),)

    async def feed(self, group: Backpressure) -> None:
        try:
            await super().feed(group)
        finally:
            self._started_by.tell_exhausted()
