"""Conditions under which a fan-out is decided, ``until=``: all, the first, a quorum, a first item.

A condition is two classes: its value here, with the properties that the rest of shoal reads, and
its judge in ``_engine.fanout.race``, which is found there by the type of the value.

Invariants:
- These are values. They count nothing and judge no result.
- Invalid arguments are refused where they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, final

from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError, brief
from shoal._events.events import Outcome
from shoal._state.functions import require_plain
from shoal._state.state import State

from .sketch import named

OnBreak = Literal["fail", "restart"]


@hides("by_item is_race may_decide name picks_one restarts said wanted")
class EndCondition:
    """Base class of the conditions under which a fan-out is decided."""

    __slots__ = ()

    name: ClassVar[str] = ""
    """The function that makes one, for messages."""
    is_race: ClassVar[bool] = True
    """Whether a child must win, so that a failure only removes a contestant."""
    by_item: ClassVar[bool] = False
    """Whether a partial item decides, while no child has a result yet."""
    may_decide: ClassVar[bool] = True
    """Whether it may end a fan-out before the last child has ended."""

    @property
    def wanted(self) -> int | None:
        """The number of results that it needs; None if that depends on the results."""
        return 1

    @property
    def picks_one(self) -> bool:
        """Whether ``into`` holds the value of one child itself, not a collection of values."""
        return self.is_race

    @property
    def restarts(self) -> bool:
        """Whether the race runs again if its winner fails afterwards."""
        return False

    @property
    def said(self) -> str:
        """What drawings say of it."""
        return str(self)

    def __str__(self) -> str:
        """Return the text that a store keeps, with which a changed program is compared."""
        return self.name


@final
@dataclass(frozen=True, slots=True)
class All(EndCondition):
    """All children are awaited; made by ``all_``."""

    name = "all"
    is_race = may_decide = False

    @property
    def wanted(self) -> None:
        """None: all of them."""


ALL = All()


@final
@dataclass(frozen=True, slots=True)
class First(EndCondition):
    """The first accepted results decide; made by ``first``."""

    name = "first"
    n: int = 1
    accept: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        _check_count("first", self.n)
        _check_function("first(accept=...)", self.accept)

    @property
    def wanted(self) -> int:
        """The number of results that must be accepted."""
        return self.n

    @property
    def picks_one(self) -> bool:
        """Whether one result is enough."""
        return self.n == 1

    @property
    def said(self) -> str:
        """What drawings say of it."""
        result = "first result" if self.n == 1 else f"first {self.n:,} results"
        return result if self.accept is None else f"{result} accepted by {named(self.accept)}"

    def __str__(self) -> str:
        """Return the text that a store keeps."""
        return f"first({self.n})"


@final
@dataclass(frozen=True, slots=True)
class Quorum(EndCondition):
    """Results that agree decide; made by ``quorum``."""

    name = "quorum"
    n: int
    by: Callable[[Any], object] | None = None

    def __post_init__(self) -> None:
        _check_count("quorum", self.n)
        _check_function("quorum(by=...)", self.by)

    @property
    def wanted(self) -> int:
        """The number of results that must agree."""
        return self.n

    @property
    def said(self) -> str:
        """What drawings say of it."""
        return f"{self.n:,} agree{'' if self.by is None else f' by {named(self.by)}'}"

    def __str__(self) -> str:
        """Return the text that a store keeps."""
        return f"quorum({self.n})"


@final
@dataclass(frozen=True, slots=True)
class FirstItem(EndCondition):
    """The first partial item decides; made by ``first_item``."""

    name = "first_item"
    by_item = True
    when: Callable[[Any], object] | None = None
    on_break: OnBreak = "fail"

    def __post_init__(self) -> None:
        _check_function("first_item(when=...)", self.when)
        if self.on_break not in ("fail", "restart"):
            msg = f"first_item(on_break=...) is 'fail' or 'restart', not {brief(self.on_break)}"
            raise DefinitionError(msg)

    @property
    def restarts(self) -> bool:
        """Whether ``on_break="restart"`` was given."""
        return self.on_break == "restart"

    @property
    def said(self) -> str:
        """What drawings say of it."""
        return "first item" if self.when is None else f"first item that is {named(self.when)}"


Asked = Callable[[State, Outcome], bool]


@final
@dataclass(frozen=True, slots=True)
class ByFunction(EndCondition):
    """A user's function decides; it is called after each update. It may never decide."""

    name = "a function"
    is_race = False
    function: Asked

    @property
    def wanted(self) -> None:
        """None: any further update may satisfy the function."""

    @property
    def said(self) -> str:
        """What drawings say of it."""
        return named(self.function)


Until = EndCondition | Asked
"""``all_()``, ``first(...)``, ``quorum(...)``, ``first_item(...)``, or a function."""


def all_() -> All:
    """Wait for all children; the default of ``until=``."""
    return ALL


