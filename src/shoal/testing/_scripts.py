"""Actions with scripted outcomes, and actions that fail now and then."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import anyio

from shoal._graph.action import FunctionAction
from shoal._limits.limits import Limits
from shoal._limits.retry import Retry
from shoal._state.state import State


@final
class _Hangs:
    """The outcome of a call that never ends by itself."""

    def __repr__(self) -> str:
        return "HANGS"


HANGS = _Hangs()
"""In a `Script`: the call never ends by itself; it ends when it is cancelled."""


@final
@dataclass(frozen=True, slots=True)
class After:
    """In a `Script`: an outcome that comes after some seconds."""

    seconds: float
    outcome: object


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCall:
    """One call of a scripted action.

    Attributes:
        fields: what the action read.
        began_at: when it was called, by the loop's clock.
        end: "running", "returned", "raised" or "cancelled".
    """

    fields: Mapping[str, Any]
    began_at: float
    _ends: list[str] = field(default_factory=lambda: ["running"], repr=False)

    @property
    def end(self) -> str:
        """How it has ended, or that it runs."""
        return self._ends[-1]


@final
class Script:
    """The outcomes of an action, call by call, and what it was called with.

    An outcome is a value to return; an exception, or a class of one, to raise; ``After(seconds,
    outcome)``; `HANGS`; or a function of the fields that returns an outcome. With ``by=``, each key
    has the whole script for itself, so that the order of children doesn't matter. The last outcome
    is repeated.

    >>> model = Script(ConnectionError("busy"), After(2, "yes"))
    >>> busy = Retry(3, on=ConnectionError)
    >>> ask = model.action("ask", reads=["question"], writes=["answer"], retry=busy)
    >>> app = Application(ask)
    >>> async def main() -> float:
    ...     assert (await app.run({"question": "?"})).state["answer"] == "yes"
    ...     return anyio.current_time()
    >>> run_virtual(main) > 2
    True
    >>> print(*[call.end for call in model.calls])
    raised returned
    """

    def __init__(
        self, *outcomes: object, by: Callable[[Mapping[str, Any]], Hashable] | None = None
    ) -> None:
        """Write the script.

        Args:
            *outcomes: The outcomes, in the order of calls.
            by: Returns the key of a call, given the fields that the action reads.

        Raises:
            ValueError: There is no outcome.
        """
        if not outcomes:
            msg = "a script has at least one outcome: Script('yes')"
            raise ValueError(msg)
        self._outcomes = outcomes
        self._by = by
        self._counts = Counter[Hashable]()
        self.calls: list[ScriptedCall] = []
        """All calls, in order."""

    @property
    def running(self) -> int:
        """How many calls have not ended."""
        return sum(call.end == "running" for call in self.calls)

    def action(
        self,
        name: str,
        *,
        reads: Collection[str] = (),
        writes: Collection[str] = (),
        limits: Limits | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
        version: str = "1",
    ) -> FunctionAction[[State], Any]:
        """Return an action that follows the script. Its options are those of ``@action``.

        Actions of one script share it.
        """
        written = list(writes)

        async def follow(state: State) -> State:
            value = await self._next({field: state[field] for field in reads})
            if len(written) == 1:
                return state.update({written[0]: value})
            return state.update(value) if written else state

        return FunctionAction(
            follow,
            reads=frozenset(reads),
            writes=frozenset(writes),
            name=name,
            limits=limits,
            timeout=timeout,
            retry=retry,
            version=version,
        )

    async def _next(self, fields: Mapping[str, Any]) -> Any:
        key = None if self._by is None else self._by(fields)
        number = self._counts[key]
        self._counts[key] += 1
        call = ScriptedCall(fields=fields, began_at=anyio.current_time())
        self.calls.append(call)
        end = "cancelled"
        try:
            await anyio.lowlevel.checkpoint()
            outcome: Any = self._outcomes[min(number, len(self._outcomes) - 1)]
            while True:
                if isinstance(outcome, After):
                    await anyio.sleep(outcome.seconds)
                    outcome = outcome.outcome
                elif outcome is HANGS:
                    await anyio.sleep_forever()
                elif isinstance(outcome, BaseException) or (
                    isinstance(outcome, type) and issubclass(outcome, BaseException)
                ):
                    end = "raised"
                    raise outcome
                elif callable(outcome):  # pyright: ignore[reportUnknownArgumentType] # anything
                    outcome = outcome(fields)
                else:
                    end = "returned"
                    return outcome
        finally:
            call._ends.append(end)


def flaky(
    act: FunctionAction[..., Any],
    *,
    fails: int = 1,
    error: Exception | type[Exception] = ConnectionError,
    when: Literal["before", "after"] = "before",
    by: Callable[[Mapping[str, Any]], Hashable] | None = None,
) -> FunctionAction[..., Any]:
    """Return an action that fails in its first calls, and otherwise is the given one.

    ``when="before"`` fails instead of the call. ``when="after"`` fails after it: the call has had
    its effects, and its result is lost. So a retry that is not idempotent is found.

    >>> @action(reads=["order"], writes=["receipt"], retry=Retry(2, on=ConnectionError))
    ... async def charge(order: int) -> str:
    ...     charged.append(order)
    ...     return f"receipt {order}"
    >>> charged = []
    >>> app = Application(flaky(charge, when="after"))
    >>> run_virtual(lambda: app.run({"order": 7})).state["receipt"]
    'receipt 7'
    >>> charged
    [7, 7]

    Args:
        act: An action whose function is ``async def``.
        fails: How many calls fail, for each key.
        error: What they fail with.
        when: Whether the function is called before.
        by: Returns the key of a call, given the function's arguments; by default all calls have
            one.

    Raises:
        TypeError: The function of ``act`` is not ``async def``.
    """
    if not act.is_async:
        msg = f"flaky() takes an action whose function is async def, and {act.name!r} is not"
        raise TypeError(msg)
    counts = Counter[Hashable]()
    function: Any = act.function

    @functools.wraps(function)
    async def call(**given: Any) -> Any:
        key = None if by is None else by(given)
        counts[key] += 1
        if counts[key] > fails:
            return await function(**given)
        if when == "after":
            await function(**given)
        raise error

    made: FunctionAction[..., Any] = FunctionAction(
        call,
        reads=frozenset(act.reads),
        writes=frozenset(act.writes),
        name=act.name,
        version=act.version,
        executor=act.executor,
        limits=act.limits,
        timeout=act.timeout,
        retry=act.retry,
        abandon=act.abandon,
        cache=act.cache,
    )
    inputs: dict[str, Any] = dict(act.bound_inputs)
    return made.bind(**inputs) if inputs else made
