"""``Hook``, and calling hooks in order.

Invariants:
- Hooks receive an event one after the other, in the order in which they were given. The updates
  and ends of one run arrive one at a time. Starts of children, and events of different runs, may
  overlap while a hook waits.
- Nothing is built or called for an event without listeners.
- A guarding hook that raises fails the run. An observer that raises is reported once and receives
  nothing more; the run goes on.
- A hook that joins later receives all later events of the run and of all its descendants.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from sys import intern
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast, final
from weakref import WeakSet

from anyio import CancelScope, move_on_after

from shoal._concurrency.cancellation import as_failure, shielded_wait
from shoal._concurrency.watchdog import calls
from shoal._errors.exceptions import DefinitionError, HookFailed, brief, kind_of

from .events import (
    COMMIT_METHODS,
    HOOK_METHODS,
    AttemptEnded,
    ChildEnded,
    ChildHalted,
    ChildRerun,
    ChildStarted,
    Event,
    GraceExceeded,
    HedgeEnded,
    HedgeStarted,
    Item,
    LeaderChanged,
    RunEnded,
    RunStarted,
    RunSteered,
    SpanStarted,
    Spent,
    StateUpdated,
    StepEnded,
    StepStarted,
    WaitEnded,
    Waiting,
)

logger = logging.getLogger("shoal.hooks")
HookResult = Awaitable[None] | None

HOOK_DEADLINE = 30.0
"""Seconds an asynchronous hook may take for one event. A cancellation around it can't stop it, so
that every start has its end; this bound keeps it from holding a run for ever. 30 s is what a slow
database or HTTP request may take before it is taken for stuck."""


class Hook:
    """Base class of hooks: override the methods whose events you want.

    Every method receives one event and may be a plain function or a coroutine function. A hook
    receives the events of a run and of all its descendants, each at most once, and only after the
    change is saved. Asynchronous hooks are shielded from cancellation and have 30 seconds for one
    event. An exception from the last event of a run can't change how the run is saved to have
    ended.

    A hook guards the run unless its class says ``observer = True``. An exception of a guard fails
    the run with ``HookFailed``; the update of its event stays saved. An exception of an observer
    is logged. Both receive nothing more afterwards.

    ``on_event`` receives every event that the class has no method of its own for.
    """

    observer: ClassVar[bool] = False
    _deadline: ClassVar[float] = HOOK_DEADLINE

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a method whose name is nearly that of a hook's: nothing would ever call it."""
        super().__init_subclass__(**options)
        known = [name for name in vars(Hook) if name.startswith(("on_", "around_"))]
        for name in vars(cls).keys() - known:
            for meant in get_close_matches(name, known, n=1, cutoff=0.85):
                msg = f"nothing calls {cls.__name__}.{name}; did you mean {meant!r}?"
                raise DefinitionError(msg)

    def on_event(self, event: Event) -> HookResult:
        """Receive any event that the class has no method of its own for."""

    def on_run_started(self, event: RunStarted) -> HookResult:
        """Called when an execution of a run has begun."""
        return self.on_event(event)

    def on_step_started(self, event: StepStarted) -> HookResult:
        """Called when a run is about to execute an action."""
        return self.on_event(event)

    def on_waiting(self, event: Waiting) -> HookResult:
        """Called when a child or an attempt of an action begins to wait for a limit."""
        return self.on_event(event)

    def on_wait_ended(self, event: WaitEnded) -> HookResult:
        """Called when the limit that an attempt of an action waited for has room for it."""
        return self.on_event(event)

    def on_hedge_started(self, event: HedgeStarted) -> HookResult:
        """Called when a second copy of a late attempt has begun."""
        return self.on_event(event)

    def on_hedge_ended(self, event: HedgeEnded) -> HookResult:
        """Called when such a copy has ended, and says whether its result is used."""
        return self.on_event(event)

    def on_item(self, event: Item) -> HookResult:
        """Called with each partial item of an action at work. Items are not saved."""
        return self.on_event(event)

    def on_leader_changed(self, event: LeaderChanged) -> HookResult:
        """Called when a contestant leads a race by ``first_item``, or does so no more."""
        return self.on_event(event)

    def on_attempt_ended(self, event: AttemptEnded) -> HookResult:
        """Called when an attempt of a step with a ``retry`` ended; says when the next begins."""
        return self.on_event(event)

    def on_spent(self, event: Spent) -> HookResult:
        """Called when an attempt has cost something of a budget."""
        return self.on_event(event)

    def on_state_updated(self, event: StateUpdated) -> HookResult:
        """Called when a run's state has changed; the event has the update."""
        return self.on_event(event)

    def on_child_started(self, event: ChildStarted) -> HookResult:
        """Called when a fan-out has started a child."""
        return self.on_event(event)

    def on_child_rerun(self, event: ChildRerun) -> HookResult:
        """Called when a child runs again from its start because its input has changed."""
        return self.on_event(event)

    def on_child_halted(self, event: ChildHalted) -> HookResult:
        """Called when a child waits for answers; its siblings go on."""
        return self.on_event(event)

    def on_child_ended(self, event: ChildEnded) -> HookResult:
        """Called when a child ended, after the parent's update that applies its result."""
        return self.on_event(event)

    def on_step_ended(self, event: StepEnded) -> HookResult:
        """Called when an action ended, successfully or not."""
        return self.on_event(event)

    def on_run_ended(self, event: RunEnded) -> HookResult:
        """Called when an execution of a run ended, successfully or not."""
        return self.on_event(event)

    def on_grace_exceeded(self, event: GraceExceeded) -> HookResult:
        """Called when an action still runs long after it was cancelled; says where it stands."""
        return self.on_event(event)

    def on_run_steered(self, event: RunSteered) -> HookResult:
        """Called when a run was paused, resumed or changed from outside, which is on record.

        By another task than the run's: it may be called while another event of the run is.
        """
        return self.on_event(event)

    def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
        """Return a context manager that is entered around the step, in the step's own context.

        The whole step runs inside, its children too; so spans nest.
        """
        raise NotImplementedError

    def around_span(self, event: SpanStarted) -> AbstractContextManager[object]:
        """Return a context manager that is entered around a part of an action: ``context.span``.

        It is entered in the thread where the action runs, which may be a worker thread.
        """
        raise NotImplementedError


