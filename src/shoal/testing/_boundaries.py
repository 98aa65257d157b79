"""`fail_everywhere`: run a scenario whose own functions go wrong at every possible place.

Invariants:
- A place is a boundary between shoal and a function that the scenario has wrapped: a call of it,
  before it begins and after it has done its work; of a generator, each item and its end.
- Each place is tried in an event loop of its own, on a virtual clock that starts at 0.
- Up to its place, each round repeats the round in which nothing goes wrong.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from itertools import takewhile
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast, final

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from shoal._errors.exceptions import HookFailed
from shoal._errors.inspection import leaves
from shoal._events.events import HOOK_METHODS, Event
from shoal._events.hooks import Hook
from shoal._graph.action import FunctionAction
from shoal.testing._clock import run_virtual
from shoal.testing._everywhere import places
from shoal.testing._leaks import Census, judge

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

How = Literal["raises", "hangs", "late", "interrupts"]

PATIENCE = 86_400.0
"""Seconds after which a scenario that hangs is cancelled: above any timeout of a test's own."""


@final
class BoundaryError(Exception):
    """The exception that functions raise under `fail_everywhere`."""


@final
class Aftermath(Generic[_T]):
    """How a scenario ended in which a function went wrong.

    Attributes:
        place: where that was, counted from 1; 0 in the round in which nothing goes wrong.
        call: the function, as ``"count, after it"``; empty in that round.
        error: the exception of the scenario; None if it returned, or was cancelled.
        cancelled: whether it hung, and was cancelled in the end.
        result: its result; None if it has none.
        clean: its result in the round in which nothing goes wrong.
    """

    __slots__ = ("call", "cancelled", "clean", "error", "place", "result")

    def __init__(self, place: int, call: str, clean: _T | None) -> None:
        """Describe a round that has not ended."""
        self.place: int = place
        self.call: str = call
        self.error: BaseException | None = None
        self.cancelled: bool = False
        self.result: _T | None = None
        self.clean: _T | None = clean


