"""`crash_everywhere`: a scenario whose store goes wrong at every place where it can."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Graph, RunPath, StoreFailed, action, fan_out
from shoal.errors import CommitInDoubt
from shoal.stores import Store
from shoal.testing import LeakError, Recovery, VirtualDeadlock, crash_everywhere

Backend = Literal["asyncio", "trio"]
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])

ran = list[int]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["item"], writes=["square"])
async def square(item: int) -> int:
    ran.append(item)
    await anyio.sleep(item)
    return item * item


@action(reads=["squares"], writes=["sum"])
async def add(squares: dict[str, int]) -> int:
    ran.append(0)
    return sum(squares.values())


both_steps = Graph.chain(fan_out(square, over="items", key=str, into="squares"), add, name="both")


async def run(store: Store) -> dict[str, Any]:
    result = await Application(both_steps, store=store).run({"items": [1, 2, 3]}, id="run")
    plain = result.state.to_plain()
    assert isinstance(plain, dict)
    return plain


# Saves: the beginning, the collection, three children, the fan-out's end, the sum with the end.
SAVES = 7
EXTRA = [0, *(0, 0), *(0, 0), *(3, 2), *(2, 1), *(1, 0), *(0, 0), *(1, 0), 0]


@both
def test_the_process_dies_before_and_after_every_save(backend: Backend):
    seen = list[tuple[int, int, int]]()

    def check(recovery: Recovery[dict[str, Any]]) -> None:
        assert recovery.result == recovery.clean
        seen.append((recovery.place, recovery.lives, len(ran)))
        ran.clear()

    assert crash_everywhere(run, check, backend=backend) == 2 * SAVES
    # The last place is none any more: the scenario ends before.
    assert [place for place, _, _ in seen] == list(range(2 * SAVES + 2))
    assert [lives for _, lives, _ in seen] == [1] + [2] * 2 * SAVES + [1]
    # Actions whose work was not kept run again, those under way too, and none whose work was.
    assert [count - 4 for _, _, count in seen] == EXTRA


@both
def test_by_default_it_has_to_come_to_the_same(backend: Backend):
    async def counted(store: Store) -> int:
        await run(store)
        return len(ran)

    with pytest.raises(AssertionError, match="came to 8\ninstead of 4") as raised:
        crash_everywhere(counted, backend=backend)
    (note,) = raised.value.__notes__
    assert "how='dies', times=1" in note
    assert "dies at call 1, instead of its save of <RunPath both run> (its beginning)" in note
    assert "2: with a store that is fine" in note
    assert "only=1)" in note


def test_one_place_can_be_tried_alone_and_some_evenly_spread():
    lives = list[int]()

    def check(recovery: Recovery[object]) -> None:
        lives.append(recovery.place)

    assert crash_everywhere(run, check, only=7) == 1
    assert crash_everywhere(run, check, only=100) == 0
    assert lives == [7, 100]
    lives.clear()
    assert crash_everywhere(run, check, limit=4) == 4
    assert lives == [0, 1, 4, 8, 11]


def test_it_may_die_several_times():
    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == recovery.clean
        died.append(recovery.lives - 1)

    died = list[int]()
    assert crash_everywhere(run, check, times=3) == 2 * SAVES
    # With no save a life it gets nowhere; with four it is through before it could die again.
    assert died[1:7] == [3, 3, 3, 3, 3, 3], "the second life also saves who is at work"
    assert died[-3:] == [1, 1, 0]


@both
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_any_single_call_may_go_wrong(backend: Backend, how: Literal["fails", "hangs"]):
    raised = list[str]()
    calls = SAVES + 3  # claim, load, release

    async def received(store: Store) -> Any:
        since = anyio.current_time()
        try:
            return await run(store)
        except (StoreFailed, CommitInDoubt) as error:
            assert anyio.current_time() - since >= (30 if how == "hangs" else 0)
            raised.append(type(error).__name__)
            raise

    assert crash_everywhere(received, how=how, backend=backend) == 2 * calls
    of_saves = "CommitInDoubt" if how == "hangs" else "StoreFailed"
    assert raised == ["StoreFailed"] * 4 + [of_saves] * 2 * SAVES  # and none at the release


@both
def test_reads_go_wrong_where_a_run_goes_on(backend: Backend):
    async def again(store: Store) -> Any:
        with anyio.move_on_after(1.5):
            await run(store)
        return await run(store)

    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == recovery.clean

    calls = (2 + 3 + 1 + 1) + (2 + 3 + 2 + 1 + 1 + 1 + 1)
    # claim, load, 3 saves, the end of what was cancelled and of the run, release; then
    # claim, load, read and children of the run, of the step, of 2 children, and so on.
    assert crash_everywhere(again, check, how="fails", backend=backend) >= 2 * calls


def test_saves_may_take_their_time():
    times = set[float]()

    async def timed(store: Store) -> Any:
        result = await run(store)
        times.add(anyio.current_time())
        return result

    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == recovery.clean

    assert crash_everywhere(timed, check, delay=0.25, seed=1) == 2 * SAVES
    assert min(times) > 0
    assert all(time % 0.125 == 0 for time in times)


def test_a_check_may_read_the_store():
    async def check(recovery: Recovery[object]) -> None:
        record = await recovery.store.load("run")
        assert record is not None
        assert record.status == "succeeded"
        await recovery.store.claim("run", "the check")

    assert crash_everywhere(run, check) == 2 * SAVES
    assert crash_everywhere(run, check, how="fails") == 2 * (SAVES + 3)


def test_what_a_check_raises_says_where():
    def check(recovery: Recovery[object]) -> None:
        if recovery.place == 6:
            raise ValueError("so so")

    with pytest.raises(ValueError, match="so so") as raised:
        crash_everywhere(run, check)
    assert (
        "dies at call 3, after its save of <RunPath both run> (updates 2 to 2, key '1')"
        in (raised.value.__notes__[0])
    )


def test_what_comes_of_a_dead_process_counts_no_more():
    async def hides_it(store: Store) -> Any:
        try:
            return await run(store)
        except StoreFailed:
            return "nothing happened"

    assert crash_everywhere(hides_it) == 2 * SAVES
    with pytest.raises(AssertionError, match="nothing happened"):
        crash_everywhere(hides_it, how="fails")


@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
def test_whatever_else_a_scenario_raises_fails_the_test(how: Literal["dies", "fails", "hangs"]):
    async def wrong(store: Store) -> Any:
        try:
            return await run(store)
        except (StoreFailed, CommitInDoubt) as error:
            raise LookupError("what then?") from error

    with pytest.raises(LookupError, match="what then") as raised:
        crash_everywhere(wrong, how=how)
    assert f"a store that {how} at call 1" in raised.value.__notes__[0]

    async def fails_by_itself(store: Store) -> Any:
        raise StoreFailed("out of the blue")

    with pytest.raises(StoreFailed, match="out of the blue") as failed:
        crash_everywhere(fails_by_itself, how=how)
    assert "a store that is fine" in failed.value.__notes__[0]
    assert "HINT" not in failed.value.__notes__[0]


def test_failures_of_several_stores_may_come_in_a_group():
    async def grouped(store: Store) -> Any:
        try:
            return await run(store)
        except StoreFailed as error:
            raise ExceptionGroup("both", [error, ExceptionGroup("inner", [error])]) from None

    assert crash_everywhere(grouped) == 2 * SAVES

    async def mixed(store: Store) -> Any:
        try:
            return await run(store)
        except StoreFailed as error:
            raise ExceptionGroup("both", [error, ValueError()]) from None

    with pytest.raises(ExceptionGroup, match="both"):
        crash_everywhere(mixed)


def test_what_is_left_alive_is_found():
    async def leaks(store: Store) -> Any:
        try:
            return await run(store)
        except StoreFailed:
            forgotten.append(asyncio.create_task(asyncio.sleep(99)))
            raise

    forgotten = list[Any]()
    with pytest.raises(LeakError, match="the scenario"):
        crash_everywhere(leaks)


def test_a_run_that_is_not_given_back_is_found():
    async def claims(store: Store) -> Any:
        result = await run(store)
        await store.claim("another", "somebody")
        return result

    with pytest.raises(AssertionError, match="not given back to the store: run another"):
        crash_everywhere(claims, how="fails")


def test_what_hangs_is_found():
    async def hangs(store: Store) -> Any:
        try:
            return await run(store)
        except StoreFailed:
            await anyio.sleep_forever()

    with pytest.raises(VirtualDeadlock):
        crash_everywhere(hangs)


def test_a_scenario_that_keeps_something_is_noticed():
    kept = list[int]()

    async def longer(store: Store) -> None:
        kept.append(1)
        for number in range(len(kept)):
            await Application(add, store=store).run({"squares": {}}, id=f"run {number}")

    with pytest.raises(RuntimeError, match="more than twice as many later"):
        crash_everywhere(longer)


def test_each_life_begins_with_what_was_kept_and_nobody_holds():
    found = list[tuple[int, bool]]()

    async def looks(store: Store) -> Any:
        record = await store.load("run")
        found.append(
            (
                0 if record is None else len(await store.read(RunPath(run_id="run"))),
                record is not None,
            )
        )
        return await run(store)

    assert crash_everywhere(looks, only=6) == 1
    # The clean round, and the two lives of the other one: it died after its third save. What the
    # fan-out declares is an entry of the history as well.
    assert found == [(0, False), (0, False), (3, True)]


def test_the_same_seed_tries_the_same_places():
    def places(seed: int) -> list[str]:
        stories = list[str]()

        async def received(store: Any) -> Any:
            try:
                return await run(store)
            finally:
                stories.append(store.story)

        crash_everywhere(received, seed=seed, delay=0.5)
        return stories

    assert places(3) == places(3)
