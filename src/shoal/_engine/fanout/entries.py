"""Templates of children, and the protocols between a group and the source of its children.

A group calls ``ChildSource`` to make children, one at a time, in its own task. An async source also
has an ``AsyncFeed``, which runs in a task of the group and waits for room through ``Backpressure``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple, NoReturn, Protocol, final

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._errors.exceptions import BadResult, kind_of
from shoal._events.identity import Key
from shoal._graph.graph import Graph
from shoal._state.state import refuse_awaitable

from .keys import KeySet


@final
class ChildTemplate:
    """The configuration and initial fields that the children of one act share."""

    __slots__ = ("base", "done", "config")

    def __init__(
        self, config: RunConfig, base: Mapping[str, object], done: AbstractSet[object] = frozenset()
    ) -> None:
        """Create a template.

        Args:
            config: The configuration of the children's runs.
            base: The fields that each child starts with.
            done: Keys of children that are skipped, because their results are there.
        """
        # Shared by all children of the act, so nothing in it belongs to one child.
        self.config = config
        # Never changed: a child without an item field starts with this very mapping.
        self.base = base
        # Empty until the step knows which results are there, and replaced by it before the first
        # child.
        self.done = done


MakeTemplate = Callable[
    [Graph, Mapping[str, object], Callable[[Run], object] | None, Mapping[str, object] | None],
    ChildTemplate,
]
"""Makes the template of the children that execute a graph.

Its arguments are the graph, the initial fields of each child, the reader of a child's value, and
the children's own inputs.
"""


class PendingChild(NamedTuple):
    """A child that a source has named and placed, but not handed out."""

    key: Key
    position: int
    element: object
    kind: ChildTemplate
    # A run that was taken back must not be made again: it may have begun in an earlier attempt.
    child: Run | None = None
    """The run itself, if it was made and taken back; None: make it from ``kind``."""


def entry_of(child: Run) -> PendingChild:
    """Return the entry of a child that was made and goes back to its source."""
    # With all fields of the child, its element included, so that the entry needs nothing of its
    # source.
    kind = ChildTemplate(child.config, child.initial)
    return PendingChild(child.key, child.position, child.element, kind, child)


Dropped = Literal["dropped"]
"""Returned instead of a child for an element that needs none. More elements may follow."""


class Backpressure(Protocol):
    """The group, as an async source sees it."""

    async def wait_for_room(self) -> bool:
        """Wait until there is room for one more element; return False if no more are needed."""
        ...

    def new_element(self) -> None:
        """Note that the source has one more element."""
        ...

    def engage(self) -> None:
        """Start or wake workers if there is more to do, or less to wait for, than before."""
        ...

    @property
    def lacks_permits(self) -> bool:
        """Whether one more element fits the limit, but not the live budget."""
        ...


class AsyncFeed(Protocol):
    """A source that waits for its elements."""

    async def feed(self, group: Backpressure) -> None:
        """Pull one element whenever ``group`` has room; return after the last one."""
        ...


class ChildSource(Protocol):
    """The source of a group's children, each of which has a position of its own."""

    def take(self) -> Run | Dropped | None:
        """Make and return the next child. An exception ends the group.

        Returns None if there is no child now, and ``"dropped"`` if the next element needs none:
        then the caller takes again, because more elements may follow.
        """
        ...

    def left(self) -> int:
        """Estimate how many children ``take`` would make now; 0 only if it certainly makes none."""
        ...

    def most(self) -> float:
        """Return the most children that can follow; ``math.inf`` if there is no bound."""
        ...

    def waiting(self) -> int:
        """Count the elements that take up room besides the children in flight."""
        ...

    def pulled(self) -> int:
        """Count the elements that were pulled, or found by ``grow``, and have no child yet."""
        ...

    def dry(self) -> bool:
        """Return whether no more children follow, unless ``grow`` adds elements."""
        ...

    @property
    def kind(self) -> RunConfig | None:
        """The configuration of all children that follow, as far as it says what they start with.

        None: they may have different acts, or are not known yet.
        """
        ...

    def feeds(self) -> Iterable[AsyncFeed]:
        """Return the async sources, each of which the group runs in a task of its own."""
        ...

    def take_back(self, child: Run) -> None:
        """Put a child back as the next one: asking the limits whether it may start failed."""
        ...

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        """Remove and return the children that never begin: those known so far that ``is_meant``.

        Children that are Done stay in the source, and are applied.
        """
        ...


def entries_for(
    element: object, position: int, keys: KeySet, kinds: Sequence[ChildTemplate]
) -> Sequence[PendingChild]:
    """Return the entries of an element, one for each act; none if its key was repeated.

    Args:
        element: An element, which is new if its key is.
        position: The position of its first child.
        keys: The keys of the elements so far.
        kinds: The templates of the acts that are executed for it.
    """
    # By the index of the element and not of the child: acts of one element have one key.
    key = keys.key(element, position // len(kinds))
    if key is None:
        return ()
    return [PendingChild(key, position + at, element, kind) for at, kind in enumerate(kinds)]


def child_of(entry: PendingChild) -> Run:
    """Make the child of an entry that has none, with the initial fields of its template."""
    kind = entry.kind
    # The element is for outcomes alone: the fields of such a child are all in its template.
    return Run(
        kind.config, kind.base, key=entry.key, position=entry.position, element=entry.element
    )


def refuse_elements(elements: object, name: str, given_by: str) -> NoReturn:
    """Refuse what the argument ``given_by`` of the fan-out ``name`` gave: it is not iterable.

    Raises:
        BadResult: Always.
    """
    refuse_awaitable(elements, f"{given_by}= of fan-out {name!r}")
    one = ", which counts as one element: give a list" if isinstance(elements, str) else ""
    msg = (
        f"fan-out {name!r} runs over an iterable of elements, "
        f"but `{given_by}` gave {kind_of(elements)}"
        f"{one}"
    )
    raise BadResult(msg)


def refuse_grown(elements: object, name: str, key: Key) -> NoReturn:
    """Refuse what ``grow`` of the fan-out ``name`` returned for a child: it is not iterable.

    Raises:
        BadResult: Always.
    """
    refuse_awaitable(elements, f"grow= of fan-out {name!r}")
    msg = (
        f"fan-out {name!r}: grow returned {kind_of(elements)} for key "
        f"{key!r}; it returns an iterable of new elements, which may be empty"
    )
    raise BadResult(msg)
