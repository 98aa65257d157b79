"""Functions of ours that call an action of Burr's: what a run executes as a step.

Invariants:
- A function is plain, a coroutine function or an async generator function as the action is, so that
  the engine calls it where it would call one of ours: on the loop, or in a worker.
- A plain action that streams runs in one thread from its first item to its last, and learns of a
  cancellation when it gives the next item.
- The generator of an action is closed where it was advanced, on every way out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, cast, final

import anyio.from_thread
from burr.core import Action
from burr.core.typing import TypingSystem

from shoal._engine.fanout.context import Context
from shoal._errors.exceptions import BadResult, IncompleteStream, brief, kind_of
from shoal._state.result import Result
from shoal._state.state import State, refuse_awaitable

from ._declared import Declared
from ._injected import injected, named_for
from ._state import Given, View, outcome_of


@dataclass(frozen=True, eq=False)
class _Call:
    """An action of Burr's and what it takes."""

    declared: Declared
    typing_system: TypingSystem[Any] | None
    takes_context: bool

    @property
    def __name__(self) -> str:
        return self.declared.name

    def view(self, state: State) -> View:
        return View(state, Given(), self.typing_system)

    def arguments(self, method: Callable[..., object], given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a method of the action besides the state."""
        context: Context | None = given.pop("context") if self.takes_context else None
        self.declared.refuse_missing(given)
        if context is None:
            return given
        return {**given, **named_for(method, injected(self.declared, context.path.id))}

    def back(self, view: View, result: object) -> State:
        return view.back(result, self.declared.name, self.declared.action.writes)

    def updated(self, view: View, result: object) -> State:
        """Return the state after the second step of an action that has two."""
        if not isinstance(result, dict):
            refuse_awaitable(result, f"action {self.declared.name!r}")
            msg = (
                f"action {self.declared.name!r}: its run returned {kind_of(result)}; Burr's "
                f"actions of two steps return a dict, which their update puts into the state"
            )
            raise BadResult(msg)
        action: Any = self.declared.action
        return self.back(view, action.update(result, view))


@final
class Plain(_Call):
    """Calls an action that is plain."""

    def __call__(self, state: State, **given: Any) -> State:
        """Call the action; see ``FunctionAction``."""
        action: Any = self.declared.action
        view = self.view(state)
        if self.declared.action.single_step:
            output = action.run_and_update(view, **self.arguments(action.run_and_update, given))
            return self.back(view, outcome_of(output, self.declared.name)[1])
        return self.updated(view, action.run(view, **self.arguments(action.run, given)))


@final
class Awaited(_Call):
    """Calls an action that is a coroutine function."""

    async def __call__(self, state: State, **given: Any) -> State:
        """Call the action; see ``FunctionAction``."""
        action: Any = self.declared.action
        view = self.view(state)
        if self.declared.action.single_step:
            output = await action.run_and_update(
                view, **self.arguments(action.run_and_update, given)
            )
            return self.back(view, outcome_of(output, self.declared.name)[1])
        return self.updated(view, await action.run(view, **self.arguments(action.run, given)))


@final
class Streamed(_Call):
    """Calls an action that is an async generator function."""

    async def __call__(self, state: State, **given: Any) -> AsyncIterator[object]:
        """Call the action; see ``FunctionAction``."""
        view, stream = self.view(state), Stream(self.declared)
        async with aclosing(_opened(self, view, given)) as generator:
            async for item in generator:
                for one in stream.items(item):
                    yield one
        yield Result(stream.end(self, view))


@final
class StreamedInThread(_Call):
    """Calls an action that is a generator function, in a worker thread."""

    def __call__(self, state: State, context: Context, **given: Any) -> State:
        """Call the action; see ``FunctionAction``."""
        view, stream = self.view(state), Stream(self.declared)
        with closing(_opened(self, view, {**given, "context": context})) as generator:
            for item in generator:
                for one in stream.items(item):
                    anyio.from_thread.run(context.emit, one)
        return stream.end(self, view)


def _opened(call: _Call, view: View, given: dict[str, Any]) -> Any:
    action: Any = call.declared.action
    method = action.stream_run_and_update if action.single_step else action.stream_run
    # Asked about the function itself, since Burr's own generator around it takes anything.
    generator = method(view, **call.arguments(getattr(action, "fn", method), given))
    if not hasattr(generator, "aclose" if action.is_async() else "close"):
        msg = (
            f"action {call.declared.name!r} streams, and returned {kind_of(generator)} instead of "
            f"being a generator function: yield each item"
        )
        raise BadResult(msg)
    return generator


@final
class Stream:
    """Tells what a streaming action yields: partial items, and at last its result.

    An action of one step yields a dict for an item, and ``(result, state)`` last. One of two steps
    yields dicts alone, of which the last is its result: so each is known to be an item when the
    next one comes.
    """

    def __init__(self, declared: Declared) -> None:
        """Nothing was yielded yet."""
        self._name = declared.name
        self._is_one_step = declared.action.single_step
        self._last: object = None
        self._has_last = False  # until the first dict, or the state of an action of one step

    def items(self, found: object) -> tuple[object, ...]:
        """Return the partial items that are known to be such now that ``found`` was yielded.

        Raises:
            BadResult: No streaming action yields that.
        """
        if not self._is_one_step:
            before, had = self._last, self._has_last
            self._last, self._has_last = found, True
            return (before,) if had else ()
        item, state = found, None
        if isinstance(found, tuple):
            pair = cast("tuple[object, ...]", found)
            if len(pair) != 2:  # noqa: PLR2004 # an item or result, and the state or None
                self._refuse(pair)
            item, state = pair
        elif not isinstance(found, dict) and not hasattr(found, "model_dump"):
            self._refuse(found)
        if state is None:
            return (item,)
        self._last, self._has_last = state, True
        return ()

    def _refuse(self, found: object) -> None:
        msg = (
            f"action {self._name!r} yielded {brief(found)}; a streaming action of Burr yields a "
            f"dict for each item, and its result and the new state last: "
            f"yield {{...}}, state.update(...)"
        )
        raise BadResult(msg)

    def end(self, call: _Call, view: View) -> State:
        """Return the state after the action.

        Raises:
            IncompleteStream: It never yielded its result.
        """
        if not self._has_last:
            last = (
                "its result and the new state, yield {...}, state.update(...)"
                if self._is_one_step
                else "its result, a dict"
            )
            msg = f"streaming action {self._name!r} ended without a result; it yields last: {last}"
            raise IncompleteStream(msg)
        return call.back(view, self._last) if self._is_one_step else call.updated(view, self._last)


def call_of(
    declared: Declared, typing_system: TypingSystem[Any] | None, *, streams_in_thread: bool
) -> Callable[..., Any]:
    """Return the function of ours that calls an action of Burr's."""
    action = declared.action
    takes_context = streams_in_thread or bool(declared.injected)
    if action.streaming:
        kind = Streamed if action.is_async() else StreamedInThread
    else:
        kind = Awaited if action.is_async() else Plain
    return kind(declared, typing_system, takes_context)


def streams_in_thread(action: Action) -> bool:
    """Return whether an action is a generator function, which a thread advances."""
    return action.streaming and not action.is_async()
