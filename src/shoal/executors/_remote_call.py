"""``RemoteCall``: one call of a function in a worker, as the task that awaits it sees it.

Invariants:
- The wait ends, whatever becomes of the worker: with a result, an exception, or a death.
- A function that is at work when its task is cancelled is told, then waited for, and its worker is
  killed once the grace is over. So nothing of it is left when the cancellation goes on, unless
  other calls are at work in the same worker; those get another grace to end.
- What the function says and asks is served in this task, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, final

from anyio import CancelScope, current_time
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.backend import Waiter
from shoal._concurrency.background import StartTask
from shoal._concurrency.cancellation import ki_protected
from shoal._concurrency.watchdog import is_aware
from shoal._errors.exceptions import NotSendable, RunCancelled

from . import _messages as m
from ._port import ContextPort, ItemsPort, Job, TimePort
from ._remote_group import NEXT
from ._sending import load, load_error
from ._serving import Serving

KILLED_WITHIN = 5.0
"""Seconds to wait for the end of a worker that was killed. It takes milliseconds; a process that
waits for a disk or a network drive may take for ever, and is left behind."""


class CallPool(Protocol):
    """The pool, as its calls know it."""

    @property
    def grace(self) -> float:
        """Seconds that a function is waited for after a cancellation."""
        ...

    def waiter(self) -> Waiter:
        """Return a future for one task."""
        ...

    def submit(
        self,
        call: RemoteCall,
        job: Job,
        kwargs: Mapping[str, Any],
        context: ContextPort | None,
        items: ItemsPort | None,
        *,
        alone: bool,
    ) -> None:
        """Pickle the arguments, and send them when a worker has room.

        Raises:
            NotSendable: An argument can't be pickled.
        """
        ...

    def take_back(self, call: RemoteCall) -> bool:
        """Forget a call that was not sent yet; return whether that was so."""
        ...

    def cancel(self, call: RemoteCall) -> None:
        """Tell the worker that the call is cancelled."""
        ...

    def kill(self, call: RemoteCall) -> bool:
        """End the worker, once no other call is at work in it; return whether that is now."""
        ...

    def reply(
        self, call: RemoteCall, number: int, value: bytes | None, error: bytes | None
    ) -> None:
        """Send a reply to the function."""
        ...

    def rest(self, call: RemoteCall, is_resting: bool) -> None:
        """Let a call that waits for children take up no room, or again."""
        ...

    @property
    def start_task(self) -> StartTask:
        """Starts a task of the runtime."""
        ...


@final
class RemoteCall:
    """One call. Made by ``RemotePool.call``; see ``Call`` for what its methods promise."""

    __slots__ = (
        "_ended",
        "_inbox",
        "_is_over",
        "_pool",
        "_serving",
        "_waiter",
        "_when_ended",
        "arguments",
        "facts",
        "grace",
        "is_given_up",
        "is_resting",
        "job",
        "number",
        "queue",
        "record",
        "run_id",
        "time",
        "worker",
    )

    def __init__(self, pool: CallPool) -> None:
        self._pool = pool
        self.grace: float = pool.grace
        self.job: Job | None = None
        # These belong to the pool, which sets them in `submit` and when it sends the call.
        self.record: Any = None
        self.arguments: bytes = b""
        self.facts: object = None
        self.run_id: str = ""
        self.queue: int = 0
        """The queue of the pool that it waits in, if it waits."""
        self.worker: Any = None
        self.number: int = 0
        """Its number since it was last sent; 0 if it is not sent."""
        self.is_given_up: bool = False
        """Whether its task was cancelled. Never reset."""
        self.is_resting: bool = False
        """Whether it waits for children of its own. The pool alone changes it."""
        self.time: TimePort | None = None
        """What is to be started when the function begins."""
        self._is_over = False  # never reset; `_ended` is set with it, unless it never began
        self._ended: m.Message | BaseException | None = None
        self._waiter: Waiter | None = None  # only while the task waits
        self._inbox: deque[m.Message] | None = None  # what the function has said and asked
        self._serving: Serving | None = None
        self._when_ended: list[Callable[[], None]] | None = None

    @is_aware
    async def call(
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
    ) -> object:
        """Call the function in a worker; see ``Call.call``."""
        if abandon:
            self.grace = 0.0
        self.job = job
        if time is not None:
            self.time = time
            time.stop()
        if context is not None or items is not None:
            self._serving = Serving(
                job,
                context,
                items,
                reply=partial(self._pool.reply, self),
                rest=partial(self._pool.rest, self),
                start_task=self._pool.start_task,
            )
        self._pool.submit(self, job, kwargs, context, items, alone=alone)
        try:
            await self._wait()
        except BaseException as error:
            if self._serving is not None:
                self._serving.give_up()
            await self._outlast(on_cancelled)
            if self._serving is not None:
                await self._serving.leave_all(error)
            raise
        finally:
            self.arguments = b""
            if self._serving is not None:
                self._serving.close()
        ended, self._ended = self._ended, None
        failure = self._failure(ended)
        if failure is not None:
            if self._serving is not None:
                await self._serving.leave_all(failure)  # its worker died, or it would have left
            try:
                raise failure
            finally:
                del failure, ended  # breaks the traceback cycle
        await checkpoint_if_cancelled()  # a result that comes after a cancellation is dropped
        return self._result(ended)

    async def _wait(self) -> None:
        """Wait for the end, and serve meanwhile."""
        while not self._is_over:
            self._waiter = self._pool.waiter()
            try:
                await self._waiter
            finally:
                self._waiter = None
            while self._inbox:
                # Taken out when it is served. If this is cancelled meanwhile, `_refuse_all` finds
                # it: the function waits for the reply, whether or not it is cancelled; see
                # test_what_is_served_when_the_cancellation_arrives_is_answered.
                await self._serve(self._inbox[0])
                self._inbox.popleft()

    async def _serve(self, message: m.Message) -> None:
        assert self._serving is not None
        if message[0] == m.SAID:
            if not self._serving.say(message[2], message[3]):
                self._pool.cancel(self)  # it fails, with the error that `_serving` has
            return
        _, _, number, what, packed = message
        if what == NEXT:
            self._serving.begin_next(number, packed)
            return
        value, error = await self._serving.answer(number, what, packed)
        self._pool.reply(self, number, value, error)

    def _failure(self, ended: Any) -> BaseException | None:
        """Return the exception that the call has ended with; None if it has a result."""
        serving = self._serving
        if serving is not None and serving.failure is not None:
            return serving.failure
        if isinstance(ended, BaseException):
            return ended
        assert ended is not None
        if ended[0] != m.FAILED:
            return None
        data, number = ended[2]
        original = None if serving is None else serving.original(number)
        return load_error(data, self.worker_name) if original is None else original

    def _result(self, ended: Any) -> object:
        try:
            return load(ended[2])
        except Exception as error:
            assert self.job is not None
            msg = (
                f"action {self.job.name!r}: its result can't be loaded in the process of the run: "
                f"{type(error).__name__}: {error}"
            )
            raise NotSendable(msg) from error

    @ki_protected
    async def _outlast(self, on_cancelled: Callable[[], None] | None) -> None:
        """Wait until the function has ended; kill its worker once the grace is over."""
        self.is_given_up = True
        if self._is_over or self._pool.take_back(self):
            self._is_over = True
            return
        if on_cancelled is not None:
            on_cancelled()
        self._pool.cancel(self)
        self._refuse_all()
        await self._wait_until(current_time() + self.grace)
        if not self._is_over and self._pool.kill(self) and self.grace:
            await self._wait_until(current_time() + KILLED_WITHIN)

    @ki_protected
    async def _wait_until(self, deadline: float) -> None:
        """Wait for the end up to a time, however often the task is interrupted."""
        while not self._is_over:
            with CancelScope(deadline=deadline, shield=True) as scope:
                self._waiter = self._pool.waiter()
                try:
                    await self._waiter
                except GeneratorExit:
                    raise
                except BaseException:  # noqa: BLE001 # `call` raises its own interruption
                    if current_time() < deadline:
                        continue
                finally:
                    self._waiter = None
                self._refuse_all()
            if scope.cancelled_caught or current_time() >= deadline:
                return

    def _refuse_all(self) -> None:
        """Reply to what was asked after the cancellation that it was cancelled."""
        while self._inbox:
            message = self._inbox.popleft()
            if message[0] == m.ASKED and self._serving is not None:
                assert self.job is not None
                msg = f"action {self.job.name!r} was cancelled, so its function should end"
                self._pool.reply(self, message[2], *self._serving.refusal(RunCancelled(msg)))

    @property
    def is_urgent(self) -> bool:
        """Whether its answers are waited for: it may ask for something, or its time runs."""
        return self.time is not None or self.facts is not None

    # -- called by the pool ---------------------------------------------------------------------

    def end(self, ended: m.Message | BaseException | None) -> None:
        """Take the end of the call: the worker's message, an exception, or None for a death.

        It is None only if the call is given up, and nobody waits for a result.
        """
        self._is_over = True
        self.number = 0
        if not self.is_given_up:
            self._ended = ended
        when_ended, self._when_ended = self._when_ended, None
        self._wake()
        for call in when_ended or ():
            call()

    def deliver(self, message: m.Message) -> None:
        """Take what the function has said or asked."""
        serving = self._serving
        if message[0] == m.SAID and serving is not None and serving.hurry(message[2], message[3]):
            return
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- for the engine -------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether the function may be at work. If it has not begun, it never will after this."""
        if not self._is_over and (self.job is None or self._pool.take_back(self)):
            self._is_over = True
        return not self._is_over

    @property
    def worker_name(self) -> str:
        """The name of the worker, for messages."""
        return "a worker" if self.worker is None else str(self.worker.link.name)

    @property
    def place(self) -> str:
        """Where the function is defined, and the worker that it is in: more isn't known here."""
        if self.job is None:
            return "a place unknown"
        code = getattr(self.job.function, "__code__", None)
        where = repr(self.job.name)
        if code is not None:
            where = f"{code.co_filename}:{code.co_firstlineno}, in {code.co_name}"
        return f"{where}, in {self.worker_name}"

    def leave(self, call: Callable[[], None]) -> None:
        """Call ``call`` as soon as the function has ended: now, if it doesn't run."""
        if not self.is_running:
            call()
        elif self._when_ended is None:
            self._when_ended = [call]
        else:
            self._when_ended.append(call)
