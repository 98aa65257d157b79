"""Interpreters in this process: ``Interpreters``, which users declare.

Starting and reaching them is in ``_interpreter_transport``.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from shoal._errors.exceptions import DefinitionError

from ._interpreter_transport import OLDEST, InterpreterTransport
from ._port import Executor, Job, PoolHost
from ._process_transport import cores
from ._refusals import Refusals, check_workers
from ._remote_pool import RemotePool


@final
class Interpreters(Executor):
    """Interpreters in the process of the run, in which plain functions use more than one core.

    Give it as ``executor=``; the string ``"interpreters"`` stands for one with all defaults. It
    takes Python 3.13. Each interpreter has a thread and a lock of its own. They start when the
    first function is called there, stay warm, and end with the runtime.

    What is sent, and what is refused, is as with ``Processes``, and so is the rest, but for this:

    - An interpreter can't be killed. A cancelled action's function is told as in a process. If it
      hasn't ended after the grace, it is left behind, as one in a thread is: it keeps its slot and
      its interpreter until it returns, and nothing else is called there meanwhile.
    - Everything shares one process: what ends that (``os._exit``, a crash in a C library, a lack of
      memory) ends the run. It is resumed from its store.
    - Many C libraries refuse to be loaded: numpy, pydantic, and all that needs them. Functions
      that import one fail with ``NotSendable`` or with the ``ImportError``. Use ``Processes``.
    - No process is started, which is allowed where processes are not. But Python 3.13 doesn't give
      all memory of an interpreter back, some 10 MB each: keep one runtime open for many runs.
    - There is no ``os.fork`` in it, and there are no threads that are daemons.

    Examples:
        >>> from shoal.executors import Interpreters
        >>> @action(reads=["n"], writes=["prime"])
        ... def is_prime(n: int) -> bool:
        ...     return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
        >>> primes = fan_out(is_prime, over="ns", item="n", key=str, into="primes")
        >>> app = Application(primes, executor=Interpreters(2))  # doctest: +SKIP
        >>> app.run_sync({"ns": [91, 97]}).state["primes"]  # doctest: +SKIP
        {'91': False, '97': True}
    """

    name = "interpreters"

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        concurrency: int = 100,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        takes: Literal["plain", "all"] = "plain",
    ) -> None:
        """Declare interpreters; none is started.

        Args:
            max_workers: The most interpreters; by default one for each core that this process may
                use.
            concurrency: Coroutines and generators at work at once in each of them.
            initializer: Called in each interpreter before all else. If it raises, the actions that
                wait for an interpreter fail with its exception.
            initargs: Its arguments.
            takes: The functions that are called there if the executor was inherited: plain ones, or
                coroutine functions and async generators too. An action's own ``executor=`` always
                holds.

        Raises:
            DefinitionError: An argument means nothing, or this Python has no such interpreters.
        """
        if sys.version_info < OLDEST or os.name != "posix":
            msg = (
                f"Interpreters need Python 3.13 or newer on a POSIX system, and this is Python "
                f"{platform.python_version()} on {platform.system()}; use executor='processes'"
            )
            raise DefinitionError(msg)
        check_workers(
            "Interpreters",
            "max_workers",
            max_workers,
            concurrency=concurrency,
            takes=takes,
            initializer=initializer,
        )
        self.max_workers: int = max_workers or cores()
        self.concurrency: int = concurrency
        self.initializer = initializer
        self.initargs: tuple[Any, ...] = tuple(initargs)
        self.takes: Literal["plain", "all"] = takes
        self._refusals = Refusals("Interpreters", initializer, self.initargs)

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function or its inputs can't be sent; see ``Executor.refuse``."""
        return self._refusals.why(job, inputs)

    def open(self, host: PoolHost) -> RemotePool:
        """Make a pool for a runtime; see ``Executor.open``."""
        return RemotePool(
            host,
            InterpreterTransport(host, self._refusals.initializer()),
            name=self.name,
            workers=self.max_workers,
            concurrency=self.concurrency,
            kills=False,
        )

    def __repr__(self) -> str:
        return f"Interpreters({self.max_workers})"
