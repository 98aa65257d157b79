"""``ElementSource``: pulls elements lazily, gives them keys and positions, and makes children.

Invariants:
- An element or task is pulled only when there is room for its child.
- At most ``at_most`` children are started, over all executions of the step together.
- Iterators are closed on every way out, an async iterator in the task that advanced it.
- No pulled element is lost: it has a child, or it waits for one. If a user's function raises about
  an element (``key=``, ``by=``, ``cost=``, ``grow=``, a digest), the next attempt gets the element.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from collections.abc import Set as AbstractSet
from functools import partial
from math import inf
from operator import length_hint
from typing import Any, Literal, cast

from anyio import CancelScope
from anyio.lowlevel import checkpoint

from shoal._concurrency.cancellation import ki_unprotected
from shoal._concurrency.closing import closed_after
from shoal._engine.config import RunConfig
from shoal._engine.disposition import DONE
from shoal._engine.run import Run
from shoal._events.events import ChildName, Done
from shoal._events.identity import Key
from shoal.stores._protocol import ChildRecord

from .entries import (
    Backpressure,
    ChildTemplate,
    Dropped,
    PendingChild,
    entries_for,
    entry_of,
    refuse_elements,
)
from .growth import Growth
from .keys import KeySet, Positions
from .recorded import RecordedChildren

_SIZED = (Sequence, AbstractSet, Mapping)
FEED_INLINE = 64
"""Elements that are pulled from an async source between two checkpoints.

