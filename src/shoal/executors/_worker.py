"""The part of a worker that no transport knows: call functions, as messages say.

Plain functions are called one after another in the *lane*, the thread that called
``WorkerCore.run``: the main thread of a worker process. All others run in the worker's loop, in a
thread of its own, as many at once as the pool sends.

Invariants:
- Each call is answered exactly once; see ``_messages``.
- A call that has not begun when it is withdrawn or cancelled never begins. Both threads take a call
  out of ``_waiting`` before they do anything about it, and only one of them finds it there.
- Answers of quick functions are collected for up to ``COLLECTED`` seconds. Nothing else waits: a
  worker that has nothing more to do, or a function that waits for a reply, sends at once.
- No value of the user's is ever logged, or put into a message of ours.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Literal, cast, final

from anyio import CancelScope, get_cancelled_exc_class
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import as_failure, is_cancellation
from shoal._errors.exceptions import NotSendable, SpuriousCancel
from shoal._state.secrets import boxed
from shoal._state.state import State, make_state

from . import _messages as m
from ._port import Job
from ._remote_context import RemoteContext, RemoteItems, speaking
from ._requests import Requests
from ._results import finished
from ._sending import dump, dump_error, load, why
from ._streams import stream
from ._worker_loop import LaneBackend, WorkerLoop

COLLECTED = 0.001
"""Seconds for which answers are collected. A message costs both sides some 50 microseconds, so
functions as short as that are answered some 20 at a time; for one of 5 ms it is no delay."""

Message = m.Message


@final
class WorkerCore:
    """Calls functions, as the messages of a pool say, and sends their ends."""

    def __init__(
        self,
        send: Callable[[list[Message]], None],
        *,
        initializer: bytes | None = None,
        mark: Callable[[int], None] | None = None,
        receive: Callable[[], None] | None = None,
        glance: Callable[[], None] | None = None,
        hurry: Callable[[], None] | None = None,
        is_daemon: bool = True,
    ) -> None:
        """Start nothing yet.

        Args:
            send: Sends a batch. It may block. Called in any thread, by one at a time.
            initializer: A pickled function and its arguments, called in the lane before all others.
            mark: Called with the number of the call that the lane is about to begin, and with 0
                once that has ended: so that a death of the worker has its culprit. None: long
                calls are reported by messages.
            receive: Waits for messages and has them handled, and returns then: called by the lane
                when it has nothing to do, so that no other thread has to wake it. None: messages
                are handled by another thread.
            glance: Has messages handled if there are any, and doesn't wait: called by the lane
                between calls, unless those are quick.
            hurry: Called by the lane before a function that will wait for replies, so that another
                thread handles messages meanwhile.
            is_daemon: Whether the thread of the loop is a daemon, so that it need not be ended.
        """
        self._send = send
        self._initializer = initializer
        self._mark = mark
        self._receive = receive
        self._glance = glance
        self._hurry = hurry
        self._out: deque[Message] = deque()
        self._sending = threading.Lock()
        self._sent_at = 0.0
        self._jobs: dict[int, _LoadedJob] = {}
        # In order of arrival. A call is in one of these, or has ended.
        self._waiting: dict[int, _WorkerCall] = {}
        self._at_work: dict[int, _WorkerCall] = {}
        self._lane: SimpleQueue[_WorkerCall | None] = SimpleQueue()
        self._loop = WorkerLoop(is_daemon=is_daemon)
        self._backend = LaneBackend(self._loop)
        self._announced = 0  # the call of the lane that was reported to have begun
        self._is_flushing_soon = False  # only the loop's thread changes it

    # -- messages -------------------------------------------------------------------------------

    def handle(self, batch: list[Message]) -> None:
        """Take a batch of messages. Never blocks. Called by one thread at a time."""
        for message in batch:
            kind = message[0]
            if kind == m.CALL:
                self._take(*message[1:])
            elif kind == m.JOB:
                self._jobs[message[1]] = _LoadedJob(*message[2:])
            elif kind == m.WITHDRAW:
                self._give_back(message[1])
            elif kind == m.CANCEL:
                self._cancel(message[1])
            elif kind == m.REPLY:
                self._reply(*message[1:])
            elif kind == m.FORGET:
                for job in message[1]:
                    self._jobs.pop(job, None)
            elif kind == m.STOP:
                self._lane.put(None)

    def _take(self, number: int, job: int, arguments: bytes, facts: Any, run_id: str) -> None:
        loaded = self._jobs[job]
        call = _WorkerCall(number, loaded, arguments, facts, run_id)
        self._waiting[number] = call
        if loaded.kind == "plain":
            self._lane.put(call)
        else:
            self._loop.start_soon(partial(self._call_in_loop, call))

    def _give_back(self, numbers: list[int]) -> list[int]:
        """Forget those of the calls that have not begun; return the others."""
        found = [number for number in numbers if self._waiting.pop(number, None) is not None]
        if found:
            self.post((m.WITHDRAWN, found))
            self.flush()
        return [number for number in numbers if number not in found]

    def _cancel(self, numbers: list[int]) -> None:
        for number in self._give_back(numbers):
            call = self._at_work.get(number)
            if call is not None:  # else it has ended, and its end is on its way to the pool
                call.is_cancelled = True
                self._loop.call_soon(call.cancel_scopes)

    def _reply(self, number: int, request: int, value: bytes | None, error: bytes | None) -> None:
        call = self._at_work.get(number)
        if call is not None and call.requests is not None:
            self._loop.call_soon(partial(call.requests.answer, request, value, error))

    def post(self, message: Message) -> None:
        """Send a message with the next batch, soon. May be called in any thread."""
        self._out.append(message)
        if self._loop.is_here and not self._is_flushing_soon:
            self._is_flushing_soon = True
            self._loop.call_soon(self._flush_in_loop)

    def _flush_in_loop(self) -> None:
        self._is_flushing_soon = False
        self.flush()

    def flush(self) -> None:
        """Send all messages that wait to be sent."""
        with self._sending:
            # Popped one by one: another thread may append meanwhile.
            batch: list[Message] = []
            while self._out:
                batch.append(self._out.popleft())
            if batch:
                self._send(batch)
            self._sent_at = perf_counter()

    def tick(self) -> bool:
        """Send what has been collected; return whether there was anything.

        Call this every few milliseconds while ``is_busy``.

        The lane sends by itself when it ends a call. It can't while a long call is at work.
        """
        call = cast("_WorkerCall | None", self._backend.call)
        if self._mark is None and call is not None and call.number != self._announced:
            self._announced = call.number
            self._out.append((m.BEGAN, [call.number]))
        if not self._out:
            return False
        self.flush()
        return True

    @property
    def is_urgent(self) -> bool:
        """Whether a function may wait for messages: a coroutine, or one that uses its context."""
        call = cast("_WorkerCall | None", self._backend.call)
        if call is not None and call.requests is not None:
            return True
        return len(self._at_work) > (call is not None)

    @property
    def has_work(self) -> bool:
        """Whether there is something for the lane: a call, or the order to stop."""
        return not self._lane.empty()

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or are at work, or answers wait to be sent."""
        return bool(self._waiting or self._at_work or self._out)

    def close(self) -> None:
        """End the thread of the loop. Call this after ``run`` has returned."""
        self._loop.close()

    def close_soon(self) -> None:
        """Cancel what is at work in the loop, whose thread ends then, and don't wait."""
        self._loop.close_soon()

    # -- the lane -------------------------------------------------------------------------------

    def run(self) -> None:
        """Call plain functions in this thread until the pool says to stop.

        Returns at once if the initializer raises.
        """
        with self._backend.claim():
            if self._initialize():
                self._call_all()
        self.flush()

    def _initialize(self) -> bool:
        try:
            if self._initializer is not None:
                function, arguments = load(self._initializer)
                function(*arguments)
        except BaseException as error:  # noqa: BLE001 # the pool raises it
            self.post((m.REFUSED, dump_error(error)))
            return False
        self.post((m.READY,))
        self.flush()
        return True

    def _call_all(self) -> None:
        lane, waiting, at_work, mark = self._lane, self._waiting, self._at_work, self._mark
        while True:
            try:
                call = lane.get_nowait()
            except Empty:
                self.flush()
                if self._receive is not None:
                    self._receive()
                    continue
                call = lane.get()
            if call is None:
                return
            number = call.number
            # In this order: `_cancel` looks into `waiting` first, so it finds the call in one.
            at_work[number] = call
            if waiting.pop(number, None) is not None:
                if self._out and call.job.seconds > COLLECTED:
                    self.flush()  # or the answers would wait for the end of this one
                if mark is not None:
                    mark(number)
                self._backend.call = call
                ended = self._call_plain(call)
                self._backend.call = None
                if mark is not None:
                    mark(0)
                self._out.append(ended)
                call.job.seconds = ended[-1]
                call.close()
                if perf_counter() - self._sent_at > COLLECTED:
                    self.flush()
                if self._glance is not None and ended[-1] > COLLECTED:
                    self._glance()
            del at_work[number]
            call = None  # its arguments are not kept until the next one comes

    def _call_plain(self, call: _WorkerCall) -> Message:
        began = perf_counter()
        try:
            job, state, kwargs = self._load(call)
            # In a copy of the context: what the function sets there is gone with it.
            result = copy_context().run(job.function, **kwargs)
            data = _dumped(job, finished(job, state, result))
        except BaseException as error:  # noqa: BLE001 # the pool raises it
            seconds = perf_counter() - began
            if isinstance(error, asyncio.CancelledError) and not call.is_halting:
                if call.is_cancelled:
                    return m.CANCELLED, call.number, seconds
                error = _spurious(error)
            return _failed(call, error, seconds)
        return m.DONE, call.number, data, perf_counter() - began

    # -- the loop -------------------------------------------------------------------------------

    async def _call_in_loop(self, call: _WorkerCall) -> None:
        number, began = call.number, perf_counter()
        self._at_work[number] = call
        ended: Message | None = None
        if self._waiting.pop(number, None) is not None:
            self.post((m.BEGAN, [number]))
            self.flush()  # if it kills the worker, the pool must know which call that was
            try:
                with CancelScope() as scope:
                    call.enter(scope)
                    ended = await self._end_of(call)
            except get_cancelled_exc_class():
                pass  # a native one that user code has left behind, after the scope was cancelled
            call.close()
            seconds = perf_counter() - began
            self.post((m.CANCELLED, number, seconds) if ended is None else (*ended, seconds))
        del self._at_work[number]

    async def _end_of(self, call: _WorkerCall) -> Message:
        """Return how a function has ended, but for the time that it took."""
        try:
            job, state, kwargs = self._load(call)
            made = cast("Any", job.function(**kwargs))
            if job.kind == "stream":
                assert call.requests is not None
                items = RemoteItems(call.requests, job.name, call.run_id)
                speaking.set(call.requests)
                result = await stream(made, items)
            else:
                result = await made
            await checkpoint_if_cancelled()
            return m.DONE, call.number, _dumped(job, finished(job, state, result))
        except BaseException as error:
            if is_cancellation(error) and call.is_cancelled:
                raise
            failure = None if call.is_halting else as_failure(error)
            return _failed(call, failure or error)[:3]

    def _is_loop(self) -> bool:
        return self._loop.is_here

    # -- both -----------------------------------------------------------------------------------

    def _load(self, call: _WorkerCall) -> tuple[Job, State | None, dict[str, Any]]:
        """Return the function, the state that it is given, and its arguments."""
        job = call.job.load()
        try:
            loaded = load(call.arguments)
        except Exception as error:
            msg = (
                f"action {job.name!r}: an argument can't be loaded in a worker: "
                f"{type(error).__name__}: {error}"
            )
            raise NotSendable(msg) from error
        state: State | None = None
        if job.access is None:
            kwargs: dict[str, Any] = loaded
        else:
            kwargs, data, secret = loaded
            state = kwargs["state"] = make_state(boxed(data, secret), job.access)
        if job.takes_context or job.kind == "stream":
            call.requests = Requests(self, call.number)
            if self._hurry is not None:
                self._hurry()
        if job.takes_context:
            assert call.requests is not None
            kwargs["context"] = RemoteContext(
                call.requests,
                job,
                call.facts,
                fields=partial(_fields_in, call.arguments, is_state=job.access is not None),
                is_loop=self._is_loop,
            )
        return job, state, kwargs


