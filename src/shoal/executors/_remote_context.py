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

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import count
from typing import Any, NamedTuple, cast, final

from shoal._errors.exceptions import BadResult, BadUse, NotData
from shoal._events.identity import Key, RunPath
from shoal._state.answers import AnswerType, answer_type, read_answer
from shoal._state.result import Result

from ._effects import Effect, effect_of
from ._port import ContextPort, Job
from ._remote_group import RemoteGroup
from ._requests import Requests
from ._sending import dump_error, load_error

NOTE = "note"
CHARGE = "charge"
LEARN = "learn"
SPAN = "span"
SPAN_END = "span end"
EMIT = "emit"
ASK = "ask"
ITEM = "item"
LOG = "log"


@final
class Facts(NamedTuple):
    """The parts of a context that are sent to a worker."""

    path: RunPath
    step: str
    attempt: int
    left: float
    """Seconds until the deadline."""
    key: Effect | str | bytes
    """What the idempotency key is made of; or the key itself, or the error that takes its place, if
    the function is not given all the fields that it is made of."""


def facts_of(
    context: ContextPort, given: Mapping[str, object] | None, clock: Callable[[], float]
) -> Facts:
    """Return the parts of a context that are sent to a worker.

    Args:
        context: The context.
        given: The fields that the function is given; None: all of them, in a state.
        clock: The clock of the context's deadline.
    """
    key: Effect | str | bytes = effect_of(context)
    if given is not None and not given.keys() >= set(key.fields):
        try:
            key = cast("Any", context).idempotency_key
        except NotData as error:
            key = dump_error(error)
    left = context.deadline - clock()
    return Facts(context.path, context.step, context.attempt, left, key)


_span: ContextVar[int] = ContextVar("shoal_span", default=0)
"""The span that the code is in."""


@final
class RemoteContext:
    """The run of an action, as ``shoal.Context`` shows it to a function in this process."""

    def __init__(
        self,
        requests: Requests,
        job: Job,
        facts: Facts,
        *,
        fields: Callable[[], Mapping[str, object]],
        is_loop: Callable[[], bool],
    ) -> None:
        """Describe one attempt.

        Args:
            requests: Leads to the pool.
            job: The function.
            facts: What the pool has sent with the call.
            fields: Returns the fields as they were sent.
            is_loop: Returns whether this thread is that of the worker's loop.
        """
        self._requests = requests
        self._job = job
        self._facts = facts
        self._fields = fields
        # The clock of asyncio's loops is this one.
        self._deadline = time.monotonic() + facts.left
        self._is_loop = is_loop
        self._spans = count(1)
        self._groups = count(1)

    @property
    def path(self) -> RunPath:
        """See ``Context.path``."""
        return self._facts.path

    @property
    def run_id(self) -> str:
        """See ``Context.run_id``."""
        return self._facts.path.id

    @property
    def parent(self) -> RunPath | None:
        """See ``Context.parent``."""
        return self._facts.path.parent

    @property
    def key(self) -> Key:
        """See ``Context.key``."""
        return self._facts.path.key

    @property
    def depth(self) -> int:
        """See ``Context.depth``."""
        return self._facts.path.depth

    @property
    def step(self) -> str:
        """See ``Context.step``."""
        return self._facts.step

    @property
    def attempt(self) -> int:
        """See ``Context.attempt``."""
        return self._facts.attempt

    @property
    def deadline(self) -> float:
        """See ``Context.deadline``; on the clock of the worker's event loop."""
        return self._deadline

    @property
    def idempotency_key(self) -> str:
        """See ``Context.idempotency_key``."""
        key = self._facts.key
        if isinstance(key, Effect):
            # Loaded once more: the function may have changed what it was given.
            return key.key(self._fields().__getitem__)
        if isinstance(key, bytes):
            raise load_error(key, "the run's own process")
        return key

    def charge(self, actual: float, *, unit: str | None = None) -> None:
        """See ``Context.charge``. An error fails the action, when it is served."""
        self._requests.say(CHARGE, actual, unit)

    def learn(self, headers: Mapping[str, str]) -> None:
        """See ``Context.learn``. An error fails the action, when it is served."""
        # A dict, because the class of the mapping may be unknown where it is served.
        self._requests.say(LEARN, dict(headers))

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

    def ask(
        self, name: str, question: object = None, answer: Any = None
    ) -> Coroutine[Any, Any, Any]:
        """See ``Context.ask``."""
        self._refuse_plain("an answer", "ask, name, question")
        if answer is None:
            return self._requests.ask_whole(ASK, name, question)
        return self._ask_typed(name, question, answer_type(answer))

    async def _ask_typed(self, name: str, question: object, kind: AnswerType) -> object:
        value = await self._requests.ask_whole(ASK, name, question, kind.schema)
        subject = f"action {self._job.name!r} of run {self._facts.path.id}"
        return read_answer(kind, value, subject, name)

    def fan_out(self, **options: Any) -> Any:
        """See ``Context.fan_out``."""
        if not self._is_loop():
            msg = (
                f"action {self._job.name!r} calls context.fan_out in a worker thread, where it "
                f"runs since it is a plain function; make it a coroutine function: async def"
            )
            raise BadUse(msg)
        return RemoteGroup(self._requests, next(self._groups), self._facts.step, options)

    def _refuse_plain(self, what: str, call: str) -> None:
        if self._job.kind == "plain" and not self._is_loop():
            msg = (
                f"action {self._job.name!r} is a plain function, which can't await {what}: make it "
                f"a coroutine function, or call anyio.from_thread.run(context.{call})"
            )
            raise BadUse(msg)

    def __repr__(self) -> str:
        return f"<Context of {self._job.name!r} in {self._facts.path!r}>"


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
        """Do nothing: no secret of the run is known here, and what is logged is forwarded."""


# -- logs ------------------------------------------------------------------------------------------

speaking: ContextVar[Requests | None] = ContextVar("shoal_speaking", default=None)
"""The requests of the call that the code belongs to, if it has any."""


@final
class Forward(logging.Handler):
    """Forwards what shoal logs about a function to where the secrets of its run are known."""

    def emit(self, record: logging.LogRecord) -> None:
        """Forward a record, or drop it if no call leads to its run."""
        requests = speaking.get()
        if requests is None:
            return
        error = record.exc_info[1] if record.exc_info else None
        # The action may have ended: it has nothing more to say then.
        with suppress(Exception):
            dumped = None if error is None else dump_error(error)
            requests.say(LOG, record.levelno, record.getMessage(), dumped)


def forward_logs() -> None:
    """In a worker process, at its start: forward what shoal logs."""
    logger = logging.getLogger("shoal")
    logger.handlers[:] = [Forward()]
    logger.propagate = False
