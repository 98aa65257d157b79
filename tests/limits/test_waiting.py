"""Waiting that is bounded: ``Limits(waiting=)``, and attempts that could only start too late."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    Runtime,
    State,
    action,
    fan_out,
    race,
)
from shoal._limits.lines import Line
from shoal.errors import DefinitionError, NobodyAccepted, Overloaded
from shoal.events import Waiting
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio
Backend = Literal["asyncio", "trio"]


class Busy:
    """An action that takes a second, and what it was called with."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.called: list[tuple[float, int]] = []

        @action(reads=["n"], writes=["out"], limits=limits)
        async def work(n: int) -> int:
            self.called.append((anyio.current_time(), n))
            await anyio.sleep(1)
            return n

        self.act = work


async def come(runtime: Runtime, app: Application[Any], n: int, refused: list[Any]) -> None:
    try:
        await runtime.run(app, {"n": n, "ns": [n] * 5})
    except Overloaded as error:
        refused.append((anyio.current_time(), n, error.retry_after))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["action", "application", "runtime"])
async def test_more_than_so_many_runs_are_refused_at_once(where: str):
    limits = Limits(1, waiting=2)
    busy, refused = Busy(limits if where == "action" else None), list[Any]()
    app = Application(busy.act, limits=limits if where == "application" else None)
    of_runtime = limits if where == "runtime" else None
    async with (
        no_leaks(),
        Runtime(limits=of_runtime) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for n in range(6):
            tasks.start_soon(come, runtime, app, n, refused)
            await anyio.sleep(0.1)
        await anyio.sleep(1)
        tasks.start_soon(come, runtime, app, 6, refused)  # there is room again
        await anyio.sleep(0.1)
        assert [(round(at, 1), n) for at, n, _ in refused] == [(0.3, 3), (0.4, 4), (0.5, 5)]
        assert all(0 < seconds < 10 for _, _, seconds in refused)
    assert busy.called == [(0, 0), (1, 1), (2, 2), (3, 6)]


async def test_what_is_refused_has_paid_nothing_and_runs_when_it_is_resumed():
    busy = Busy(Limits(rate=Rate(1), waiting=1))
    app = Application(busy.act)
    async with Runtime(store=MemoryStore()) as runtime, anyio.create_task_group() as tasks:
        for n in range(2):
            tasks.start_soon(partial(runtime.run, app, {"n": n}, id=str(n)))
            await anyio.sleep(0.1)
        with pytest.raises(Overloaded, match=r"1 run waits already for Limits\(rate=") as caught:
            await runtime.run(app, {"n": 2}, id="2")
        assert caught.value.retry_after == pytest.approx(0.8)
        assert "'work'" in "".join(caught.value.__notes__)
        await anyio.sleep(caught.value.retry_after)
        await runtime.run(app, id="2")
    assert busy.called == [(0, 0), (1, 1), (2, 2)]


async def test_with_keys_each_key_has_a_line():
    limits = Limits(1, by=lambda state: state["n"] % 2, waiting=1)
    busy, refused = Busy(limits), list[Any]()
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for n in range(6):
            tasks.start_soon(come, runtime, Application(busy.act), n, refused)
            await anyio.sleep(0.01)
    assert [n for _, n, _ in refused] == [4, 5]


async def test_a_run_that_was_let_in_waits_with_whatever_comes():
    """Its children and further steps, however many; only what is new is refused."""
    limits, refused = Limits(1, waiting=1), list[Any]()
    busy = Busy()
    first = fan_out(busy.act, over="ns", item="n", into="outs", name="first", take="out")
    large = Application(Graph.chain(first, busy.act.bind(name="second"), name="large"))
    async with Runtime(limits=limits) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, large, {"n": 9, "ns": range(20)})
        await anyio.sleep(0.1)
        for n in (100, 101):
            tasks.start_soon(come, runtime, Application(busy.act), n, refused)
            await anyio.sleep(0.01)
        # the large one waits itself, so there is no room for another
        assert [n for _, n, _ in refused] == [100, 101]
    assert len(busy.called) == 21


