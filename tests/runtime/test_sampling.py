"""What the runs in flight do is sampled: where the time goes, what each waits for, how far it is.

The programs here are built so that the answer is known. Samples are 50 or 250 ms apart, so shares
of time are right within a few intervals.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Graph,
    Limits,
    MemoryStore,
    ParallelAction,
    Rate,
    Retry,
    RetryLater,
    Runtime,
    State,
    Task,
    action,
    fan_out,
    race,
)
from shoal._events.report import Report
from shoal._events.report_text import report_text

pytestmark = pytest.mark.anyio

CLOSE = 0.3
"""Seconds by which a share of the time may be off: an interval, and a little."""


async def report_of(app: Application[Any], state: dict[str, Any], **options: Any) -> Report:
    """Run an application, and return its last report."""
    async with Runtime(watch=True, **options) as runtime:
        result = await runtime.run(app, state)
    assert result.report is not None
    return checked(result.report)


async def report_after(
    seconds: float, app: Application[Any], state: dict[str, Any], **options: Any
) -> Report:
    """Start an application, and return the report after so many seconds."""
    async with Runtime(watch=True, **options) as runtime:
        handle = await runtime.start(app, state)
        await anyio.sleep(seconds)
        report = handle.report
        handle.cancel("enough")
    assert report is not None
    return checked(report)


def checked(report: Report) -> Report:
    assert math.isclose(sum(report.spent.values()), report.seconds, abs_tol=1e-9)
    held_up = sum(report.spent.get(doing, 0.0) for doing in ("slot", "rate", "key"))
    assert sum(one.seconds for one in report.waited) <= held_up + 1e-6
    assert all(seconds > 0 for seconds in report.spent.values())
    return report


@action(reads=["item"], writes=["done"])
async def second(item: int) -> int:
    await anyio.sleep(1)
    return item


# -- where the time went ---------------------------------------------------------------------------


async def test_children_of_a_second_take_the_time_of_their_action() -> None:
    app = Application(fan_out(second, over="items", into="all", limits=Limits(10)))
    report = await report_of(app, {"items": list(range(100))})
    assert report.seconds == pytest.approx(10, abs=0.01)
    assert report.spent["action"] == pytest.approx(10, abs=CLOSE)
    assert report.waited == ()
    assert report.peak == 10
    assert report.is_over
    # The limit of the fan-out was full until the last ten children.
    assert report.in_flight == 0
    assert report.steps == ()


async def test_samples_are_not_in_step_with_a_program() -> None:
    @action(reads=["item"], writes=["done"])
    async def steps(item: int) -> int:
        for _ in range(40):
            await anyio.sleep(0.125)
            await anyio.sleep(0.125)
        return item

    app = Application(fan_out(steps, over="items", into="all", limits=Limits(1)))
    async with Runtime(watch=True) as runtime:
        times: list[float] = []
        runtime.watch_reports(lambda root, report: times.append(report.seconds))
        await runtime.run(app, {"items": [1]})
    phases = [time % 0.25 for time in times if time > 1]
    assert len(phases) > 30
    for quarter in range(4):
        share = sum(quarter <= phase / 0.0625 < quarter + 1 for phase in phases) / len(phases)
        assert share == pytest.approx(0.25, abs=0.12)


async def test_children_that_wait_for_a_limit_of_their_action_wait_for_a_slot() -> None:
    app = Application(fan_out(slow, over="items", into="all"))
    report = await report_of(app, {"items": list(range(40))})
    # In each second 10 run, and 30, 20, 10, 0 wait.
    running = 10 / 40 + 10 / 30 + 10 / 20 + 1
    assert report.seconds == pytest.approx(4, abs=0.01)
    assert report.spent["action"] == pytest.approx(running, abs=CLOSE)
    assert report.spent["slot"] == pytest.approx(4 - running, abs=CLOSE)
    (waited,) = report.waited
    assert (waited.limit, waited.key, waited.owner) == ("Limits(10)", "", "slow")
    assert waited.seconds == pytest.approx(report.spent["slot"])


@action(reads=["item"], writes=["done"], limits=Limits(10))
async def slow(item: int) -> int:
    await anyio.sleep(1)
    return item


@action(reads=["item"], writes=["done"])
async def at_once(item: int) -> int:
    return item


async def test_children_that_wait_for_a_rate() -> None:
    limits = Limits(rate=Rate(10))
    app = Application(fan_out(at_once, over="items", into="all", limits=limits))
    report = await report_of(app, {"items": list(range(51))})
    assert report.seconds == pytest.approx(5, abs=0.01)
    assert report.spent["rate"] == pytest.approx(5, abs=CLOSE)
    (waited,) = report.waited
    assert "Rate(10" in waited.limit
    assert waited.owner == "all"


@action(reads=["item"], writes=["done"], limits=Limits(1, by=lambda state: state["item"] % 2))
async def by_parity(item: int) -> int:
    await anyio.sleep(2 if item % 2 else 1)
    return item


async def test_children_that_wait_for_a_busy_key() -> None:
    report = await report_of(
        Application(fan_out(by_parity, over="items", into="all")), {"items": list(range(6))}
    )
    # One of each parity runs: the even ones for 3 s, the odd ones for 6 s. The others wait.
    odd = 2 / 6 + 2 / 5 + 1 / 3 + 1 / 2
    even = 2 / 6 + 1 / 5
    assert report.seconds == pytest.approx(6, abs=0.01)
    assert report.spent["key"] == pytest.approx(odd + even, abs=CLOSE)
    by_key = {one.key: one.seconds for one in report.waited}
    assert by_key == {"0": pytest.approx(even, abs=CLOSE), "1": pytest.approx(odd, abs=CLOSE)}


async def test_a_paused_key_is_waited_for() -> None:
    tries: list[int] = []

    @action(reads=["item"], writes=["done"], limits=Limits(5, by=lambda state: "host"))
    async def refused_once(item: int) -> int:
        tries.append(item)
        if len(tries) == 1:
            raise RetryLater(after=3)
        return item

    app = Application(fan_out(refused_once, over="items", into="all"))
    report = await report_of(app, {"items": [1, 2]})
    assert report.seconds == pytest.approx(3, abs=0.01)
    assert report.spent["key"] == pytest.approx(3, abs=CLOSE)


async def test_a_child_between_two_attempts_is_in_backoff() -> None:
    tries: list[int] = []

    @action(reads=["item"], writes=["done"], retry=Retry(3, on=OSError, initial=4, jitter=0))
    async def failing(item: int) -> int:
        tries.append(item)
        if len(tries) == 1:
            raise OSError
        await anyio.sleep(1)
        return item

    app = Application(fan_out(failing, over="items", into="all"))
    report = await report_of(app, {"items": [1]})
    assert report.spent["backoff"] == pytest.approx(4, abs=CLOSE)
    assert report.spent["action"] == pytest.approx(1, abs=CLOSE)
    tries.clear()
    report = await report_after(3, app, {"items": [1]})
    (run,) = report.longest
    assert run.doing == "backoff"
    assert (run.attempt, run.attempts) == (1, 3)
    assert run.next_in == pytest.approx(1, abs=0.01)
    assert report.steps[0].at == {"failing": {"backoff": 1}}


async def test_nested_fan_outs_are_those_of_their_children() -> None:
    inner = fan_out(second, over="items", into="all")
    app = Application(fan_out(inner, over="batches", item="items", into="every", limits=Limits(2)))
    report = await report_after(0.5, app, {"batches": [[1, 2, 3], [4, 5], [6]]})
    assert report.in_flight == 5  # the leaves alone
    outer, *others = report.steps
    assert (outer.step, outer.total, outer.ended, outer.in_flight) == ("every", 3, 0, 2)
    assert outer.at == {"all": {"action": 2}}
    assert sorted((one.step, one.total, one.in_flight) for one in others) == [
        ("all", 2, 2),
        ("all", 3, 3),
    ]
    assert {one.path.parent for one in others} == {outer.path}
    assert report.spent["action"] == pytest.approx(0.5, abs=CLOSE)


async def test_a_graph_as_a_node_stands_at_its_own_step() -> None:
    inner = Graph((at_once.bind(name="first"), second), name="both")
    app = Application(fan_out(inner, over="items", into="all", take="done"))
    report = await report_after(0.5, app, {"items": [1, 2]})
    assert report.steps[0].at == {"second": {"action": 2}}
    assert {run.step for run in report.longest} == {"second"}


async def test_an_actions_own_fan_out_is_a_step() -> None:
    @action(reads=["items"], writes=["found"])
    async def search(items: list[int], context: Context) -> int:
        context.note("looking")
        async with context.fan_out(name="tries", title="tries") as group:
            group.start_each(second, over=items)
            return sum([one.value async for one in group if isinstance(one, Done)])

    report = await report_after(0.5, Application(search), {"items": [1, 2, 3]})
    (step,) = report.steps
    assert (step.step, step.title, step.total, step.in_flight) == ("search/tries", "tries", 3, 3)
    assert report.in_flight == 3


async def test_a_race_counts_as_a_fan_out() -> None:
    app = Application(race(second, second.bind(name="again"), into="done", title="who is first"))
    report = await report_after(0.5, app, {"item": 1})
    (step,) = report.steps
    assert (step.title, step.total, step.in_flight) == ("who is first", 2, 2)
    assert step.at == {"second": {"action": 1}, "again": {"action": 1}}


async def test_a_step_counts_what_has_ended_and_failed() -> None:
    @action(reads=["item"], writes=["done"])
    async def odd_fails(item: int) -> int:
        await anyio.sleep(item)
        if item % 2:
            raise ValueError(item)
        return item

    app = Application(fan_out(odd_fails, over="items", into="all", on_error="collect"))
    report = await report_after(4.4, app, {"items": list(range(10))})
    (step,) = report.steps
    assert (step.total, step.ended, step.failed, step.in_flight) == (10, 5, 2, 5)


async def test_a_source_without_a_size_has_no_total() -> None:
    app = Application(
        fan_out(second, over=lambda state: iter(int, 1), reads=[], into="all", limits=Limits(3))
    )
    report = await report_after(2.5, app, {})
    (step,) = report.steps
    assert (step.total, step.ended, step.in_flight) == (None, 6, 3)


async def test_a_plain_action_of_the_root_run_is_in_flight() -> None:
    report = await report_after(0.5, Application(second), {"item": 1})
    assert report.in_flight == 1
    (run,) = report.longest
    assert (run.path.parent, run.step, run.doing) == (None, "second", "action")
    assert run.age == pytest.approx(0.5)
    assert report.steps == ()


async def test_the_longest_come_first_and_know_how_long() -> None:
    @action(reads=["item"], writes=["done"])
    async def long(item: int) -> int:
        await anyio.sleep(item)
        return item

    app = Application(fan_out(long, over="items", into="all", limits=Limits(2), key=str))
    report = await report_after(7.5, app, {"items": [100, 5, 101]})
    assert [run.path.key for run in report.longest] == ["100", "101"]
    assert [run.age for run in report.longest] == [pytest.approx(7.5), pytest.approx(2.5)]
    assert [run.since for run in report.longest] == [pytest.approx(7.5), pytest.approx(2.5)]


async def test_a_store_that_takes_long_is_waited_for() -> None:
    class SlowStore(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
        def save(self, batch: Any) -> Any:
            saved: Any = super().save(batch)

            async def later() -> None:
                await anyio.sleep(1)
                if saved is not None:
                    await saved

            return later()

    app = Application(fan_out(at_once, over="items", into="all"), store=SlowStore())
    report = await report_of(app, {"items": [1, 2, 3]})
    assert report.spent["store"] == pytest.approx(report.seconds, abs=CLOSE)


async def test_many_runs_in_flight_are_counted_from_some() -> None:
    app = Application(
        fan_out(second, over="items", into="all", limits=Limits(20_000)), max_live=20_000
    )
    report = await report_after(0.5, app, {"items": range(10_000)})
    assert report.in_flight == pytest.approx(10_000, rel=0.01)
    assert len(report.longest) == 50
    assert sum(report.steps[0].at["second"].values()) == pytest.approx(10_000, rel=0.01)
    assert report.steps[0].in_flight == 10_000


# -- titles and notes ------------------------------------------------------------------------------


async def test_titles_are_functions_of_the_first_state() -> None:
    app = Application(
        fan_out(second, over="items", into="all", title=lambda state: f"item {state['item']}")
    )
    report = await report_after(0.5, app, {"items": [7]})
    assert report.longest[0].title == "item 7"
    assert report.steps[0].title == ""


async def test_an_error_in_a_title_is_shown_and_fails_nothing() -> None:
    app = Application(
        fan_out(second, over="items", into="all", title=lambda state: state["missing"])
    )
    report = await report_after(0.5, app, {"items": [7]})
    assert "title= raised" in report.longest[0].title
    assert "missing" in report.longest[0].title


class Unwritable:
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit(), None])
async def test_nothing_that_a_title_raises_ends_the_sampling(error: BaseException | None) -> None:
    def title(_: State) -> Any:
        if error is None:
            return Unwritable()
        raise error

    named = fan_out(second, over="items", into="all", title=title)
    report = await report_after(0.9, Application(named), {"items": [7]})
    assert report.samples > 10
    assert "title= raised" in report.longest[0].title


async def test_a_parallel_action_has_a_title_or_a_method_for_it() -> None:
    class Squares(ParallelAction):
        reads = ("numbers",)
        writes = ("sum",)

        def tasks(self, state: State, inputs: Any) -> Any:
            for n in state["numbers"]:
                yield Task(second, {"item": n})

        def reduce(self, state: State, outcome: Any) -> State:
            return state

        def title(self, state: State) -> str:
            return f"number {state['item']}"

    report = await report_after(0.5, Application(Squares()), {"numbers": [3], "sum": 0})
    assert report.longest[0].title == "number 3"


async def test_the_last_note_is_told() -> None:
    @action(reads=["item"], writes=["done"])
    async def pages(item: int, context: Context) -> int:
        for page in range(9):
            context.note(f"page {page + 1} of 9")
            await anyio.sleep(1)
        return item

    app = Application(fan_out(pages, over="items", into="all"))
    report = await report_after(2.5, app, {"items": [1]})
    assert report.longest[0].note == "page 3 of 9"


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_report_is_small_whatever_keys_there_are(size: int) -> None:
    items = [f"{number:03}{'x' * size}" for number in range(60)]
    limits = Limits(1, by=lambda state: state["item"][:-1] if size > 10 else "a")
    app = Application(
        fan_out(second, over="items", into="all", key=lambda item: item, limits=limits)
    )
    report = await report_after(0.5, app, {"items": [*items, *[item + "y" for item in items]]})
    assert len(report_text(report)) < 100_000
    assert report.in_flight > 0
    assert len(report.limits) > 0
    assert bool(report.longest) == (size == 10)
