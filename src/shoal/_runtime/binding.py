"""The services of an open runtime: made, and bound to what the engine knows no name of.

Invariants:
- The engine's lower modules call its upper ones (an action that starts a fan-out, a graph that is
  a node) only by what is bound here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

from anyio import CancelScope

from shoal._concurrency.backend import Backend
from shoal._concurrency.background import BackgroundTask, Work
from shoal._concurrency.watchdog import Watchdog
from shoal._engine.call import call_action
from shoal._engine.fanout.context import Context
from shoal._engine.fanout.step import fan_out
from shoal._engine.fanout.subgraph import enter
from shoal._engine.injection import INJECTION
from shoal._engine.permits import fields_around
from shoal._engine.publish import publish_grace_exceeded
from shoal._engine.services import Retries, Services
from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError
from shoal._limits.admission import AdmissionController
from shoal._limits.limits import Limits
from shoal.executors._pools import Pools
from shoal.executors._port import PoolHost
from shoal.stores._protocol import check_store
from shoal.stores._results import SIZE, Results

from .tasks import RuntimeTasks

logger = logging.getLogger("shoal")

DEBUG = "SHOAL_DEBUG"
"""The environment variable that is the default of ``Runtime(debug=)``. It is read when a runtime is
opened, so that a program which sets it itself is heard."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """The numbers that a runtime was given."""

    threads: int
    commit_deadline: float
    grace: float
    max_crashes: int
    seed: int | None
    debug: bool | None
    max_runs: int | None = None
    waiting: int | None = None

    def check(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            DefinitionError: The message says what the option takes.
        """
        for name in ("commit_deadline", "grace"):
            seconds = getattr(self, name)
            if not is_positive(seconds):
                msg = f"Runtime({name}=...) takes a number of seconds above 0, not {seconds!r}"
                raise DefinitionError(msg)
        for name in ("threads", "max_crashes"):
            count = getattr(self, name)
            if type(count) is not int or count < 1:
                msg = f"Runtime({name}=...) takes a whole number, at least 1, not {count!r}"
                raise DefinitionError(msg)
        for name, least in (("max_runs", 1), ("waiting", 0)):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < least):
                msg = (
                    f"Runtime({name}=...) takes a whole number, at least {least}, or None, not "
                    f"{count!r}"
                )
                raise DefinitionError(msg)
        if self.waiting is not None and self.max_runs is None:
            msg = (
                f"Runtime(waiting={self.waiting}) says how many runs wait for their turn, and "
                f"without max_runs= none waits: Runtime(max_runs=..., waiting={self.waiting})"
            )
            raise DefinitionError(msg)
        if self.debug not in (None, True, False):
            msg = f"Runtime(debug=...) takes True, False or None, not {self.debug!r}"
            raise DefinitionError(msg)


def check_given(inputs: object, limits: object, store: object, watch: object) -> None:
    """Refuse other options of a runtime that have a wrong type.

    Raises:
        DefinitionError: The message says what the option takes.
    """
    if inputs is not None and not isinstance(inputs, Mapping):
        msg = f"Runtime(inputs=...) takes a mapping of names to values, not {inputs!r}"
        raise DefinitionError(msg)
    if limits is not None and not isinstance(limits, Limits):
        msg = f"Runtime(limits=...) takes Limits(n), not {limits!r}"
        raise DefinitionError(msg)
    if store is not None:
        check_store(store, "Runtime(store=...)")
    if watch not in (None, True, False):
        msg = f"Runtime(watch=...) takes True, False or None, not {watch!r}"
        raise DefinitionError(msg)


def bind_services(
    backend: Backend,
    tasks: RuntimeTasks,
    host: Callable[[Work, Callable[[str], None]], BackgroundTask],
    options: RuntimeOptions,
) -> Services:
    """Make the services of a runtime that is being opened.

    Args:
        backend: The loop that it is opened in.
        tasks: Its tasks.
        host: Starts work in a task of the runtime's; the second function is told why it is
            cancelled.
        options: Its numbers.
    """
    # asyncio's loop calls a function at a time; on trio, a task of the runtime's waits for it.
    alarm = backend.alarm or tasks.alarm
    injection = INJECTION.get()
    seed, debug = options.seed, options.debug
    if injection is not None:
        seed = injection.seed if seed is None else seed
        debug = injection.debug if debug is None else debug
    retries = Retries(backend.clock, seed)
    admission = AdmissionController(
        backend.waiter,
        backend.clock,
        alarm,
        tasks.start_own,
        retries.chance,
        # An aiolimiter waits on asyncio's timers.
        takes_foreign=backend.alarm is not None,
        fields_around=fields_around,
    )
    pool_host = PoolHost(
        backend=backend,
        grace=options.grace,
        threads=options.threads,
        set_alarm=alarm,
        start_task=partial(_start_task_of_pool, tasks),
        serve=admission.scheduler.serve,
    )
    return Services(
        clock=backend.clock,
        waiter=backend.waiter,
        next_turn=backend.next_turn,
        pools=Pools(pool_host),
        watchdog=Watchdog(
            backend.clock, options.grace, alarm, tasks.start_own, publish_grace_exceeded
        ),
        retries=retries,
        native_cancels=backend.native_cancels,
        commit_deadline=options.commit_deadline,
        max_crashes=options.max_crashes,
        debug=_is_set(DEBUG) if debug is None else debug,
        injection=injection,
        results=Results(backend.clock, SIZE),
        admission=admission,
        host=host,
        call=call_action,
        enter=enter,
        fan_out=fan_out,
        context=Context,
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _start_task_of_pool(tasks: RuntimeTasks, work: Work) -> None:
    """Start a task of a pool: only the pool ends it, and it never ends the runtime."""

    async def run() -> None:
        try:
            with CancelScope(shield=True):
                await work()
        except Exception:
            logger.exception("a task of an executor failed")

    tasks.start_own(run)
