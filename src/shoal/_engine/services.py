"""What all runs of a runtime share: its clock, threads, limits, retries. Imports their classes.

The runtime makes the one ``Services`` and binds in it what a run needs of modules above the engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, final
from weakref import WeakKeyDictionary

from shoal._concurrency.backend import Clock, Waiter
from shoal._concurrency.background import BackgroundTask, Work
from shoal._concurrency.watchdog import Watchdog
from shoal._concurrency.worker_threads import Threads
from shoal._graph.action import FunctionAction
from shoal._limits.admission import Admission
from shoal._limits.breaker import Circuits
from shoal._limits.permits import Seat
from shoal._limits.retry import Account, RetryBudget
from shoal._state.state import Change
from shoal.stores._results import Results


@final
class Retries:
    """What all retries of a runtime share: chance, and the accounts of budgets."""

    def __init__(self, clock: Callable[[], float], seed: int | None = None) -> None:
        """Start with nothing spent.

        Args:
            clock: The loop's.
            seed: Makes chance repeatable.
        """
        self.chance: Callable[[], float] = Random(seed).random  # noqa: S311 # not for secrets
        """Makes random numbers from 0 up to, but not, 1."""
        self._clock = clock
        self._accounts: WeakKeyDictionary[RetryBudget, Account] = WeakKeyDictionary()

    def account(self, budget: RetryBudget) -> Account:
        """Find the account of a budget; open it if there is none yet."""
        account = self._accounts.get(budget)
        if account is None:
            account = self._accounts[budget] = Account(budget, self._clock())
        return account


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What all runs of a runtime share."""

    clock: Clock
    waiter: Callable[[], Waiter]
    """Makes a waiter."""
    threads: Threads
    watchdog: Watchdog
    retries: Retries
    admission: Admission
    host: Callable[[Work, Callable[[str], None]], BackgroundTask]
    """Starts work in a task of the runtime's; the second function is told why it is cancelled."""
    call: Callable[[Any, FunctionAction[..., Any]], Awaitable[Change]]
    """Has a run execute a function action."""
    enter: Callable[[Any, Any], Awaitable[Change]]
    """Has a run execute a graph that is a node of its own graph."""
    fan_out: Callable[[Any, Any], Awaitable[Change]]
    """Has a run execute an act whose work is children."""
    context: Callable[[Any, FunctionAction[..., Any], Seat | None, Any], object]
    """Makes what an action's parameter ``context`` gets, of a run, its action, its seat and items.

    The engine knows no ``Context``, for that starts fan-outs.
    """
    native_cancels: Callable[[], Callable[[], int]]
    """Called in a task, gives what counts the native cancellations pending on that task."""
    commit_deadline: float
    """Seconds that the store has to acknowledge a save."""
    max_crashes: int
    """Executions in a row that may die while a child is at work."""
    results: Results
    """What actions have come to in runs whose store doesn't remember it."""
    learned: WeakKeyDictionary[object, Any] = field(default_factory=WeakKeyDictionary)
    """What was learned of a definition, by that definition, for as long as it lives."""
    circuits: WeakKeyDictionary[object, dict[str, Circuits]] = field(
        default_factory=WeakKeyDictionary
    )
    """Of fan-outs with a breaker, by their definitions and names."""