E_contra = TypeVar("E_contra", bound=Event, contravariant=True)
Managers = Sequence[tuple[Hook, Callable[[E_contra], AbstractContextManager[object]]]]
Listener = tuple[Hook, Callable[[Any], HookResult]]
Listeners = tuple[Listener, ...]

NAMES = {method: intern(method.removeprefix("on_")) for method in HOOK_METHODS}
"""The attribute of ``Hooks`` that has the listeners of each method."""


@final
class Hooks:
    """The hooks of one execution, sorted by the events that they receive.

    ``failures`` are the errors of guarding hooks.
    """

    if TYPE_CHECKING:
        # The listeners of each class of events are an attribute: ``child_ended`` holds those whose
        # ``on_child_ended`` is called. It is empty, so falsy, if there are none.
        def __getattr__(self, name: str) -> Listeners: ...

    around_step: Managers[StepStarted] = ()
    around_span: Managers[SpanStarted] = ()
    watching_steps: bool = False
    """Whether any hook receives the start of a step, or its attempts."""
    listening: bool = False
    """Whether any hook receives what a commit publishes."""

    def __init__(self, hooks: Iterable[Hook] = (), *, always: Sequence[Hook] = ()) -> None:
        """Sort ``hooks``.

        Args:
            hooks: The hooks that a user gave.
            always: Hooks that receive the events of all runs, after ``hooks``, even if a fan-out
                has other hooks for its children.

        Raises:
            DefinitionError: One of them is not a ``Hook``.
        """
        given: object = hooks
        if type(given) is not tuple and not isinstance(given, Iterable):
            _check_hook(given)
            msg = f"hooks= takes a list: hooks=[{type(given).__name__}(...)]"
            raise DefinitionError(msg)
        self._given: tuple[Hook, ...] = tuple(hooks)
        # By identity: a hook may be equal to another one. Shared with `replaced`, so that a hook
        # that failed in a fan-out is detached in the whole execution.
        self._detached: set[int] = set()
        # All of the execution that `replaced` has made, so that `join` reaches them. Weak: a
        # fan-out's hooks go with it.
        self._others: WeakSet[Hooks] | None = None
        self.failures: list[HookFailed] = []
        self._always: Sequence[Hook] = always
        self.hooks: tuple[Hook, ...] = (*self._given, *always)
        if self.hooks:  # else nothing listens, as the class says: most executions have none
            for hook in self._given:
                _check_hook(hook)
            self._sort(always)

    def _sort(self, always: Sequence[Hook]) -> None:
        self._always = always
        self.hooks = (*self._given, *always)
        for method, name in NAMES.items():
            setattr(self, name, self._listeners(method))
        self.around_step = self._listeners("around_step")
        self.around_span = self._listeners("around_span")
        self.watching_steps = bool(self.step_started or self.around_step or self.attempt_ended)
        self.listening = any(getattr(self, NAMES[method]) for method in COMMIT_METHODS)

    def replaced(self, hooks: Iterable[Hook]) -> Hooks:
        """Return an object that calls ``hooks`` instead, in the same execution."""
        other = Hooks(hooks, always=self._always)
        other._detached, other.failures = self._detached, self.failures
        if self._others is None:
            self._others = WeakSet()
        other._others = self._others
        self._others.add(other)
        return other

    def join(self, hook: Hook) -> None:
        """Add ``hook`` after all others, in every fan-out too.

        Call it on the hooks of the root run.
        """
        for hooks in (self, *(self._others or ())):
            hooks._sort((*hooks._always, hook))

    def leave(self, hook: Hook) -> None:
        """Remove ``hook``, which receives nothing more."""
        for hooks in (self, *(self._others or ())):
            hooks._sort([one for one in hooks._always if one is not hook])

    def _listeners(self, method: str) -> tuple[Any, ...]:
        own, any_event = getattr(Hook, method), Hook.on_event
        listeners: list[Listener] = []
        for hook in self.hooks:
            kind = type(hook)
            if getattr(kind, method) is not own:
                listeners.append((hook, getattr(hook, method)))
            elif method in HOOK_METHODS and kind.on_event is not any_event:
                listeners.append((hook, hook.on_event))
        return tuple(listeners)

    @calls("hook")
    async def notify(self, listeners: Listeners, event: Event) -> None:
        """Call each listener with ``event``, one after the other, even if the task is cancelled.

        All listeners are called, also if a guard raises, or a Ctrl-C arrives.

        Raises:
            HookFailed: A guarding hook raised, or took longer than 30 seconds.
            BaseException: A KeyboardInterrupt or the like was raised in a hook.
        """
        # Raised only after the last listener: the hooks behind a failing one must also receive the
        # event, or they would see a start without an end; see
        # test_a_ctrl_c_in_a_hook_keeps_the_event_from_no_other.
        failed: BaseException | None = None
        for hook, method in listeners:
            if self._detached and id(hook) in self._detached:
                continue
            try:
                pending = method(event)
                if pending is not None:
                    await _finish(pending, hook._deadline)
            except BaseException as error:  # noqa: BLE001 # raised again if it is no failure
                failed = self._worse(failed, hook, event, error)
        try:
            if failed is not None:
                raise failed
        finally:
            del failed  # breaks the traceback cycle

    def notify_nowait(self, listeners: Listeners, event: Event) -> Coroutine[Any, Any, None] | None:
        """Call each listener with ``event``, as long as none has to be awaited.

        Returns a coroutine that awaits the first one that has to be, and calls the others; None if
        all were called.

        Raises:
            HookFailed: All were called, and a guarding hook raised.
            BaseException: All were called, and a KeyboardInterrupt or the like was raised.
        """
        failed: BaseException | None = None
        try:
            others = iter(listeners)
            for hook, method in others:
                if self._detached and id(hook) in self._detached:
                    continue
                try:
                    pending = method(event)
                except BaseException as error:  # noqa: BLE001 # raised again if it is no failure
                    failed = self._worse(failed, hook, event, error)
                    continue
                if pending is not None:
                    return self._notify_rest(hook, pending, tuple(others), event, failed)
            if failed is not None:
                raise failed
            return None
        finally:
            del failed  # breaks the traceback cycle

    @calls("hook")
    async def _notify_rest(
        self,
        hook: Hook,
        pending: Awaitable[None],
        others: Listeners,
        event: Event,
        failed: BaseException | None,
    ) -> None:
        try:
            await _finish(pending, hook._deadline)
        except BaseException as error:  # noqa: BLE001 # raised again if it is no failure
            failed = self._worse(failed, hook, event, error)
        try:
            await self.notify(others, event)
            if failed is not None:
                raise failed
        finally:
            del failed  # breaks the traceback cycle

    def _worse(
        self, failed: BaseException | None, hook: Hook, event: Event, error: BaseException
    ) -> BaseException | None:
        """Blame ``hook`` for ``error``; return what to raise once all hooks were called.

        The first interruption outranks every failure; of failures, the last one is raised.
        """
        failure: BaseException | None
        try:
            failure = self.blame(hook, event, error)
        except BaseException as interruption:  # noqa: BLE001 # raised by the caller
            failure = interruption
        if failure is None or (failed is not None and not isinstance(failed, Exception)):
            return failed
        return failure

    def blame(self, hook: Hook, event: Event, error: BaseException) -> HookFailed | None:
        """Detach a hook that raised: log the error of an observer, return a guard's failure.

        Raises:
            BaseException: ``error`` itself, if it is a KeyboardInterrupt or the like.
        """
        # Hooks are plain functions, or shielded, so a cancellation around them never reaches them:
        # see test_an_observer_that_raises_a_cancellation_while_all_is_cancelled.
        cause = as_failure(error, cancellable=False)
        if cause is None:
            raise error
        name, event_name = type(hook).__name__, type(event).__name__
        # The hook may overlap with itself, in events of two runs, and fail in both: report it once.
        first = id(hook) not in self._detached
        self._detached.add(id(hook))
        if hook.observer:
            if first:
                logger.error(
                    "observer %s failed on %s; it receives no more events",
                    name,
                    event_name,
                    exc_info=cause,
                )
            return None
        what = (
            f"took longer than {HOOK_DEADLINE:g} s"
            if _timed_out(cause)
            else f"raised {brief(cause)}"
        )
        failure = HookFailed(
            f"hook {name} {what} on {event_name} of run {event.run_id}; the run ends here, and the "
            f"update of that event stays saved (observer = True on its class lets a run go on)"
        )
        failure.__cause__ = cause
        self.failures.append(failure)
        return failure

    def enter_around(self, managers: Managers[E_contra], event: E_contra) -> Around:
        """Enter the context managers of the hooks around a step or a span.

        Raises:
            HookFailed: A guarding hook raised; the managers entered before it were left again.
        """
        around = Around(self, event)
        for hook, method in managers:
            if (
                id(hook) not in self._detached
                and (failure := around.enter(hook, method)) is not None
            ):
                around.leave(failure)
                raise failure
        return around


