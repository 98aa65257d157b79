"""What one call in a worker has told the pool, or asked it for and waits to be answered."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, Protocol, final

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._errors.exceptions import BadUse, Halting, NotSendable, RunCancelled

from . import _messages as m
from ._sending import dump, load, load_error, why

_KEPT = 8
"""Errors of replies that are remembered, so that the pool raises the original of one that its
function lets pass. A function that gets more of them has handled those before."""


class Outgoing(Protocol):
    """The worker, as far as its calls know it."""

    def post(self, message: m.Message) -> None:
        """Send a message soon."""
        ...

    def flush(self) -> None:
        """Send all messages now."""
        ...


@final
class Requests:
    """What one call has asked the pool for, and waits to be answered."""

    def __init__(self, worker: Outgoing, call: int) -> None:
        self._worker = worker
        self._call = call
        self._numbers = count(1)
        # Replies that are waited for, each by one coroutine. Only the loop's thread uses it.
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._raised: dict[int, BaseException] = {}  # errors of replies, by their requests
        self._is_over = False
        self.is_halting: bool = False
        """Whether the call halts, since it has asked a question that has no answer yet."""

    def say(self, what: str, *arguments: object) -> None:
        """Tell the pool something. May be called in any thread."""
        self._refuse_late(what)
        self._worker.post((m.SAID, self._call, what, _packed(what, arguments)))

    async def ask(self, what: str, *arguments: object) -> Any:
        """Ask the pool for something, and return its reply. Called in the loop."""
        future = self.begin(what, *arguments)
        try:
            return await future
        finally:
            del future  # breaks the traceback cycle

    def begin(self, what: str, *arguments: object) -> asyncio.Future[Any]:
        """Ask the pool for something, and return the future of its reply. Called in the loop."""
        self._refuse_late(what)
        number = next(self._numbers)
        packed = _packed(what, arguments)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._worker.post((m.ASKED, self._call, number, what, packed))
        return future

    async def ask_whole(self, what: str, *arguments: object) -> Any:
        """Ask for something that is done as a whole: a cancellation arrives behind it."""
        reply: list[Any] = []
        try:
            with CancelScope(shield=True):
                reply.append(await self.ask(what, *arguments))
        except RunCancelled:
            # The pool's reply to a function that it has cancelled before, as `except Exception` of
            # the function must not find it.
            await checkpoint_if_cancelled()
            raise
        await checkpoint_if_cancelled()
        return reply[0]

    def answer(self, number: int, value: bytes | None, error: bytes | None) -> None:
        """Take a reply. Called in the loop."""
        future = self._waiting.pop(number, None)
        if future is None or future.done():  # its wait was cancelled
            return
        if error is None:
            try:
                future.set_result(None if value is None else load(value))
            except Exception as failure:  # noqa: BLE001 # raised where the reply is waited for
                future.set_exception(failure)
            return
        raised = load_error(error, "the run's own process")
        if isinstance(raised, Halting):
            self.is_halting = True
        if len(self._raised) >= _KEPT:
            del self._raised[next(iter(self._raised))]
        self._raised[number] = raised
        if isinstance(raised, StopIteration):  # no future takes one
            raised = RuntimeError(f"{type(raised).__name__} was raised")
        future.set_exception(raised)

    def number_of(self, error: BaseException) -> int:
        """Return the request whose reply was this error; 0 if it is the function's own."""
        return next((number for number, one in self._raised.items() if one is error), 0)

    def close(self) -> None:
        """Refuse everything from now on, because the function has ended."""
        self._is_over = True
        self._raised.clear()

    def _refuse_late(self, what: str) -> None:
        if self._is_over:
            msg = (
                f"an action has ended, and something it left behind uses its context ({what}): "
                f"await all that uses it before the action returns"
            )
            raise BadUse(msg)


def _packed(what: str, arguments: tuple[object, ...]) -> bytes:
    try:
        return dump(arguments, to_worker=False)
    except Exception as error:
        reasons = [why(one, error) for one in arguments if _is_at_fault(one)]
        msg = f"context.{what}: can't be sent from a worker: {', '.join(reasons) or error}"
        raise NotSendable(msg) from error


def _is_at_fault(value: object) -> bool:
    try:
        dump(value, to_worker=False)
    except Exception:  # noqa: BLE001 # a class may define how it is pickled
        return True
    return False
