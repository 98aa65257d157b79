"""One step of a function action: bind, call, check, maybe again. Imports everything above; anyio.

Invariants:
- An action's function gets exactly what its parameters name, and what it returns is checked against
  its declared writes before anybody sees it.
- An attempt holds its slots exactly while the function runs, on every way out; also where that is a
  thread which nobody waits for any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import CoroutineType
from typing import Any, NoReturn, cast

from ._action import FunctionAction
from ._attempts import Tried, Tries, try_again, within
from ._cancel import ki_protected, ki_unprotected
from ._errors import BadResult, MissingField, UndeclaredWrite, kind_of
from ._ports import Services, Thread
from ._state import NO_CHANGE, Change, Set, change_between, make_state, refuse_awaitable


def call_function(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    *,
    scopes: tuple[object, ...],
    run: Tried,
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
        run: The run itself, for its context and its attempts.

    Raises:
        MissingField: A field that it reads is not there.
        BadResult: It returned what its declaration doesn't allow.
    """
    if action.retry is not None:
        tries = Tries(action.retry, run, services)
        attempt = partial(
            _call_seated,
            action,
            data,
            inputs,
            services,
            scopes=scopes,
            run=run,
            on_admitted=tries.begin,
        )
        return try_again(run, tries, attempt, tells_last=False)
    if scopes or action.is_governed:
        return _call_seated(action, data, inputs, services, scopes=scopes, run=run)
    return _call(action, data, inputs)


@ki_protected
async def _call_seated(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    *,
    scopes: tuple[object, ...],
    run: Tried,
    on_admitted: Callable[[], None] | None = None,
) -> Change:
    """Make one attempt, in its slots, its thread and its time."""
    seat = services.admission.seat(scopes, action)
    thread: Thread | None = None
    try:
        if seat is not None and not seat.granted:
            await seat.wait()
        if action.in_thread:
            thread = await services.threads.enter()
        if on_admitted is not None:
            on_admitted()
        make_context = None
        if action.takes_context:
            make_context = partial(services.context, run, action, seat)
        if action.timeout is None:
            return await _call(action, data, inputs, make_context, thread)
        attempt = partial(_call, action, data, inputs, make_context, thread)
        what = partial(_what, action.name, run)
        return await within(action.timeout, attempt, run, services, what=what)
    finally:
        leave = None if seat is None else seat.leave
        if thread is None:
            if leave is not None:
                leave()
        else:
            try:
                if thread.is_running:  # nobody waits for it any more
                    await run.tell_grace_exceeded(thread.place, thread.grace, abandoned=True)
            finally:
                thread.leave(leave)  # as soon as it returns


def _what(name: str, run: Tried) -> str:
    path = run.path
    key = "" if path.parent is None else f" (key {path.key!r} of {path.step!r})"
    return f"action {name!r} of run {path.id}{key}"


@ki_unprotected
async def _call(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    make_context: Callable[[], object] | None = None,
    thread: Thread | None = None,
) -> Change:
    kwargs: dict[str, Any] = {}
    try:
        for name in action.fields:
            kwargs[name] = data[name]
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
        assert make_context is not None
        kwargs["context"] = make_context()
    if action.is_async:
        result = await cast("Any", action.function(**kwargs))
    elif thread is not None:
        result = await thread.call(action.function, kwargs, abandon=action.abandon)
    else:
        result = action.function(**kwargs)
    if action.is_async:
        if isinstance(result, CoroutineType):
            _refuse_coroutine(action, cast("CoroutineType[Any, Any, Any]", result))
    else:
        refuse_awaitable(result, f"action {action.name!r}")
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


def _refuse_coroutine(
    action: FunctionAction[..., object], coroutine: CoroutineType[Any, Any, Any]
) -> NoReturn:
    coroutine.close()
    msg = (
        f"action {action.name!r} returned a coroutine that nobody awaited: "
        f"await {coroutine.__qualname__}(...)"
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
        if isinstance(value, CoroutineType):
            _refuse_coroutine(action, cast("CoroutineType[Any, Any, Any]", value))
    return Change(tuple(Set(field, value) for field, value in values.items()), values)
