"""One step of a function action: bind, call, check. Imports everything above; anyio.

Invariants:
- An action's function gets exactly what its parameters name, and what it returns is checked against
  its declared writes before anybody sees it.
- An attempt holds its slots exactly while the function runs, on every way out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from types import CoroutineType
from typing import Any, NoReturn, Protocol, cast

from ._action import FunctionAction
from ._cancel import ki_protected, ki_unprotected
from ._errors import BadResult, MissingField, UndeclaredWrite, kind_of
from ._ports import Executor, Seat, Services
from ._state import NO_CHANGE, Change, Set, change_between, make_state, refuse_awaitable


class Seated(Protocol):
    """A run, as far as its attempts take seats."""

    def take_seat(self, action: FunctionAction[..., Any]) -> Seat | None:
        """Take the seat for an attempt, which may have to wait; None if nothing limits it."""
        ...

    async def tell_waiting(self, seat: Seat) -> None:
        """Publish that it waits for a limit."""
        ...


def call_function(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    *,
    scopes: tuple[object, ...],
    run: Seated,
) -> Awaitable[Change]:
    """Execute ``action`` once on the state ``data`` and return what it changed.

    It starts when the limits that apply let it. Cancellation goes straight to the function; one
    that runs in a thread is waited for.

    Args:
        action: What to execute.
        data: The state's fields.
        inputs: What the function may take besides.
        services: The runtime's.
        scopes: What limits the run.
        run: The run itself, which takes the seat.

    Raises:
        MissingField: A field that it reads is not there.
        BadResult: It returned what its declaration doesn't allow.
    """
    if scopes or action.limits is not None or action.takes_context:
        return _call_seated(action, data, inputs, services, run)
    return _call(action, data, inputs, services.threads)


@ki_protected
async def _call_seated(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    services: Services,
    run: Seated,
) -> Change:
    seat = run.take_seat(action)
    try:
        if seat is not None and not seat.granted:
            await run.tell_waiting(seat)
            await seat.wait()
        context = services.context(run, action, seat) if action.takes_context else None
        result = await _call(action, data, inputs, services.threads, context)
    except BaseException as error:
        if seat is not None:
            if seat.since is not None:
                services.admission.adapt(seat, error)
            seat.leave()
        raise
    if seat is not None:
        if seat.since is not None:
            services.admission.adapt(seat, None)
        seat.leave()
    return result


@ki_unprotected
async def _call(
    action: FunctionAction[..., object],
    data: Mapping[str, object],
    inputs: Mapping[str, object],
    threads: Executor,
    context: object = None,
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
        kwargs["context"] = context
    if action.is_async:
        result = await cast("Any", action.function(**kwargs))
    elif action.in_thread:
        result = await threads(action.function, kwargs)
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
