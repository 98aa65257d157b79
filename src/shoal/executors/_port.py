"""The port of executors: where the functions of actions are called.

What an executor is given is one call of one function: one attempt of an action. Everything else
stays in the process that executes the run: the walk, limits, retries, updates, hooks, stores. So an
executor knows no run, no graph and no store.

An ``Executor`` is what users declare. It is immutable, is compared by identity, and holds nothing
open. An open runtime makes a ``Pool`` of it when it is first needed, and keeps the pool until the
runtime's block ends. For each attempt, the pool makes a ``Call``.

Invariants:
- A pool belongs to one runtime, and so to one event loop. All of its methods are called there.
- An attempt holds a slot of the pool's gate before ``Pool.call``, and until the function of that
  call is no longer at work, wherever that is.
- What a function raises reaches the caller of ``Call.call``. What became of its worker, or of the
  way there, is raised as ``WorkerDied`` or ``NotSendable`` and never as anything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

from shoal._concurrency.backend import Backend
from shoal._concurrency.background import StartTask
from shoal._limits.gates import Gate
from shoal._limits.timers import SetAlarm
from shoal._state.state import FieldAccess

Kind = Literal["plain", "async", "stream"]
"""How a function is called: as it is, awaited, or advanced as an async generator."""


@final
@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False, kw_only=True)
class Job:
    """The function of an action, and what an executor has to know to call it.

    There is one for each action and each of its bound copies, as long as the action lives. Jobs are
    compared by identity, so a pool may remember by job, weakly, what it has sent where.
    """

    function: Callable[..., object]
    """The function itself, not the action that ``@action`` has put in its place. So looking it up
    by its module and name may find that action, whose attribute ``function`` it is. A bound method
    if the action is an instance of a subclass of ``shoal.Action``."""
    name: str
    """The name of the action, for messages."""
    kind: Kind
    access: FieldAccess | None = None
    """The fields of the state that the function may use, if it takes the state; else None."""
    takes_context: bool = False
    """Whether the function has the parameter ``context``."""


class ContextPort(Protocol):
    """The context of one attempt, as an executor may use it for a function that is elsewhere.

    All of it is called on the event loop, in the task that awaits ``Call.call``. The promises and
    errors of each member are those of ``shoal.Context``. Its ``idempotency_key`` is a hash of what
    ``_effects.effect_of`` returns, and of the values of fields: it is computed where the function
    runs, if that asks for it.
    """

    # `Any` where the type is of a module above, which can't be imported here.
    @property
    def path(self) -> Any:
        """The run's ``RunPath``: a frozen dataclass of plain values, nested by ``parent``."""
        ...

    @property
    def step(self) -> str:
        """The name of the action."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        ...

    @property
    def deadline(self) -> float:
        """When the action will be cancelled, on the clock of the loop; inf if that isn't known."""
        ...

    def charge(self, actual: float, *, unit: str | None = None) -> None:
        """Replace what ``Limits(cost=)`` has charged for the attempt."""
        ...

    def learn(self, headers: Mapping[str, str]) -> None:
        """Adjust the rates of the attempt to what the headers of a response say."""
        ...

    def note(self, text: object) -> None:
        """Describe what the action is doing, for displays and pages."""
        ...

    def span(self, name: str, **attributes: object) -> AbstractContextManager[None]:
        """Mark a part of the action."""
        ...

    def emit(self, item: object) -> Awaitable[None]:
        """Publish a partial item. Await it in the task that awaits ``Call.call``."""
        ...

    def ask(self, name: str, question: object = None, answer: Any = None) -> Awaitable[Any]:
        """Ask a person; raises ``Halting`` if there is no answer yet.

        ``answer`` is the JSON schema of answers: what the type is, is known where the function is.

        The function must end by ``Halting`` then: ``Call.call`` raises the one that the function
        has raised where it ran.
        """
        ...

    def fan_out(self, **options: Any) -> Any:
        """Return the ``ChildGroup`` of children started from within the action.

        It is entered, used and left in the task that awaits ``Call.call``. The function is
        ``async def``: a plain one is refused by the executor, in the words of ``Context.fan_out``.
        """
        ...


