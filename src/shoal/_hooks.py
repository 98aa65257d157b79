"""Hooks, and telling them in order. Imports values and anyio.

Invariants:
- Hooks are told one after the other, in the order they were given, each event to its end before the
  next one. Nothing is built or called for an event that no hook listens to.
- A guarding hook that raises fails the run. An observer that raises is reported once and then left
  alone; the run doesn't notice.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, ClassVar, TypeVar, cast, final

from anyio import CancelScope, fail_after

from ._errors import DefinitionError, HookFailed
from ._events import (
    ChildEnded,
    ChildStarted,
    Event,
    RunEnded,
    RunStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
)

logger = logging.getLogger("shoal.hooks")
E_ = TypeVar("E_", bound=Event)
Told = Awaitable[None] | None

HOOK_DEADLINE = 30.0
"""Seconds an asynchronous hook may take for one event. It can't be cancelled by what goes on around
it, so that starts and ends are told in pairs; this bound keeps it from holding a run for ever."""


class Hook:
    """Base class of what watches runs: override what you want to be told.

    Every method is told one event and may be a plain function or a coroutine function. A hook is
    told of a run and of all its descendants, at most once, after what it is told of has been saved.
    Asynchronous hooks are shielded from cancellation and have 30 seconds for one event.

    A hook guards the run unless its class says ``observer = True``: what a guard raises fails the
    run with ``HookFailed`` (the update it was told of stays); an observer that raises is logged
    once and told nothing more.
    """

    observer: ClassVar[bool] = False

    def on_run_started(self, event: RunStarted) -> Told:
        """Hear that a run began."""

    def on_step_started(self, event: StepStarted) -> Told:
        """Hear that a run is about to execute an action."""

    def on_state_updated(self, event: StateUpdated) -> Told:
        """Hear that a run's state changed, and how."""

    def on_child_started(self, event: ChildStarted) -> Told:
        """Hear that a fan-out started a child."""

    def on_child_ended(self, event: ChildEnded) -> Told:
        """Hear how a child ended, after the parent's update that applies it."""

    def on_step_ended(self, event: StepEnded) -> Told:
        """Hear that an action ended, well or not."""

    def on_run_ended(self, event: RunEnded) -> Told:
        """Hear that an execution of a run ended, well or not."""

    def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
        """Return a context manager that is entered around the step, in the step's own context.

        Everything that the step does happens inside, its children too; so spans nest.
        """
        raise NotImplementedError


Listener = tuple[Hook, Callable[[Any], Told]]
Listeners = tuple[Listener, ...]


@final
class Hooks:
    """The hooks of a run and its descendants, sorted by what they listen to."""

    __slots__ = (
        "_hooks",
        "around_step",
        "child_ended",
        "child_started",
        "listening",
        "run_ended",
        "run_started",
        "state_updated",
        "step_ended",
        "step_started",
    )
    around_step: Sequence[tuple[Hook, Callable[[StepStarted], AbstractContextManager[object]]]]

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        """Sort ``hooks``.

        Raises:
            DefinitionError: One of them is no ``Hook``.
        """
        self._hooks = tuple(hooks)
        for hook in self._hooks:
            if not isinstance(hook, Hook):  # pyright: ignore[reportUnnecessaryIsInstance]
                what = "its class: write it with ()" if isinstance(hook, type) else "no Hook"
                msg = f"hooks= takes instances of shoal.Hook; {hook!r} is {what}"
                raise DefinitionError(msg)
        self._sort()

    def _sort(self) -> None:
        self.run_started = self._listeners("on_run_started")
        self.step_started = self._listeners("on_step_started")
        self.state_updated = self._listeners("on_state_updated")
        self.child_started = self._listeners("on_child_started")
        self.child_ended = self._listeners("on_child_ended")
        self.step_ended = self._listeners("on_step_ended")
        self.run_ended = self._listeners("on_run_ended")
        self.around_step = self._listeners("around_step")
        # whether anybody listens to what a commit publishes
        self.listening = bool(
            self.state_updated or self.child_ended or self.step_ended or self.run_ended
        )

    def _listeners(self, method: str) -> tuple[Any, ...]:
        original = getattr(Hook, method)
        return tuple(
            (hook, getattr(hook, method))
            for hook in self._hooks
            if getattr(type(hook), method) is not original
        )

    async def tell(self, listeners: Listeners, event: Event) -> None:
        """Tell ``event`` to each listener in turn, whatever is cancelled meanwhile.

        All of them are told, also where a guard raises.

        Raises:
            HookFailed: A guarding hook raised, or took longer than 30 seconds.
        """
        failure: HookFailed | None = None
        for hook, method in listeners:
            try:
                pending = method(event)
                if pending is not None:
                    await _finish(pending)
            except Exception as error:  # noqa: BLE001 # reported as what the hook's class says
                failure = self._failed(hook, event, error) or failure
        if failure is not None:
            raise failure

    def _failed(self, hook: Hook, event: Event, error: Exception) -> HookFailed | None:
        name = type(hook).__name__
        if hook.observer:
            logger.error(
                "observer %s failed on %s and is told nothing more",
                name,
                type(event).__name__,
                exc_info=error,
            )
            self._hooks = tuple(other for other in self._hooks if other is not hook)
            self._sort()
            return None
        msg = (
            f"hook {name} raised {error!r} when told {type(event).__name__} of run {event.run_id}; "
            f"the run ends here, what it was told of stays saved "
            f"(set observer = True on its class if the run should go on)"
        )
        failure = HookFailed(msg)
        failure.__cause__ = error
        return failure

    def enter_around(self, event: StepStarted) -> ExitStack:
        """Enter what the hooks put around a step; the caller closes what is returned."""
        with ExitStack() as stack:
            for hook, around in self.around_step:
                try:
                    stack.enter_context(around(event))
                except Exception as error:  # noqa: BLE001 # reported as what the hook's class says
                    failure = self._failed(hook, event, error)
                    if failure is not None:
                        raise failure from error
            return stack.pop_all()


async def _finish(pending: Awaitable[None]) -> None:
    with CancelScope(shield=True), fail_after(HOOK_DEADLINE):
        await pending
