"""`simulated`: a test function that `simulate` calls with each run.

It needs no plugin of pytest's, and does not import pytest: what it returns is a function with the
test's fixtures as its parameters, which any runner can call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Literal

from shoal._errors.exceptions import BadUse
from shoal._events.events import Question
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal._state.state import State
from shoal.testing._simulate import simulate


def simulated(
    app: Application[Any] | Callable[[], Application[Any]],
    state: Mapping[str, Any] | object | None = None,
    *,
    changed: Application[Any] | Callable[[], Application[Any]] | None = None,
    inputs: Mapping[str, object] | Callable[[], Mapping[str, object]] | None = None,
    answers: Mapping[str, object] | Callable[[Question], object] | None = None,
    same: Callable[[State[Any]], object] | bool | None = None,
    seeds: int | range = 100,
    seconds: float | None = None,
    faults: Collection[str] | None = None,
    raises: Mapping[str, Callable[[], Exception]] | None = None,
    durable: bool | None = None,
    debug: bool = True,
    runtime: Callable[[], Runtime] | None = None,
    backends: Collection[Literal["asyncio", "trio"]] | None = None,
    replay: str | None = None,
) -> Callable[[Callable[..., object]], Callable[..., None]]:
    """Make a test of a function that checks a run: it is called with each run of a simulation.

    The function's first parameter gets a `SimulatedRun`; further ones are fixtures of the test
    runner's. All arguments are those of `simulate`. The table of what was tried is printed, and
    pytest shows it with ``-rP``.

    >>> @action(reads=["n"], writes=["double"])
    ... async def double(n: int) -> int:
    ...     return 2 * n
    >>> @simulated(Application(double), {"n": 21}, seeds=10)
    ... def test_double(run: SimulatedRun) -> None:
    ...     assert run.state["double"] == 42
    >>> test_double()  # doctest: +ELLIPSIS
    simulated 'double': 12 runs ...

    Raises:
        BadUse: The function takes no run.
    """

    def test_of(check: Callable[..., object]) -> Callable[..., None]:
        signature = inspect.signature(check)
        _, *fixtures = [*signature.parameters.values()] or [None]
        if not signature.parameters:
            msg = f"simulated() calls {check.__qualname__} with a SimulatedRun, and it takes none"
            raise BadUse(msg)

        def test(**given: object) -> None:
            __tracebackhide__ = True
            tried = simulate(
                app,
                state,
                changed=changed,
                inputs=inputs,
                answers=answers,
                check=partial(check, **given),
                same=same,
                seeds=seeds,
                seconds=seconds,
                faults=faults,
                raises=raises,
                durable=durable,
                debug=debug,
                runtime=runtime,
                backends=backends,
                replay=replay,
            )
            print(tried)  # noqa: T201 # for whoever reads what a test has printed

        test.__name__, test.__qualname__ = check.__name__, check.__qualname__
        test.__doc__, test.__module__ = check.__doc__, check.__module__
        vars(test).update(vars(check))  # pytest's marks
        vars(test)["__signature__"] = signature.replace(
            parameters=[one.replace(kind=one.KEYWORD_ONLY) for one in fixtures if one],
            return_annotation=None,
        )
        return test

    return test_of
