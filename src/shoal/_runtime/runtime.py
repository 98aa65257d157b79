"""The runtime: what runs share while a process lives.

Invariants:
- A root run has a task of the runtime's, never its caller's (see ``background``).
- A run that fails, or can't be recovered, does nothing to the others.
- Structured. The block ends after all runs in it. Left by an exception or cancelled, it cancels
  them; the block's own exception goes on as it is, in no group.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, final

from anyio import get_cancelled_exc_class, move_on_after

from shoal._concurrency.backend import current_backend, protect_from_ctrl_c
from shoal._concurrency.background import BackgroundTask, Work
from shoal._concurrency.cancellation import fatal_leaf, is_exit, ki_protected
from shoal._concurrency.shielding import lived_within
from shoal._concurrency.watchdog import GRACE
from shoal._engine.crash_suspects import MAX_CRASHES
from shoal._engine.services import Services
from shoal._errors.arguments import is_positive
from shoal._errors.completion import hides
from shoal._errors.exceptions import BadUse, Draining, kind_of
from shoal._errors.inspection import first_of
from shoal._errors.misplaced import says_where
from shoal._errors.tracebacks import frames_hidden
from shoal._events.events import Status
from shoal._events.report import Report
from shoal._graph.act import Act
from shoal._limits.breaker import Circuits
from shoal._limits.flows import Priority
from shoal._limits.limiters import Limiter
from shoal._limits.limits import Limits
from shoal._state.state import S
from shoal.executors._named import ExecutorName, Place, executor_named
from shoal.executors._port import Executor
from shoal.stores._protocol import NullStore, Store
from shoal.stores._watching import Command

from .answers import Answers
from .apps import R_co, Recoverable, Runnable, Startable
from .binding import RuntimeOptions, bind_services, check_given
from .carry_out import carry_out
from .display import new_display, showing
from .draining import DRAINED, DrainSignal
from .handle import RunHandle
from .limit_use import circuits_of, limiter_that_counts, named_limiters
from .recovery import Recoverables, Recovered, Recovery, Secrets, Watch, check_secrets
from .registry import RunRegistry
from .root_run import RootRun
from .seats import RunLoad, Seats
from .tasks import RuntimeTasks
from .watching import LimitsInUse, Watching, limits_in_use

THREADS = 40  # worker threads at once; as many as anyio's default limiter has
logger = logging.getLogger("shoal")

COMMIT_DEADLINE = 30.0  # seconds that a store has to acknowledge a save


@says_where
@hides("begin carry_out check_open scopes watch_reports")
@final
class Runtime:
    """What runs share while a process lives: inputs, limits, threads, a store.

    ``app.run(...)`` opens one for itself; a service opens one for all. Leaving its block waits for
    the runs in it to end. Leaving it by an exception, or being cancelled meanwhile, cancels them,
    and their callers get ``RunCancelled``. A runtime has one block at a time.

    Cancelled runs are always awaited, cleanup included. If one still runs after ``grace`` seconds,
    a warning names it and the place where it stands. Only worker threads, which can't be
    interrupted, are left behind then: their runs end, and the block and the event loop may end,
    while the threads go on. (Python itself may wait for them when the process exits.)

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
        watch: bool | None = None,
        progress: bool = False,
        executor: Executor | ExecutorName | None = None,
        debug: bool | None = None,
        max_runs: int | None = None,
        waiting: int | None = None,
    ) -> None:
        """Describe it; nothing is opened yet.

        Args:
            apps: The applications whose runs ``recover`` resumes.
            inputs: What actions take besides fields, for all applications that are run in it.
            limits: How many attempts of actions run at once, in all runs together.
            store: Where the runs of applications without a store of their own are saved; None:
                nowhere.
            threads: Worker threads at once. An action that waits for one holds no slot of any
                ``Limits``, and has used up nothing of a rate; runs take turns for threads.
            commit_deadline: Seconds that the store has to acknowledge a save.
            grace: Seconds that cleanup may take before a warning is logged, and threads are left
                behind.
            max_crashes: Executions of a run, and workers of an executor, that may die in a row
                while one of its children is at work; then that child isn't started again, and fails
                with ``Poisoned``. Crashes of the process are counted against children only after a
                first one, so it dies ``max_crashes + 1`` times, and need a store; deaths of workers
                always count, also against the actions of a root run. A child has its last chance
                alone, so that it takes no siblings along. A child that gets further is counted
                anew. ``on_error`` treats ``Poisoned`` like any failure, but ``Retry`` does not
                retry it.
            seed: Makes chance, such as the delays of retries, repeatable.
            watch: Whether to sample what its runs do, a few times per second, and to report that:
                in ``RunHandle.report`` and ``RunResult.report``, and to watchers in other processes
                through a store that keeps reports. By default runs are watched if they have such a
                store, but not under virtual time. ``Application(watch=)`` goes before it. It costs
                nothing per child, and four percent of the loop's time at most.
            progress: Whether to show the progress of its runs on stderr; see ``Application.run``.
                They are watched then.
            executor: Where actions are called, unless their application, a fan-out around them or
                the action itself says otherwise: ``"loop"``, ``"threads"``, ``"processes"``,
                ``"interpreters"``, or an ``Executor`` of ``shoal.executors``. Whatever is used here
                is opened when the first action is called there, shared by all runs, and closed with
                the runtime.
            debug: Whether to compare the fields that a step reads before and after it. A step that
                has changed a list, a dict or another value of the state in place, instead of
                returning a new one, then fails with ``ChangedInPlace``. That costs a digest of each
                field at each step. Objects that are no data are compared by identity alone. By
                default it is on if the environment variable ``SHOAL_DEBUG`` is set to something
                else than 0, also for runs that have no runtime of their own.
            max_runs: How many root runs execute at once; None: any number. Further ones wait for
                their turn, in the order in which they came, and have not begun until then: of a run
                that is cancelled meanwhile nothing is saved. Runs of several classes of priority
                take turns, as at limits. A run that an action starts never waits, since its own run
                may wait for it. A paused run has no turn while it is.
            waiting: How many may wait for their turn; None: any number. The next one is refused
                with ``Overloaded``, which says when to come again. Runs that are recovered may wait
                in any number.

        Raises:
            DefinitionError: An option has a value that means nothing, or ``apps`` has something
                that is no application, or two of one name and version.
        """
        check_given(inputs, limits, store, watch)
        self._options = RuntimeOptions(
            threads=threads,
            commit_deadline=commit_deadline,
            grace=grace,
            max_crashes=max_crashes,
            seed=seed,
            debug=debug,
            max_runs=max_runs,
            waiting=waiting,
        )
        self._options.check()
        self.inputs: Mapping[str, object] = dict(inputs or {})
        self.limits: Limits | None = limits
        if limits is not None:
            limits.stand_on(self, is_runtime=True)
        self.store: Store = store if store is not None else NullStore()
        self.executor: Place | None = executor_named(executor, "Runtime(executor=...)")
        self.watch: bool | None = True if progress and watch is None else watch
        self._progress = progress
        self._shown = ExitStack()  # the display of the progress, while the block lasts
        self._recoverables = Recoverables(apps, self.store)
        self._tasks: RuntimeTasks | None = None
        self._roots = RunRegistry()
        # The KeyboardInterrupt or SystemExit out of a run that nothing awaits: the block raises it.
        self._fatal: BaseException | None = None
        self._status: Literal["new", "open", "closing", "closed"] = "new"

    # Between the start of its task group and the end of that, nothing may be torn: see
    # test_ctrl_c_anywhere_on_trio.
    @ki_protected
    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            BadUse: It is open already.
        """
        if self._status in ("open", "closing"):
            msg = "the runtime is open already: another block needs another Runtime(...)"
            raise BadUse(msg)
        display = new_display() if self._progress else None  # first of all: it may refuse
        self._status = "open"
        backend = current_backend()
        protect_from_ctrl_c(backend)
        self._drain = DrainSignal()
        self._fatal = None
        tasks = RuntimeTasks(backend)
        self.services: Services = bind_services(backend, tasks, self._host, self._options)
        self._admission = self.services.admission
        self._seats = Seats.of(self._options.max_runs, self._options.waiting, backend.clock)
        self._watching = Watching(
            backend.clock,
            backend.alarm or tasks.alarm,
            tasks.start_own,
            is_real=backend.is_real,
            deadline=self._options.commit_deadline,
            limits=self._limits_in_use,
            carry_out=self._carry_out,
        )
        self._tasks = await tasks.__aenter__()
        if display is not None:
            self._shown.enter_context(showing(display, self._watching.listen))
        return self

    @ki_protected
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
        reason = "the runtime was closed"
        with self._shown:
            interruption = await self._roots.close(reason, cancelling=error is not None)
        self._watching.close()
        if self.services.pools.must_close:
            tasks.start_own(self.services.pools.aclose)  # the block ends after all of its tasks
        self._admission.close()
        self.services.watchdog.close()
        try:
            # The task group never sees what the block raised: it would wrap it in a group.
            await tasks.__aexit__(None, None, None)
        except get_cancelled_exc_class() as cancelled:
            interruption = first_of(interruption, cancelled)
        except BaseExceptionGroup as group:
            # On trio, a Ctrl-C may hit a task before it comes to any code of the engine's.
            self._fatal = fatal_leaf(group)
            if self._fatal is None:
                raise
        finally:
            self._status = "closed"
            self._tasks = None
            del self.services, self._watching  # they lead back here
        fatal, self._fatal = self._fatal, None
        try:
            if fatal is not None and not is_exit(error):
                raise fatal from None
            if interruption is not None and error is None:
                raise interruption
        finally:
            del error, fatal, interruption  # breaks the traceback cycle

    def scopes(self, owner: object, limits: Limits | None) -> tuple[Limiter, ...]:
        """Return the limiters of all attempts in a run of ``owner``: its own, and the runtime's."""
        limiter = self._admission.limiter
        own = () if self.limits is None else (limiter(self, self.limits),)
        return own if limits is None else (*own, limiter(owner, limits))

    def limiter(self, owner: object = None) -> Limiter:
        """Return the limiter of ``owner``: to look at, and to change its limits.

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
        return limiter_that_counts(self._admission, found)

    def limiters(self) -> Mapping[str, Limiter]:
        """Return all limiters in use here so far, by the names of their owners.

        The runtime's own is called ``""``. Several owners of one name have a limiter each; the
        later ones have a number behind the name.
        """
        self.check_open()
        return self._limiters()

    def _limiters(self) -> Mapping[str, Limiter]:
        if self.limits is not None:
            self._admission.limiter(self, self.limits)
        return named_limiters(self._admission.limiters.by_owner, self)

    def circuits(self, owner: Act, name: str = "") -> Circuits:
        """Return the circuits of a fan-out that has a breaker: to look at.

        Args:
            owner: The fan-out; or the action whose own fan-out it is.
            name: Of an action, the name of the fan-out.

        Raises:
            BadUse: The runtime is not open, or that fan-out has no breaker, or has not run here.
        """
        self.check_open()
        return circuits_of(self.services.circuits, owner, name)

    async def run(
        self,
        app: Runnable[R_co],
        state: Any = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
    ) -> R_co:
        """Run an application here; see ``Application.run``.

        Several at once share the runtime's inputs, limits, threads and store. One that fails, or
        whose caller is cancelled, does nothing to the others.
        """
        with frames_hidden:
            return await app.run(
                state,
                id=id,
                inputs=inputs,
                answers=answers,
                halt_before=halt_before,
                halt_after=halt_after,
                priority=priority,
                owner=owner,
                runtime=self,
            )

    async def start(
        self,
        app: Startable[S],
        state: Any = None,
        *,
        id: str | None = None,
        inputs: Mapping[str, object] | None = None,
        answers: Answers | None = None,
        halt_before: Iterable[Act | str] = (),
        halt_after: Iterable[Act | str] = (),
        priority: Priority | None = None,
        owner: str | None = None,
    ) -> RunHandle[S]:
        """Start a run that outlives its caller, and return once it has begun.

        With a store, the run's beginning is saved by then, or the store's record of it was read, so
        a started run is not lost. The run goes on whatever becomes of the caller; it ends with the
        runtime at the latest. If it fails, neither the runtime nor other runs notice: the failure
        is in the handle. A KeyboardInterrupt or SystemExit from inside cancels the runtime's block,
        which raises it.

        Args:
            app: The application.
            state: As for ``Application.run``; so are the others.
            id: Names the run, which goes on if the store has it; by default a random one.
            inputs: What the actions take besides fields.
            answers: Answers to questions that the run has asked before.
            halt_before: Acts of the graph before which the run halts.
            halt_after: Acts of the graph after which the run halts.
            priority: How urgent it is, beside others that wait for limits.
            owner: Whose run it is.

        Raises:
            Draining: The runtime takes no more runs.
            RunConflict: The store has a run of that id which was started with something else.
            RunClaimed: Another execution of the run goes on.
            Exception: What else ``Application.run`` raises before an action starts. If the caller
                is cancelled until then, the run is cancelled too, and awaited.
        """
        with frames_hidden:
            return await app.start(
                state,
                id=id,
                inputs=inputs,
                answers=answers,
                halt_before=halt_before,
                halt_after=halt_after,
                priority=priority,
                owner=owner,
                runtime=self,
            )

    def stores(self) -> Sequence[Store]:
        """Return the stores of the runtime and of its applications, each once."""
        return self._recoverables.stores()

    def find(self, run_id: str) -> RunHandle[Any] | None:
        """Return a root run that goes on here, however it was started; None if there is none.

        If several have that id, as runs without a store may, it is the one that began first.
        """
        root = self._roots.find(run_id)
        return None if root is None else RunHandle(root)

    def runs(self) -> Sequence[RunHandle[Any]]:
        """Return the root runs that go on here, in order of their beginning."""
        return [RunHandle(root) for root in self._roots]

    @property
    def load(self) -> RunLoad:
        """How many root runs execute here, and how many wait for their turn."""
        self.check_open()
        return RunLoad(len(self._roots), 0) if self._seats is None else self._seats.load

    def ended_runs(self) -> Mapping[tuple[str, Status], int]:
        """Return how many executions of root runs have ended here, by application and status."""
        return self._roots.ended.copy()

    # -- its end --------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether runs can be executed here: it is open, drained or not, and its tasks are well."""
        return self._status == "open" and self._tasks is not None and not self._tasks.is_cancelled

    @property
    def draining(self) -> bool:
        """Whether it takes no more runs, because it is about to be closed."""
        return self._status != "new" and self._drain.is_set

    async def wait_draining(self) -> None:
        """Wait until it takes no more runs. Work that never ends by itself should end then."""
        self.check_open()
        await self._drain.event.wait()

    @contextmanager
    def on_draining(self, call: Callable[[], None]) -> Generator[None]:
        """Within the block, call ``call`` when the runtime takes no more runs; or at once.

        It is called at once if that is so already. For work that never ends by itself, such as a
        stream of events. Works across the yields of an async generator, where a task may not wait.
        """
        with self._drain.calling(call):
            yield

    async def drain(self, within: float = math.inf, *, starts_for: float = math.inf) -> None:
        """Take no more runs, and wait for those that go on; after a while, cancel and await them.

        With ``starts_for``, runs that have a store may begin steps and children for so long; then
        they start nothing more (see ``RunHandle.drain``), and the attempts that are under way have
        the rest of ``within`` to end. So none of their work is lost. Runs without a store go on:
        nothing could resume them.

        Runs that halt or are cancelled in this way have no end in their store: they are left as by
        a process that has died, so that another one resumes them by ``recover``.

        A second call waits as well, and the earlier deadlines count. If it is cancelled, the runs
        go on; the runtime takes no more runs all the same.

        Args:
            within: Seconds that runs have to end by themselves; 0: they are cancelled at once.
            starts_for: Seconds in which runs may start something; 0: they start nothing more.

        Raises:
            BadUse: The runtime is not open.
        """
        for name, seconds in (("within", within), ("starts_for", starts_for)):
            if seconds != 0 and not is_positive(seconds) and seconds != math.inf:
                msg = f"drain({name}=...) takes a number of seconds, at least 0, not {seconds!r}"
                raise BadUse(msg)
        if self._status != "closing":
            self.check_open()
        self._drain.set()
        reason = "the runtime is being drained"
        if self._seats is not None:  # nothing of them has begun: another process has them sooner
            self._seats.refuse_waiting(partial(Draining, DRAINED))
        with move_on_after(within):
            with move_on_after(starts_for):
                await self._roots.wait_empty()
            self._roots.drain_all(reason)
            await self._roots.wait_empty()
        await self._roots.interrupt_all(reason)

    # -- recovery -------------------------------------------------------------------------------

    @property
    def can_recover(self) -> bool:
        """Whether it has applications, and their stores can find orphans."""
        return self._recoverables.have_orphans

    async def recover(self, *, secrets: Secrets | None = None) -> Sequence[Recovered]:
        """Resume the runs that dead processes have left, and return what became of each.

        These orphans are the root runs, in the runtime's store and in those of its ``apps``, that
        have begun and not ended, and that no process executes: their process is gone, or gave no
        sign of life for as long as its lease, or has lost its store. Each is resumed under the
        application of its name and version. Runs that have failed or were cancelled have ended, and
        stay as they are; so do halted runs, which wait for an answer. A resumed run may halt.

        A run that fails, or can't be resumed, does nothing to the others: its error is in its
        ``Recovered``. If several processes recover at once, each run goes to one of them, and is
        returned there alone.

        Up to 100 runs are under way at once, in the runtime's tasks. If the caller is cancelled,
        they are cancelled, awaited, and left consistent. A service awaits this in a task beside its
        work.

        Args:
            secrets: The secret fields of the runs that have some, because they are saved nowhere: a
                mapping, the same for all; or a function, also an async one, that is given an
                ``Orphan`` (``run_id``, ``application``, ``version`` and ``secret``, the names) and
                returns the run's fields. A run that lacks some is left as it is, with
                ``MissingSecret``.

        Raises:
            BadUse: The runtime is not open, or has no ``apps``, or no store that can find orphans.
            StoreFailed: A store could not be read; nothing was resumed.

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
        check_secrets(secrets, "recover")
        self._recoverables.check()
        found = await self._recoverables.orphans()
        recovered: list[Recovered] = []
        if found:
            recovery = Recovery(self._recoverables, found, self, recovered.append, secrets)
            task = self._host(recovery.run, recovery.on_cancel)
            interruption = await task.wait()
            try:
                interruption = first_of(task.fatal, interruption)
                if interruption is not None:
                    raise interruption
            finally:
                del interruption  # breaks the traceback cycle
        return recovered

    async def keep_recovering(self, every: float = 10.0, *, secrets: Secrets | None = None) -> None:
        """Resume the runs that dead processes leave, again and again, until the runtime is drained.

        As ``recover``, but the runs belong to the runtime, as if they had been started here, and
        how they end is in their store. A run that can't be resumed is logged, once. A service
        awaits this in a task beside its work. If it is cancelled, it looks for no more orphans;
        those it has resumed go on.

        Args:
            every: Seconds from one look to the next.
            secrets: As for ``recover``.

        Raises:
            BadUse: As ``recover``.
        """
        self.check_open()
        if not is_positive(every):
            msg = f"keep_recovering(every=...) takes a number of seconds above 0, not {every!r}"
            raise BadUse(msg)
        check_secrets(secrets, "keep_recovering")
        self._recoverables.check()
        await Watch(self._recoverables, self, self._drain.event, secrets).keep(every)

    # -- the tasks in it ------------------------------------------------------------------------

    @ki_protected
    def begin(self, root: RootRun, *, is_detached: bool = False) -> BackgroundTask:
        """Start a task that executes a root run.

        Args:
            root: The run. It says itself how it ends; see ``RootRun.failure``.
            is_detached: Whether nothing awaits the task, so that a KeyboardInterrupt or SystemExit
                out of the run is raised by the runtime's block.

        Raises:
            Draining: The runtime takes no more runs.
            Overloaded: As many runs wait for their turn as may.
        """
        self.check_open()
        if self.draining:
            msg = f"run {root.path.id} was not started: {DRAINED}"
            raise Draining(msg)
        if self._seats is not None:
            seat = self._seats.enter(
                root.path.id,
                is_recovered=root.is_recovered,
                is_detached=is_detached,
                priority=root.priority,
            )
            root.take(seat)
        self._roots.add(root)
        # Before the task starts: with eager tasks it may have ended when it has.
        self._watching.begin(root, self.watch if root.wants_watch is None else root.wants_watch)
        root.task = self._host(
            partial(lived_within, self._options.grace, root.path.id, root.execute),
            root.on_cancel,
            partial(self._on_ended, root, is_detached=is_detached),
        )
        return root.task

    def watch_reports(self, listener: Callable[[RootRun, Report], None]) -> Callable[[], None]:
        """Call ``listener`` with each report about a watched run; return what ends that."""
        self.check_open()
        return self._watching.listen(listener)

    def _limits_in_use(self) -> LimitsInUse:
        return limits_in_use(self._limiters(), self.services)

    async def carry_out(self, command: Command) -> bool:
        """Carry out a command for a run of this runtime; return whether it has one of that id.

        Raises:
            Exception: It can't be carried out; see ``shoal.stores.Command``.
        """
        root = self._roots.find(command.run_id)
        if root is not None:
            await self._carry_out(root, command)
        return root is not None

    async def _carry_out(self, root: RootRun, command: Command) -> None:
        await carry_out(root, command, self._limiters)

    def _on_ended(self, root: RootRun, *, is_detached: bool) -> None:
        """Notify the followers of a root run that has ended; see to what came out of it."""
        root.notify_ended()
        self._roots.remove(root)
        root.leave_seat()
        fatal = root.task.fatal if is_detached else None
        if is_exit(fatal):
            # Nothing awaits the run, so the block raises it. Not raised here: a SystemExit in a
            # task would break off the event loop itself, with everything else that lives there.
            self._fatal = first_of(self._fatal, fatal)
            assert self._tasks is not None, "the block ends after them"
            self._tasks.cancel()
        elif fatal is not None:
            message = "run %s was ended by %s, no Exception: its result() raises that"
            logger.error(message, root.path.id, kind_of(fatal))

    def _host(
        self,
        work: Work,
        on_cancel: Callable[[str], None],
        on_ended: Callable[[], None] | None = None,
    ) -> BackgroundTask:
        """Start ``work`` in a task of its own; see ``BackgroundTask``."""
        assert self._tasks is not None, "the block ends after them"
        return BackgroundTask(
            work,
            on_cancel,
            self.services.watchdog,
            self._tasks.kinds,
            start=self._tasks.start,
            start_again=self._tasks.start_again(),
            on_ended=on_ended,
        )

    def check_open(self) -> None:
        """Refuse to be used outside of its block.

        Raises:
            BadUse: It is not open yet, or its block was left.
        """
        if self._status != "open":
            how = "not open yet" if self._status == "new" else "closed"
            msg = f"the runtime is {how}: use it inside `async with Runtime(...) as runtime`"
            raise BadUse(msg)
