"""Policies of fan-outs: immutable values that users write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from enum import Enum
from math import inf
from typing import Literal, final

from shoal._errors.arguments import is_number, is_positive
from shoal._errors.completion import hides
from shoal._errors.exceptions import DefinitionError
from shoal._errors.misplaced import says_where
from shoal._limits.breaker import Breaker
from shoal._limits.retry import Retry
from shoal._state.digest import ADDED
from shoal._state.state import State


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerate:
    """Collects failures of children like ``on_error="collect"``, until there are too many.

    The first failure that is too many ends the step like ``on_error="fail"``: the other children
    are cancelled and awaited, and all failures so far are raised as one ``ExceptionGroup``.

    Args:
        count: The number of failures that are tolerated.
        share: Or the tolerated share of the children that have ended, from 0 up to, but not, 1...
        after: ...which is judged once this many have ended, and at the end.

    Raises:
        DefinitionError: Both or neither of ``count`` and ``share`` are given, or one of the
            arguments is out of range.

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
        """Return whether ``failed`` of ``ended`` children are too many."""
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
    """The type of ``INHERIT``, its only member."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    INHERIT = "inherit"

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT = Inherit.INHERIT
"""As ``store=`` or ``hooks=``: the children have the same as their parent."""


@says_where
@final
@hides("has_timeout")
@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """Policies for each child of a fan-out by itself: ``fan_out(..., each=Each(...))``.

    Args:
        timeout: Seconds from the start of a child's first attempt to its end, waits for further
            attempts, slots and its own children included. Then the child is cancelled, its cleanup
            is awaited, and it fails with ``StepTimeout``, even if an action swallows the
            cancellation. The error says how much of the time was waiting, and for what. An attempt
            that can't begin in time, by the next turn of its rate, the pause of its key or its own
            delay, is not waited for: the child fails at once. A child that goes on in a resumed
            run has the whole time again.
        work_timeout: Seconds in which the child is at work, in all its attempts together. Waits for
            limits, for workers and for the next attempt don't count. While a step of it fans out,
            the child is at work as long as at least one of its own children is. ``StepTimeout``
            ends it as above.
        retry: Which failures of a child are tried again. The child continues at the step that
            failed; steps that it has completed, and results that were applied to its state, stay.
        breaker: Skips children, for a while, whose key keeps failing.
        hedge: Makes a second attempt at the step at which a child is late; see ``Hedge``.

    Raises:
        DefinitionError: No argument is given, or one has the wrong type or is out of range.

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
    work_timeout: float | None = field(default=None, metadata=ADDED)
    hedge: Hedge | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        others = self.retry, self.breaker, self.hedge
        if not self.has_timeout and all(one is None for one in others):
            msg = (
                "Each() has no effect; give it timeout=..., work_timeout=..., retry=..., "
                "breaker=... or hedge=..."
            )
            raise DefinitionError(msg)
        check_timeout("Each(timeout=...)", self.timeout)
        check_timeout("Each(work_timeout=...)", self.work_timeout)
        if self.retry is not None and not isinstance(self.retry, Retry):
            msg = f"Each(retry=...) takes Retry(...), not {self.retry!r}"
            raise DefinitionError(msg)
        if self.breaker is not None and not isinstance(self.breaker, Breaker):
            msg = f"Each(breaker=...) takes Breaker(...), not {self.breaker!r}"
            raise DefinitionError(msg)
        if self.hedge is not None and not isinstance(self.hedge, Hedge):
            msg = f"Each(hedge=...) takes Hedge(...), not {self.hedge!r}"
            raise DefinitionError(msg)

    @property
    def has_timeout(self) -> bool:
        """Whether the time of a child is bounded."""
        return self.timeout is not None or self.work_timeout is not None

    def __repr__(self) -> str:
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        given = (f"{name}={value!r}" for name, value in values.items() if value is not None)
        return f"Each({', '.join(given)})"


def check_timeout(what: str, timeout: object) -> None:
    """Check a user's timeout, given as ``what``; None means no timeout.

    Raises:
        DefinitionError: It is no number above 0.
    """
    if timeout is not None and not is_positive(timeout):
        msg = f"{what} takes a number of seconds above 0, not {timeout!r}"
        raise DefinitionError(msg)