class ItemsPort(Protocol):
    """Takes the partial items that a streaming action yields."""

    @property
    def step(self) -> str:
        """The name of the action."""
        ...

    @property
    def run_id(self) -> str:
        """The id of the run."""
        ...

    @property
    def count(self) -> int:
        """The number of items so far."""
        ...

    def give(self, item: object) -> Awaitable[None] | None:
        """Publish an item; if an awaitable is returned, the generator goes on once it is done.

        Called, and awaited, in the task that awaits ``Call.call``. If it raises an ``Exception``,
        the generator is closed where it runs and ``Call.call`` raises that exception.
        """
        ...

    def hide_secrets(self, error: BaseException) -> None:
        """Mask the secrets of the run in an error that is about to be logged."""
        ...


class TimePort(Protocol):
    """The time that one attempt may take. It runs while the attempt's task is within its timeout.

    Called on the event loop, also outside of that task.
    """

    def stop(self) -> None:
        """Let no time pass: the function waits for a worker, and has not begun."""
        ...

    def start(self) -> None:
        """Let the whole time run, from now; nothing if it runs already."""
        ...


class Call(Protocol):
    """One call of a function: made by ``Pool.call`` and used for one attempt.

    Its states: not sent, at work, ended. ``call`` is awaited once.
    """

    @property
    def grace(self) -> float:
        """Seconds that the function is waited for after a cancellation of ``call``."""
        ...

    def call(
        self,
        job: Job,
        kwargs: Mapping[str, Any],
        *,
        abandon: bool = False,
        alone: bool = False,
        context: ContextPort | None = None,
        items: ItemsPort | None = None,
        on_cancelled: Callable[[], None] | None = None,
        time: TimePort | None = None,
    ) -> Coroutine[Any, Any, object]:
        """Call the function of ``job`` and return its result, or raise its exception. Awaited once.

        The result is what the function returned, checked by ``_results.finished``: for a job with
        ``access``, the ``Change`` that leads from the state that it was given to the one that it
        returned; for a stream, the value of its ``Result``. Operations of a state don't survive
        pickling, so the change is worked out where the function ran.

        **Cancellation.** A function that has not begun never begins. One that is at work is told
        at once, if its kind can be told, and waited for with its cleanup; a result that comes after
        the cancellation is dropped. Once the grace is over, a worker that can be ended is ended,
        and the cancellation raised. One that can't be (a thread) is left behind: the cancellation
        is raised while ``is_running`` stays true. No ``await`` of this is left hanging, whatever
        becomes of the worker and of the pool.

        Args:
            job: The function.
            kwargs: Its arguments by name, but for ``context``. With ``access``, ``state`` is the
                narrowed ``State``; the function gets it whole, secret fields included, though a
                pickle of a ``State`` leaves those out.
            abandon: Whether not to wait for the function after a cancellation: as with no grace.
            alone: Whether no other call is at work in the same worker meanwhile: this one has its
                last chance before it is taken for what kills workers. The call waits until there is
                such a worker. In threads, which share a process, it means nothing.
            context: The context, if the job takes one. In this process, the function gets it as the
                argument ``context``.
            items: Takes the items of a stream; None for other kinds.
            on_cancelled: Called on the loop if the function is still at work when this is
                cancelled, before its end is waited for.
            time: The time that the function may take. A pool whose calls may wait for a worker
                stops it until the function begins, as far as that is known.

        Raises:
            WorkerDied: The worker ended while the function was at work there. It may have had all
                its effects, or none. ``others`` says how many other calls were at work in the same
                worker, any of which may have killed it. If the function had not begun, the call is
                moved to another worker, and nothing is raised.
            NoWorker: No worker can be started.
            NotSendable: The function, an argument or the result can't be sent. Acts that are chosen
                at run time, and fields of the state, are found out here for the first time.
            BaseException: What the function raised: its own exception where it can be sent, else
                ``RemoteError``. ``Halting`` and ``RetryLater`` are always sent as themselves. What
                ``initializer=`` raised is raised by each call.
        """
        ...

    @property
    def is_running(self) -> bool:
        """Whether the function is at work. If it has not begun, it never will after this."""
        ...

    @property
    def place(self) -> str:
        """Where the function stands, for messages: its file, line and name, as far as is known."""
        ...

    def leave(self, call: Callable[[], None]) -> None:
        """Call ``call`` on the loop as soon as the function has ended: now, if it doesn't run."""
        ...


