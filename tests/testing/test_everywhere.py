"""`cancel_everywhere`: finds what breaks under cancellation, wherever it is, and nothing else."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, cast

import anyio
import anyio.lowlevel
import pytest

from shoal.testing import Attempt, Ending, LeakError, VirtualDeadlock, cancel_everywhere

Backend = Literal["asyncio", "trio"]
How = Literal["scope", "native"]
Sweep = Callable[..., int]

WAYS: list[tuple[Backend, How, int | None]] = [
    ("asyncio", "scope", None),
    ("asyncio", "scope", 1),
    ("asyncio", "native", None),
    ("asyncio", "native", 1),
    ("trio", "scope", None),
    ("trio", "scope", 1),
]


def way(backend: Backend, how: How, seed: int | None) -> Any:
    sweep = partial(cancel_everywhere, backend=backend, how=how, seed=seed)
    return pytest.param(sweep, id=f"{backend}-{how}-{seed}")


in_every_way = pytest.mark.parametrize("sweep", [way(*given) for given in WAYS])
by_scope = pytest.mark.parametrize("sweep", [way(*given) for given in WAYS if given[1] == "scope"])
on_both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def just(function: Callable[[], Awaitable[object]]) -> Callable[[Attempt], Awaitable[object]]:
    """A scenario that prepares and asserts nothing."""
    return lambda attempt: attempt(function)


def note_of(error: BaseException) -> str:
    (note,) = error.__notes__
    return note


# -- faults that it finds --------------------------------------------------------------------------


@in_every_way
def test_finds_a_cleanup_that_loses_its_second_half(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        opened = False

        async def use() -> None:
            nonlocal opened
            opened = True
            try:
                await anyio.sleep(1)
            finally:
                await anyio.sleep(0)  # flushes, say
                opened = False

        await attempt(use)
        assert not opened, "left open"

    with pytest.raises(AssertionError, match="left open") as caught:
        sweep(scenario)
    assert "having cancelled it at place" in note_of(caught.value)


@by_scope
def test_passes_a_shielded_cleanup(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        opened = False

        async def use() -> None:
            nonlocal opened
            opened = True
            try:
                await anyio.sleep(1)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0)
                opened = False

        await attempt(use)
        assert not opened

    assert sweep(scenario) >= 3


@in_every_way
def test_finds_a_swallowed_cancellation(sweep: Sweep):
    async def stubborn() -> str:
        await anyio.sleep(1)
        with suppress(BaseException):
            await anyio.sleep(1)
        return "as if nothing had happened"

    with pytest.raises(AssertionError, match=r"swallowed.*'as if nothing had happened'") as caught:
        sweep(just(stubborn))
    assert "in stubborn" in note_of(caught.value)


# In a string: Python 3.14 warns as soon as it compiles this, and ruff and pyright mind it.
RETURNS_IN_FINALLY = """
async def eager() -> int:
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
    try:
        await anyio.sleep(1)
    finally:
        return 1