@final
class _LoadedJob:
    """A function that was sent. It is loaded by the thread that calls it first."""

    __slots__ = ("_data", "_job", "_lock", "_path", "kind", "name", "seconds")

    def __init__(
        self, kind: Literal["plain", "async", "stream"], name: str, data: bytes, path: list[str]
    ) -> None:
        self.kind: Literal["plain", "async", "stream"] = kind
        self.name: str = name
        # What its last call in the lane took. Only the lane uses it.
        self.seconds: float = math.inf
        self._data = data
        self._path = path  # where the program finds modules
        self._job: Job | None = None
        self._lock = threading.Lock()

    def load(self) -> Job:
        """Return the function.

        Raises:
            NotSendable: It can't be loaded here.
        """
        with self._lock:
            if self._job is None:
                # Those of the initializer stay.
                sys.path.extend(place for place in self._path if place not in sys.path)
                try:
                    function, access, takes_context = load(self._data)
                except Exception as error:
                    msg = (
                        f"action {self.name!r}: its function can't be loaded in a worker: "
                        f"{type(error).__name__}: {error}"
                    )
                    raise NotSendable(msg) from error
                self._job = Job(
                    function=function,
                    name=self.name,
                    kind=self.kind,
                    access=access,
                    takes_context=takes_context,
                )
            return self._job


