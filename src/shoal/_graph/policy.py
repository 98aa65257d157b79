"""What a user asks of a fan-out, as values. Imports errors and retries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Literal, final

from shoal._errors.arguments import is_number, is_positive
from shoal._errors.exceptions import DefinitionError
from shoal._limits.breaker import Breaker
from shoal._limits.retry import Retry


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerate:
    """Failures that a fan-out puts up with: as ``on_error="collect"``, until there are too many.

    The failure that is too many ends the step as under ``on_error="fail"``: the other children are
    cancelled and awaited, and all failures so far are raised as one ``ExceptionGroup``.

    Args:
        count: So many failures are tolerated, one more is not.
        share: Or this share of the children that have ended, from 0 to 1...
        after: ...judged once so many have ended, and at the end.

    Raises:
        DefinitionError: Both or neither of ``count`` and ``share``, or one of them out of range.

    Examples:
        >>> Tolerate(count=3)
        Tolerate(count=3)
        >>> Tolerate(share=0.1, after=20)
        Tolerate(share=0.1, after=20)
    """

    count: int | None = None
    share: float | None = None
    after: int = 0

    def __post_init__(self) -> None:
        """Refuse what can't be judged."""
        if (self.count is None) == (self.share is None):
            msg = "Tolerate takes either count= or share=: Tolerate(count=3), Tolerate(share=0.1)"
            raise DefinitionError(msg)
        count = 0 if self.count is None else self.count
        for name, value in (("count", count), ("after", self.after)):
            if type(value) is not int or value < 0:
                msg = f"Tolerate({name}=...) takes a whole number of at least 0, not {value!r}"
                raise DefinitionError(msg)
        if self.share is None:
            if self.after:
                msg = "Tolerate(after=...) belongs to share=; count= is judged from the first child"
                raise DefinitionError(msg)
        elif type(self.share) not in (int, float) or not 0 <= self.share < 1:
            msg = f"Tolerate(share=...) takes a number from 0 up to, but not, 1, not {self.share!r}"
            raise DefinitionError(msg)

    def is_exceeded(self, failed: int, ended: int, *, at_end: bool = False) -> bool:
        """Tell whether ``failed`` of ``ended`` children are too many."""
        if self.count is not None:
            return failed > self.count
        assert self.share is not None
        return (at_end or ended >= self.after) and failed > self.share * ended

    def __repr__(self) -> str:
        if self.count is not None:
            return f"Tolerate(count={self.count})"
        after = f", after={self.after}" if self.after else ""
        return f"Tolerate(share={self.share}{after})"


@final
class Inherit(Enum):
    """What a fan-out's children have of their parent."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    INHERIT = "inherit"

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT = Inherit.INHERIT
"""The same as the parent: the store that keeps it, the hooks that are told of it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """What goes for each child of a fan-out by itself: ``fan_out(..., each=Each(...))``.

    Args:
        timeout: Seconds from the start of a child's first attempt to its end, whatever it waits for
            in between: its further attempts, slots, its own children. Then it is cancelled, awaited
            to the end of its cleanup, and fails with ``StepTimeout``, also where an action of its
            has swallowed the cancellation.
        retry: What of a child's failures is tried again. The child goes on at the step that failed;
            steps that it has completed, and results that were applied to its state, stay.
        breaker: Skips children for a while whose key keeps failing.

    Raises:
        DefinitionError: None of them, or one of them is no such thing.

    Examples:
        >>> asked = []
        >>> @action(reads=["n"], writes=["answer"])
        ... async def ask(n: int) -> int:
        ...     asked.append(n)
        ...     if asked.count(n) < n:
        ...         raise ConnectionError(n)
        ...     return asked.count(n)
        >>> each = Each(timeout=60, retry=Retry(3, on=ConnectionError, initial=0.01))
        >>> asking = fan_out(ask, over="ns", item="n", into="answers", each=each)
        >>> Application(asking).run_sync({"ns": [1, 2, 3]}).state["answers"]
        [1, 2, 3]
    """

    timeout: float | None = None
    retry: Retry | None = None
    breaker: Breaker | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.timeout is None and self.retry is None and self.breaker is None:
            msg = "Each() says nothing; give it timeout=..., retry=... or breaker=..."
            raise DefinitionError(msg)
        check_timeout("Each(timeout=...)", self.timeout)
        if self.retry is not None and not isinstance(self.retry, Retry):
            msg = f"Each(retry=...) takes Retry(...), not {self.retry!r}"
            raise DefinitionError(msg)
        if self.breaker is not None and not isinstance(self.breaker, Breaker):
            msg = f"Each(breaker=...) takes Breaker(...), not {self.breaker!r}"
            raise DefinitionError(msg)


def check_timeout(what: str, timeout: object) -> None:
    """Refuse what is no timeout; None is: there is none.

    Raises:
        DefinitionError: Naming ``what`` it was given as.
    """
    if timeout is not None and not is_positive(timeout):
        msg = f"{what} takes a number of seconds above 0, not {timeout!r}"
        raise DefinitionError(msg)


OnError = Literal["fail", "collect", "ignore"] | Tolerate
"""What the failure of a child does to its fan-out."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """When a race starts more children than it needs: as soon as those that run are slow.

    As many children start at once as are needed, mostly one. The next starts when that has taken
    longer than most do, by the latencies that races of the same definition had in the same runtime.
    Such a start is an extra one, and the budget says which share of all starts may be extra: if
    everything is slow, the load grows by that share, and no more. Without a budget left, a race
    goes on with the children it has, and waits for its turn.

    A child that fails or is refused is replaced at once. That is no extra start, and needs no
    budget, as long as too few children are in flight to decide the race: so a hedged race falls
    back on its next child as ``stagger=math.inf`` would. To bound the load of an outage, in which
    every child fails, give the children a ``Breaker``.

    To hedge an act, let it race against itself: ``race(ask, ask.bind(name="again"), into="answer",
    stagger=Hedge())``; to hedge each child of a map, run such a race over its elements. What is
    hedged runs twice now and then: that must do no harm.

    Args:
        percentile: How slow a child must be: slower than so many of a hundred. Of the last 1,000
            latencies; losers that were slow count as well, with the time they had when they lost.
        budget: The share of the needed starts that may be extra ones, in the long run. What was
            left of it for the last 1,000 needed starts may be used up at once; one is granted in
            advance.
        initial: Seconds after which the next starts as long as fewer than 20 latencies are known;
            by default endless: it only starts when one fails.

    Raises:
        DefinitionError: One of them is out of range.

    Examples:
        >>> Hedge(percentile=90, budget=0.15, initial=0.5)
        Hedge(percentile=90, budget=0.15, initial=0.5)
    """

    percentile: float = 95
    budget: float = 0.1
    initial: float = inf

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        for name, least, most, what in (
            ("percentile", 0, 100, "a number between 0 and 100"),
            ("budget", 0, 1 + 1e-9, "the share of extra starts, above 0 and up to 1"),
        ):
            value: object = getattr(self, name)
            if not is_number(value) or not least < value < most:
                msg = f"Hedge({name}=...) takes {what}, not {value!r}"
                raise DefinitionError(msg)
        if not is_number(self.initial) or not self.initial >= 0:
            msg = f"Hedge(initial=...) takes seconds, not {self.initial!r}"
            raise DefinitionError(msg)


Stagger = float | Hedge
"""When the next child of a fan-out starts: seconds after the one before, or as a hedge."""
