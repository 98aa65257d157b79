"""The source of the children that an action starts in ``context.fan_out``.

Invariants:
- Children of ``start`` come first. Elements of ``start_each`` are pulled only while there is room
  for them and for the outcomes that the action has not consumed.
- A key is unique among all started children of one act.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from math import inf
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
class ActionSource:
    """The source of an action's own fan-out: the calls of ``start`` and ``start_each``."""

    def __init__(
        self,
        name: str,
        *,
        has_room: Callable[[], bool],
        unconsumed: Callable[[], int],
        notify: Callable[[], None],
    ) -> None:
        """Create a source without children.

        Args:
            name: The fan-out, for errors.
            has_room: Returns whether an element may be pulled.
            unconsumed: Counts the outcomes that the action has not consumed.
            notify: Wakes the action if it waits for an outcome.
        """
        self._name = name
        self._has_room = has_room
        self._unconsumed = unconsumed
        self._notify = notify
        # Calls of `start`, and children that were taken back, which stand in front.
        self._single: deque[PendingChild] = deque()
        # Pulled in turns, so that an infinite iterable does not starve the others, see
        # test_several_sources_take_turns_so_an_infinite_one_lets_others_pass.
        self._each: deque[EachSource] = deque()
        # Only grows: a key stays used though its child has ended, since records are found by it.
        self._keys: set[tuple[str, Key]] = set()  # (act, key)
        self.position = 0  # of the next child, over all calls
        self._closed = False  # set by ``close`` alone, never reset
        self.made = 0  # children handed out and not taken back, of which each has an end to deliver
        # None if no earlier execution or attempt left anything; set once, before the first take.
        self.recorded_children: RecordedChildren | None = None

    def add(self, kind: ChildTemplate, key: Key | None, given: object) -> None:
        """Add one child that ``take`` makes later."""
        self._single.append(self.entry(kind, self.position if key is None else key, given))

    def add_each(self, each: EachSource) -> None:
        """Add elements, each of which becomes a child when it is pulled."""
        self._each.append(each)

    def entry(self, kind: ChildTemplate, key: object, element: object) -> PendingChild:
        """Give a child its position and check its key.

        Raises:
            BadKey: It is not a str or int, or another child of the act has it.
        """
        position, name = self.position, plain_key(key)
        if name is None:
            msg = f"{self._name}: keys are str or int, not {brief(key)}"
            raise BadKey(msg)
        if (kind.config.act, name) in self._keys:
            msg = (
                f"{self._name}: a child of {kind.config.act!r} with the key {brief(name)} "
                f"was started before; give each its own key, or none at all"
            )
            raise BadKey(msg)
        # After all checks: a call that was refused uses up neither key nor position.
        self._keys.add((kind.config.act, name))
        self.position = position + 1
        return PendingChild(name, position, element, kind)

    def close(self) -> None:
        """Declare that no more children will be started."""
        self._closed = True

    @property
    def is_exhausted(self) -> bool:
        """Whether every started child was handed out."""
        return not self._single and all(each.dry() for each in self._each)

    def left_over(self) -> list[Run]:
        """Make and return the children of ``start`` that no worker has taken."""
        entries = list(self._single)
        self._single.clear()
        # They are delivered like all others, so they count as handed out.
        self.made += len(entries)
        return [self._child(entry) for entry in entries]

    # -- ChildSource: what the group calls ------------------------------------------------------

    def take(self) -> Run | Dropped | None:
        if self._single:
            child = self._child(self._single.popleft())
            self.made += 1
            return child
        # Only for elements: a call of `start` is in memory already, so it may start when it can.
        if self._has_room():
            child = self._take_in_turn()
            if child is not None:
                self.made += child != "dropped"
                return child
        self.notify_exhausted()
        return None

    def _child(self, entry: PendingChild) -> Run:
        """Return the entry's child, making it unless it was taken back before."""
        return self._begin(child_of(entry)) if entry.child is None else entry.child

    def _begin(self, child: Run) -> Run:
        """Let a child continue from its record, if there is one, and return it."""
        if self.recorded_children is not None:
            # Never "is kept": no update applies the children of an action's own fan-out.
            self.recorded_children.resume(child)
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
                # Also if it gave none: the next one has its turn.
                self._each.rotate(-1)
            if child is not None:
                return child if child == "dropped" else self._begin(child)
        return None

    def notify_exhausted(self) -> None:
        """Wake the action if nothing is left: it may wait for an outcome that never arrives."""
        if self.is_exhausted:
            self._notify()

    def left(self) -> int:
        return len(self._single) + sum(each.left() for each in self._each)

    def most(self) -> float:
        # The action may call `start` at any time until it leaves the block.
        return inf

    def waiting(self) -> int:
        # Outcomes that the action has not consumed take up room, too: a slow action slows its
        # sources down.
        return self._unconsumed() + len(self._single) + self.pulled()

    def pulled(self) -> int:
        return sum(each.waiting() for each in self._each)

    @property
    def kind(self) -> RunConfig | None:
        # Calls of `start` are in memory already, and may be of any act.
        return self._each[0].kind if len(self._each) == 1 and not self._single else None

    def dry(self) -> bool:
        return self._closed and self.is_exhausted

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        # With their records, since one that is done already must not be cancelled.
        begun = [self._begin(child) for each in self._each for child in each.drop(is_meant)]
        entries, self._single = self._single, deque()
        for entry in entries:
            if is_meant(entry.kind.config, entry.key):
                begun.append(self._child(entry))
            else:
                self._single.append(entry)
        # Completed children are not dropped: they go back in front and are delivered as done.
        done = [child for child in begun if child.disposition is DONE]
        self._single.extendleft(entry_of(child) for child in reversed(done))
        dropped = [child for child in begun if child.disposition is not DONE]
        self.made += len(dropped)
        return dropped

    def feeds(self) -> Iterable[AsyncFeed]:
        return [each for each in self._each if each.waits]

    def end(self) -> None:
        """Close all iterators, even if closing one of them raises."""
        # In a plain loop, one that raises would leave the others open.
        with ExitStack() as closing:
            for each in self._each:
                closing.callback(each.close)


@final
class EachSource(ElementSource):
    """The elements of one ``start_each``. Keys and positions come from its ``ActionSource``."""

    __slots__ = ("_key_by", "_started_by")

    def __init__(
        self,
        over: object,
        *,
        name: str,
        kind: ChildTemplate,
        item: str,
        key: Callable[[Any], object] | None,
        started_by: ActionSource,
    ) -> None:
        super().__init__(over, name=name, kinds=[kind], item=item)
        # Switches off the fast path of one act: it would use this source's own keys, and keys
        # must be unique among all started children.
        self._only = None
        self._key_by = key
        self._started_by = started_by

    def _entries(self, element: object, position: int) -> Sequence[PendingChild]:
        started_by, kind = self._started_by, self.kinds[0]
        if self._key_by is None:
            # The position counts over all calls, so that it is unique as a key, too.
            return (started_by.entry(kind, started_by.position, element),)
        return (started_by.entry(kind, self._key_by(element), element),)

    async def feed(self, group: Backpressure) -> None:
        try:
            await super().feed(group)
        finally:
            # Also after a failure or cancellation: this was maybe the last thing to wait for.
            self._started_by.notify_exhausted()
