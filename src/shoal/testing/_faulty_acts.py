"""Calls of functions in a simulation: some go wrong, and each is watched.

Invariants:
- A fault is around the call of one attempt, inside of its limits and of its timeout: where a
  service that fails is met. So retries, timeouts, breakers and hedges do what they do then.
- No function begins once its process is dead.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, cast, final

import anyio

from shoal._concurrency.cancellation import cancelled, is_cancellation
from shoal._concurrency.watchdog import is_relay
from shoal._engine.run import Run
from shoal._events.identity import RunPath
from shoal._graph.action import FunctionAction
from shoal._limits.limits import Limits
from shoal._limits.retry import Retry
from shoal._state.state import Change
from shoal.testing._faults import ACTION, Passes
from shoal.testing._violation import Violation


class InjectedFault(ConnectionError):
    """The exception of a fault that `simulate` has injected.

    If the action has a ``Retry`` for certain exceptions, it is one of those as well.
    """


@final
class FaultyActs:
    """Makes the calls of functions in one life, and knows what was called."""

    def __init__(
        self,
        passes: Passes,
        raises: Mapping[str, Callable[[], Exception]],
        limits: Limits | None,
        done: frozenset[str],
    ) -> None:
        """Have called nothing yet.

        Args:
            passes: What goes wrong.
            raises: Makes the exceptions that injected faults raise, by names of actions.
            limits: The limits of the application.
            done: The ids of runs that must not be executed any more.
        """
        self._passes = passes
        self._raises = raises
        self._limits = limits
        self._done = done
        self._at_work: Counter[object] = Counter()
        self.called: Counter[str] = Counter()
        """How often each action was called."""
        self.again: list[tuple[RunPath, str]] = []
        """Calls in runs that must not be executed any more, unless they have begun afresh."""
        self.violations: list[Violation] = []

    async def call(
        self, run: Run, action: FunctionAction[..., object], call: Callable[[], Awaitable[Change]]
    ) -> Change:
        """Make one call; see ``Injection.call``."""
        passes = self._passes
        if passes.has_died:
            raise self._error(action, "its process is dead")
        self.called[action.name] += 1
        if run.path.id in self._done:
            self.again.append((run.path, action.name))
        fault = passes.at(ACTION + action.name)
        what = None if fault is None else fault.what
        if fault is not None and what == "raises":
            raise self._error(action, f"{fault} was injected")
        if what == "hangs":
            await anyio.sleep_forever()
        change = await self._watched(run, action, call)
        if fault is not None and what == "late":
            await anyio.sleep(fault.seconds)
        if fault is not None and what == "loses":
            raise self._error(action, f"{fault} was injected: it has had its effect")
        return change

    async def _watched(
        self, run: Run, action: FunctionAction[..., object], call: Callable[[], Awaitable[Change]]
    ) -> Change:
        counted = self._begin(action)
        throws = _Throws()
        try:
            change = await _driven(cast("Coroutine[Any, Any, Change]", call()), throws)
        finally:
            for one in counted:
                self._at_work[one] -= 1
        if throws.cancelled and cancelled():
            self._note(
                "swallowed cancellation",
                f"action {action.name!r} of {_where(run)} was cancelled, and returned as if it had"
                " not been. HINT: look for an `except BaseException` or a `suppress` that doesn't"
                " let the cancellation through, and for a `return` in a `finally`",
            )
        return change

    def _begin(self, action: FunctionAction[..., object]) -> list[object]:
        """Count a call at the limits that it is under; return those."""
        if action.takes_context:  # it holds no slot while it waits for children of its own
            return []
        counted: list[object] = []
        for limits in (action.limits, self._limits):
            for part in () if limits is None else limits.parts:
                if part.n is None or part.by is not None or part.adapt is not None:
                    continue
                if part.origin in counted:  # one limit at two places
                    continue
                counted.append(part.origin)
                self._at_work[part.origin] += 1
                if self._at_work[part.origin] > part.n:
                    self._note(
                        "limit exceeded",
                        f"{self._at_work[part.origin]} calls were at work at once under {part!r}, "
                        f"when action {action.name!r} was called",
                    )
        return counted

    def _note(self, kind: str, message: str) -> None:
        self.violations.append(Violation(kind, message))

    def _error(self, action: FunctionAction[..., object], why: str) -> Exception:
        msg = f"action {action.name!r}: {why}"
        make = self._raises.get(action.name)
        if make is not None:
            error = make()
            error.__cause__ = InjectedFault(msg)
            return error
        return _error_for(action.retry, msg)


def _error_for(retry: Retry | None, msg: str) -> Exception:
    """Return an injected fault that is retried, if anything is."""
    kinds: object = None if retry is None else retry.on
    for kind in cast("tuple[object, ...]", kinds) if isinstance(kinds, tuple) else (kinds,):
        if isinstance(kind, type) and issubclass(kind, Exception):
            if issubclass(InjectedFault, kind):
                break
            try:
                made = type(f"Injected{kind.__name__}", (InjectedFault, kind), {})
                return cast("Exception", made(msg))
            except TypeError:  # its memory layout, or its arguments, are others
                continue
    return InjectedFault(msg)


def _where(run: Run) -> str:
    path = run.path
    return "the root run" if path.parent is None else f"child {path.key!r} of {path.step!r}"


@final
class _Throws:
    """What was thrown into a coroutine."""

    __slots__ = ("cancelled",)

    def __init__(self) -> None:
        self.cancelled = False


@is_relay
@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, Change], throws: _Throws) -> Generator[Any, Any, Change]:
    """Await ``coroutine``, and note whether it was cancelled."""
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    try:
        while True:
            try:
                trap = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                argument = None  # breaks the traceback cycle
            try:
                argument, step = (yield trap), coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 # the coroutine handles it
                throws.cancelled = throws.cancelled or is_cancellation(error)
                argument, step = error, coroutine.throw
    finally:
        del step  # it refers to the coroutine, whose frame may refer here