async def test_a_new_run_that_begins_with_a_fan_out_is_refused_as_a_whole():
    limits, hook, pulled = Limits(1, waiting=1), RecordingHook(), list[int]()
    busy = Busy(limits)

    def elements(state: State) -> Any:
        for n in range(1000):
            pulled.append(n)
            yield n

    many = fan_out(
        busy.act, over=elements, reads=[], item="n", into="outs", on_error="collect",
        errors_into="errors",
    )  # fmt: skip
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        for n in range(2):
            tasks.start_soon(runtime.run, Application(busy.act), {"n": n})
            await anyio.sleep(0.01)
        with pytest.raises(Overloaded) as caught:
            await runtime.run(Application(many, hooks=[hook]), {})
        assert pulled == [0]
        assert anyio.current_time() < 0.1
        assert caught.value.retry_after > 0
    hook.assert_paired()
    assert not hook.of(Waiting)


async def test_in_a_race_only_the_contestant_is_refused():
    full, free = Busy(Limits(1, waiting=0)), Busy(Limits(1))
    hook = RecordingHook()
    contest = race(full.act.bind(name="full"), free.act.bind(name="free"), into="won", take="out")
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(full.act), {"n": 1})
        await anyio.sleep(0.5)
        result = await runtime.run(Application(contest, hooks=[hook]), {"n": 2})
        assert result.state["won"] == 2
        tasks.start_soon(runtime.run, Application(full.act), {"n": 3})
        tasks.start_soon(runtime.run, Application(free.act), {"n": 4})
        await anyio.sleep(0.5)
        lost = race(full.act, full.act.bind(name="again"), into="won", take="out")
        with pytest.raises(NobodyAccepted) as caught:
            await runtime.run(Application(lost), {"n": 5})
        assert {type(one) for one in caught.value.exceptions} == {Overloaded}
    hook.assert_paired()


async def test_retries_and_attempts_that_come_back_from_their_children_are_not_refused():
    calls: list[int] = []
    again = Retry(3, on=ConnectionError, initial=0.5, factor=1, jitter=0)

    @action(reads=["n"], writes=["out"], limits=Limits(1, waiting=0), retry=again)
    async def flaky(n: int) -> None:
        calls.append(n)
        await anyio.sleep(0.4)
        if n == 0 and calls.count(0) < 3:
            raise ConnectionError

    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(flaky), {"n": 0})
        await anyio.sleep(0.6)  # while it waits for its next attempt
        tasks.start_soon(runtime.run, Application(flaky), {"n": 1})
    assert calls == [0, 1, 0, 0]


async def test_the_number_can_be_changed_while_runs_wait():
    busy, refused = Busy(Limits(1)), list[Any]()
    app = Application(busy.act)
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for n in range(3):
            tasks.start_soon(come, runtime, app, n, refused)
            await anyio.sleep(0.01)
        runtime.limiter(busy.act).change(Limits(1, waiting=1))
        for n in range(3, 6):
            tasks.start_soon(come, runtime, app, n, refused)
            await anyio.sleep(0.01)
    assert [n for _, n, _ in refused] == [4, 5]  # those that waited before aren't counted


async def test_retry_after_is_about_when_it_is_its_turn():
    """By the rate, where there is one; else by what the limit let in of late."""
    rated, slotted = Busy(Limits(rate=Rate(2), waiting=10)), Busy(Limits(2, waiting=10))
    for busy in (rated, slotted):
        refused = list[Any]()
        began = anyio.current_time()
        async with Runtime() as runtime, anyio.create_task_group() as tasks:
            for n in range(200):  # twice as many as can be served
                tasks.start_soon(come, runtime, Application(busy.act), n, refused)
                await anyio.sleep(0.25)
        late = [seconds for at, _, seconds in refused if at - began > 20]
        assert late
        assert min(late) > 4
        assert max(late) < 6, "ten wait, two are served a second"


async def test_a_line_that_has_never_moved_says_how_long_it_has_not():
    line, runs = Line("limit"), [Runner(), Runner()]
    line.join(runs[0], 10.0)
    assert line.turns_in(1, 12.0) == 2
    line.join(runs[1], 12.0)
    for run in runs:
        line.admit(run, 14.0)
        line.leave(run, 14.0)
    line.leave(runs[0], 14.0)  # once more, harmlessly
    assert line.turns_in(0, 1000.0) == 0
    line.join(runs[0], 1000.0)
    assert 1 < line.turns_in(1, 1001.0) < 3, "two in four busy seconds"
    assert repr(line) == "<Line of 1>"


class Runner:
    let_in: set[object] | None = None


# -- deadlines -------------------------------------------------------------------------------------


