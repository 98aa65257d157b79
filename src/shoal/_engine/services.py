"""The services that all runs of a runtime share: its clock, executors, limits, retries.

The runtime makes one ``Services``. Its functions lead to modules above the engine, which the engine
must not import.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, final
from weakref import WeakKeyDictionary

from shoal._concurrency.backend import Clock, Waiter
from shoal._concurrency.background import BackgroundTask, Work
from shoal._concurrency.watchdog import Watchdog
from shoal._graph.action import FunctionAction
from shoal._limits.admission import AdmissionController
from shoal._limits.breaker import Circuits
from shoal._limits.permits import AttemptPermit
from shoal._limits.retry import Account, RetryBudget
from shoal._state.state import Change
from shoal.executors._pools import Pools
from shoal.stores._results import Results

from .injection import Injection


@final
class Retries:
    """The random numbers and budget accounts that all retries of a runtime share."""

    def __init__(self, clock: Callable[[], float], seed: int | None = None) -> None:
        """Start with nothing spent.

        Args:
            clock: The loop's clock.
            seed: Makes delays repeatable, in tests for example.
        """
        self.chance: Callable[[], float] = Random(seed).random  # noqa: S311 # not for secrets
        """Returns a random number from 0 to below 1."""
        self._clock = clock
        # Weak, since programs may make budgets dynamically. By identity: budgets that are equal
        # are not the same; see test_budgets_that_are_equal_are_not_the_same.
        self._accounts: WeakKeyDictionary[RetryBudget, Account] = WeakKeyDictionary()

    def account(self, budget: RetryBudget) -> Account:
        """Return the account of a budget; it is opened on first use."""
        account = self._accounts.get(budget)
        if account is None:
            account = self._accounts[budget] = Account(budget, self._clock())
        return account

    @property
    def accounts(self) -> Mapping[RetryBudget, Account]:
        """The accounts that are open."""
        return self._accounts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The services that all runs of a runtime share."""

    # The runtime sets all of these before its first run and never replaces one, so that runs may
    # keep what they have read here. What is mutable is inside of them.
    clock: Clock
    waiter: Callable[[], Waiter]
    """Returns a new waiter, an event for one task."""
    next_turn: Callable[[Callable[[], None]], object] | None
    """Makes the event loop call a function in its next turn; None on trio."""
    pools: Pools
    """The executors that are open."""
    # Names code that outlives its cancellation by the grace, and does no more than that.
    watchdog: Watchdog
    retries: Retries
    admission: AdmissionController
    host: Callable[[Work, Callable[[str], None]], BackgroundTask]
    """Starts work in a task of the runtime. The second function receives why it is cancelled."""
    # `Any` in these four stands for classes of modules above, which can't be imported here.
    call: Callable[[Any, FunctionAction[..., Any]], Awaitable[Change]]
    """Executes a function action as the current step of a run."""
    enter: Callable[[Any, Any], Awaitable[Change]]
    """Executes a graph that is a node of the graph of a run."""
    fan_out: Callable[[Any, Any], Awaitable[Change]]
    """Executes an act of a run whose work is children."""
    context: Callable[[Any, FunctionAction[..., Any], AttemptPermit | None, Any, bool], Any]
    """Returns the ``context`` of an attempt, for a run, its action, its permit and its items, and
    whether the action is called elsewhere than on the event loop."""
    # Looked up per task and not once: the count belongs to the task that calls it. 0 on trio, which
    # has no native cancels.
    native_cancels: Callable[[], Callable[[], int]]
    """Called in a task, returns a function that counts the native cancels pending on that task."""
    commit_deadline: float
    """Seconds that the store has to acknowledge a save, or to answer a question."""
    max_crashes: int
    """Executions in a row that may die while a child is at work."""
    debug: bool
    """Whether each step is checked for values of the state that it has changed in place."""
    # Belongs to the runtime, so what it has is shared by its runs and gone with it; see
    # test_where_children_have_no_store_the_runtime_remembers.
    results: Results
    """The result cache of runs whose store has none."""
    injection: Injection | None = None
    """What a simulation puts between runs and the program; None outside of one."""
    # All are weak: a runtime may outlive definitions that are made dynamically. See
    # test_actions_made_dynamically_leave_nothing_in_a_long_lived_runtime.
    hedge_statistics: WeakKeyDictionary[object, Any] = field(default_factory=WeakKeyDictionary)
    """Statistics for hedged requests, by the definition of the race."""
    child_hedges: WeakKeyDictionary[object, dict[str, Any]] = field(
        default_factory=WeakKeyDictionary
    )
    """The same for the children of maps, by the definitions and names of their fan-outs."""
    circuits: WeakKeyDictionary[object, dict[str, Circuits]] = field(
        default_factory=WeakKeyDictionary
    )
    """Circuit breakers of fan-outs, by their definitions and names."""
