"""One step of a function action: bind, call, check, maybe again. Imports everything above; anyio.

Invariants:
- An action's function gets exactly what its parameters name, and what it returns is checked against
  its declared writes before anybody sees it.
- An attempt holds its slots exactly while the function runs, on every way out; also where that is a
  thread which nobody waits for any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import Any, NoReturn, Protocol, cast

from anyio.lowlevel import checkpoint_if_cancelled

from ._action import FunctionAction, Result
from ._admission import Admission
from ._attempts import Tried, try_step, within
from ._cancel import as_failure, cancelled, ki_protected, ki_unprotected
from ._errors import BadResult, MissingField, RetryLater, UndeclaredWrite, brief, kind_of, note
from ._halting import Asking, or_halt
from ._ids import RunPath
from ._items import Emitter, Items, stream
from ._limiter import Limiter
from ._ports import Services
from ._seat import Seat
from ._secret import Secret
from ._state import NO_CHANGE, Change, Set, change_between, make_state, refuse_awaitable
from ._threads import Thread

logger = logging.getLogger("shoal")

LATER = 10
"""``RetryLater`` in a row that fail an action."""


class Caller(Tried, Emitter, Asking, Protocol):
    """What calls an action: a run."""

    @property
    def path(self) -> RunPath:
        """Its identity."""
        ...

    @property
    def attempt(self) -> int:
        """Which try of the current step this is, counted from 1."""
        ...

    def take_seat(self, action: FunctionAction[..., Any]) -> Seat | None:
        """Take the seat for an attempt, which may have to wait; None if nothing limits it."""
        ...

    async def tell_waiting(self, seat: Seat) -> None:
        """Publish that it waits for a limit."""
        ...

    def pause(self, seconds: float, seat: Seat | None) -> bool:
        """Let nothing more start for a while with the keys of an attempt, if it has any."""
        ...

    async def recall_result(self, action: FunctionAction[..., Any]) -> Change | None:
        """Return what an action with ``cache=`` has come to before, if that is remembered."""
        ...

    async def remember_result(
        self, action: FunctionAction[..., Any], change: Change, seconds: float
    ) -> Change:
        """Return what an action with ``cache=`` has come to, once that is remembered."""
        ...

    async def wait_for_later(self, seconds: float, *, is_paused: bool) -> None:
        """Hold nothing until an action that asked for it may be tried again."""
        ...


def call_function(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    *,
    scopes: tuple[Limiter, ...],
    run: Caller,
) -> Awaitable[Change]:
    """Execute ``action`` on the state ``data`` and return what it changed.

    It starts when the limits that apply let it. Cancellation goes straight to the function; one
    that runs in a thread is waited for, as long as the grace. If it fails, it is executed again
    as its ``retry`` has it; meanwhile it holds nothing.

    Args:
        action: What to execute.
        data: The state's fields.
        inputs: What the function may take besides.
        services: The runtime's.
        scopes: What limits the run.
        run: The run itself, for its context, its attempts and their partial items.

    Raises:
        MissingField: A field that it reads is not there.
        BadResult: It returned what its declaration doesn't allow.
        IncompleteStream: It streams, and did not end with its only ``Result``.
    """
    if action.retry is not None:
        attempt = partial(_call_seated, action, data, inputs, services, run)
        return try_step(run, action.retry, services, attempt)
    if scopes or action.is_governed:
        return _call_seated(action, data, inputs, services, run)
    return _call(action, data, inputs, free=(services, run))


@ki_protected
async def _call_seated(  # noqa: PLR0917 # once for each attempt
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    run: Caller,
    on_admitted: Callable[[], None] | None = None,
    later: RetryLater | None = None,
) -> Change:
    """Make one attempt; again, as long as it asks to be tried later.

    Args:
        action: What to execute.
        data: The state's fields.
        inputs: What the function may take besides.
        services: The runtime's.
        run: The run itself.
        on_admitted: Called when the attempt begins.
        later: What it has asked for already.
    """
    asked = 0
    paused: list[bool] = [] if later is None else [run.pause(later.after, None)]
    while True:
        if later is not None:
            asked += 1
            await run.settle()
            await run.wait_for_later(later.after, is_paused=paused.pop())
            later = None
        seat = run.take_seat(action)
        try:
            return await _attempt(action, data, inputs, services, run, seat, on_admitted, paused)
        except RetryLater as error:
            if asked + 1 >= LATER or not paused or run.is_doomed or cancelled():
                note(error, f"shoal: asked for it {asked + 1} times in a row")
                raise
            later = error
        on_admitted = None  # it is the same attempt still


@ki_protected
async def _attempt(  # noqa: PLR0917 # once for each attempt
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    run: Caller,
    seat: Seat | None,
    on_admitted: Callable[[], None] | None,
    paused: list[bool],
) -> Change:
    """Make one attempt, in its slots, its thread and its time. One that never began paid nothing.

    If it asks to be tried later, its keys are paused before it gives back its slots, and ``paused``
    says whether it has any. What adapts its limits is told how it ended, and may fail it.
    """
    thread: Thread | None = None
    failure: BaseException | None = None
    begun = False
    try:
        if seat is not None and not seat.granted:
            await run.tell_waiting(seat)
            await seat.wait()
            await checkpoint_if_cancelled()  # in the tick of the grant, or while hooks were told
            if action.cache is not None:  # somebody may have come to it meanwhile
                recalled = await run.recall_result(action)
                if recalled is not None:
                    return recalled
        begun = True
        if action.in_thread:
            thread = services.threads.turn()
        if on_admitted is not None:
            on_admitted()
        if action.takes_context or action.is_streaming:
            make_context = partial(services.context, run, action, seat)
            attempt = partial(
                _call_emitting, action, data, inputs, make_context, run=run, thread=thread
            )
        else:
            attempt = partial(_call, action, data, inputs, thread=thread)
        timed: Callable[[], Awaitable[Change]] = attempt
        if action.timeout is not None:
            what = partial(_what, action.name, run)
            timed = partial(within, action.timeout, attempt, run, services, what=what)
        if action.takes_context:
            return await or_halt(run, timed)
        if action.cache is not None:  # while it has its seat: whoever has it next looks again
            return await run.remember_result(action, await timed(), action.cache)
        return await timed()
    except BaseException as error:
        failure = error
        if isinstance(error, RetryLater):
            paused.append(run.pause(error.after, seat))
        raise
    finally:
        try:
            # What waits for a person says nothing of whoever the limit protects.
            if seat is not None and begun and seat.since is not None and not run.is_halting:
                _adapt(services.admission, seat, failure, run)
        finally:  # whatever the user's policy does, see test_a_policy_that_raises_fails_the_attempt
            failure = None  # no cycle from the exception through its traceback to this frame
            if seat is not None and thread is not None:
                await _leave_thread(thread, seat, run)
            elif seat is not None and begun:
                seat.leave()
            elif seat is not None:
                seat.cancel()


@ki_protected
def _adapt(admission: Admission, seat: Seat, failure: BaseException | None, run: Caller) -> None:
    """Tell what adapts limits how an attempt ended.

    Raises:
        Exception: What a user's policy raised. That is never instead of a cancellation, or of what
            else must travel on.
    """
    try:
        admission.adapt(seat, failure)
    except Exception:
        if failure is None or as_failure(failure) is not None:
            raise
        # Only told: the cancellation, or what else it is, is under way and must travel on.
        logger.exception("adapt= of a limit, told of the end of run %s", run.path.id)


@ki_protected
async def _leave_thread(thread: Thread, seat: Seat, run: Caller) -> None:
    """Leave the seat as soon as the function has returned, and don't wait for that."""
    try:
        if thread.is_running:  # nobody waits for it any more
            await run.tell_grace_exceeded(thread.place, thread.grace, abandoned=True)
    finally:
        thread.leave(seat.leave)


