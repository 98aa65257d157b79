"""Do in the run's own process what a function in a worker does with its context.

All of it happens in the task that awaits ``Call.call``, as ``ContextPort`` and ``ItemsPort`` want.
"""

from __future__ import annotations

import contextvars
import logging
from contextlib import AbstractContextManager
from typing import Any, final

from shoal._errors.exceptions import BadUse, Halting

from ._port import ContextPort, ItemsPort, Job
from ._remote_context import ASK, CHARGE, EMIT, ITEM, NOTE, SPAN, SPAN_END
from ._sending import dump, dump_error, load, load_error

logger = logging.getLogger("shoal")

KEPT = 8
"""Errors that were sent as replies and are kept. If the function lets one pass, the call raises the
original, so that the engine finds in it what it has put there. A function that gets more errors has
handled the first ones."""


@final
class Serving:
    """The context and the items of one call, on behalf of its function."""

    def __init__(self, job: Job, context: ContextPort | None, items: ItemsPort | None) -> None:
        self._job = job
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
        if context is None:
            raise self._unknown(what)
        if what == NOTE:
            context.note(*arguments)
        elif what == CHARGE:
            context.charge(*arguments)
        elif what == SPAN:
            self._enter(context, *arguments)
        elif what == SPAN_END:
            self._leave(*arguments)
        else:
            raise self._unknown(what)

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
        raise self._unknown(what)

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
