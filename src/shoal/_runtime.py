"""The runtime: what runs share while a process lives. Imports everything above; anyio.

Invariants:
- A root run is hosted: it lives in a task of the runtime's, never in its caller's (see ``_host``).
- Structured. The block is left only after all runs in it have ended. Left by an exception or
  cancelled, it cancels them; what the block raised goes on as it is, in no group.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, final

from anyio import CancelScope, create_task_group, get_cancelled_exc_class, sleep_until
from anyio.abc import TaskGroup

from ._action import Act
from ._admission import Admission
from ._attempts import Retries
from ._backend import current_backend, protect_from_ctrl_c
from ._breaker import Circuits
from ._context import Context
from ._errors import BadUse, DefinitionError
from ._host import Hosted
from ._limiter import Limiter
from ._nest import enter
from ._parallel import Parallel
from ._ports import NullStore, Services, Store, check_store
from ._rate import Limits
from ._retry import is_positive
from ._root import Root
from ._threads import Threads
from ._watch import GRACE, Watchdog

R_co = TypeVar("R_co", covariant=True)

THREADS = 40
"""Worker threads that plain functions of one runtime may use at once."""
COMMIT_DEADLINE = 30.0
"""Seconds that a store has to acknowledge a save."""


class Runnable(Protocol[R_co]):
    """What a runtime runs: an application."""

    async def run(
        self,
        state: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        runtime: Runtime | None = None,
    ) -> R_co:
        """Run it in ``runtime``."""
        ...


@final
class Runtime:
    """What runs share while a process lives: inputs, limits, threads, a store.

    ``app.run(...)`` opens one for itself; a service opens one for all. Leaving its block waits for
    the runs in it to end. Leaving it by an exception, or being cancelled meanwhile, cancels them,
    and who awaits one of them gets ``RunCancelled``. It has one block at a time.

    What is cancelled is always awaited, cleanup included; what still runs after ``grace`` seconds
    is named in a warning, with the place where it stands. Only worker threads, which nobody can
    interrupt, are left behind then: their runs end, and so may the block and the event loop, while
    they go on. (Python itself may wait for them when the process exits.)

    Examples:
        >>> import anyio
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str, word: str) -> str:
        ...     return f"{word}, {name}"
        >>> app = Application(greet)
        >>> async def main() -> str:
        ...     async with Runtime(inputs={"word": "hello"}, limits=Limits(10)) as runtime:
        ...         result = await runtime.run(app, {"name": "shoal"})
        ...     return result.state["greeting"]
        >>> anyio.run(main)
        'hello, shoal'
    """

    def __init__(
        self,
        *,
        inputs: Mapping[str, object] | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        threads: int = THREADS,
        commit_deadline: float = COMMIT_DEADLINE,
        grace: float = GRACE,
        seed: int | None = None,
    ) -> None:
        """Describe it; nothing is opened yet.

        Args:
            inputs: What actions take besides fields, for all applications that are run in it.
            limits: How many attempts of actions run at once, in all runs together.
            store: Where runs are kept whose application has no store of its own; None: nowhere.
            threads: Worker threads at once. Who waits for one holds no slot of any ``Limits``, and
                has taken nothing of a rate; runs take turns for them.
            commit_deadline: Seconds that the store has to acknowledge a save.
            grace: Seconds that cleanup may take before it is warned of, and threads are left
                behind.
            seed: Makes what is left to chance, such as the delays of retries, repeatable.

        Raises:
            DefinitionError: ``inputs`` is no mapping, ``limits`` no ``Limits``, ``store`` no store,
                or ``grace`` no number of seconds.
        """
        if inputs is not None and not isinstance(inputs, Mapping):
            msg = f"Runtime(inputs=...) takes a mapping of names to values, not {inputs!r}"
            raise DefinitionError(msg)
        if limits is not None and not isinstance(limits, Limits):
            msg = f"Runtime(limits=...) takes Limits(n), not {limits!r}"
            raise DefinitionError(msg)
        if store is not None:
            check_store(store, "Runtime(store=...)")
        if not is_positive(grace):
            msg = f"Runtime(grace=...) takes a number of seconds above 0, not {grace!r}"
            raise DefinitionError(msg)
        self.inputs: Mapping[str, object] = dict(inputs or {})
        self.limits: Limits | None = limits
        self.store: Store = store if store is not None else NullStore()
        self._threads = threads
        self._commit_deadline = commit_deadline
        self._grace = grace
        self._seed = seed
        self._tasks: TaskGroup | None = None
        self._roots: set[Hosted] = set()  # the root runs that go on
        self._status: Literal["new", "open", "closing", "closed"] = "new"

    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            BadUse: It is open already.
        """
        if self._status in ("open", "closing"):
            msg = "the runtime is open already: another block needs another Runtime(...)"
            raise BadUse(msg)
        self._status = "open"
        backend = current_backend()
        protect_from_ctrl_c(backend)
        self._context = copy_context()
        alarm = backend.alarm or self._alarm
        retries = Retries(backend.clock, self._seed)
        self._admission = Admission(
            backend.waiter,
            backend.clock,
            alarm,
            self._start_task,
            retries.chance,
            threads=self._threads,
            takes_foreign=backend.alarm is not None,
        )
        self._watchdog = Watchdog(backend.clock, self._grace, alarm, self._start_task)
        self.services: Services = Services(
            clock=backend.clock,
            waiter=backend.waiter,
            threads=Threads(self._grace, backend.call_soon),
            watchdog=self._watchdog,
            retries=retries,
            native_cancels=backend.native_cancels,
            commit_deadline=self._commit_deadline,
            admission=self._admission,
            host=self._host,
            enter=enter,
            context=Context,
        )
        self._tasks = await create_task_group().__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        """Close it, once everything in it has ended."""
        tasks = self._tasks
        assert tasks is not None
        self._status = "closing"
        interruption = await self._drain(cancelling=error is not None)
        self._admission.close()
        self._watchdog.close()
        try:
            # The task group never sees what the block raised: it would wrap it in a group.
            await tasks.__aexit__(None, None, None)
        except get_cancelled_exc_class() as cancelled:
            interruption = interruption or cancelled
        finally:
            self._status = "closed"
            self._tasks = None
            del self.services, self._watchdog  # whose ports lead back here
        try:
            if interruption is not None and error is None:
                raise interruption
        finally:
            del error, interruption  # no cycle from the exception to this frame

    async def _drain(self, *, cancelling: bool) -> BaseException | None:
        """Wait for the runs to end, cancelling them where the wait is interrupted.

        Returns the first interruption.
        """
        interruption: BaseException | None = None
        while self._roots:
            if cancelling:
                for root in self._roots:
                    root.cancel("the runtime was closed")
            try:
                with CancelScope(shield=cancelling):
                    await next(iter(self._roots)).ended.wait()
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                interruption = interruption or error
                cancelling = True
        return interruption

    def scopes(self, owner: object, limits: Limits | None) -> tuple[object, ...]:
        """Return what limits the attempts of a run of ``owner``: its limits and the runtime's."""
        found = ((self, self.limits), (owner, limits))
        admission = self._admission
        return tuple(admission.limiter(who, given) for who, given in found if given is not None)

    def limiter(self, owner: object = None) -> Limiter:
        """Return what counts the limits that stand on ``owner``: to look at, and to change.

        Args:
            owner: An application, an action or a fan-out; by default the runtime itself.

        Raises:
            BadUse: The runtime is not open, or ``owner`` has no limits that are shared here.

        Examples:
            >>> import anyio
            >>> @action(reads=["n"], writes=["square"], limits=Limits(2))
            ... async def square(n: int) -> int:
            ...     return n * n
            >>> async def main() -> None:
            ...     async with Runtime(limits=Limits(8)) as runtime:
            ...         runtime.limiter().change(Limits(4))
            ...         await runtime.run(Application(square), {"n": 3})
            ...         print(runtime.limiter(square).statistics()[0].slots)
            >>> anyio.run(main)
            2
        """
        self.check_open()
        found: object = self if owner is None else owner
        if found is self and self.limits is not None:
            return self._admission.limiter(self, self.limits)
        limits = getattr(found, "limits", None)
        if isinstance(limits, Limits) and isinstance(found, Parallel):
            limits = limits.shared
        if not isinstance(limits, Limits):
            msg = (
                f"{owner!r} has no limits that are counted here: give it limits=Limits(...); those "
                f"of a fan-out are, if they have a rate or count by key"
            )
            raise BadUse(msg)
        return self._admission.limiter(getattr(found, "definition", found), limits)

    def circuits(self, owner: Act, name: str = "") -> Circuits:
        """Return the circuits of a fan-out that has a breaker: to look at.

        Args:
            owner: The fan-out; or an action, of whose own fan-outs...
            name: ...it is the one of that name.

        Raises:
            BadUse: The runtime is not open, or that fan-out has no breaker, or not run here yet.
        """
        self.check_open()
        definition = getattr(owner, "definition", owner)
        full_name = f"{owner.name}/{name}" if name else ""
        found = self.services.circuits.get(definition, {}).get(full_name)
        if found is None:
            msg = (
                f"nothing is known of circuits of {full_name or owner.name!r}: give it "
                f"each=Each(breaker=Breaker(...)), and run it here first"
            )
            raise BadUse(msg)
        return found

    async def run(
        self,
        app: Runnable[R_co],
        state: Any = None,
        *,
        id: str | None = None,  # noqa: A002 # the word users know
        inputs: Mapping[str, object] | None = None,
    ) -> R_co:
        """Run an application here; see ``Application.run``.

        Several at once share the runtime's inputs, limits, threads and store. One that fails, or
        whose caller is cancelled, does nothing to the others.
        """
        return await app.run(state, id=id, inputs=inputs, runtime=self)

    def start(self, run: Root, on_ended: Callable[[], None] | None = None) -> Hosted:
        """Begin to live a root run in a task of its own; who calls this awaits ``Hosted.wait``.

        Args:
            run: The run. How it ends is in itself, or in ``Hosted.fatal``.
            on_ended: Called when it has ended, cleanup included.
        """
        self.check_open()
        assert self._tasks is not None
        root = Hosted(run.live, run.give_reason, self._watchdog, on_ended)
        self._roots.add(root)
        self._tasks.start_soon(self._live, root)
        return root

    async def _live(self, root: Hosted) -> None:
        try:
            await root.live()
        finally:
            self._roots.discard(root)

    def _host(
        self, work: Callable[[], Coroutine[Any, Any, None]], on_cancel: Callable[[str], None]
    ) -> Hosted:
        """Start ``work`` of a run in a task of its own; the run sees to it that it ends."""
        assert self._tasks is not None, "the block lasts as long as the runs in it"
        hosted = Hosted(work, on_cancel, self._watchdog)
        self._tasks.start_soon(hosted.live)
        return hosted

    def _start_task(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task of the runtime's own, in nobody else's context."""
        assert self._tasks is not None, "the block lasts as long as what is watched"
        self._context.copy().run(self._tasks.start_soon, work)

    def _alarm(self, at: float, call: Callable[[], None]) -> Callable[[], object]:
        """Have ``call`` called at a time, by a task."""
        scope = CancelScope(shield=True)

        async def wait() -> None:
            with scope:
                await sleep_until(at)
                call()

        self._start_task(wait)
        return scope.cancel

    def check_open(self) -> None:
        """Refuse to be used outside of its block.

        Raises:
            BadUse: It is not yet open, or closed, or its block has been left.
        """
        if self._status != "open":
            how = "not open yet" if self._status == "new" else "closed"
            msg = f"the runtime is {how}: use it inside `async with Runtime(...) as runtime`"
            raise BadUse(msg)