OnError = Literal["fail", "collect", "ignore"] | Tolerate
"""How a fan-out reacts to the failure of a child."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """Hedged requests: a race or a map starts another attempt when those that run are slow.

    What is slow is learned from the latencies of the same definition in the same runtime. Each
    such start is an extra one. The budget bounds the share of extra starts: if everything is slow,
    the load grows by that share and no more. When the budget is spent, a race or an attempt waits
    for its turn.

    **In a race**, ``stagger=Hedge(...)``: at first a race starts as many children as it needs,
    usually one. The next child starts when these have taken longer than most do.

    A child that fails or is refused is replaced at once. While too few children are in flight to
    decide the race, that is no extra start and needs no budget, so a hedged race falls back on its
    next child like one with ``stagger=math.inf``. To bound the load of an outage, in which every
    child fails, give the children a ``Breaker``.

    To hedge a single act, let it race against itself: ``race(ask, ask.bind(name="again"),
    into="answer", stagger=Hedge())``.

    **In a map**, ``each=Each(hedge=Hedge(...))``: when a child has been at a step for longer than
    most attempts at this step take, a second copy of the attempt starts, from the same state. The
    first success counts. The other one is cancelled, and awaited to the end of its cleanup; one
    outcome is saved. If one of them fails, the other goes on; if both fail, that is one failed
    attempt, with the failure of the first. An attempt has at most one copy. The time starts when
    all limits have admitted the attempt, and a copy needs what a new child needs: a place in
    flight, units of rates, a slot of its action. Until it has them it waits and costs nothing, so
    with one child in flight there are no copies. Each copy is charged by itself. Both have the same
    ``context.idempotency_key``. Nothing about a copy is saved: after a crash there is none.

    Steps that are actions have copies; graphs and fan-outs among them have none, and a fan-out
    takes an ``each=`` of its own. An attempt that has given a partial item, started children or
    asked a question goes on without a copy. If the copy gives the first item, it goes on and the
    attempt is cancelled. A copy that would start children or ask a question is cancelled there.
    A plain function in a thread or a process can't be interrupted at once, so the step waits for
    it, up to the grace; give the action ``abandon=True`` to go on without it.

    A hedged act runs twice now and then, so it must be safe to run twice.

    Args:
        percentile: The percentile of latencies above which a child, or an attempt at a step, is
            slow. It is taken of the last 1,000 latencies. In a race, losers that were slow count
            with the time until they lost; in a map, an attempt whose copy has won counts with the
            time after which it was late.
        budget: The share of extra starts per needed start, in the long run, over all executions of
            the fan-out in a runtime. Unused budget of the last 1,000 needed starts may be spent at
            once. One extra start is granted in advance.
        initial: Seconds after which a child or an attempt is slow while fewer than 20 latencies are
            known; by default infinite: then a race only starts a child when one fails, and a map
            has no copies.

    Raises:
        DefinitionError: An argument is out of range.

    Examples:
        >>> Hedge(percentile=90, budget=0.15, initial=0.5)
        Hedge(percentile=90, budget=0.15, initial=0.5)
    """

    percentile: float = 95
    budget: float = 0.1
    initial: float = inf

    def __post_init__(self) -> None:
        for name, least, most, what in (
            ("percentile", 0, 100, "a number between 0 and 100"),
            ("budget", 0, 1 + 1e-9, "the share of extra starts, above 0 and up to 1"),  # 1 is valid
        ):
            value: object = getattr(self, name)
            if not is_number(value) or not least < value < most:
                msg = f"Hedge({name}=...) takes {what}, not {value!r}"
                raise DefinitionError(msg)
        if not is_number(self.initial) or not self.initial >= 0:
            msg = f"Hedge(initial=...) takes seconds, not {self.initial!r}"
            raise DefinitionError(msg)


Stagger = float | Hedge
"""When the next child of a fan-out starts: in seconds after the one before, or as a hedge."""

Title = str | Callable[[State], str]
"""What watchers call a fan-out, or a function of a child's first state that names the child."""