@final
class Boundaries:
    """Wraps the functions of a scenario, so that one call of one of them goes wrong."""

    def __init__(self, place: int, how: How) -> None:
        """Let the call at ``place`` go wrong; 0: none."""
        self._place = place
        self._how: How = how
        self._seen = 0
        self._names: list[str] = []
        self._call = ""

    def __call__(self, function: _F, name: str | None = None) -> _F:
        """Return ``function``, wrapped: plain, asynchronous, a generator, or an action.

        Args:
            function: The function.
            name: What it is called in `Aftermath`; by default its own name.
        """
        if isinstance(function, FunctionAction):
            action = cast("FunctionAction[..., Any]", function)
            wrapped = copy.copy(action)
            vars(wrapped).pop("job", None)
            wrapped.function = self(action.function, name or action.name)
            return cast("_F", wrapped)
        name = name or str(getattr(function, "__name__", repr(function)))
        make = self._plain
        if isasyncgenfunction(function):
            make = self._async_generator
        elif iscoroutinefunction(function):
            make = self._coroutine
        elif isgeneratorfunction(function):
            make = self._generator
        return cast("_F", functools.wraps(function)(make(function, name)))

    def hook(self, *, observer: bool = False) -> Hook:
        """Return a hook that goes wrong at events: at each before and after its method is called.

        Args:
            observer: Whether its failures leave the run alone.
        """

        async def receive(self: Hook, event: Event) -> None:
            """Receive an event, which is all that it does."""

        methods: dict[str, object] = {
            method: self(_method_of(receive), method) for method in HOOK_METHODS
        }
        kind = type("BoundaryHook", (Hook,), {**methods, "observer": observer})
        return cast("Hook", kind())

    # -- kinds of functions ---------------------------------------------------------------------

    def _plain(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> Any:
            self._pass_plainly(f"{name}, before it")
            result = function(*args, **kwargs)
            self._pass_plainly(f"{name}, after it")
            return result

        return call

    def _coroutine(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def call(*args: object, **kwargs: object) -> Any:
            await self._pass(f"{name}, before it")
            result = await function(*args, **kwargs)
            await self._pass(f"{name}, after it")
            return result

        return call

    def _generator(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> Generator[Any]:
            with closing(function(*args, **kwargs)) as items:
                for item in items:
                    self._pass_plainly(f"{name}, before an item")
                    yield item
                self._pass_plainly(f"{name}, after it")

        return call

    def _async_generator(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        async def call(*args: object, **kwargs: object) -> AsyncGenerator[Any]:
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    await self._pass(f"{name}, before an item")
                    yield item
                await self._pass(f"{name}, after it")

        return call

    # -- places ---------------------------------------------------------------------------------

    def _arrive(self, call: str) -> bool:
        self._seen += 1
        if self._seen != self._place:
            return False
        self._call = call
        return True

    def _pass_plainly(self, call: str) -> None:
        # A plain function that hung would stop the event loop, and nothing could be said of it.
        if self._how in ("raises", "interrupts") and self._arrive(call):
            self._raise()

    async def _pass(self, call: str) -> None:
        if not self._arrive(call):
            return
        if self._how == "hangs":
            await anyio.sleep_forever()
        if self._how == "late":
            try:
                await anyio.sleep_forever()
            except BaseException:  # noqa: BLE001 # a cancellation: this is what goes wrong
                raise self._error() from None
        self._raise()

    def _raise(self) -> NoReturn:
        if self._how == "interrupts":
            raise KeyboardInterrupt
        raise self._error()

    def _error(self) -> BoundaryError:
        return BoundaryError(f"as fail_everywhere has asked: {self._call}")

    # -- judging --------------------------------------------------------------------------------

    @property
    def _went_wrong(self) -> bool:
        return bool(self._call)

    def _is_to_blame_for(self, error: BaseException) -> bool:
        """Return whether ``error`` is what went wrong, or was raised because of it."""
        if not self._went_wrong:
            return False
        if self._how == "interrupts":
            return isinstance(error, KeyboardInterrupt)
        if isinstance(error, TimeoutError | HookFailed) and self._how in ("hangs", "late"):
            return True
        seen: set[int] = set()
        left: list[BaseException | None] = [error]
        while left:
            one = left.pop()
            if one is None or id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, BoundaryError):
                return True
            if isinstance(one, BaseExceptionGroup):
                left += leaves(cast("BaseException", one))
            left += [one.__cause__, one.__context__]
        return False

    def _story(self) -> str:
        if not self._went_wrong:
            return "before anything went wrong"
        return f"when place {self._place} went wrong: {self._call}"


def fail_everywhere(
    scenario: Callable[[Boundaries], Awaitable[_T]],
    check: Callable[[Aftermath[_T]], object] | None = None,
    *,
    how: How = "raises",
    backend: Literal["asyncio", "trio"] = "asyncio",
    seed: int | None = None,
    limit: int | None = None,
    only: int | None = None,
) -> int:
    """Run a scenario again and again, a later call of its own functions going wrong each time.

    The scenario is given `Boundaries`, and wraps the functions that it gives to shoal: actions,
    sources, reducers, conditions, hooks. ``check`` is called after each round, and asserts what
    must hold however it ended:


    >>> @action(reads=["order"], writes=["receipt"])
    ... async def charge(order: int) -> str:
    ...     return f"receipt {order}"
    >>> async def scenario(boundaries: Boundaries) -> int:
    ...     charges = fan_out(
    ...         boundaries(charge),
    ...         over="orders",
    ...         item="order",
    ...         key=int,
    ...         into="receipts",
    ...         errors_into="unpaid",
    ...         on_error="collect",
    ...     )
    ...     state = (await Application(charges).run({"orders": [1, 2]})).state
    ...     return len(state["receipts"]) + len(state["unpaid"])
    >>> def check(aftermath: Aftermath[int]) -> None:
    ...     assert aftermath.result == 2  # paid or not, no order is lost
    >>> fail_everywhere(scenario, check)  # before and after each charge
    4

    It is called in a new event loop each time, under virtual time: first with nothing going wrong,
    then once for each place: before and after each call of a wrapped function, before each item of
    a wrapped generator, and after the last.

    ``how`` chooses the fault. "raises": the function raises `BoundaryError`.
    "interrupts": it raises KeyboardInterrupt, as a Ctrl-C does. "hangs": it never returns, so that
    the scenario ends by a timeout of its own, or is cancelled after a day of virtual time. "late":
    it hangs, and answers its cancellation with a `BoundaryError`. The last two are for asynchronous
    functions: a plain one that hung would stop the event loop.

    These assertions are made after each round in any case. An exception of the scenario is the one
    that was raised, or was raised because of it. A KeyboardInterrupt comes out bare. A cancellation
    was not swallowed. No task, thread or file descriptor is left. And nothing hangs any longer. An
    exception that fails the test has a note that says what went wrong, and how to try it alone.

    Threads are outside of virtual time: with them the places are not the same each time.

    Args:
        scenario: called with `Boundaries`.
        check: called with the `Aftermath`; a coroutine function is awaited, in an event loop of its
            own. It is called after the round in which nothing goes wrong, too.
        how: what goes wrong: "raises", "hangs", "late" or "interrupts".
        backend: "asyncio" or "trio".
        seed: decides the order of simultaneous steps, see `run_virtual`. Without one, asyncio is
            first come, first served, and trio has the seed 0, so that its places stay the same.
        limit: the most places to try, spread evenly; None: all.
        only: the one place to try.

    Returns:
        The number of places at which something went wrong.

    Raises:
        AssertionError: The scenario swallowed a cancellation, or an interrupt did not come out of
            it.
        LeakError: It left something alive.
        VirtualDeadlock: It hangs.
        BaseException: Any other exception of the scenario or ``check``.
    """
    if seed is None and backend == "trio":
        seed = 0
    clean: _T | None = None

    def attempt(place: int) -> Boundaries:
        """Try a place."""
        nonlocal clean
        boundaries = Boundaries(place, how)
        try:
            aftermath = run_virtual(_round, scenario, boundaries, clean, backend=backend, seed=seed)
            if place == 0:
                aftermath.clean = clean = aftermath.result
            if check is not None:
                pending = check(aftermath)
                if isinstance(pending, Awaitable):
                    awaited = cast("Awaitable[object]", pending)
                    run_virtual(_awaited, awaited, backend=backend, seed=seed)
        except BaseException as error:
            again = f"\nHINT: fail_everywhere(..., only={place}) tries this place alone"
            error.add_note(
                f"shoal: raised under fail_everywhere (how={how!r}, backend={backend!r}, "
                f"seed={seed}), {boundaries._story()}{again if place else ''}"
            )
            if isinstance(error, KeyboardInterrupt) and boundaries._went_wrong:
                msg = "the interrupt stopped the event loop, and never came out of the scenario"
                raise AssertionError(msg) from error
            raise
        return boundaries

    first = attempt(0)
    if only is not None:
        return int(attempt(only)._went_wrong)
    tried = takewhile(lambda place: attempt(place)._went_wrong, places(first._seen, limit))
    return sum(1 for _ in tried)


async def _round(
    scenario: Callable[[Boundaries], Awaitable[_T]], boundaries: Boundaries, clean: _T | None
) -> Aftermath[_T]:
    await cancel_shielded_checkpoint()  # trio's own tasks begin, so that they are not new later
    census = Census(threads=True, descriptors=True)
    error: BaseException | None = None
    result: _T | None = None
    completed = False
    with anyio.move_on_after(PATIENCE) as scope:
        try:
            result = await scenario(boundaries)
            completed = True
        except (Exception, KeyboardInterrupt) as raised:
            if not boundaries._is_to_blame_for(raised):
                raise
            error = raised
    if completed and scope.cancel_called:
        raise AssertionError(f"a cancellation was swallowed, and {result!r} was returned")
    if completed and boundaries._how == "interrupts" and boundaries._went_wrong:
        raise AssertionError(f"an interrupt was swallowed, and {result!r} was returned")
    await judge(census, inside="the scenario")
    aftermath = Aftermath(boundaries._place, boundaries._call, clean)
    aftermath.error, aftermath.result = error, result
    aftermath.cancelled = not completed and error is None
    return aftermath


async def _awaited(pending: Awaitable[object]) -> None:
    await pending


def _method_of(
    receive: Callable[[Hook, Event], Coroutine[Any, Any, None]],
) -> Callable[[Hook, Event], Coroutine[Any, Any, None]]:
    """Return a function of its own for each method, since wrapping sets its name."""

    async def method(self: Hook, event: Event) -> None:
        await receive(self, event)

    return method