@ki_protected
async def _call_emitting(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    make_context: Callable[[Items], object],
    *,
    run: Caller,
    thread: Thread | None,
) -> Change:
    """Make an attempt that may give partial items."""
    items = Items(run, action.name, run.attempt)
    context = make_context(items) if action.takes_context else None
    try:
        return await _call(action, data, inputs, context=context, items=items, thread=thread)
    finally:
        being_told = items.end()
        if being_told is not None:
            await being_told


def _what(name: str, run: Tried) -> str:
    path = run.path
    key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
    return f"action {name!r} of run {path.id}{key}"


@ki_unprotected
async def _call(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    *,
    context: object = None,
    items: Items | None = None,
    thread: Thread | None = None,
    free: tuple[Services, Caller] | None = None,
) -> Change:
    """Call the function, and check what it returns; ``free``: nothing limits it so far."""
    kwargs: dict[str, Any] = {}
    try:
        for name in action.fields:
            value = data[name]
            kwargs[name] = value.value if type(value) is Secret else value
    except KeyError as missing:
        raise _missing(action, missing.args[0], data) from None
    bound = action.bound
    for name in action.input_names:
        if name in inputs:
            kwargs[name] = inputs[name]
        elif name in bound:
            kwargs[name] = bound[name]
    base = None
    if action.takes_state:
        base = make_state(data, action.permit)
        kwargs["state"] = base
    if action.takes_context:
        kwargs["context"] = context
    later: RetryLater | None = None
    result: object = None
    try:
        if action.is_async:
            result = await cast("Any", action.function(**kwargs))
        elif action.is_streaming:
            assert items is not None
            result = await stream(cast("Any", action.function(**kwargs)), items)
        elif thread is not None:
            on_cancelled = None if items is None else items.stop
            result = await thread.call(
                action.function, kwargs, abandon=action.abandon, on_cancelled=on_cancelled
            )
        else:
            result = action.function(**kwargs)
    except RetryLater as error:
        if free is None:
            raise
        later = error
    if later is not None and free is not None:
        return await _call_seated(action, data, inputs, *free, later=later)
    if not (action.is_async or action.is_streaming):
        refuse_awaitable(result, f"action {action.name!r}")
    if isinstance(result, _MISTAKES):
        _refuse_mistake(action, cast("object", result))
    if base is not None:
        return change_between(base, result, f"action {action.name!r}")
    field = action.only_write
    if field is not None:
        return Change((Set(field, result),), {field: result})
    return _writes(action, result)


