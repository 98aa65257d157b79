"""The runtime: what runs share while a process lives. Imports everything above; anyio.

Invariants:
- A root run is hosted: it lives in a task of the runtime's, never in its caller's (see ``_host``).
- One run that can't be recovered, or fails, does nothing to the others that are.
- Structured. The block is left only after all runs in it have ended. Left by an exception or
  cancelled, it cancels them; what the block raised goes on as it is, in no group.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, cast, final

from anyio import CancelScope, create_task_group, get_cancelled_exc_class, sleep_until
from anyio.abc import TaskGroup

from ._action import Act
from ._admission import Admission
from ._attempts import Retries
from ._backend import current_backend, protect_from_ctrl_c
from ._breaker import Circuits
from ._context import Context
from ._errors import (
    BadResult,
    BadUse,
    DefinitionError,
    NoApplication,
    StoreFailed,
    brief,
    did_you_mean,
    kind_of,
)
from ._halting import Answers
from ._host import Hosted
from ._limiter import Limiter
from ._nest import enter
from ._parallel import Parallel
from ._ports import Services
from ._rate import Limits
from ._results import SIZE, Results
from ._retry import is_positive
from ._root import Root
from ._start import refuse_missing
from ._state import held
from ._store import FindsOrphans, NullStore, Orphan, Store, check_store
from ._suspects import MAX_CRASHES
from ._threads import Threads
from ._watch import GRACE, Watchdog

R_co = TypeVar("R_co", covariant=True)

THREADS = 40
"""Worker threads that plain functions of one runtime may use at once."""
COMMIT_DEADLINE = 30.0
"""Seconds that a store has to acknowledge a save."""

AT_ONCE = 100
"""Runs that are recovered at once."""


class Runnable(Protocol[R_co]):
    """What a runtime runs: an application."""

    async def run(
        self,
        state: Any = None,
        *,
        id: str | None = None,  # noqa: A002
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        runtime: Runtime | None = None,
    ) -> R_co:
        """Run it in ``runtime``."""
        ...


class Recoverable(Protocol):
    """What a runtime recovers runs of: an application."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def version(self) -> str:
        """Which version of its definition it is."""
        ...

    @property
    def store(self) -> Store | None:
        """Where its runs are kept; None: where the runtime keeps them."""
        ...

    async def recover(
        self, run_id: str, state: Mapping[str, object] | None = None, *, runtime: Runtime
    ) -> Any:
        """Resume a run that has no end, if nobody executes it; return None if somebody does.

        ``state`` is what is secret in it.
        """
        ...