for _name in NAMES.values():
    setattr(Hooks, _name, ())


@final
class Around:
    """The context managers of the hooks around one step or span, entered."""

    __slots__ = ("_entered", "_event", "_hooks")

    def __init__(self, hooks: Hooks, event: Event) -> None:
        self._hooks = hooks
        self._event = event
        self._entered: list[tuple[Hook, AbstractContextManager[object]]] = []

    def enter(
        self, hook: Hook, method: Callable[[Any], AbstractContextManager[object]]
    ) -> HookFailed | None:
        """Enter the context manager of ``hook``; return a guard's failure."""
        try:
            manager = method(self._event)
            manager.__enter__()
        except BaseException as error:  # noqa: BLE001 # raised again if it is no failure
            return self._hooks.blame(hook, self._event, error)
        self._entered.append((hook, manager))
        return None

    def leave(self, error: BaseException | None) -> HookFailed | None:
        """Leave all context managers, last entered first; return a guard's failure.

        The step's own ``error`` is raised whatever the managers return: they can't suppress it.
        """
        failed: HookFailed | None = None
        details = (None, None, None) if error is None else (type(error), error, error.__traceback__)
        while self._entered:
            hook, manager = self._entered.pop()
            try:
                manager.__exit__(*details)
            except BaseException as raised:  # noqa: BLE001 # as above
                if raised is not error:  # a manager that re-raises the step's own has not failed
                    failed = self._hooks.blame(hook, self._event, raised) or failed
        return failed


def _check_hook(hook: object) -> None:
    if not isinstance(hook, Hook):
        what = "a class: write it with ()" if isinstance(hook, type) else "not one"
        msg = f"hooks= takes a list of instances of shoal.Hook; {hook!r} is {what}"
        raise DefinitionError(msg)


def _timed_out(cause: BaseException) -> bool:
    return isinstance(cause, _HookTimeout)


class _HookTimeout(TimeoutError):
    pass


async def _finish(pending: object, deadline: float) -> None:
    if not isinstance(pending, Awaitable):
        msg = (
            f"it returned {kind_of(pending)}; a hook's method returns None or is a "
            f"coroutine function"
        )
        raise TypeError(msg)
    with CancelScope(shield=True):
        with move_on_after(deadline) as scope:
            try:
                await shielded_wait(cast("Awaitable[object]", pending))
            except BaseException as error:  # noqa: BLE001 # raised again, as what it is
                failure = as_failure(error)  # inside the shield, where no outer cancellation counts
                try:
                    if failure is None:
                        raise
                    raise failure from failure.__cause__
                finally:
                    del failure  # breaks the traceback cycle
        if scope.cancelled_caught:
            raise _HookTimeout