class Pool(Protocol):
    """An executor that is open: what one runtime has of it."""

    @property
    def gate(self) -> Gate:
        """The gate of the pool, always the same: from ``PoolHost.new_gate``.

        Its slots are the calls that the pool takes at once. The pool changes their number with
        ``PoolHost.resize`` as it learns how long calls take.
        """
        ...

    def call(self) -> Call:
        """Make a call. Cheap, and starts nothing. The caller holds a slot of ``gate`` for it.

        A coroutine function that waits for children of its own (``context.fan_out``) gives its slot
        to others meanwhile, so that any depth of nesting goes on. So more calls may be open than
        the gate has slots, and of those that are not plain none may wait for another to end.
        """
        ...

    async def aclose(self) -> None:
        """End all workers and tasks of the pool. Called once, shielded from cancellation.

        No ``Call.call`` is awaited any more, but functions that were left behind may be at work.
        It returns within the grace of the host, or soon after: what hasn't ended by then is killed,
        or, if it can't be, left behind. What goes wrong is logged, not raised.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHost:
    """What a runtime offers to the pools that are open in it."""

    backend: Backend
    """The event loop: its library, its clock, its ``call_soon`` for other threads."""
    grace: float
    """Seconds that a function is waited for after a cancellation, by default."""
    threads: int
    """``Runtime(threads=)``: worker threads that calls on this machine may use at once."""
    set_alarm: SetAlarm
    """Makes the loop call a function at a time, and returns a function that calls that off."""
    start_task: StartTask
    """Starts a task of the runtime's, given a function without arguments that returns a coroutine.

    Callable in callbacks of the loop, too. Cancellations of the runtime don't reach the task: the
    pool ends all of its tasks in ``aclose``. An exception that is not caught cancels the whole
    runtime, so the task catches what it can."""
    serve: Callable[[Gate], None]
    """Grants what waits at a gate whose slots have changed."""

    def new_gate(self, slots: float, name: str) -> Gate:
        """Make the gate of a pool.

        Args:
            slots: Calls at once, at first.
            name: What people are told an attempt waits for: "threads", "processes".
        """
        return Gate(slots, name=name)

    def resize(self, gate: Gate, slots: float) -> None:
        """Change how many calls a pool takes at once. With fewer, those under way go on."""
        gate.resize(slots)
        self.serve(gate)


class Executor(ABC):
    """Where the functions of actions are called: declared as ``executor=``, opened by runtimes.

    Give one to ``@action``, to a fan-out, an ``Application`` or a ``Runtime``; the nearest one
    holds for an action. An executor that is given in several places is one pool in each runtime,
    so its workers are shared. The pool is opened when the first function is called there, and stays
    until the runtime is closed.
    """

    name: str = "executor"
    """What watchers and drawings call it."""
    takes: Literal["plain", "all"] = "plain"
    """The functions that it takes if it was inherited: plain ones, or coroutine functions and async
    generators too. The others stay on the event loop. Given to ``@action`` itself, an executor
    takes the action's function of whatever kind."""

    @abstractmethod
    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function or its inputs can't be sent, and what to do; "" if they can be.

        Asked before a run starts, so that nothing has happened if the answer is no: about each
        action that may be called here, as far as they are known by then. ``Call.call`` refuses the
        others. It is asked again at each start, so it remembers, weakly, what it has found out
        about a job. It starts nothing. Runtimes of several threads may ask at once.

        Args:
            job: The function.
            inputs: The inputs that the function takes, by name; without fields of the state, which
                only the call can tell.
        """

    @abstractmethod
    def open(self, host: PoolHost) -> Pool:
        """Make a pool for a runtime. Cheap, and starts no worker: those start with the first call.

        Args:
            host: The runtime.
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
