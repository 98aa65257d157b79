"""What hooks are told of a run, in which order. Imports events, hooks, settings.

Invariants:
- Starts and ends are told in pairs: what has begun is told to have ended, once.
- Nothing that is secret is told: an error is masked first, and what else has some is refused.
- All events of one commit are told, also where a guarding hook raises at one of them.
- An update is told after the end of the child that it applies, and before that the child has ended
  for its parent.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from ._errors import HookFailed, brief
from ._events import (
    AttemptEnded,
    ChildEnded,
    ChildHalted,
    ChildRerun,
    ChildStarted,
    Event,
    GraceExceeded,
    Halted,
    Item,
    Outcome,
    Question,
    RunEnded,
    StateUpdated,
    Status,
    StepEnded,
    Update,
    Waiting,
)
from ._hooks import Hooks, Listeners
from ._ids import RunPath
from ._ports import Seat, Services
from ._raised import first_of
from ._setting import Setting

logger = logging.getLogger("shoal")


class Teller(ABC):
    """The part of a run that tells hooks of it."""

    __slots__ = ()
    setting: Setting
    position: int
    element: object
    began: bool
    status: Status | None
    error: BaseException | None
    reason: str
    disposition: Any
    step: str | None

    @property
    @abstractmethod
    def path(self) -> RunPath:
        """Its identity."""

    @property
    @abstractmethod
    def attempt(self) -> int:
        """Which try of the current step this is, counted from 1."""

    @property
    @abstractmethod
    def last_update(self) -> Update | None:
        """Its last update, which whoever started the run saves; None if there is none."""

    @property
    @abstractmethod
    def outcome(self) -> Outcome:
        """How it ended, as a value."""

    @property
    @abstractmethod
    def is_cached(self) -> bool:
        """Whether its current step is not executed, for what it comes to was remembered."""

    @property
    @abstractmethod
    def halted(self) -> Halted:
        """How it rests, as a value."""

    @property
    @abstractmethod
    def waits_for(self) -> tuple[Question, ...]:
        """What it waits for, if it is a child that is halted."""

    @property
    @abstractmethod
    def open_questions(self) -> tuple[Question, ...]:
        """What it and its descendants wait for."""

    @abstractmethod
    def leave_behind(self) -> None:
        """Hear that a thread of its action is waited for no more."""

    @property
    def hears_items(self) -> bool:
        """Whether anybody hears of partial items; see ``Emitter``."""
        return self.setting.on_item is not None or bool(self.setting.hooks.item)

    def emit(self, item: object, step: str, attempt: int, index: int) -> Awaitable[None] | None:
        """Tell a partial item; see ``Emitter``."""
        setting = self.setting
        self.refuse_secrets(item, f"a partial item of action {step!r}")
        if setting.on_item is not None:
            setting.on_item(self, item)
        hooks = setting.hooks
        if not hooks.item:
            return None
        event = Item(path=self.path, step=step, item=item, attempt=attempt, index=index)
        told = hooks.tell_at_once(hooks.item, event)
        return None if told is None else out_of_reach(setting.services, told)

    def refuse_secrets(self, value: object, what: str) -> None:
        """Refuse ``value``, which is about to be kept or told, if it holds what is secret.

        Raises:
            SecretLeaked: It does; ``what`` names it.
        """
        if self.setting.secrets.names:
            self.setting.secrets.refuse(value, what)

    def hide_secrets(self, error: BaseException) -> None:
        """Mask what is secret in an error that is about to be kept or told."""
        self.setting.secrets.hide(error)

    async def tell_child_started(self, child: Teller) -> None:
        """Publish that a fan-out of this run started ``child``."""
        hooks = self.setting.hooks
        assert self.step is not None
        event = ChildStarted(
            path=self.path,
            step=self.step,
            child=child.path,
            position=child.position,
            element=child.element,
        )
        await hooks.tell(hooks.child_started, event)

    async def tell_child_rerun(self, child: Teller, step: str) -> None:
        """Publish that ``child`` of this run's ``step`` runs anew; what was kept of it is void."""
        hooks = self.setting.hooks
        if hooks.child_rerun:
            event = ChildRerun(
                path=self.path,
                step=step,
                child=child.path,
                position=child.position,
                element=child.element,
            )
            await hooks.tell(hooks.child_rerun, event)

    async def tell_waiting(self, seat: Seat) -> None:
        """Publish that it waits for a limit: to start, or with an attempt of its current step."""
        hooks = self.setting.hooks
        if not hooks.waiting or seat.granted:
            return
        limit, key = seat.awaited
        event = Waiting(
            path=self.path,
            step=self.step or "",
            limit=limit,
            key=key,
            since=self.setting.services.clock(),
        )
        await hooks.tell(hooks.waiting, event)

    async def tell_attempt_ended(self, error: Exception | None, next_in: float | None) -> None:
        """Publish how an attempt of the current step ended, and when the next begins."""
        hooks = self.setting.hooks
        if hooks.attempt_ended:
            if error is not None:
                self.hide_secrets(error)
            event = AttemptEnded(
                path=self.path,
                step=self.step or "",
                attempt=self.attempt,
                error=error,
                next_in=next_in,
            )
            await hooks.tell(hooks.attempt_ended, event)

    async def tell_grace_exceeded(
        self, place: str, seconds: float, *, abandoned: bool = False
    ) -> None:
        """Warn that its action still runs so long after it was cancelled; tell hooks where."""
        path, step, hooks = self.path, self.step or "", self.setting.hooks
        if abandoned:
            self.leave_behind()
        key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
        logger.log(
            logging.WARNING if seconds else logging.INFO,
            "action %r of run %s%s was cancelled %g s ago and still runs, at %s; %s",
            *(step, path.id, key, seconds, place),
            "its thread is left behind" if abandoned else "it is waited for",
        )
        if hooks.grace_exceeded:
            event = GraceExceeded(
                path=path, step=step, place=place, seconds=seconds, abandoned=abandoned
            )
            with suppress(HookFailed):  # which ends the execution all the same
                await hooks.tell(hooks.grace_exceeded, event)

    async def _tell_child_ended(self, telling: _Telling, child: Teller) -> None:
        listeners = telling.hooks.child_ended
        if child.status == "halted":
            listeners = telling.hooks.child_halted
            if listeners:
                halted = ChildHalted(path=self.path, step=self.step or "", halted=child.halted)
                await telling.tell(listeners, halted)
            return
        if listeners:
            event = ChildEnded(path=self.path, step=self.step or "", outcome=child.outcome)
            await telling.tell(listeners, event)

    async def tell_step_ended(self, status: Status) -> None:
        step, self.step = self.step, None
        listeners = self.setting.hooks.step_ended
        if listeners and step is not None:
            event = StepEnded(
                path=self.path, step=step, status=status, error=self.error, cached=self.is_cached
            )
            await self.setting.hooks.tell(listeners, event)

    async def tell_ended(self) -> None:
        """Publish the run's last update, and the end of its last step and of the run itself."""
        if not self.began:
            return
        assert self.status is not None, "only what has ended is told to have"
        telling = _Telling(self.setting.hooks)
        hooks, path, status, error = telling.hooks, self.path, self.status, self.error
        update = self.last_update
        if update is not None and hooks.state_updated:
            await telling.tell(hooks.state_updated, StateUpdated(path=path, update=update))
        if self.step is not None and hooks.step_ended:
            step_ended = StepEnded(
                path=path, step=self.step, status=status, error=error, cached=self.is_cached
            )
            await telling.tell(hooks.step_ended, step_ended)
        if hooks.run_ended:
            reason = self.reason if status == "cancelled" else ""
            questions = self.open_questions if status == "halted" else ()
            ended = RunEnded(
                path=path, status=status, error=error, reason=reason, questions=questions
            )
            await telling.tell(hooks.run_ended, ended)
        if status == "halted":
            self.began = False  # what becomes of it now, without being lived, is told by its parent
        telling.close()

    async def publish(
        self, updates: Sequence[Update], applied: Sequence[Teller], unapplied: Sequence[Teller]
    ) -> None:
        telling = _Telling(self.setting.hooks)
        for update, child in zip_longest(updates, applied):
            if child is not None:
                await telling.listen(child.tell_ended())
            if telling.hooks.state_updated:
                outcome = None if child is None or child.disposition.is_kept else child.outcome
                event = StateUpdated(path=self.path, update=update, outcome=outcome)
                await telling.tell(telling.hooks.state_updated, event)
            # The end of one that is Done was told when it was saved, see
            # test_what_is_done_is_told_to_have_ended_once.
            if child is not None and not child.disposition.is_saved:
                await self._tell_child_ended(telling, child)
        for child in unapplied:
            await telling.listen(child.tell_ended())
            await self._tell_child_ended(telling, child)
        telling.close()