If its elements are ready, pulling them never yields to the event loop. A checkpoint for each would
cost more than the pull; 64 pulls are short enough that other tasks don't notice them.
"""


class ElementSource:
    """The source of a fan-out over elements: one child per element and template."""

    __slots__ = (
        "_at_most",
        "_beyond",
        "_done_in",
        "_ended",
        "_feeding",
        "_is_exact",
        "_item",
        "_iterator",
        "_keys",
        "_only",
        "_positions",
        "_recorded_children",
        "_pulled_before",
        "_started",
        "_last_recorded",
        "_last_to_come",
        "_waiting",
        "_stopped",
        "done_before",
        "given",
        "growth",
        "kinds",
        "on_done",
        "on_kept",
        "on_taken_again",
        "pick",
        "to_come",
        "tried",
        "name",
    )

    def __init__(
        self,
        elements: object,
        *,
        name: str,
        kinds: Sequence[ChildTemplate] = (),
        item: str | None = None,
        key_of: Callable[[Any], object] | None = None,
        grows: bool = False,
        at_most: int | None = None,
        done_in: str | None = None,
        given_by: str = "over",
        recorded_children: RecordedChildren | None = None,
        finds_again: bool = False,
    ) -> None:
        """Create a source. No element is pulled yet.

        Args:
            elements: An iterable or async iterable.
            name: The name of the fan-out, for errors.
            kinds: The templates of the acts that are executed for each element.
            item: The field that holds the element; None: no field does.
            key_of: Returns the key of an element; None: the key is the element's index.
            grows: Whether ``grow`` may be called, and repeated keys are dropped.
            at_most: The number of children to start in all; None: any number.
            done_in: The field with the results of the elements that need no child.
            given_by: The argument that gave the elements, for errors.
            recorded_children: The children that earlier executions recorded; None if there are
                none.
            finds_again: Whether the parent begins again, without what ``grow`` returned then.

        Raises:
            BadResult: ``elements`` is not iterable.
        """
        self.name = name
        # Empty for tasks, which bring their own; the step replaces what is `done` in each.
        self.kinds = kinds
        self._only = kinds[0] if len(kinds) == 1 else None  # allows the fast path of `take`
        self._item = item
        self._keys = KeySet(name, key_of, grows=grows)
        # Neither is ever changed.
        self._at_most = at_most
        self._done_in = done_in
        # If the parent begins again, `grow` returns the same elements, and without keys only their
        # positions tell which children they had. See
        # test_what_grew_below_a_parent_that_is_kept_nowhere_is_found_again.
        width, last = len(kinds) or 1, -1
        if recorded_children is not None:
            last = recorded_children.last_position_now(width)
        self._positions = Positions(width, -1 if finds_again else last)
        self.growth: Growth | None = None
        """What ``grow`` has found, in this execution or an earlier one; None: it finds nothing."""
        self._last_recorded = last  # the highest position of an element with records; -1: none
        self._recorded_children = recorded_children
        if grows:
            self._start_growth()
        # Elements without keys that an earlier attempt has pulled, and this one must pass over.
        self._pulled_before = 0
        self._started = 0  # children that at_most counts, over all executions of the step
        self.to_come: set[ChildName] = set()
        """Children that earlier rounds have started, and that have not come up in this one."""
        self._last_to_come = -1  # the highest position of a child in ``to_come``
        self._stopped = False  # set by ``stop`` alone, never reset
        self.pick: Callable[[str, Key], Literal["leave", "anew"] | None] | None = None
        """Decides by act and key whether to leave a child out or run it anew; None: neither."""
        self.tried: Mapping[ChildName, int] = {}
        """The number of earlier attempts, in this execution, of children that run anew."""
        self.done_before: Mapping[ChildName, Done] = {}
        """Children that are Done in this execution already, and whose runs are gone."""
        self.given = elements
        # Whether the elements have a size, so that the length hint of the iterator is exact; with
        # `grow`, a size says nothing about the end. Asked once, since each ABC takes its time, and
        # lists need none.
        is_plain = type(elements) in (list, tuple)
        self._is_exact: bool = not grows and (is_plain or isinstance(elements, _SIZED))
        self._beyond = 0  # elements that were dropped because at_most was reached
        self.on_kept: Callable[[ChildRecord], None] | None = None
        """Called with the record of each child that needs nothing more; None: not called."""
        self.on_done: Callable[[], None] | None = None
        """Called for each child that is made, and is Done already; None: not called."""
        self.on_taken_again: Callable[[Run], None] | None = None
        """Called with each child that was taken back and is given out again; None: not called."""
        if recorded_children is not None:
            self._started = recorded_children.started
        self._waiting: deque[PendingChild] = deque()  # pulled, with key and position, no child yet
        # At most one of these is set: _iterator until it is exhausted or closed, _feeding for good.
        self._iterator: Iterator[object] | None = None
        self._feeding: AsyncIterator[object] | None = None
        self._ended = False  # nothing more is pulled; _waiting may still have elements
        if is_plain:
            self._iterator = iter(cast("Iterable[object]", elements))
        elif isinstance(elements, AsyncIterable):
            self._feeding = aiter(cast("AsyncIterable[object]", elements))
        elif isinstance(elements, Iterable) and not isinstance(elements, str | bytes):
            # Now, so that what `__iter__` raises is raised before a child has started.
            self._iterator = iter(cast("Iterable[object]", elements))
        else:
            refuse_elements(elements, name, given_by)

    # -- taking ---------------------------------------------------------------------------------

    @ki_unprotected
    def take(self) -> Run | Dropped | None:
        """Make and return the next child; see ``ChildSource``."""
        if self._at_most is not None and self._is_full():
            return None
        # Waiting entries go first, so that few of them are kept in memory.
        if self._waiting and (self._iterator is None or not self._is_ahead()):
            return self._child(self._waiting.popleft())
        if self._iterator is None:
            return None
        try:
            element = next(self._iterator)
        except StopIteration:
            self._ended = True
            self._iterator = None
            return self._child(self._waiting.popleft()) if self._waiting else None
        if self._only is not None:
            # Most fan-outs have one act, and make no entry for their children.
            return self._take_only(element, self._only)
        entries = self._place(element)
        if not entries:
            return "dropped"
        if len(entries) > 1:
            self._waiting.extend(entries[1:])
        return self._child(entries[0])

    def _is_ahead(self) -> bool:
        """Return whether the next element to pull comes before the first that waits.

        Then the waiting element was found by ``grow`` in an earlier execution, later than the other
        was pulled. The order must stay the same, because the pulled element may have found it.
        """
        positions = self._positions
        return bool(positions.reserved) and positions.free() < self._waiting[0].position

    def left(self) -> int:
        """Estimate how many children follow now; not 0 while only ``take`` can find out."""
        if self._at_most is not None and self._is_full():
            return 0
        more = 0
        if self._iterator is not None:
            # A hint of 0 is certain for a collection alone: an iterator may have more than it says.
            more = length_hint(self._iterator, sys.maxsize) or int(not self._is_exact)
        return more + len(self._waiting)

    def most(self) -> float:
        """Return the most children that can follow; ``math.inf`` if there is no bound."""
        if self.dry():
            return 0
        more = inf
        if self._is_exact:
            size = len(cast("Sized", self.given))
            more = size * self._positions.width - self._positions.next + len(self._waiting)
        if self._at_most is None:
            return more
        recorded = 0 if self._recorded_children is None else self._recorded_children.left
        # `_started` counts recorded children and those of earlier rounds from the beginning, and
        # they follow all the same.
        return min(more, self._at_most - self._started + recorded + len(self.to_come))

    @property
    def may_start(self) -> float:
        """How many more children ``at_most`` allows; ``math.inf``: any number."""
        return inf if self._at_most is None else self._at_most - self._started

    @property
    def dropped(self) -> int:
        """The number of elements dropped for a repeated key."""
        return self._keys.dropped

    @property
    def kind(self) -> RunConfig | None:
        """What all children have in common; None: they have several acts, or bring their own."""
        return self.kinds[0].config if len(self.kinds) == 1 else None

    def waiting(self) -> int:
        """Count the entries that were pulled and have no child yet."""
        return len(self._waiting)

    pulled = waiting

    @property
    def known(self) -> int:
        """The known children that were not made, those beyond ``at_most`` included."""
        # Those that have asked something are put back, and stay halted or lose.
        ended = sum(one.status is not None for one in self.taken_back())
        return len(self._waiting) + self._beyond - ended

    def dry(self) -> bool:
        """Return whether no more children follow, unless ``grow`` adds elements."""
        # Without a call of `left`, since each worker that finds no room asks this.
        if self._at_most is not None and self._is_full():
            return True
        # An async source has no iterator: only `_feed` knows that it has ended.
        if self._waiting or self._ended or self._iterator is None:
            return self._ended and not self._waiting
        return not length_hint(self._iterator, sys.maxsize) and self._is_exact

    def take_back(self, child: Run) -> None:
        """Put a child back as the next one; see ``ChildSource``."""
        self._started -= 1  # `take` counts it again
        # In front, because its position is before those of all that follow.
        self._waiting.appendleft(entry_of(child))

    def taken_back(self) -> Iterator[Run]:
        """Iterate over the children that were taken back, and that had begun before."""
        for entry in self._waiting:
            child = entry.child
            if child is None or child.disposition is DONE:
                continue
            # In an earlier execution, or in this one: then it has asked something.
            if child.resume is not None or child.questions is not None:
                yield child

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> list[Run]:
        """Remove and return the children that never begin; see ``ChildSource``."""
        entries, self._waiting = self._waiting, deque()
        kept, dropped = list[PendingChild](), list[Run]()
        try:
            while entries:
                entry = entries[0]
                stays = not is_meant(entry.kind.config, entry.key) or self._is_done(entry)
                entries.popleft()
                if stays:
                    kept.append(entry)
                elif (child := self._child(entry)) != "dropped":
                    dropped.append(child)
        finally:  # if making a child has raised, `_make` has put that one into _waiting again
            self._waiting = deque((*kept, *self._waiting, *entries))
        return dropped

    def _is_done(self, entry: PendingChild) -> bool:
        """Return whether a child that waits is Done: then it has only to be applied.

        The child is not made, since that takes its record, and another round of a race would not
        know that it is Done. See test_a_contestant_that_is_done_stays_so_though_it_is_cancelled.
        """
        if entry.child is not None:
            return entry.child.disposition is DONE
        act, children = entry.kind.config.act, self._recorded_children
        if self.pick is not None and self.pick(act, entry.key) is not None:
            return False
        # For the comparison alone, and dropped: no record is taken for it.
        child = self._run(entry.key, entry.position, entry.element, entry.kind)
        if self._done_before(child) is not None:
            return True
        return children is not None and children.is_done(child)

    def remade(self, record: ChildRecord) -> Run | None:
        """Make the child of a record again; None if its act is not executed any more."""
        for kind in self.kinds:
            if kind.config.act == record.act:
                return self._run(record.key, record.position, record.element, kind)
        return None

    @property
    def is_next_done(self) -> bool:
        """Whether the next child is known to be Done: it needs no permit, only to be applied."""
        child = self._waiting[0].child if self._waiting else None
        return child is not None and child.disposition is DONE

    def _is_full(self) -> bool:
        """Return whether ``at_most`` is reached, and no child that it counts is still to come."""
        if self._at_most is None or self._started < self._at_most:
            return False
        # The limit counts recorded children and those of earlier rounds. As long as one of them may
        # still be pulled, the source goes on up to its position.
        last, children = self._last_to_come if self.to_come else -1, self._recorded_children
        if children is not None and children.left:
            last = max(last, self._last_recorded)
        return last < 0 or (not self._waiting and self._positions.next > last)

    def _take_only(self, element: object, kind: ChildTemplate) -> Run | Dropped:
        """Make the child of an element that has just one: a fast path, without an entry."""
        positions, keys = self._positions, self._keys
        position = positions.free() if positions.reserved else positions.next
        key = position if keys.key_of is None else keys.key(element, position)
        if key is None:
            return "dropped"
        positions.next = position + 1
        # Nothing else decides about the children of most fan-outs: then they need no further call.
        if (
            self._recorded_children is not None
            or self.pick is not None
            or kind.done
            or self.to_come
            or self.done_before
        ):
            return self._make(key, position, element, kind)
        try:
            # `_run` without its call.
            item = self._item
            data = kind.base if item is None else {**kind.base, item: element}
            child = Run(kind.config, data, key, position, element)
        except BaseException:
            self._waiting.appendleft(PendingChild(key, position, element, kind))  # as in `_make`
            raise
        self._started += 1
        return child

    def _child(self, entry: PendingChild) -> Run | Dropped:
        if entry.child is not None:
            self._started += 1
            if self.on_taken_again is not None:
                self.on_taken_again(entry.child)
            return entry.child
        return self._make(entry.key, entry.position, entry.element, entry.kind)

    def _make(self, key: Key, position: int, element: object, kind: ChildTemplate) -> Run | Dropped:
        try:
            return self._make_child(key, position, element, kind)
        except BaseException:
            # Its key counts as seen and its position is used, so the next attempt would pass over
            # it (see test_an_element_is_not_lost_when_something_raises_about_it).
            self._waiting.appendleft(PendingChild(key, position, element, kind))
            raise

    def _make_child(
        self, key: Key, position: int, element: object, kind: ChildTemplate
    ) -> Run | Dropped:
        child = self._run(key, position, element, kind)
        is_counted = bool(self.to_come) and ChildName(kind.config.act, key) in self.to_come
        if is_counted:
            self.to_come.remove(ChildName(kind.config.act, key))
        # First of all: it speaks for this round of a race, records only for earlier executions.
        picked = None if self.pick is None else self.pick(kind.config.act, key)
        if picked is not None:
            return self._go_by(picked, child, is_counted=is_counted)
        if self.done_before and (done := self._done_before(child)) is not None:
            # Recorded children are all counted since the source was made.
            self._started += self._recorded_children is None and not is_counted
            child.take_over(done)
            self._count_done()
            return child
        if self._recorded_children is not None:
            decision, record = self._recorded_children.resume(child)
            if decision == "is done":
                self._count_done()
            if record is not None:  # else it is new
                return self._keep(child, record) if decision == "is kept" else child
        # A skipped child is no start, so `at_most` doesn't count it.
        if kind.done and key in kind.done:
            child.skip(f"already in {self._done_in}")
        elif is_counted:
            pass
        elif self._started == self._at_most:  # goes on only for children that were started before
            self._beyond += 1
            return "dropped"
        else:
            self._started += 1
        return child

    def _done_before(self, child: Run) -> Done | None:
        """Return the outcome of a child that is Done already; None if a record says more."""
        name = ChildName(child.config.act, child.key)
        children = self._recorded_children
        is_recorded = children is not None and children.get(name) is not None
        return None if is_recorded else self.done_before.get(name)

    def _go_by(
        self, picked: Literal["leave", "anew"], child: Run, *, is_counted: bool
    ) -> Run | Dropped:
        """Leave out a child, or let it run anew, as ``pick`` has decided."""
        if picked == "leave":
            return "dropped"
        name = ChildName(child.config.act, child.key)
        if self._recorded_children is not None and self._recorded_children.get(name) is not None:
            # The record speaks of a history that is void as soon as the child begins.
            self._recorded_children.drop(name)
        elif not is_counted:
            if self._started == self._at_most:
                self._beyond += 1
                return "dropped"
            self._started += 1
        child.resume_state().is_afresh = True
        child.count_earlier_attempts(self.tried.get(name, 0))
        return child

    def _run(self, key: Key, position: int, element: object, kind: ChildTemplate) -> Run:
        item = self._item
        data = kind.base if item is None else {**kind.base, item: element}
        return Run(kind.config, data, key, position, element)  # by position: half the price

    def _keep(self, child: Run, record: ChildRecord) -> Run | Dropped:
        """Drop a child that was applied before, unless its position has changed."""
        if self.on_kept is not None:
            # Also if it is dropped: its result is in the state and counts.
            self.on_kept(record)
        if self._done_in is None or child.position == record.position:
            return "dropped"
        child.keep_recorded(record)  # applied again only to change its position
        return child

    def _count_done(self) -> None:
        if self.on_done is not None:
            self.on_done()

    def _place(self, element: object) -> Sequence[PendingChild]:
        """Return the entries of a pulled element, one for each act; none if it is dropped."""
        positions = self._positions
        position = positions.free()
        # In this order: if the key function raises, the position is not used up.
        entries = self._entries(element, position)
        if entries:
            # A dropped element uses up no position, in any execution; so positions are the same in
            # each.
            positions.next = position + positions.width
        return entries

    def _entries(self, element: object, position: int) -> Sequence[PendingChild]:
        """Return the entries of an element at ``position``; none if its key was repeated."""
        return entries_for(element, position, self._keys, self.kinds)

    # -- continuing an earlier attempt or round -------------------------------------------------

    def count_on(self, former: ElementSource, again: Mapping[ChildName, int]) -> None:
        """Count the children of earlier rounds against ``at_most`` in a new round.

        Args:
            former: The source of the previous round.
            again: The children that come up again in this round, with their positions.
        """
        # Those that were taken back have begun, so `take` does not count them again.
        self._started = former._started + sum(1 for _ in former.taken_back())
        self.to_come = set(again)
        self._last_to_come = max(again.values(), default=-1)

    @ki_unprotected
    def resume(self, former: ElementSource, unfinished: Iterable[Run]) -> None:
        """Continue where the source of an earlier attempt of the step stopped.

        Elements that it has pulled need no child again, except those of unfinished children, which
        live on, and those that waited for a child. These come first.

        Args:
            former: The closed source of the earlier attempt.
            unfinished: The children of that attempt that were not finished.
        """
        # Children that are Done come first: they are only applied, and need no permit.
        children = sorted(
            unfinished, key=lambda child: (child.disposition is not DONE, child.position)
        )
        self._waiting.extend(map(entry_of, children))
        self._waiting.extend(former._waiting)
        # The former source is closed, so what it has may be taken over and changed here.
        self._keys.go_on(former._keys)
        self._positions.go_on(former._positions)
        if former.growth is not None:
            self._start_growth().go_on(former.growth)
        self._last_recorded = max(self._last_recorded, former._last_recorded)
        self._started = former._started - len(children)  # `take` counts each of them again
        self.to_come, self._last_to_come = former.to_come, former._last_to_come
        if former._is_keyed():
            return
        self._pulled_before = former._positions.pulled
        while self._iterator is not None and self._pulled_before:
            self._pulled_before -= 1
            # Of an async source, `_feed` passes them over.
            next(self._iterator, None)

    def _is_keyed(self) -> bool:
        """Return whether elements have keys; otherwise they are known by their positions."""
        return self._keys.key_of is not None

    # -- growing --------------------------------------------------------------------------------

    def _start_growth(self) -> Growth:
        growth = self.growth
        if growth is None:
            parts = self.name, self.kinds, self._keys, self._positions, self._recorded_children
            growth = self.growth = Growth(*parts)
        return growth

    def rediscover(
        self, elements: Iterable[object], position: int, cause: ChildName | None
    ) -> None:
        """Add the elements that ``grow`` returned in an earlier execution.

        Args:
            elements: The elements that were new then.
            position: The position of the first of them.
            cause: The child whose outcome ``grow`` was given; None if that outcome has changed.
        """
        start = position
        # Also where the fan-out has no `grow=` any more, since its children may all run anew.
        growth = self._start_growth()
        if not self._is_keyed():
            elements = list(elements)
            growth.remember(elements, cause)
        for element in elements:
            self._waiting.extend(self._entries(element, position))
            position += self._positions.width
        self._positions.reserve(start, position)
        self._last_recorded = max(self._last_recorded, position - 1)

    def admit(self, entries: Iterable[PendingChild]) -> None:
        """Make ``entries`` available to ``take``: the update that found them is saved."""
        if self.growth is not None:
            self.growth.keep()
        self._waiting.extend(entries)

    # -- feeding --------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether the elements come from an async iterator."""
        return self._feeding is not None

    def feeds(self) -> Sequence[ElementSource]:
        """Return the async sources; see ``ChildSource``."""
        return [self] if self.waits else []

    async def feed(self, group: Backpressure) -> None:
        """Pull one element whenever ``group`` has room; return after the last one."""
        source = self._feeding
        assert source is not None
        feed = partial(self._feed, source, group)
        await closed_after(source, feed, f"the source of fan-out {self.name!r}", hide=self._hide)

    @ki_unprotected
    async def _feed(
        self, source: AsyncIterator[object], group: Backpressure, _scope: CancelScope
    ) -> None:
        # The elements to pull until at_most is reached. None: any number, because recorded children
        # or those of earlier rounds are counted already, and `dry` finds the end.
        wanted = None if self._recorded_children is not None or self.to_come else self._at_most
        if wanted is not None:
            known = sum(entry.key not in entry.kind.done for entry in self._waiting)
            # Those that wait are started as well: an earlier attempt or execution has found them.
            wanted = max(0, wanted - self._started - known)
        pulled = 0
        while wanted != 0 and not self.dry():
            if not await group.wait_for_room():
                return  # the group ends, maybe because it is drained, and elements are left
            pulled += 1
            if pulled % FEED_INLINE == 0:
                await checkpoint()  # elements that are ready would starve other tasks otherwise
            try:
                element = await anext(source)
            except StopAsyncIteration:
                break
            if self._stopped:  # during the await above: the element is not needed any more
                break
            if self._pulled_before:
                self._pulled_before -= 1
                continue
            for entry in self._place(element):
                if wanted is not None and entry.key not in entry.kind.done:
                    wanted = max(0, wanted - 1)
                self._waiting.append(entry)
                group.new_element()
        # Not in a `finally`: if the source is cancelled, the parent may take a last end in the same
        # loop iteration, and would complete the step (see test_a_cancelled_source_has_not_ended).
        self._ended = True

    def _hide(self, error: BaseException) -> None:
        """Mask secret values in an error that is about to be logged or published."""
        for kind in self.kinds[:1]:
            kind.config.secrets.hide(error)

    def stop(self) -> None:
        """Discard all remaining elements: no more children are made."""
        # `_feed` may be in its await, and would add one more element when it goes on.
        self._stopped = self._ended = True
        self._waiting.clear()
        self.close()

    def close(self) -> None:
        """Close the iterator if it is a generator that is not exhausted."""
        # Taken off first: closing runs code of the generator, which may raise, and is done once.
        iterator, self._iterator = self._iterator, None
        if iterator is None or type(self.given) is list:  # as of most: no look at an ABC for it
            return
        if isinstance(iterator, Generator):
            cast("Generator[object, None, None]", iterator).close()
