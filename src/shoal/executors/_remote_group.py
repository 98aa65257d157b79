"""``context.fan_out`` in a worker: the children run where the run is.

Invariants:
- An outcome that was asked for is not lost if the wait for it is cancelled: the next wait takes it.
- The block is left only after all children have ended, as in the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, final

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._errors.exceptions import RunCancelled

from ._requests import Requests
from ._sending import dump_error

OPEN = "fan_out"
START = "fan_out start"
START_EACH = "fan_out start_each"
CANCEL = "fan_out cancel"
CANCEL_CHILD = "fan_out cancel_child"
NEXT = "fan_out next"
LEAVE = "fan_out leave"


@final
class RemoteGroup(AbstractAsyncContextManager["RemoteGroup"], AsyncIterator[Any]):
    """The children that an action in a worker starts; see ``ChildGroup``.

    Differences: acts, states and elements are pickled, so ``start_each`` takes collections and no
    generators. What ``start`` refuses fails the action when it is served.
    """

    def __init__(
        self, requests: Requests, number: int, step: str, options: Mapping[str, Any]
    ) -> None:
        """Use ``context.fan_out``."""
        self._requests = requests
        self._number = number
        self._options = dict(options)
        self.name: str = f"{step}/{options.get('name')}"
        # The request for the next outcome, from when it is made until its reply is consumed.
        self._next: asyncio.Future[Any] | None = None

    async def __aenter__(self) -> Self:
        """Start the group."""
        try:
            with CancelScope(shield=True):  # once it is open it must be left: there is no way out
                await self._requests.ask(OPEN, self._number, self._options)
        except RunCancelled:
            await checkpoint_if_cancelled()  # as in `Requests.ask_whole`
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        """Wait for the children, or cancel them."""
        interruption: BaseException | None = None
        failed = None if error is None else dump_error(error)
        reply = self._requests.begin(LEAVE, self._number, failed)
        while not reply.done():
            try:
                with CancelScope(shield=interruption is not None):
                    await asyncio.wait([reply])
            except GeneratorExit:
                raise
            except BaseException as raised:  # noqa: BLE001 # raised below
                interruption = raised
                self.cancel("the action was cancelled")
        try:
            if isinstance(reply.exception(), RunCancelled):
                interruption = interruption or reply.exception()
                await checkpoint_if_cancelled()  # as in `Requests.ask_whole`
            elif reply.exception() is not None:
                reply.result()
            if interruption is not None and isinstance(error, Exception | None):
                raise interruption
        finally:
            del error, interruption, reply  # breaks the traceback cycle

    def start(
        self,
        act: Any,
        state: Mapping[str, Any] | None = None,
        *,
        key: str | int | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> None:
        """See ``ChildGroup.start``."""
        self._requests.say(START, self._number, act, state, key, inputs)

    def start_each(
        self,
        act: Any,
        *,
        over: Any,
        item: str = "item",
        key: Callable[[Any], object] | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> None:
        """See ``ChildGroup.start_each``. ``over`` is a collection that can be pickled."""
        self._requests.say(START_EACH, self._number, act, over, item, key, inputs)

    def cancel(self, reason: str = "the action cancelled it") -> None:
        """See ``ChildGroup.cancel``."""
        self._requests.say(CANCEL, self._number, reason)

    def cancel_child(
        self, key: str | int, reason: str = "the action cancelled it", *, act: str | None = None
    ) -> None:
        """See ``ChildGroup.cancel_child``. What it returns is not known here."""
        self._requests.say(CANCEL_CHILD, self._number, key, reason, act)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next outcome, waiting for it if needed."""
        if self._next is None:
            self._next = self._requests.begin(NEXT, self._number)
        # Not awaited itself, which would cancel it together with this wait.
        await asyncio.wait([self._next])
        reply, self._next = self._next, None
        found: list[Any] = reply.result()
        if not found:
            raise StopAsyncIteration
        return found[0]

    def __repr__(self) -> str:
        return f"<ChildGroup {self.name!r}, in a worker>"
