"""Ray, as an executor: functions of actions are called in actors of a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, final

from shoal._errors.exceptions import DefinitionError

from ._port import Executor, Job, PoolHost
from ._ray_link import ActorOptions, RayTransport
from ._ray_session import check_installed
from ._refusals import Refusals, check_workers
from ._remote_pool import RemotePool

WINDOW = 0.01
"""Seconds of work that are sent ahead to an actor: a batch there and back takes 1 to 2 ms, and more
while the machine is busy."""


@final
class Ray(Executor):
    """Actors of a Ray cluster, in which functions are called. Takes the extra ``shoal[ray]``.

    The run itself stays in the process that has the runtime: graphs, limits, retries, updates,
    hooks, stores and fan-outs. So all of that holds as it does on the event loop, also across the
    cluster. An attempt of an action is one call of its function in an actor. What the function does
    with its context (``emit``, ``note``, ``charge``, ``ask``, ``span``, ``fan_out``) comes back
    while it is at work.

    **Actors** start when there are calls for them, are shared by all runs of the runtime, and end
    with its block. Each calls plain functions one after another, and up to ``concurrency``
    coroutine functions and async generators at once. A runtime needs no cluster before the first
    call. If this process is not connected to Ray by then, the runtime connects it, and disconnects
    it when it closes.

    **Cancellation.** An actor is told at once which calls are cancelled. It ends their scopes, and
    reports when their cleanup is done. If a function is still at work after ``kill_after``, its
    actor is killed, as are those of a program that ends, however it ends.

    **Lost actors.** If an actor dies, or its node can't be reached any more, the calls that were at
    work there count as crashed: they are held against their runs (``Runtime(max_crashes=)``), and
    made again in another actor. Calls that had not begun move without being counted. So a function
    may have had its effects more than once; its outcome is applied once.

    **What must be on the nodes**: the same version of Python, of Ray and of shoal, and the modules
    that functions are defined in. Functions of ``__main__`` and of notebooks are sent by value. See
    Ray's documentation of ``runtime_env`` for ways to bring the rest there.

    Args:
        address: The cluster: ``"host:6379"``, or ``"auto"`` for one that runs on this machine.
            None: the one that this process is connected to, or that ``RAY_ADDRESS`` names, or that
            runs on this machine; if there is none, one is started here for as long as it is needed.
        actors: How many actors there may be. None: as many as the cluster has room for when the
            first call is made. If it has less room for the time being, the others start later.
        concurrency: Coroutine functions and async generators at work in one actor at once.
        resources: What an actor needs besides processors, as Ray names it: ``{"GPU": 1}``,
            ``{"memory": 2e9}`` (bytes), or resources that nodes were started with.
        num_cpus: Processors that an actor needs. They may be fractions, or 0.
        runtime_env: Ray's description of what actors find on their nodes. Directories of this
            machine can be named in it only if it is the runtime that connects to Ray.
        initializer: Called in each actor before anything else, ``initializer(*initargs)``: for
            models, clients and other things that can't be sent. If it raises, so do the calls.
        initargs: Its arguments.
        takes: Which functions come here if the executor was inherited: ``"all"``, or ``"plain"``
            for plain ones only. An action's own ``executor=`` holds for any.
        kill_after: Seconds that a function is waited for after its cancellation, before its actor
            is killed. None: the grace of the runtime.
        start_within: Seconds for which the cluster may lack any node that could ever hold an actor,
            before calls fail. Give more where an autoscaler adds such nodes.

    Raises:
        DefinitionError: Ray is not installed, or too old; an argument makes no sense, or can't be
            sent.

    Examples:
        >>> from shoal.executors import Ray
        >>> app = Application(squares, executor=Ray("10.0.0.5:6379"))  # doctest: +SKIP
    """

    name = "Ray"

    def __init__(
        self,
        address: str | None = None,
        *,
        actors: int | None = None,
        concurrency: int = 100,
        resources: Mapping[str, float] | None = None,
        num_cpus: float = 1,
        runtime_env: Mapping[str, Any] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        takes: Literal["plain", "all"] = "all",
        kill_after: float | None = None,
        start_within: float = 10.0,
    ) -> None:
        check_installed()
        if address is not None and address.startswith("ray://"):
            msg = (
                f"Ray({address!r}) is Ray Client, which has no streams: run this program on a node "
                f"of the cluster, as a job (ray job submit), and leave address= out"
            )
            raise DefinitionError(msg)
        check_workers(
            "Ray", "actors", actors, concurrency=concurrency, takes=takes, initializer=initializer
        )
        self.address: str | None = address
        self.actors: int | None = actors
        self.concurrency: int = concurrency
        self.takes: Literal["plain", "all"] = takes
        self.kill_after: float | None = _seconds("kill_after", kill_after)
        self._refusals = Refusals("Ray", initializer, tuple(initargs))
        self._options = ActorOptions(
            address=address,
            needs=_needs(resources or {}, num_cpus),
            env=None if runtime_env is None else {**runtime_env},
            start_within=_seconds("start_within", start_within) or 0.0,
        )

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function or its inputs can't be sent, and what to do; "" if they can be."""
        return self._refusals.why(job, inputs)

    def open(self, host: PoolHost) -> RemotePool:
        """Make the pool of a runtime; it is not connected to a cluster yet."""

        def learn(room: int) -> None:
            if self.actors is None:
                pool.allow(room)

        pool = RemotePool(
            host,
            RayTransport(host, self._options, self._refusals.initializer(), learn),
            name="Ray",
            workers=self.actors or 1,
            concurrency=self.concurrency,
            kill_after=self.kill_after,
            pause=0.0,
            window=WINDOW,
        )
        return pool

    def __repr__(self) -> str:
        return f"Ray({'' if self.address is None else repr(self.address)})"


def _needs(resources: Mapping[str, float], num_cpus: float) -> dict[str, float]:
    needs = {"CPU": num_cpus, **resources}
    for name, need in needs.items():
        if type(need) not in (int, float) or not 0 <= need < math.inf:
            msg = f"an actor of Ray needs a number of {name!r}, at least 0, not {need!r}"
            raise DefinitionError(msg)
    if "CPU" in resources:
        raise DefinitionError("give Ray(num_cpus=...), and no 'CPU' in resources=")
    return {name: need for name, need in needs.items() if need}


def _seconds(what: str, given: float | None) -> float | None:
    if given is not None and (type(given) not in (int, float) or not given >= 0):
        raise DefinitionError(f"Ray({what}=...) takes seconds, at least 0, not {given!r}")
    return given
