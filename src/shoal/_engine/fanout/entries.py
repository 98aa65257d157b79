"""What children are made of, and what a group asks of where they come from. Imports runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple, Protocol, final

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._events.identity import Key
from shoal._graph.graph import Graph


@final
class ChildTemplate:
    """What the children of one act have in common."""

    __slots__ = ("base", "done", "config")

    def __init__(
        self, config: RunConfig, base: Mapping[str, object], done: AbstractSet[object] = frozenset()
    ) -> None:
        """Collect it.

        Args:
            config: What they execute, and as part of what.
            base: The fields that each of them starts with.
            done: Keys of those that needn't run.
        """
        self.config = config
        self.base = base
        self.done = done


MakeTemplate = Callable[
    [Graph, Mapping[str, object], Callable[[Run], object] | None, Mapping[str, object] | None],
    ChildTemplate,
]
"""Describes the children of a step that execute a graph.

It is given the fields that each starts with, what reads the value of one, and their own inputs.
"""


class PendingChild(NamedTuple):
    """A child to be, before it has one."""

    key: Key
    position: int
    element: object
    kind: ChildTemplate
    child: Run | None = None
    """The child, if it has lived before, and not to its end."""


def entry_of(child: Run) -> PendingChild:
    """Make the entry of a child that is not to begin yet."""
    kind = ChildTemplate(child.config, child.initial)
    return PendingChild(child.key, child.position, child.element, kind, child)


Dropped = Literal["dropped"]


class Backpressure(Protocol):
    """What a feeding source talks to: the group."""

    async def wait_for_room(self) -> bool:
        """Wait until one more element can be used; return whether there is any use for more."""
        ...

    def new_element(self) -> None:
        """Hear that the source has one more element."""
        ...

    def engage(self) -> None:
        """Hear that there may be more to do, or less to wait for, than before."""
        ...

    @property
    def lacks_permits(self) -> bool:
        """Whether there is room for one more, but none in the live budget."""
        ...


class AsyncFeed(Protocol):
    """A source that must wait for its elements."""

    async def feed(self, group: Backpressure) -> None:
        """Bring elements in, one whenever ``group`` has room; return when all are in."""
        ...


class ChildSource(Protocol):
    """Where a group's children come from. Told apart by position, in the order they are made."""

    def take(self) -> Run | Dropped | None:
        """Make the next child, or None if there is none now. Whatever it raises ends the group.

        Or say that the next element was dropped: then there may be others behind it.
        """
        ...

    def left(self) -> int:
        """Guess how many more ``take`` would make now; 0 only if none, for certain."""
        ...

    def waiting(self) -> int:
        """Count what takes up room besides the children in flight, before more is fed."""
        ...

    def dry(self) -> bool:
        """Tell whether there will be no more, unless ``grow`` adds some."""
        ...

    def feeds(self) -> Iterable[AsyncFeed]:
        """Return what brings elements in that must be waited for, in tasks of their own."""
        ...

    def take_back(self, child: Run) -> None:
        """Have a child be the next that is taken: what limits its start could not be asked."""
        ...

    def drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> Sequence[Run]:
        """Make those children that ``is_meant``, of what is known so far: they never begin.

        But for those that are Done: they stay, and are applied.
        """
        ...


def child_of(entry: PendingChild) -> Run:
    """Make the child of an entry that has none; it starts with the fields of its kind."""
    kind = entry.kind
    return Run(
        kind.config, kind.base, key=entry.key, position=entry.position, element=entry.element
    )
