"""The port of simulations: what stands between an execution and the program and store it meets.

A runtime that is opened while ``INJECTION`` is set executes all of its runs with it. Nothing else
sets it than ``shoal.testing.simulate``, so that whatever opens a runtime, and however, is simulated
as it is. Without it, each call costs one look at an attribute.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

from shoal._events.hooks import Hook
from shoal._graph.action import FunctionAction
from shoal._state.state import Change
from shoal.stores._protocol import Store


class Injection(Protocol):
    """Calls functions, and gives stores and hooks, in place of the program's own."""

    @property
    def seed(self) -> int | None:
        """Makes the delays of retries repeatable in a runtime that was given no seed."""
        ...

    @property
    def debug(self) -> bool:
        """Whether values that a step changes in place are looked for by default."""
        ...

    # `Any` is the class `Run`, which is of a module above.
    def call(
        self, run: Any, action: FunctionAction[..., object], call: Callable[[], Awaitable[Change]]
    ) -> Awaitable[Change]:
        """Make one call of a function: of one attempt, behind its limits and within its timeout.

        Args:
            run: The run.
            action: The action.
            call: Calls the function, checks its result and returns the change that it is.
        """
        ...

    def store(self, given: Store) -> Store:
        """Return the store that is used in place of ``given``: always the same for the same."""
        ...

    def hooks(self) -> Sequence[Hook]:
        """Return hooks that receive the events of all runs, after those of the program."""
        ...


INJECTION: ContextVar[Injection | None] = ContextVar("shoal_injection", default=None)
"""What the runtimes that are opened in this context execute their runs with."""
