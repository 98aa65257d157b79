"""Processes of this machine: ``Processes``, which users declare.

Starting and reaching them is in ``_process_transport``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError

from ._port import Executor, Job, PoolHost
from ._process_transport import ProcessTransport, cores
from ._refusals import Refusals, check_workers
from ._remote_pool import RemotePool


@final
class Processes(Executor):
    """Worker processes of this machine, in which plain functions use more than one core.

    Give it as ``executor=`` to an action, a fan-out, an application or a runtime; the string
    ``"processes"`` stands for one with all defaults. The processes start when the first function is
    called there, stay warm, and end with the runtime. Quick functions are sent in batches, so that
    one of 50 microseconds is worth sending.

    What is called in a process is the function of an action, once for each attempt. Everything else
    stays where the run is: limits, retries, updates, hooks, stores. So nothing else about a program
    changes. The function, its arguments and its result are pickled. A function that a module
    defines is imported by its worker. One of ``__main__``, of a notebook, or inside another
    function is sent whole, which takes ``pip install shoal[processes]``. ``__main__`` is never run
    a second time, so a script needs no ``if __name__ == "__main__"``. What can't be sent is refused
    before the run starts.

    A cancelled action's function is told: a coroutine at its next ``await``, a plain function when
    it calls ``anyio.from_thread.check_cancelled()``. If it hasn't ended after the grace, its
    process is killed. If a process dies, the calls that were at work there are repeated elsewhere,
    up to ``Runtime(max_crashes=)`` times; no others notice. When the program ends, all of its
    processes end, also if it is killed.

    Examples:
        >>> from shoal.executors import Processes
        >>> @action(reads=["n"], writes=["prime"])
        ... def is_prime(n: int) -> bool:
        ...     return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
        >>> primes = fan_out(is_prime, over="ns", item="n", key=str, into="primes")
        >>> with_two = Processes(2)
        >>> app = Application(primes, executor=with_two)
        >>> app.run_sync({"ns": [91, 97]}).state["primes"]
        {'91': False, '97': True}
    """

    name = "processes"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        concurrency: int = 100,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        start: Literal["forkserver", "spawn"] = "forkserver",
        takes: Literal["plain", "all"] = "plain",
        kill_after: float | None = None,
    ) -> None:
        """Declare processes; none is started.

        Args:
            max_workers: The most processes; by default one for each core that this one may use.
            concurrency: Coroutines and generators at work at once in each of them.
            initializer: Called in each process before all else, for example to load a model into a
                global that the actions use. If it raises, the actions that wait for a process fail
                with its exception.
            initargs: Its arguments.
            start: How a process is made. ``"forkserver"``: forked, in a few milliseconds, from a
                small process with one thread, which has loaded shoal and nothing of the program's.
                ``"spawn"``: a new Python each time.
            takes: The functions that are called there if the executor was inherited: plain ones, or
                coroutine functions and async generators too. An action's own ``executor=`` always
                holds.
            kill_after: Seconds that the function of a cancelled action may take to end, before its
                process is killed; by default the grace of the runtime.

        Raises:
            DefinitionError: An argument means nothing, or the system has no such processes.
        """
        if os.name != "posix":
            msg = "Processes need a POSIX system; on this one, use executor='threads'"
            raise DefinitionError(msg)
        check_workers(
            "Processes",
            "max_workers",
            max_workers,
            concurrency=concurrency,
            takes=takes,
            initializer=initializer,
        )
        if start not in ("forkserver", "spawn"):
            msg = f"Processes(start=...) takes 'forkserver' or 'spawn', not {start!r}"
            raise DefinitionError(msg)
        if kill_after is not None and not is_positive(kill_after):
            msg = f"Processes(kill_after=...) takes seconds above 0, not {kill_after!r}"
            raise DefinitionError(msg)
        self.max_workers: int = max_workers or cores()
        self.concurrency: int = concurrency
        self.initializer = initializer
        self.initargs: tuple[Any, ...] = tuple(initargs)
        self.start: Literal["forkserver", "spawn"] = start
        self.takes: Literal["plain", "all"] = takes
        self.kill_after: float | None = kill_after
        self._refusals = Refusals("Processes", initializer, self.initargs)

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function or its inputs can't be sent; see ``Executor.refuse``."""
        return self._refusals.why(job, inputs)

    def open(self, host: PoolHost) -> RemotePool:
        """Make a pool for a runtime; see ``Executor.open``."""
        transport = ProcessTransport(
            host, self._refusals.initializer(), is_spawn=self.start == "spawn"
        )
        return RemotePool(
            host,
            transport,
            name=self.name,
            workers=self.max_workers,
            concurrency=self.concurrency,
            kill_after=self.kill_after,
        )

    def __repr__(self) -> str:
        return f"Processes({self.max_workers})"
