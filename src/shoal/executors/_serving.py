"""Do in the run's own process what a function in a worker does with its context.

All of it happens in the task that awaits ``Call.call``, as ``ContextPort`` and ``ItemsPort`` want.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, final

import anyio

from shoal._concurrency.background import StartTask
from shoal._errors.exceptions import BadUse, Halting

from ._port import ContextPort, ItemsPort, Job
from ._remote_context import ASK, CHARGE, EMIT, ITEM, LEARN, LOG, NOTE, SPAN, SPAN_END
from ._remote_group import CANCEL, CANCEL_CHILD, LEAVE, OPEN, START, START_EACH
from ._sending import dump, dump_error, load, load_error

logger = logging.getLogger("shoal")

KEPT = 8
"""Errors that were sent as replies and are kept. If the function lets one pass, the call raises the
original, so that the engine finds in it what it has put there. A function that gets more errors has
handled the first ones."""


Reply = Callable[[int, bytes | None, bytes | None], None]
"""Sends a reply: its number, a value, an error."""


@final
class Serving:
    """The context and the items of one call, on behalf of its function."""

    def __init__(
        self,
        job: Job,
        context: ContextPort | None,
        items: ItemsPort | None,
        *,
        reply: Reply,
        rest: Callable[[bool], None],
        start_task: StartTask,
    ) -> None:
        """Serve the function of a call.

        Args:
            job: The function.
            context: Its context, if it takes one.
            items: Takes its items, if it is a stream.
            reply: Sends a reply: its number, a value, an error.
            rest: Called with True when the function begins to wait for children, with False when it
                goes on. Meanwhile it takes up no room in its worker.
            start_task: Starts a task of the runtime.
        """
        self._job = job
        self._reply = reply
        self._rest = rest
        self._start_task = start_task
        self._groups: dict[int, _Group] = {}  # open fan-outs
        self._leaving: set[int] = set()  # those that are waited for
        self._context = context
        self._items = items
        self._originals: dict[int, BaseException] = {}
        # Open spans, each with the contextvars in which its hooks were entered.
        self._spans: dict[int, tuple[contextvars.Context, AbstractContextManager[None]]] = {}
        self.failure: BaseException | None = None
        """The error of something that the function has said, and waits for no reply to."""

    # -- said -----------------------------------------------------------------------------------

    def say(self, what: str, packed: bytes) -> bool:
        """Do what the function has said. Return False if that fails, and so the call."""
        try:
            self._say(what, load(packed))
        except Exception as error:  # noqa: BLE001 # raised by the call
            if self.failure is None:
                self.failure = error
            return False
        return True

    def _say(self, what: str, arguments: tuple[Any, ...]) -> None:
        context = self._context
        if what == LOG:
            self._log(*arguments)
            return
        if context is None:
            raise self._unknown(what)
        if what == NOTE:
            context.note(*arguments)
        elif what == CHARGE:
            actual, unit = arguments
            context.charge(actual, unit=unit)
        elif what == LEARN:
            context.learn(*arguments)
        elif what == SPAN:
            self._enter(context, *arguments)
        elif what == SPAN_END:
            self._leave(*arguments)
        elif arguments[0] in self._groups:
            self._say_to_group(self._groups[arguments[0]].group, what, *arguments[1:])
        else:
            raise self._unknown(what)

    @staticmethod
    def _say_to_group(group: Any, what: str, *arguments: Any) -> None:
        if what == START:
            act, state, key, inputs = arguments
            group.start(act, state, key=key, inputs=inputs)
        elif what == START_EACH:
            act, over, item, key, inputs = arguments
            group.start_each(act, over=over, item=item, key=key, inputs=inputs)
        elif what == CANCEL:
            group.cancel(*arguments)
        elif what == CANCEL_CHILD:
            key, reason, act = arguments
            group.cancel_child(key, reason, act=act)

    def hurry(self, what: str, packed: bytes) -> bool:
        """Cancel a fan-out that is being left at once; return whether that was said.

        The task that serves waits for its children, and would do it when they have ended.
        """
        if what != CANCEL or not self._leaving:
            return False
        number, reason = load(packed)
        if number not in self._leaving:
            return False
        self._groups[number].group.cancel(reason)
        return True

    def _log(self, level: int, text: str, error: bytes | None) -> None:
        """Log what shoal has logged in the worker, without the secrets of the run."""
        shown = Exception(text)
        raised = None if error is None else load_error(error, "the worker")
        if self._items is not None:
            self._items.hide_secrets(shown)
            if raised is not None:
                self._items.hide_secrets(raised)
        logger.log(level, "%s", shown, exc_info=raised)

    def _enter(
        self,
        context: ContextPort,
        number: int,
        around: int,
        name: str,
        attributes: dict[str, object],
    ) -> None:
        # Spans of several tasks may overlap. Each has contextvars of its own, made from those of
        # the span around it, so that a hook that sets some there can reset them.
        outer = self._spans.get(around)
        variables = contextvars.copy_context() if outer is None else outer[0].copy()
        span = context.span(name, **attributes)
        variables.run(span.__enter__)
        self._spans[number] = variables, span

    def _leave(self, number: int, error: bytes | None) -> None:
        found = self._spans.pop(number, None)
        if found is None:  # its hooks have refused it
            return
        variables, span = found
        if error is None:
            variables.run(span.__exit__, None, None, None)
            return
        raised = load_error(error, "the worker")
        try:
            variables.run(span.__exit__, type(raised), raised, None)
        except BaseException as failure:
            if failure is not raised:
                raise

    # -- asked ----------------------------------------------------------------------------------

    async def answer(
        self, number: int, what: str, packed: bytes
    ) -> tuple[bytes | None, bytes | None]:
        """Do what the function has asked for, and return the reply: a value, or an error."""
        try:
            return await self._answer(what, load(packed)), None
        except (Exception, Halting) as error:  # noqa: BLE001 # raised in the function
            return None, self._refused(number, error)

    async def _answer(self, what: str, arguments: tuple[Any, ...]) -> bytes | None:
        if what == ITEM and self._items is not None:
            pending = self._items.give(*arguments)
            if pending is not None:
                await pending
            return None
        if self._context is None:
            raise self._unknown(what)
        if what == EMIT:
            await self._context.emit(*arguments)
            return None
        if what == ASK:
            return dump(await self._context.ask(*arguments))
        if what == OPEN:
            await self._open(self._context, *arguments)
            return None
        if what == LEAVE:
            await self._leave_group(*arguments)
            return None
        raise self._unknown(what)

    # -- children -------------------------------------------------------------------------------

    async def _open(self, context: ContextPort, number: int, options: dict[str, Any]) -> None:
        group = context.fan_out(**options)
        await group.__aenter__()
        self._groups[number] = _Group(group)
        self._rest(True)

    async def _leave_group(self, number: int, error: bytes | None) -> None:
        raised = None if error is None else load_error(error, "the worker")
        self._leaving.add(number)
        try:
            await self._exit(number, raised)
        finally:
            self._leaving.discard(number)

    async def _exit(self, number: int, raised: BaseException | None) -> None:
        found = self._groups[number]
        for scope in found.waits:
            scope.cancel()
        try:
            await found.group.__aexit__(None if raised is None else type(raised), raised, None)
        finally:
            del self._groups[number]
            self._rest(False)

    def begin_next(self, number: int, packed: bytes) -> None:
        """Wait for the next outcome of a fan-out, and reply with it. Other things go on."""
        (group_number,) = load(packed)
        if group_number in self._groups:
            of = self._groups[group_number]
            # Here, and not in the task, which begins later than what is served next: perhaps the
            # function leaves the block.
            scope = anyio.CancelScope()
            of.waits.add(scope)
            self._start_task(partial(self._next, number, of, scope))

    async def _next(self, number: int, of: _Group, scope: anyio.CancelScope) -> None:
        # Nothing, if the fan-out is left meanwhile: then there is no more, as in the loop.
        reply: bytes | None = _dumped_outcomes([])
        error: bytes | None = None
        with scope:
            try:
                if not scope.cancel_called:
                    reply = _dumped_outcomes([outcome async for outcome in _one_of(of.group)])
            except (Exception, Halting) as raised:  # noqa: BLE001 # raised in the function
                reply, error = None, self._refused(number, raised)
            finally:
                of.waits.discard(scope)
        self._reply(number, reply, error)

    def give_up(self) -> None:
        """Cancel all children, because the call is cancelled, or its worker has died."""
        for one in self._groups.values():
            one.group.cancel("the action was cancelled")

    async def leave_all(self, error: BaseException) -> None:
        """Leave the fan-outs that the function can't leave any more."""
        for number in reversed(list(self._groups)):
            try:
                await self._exit(number, error)
            except Exception:  # noqa: BLE001, S112 # the end of the call is decided
                continue

    def _refused(self, number: int, error: BaseException) -> bytes:
        if len(self._originals) >= KEPT:
            del self._originals[next(iter(self._originals))]
        self._originals[number] = error
        return dump_error(error)

    def refusal(self, error: BaseException) -> tuple[None, bytes]:
        """Return a reply that refuses what was asked."""
        return None, dump_error(error)

    def original(self, number: int) -> BaseException | None:
        """Return the error that was the reply to a request, if it is still known."""
        return self._originals.get(number)

    def close(self) -> None:
        """Leave the spans that a function has left open: it was killed, or they are its mistake."""
        while self._spans:
            number, (variables, span) = self._spans.popitem()
            try:
                variables.run(span.__exit__, None, None, None)
            except Exception as error:  # noqa: BLE001 # the end of the call is decided
                # Without the error's text, which may have a secret in it.
                message = "span %d of %r, left open, ended with %s"
                logger.warning(message, number, self._job.name, type(error).__name__)
        self._originals.clear()

    def _unknown(self, what: str) -> BadUse:
        return BadUse(f"action {self._job.name!r}: a worker asked for {what!r}, which there is not")


@final
class _Group:
    """An open fan-out of a function in a worker."""

    __slots__ = ("group", "waits")

    def __init__(self, group: Any) -> None:
        self.group: Any = group  # a `ChildGroup`, whose module can't be imported here
        self.waits: set[anyio.CancelScope] = set()  # for outcomes


async def _one_of(group: Any) -> AsyncIterator[Any]:
    """Yield the next outcome of a fan-out, if there is one."""
    try:
        outcome = await anext(group)
    except StopAsyncIteration:  # all children have been told of
        return
    yield outcome


def _dumped_outcomes(outcomes: list[Any]) -> bytes:
    try:
        return dump(outcomes)
    except Exception:  # its error may be one that can't be pickled
        if any(getattr(one, "error", None) is None for one in outcomes):
            raise
        stand_ins = [replace(one, error=load_error(dump_error(one.error), "")) for one in outcomes]
        return dump(stand_ins)