def _missing(
    action: FunctionAction[..., object], field: str, data: Mapping[str, object]
) -> MissingField:
    msg = (
        f"action {action.name!r} reads field {field!r}, which the state does not have "
        f"(it has: {', '.join(sorted(data)) or 'none'}); "
        f"pass it to run(), or write it in an earlier action"
    )
    return MissingField(msg)


_MISTAKES = (CoroutineType, AsyncGeneratorType, Result)
"""What nobody means to write to a state."""


def _refuse_mistake(action: FunctionAction[..., object], result: object) -> NoReturn:
    who = f"action {action.name!r}"
    if isinstance(result, CoroutineType):
        coroutine = cast("CoroutineType[Any, Any, Any]", result)
        coroutine.close()
        msg = f"{who} returned a coroutine that nobody awaited: await {coroutine.__qualname__}(...)"
    elif isinstance(result, Result):
        msg = (
            f"{who} returned a Result, which is what a streaming action yields last, and no other: "
            f"return the value itself"
        )
    else:
        msg = (
            f"{who} returned an async generator; to stream, it has to be an async generator "
            f"function itself, which yields each item and, as the last thing, Result(value)"
        )
    raise BadResult(msg)


def _writes(action: FunctionAction[..., object], result: object) -> Change:
    """Check the result of an action that writes no field, or several."""
    name = action.name
    if not action.writes:
        if result is not None:
            msg = (
                f"action {name!r} declares no writes and returned {kind_of(result)}; "
                f"declare writes=[...] or return None"
            )
            raise BadResult(msg)
        return NO_CHANGE
    expected = ", ".join(sorted(action.writes))
    if not isinstance(result, Mapping):
        msg = (
            f"action {name!r} writes several fields, so it returns a mapping of them "
            f"({expected}), not {kind_of(result)}"
        )
        raise BadResult(msg)
    values = dict(cast("Mapping[str, object]", result))
    extra = ", ".join(sorted(map(str, values.keys() - action.writes)))
    if extra:
        msg = (
            f"action {name!r} returned a value for {extra}, which it does not declare; "
            f"add it to writes=[...] (declared: {expected})"
        )
        raise UndeclaredWrite(msg)
    missing = ", ".join(sorted(action.writes - values.keys()))
    if missing:
        msg = (
            f"action {name!r} returned no value for {missing}, which it declares to write; "
            f"to write only some of its fields, take `state` and return state.update(...)"
        )
        raise BadResult(msg)
    for value in values.values():
        if isinstance(value, _MISTAKES):
            _refuse_mistake(action, cast("object", value))
    return Change(tuple(Set(field, value) for field, value in values.items()), values)