GivenSecrets = Mapping[str, object] | Awaitable[Mapping[str, object]]
"""What is secret in a run, or what looks it up."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of a run that a dead process had left: its result, or why it has none."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of that, as the run was started with."""
    result: Any = None
    """What it came to: a ``RunResult``; None if it has come to nothing."""
    error: Exception | None = None
    """What it failed with, or why it was not resumed; None if it has succeeded."""


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
        apps: Iterable[Recoverable] = (),
        inputs: Mapping[str, object] | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        threads: int = THREADS,
        commit_deadline: float = COMMIT_DEADLINE,
        grace: float = GRACE,
        max_crashes: int = MAX_CRASHES,
        seed: int | None = None,
    ) -> None:
        """Describe it; nothing is opened yet.

        Args:
            apps: The applications whose runs ``recover`` resumes.
            inputs: What actions take besides fields, for all applications that are run in it.
            limits: How many attempts of actions run at once, in all runs together.
            store: Where runs are kept whose application has no store of its own; None: nowhere.
            threads: Worker threads at once. Who waits for one holds no slot of any ``Limits``, and
                has taken nothing of a rate; runs take turns for them.
            commit_deadline: Seconds that the store has to acknowledge a save.
            grace: Seconds that cleanup may take before it is warned of, and threads are left
                behind.
            max_crashes: Executions of a run that may die in a row while one of its children is at
                work; then that child fails with ``Poisoned``. The first of them is not counted.
            seed: Makes what is left to chance, such as the delays of retries, repeatable.

        Raises:
            DefinitionError: ``inputs`` is no mapping, ``limits`` no ``Limits``, ``store`` no store,
                ``grace`` no number of seconds, or ``max_crashes`` no count of at least 1; or
                ``apps`` has something else than applications, or two of one name and version.
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
        if type(max_crashes) is not int or max_crashes < 1:
            msg = f"Runtime(max_crashes=...) takes a whole number, at least 1, not {max_crashes!r}"
            raise DefinitionError(msg)
        self._max_crashes = max_crashes
        self.apps: Mapping[tuple[str, str], Recoverable] = _by_name(apps)
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
            max_crashes=self._max_crashes,
            results=Results(backend.clock, SIZE),
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
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
    ) -> R_co:
        """Run an application here; see ``Application.run``.

        Several at once share the runtime's inputs, limits, threads and store. One that fails, or
        whose caller is cancelled, does nothing to the others.
        """
        return await app.run(
            state,
            id=id,
            inputs=inputs,
            answers=answers,
            halt_before=halt_before,
            halt_after=halt_after,
            runtime=self,
        )

    async def recover(
        self, *, secrets: Mapping[str, object] | Callable[[Orphan], GivenSecrets] | None = None
    ) -> Sequence[Recovered]:
        """Resume what dead processes have left, and return what became of it.

        That are the root runs in the runtime's store, and in those of its ``apps``, which have
        begun and not ended, and which nobody executes: their process is gone, or gives no sign of
        life for as long as its lease, or has lost its store. Each is resumed under the application
        of its name and version. Runs that have failed or were cancelled have ended, and stay; so
        do those that are halted, which wait for somebody. What is resumed may come to be halted.

        A run that fails, or can't be resumed, does nothing to the others: the error is in what is
        returned for it. Where several processes recover at once, each run goes to one of them, and
        is returned there alone.

        Up to 100 runs are under way at once. They live in the runtime's tasks; where whoever awaits
        this is cancelled, they are cancelled, awaited, and left consistent. A service has it
        awaited in a task beside its work.

        Args:
            secrets: The secret fields of the runs that have some, for they are saved nowhere: a
                mapping, the same for all; or a function, also an async one, that is given an
                ``Orphan`` (``run_id``, ``application``, ``version`` and ``secret``, the names) and
                returns what it has. A run that lacks some is left as it is, with ``MissingSecret``.

        Raises:
            BadUse: The runtime is not open, or has no ``apps``, or no store that knows of orphans.
            StoreFailed: A store could not say which runs there are; nothing was resumed.

        Examples:
            >>> import anyio
            >>> @action(reads=["n"], writes=["square"])
            ... async def square(n: int) -> int:
            ...     return n * n
            >>> async def main() -> None:
            ...     app = Application(square, store=MemoryStore())
            ...     async with Runtime(apps=[app]) as runtime:
            ...         for run in await runtime.recover():
            ...             print(run.run_id, run.error or "succeeded")
            >>> anyio.run(main)
        """
        self.check_open()
        given: object = secrets
        if not (given is None or isinstance(given, Mapping) or callable(given)):
            msg = f"recover(secrets=...) takes a mapping or a function, not {kind_of(given)}"
            raise BadUse(msg)
        found = await self._orphans()
        recovered: list[Recovered] = []
        if found:
            recovery = Recovery(self, found, recovered.append, secrets)
            hosted = self._host(recovery.live, recovery.hear)
            interruption = await hosted.wait()
            try:
                interruption = hosted.fatal or interruption
                if interruption is not None:
                    raise interruption
            finally:
                del interruption  # no cycle from the exception to this frame
        return recovered

    async def _orphans(self) -> list[tuple[Orphan, Recoverable | None]]:
        """Ask each store once; say which application each orphan is to be resumed under."""
        if not self.apps:
            msg = "this runtime can recover nothing, it has no applications: Runtime(apps=[...])"
            raise BadUse(msg)
        stores: dict[int, tuple[Store, dict[tuple[str, str], Recoverable]]] = {}
        for name, app in self.apps.items():
            store = self.store if app.store is None else app.store
            if not isinstance(store, FindsOrphans):
                is_kept = not isinstance(store, NullStore)
                why = f"{brief(store)} has no orphans()" if is_kept else "nothing keeps them"
                msg = (
                    f"the runs of application {app.name!r} can't be recovered, for {why}; give it, "
                    f"or the runtime, a store that can say what nobody executes, as SQLiteStore can"
                )
                raise BadUse(msg)
            stores.setdefault(id(store), (store, {}))[1][name] = app
        found: list[tuple[Orphan, Recoverable | None]] = []
        for store, apps in stores.values():
            assert isinstance(store, FindsOrphans), "others were refused"
            try:
                orphans = await store.orphans()
            except StoreFailed:
                raise
            except Exception as error:
                msg = f"{brief(store)} could not be asked for orphans: {brief(error)}"
                raise StoreFailed(msg) from error
            found += [(one, apps.get((one.application, one.version))) for one in orphans]
        return found

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


@final
class Recovery:
    """Orphans that are resumed, some at once."""

    def __init__(
        self,
        runtime: Runtime,
        orphans: Sequence[tuple[Orphan, Recoverable | None]],
        report: Callable[[Recovered], object],
        secrets: Mapping[str, object] | Callable[[Orphan], GivenSecrets] | None,
    ) -> None:
        """Plan it; each orphan that nobody else resumes is told to ``report``."""
        self._secrets = secrets
        self._runtime = runtime
        self._left = iter(orphans)
        self._at_once = min(len(orphans), AT_ONCE)
        self._report = report

    def hear(self, reason: str) -> None:
        """Hear why it is cancelled: each run's own wait says so to it."""

    async def live(self) -> None:
        """Resume them all."""
        async with create_task_group() as tasks:
            for _ in range(self._at_once):
                tasks.start_soon(self._work)

    async def _work(self) -> None:
        for orphan, app in self._left:
            recovered = await self._recover(orphan, app)
            if recovered is not None:
                self._report(recovered)

    async def _recover(self, orphan: Orphan, app: Recoverable | None) -> Recovered | None:
        run_id, name, version, _ = orphan
        tell = partial(Recovered, run_id=run_id, application=name, version=version)
        if app is None:
            return tell(error=NoApplication(self._why_none(orphan)))
        try:
            state = await self._secrets_of(orphan) if orphan.secret else None
            result = await app.recover(run_id, state, runtime=self._runtime)
        except Exception as error:  # noqa: BLE001 # the caller reads it in what is returned
            return tell(error=error)
        return None if result is None else tell(result=result)

    async def _secrets_of(self, orphan: Orphan) -> Mapping[str, object]:
        """Find what is secret in a run, before anybody claims it.

        Raises:
            MissingSecret: Not all of it is given.
            BadResult: The function that looks it up has returned no mapping.
        """
        given: object = self._secrets
        if callable(given):
            given = given(orphan)
            if isinstance(given, Awaitable):
                given = await cast("Awaitable[object]", given)
        if given is None:
            given = {}
        if not isinstance(given, Mapping):
            msg = (
                f"recover(secrets=...) returned {kind_of(given)} for run {orphan.run_id}; it "
                f"returns a mapping of secret fields to values"
            )
            raise BadResult(msg)
        found = held(cast("Mapping[str, object]", given))
        refuse_missing(orphan.run_id, orphan.secret, found)
        return {name: found[name] for name in orphan.secret}

    def _why_none(self, orphan: Orphan) -> str:
        run_id, name, version, _ = orphan
        known = self._runtime.apps
        versions = [repr(other) for named, other in known if named == name]
        if versions:
            return (
                f"run {run_id} was started with version {version!r} of application {name!r}, and "
                f"the runtime has {', '.join(versions)} alone; resume it where that version runs, "
                f"or start a new run from what it has: fork({run_id!r})"
            )
        names = sorted({named for named, _ in known})
        return (
            f"run {run_id} is of application {name!r}, which the runtime does not have (it has: "
            f"{', '.join(names)}){did_you_mean(name, names)}; name it in Runtime(apps=[...])"
        )


def _by_name(apps: Iterable[Recoverable]) -> Mapping[tuple[str, str], Recoverable]:
    """Check the applications of a runtime.

    Raises:
        DefinitionError: One is none, or two have one name and version.
    """
    found: dict[tuple[str, str], Recoverable] = {}
    for app in apps:
        if isinstance(app, type) or not callable(getattr(app, "recover", None)):
            msg = f"Runtime(apps=...) takes a list of applications, not of {brief(app)}"
            raise DefinitionError(msg)
        if (app.name, app.version) in found:
            msg = (
                f"Runtime(apps=...) has two applications {app.name!r} of version {app.version!r}; "
                f"whose runs are whose can't be told: give one another name, or version"
            )
            raise DefinitionError(msg)
        found[app.name, app.version] = app
    return found
