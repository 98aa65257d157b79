"""`crash_everywhere`: run a scenario whose store goes wrong at every possible place.

Invariants:
- A place is a save of the store or, if it fails or hangs, any call of it. Each is tried twice,
  because a call that goes wrong may or may not have had its effect.
- Each call of the scenario is a process of its own: a new event loop, on a virtual clock that
  starts at 0, with a store that holds what was saved, and whose runs are claimed by no process.
- Up to its place, each round repeats the round without a crash.
- The store goes wrong, so no child must be blamed for it. Only the second life of a round learns
  that the process before has died, and children are condemned after several deaths.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Generic, Literal, NoReturn, TypeVar, cast, final

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from shoal._errors.exceptions import CommitInDoubt, RunClaimed, StoreFailed, brief
from shoal._events.identity import RunPath
from shoal.stores._history import Entry
from shoal.stores._memory import MemoryStore
from shoal.stores._protocol import Batch, ChildRecord, RunRecord, SavedRun, Store
from shoal.testing._clock import run_virtual
from shoal.testing._everywhere import places
from shoal.testing._leaks import Census, judge

_T = TypeVar("_T")
_R = TypeVar("_R")

_How = Literal["dies", "fails", "hangs"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery(Generic[_T]):
    """The result of a scenario whose store went wrong.

    Attributes:
        place: where it went wrong, counted from 1; 0 in the round without a crash.
        lives: how often the scenario was called.
        result: the result of its last call.
        clean: its result in the round without a crash.
        store: the store in the end, its runs claimed by no process.
    """

    place: int
    lives: int
    result: _T
    clean: _T
    store: MemoryStore


def crash_everywhere(
    scenario: Callable[[Store], Awaitable[_T]],
    check: Callable[[Recovery[_T]], object] | None = None,
    *,
    how: Literal["dies", "fails", "hangs"] = "dies",
    times: int = 1,
    delay: float = 0,
    backend: Literal["asyncio", "trio"] = "asyncio",
    seed: int | None = None,
    limit: int | None = None,
    only: int | None = None,
) -> int:
    """Run a scenario again and again, its process dying at a later save of the store each time.

    Each time, the scenario is then called again with what a new process would find in the store,
    and in the end its result must be the same as without a crash. Give ``check`` to assert
    something else:


    >>> @action(reads=["order"], writes=["receipt"])
    ... async def charge(order: int) -> str:
    ...     return f"receipt {order}"
    >>> charges = fan_out(charge, over="orders", item="order", key=int, into="receipts")
    >>> async def scenario(store: Store) -> State:
    ...     app = Application(charges, store=store)
    ...     return (await app.run({"orders": [1, 2, 3]}, id="today")).state
    >>> crash_everywhere(scenario)  # 4 saves, before and after each of them
    8

    The scenario is given a store, and uses it in all that it runs. It is called in a new event loop
    each time, under virtual time: first without a crash, then twice for each save: once dying
    before the save took effect, and once after it, before the run learns of that. So keep it
    small: the time it takes grows with the square of its saves.

    From the moment in which its process dies, the store answers nothing: the run ends with
    ``StoreFailed``, and nothing that the scenario does after that counts. A real process would not
    even have cancelled its actions.

    A store may also go wrong without a death. With ``how="fails"`` a single call of it raises, not
    only saves; with ``how="hangs"`` a single call never returns, so that the run gives it up at its
    deadline. All other calls succeed. If the scenario raises because of it, it is called again; it
    may also end, if nothing was lost.

    These assertions are made after each call in any case. An exception of the scenario was
    ``StoreFailed`` or ``CommitInDoubt``, or a group of those, after its store had gone wrong (or
    ``RunClaimed``, if the store went wrong while a run was released). No task, thread or file
    descriptor is left. Every run was released, if the store still answered. And nothing hangs. An
    exception that fails the test has a note that says where the store went wrong, and how to try
    that place alone.

    Threads are outside of virtual time: with them the places are not the same each time.

    Args:
        scenario: called with a store; returns the value to compare.
        check: called with the `Recovery`; a coroutine function is awaited, in an event loop of its
            own. By default ``result`` must be equal to ``clean``.
        how: what happens to the store: "dies", "fails" or "hangs".
        times: how often that happens before the scenario may end, each time at the same number of
            saves or calls since it was called.
        delay: seconds that each call of the store takes. By default saves take effect at once.
        backend: "asyncio" or "trio".
        seed: decides the order of simultaneous steps, see `run_virtual`. Without one, asyncio is
            first come, first served, and trio has the seed 0, so that its places stay the same.
        limit: the most places to try, spread evenly; None: all.
        only: the one place to try.

    Returns:
        The number of places at which the store went wrong.

    Raises:
        AssertionError: the scenario had another result, or left a run claimed.
        LeakError: it left something alive.
        VirtualDeadlock: it hangs.
        BaseException: any other exception of the scenario or ``check``.
    """
    if seed is None and backend == "trio":
        seed = 0
    manner = Manner(how=how, times=times, delay=delay, backend=backend, seed=seed)
    whole = _Round(scenario, manner, place=0)
    clean = whole.live()

    def attempt(place: int) -> bool:
        """Try a place; return whether the store went wrong there."""
        tried = _Round(scenario, manner, place)
        tried.judge(tried.live(), clean, check)
        return tried.went_wrong

    if only is not None:
        return int(attempt(only))
    whole.judge(clean, clean, check)
    total = 2 * whole.lives[0].seen
    return sum(1 for _ in takewhile(attempt, places(total, limit)))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """The settings that all rounds share."""

    how: _How
    times: int
    delay: float
    backend: Literal["asyncio", "trio"]
    seed: int | None

    def call(self, function: Callable[[_R], Awaitable[_T]], argument: _R) -> _T:
        """Call and await ``function`` in an event loop of its own."""
        return run_virtual(
            _leaving_nothing, function, argument, backend=self.backend, seed=self.seed
        )


@final
class _Round(Generic[_T]):
    """One place: the scenario is called until it ends."""

    def __init__(
        self, scenario: Callable[[Store], Awaitable[_T]], manner: Manner, place: int
    ) -> None:
        self._scenario = scenario
        self._manner = manner
        self._place = place
        self.kept = MemoryStore()
        self.lives: list[_Unsteady] = []  # the store of each call

    @property
    def went_wrong(self) -> bool:
        """Whether the scenario was still running at the place."""
        return self.lives[0].went_wrong

    def live(self) -> _T:
        """Call the scenario until it ends, and return its result."""
        try:
            while True:
                place = self._place if len(self.lives) < self._manner.times else 0
                is_second = len(self.lives) == 1
                store = _Unsteady(self.kept, self._manner, place, reports_death=is_second)
                self.lives.append(store)
                ended, result = self._call(store)
                store.check_released()
                if ended:
                    return cast("_T", result)
                self.kept = self.kept.copy()
        except BaseException as error:
            error.add_note(self._story())
            raise

    def _call(self, store: _Unsteady) -> tuple[bool, _T | None]:
        try:
            result = self._manner.call(self._scenario, store)
        except Exception as error:
            if store.went_wrong and store.is_to_blame_for(error):
                return False, None
            raise
        return not store.is_dead, result

    def judge(self, result: _T, clean: _T, check: Callable[[Recovery[_T]], object] | None) -> None:
        """Assert that the result is right, or let ``check`` do so."""
        recovery = Recovery(
            place=self._place,
            lives=len(self.lives),
            result=result,
            clean=clean,
            store=self.kept.copy().copy(),
        )
        try:
            if check is None:
                assert result == clean, f"it came to {result!r}\ninstead of {clean!r}"
                return
            pending = check(recovery)
            if isinstance(pending, Awaitable):
                self._manner.call(_awaited, cast("Awaitable[object]", pending))
        except BaseException as error:
            error.add_note(self._story())
            raise

    def _story(self) -> str:
        lives = "".join(f"\n  {n}: {store.story}" for n, store in enumerate(self.lives, 1))
        again = f"\nHINT: crash_everywhere(..., only={self._place}) tries this place alone"
        return (
            f"shoal: raised under crash_everywhere ({self._manner!r}), when the scenario had been "
            f"called{lives}{again if self._place else ''}"
        )


async def _leaving_nothing(function: Callable[[_R], Awaitable[_T]], argument: _R) -> _T:
    """Call and await ``function``; raise if something it has started is still alive then."""
    await cancel_shielded_checkpoint()  # trio's own tasks begin, so that they are not new later
    census = Census(threads=True, descriptors=True)
    try:
        result = await function(argument)
    except Exception:
        await judge(census, inside="the scenario")
        raise
    await judge(census, inside="the scenario")
    return result


async def _awaited(pending: Awaitable[object]) -> None:
    await pending


_DEAD = "the process of this store is dead"


@final
class _WentWrong(ConnectionError):
    """The exception that the store raises."""


@final
class _Unsteady:
    """A store in front of another one, which goes wrong at one place."""

    def __init__(
        self, kept: MemoryStore, manner: Manner, place: int, *, reports_death: bool = False
    ) -> None:
        self._kept = kept
        self._reports_death = reports_death
        self._how = manner.how
        self._delay = manner.delay
        self._at = (place + 1) // 2  # the number of the call that goes wrong
        self._does_it_first = place % 2 == 0
        self._may_stay_claimed = False
        self.seen = 0  # the calls so far that could go wrong
        self.is_dead = False
        self.story = "with a store that is fine"

    @property
    def went_wrong(self) -> bool:
        return 0 < self._at <= self.seen

    def is_to_blame_for(self, error: BaseException) -> bool:
        if isinstance(error, BaseExceptionGroup):
            errors = cast("BaseExceptionGroup[BaseException]", error).exceptions
            return all(map(self.is_to_blame_for, errors))
        if isinstance(error, RunClaimed):
            return self._may_stay_claimed
        return isinstance(error, StoreFailed | CommitInDoubt)

    def check_released(self) -> None:
        claimed = ", ".join(self._kept._claims)
        if claimed and not self.is_dead and not self._may_stay_claimed:
            raise AssertionError(f"not given back to the store: run {claimed}")

    def _arrive(self, call: str) -> bool:
        """Count a call; return whether it goes wrong."""
        if self.is_dead:
            raise _WentWrong(_DEAD)
        if self._how == "dies" and not call.startswith("save"):
            return False
        self.seen += 1
        if self.seen != self._at:
            return False
        does = "after" if self._does_it_first else "instead of"
        self.story = f"with a store that {self._how} at call {self.seen}, {does} its {call}"
        self._may_stay_claimed = call.startswith("release")
        return True

    async def _go_wrong(self) -> NoReturn:
        if self._how == "hangs":
            await anyio.sleep_forever()
        self.is_dead = self._how == "dies"
        raise _WentWrong(f"the store {self._how}, as crash_everywhere has asked it to")

    async def _ask(self, call: str, do: Callable[[], Awaitable[_T]]) -> _T:
        goes_wrong = self._arrive(call)
        if self._delay:
            await anyio.sleep(self._delay)
        if not goes_wrong:
            return await do()
        if self._does_it_first:
            await do()
        return await self._go_wrong()

    def pack(self, child: SavedRun) -> object:
        return self._kept.pack(child)

    def save(self, batch: Batch) -> Awaitable[None] | None:
        goes_wrong = self._arrive(f"save of {_described(batch)}")
        if goes_wrong or self._delay:
            return self._save(batch, goes_wrong=goes_wrong)
        return self._kept.save(batch)

    async def _save(self, batch: Batch, *, goes_wrong: bool) -> None:
        await anyio.sleep(self._delay / 2)
        if self.is_dead:
            raise _WentWrong(_DEAD)
        if self._does_it_first or not goes_wrong:
            self._kept.save(batch)
        if goes_wrong:
            await self._go_wrong()
        await anyio.sleep(self._delay / 2)

    async def claim(self, run_id: str, holder: str) -> bool | None:
        claim = partial(self._kept.claim, run_id, holder)
        has_died = await self._ask(f"claim of run {run_id}", claim)
        return has_died and self._reports_death

    async def load(self, run_id: str) -> RunRecord | None:
        return await self._ask(f"load of run {run_id}", partial(self._kept.load, run_id))

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        return await self._ask(f"read of {path!r}", partial(self._kept.read, path, from_number))

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        call = f"look for the children of {path!r}" + (f" in {step!r} #{visit}" if step else "")
        return await self._ask(call, partial(self._kept.children, path, step, visit))

    async def release(self, run_id: str, holder: str) -> None:
        if not self.is_dead:  # a dead process calls nothing
            release = partial(self._kept.release, run_id, holder)
            await self._ask(f"release of run {run_id}", release)


def _described(batch: Batch) -> str:
    numbers = [update.number for update in batch.updates]
    parts = [f"updates {numbers[0]} to {numbers[-1]}"] if numbers else []
    parts += [f"key {brief(child.path.key)}" for child in (*batch.applied, *batch.unapplied)]
    parts += [] if batch.step_completed is None else [f"step {batch.step_completed!r}"]
    parts += [] if batch.ended is None else [f"its end, {batch.ended}"]
    parts += ["its beginning"] if batch.begun is not None else []
    return f"{batch.path!r} ({', '.join(parts)})"