class _Telling:
    """Telling several events in a row, all of them, also where a guarding hook raises."""

    __slots__ = ("_failure", "hooks")

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self._failure: HookFailed | None = None

    async def tell(self, listeners: Listeners, event: Event) -> None:
        await self.listen(self.hooks.tell(listeners, event))

    async def listen(self, told: Awaitable[None]) -> None:
        try:
            await told
        except HookFailed as error:
            self._failure = first_of(self._failure, error)

    def close(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # no cycle from the exception to this frame


def is_listening(children: Sequence[Teller]) -> bool:
    """Tell whether somebody listens to children who doesn't to their parent."""
    return bool(children) and children[0].setting.hooks.listening


async def out_of_reach(services: Services, work: Awaitable[None]) -> None:
    """Await ``work``, while an action runs, where no native cancel of the action's reaches it."""
    failure: Exception | None = None

    async def live() -> None:
        nonlocal failure
        try:
            await work
        except Exception as error:  # noqa: BLE001 # raised below
            failure = error

    hosted = services.host(live, _ignore)
    interruption = await hosted.wait()
    try:
        for raised in (hosted.fatal, interruption, failure):
            if raised is not None:
                raise raised
    finally:
        del failure, interruption  # no cycle from an exception to this frame


def _ignore(_reason: str) -> None:
    """Stand in for whoever hears why work is cancelled: telling hooks is shielded."""