async def test_a_run_that_a_rate_lets_start_too_late_is_refused_at_once_if_waiting_is_bounded():
    busy = Busy(Limits(rate=Rate(1, per=10), waiting=5))
    app = Application(busy.act)
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(app, {"n": 0})
        with pytest.raises(Overloaded, match=r"could start in 9 s at the earliest.*Rate") as caught:
            with anyio.fail_after(5):
                await runtime.run(app, {"n": 1})
        assert anyio.current_time() == 1
        assert caught.value.retry_after == 9
        with anyio.fail_after(10.5):
            await runtime.run(app, {"n": 2})
    assert busy.called == [(0, 0), (10, 2)]


async def test_elsewhere_a_callers_scope_gets_the_cancellation_that_it_expects():
    busy = Busy(Limits(rate=Rate(1, per=10)) & Limits(5, waiting=5))
    app = Application(busy.act)
    async with no_leaks(), Runtime(store=MemoryStore()) as runtime:
        await runtime.run(app, {"n": 0})
        with anyio.move_on_after(5) as scope:
            await runtime.run(app, {"n": 1}, id="a")
        assert scope.cancelled_caught
        assert anyio.current_time() == 6
        with pytest.raises(TimeoutError), anyio.fail_after(2):
            await runtime.run(app, {"n": 1}, id="a")
        assert (await runtime.run(app, id="a")).state["out"] == 1
    assert busy.called == [(0, 0), (10, 1)]


async def test_a_child_whose_time_is_over_before_its_rate_lets_it_go_on_is_refused_at_once():
    first, second = Busy(), Busy(Limits(rate=Rate(1, per=10)))
    chain = Graph.chain(first.act, second.act.bind(name="second"), name="child")
    many = fan_out(
        chain, over="ns", item="n", into="outs", take="out", each=Each(timeout=5),
        on_error="collect", errors_into="errors",
    )  # fmt: skip
    async with no_leaks():
        result = await Application(many).run({"ns": [0, 1, 2]})
    assert anyio.current_time() == 2
    assert len(result.state["outs"]) == 1
    assert [error.type for error in result.state["errors"].values()] == ["shoal.Overloaded"] * 2


async def test_children_ahead_of_it_have_their_turns_first():
    """Ten need a turn each, one a second; the time of the last five is over by theirs."""
    first, second = Busy(), Busy(Limits(rate=Rate(1)))
    chain = Graph.chain(first.act, second.act.bind(name="second"), name="child")
    many = fan_out(
        chain, over="ns", item="n", into="outs", take="out", each=Each(timeout=5.5),
        on_error="collect", errors_into="errors",
    )  # fmt: skip
    result = await Application(many).run({"ns": range(10)})
    assert [at for at, _ in second.called] == [1, 2, 3, 4, 5]
    kinds = [error.type for error in result.state["errors"].values()]
    assert kinds.count("shoal.Overloaded") == 5
    assert kinds.count("shoal.StepTimeout") == 1, "the one that began at 5"


# -- misuse, and cancellation ----------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [-1, 1.5, True, "many"])
async def test_waiting_is_a_number_of_runs(waiting: Any):
    with pytest.raises(DefinitionError, match="waiting"):
        Limits(1, waiting=waiting)


async def test_waiting_alone_limits_nothing():
    with pytest.raises(DefinitionError, match="limits nothing"):
        Limits(waiting=5)


async def test_it_is_shown_and_kept():
    limits = Limits(1, waiting=5) & Limits(rate=Rate(2))
    assert repr(limits) == "Limits(1, waiting=5) & Limits(rate=Rate(2, per=1.0))"
    assert repr(limits.with_numbers(0, n=3).parts[0]) == "Limits(3, waiting=5)"
    error = pickle.loads(pickle.dumps(Overloaded("full", 2.5)))
    assert (str(error), error.retry_after) == ("full", 2.5)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_line_is_right_after_a_cancellation_anywhere(backend: Backend):
    """Whatever is cancelled while it waits leaves the line, and nothing is refused for it."""

    async def scenario(attempt: Attempt) -> None:
        busy, refused = Busy(Limits(1, waiting=2)), list[Any]()
        many = Application(fan_out(busy.act, over="ns", item="n", into="outs", name="many"))
        async with Runtime() as runtime:

            async def run() -> None:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(runtime.run, Application(busy.act), {"n": 0})
                    tasks.start_soon(runtime.run, many, {"ns": [1, 2, 3]})

            await attempt(run)
            async with anyio.create_task_group() as tasks:
                for n in range(4):
                    tasks.start_soon(come, runtime, Application(busy.act), n, refused)
                    await anyio.sleep(0.01)
            assert [n for _, n, _ in refused] == [3]

    assert cancel_everywhere(scenario, backend=backend) >= 10