def first(n: int = 1, *, accept: Callable[[Any], object] | None = None) -> First:
    """End a fan-out with its first ``n`` accepted results, and cancel the rest.

    The rest are awaited, their ``finally`` blocks included; see ``shielded`` for those that await.
    Children that fail, or whose result is refused, only leave the race. As soon as too few are
    left, the step raises ``NobodyAccepted``. Of children that end at the same moment, those with
    lower positions come first. ``into`` holds the winning value itself; with ``n`` above 1, a
    collection, as without ``until=``.

    Args:
        n: The number of results.
        accept: A plain function of a child's value (see ``take``) that returns whether it counts.
            If it raises, the value is refused for that reason. By default every result counts.

    Raises:
        DefinitionError: ``n`` is no number of children, or ``accept`` no plain function.

    Examples:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> found = fan_out(
        ...     square, over="ns", item="n", into="found", until=first(accept=lambda s: s > 50)
        ... )
        >>> Application(found).run_sync({"ns": range(100)}).state["found"]
        64
    """
    return First(n, accept)


def quorum(n: int, *, by: Callable[[Any], object] | None = None) -> Quorum:
    """End a fan-out as soon as ``n`` of its results agree, and cancel the rest.

    Children that fail only leave the race. As soon as ``n`` can't agree any more, the step
    raises ``NobodyAccepted``. ``into`` holds the value that was agreed on; of several values that
    count as equal, the one with the lowest position. Each vote that was counted is ``used``, the
    outvoted ones as well, so the ledger, which iterates over losers, has none of them.

    Args:
        n: The number of results that must agree.
        by: A plain function of a child's value (see ``take``). Results agree if its return values
            are equal. If it raises, the value is refused for that reason. By default the values
            themselves are compared; a value that can't be compared is refused.

    Raises:
        DefinitionError: ``n`` is no number of children, or ``by`` no plain function.

    Examples:
        >>> @action(writes=["answer"])
        ... async def ask(model: str) -> str:
        ...     return "Yes" if model != "small" else "No"
        >>> models = [ask.bind(name=name, model=name) for name in ("small", "medium", "large")]
        >>> agreed = fan_out(models, into="answer", until=quorum(2, by=str.lower))
        >>> Application(agreed).run_sync().state["answer"]
        'Yes'
    """
    return Quorum(n, by)


def first_item(
    *, when: Callable[[Any], object] | None = None, on_break: OnBreak = "fail"
) -> FirstItem:
    """Decide a race by the first partial item of a streaming action.

    The first child that yields an item wins and continues to stream. That is saved, and the other
    children are cancelled. When the winner ends, its result is applied; ``into`` holds the value
    itself. Items of several children can't be confused: each event names its child. A child that
    succeeds without an item wins as well. Children that fail before only leave the race. If none
    is left, the step raises ``NobodyAccepted``. After a crash only the winner runs again, from its
    start.

    Args:
        when: A plain function of an item that returns whether it counts. By default every item
            does. If it raises, the child fails.
        on_break: What happens if the winner fails afterwards. ``"fail"``: the step raises
            ``NobodyAccepted``. ``"restart"``: the race runs again from its start, with the
            contestants that have not failed.

    Raises:
        DefinitionError: ``when`` is no plain function, or ``on_break`` neither of the two.

    Examples:
        >>> import anyio
        >>> @action(writes=["story"])
        ... async def tell(model: str, seconds: float):
        ...     await anyio.sleep(seconds)
        ...     yield "Once"
        ...     await anyio.sleep(0.01)
        ...     yield "upon a time"
        ...     yield Result(f"a story by {model}")
        >>> slow = tell.bind(name="slow", model="large-7", seconds=3600.0)
        >>> quick = tell.bind(name="quick", model="small-1", seconds=0.0)
        >>> story = race(slow, quick, into="story", until=first_item())
        >>> Application(story).run_sync().state["story"]
        'a story by small-1'
    """
    return FirstItem(when, on_break)


def as_condition(subject: str, until: object) -> EndCondition:
    """Check a user's ``until=``; return the condition, which is made of a function if it is one.

    Raises:
        DefinitionError: It is invalid; the message names ``subject``, the act.
    """
    if isinstance(until, EndCondition):
        return until
    for makes in (all_, first, quorum, first_item):
        if until is makes:
            name = makes.__name__
            msg = f"{subject}: until= takes the result of {name}(...); call it: until={name}()"
            raise DefinitionError(msg)
    if not callable(until):
        msg = (
            f"{subject}: until= takes all_(), first(n), quorum(n), first_item() or a function "
            f"(state, outcome) -> bool, not {brief(until)}"
        )
        raise DefinitionError(msg)
    require_plain(until, f"{subject}: until=")
    return ByFunction(cast("Asked", until))


def _check_count(what: str, n: object) -> None:
    if type(n) is not int or n < 1:
        msg = f"{what}(n) takes a whole number of at least 1, not {brief(n)}"
        raise DefinitionError(msg)


def _check_function(what: str, function: object) -> None:
    if function is not None:
        require_plain(function, what)
