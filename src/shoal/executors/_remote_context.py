"""The context of an action whose function is called in a worker, as the function sees it.

What the function does with its context is told to the pool in messages, and the task that awaits
``Call.call`` does it with the real one: see ``_serving``. So the promises of the context are kept
by the context itself.

Invariants:
- What an action says and asks is served in order, in its own task, and only while it runs.
- An item is published or it isn't, as in the loop: its emission is not interrupted by the
  cancellation of the function, which arrives behind it.
- If serving fails where nothing waits for a reply (a note with a secret in it), the call fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any, Protocol, final

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._errors.exceptions import BadResult, BadUse, Halting, NotSendable
from shoal._events.identity import Key, RunPath
from shoal._state.result import Result

from . import _messages as m
from ._port import ContextPort, Job
from ._sending import dump, dump_error, load, load_error, why

NOTE = "note"
CHARGE = "charge"
SPAN = "span"
SPAN_END = "span end"
EMIT = "emit"
ASK = "ask"
ITEM = "item"

Facts = tuple[RunPath, str, int, float]
"""Path, step and attempt of an action, and the seconds until its deadline."""


def facts_of(context: ContextPort, clock: Callable[[], float]) -> Facts:
    """Return what a worker is told of a context."""
    return context.path, context.step, context.attempt, context.deadline - clock()


_KEPT = 8
"""Errors of replies that are remembered, so that the pool raises the original of one that its
function lets pass. A function that gets more of them has handled those before."""

_span: ContextVar[int] = ContextVar("shoal_span", default=0)
"""The span that the code is in."""


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
        self._refuse_late(what)
        number = next(self._numbers)
        packed = _packed(what, arguments)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._worker.post((m.ASKED, self._call, number, what, packed))
        try:
            return await future
        except BaseException as error:
            if isinstance(error, Halting):
                self.is_halting = True
            raise
        finally:
            del self._waiting[number], future

    async def ask_whole(self, what: str, *arguments: object) -> Any:
        """Ask for something that is done as a whole: a cancellation arrives behind it."""
        reply: list[Any] = []
        with CancelScope(shield=True):
            reply.append(await self.ask(what, *arguments))
        await checkpoint_if_cancelled()
        return reply[0]

    def answer(self, number: int, value: bytes | None, error: bytes | None) -> None:
        """Take a reply. Called in the loop."""
        future = self._waiting.get(number)
        if future is None or future.done():
            return
        if error is None:
            try:
                future.set_result(None if value is None else load(value))
            except Exception as failure:  # noqa: BLE001 # raised where the reply is waited for
                future.set_exception(failure)
            return
        raised = load_error(error, "the run's own process")
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


@final
class RemoteContext:
    """The run of an action, as ``shoal.Context`` shows it to a function in this process."""

    def __init__(
        self, requests: Requests, job: Job, facts: Facts, is_loop: Callable[[], bool]
    ) -> None:
        """Describe one attempt.

        Args:
            requests: Leads to the pool.
            job: The function.
            facts: What the pool has sent with the call.
            is_loop: Returns whether this thread is that of the worker's loop.
        """
        self._requests = requests
        self._job = job
        self._path, self._step, self._attempt, left = facts
        # The clock of asyncio's loops is this one.
        self._deadline = time.monotonic() + left
        self._is_loop = is_loop
        self._spans = count(1)

    @property
    def path(self) -> RunPath:
        """See ``Context.path``."""
        return self._path

    @property
    def run_id(self) -> str:
        """See ``Context.run_id``."""
        return self._path.id

    @property
    def parent(self) -> RunPath | None:
        """See ``Context.parent``."""
        return self._path.parent

    @property
    def key(self) -> Key:
        """See ``Context.key``."""
        return self._path.key

    @property
    def depth(self) -> int:
        """See ``Context.depth``."""
        return self._path.depth

    @property
    def step(self) -> str:
        """See ``Context.step``."""
        return self._step

    @property
    def attempt(self) -> int:
        """See ``Context.attempt``."""
        return self._attempt

    @property
    def deadline(self) -> float:
        """See ``Context.deadline``; on the clock of the worker's event loop."""
        return self._deadline

    def charge(self, actual: float) -> None:
        """See ``Context.charge``. An error fails the action, when it is served."""
        self._requests.say(CHARGE, actual)

    def note(self, text: object) -> None:
        """See ``Context.note``. A secret in it fails the action, when it is served."""
        self._requests.say(NOTE, text if isinstance(text, str) else str(text))

    @contextmanager
    def span(self, name: str, **attributes: object) -> Generator[None]:
        """See ``Context.span``. An error fails the action, when it is served."""
        number = next(self._spans)
        self._requests.say(SPAN, number, _span.get(), name, attributes)
        token = _span.set(number)
        try:
            yield
        except BaseException as error:
            failed = dump_error(error) if isinstance(error, Exception) else None
            self._requests.say(SPAN_END, number, failed)
            raise
        finally:
            _span.reset(token)
        self._requests.say(SPAN_END, number, None)

    def emit(self, item: object) -> Coroutine[Any, Any, None]:
        """See ``Context.emit``."""
        self._refuse_plain("that an item is told", "emit, item")
        if isinstance(item, Result):
            msg = (
                f"action {self._job.name!r} emits a Result, which is no partial item: it is what a "
                f"generator yields last; here, return its value"
            )
            raise BadResult(msg)
        return self._requests.ask_whole(EMIT, item)

    def ask(self, name: str, question: object = None) -> Coroutine[Any, Any, Any]:
        """See ``Context.ask``."""
        self._refuse_plain("an answer", "ask, name, question")
        return self._requests.ask_whole(ASK, name, question)

    def fan_out(self, **options: Any) -> Any:
        """See ``Context.fan_out``."""
        if not self._is_loop():
            msg = (
                f"action {self._job.name!r} calls context.fan_out in a worker thread, where it "
                f"runs since it is a plain function; make it a coroutine function: async def"
            )
            raise BadUse(msg)
        raise NotImplementedError

    def _refuse_plain(self, what: str, call: str) -> None:
        if self._job.kind == "plain" and not self._is_loop():
            msg = (
                f"action {self._job.name!r} is a plain function, which can't await {what}: make it "
                f"a coroutine function, or call anyio.from_thread.run(context.{call})"
            )
            raise BadUse(msg)

    def __repr__(self) -> str:
        return f"<Context of {self._job.name!r} in {self._path!r}>"


@final
class RemoteItems:
    """Takes the items of a streaming action in a worker."""

    def __init__(self, requests: Requests, step: str, run_id: str) -> None:
        self._requests = requests
        self.step: str = step
        self.run_id: str = run_id
        self.count: int = 0

    def give(self, item: object) -> Awaitable[None]:
        """Publish an item; the awaitable ends when all hooks have received it."""
        self.count += 1
        return self._requests.ask_whole(ITEM, item)

    def hide_secrets(self, error: BaseException) -> None:
        """Do nothing: no secret of the run is known here, and nothing is logged."""