@final
class _WorkerCall:
    """A call in a worker."""

    __slots__ = (
        "_scopes",
        "arguments",
        "facts",
        "is_cancelled",
        "job",
        "number",
        "requests",
        "run_id",
    )

    def __init__(
        self, number: int, job: _LoadedJob, arguments: bytes, facts: Any, run_id: str
    ) -> None:
        self.number: int = number
        self.job: _LoadedJob = job
        self.arguments: bytes = arguments
        self.facts: Any = facts
        self.run_id: str = run_id
        # Set by the thread that handles messages, and never reset.
        self.is_cancelled: bool = False
        self.requests: Requests | None = None  # set before the function is called, if it has any
        # The scopes of its coroutines, if it has any. Only the loop's thread changes it.
        self._scopes: set[CancelScope] | None = None

    @property
    def is_halting(self) -> bool:
        """Whether its function has asked a question that has no answer yet."""
        return self.requests is not None and self.requests.is_halting

    def close(self) -> None:
        """Refuse what the function asks from now on."""
        if self.requests is not None:
            self.requests.close()

    def enter(self, scope: CancelScope) -> None:
        """Cancel ``scope`` when the call is cancelled."""
        if self._scopes is None:
            self._scopes = set()
        self._scopes.add(scope)
        if self.is_cancelled:
            scope.cancel()

    def leave(self, scope: CancelScope) -> None:
        """Forget a scope that was left."""
        if self._scopes is not None:
            self._scopes.discard(scope)

    def cancel_scopes(self) -> None:
        """Cancel the scopes that it is in."""
        for scope in self._scopes or ():
            scope.cancel()


def _fields_in(arguments: bytes, *, is_state: bool) -> Mapping[str, object]:
    """Return the fields that a function was given."""
    loaded = load(arguments)
    return loaded[1] if is_state else loaded


def _dumped(job: Job, result: object) -> bytes:
    try:
        return dump(result, to_worker=False)
    except Exception as error:
        msg = (
            f"action {job.name!r}: its result can't be sent back from its worker: "
            f"{why(result, error)}; return plain data, or leave this action in the loop: "
            f"@action(executor='loop')"
        )
        raise NotSendable(msg) from error


def _failed(call: _WorkerCall, error: BaseException, seconds: float = 0.0) -> Message:
    # If the exception came with a reply, the pool still has the original.
    request = 0 if call.requests is None else call.requests.number_of(error)
    return m.FAILED, call.number, (dump_error(error), request), seconds


def _spurious(error: BaseException) -> SpuriousCancel:
    failure = SpuriousCancel(
        f"{type(error).__name__} was raised although this run was not cancelled: "
        f"a plain function raised it itself"
    )
    failure.__cause__ = error
    return failure