"""


@in_every_way
def test_finds_a_return_in_a_finally(sweep: Sweep):
    names: dict[str, Any] = {"anyio": anyio}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        exec(RETURNS_IN_FINALLY, names)
    with pytest.raises(AssertionError, match="a `return` in a `finally`"):
        sweep(just(names["eager"]))


@by_scope
def test_passes_what_ends_without_a_further_checkpoint(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        async def commit() -> str:
            await anyio.lowlevel.checkpoint()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            return "committed"

        ending = await attempt(commit)
        assert ending.cancelled or ending.result == "committed"
        if ending.result is not None:
            endings.append(ending)

    endings: list[Ending[str]] = []
    assert sweep(scenario) >= 4
    assert len(endings) > 2  # the uncancelled ones, and some in spite of a cancellation


def test_finds_a_task_left_behind():
    async def forgetful() -> None:
        tasks.append(asyncio.create_task(asyncio.sleep(3600), name="straggler"))
        await asyncio.sleep(1)
        tasks[-1].cancel()  # only if all goes well

    tasks: list[asyncio.Task[None]] = []
    for how in ("scope", "native"):
        with pytest.raises(LeakError, match=r"inside what was cancelled[^\0]*'straggler'"):
            cancel_everywhere(just(forgetful), how=how)


def test_finds_a_task_left_behind_on_trio():
    import trio

    async def scenario(attempt: Attempt) -> None:
        async with trio.open_nursery() as others:

            async def forgetful() -> None:
                scope = trio.CancelScope()
                others.start_soon(live, scope)
                await trio.sleep(1)
                scope.cancel()  # only if all goes well

            async def live(scope: trio.CancelScope) -> None:
                with scope:
                    await trio.sleep_forever()

            await attempt(forgetful)
            others.cancel_scope.cancel()

    with pytest.RaisesGroup(pytest.RaisesExc(LeakError, match="live")):
        cancel_everywhere(scenario, backend="trio")


@in_every_way
def test_finds_a_torn_update(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        accounts = {"mine": 10, "yours": 0}

        async def transfer() -> None:
            accounts["mine"] -= 10
            await anyio.sleep(1)
            accounts["yours"] += 10

        await attempt(transfer)
        assert sum(accounts.values()) == 10, "lost on the way"

    with pytest.raises(AssertionError, match="lost on the way"):
        sweep(scenario)


@in_every_way
def test_finds_a_lock_that_is_not_released(sweep: Sweep):
    """In the cancelled tasks nobody notices; whoever comes next hangs."""

    async def scenario(attempt: Attempt) -> None:
        lock = anyio.Lock()

        async def work() -> None:
            await lock.acquire()
            await anyio.sleep(1)
            lock.release()

        await attempt(work)
        await lock.acquire()

    with pytest.raises((VirtualDeadlock, anyio.WouldBlock, RuntimeError)) as caught:
        sweep(scenario)
    assert "having cancelled it at place" in note_of(caught.value)


@in_every_way
def test_passes_a_lock_that_is_released(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        lock = anyio.Lock()

        async def work() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(hold)

        async def hold() -> None:
            async with lock:
                await anyio.sleep(1)

        await attempt(work)
        lock.acquire_nowait()
        lock.release()

    assert sweep(scenario) > 10


@in_every_way
def test_finds_a_hang_in_a_cleanup(sweep: Sweep):
    async def wait_for_the_dead() -> None:
        await anyio.sleep(1)
        ended = anyio.Event()
        try:
            await anyio.sleep(1)
            ended.set()
        finally:
            with anyio.CancelScope(shield=True):
                await ended.wait()

    with pytest.raises(VirtualDeadlock, match="in wait_for_the_dead") as caught:
        sweep(just(wait_for_the_dead))
    assert "in wait_for_the_dead" in note_of(caught.value)


@in_every_way
def test_finds_an_exception_instead_of_the_cancellation(sweep: Sweep):
    async def wrap() -> None:
        try:
            await anyio.sleep(1)
        except BaseException as error:
            raise LookupError from error

    with pytest.raises(LookupError):
        sweep(just(wrap))


@in_every_way
def test_an_exception_that_is_right_is_caught_by_the_scenario(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        nonlocal failed

        async def fail() -> None:
            try:
                await anyio.sleep(1)
            finally:
                raise LookupError

        try:
            await attempt(fail)
        except LookupError:
            failed += 1

    failed = 0
    tried = sweep(scenario)
    assert failed in (tried + 1, tried + 2)  # a native cancel may come before it begins


def test_finds_native_cancels_that_are_not_accounted_for():
    async def uncancel() -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            raise

    with pytest.raises(AssertionError, match="0 are pending in the end"):
        cancel_everywhere(just(uncancel), how="native")
    with pytest.raises(AssertionError, match="2 are pending in the end"):
        cancel_everywhere(just(ask_for_more), how="native")
    with pytest.raises(asyncio.CancelledError):  # the one that nobody had asked for
        cancel_everywhere(just(ask_for_more))


async def ask_for_more() -> None:
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        raise


# -- what it tells ---------------------------------------------------------------------------------


@on_both
def test_says_where_it_was_and_how_to_be_there_again(backend: Backend):
    async def scenario(attempt: Attempt) -> None:
        ending = await attempt(anyio.sleep, 1)
        assert ending.place != 2, "not here"

    with pytest.raises(AssertionError, match="not here") as caught:
        cancel_everywhere(scenario, backend=backend, seed=3)
    note = note_of(caught.value)
    assert f"(backend='{backend}', how='scope', seed=3), having cancelled it at place 2" in note
    assert __file__ in note
    assert "in scenario" in note
    assert note.endswith("HINT: cancel_everywhere(..., only=2) tries this place alone")
    with pytest.raises(AssertionError, match="not here"):
        cancel_everywhere(scenario, backend=backend, seed=3, only=2)
    assert cancel_everywhere(scenario, backend=backend, seed=3, only=1) == 1
    assert cancel_everywhere(scenario, backend=backend, seed=3, only=100) == 0


@in_every_way
def test_what_fails_uncancelled_fails_at_once(sweep: Sweep):
    async def fail() -> None:
        nonlocal calls
        calls += 1
        raise LookupError

    calls = 0
    with pytest.raises(LookupError) as caught:
        sweep(just(fail))
    assert calls == 1
    assert note_of(caught.value).endswith("without having cancelled it")


@in_every_way
def test_publishes_how_each_attempt_ended(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        async def answer() -> int:
            await anyio.sleep(1)
            return 42

        endings.append(await attempt(answer))

    endings: list[Ending[int]] = []
    tried = sweep(scenario)
    first, *rest = endings
    assert first == Ending(place=0, cancelled=False, result=42)
    assert [ending.place for ending in rest] == list(range(1, tried + 2))
    for ending in rest:
        assert ending.result == (None if ending.cancelled else 42)
    assert rest[0].cancelled
    assert not rest[-1].cancelled  # it ended before its place


@in_every_way
def test_the_loop_goes_on_after_an_attempt(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        await attempt(anyio.sleep, 1)
        before = anyio.current_time()
        await anyio.sleep(3600)
        assert anyio.current_time() == before + 3600

    assert sweep(scenario) >= 2


# -- the places ------------------------------------------------------------------------------------


@on_both
def test_every_moment_of_a_handover_is_a_place(backend: Backend):
    """While both wait, when one has woken the other, when that is awake, and at the end."""

    async def scenario(attempt: Attempt) -> None:
        seen: list[str] = []

        async def hand_over() -> None:
            ready = anyio.Event()

            async def wait() -> None:
                seen.append("waits")
                await ready.wait()
                seen.append("was woken")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(1)
                seen.append("sets")
                ready.set()
                await anyio.sleep(1)
                seen.append("ends")

        await attempt(hand_over)
        histories.add(" ".join(seen))

    histories: set[str] = set()
    cancel_everywhere(scenario, backend=backend)
    assert histories >= {"waits", "waits sets was woken", "waits sets was woken ends"}


@on_both
def test_a_wait_is_interrupted_before_and_after_it_was_answered(backend: Backend):
    """What was received and is not yet used gets lost in one of them."""

    async def scenario(attempt: Attempt) -> None:
        inbox: list[int] = []
        received: list[int] = []
        news = anyio.Event()

        async def talk() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await anyio.sleep(1)
                inbox.append(1)
                news.set()

        async def listen() -> None:
            await news.wait()
            await anyio.lowlevel.checkpoint()
            received.append(inbox.pop())

        await attempt(talk)
        histories.add((len(inbox), len(received)))

    histories: set[tuple[int, int]] = set()
    cancel_everywhere(scenario, backend=backend)
    assert histories == {(0, 0), (1, 0), (0, 1)}


@on_both
def test_what_waits_for_time_alone_is_cancelled_while_it_waits(backend: Backend):
    async def scenario(attempt: Attempt) -> None:
        begun = False

        async def nap() -> None:
            nonlocal begun
            begun = True
            await anyio.sleep(1)

        ending = await attempt(nap)
        if begun and ending.cancelled:
            cancelled_at.append(anyio.current_time())

    cancelled_at: list[float] = []
    cancel_everywhere(scenario, backend=backend)
    assert cancelled_at


@in_every_way
def test_a_limit_is_spread_evenly(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        async def spin() -> None:
            for _ in range(40):
                await anyio.lowlevel.checkpoint()

        places.append((await attempt(spin)).place)

    places: list[int] = []
    total = sweep(scenario)
    assert total >= 40
    places.clear()
    assert sweep(scenario, limit=4) == 4
    _, *tried = places
    assert tried == [1 + index * total // 4 for index in range(4)]
    places.clear()
    assert sweep(scenario, limit=1000) == total


@in_every_way
def test_the_same_places_each_time(sweep: Sweep):
    async def scenario(attempt: Attempt) -> None:
        order: list[int] = []

        async def many() -> None:
            async with anyio.create_task_group() as tasks:
                for name in range(4):
                    tasks.start_soon(one, name)

        async def one(name: int) -> None:
            for _ in range(2):
                order.append(name)
                await anyio.lowlevel.checkpoint()

        await attempt(many)
        histories.append(order)

    histories: list[list[int]] = []
    sweep(scenario)
    first, histories = histories, []
    sweep(scenario)
    assert first == histories


def test_a_scope_that_was_shielded_against_may_time_out():
    """A cancellation of one's own is nobody's to let through."""

    async def own_timeout() -> str:
        with anyio.CancelScope(shield=True), anyio.move_on_after(1):
            await anyio.sleep_forever()
        return "timed out"

    for backend in ("asyncio", "trio"):
        assert cancel_everywhere(just(own_timeout), backend=backend) >= 2


# -- misuse ----------------------------------------------------------------------------------------


def test_native_cancels_are_asyncios_alone():
    with pytest.raises(ValueError, match='choose how="scope"'):
        cancel_everywhere(just(anyio.sleep_forever), backend="trio", how="native")


def test_a_scenario_makes_one_attempt():
    async def none(attempt: Attempt) -> None:
        pass

    async def two(attempt: Attempt) -> None:
        await attempt(anyio.sleep, 1)
        await attempt(anyio.sleep, 1)

    with pytest.raises(RuntimeError, match="made no attempt"):
        cancel_everywhere(none)
    with pytest.raises(RuntimeError, match="not twice"):
        cancel_everywhere(two)


def test_a_scenario_that_takes_longer_and_longer_is_refused():
    async def scenario(attempt: Attempt) -> None:
        kept.append(0)

        async def look() -> None:
            for _ in kept:
                await anyio.lowlevel.checkpoint()

        await attempt(look)

    kept: list[int] = []
    with pytest.raises(RuntimeError, match="keep something from one call to the next"):
        cancel_everywhere(scenario)


def test_eager_tasks_have_places_too():
    if sys.version_info < (3, 12):
        pytest.skip("3.12 brought them")

    async def scenario(attempt: Attempt) -> None:
        factory = cast("Any", asyncio).eager_task_factory
        asyncio.get_running_loop().set_task_factory(factory)

        async def work() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 1)
                tasks.start_soon(anyio.sleep, 2)

        await attempt(work)

    for how in ("scope", "native"):
        assert cancel_everywhere(scenario, how=how) >= 4


@in_every_way
def test_a_check_receives_how_each_attempt_ended(sweep: Sweep):
    endings: list[Ending[str]] = []

    async def nap() -> str:
        await anyio.sleep(1)
        return "rested"

    async def check(ending: Ending[str]) -> None:
        await anyio.sleep(1)  # it may do what it likes: it isn't cancelled
        endings.append(ending)

    tried = sweep(nap, check)
    assert [ending.place for ending in endings] == list(range(tried + 2))
    assert (endings[0].cancelled, endings[0].result) == (False, "rested")
    assert (endings[1].cancelled, endings[1].result) == (True, None)
    assert any(ending.cancelled for ending in endings[2:-1])
    assert not endings[-1].cancelled


@in_every_way
def test_a_check_that_fails_says_where(sweep: Sweep):
    def check(ending: Ending[None]) -> None:
        assert ending.place != 2, "wrong here"

    with pytest.raises(AssertionError, match="wrong here") as caught:
        sweep(partial(anyio.sleep, 1), check)
    assert "having cancelled it at place 2" in note_of(caught.value)
