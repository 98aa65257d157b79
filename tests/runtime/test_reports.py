"""Reports go to the store of a run, and commands of watchers come back with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Breaker,
    Cancelled,
    Context,
    Done,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    RetryBudget,
    RunCancelled,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
    first,
)
from shoal._events.paths import key_data
from shoal._events.report import Report
from shoal._events.report_text import parse_report, report_text
from shoal._runtime import watching
from shoal.errors import SecretLeaked
from shoal.stores._watching import Command, StoredReport
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.watch import Queries

pytestmark = pytest.mark.anyio


class ReportingStore(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
    """Keeps reports, and gives out commands."""

    def __init__(self, seconds: float = 0.0, *, fails: bool = False) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.commands: list[Command] = []
        self.seconds = seconds
        self.fails = fails
        self.calls = 0
        self.under_way = 0
        self.released: list[str] = []

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        self.calls += 1
        assert not self.under_way, "one call at a time"
        self.under_way += 1
        try:
            await anyio.sleep(self.seconds)
        finally:
            self.under_way -= 1
        if self.fails:
            raise OSError("the disk is full")
        for run_id, text in reports.items():
            self.texts.setdefault(run_id, []).append(text)
        taken = [one for one in self.commands if one.run_id in reports]
        self.commands = [one for one in self.commands if one not in taken]
        return taken

    async def reported(self, run_id: str) -> StoredReport | None:
        texts = self.texts.get(run_id)
        return None if texts is None else StoredReport(run_id, 0.0, texts[-1])

    async def command(self, command: Command) -> None:
        self.commands.append(command)

    async def release(self, run_id: str, holder: str) -> None:
        self.released.append(f"{run_id} after {len(self.texts.get(run_id, ()))}")
        await super().release(run_id, holder)

    def reports(self, run_id: str) -> list[Report]:
        return [parse_report(text) for text in self.texts.get(run_id, ())]


@action(reads=["item"], writes=["done"])
async def second(item: int) -> int:
    await anyio.sleep(1)
    return item


many = fan_out(second, over="items", into="all", limits=Limits(2))


# -- reports ---------------------------------------------------------------------------------------


async def test_reports_are_stored_a_few_times_per_second_and_the_last_one_at_the_end():
    store = ReportingStore()
    app = Application(many, store=store, watch=True)
    async with no_leaks():
        await app.run({"items": range(6)}, id="a")
    reports = store.reports("a")
    assert 10 <= len(reports) <= 16
    assert [one.is_over for one in reports] == [False] * (len(reports) - 1) + [True]
    assert [one.steps[0].ended for one in reports[:-1]] == sorted(
        one.steps[0].ended for one in reports[:-1]
    )
    assert reports[-1].seconds == pytest.approx(3, abs=0.01)
    # Stored before the run is released: later, another execution may report about it.
    assert store.released == [f"a after {len(reports)}"]


async def test_a_run_that_ends_before_the_first_sample_stores_no_report():
    store = ReportingStore()
    result = await Application(many, store=store, watch=True).run({"items": []}, id="a")
    assert store.calls == 0
    assert result.report is not None
    assert result.report.samples == 0


async def test_a_run_is_not_watched_without_need():
    result = await Application(many, store=ReportingStore()).run({"items": [1]}, id="a")
    assert result.report is None  # the clock is virtual
    result = await Application(many, watch=False).run({"items": [1]})
    assert result.report is None


async def test_a_slow_store_gets_fewer_reports_and_delays_nothing():
    store = ReportingStore(seconds=0.4)
    app = Application(many, store=store, watch=True)
    began = anyio.current_time()
    await app.run({"items": range(6)}, id="a")
    assert 3 <= anyio.current_time() - began <= 4.01  # the last report is waited for
    assert 6 <= store.calls <= 9
    assert store.reports("a")[-1].is_over


async def test_a_store_that_hangs_delays_the_end_by_a_second_and_others_not_at_all(
    caplog: pytest.LogCaptureFixture,
):
    store = ReportingStore(seconds=1000)
    async with Runtime(store=store, watch=True) as runtime:
        began = anyio.current_time()
        await runtime.run(Application(many), {"items": range(6)}, id="a")
        assert anyio.current_time() - began == pytest.approx(4, abs=0.01)
        began = anyio.current_time()
        await runtime.run(Application(many), {"items": range(6)}, id="b")
        assert anyio.current_time() - began == pytest.approx(3, abs=0.01)
    assert [record.name for record in caplog.records] == ["shoal"]
    assert "could not keep reports" in caplog.text


class StubbornStore(ReportingStore):
    """Its calls can't be cancelled, as those of a driver that waits in a thread."""

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        with anyio.CancelScope(shield=True):
            return await super().report(reports)
        raise AssertionError("the scope is never cancelled")


async def test_a_store_that_cannot_be_cancelled_delays_the_end_by_a_second(
    caplog: pytest.LogCaptureFixture,
):
    store = StubbornStore(seconds=100)
    app = Application(many, store=store)
    began = anyio.current_time()
    async with no_leaks(), Runtime(watch=True) as runtime:
        for run_id, seconds in (("a", 4.0), ("b", 3.0), ("c", 6.0)):
            start = anyio.current_time()
            items = range(6 if run_id != "c" else 12)
            await app.run({"items": items}, id=run_id, runtime=runtime)
            assert anyio.current_time() - start == pytest.approx(seconds, abs=0.01)
        assert (store.calls, store.under_way) == (1, 1)
    # The task that it keeps is the runtime's: a block ends after all that was started in it.
    assert anyio.current_time() - began == pytest.approx(100, abs=0.1)
    assert len(caplog.records) == 1


async def test_only_the_last_call_cannot_be_cancelled():
    store = StubbornStore()

    @action(writes=["done"])
    async def work() -> int:
        await anyio.sleep(1)
        store.seconds = 100.0
        return 1

    async with no_leaks(), Runtime(watch=True) as runtime:
        began = anyio.current_time()
        await Application(work, store=store).run({}, id="a", runtime=runtime)
        assert anyio.current_time() - began == pytest.approx(2, abs=0.01)


async def test_reports_go_on_when_a_call_that_hung_has_ended():
    store = StubbornStore(seconds=10)
    async with Runtime(watch=True) as runtime:
        app = Application(many, store=store)
        await app.run({"items": range(6)}, id="a", runtime=runtime)
        store.seconds = 0.0
        await app.run({"items": range(60)}, id="b", runtime=runtime)
    assert store.reports("b")[-1].is_over
    assert len(store.reports("b")) > 50


@pytest.mark.parametrize("after", [0.047, 0.1, 0.147, 1.05])
async def test_a_stubborn_call_is_waited_for_when_the_runtimes_block_is_cancelled(after: float):
    store = StubbornStore(seconds=3)
    async with no_leaks():
        with anyio.move_on_after(after):
            async with Runtime(store=store, watch=True) as runtime:
                await runtime.start(Application(many), {"items": range(6)}, id="a")
                await anyio.sleep_forever()
    assert store.under_way == 0
    assert store.calls == 1


async def test_a_store_that_fails_is_logged_once_and_no_run_notices(
    caplog: pytest.LogCaptureFixture,
):
    store = ReportingStore(fails=True)
    async with Runtime(store=store, watch=True) as runtime:
        began = anyio.current_time()
        for run_id in ("a", "b"):
            result = await runtime.run(Application(many), {"items": range(30)}, id=run_id)
            assert result.report is not None
        assert anyio.current_time() - began == pytest.approx(30, abs=0.01)
    assert 2 <= store.calls <= 8  # it is tried again every few seconds
    assert len(caplog.records) == 1
    assert "the disk is full" in caplog.text


async def test_a_cancelled_run_stores_its_last_report():
    store = ReportingStore(seconds=0.1)
    app = Application(many, store=store, watch=True)
    async with no_leaks():
        with anyio.move_on_after(1.5):
            await app.run({"items": range(6)}, id="a")
    assert store.reports("a")[-1].is_over


@pytest.mark.parametrize(
    "after", [0.046, 0.047, 0.048, 0.094, 0.147, 0.148, 0.284, 1.0, 1.058, 2.0, 2.1]
)
async def test_cancelled_at_any_moment_of_a_sample_or_a_report(after: float):
    store = ReportingStore(seconds=0.1)
    async with no_leaks(), Runtime(store=store, watch=True) as runtime:
        with anyio.move_on_after(after):
            await runtime.run(Application(many), {"items": range(6)}, id="a")
        assert runtime.runs() == []
    assert store.under_way == 0
    if after > 0.047:
        assert store.reports("a")[-1].is_over


@pytest.mark.parametrize("after", [0.047, 0.1, 0.147, 1.05])
async def test_the_runtimes_block_is_cancelled_in_a_report(after: float):
    store = ReportingStore(seconds=0.1)
    async with no_leaks():
        with anyio.move_on_after(after):
            async with Runtime(store=store, watch=True) as runtime:
                await runtime.start(Application(many), {"items": range(6)}, id="a")
                await anyio.sleep_forever()
    assert store.under_way == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
def test_cancelled_everywhere(backend: Literal["asyncio", "trio"], how: Literal["scope", "native"]):
    if (backend, how) == ("trio", "native"):
        return

    async def scenario(attempt: Attempt) -> None:
        store = ReportingStore(seconds=0.05)
        async with Runtime(store=store, watch=True) as runtime:

            async def run() -> None:
                await runtime.run(Application(many), {"items": range(2)}, id="a")

            await attempt(run)
            assert runtime.runs() == []
            assert not store.under_way
            reports = store.reports("a")
            assert [one.is_over for one in reports[:-1]] == [False] * (len(reports) - 1)
            assert not reports or reports[-1].is_over
            result = await runtime.run(Application(many), {"items": [1]}, id="b")
            assert result.report is not None
            assert store.reports("b")[-1].is_over

    assert cancel_everywhere(scenario, backend=backend, how=how) > 30


def test_plain_asyncio_run():
    store = ReportingStore()

    @action(reads=["item"], writes=["done"])
    async def short(item: int) -> int:
        await asyncio.sleep(0.2)
        return item

    app = Application(fan_out(short, over="items", into="all"), store=store, watch=True)
    result = asyncio.run(app.run({"items": [1, 2]}, id="a"))
    assert result.report is not None
    assert result.report.spent["action"] > 0.1
    assert store.reports("a")[-1].is_over


async def test_hundreds_of_runs_at_once_report():
    store = ReportingStore(seconds=0.01)
    async with Runtime(store=store, watch=True) as runtime, anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(
                lambda n: runtime.run(Application(many), {"items": range(4)}, id=f"r{n}"), number
            )
    assert len(store.texts) == 200
    for run_id in store.texts:
        assert store.reports(run_id)[-1].is_over


async def test_runs_take_turns_if_one_turn_of_the_loop_is_too_short_for_all(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(watching, "TURN", -1.0)  # one run in each turn
    samples: dict[str, int] = {}
    async with Runtime(watch=True) as runtime:
        runtime.watch_reports(lambda _, one: samples.update({one.run_id: one.samples}))
        for number in range(5):
            await runtime.start(Application(many), {"items": range(4)}, id=f"r{number}")
    assert len(samples) == 5
    assert min(samples.values()) >= 3
    assert max(samples.values()) - min(samples.values()) <= 1


async def test_listeners_receive_each_report_and_the_last():
    heard: list[tuple[str, bool]] = []
    async with Runtime(watch=True) as runtime:
        stop = runtime.watch_reports(lambda root, one: heard.append((one.run_id, one.is_over)))
        await runtime.run(Application(many), {"items": [1, 2]}, id="a")
        count = len(heard)
        stop()
        await runtime.run(Application(many), {"items": [1, 2]}, id="b")
    assert heard[-1] == ("a", True)
    assert len(heard) == count > 15


# -- limits ----------------------------------------------------------------------------------------


async def test_limits_in_use_are_told_with_their_keys():
    @action(reads=["item"], writes=["done"], limits=Limits(1, by=lambda state: state["item"][0]))
    async def fetch(item: str) -> str:
        await anyio.sleep(1)
        return item

    app = Application(fan_out(fetch, over="items", into="all"))
    async with Runtime(limits=Limits(50), watch=True) as runtime:
        handle = await runtime.start(app, {"items": ["a1", "a2", "a3", "b1", "b2"]})
        await anyio.sleep(0.5)
        report = handle.report
        assert report is not None
        uses = {(one.owner, one.part): one for one in report.limits}
        assert uses["runtime", 0].in_use == 2
        assert uses["fetch", 0].waits == {"a": 2, "b": 1}
        assert uses["fetch", 0].keys == 2
        assert uses["all", -1].slots == 100
        await handle.result()


async def test_what_was_charged_is_told_by_limit_and_run():
    limits = Limits(rate=Rate(1000, burst=1000), cost=lambda state: 10)

    @action(reads=["item"], writes=["done"], limits=limits)
    async def paid(item: int, context: Context) -> int:
        if item == 1:
            context.charge(25)
        await anyio.sleep(1)
        return item

    app = Application(fan_out(paid, over="items", into="all"))
    async with Runtime(watch=True) as runtime:
        one = await runtime.run(app, {"items": [0, 1, 2]})
        two = await runtime.run(app, {"items": [0]})
        assert one.report is not None
        assert two.report is not None
        assert one.report.costs == {"paid": 45}
        assert two.report.costs == {"paid": 10}
        (use,) = [use for use in two.report.limits if use.owner == "paid"]
        assert use.cost == 55
        # Another rate goes on counting.
        changed = runtime.limiter(paid)
        changed.change(changed.limits.with_numbers(0, rate=500))
        three = await runtime.run(app, {"items": [0]})
        assert three.report is not None
        (use,) = [use for use in three.report.limits if use.owner == "paid"]
        assert use.cost == 65


async def test_what_a_fan_out_charges_is_corrected_and_given_back():
    limits = Limits(1, rate=Rate(100, burst=100), cost=lambda state: 10)

    @action(reads=["item"], writes=["done"])
    async def paid(item: int, context: Context) -> int:
        context.charge(7)
        await anyio.sleep(1)
        return item

    app = Application(fan_out(paid, over="items", into="all", limits=limits), watch=True)
    result = await app.run({"items": [0, 1, 2]})
    assert result.report is not None
    assert result.report.costs == {"all": 21}


# -- breakers --------------------------------------------------------------------------------------


async def test_breakers_are_told_with_the_states_of_their_circuits():
    @action(reads=["item"], writes=["done"])
    async def failing(item: str) -> str:
        await anyio.sleep(0.5)
        if item[0] in "ab":
            raise OSError
        await anyio.sleep(20)
        return item

    breaker = Breaker(failures=2, cool_down=10, by=lambda state: state["item"][0])
    items = ["a1", "a2", "b1", "c1", "a3"]
    app = Application(
        fan_out(
            failing,
            over="items",
            into="all",
            limits=Limits(4),
            each=Each(breaker=breaker),
            on_error="collect",
        )
    )
    store = ReportingStore()
    async with Runtime(watch=True, store=store) as runtime:
        handle = await runtime.start(app, {"items": items}, id="a")
        await anyio.sleep(0.3)
        assert handle.report is not None
        (use,) = handle.report.breakers
        assert (use.owner, use.breaker, use.failing) == ("all", repr(breaker), 0)
        assert (use.open, use.skipped, use.circuits) == (0, 0, ())
        await anyio.sleep(1.2)
        (use,) = await Queries(store).breakers()
        assert (use.failing, use.open, use.skipped) == (2, 1, 1)
        one, other = use.circuits
        assert (one.key, one.state, one.failures) == ("a", "open", 2)
        assert one.next_in == pytest.approx(9.2, abs=0.3)
        assert (other.key, other.state, other.failures, other.next_in) == ("b", "closed", 1, None)
        assert use.holders == ("a",)
        await anyio.sleep(10)
        assert handle.report is not None
        assert handle.report.breakers[0].circuits[0].state == "half open"
        await handle.result()


# -- budgets ---------------------------------------------------------------------------------------


async def test_budgets_of_retries_are_told_with_what_is_left():
    budget = RetryBudget(share=0.5, floor=0.1)

    @action(
        reads=["item"],
        writes=["done"],
        retry=Retry(3, on=OSError, initial=1, jitter=0, budget=budget),
    )
    async def failing(item: int) -> int:
        await anyio.sleep(0.5)
        if item:
            raise OSError
        await anyio.sleep(20)
        return item

    app = Application(
        fan_out(failing, over="items", into="all", limits=Limits(10), on_error="collect")
    )
    store = ReportingStore()
    async with Runtime(watch=True, store=store) as runtime:
        handle = await runtime.start(app, {"items": range(4)}, id="a")
        await anyio.sleep(0.3)
        assert handle.report is not None
        (use,) = handle.report.budgets
        assert (use.budget, use.refused) == (repr(budget), 0)
        began_with = use.left
        await anyio.sleep(1)  # three attempts have failed meanwhile
        (use,) = await Queries(store).budgets()
        assert (use.part, use.holders) == (0, ("a",))
        assert use.left == pytest.approx(began_with - 3 + use.refused, abs=0.3)
        await handle.result()
        report = handle.report
    assert report is not None
    assert report.budgets[0].refused > 0
    assert parse_report(report_text(report)).budgets == report.budgets


# -- secrets ---------------------------------------------------------------------------------------


async def test_notes_and_titles_hold_no_secret():
    secret = "hunter2-and-more"  # a test's

    @action(reads=["item", "token"], writes=["done"])
    async def leaky(item: int, token: str, context: Context) -> int:
        with pytest.raises(SecretLeaked):
            context.note(f"using {token}")
        await anyio.sleep(2)
        return item

    app = Application(
        fan_out(leaky, over="items", into="all", title=lambda state: f"with {secret}"),
        secret={"token"},
        watch=True,
    )
    async with Runtime() as runtime:
        handle = await runtime.start(app, {"items": [1], "token": secret})
        await anyio.sleep(1)
        report = handle.report
        assert report is not None
        assert (report.longest[0].title, report.longest[0].note) == ("(it holds a secret)", "")
        assert secret not in report_text(report)
        await handle.result()


# -- commands --------------------------------------------------------------------------------------


async def run_with(
    commands: Iterable[Command], app: Application[Any], state: dict[str, Any], **options: Any
) -> tuple[ReportingStore, Any]:
    store = ReportingStore()
    async with Runtime(store=store, watch=True, **options) as runtime:
        handle = await runtime.start(app, state, id="a")
        await anyio.sleep(0.5)
        for command in commands:
            await store.command(command)
        await handle.wait_ended()
    return store, handle


async def test_a_command_cancels_the_run():
    command = Command(run_id="a", kind="cancel", arguments={"reason": "too dear"})
    _, handle = await run_with([command], Application(many), {"items": range(6)})
    assert (handle.status, handle.reason) == ("cancelled", "too dear")
    with pytest.raises(RunCancelled):
        await handle.result()


async def test_a_command_drains_the_run():
    command = Command(run_id="a", kind="drain", arguments={"reason": "the week is over"})
    store, handle = await run_with([command], Application(many), {"items": range(300)})
    assert (handle.status, handle.reason) == ("halted", "the week is over")
    result = await Application(many, store=store).run(id="a")
    assert len(result.state["all"]) == 300


async def test_a_report_says_that_the_run_starts_nothing_more():
    async with Runtime(watch=True) as runtime:
        handle = await runtime.start(Application(many), {"items": range(6)})
        await anyio.sleep(0.3)
        assert handle.report is not None
        assert handle.report.draining == ""
        handle.drain("the week is over")
        await anyio.sleep(0.3)
        assert handle.report.draining == "the week is over"


async def test_a_command_cancels_one_child():
    command = Command(
        run_id="a",
        kind="cancel child",
        arguments={"path": [["all", 0, "second", 1]], "reason": "not this one"},
    )
    _, handle = await run_with([command], Application(many), {"items": range(6)})
    result = await handle.result()
    (lost,) = [one for one in result.outcomes("all") if isinstance(one, Cancelled)]
    assert (lost.key, lost.reason) == (1, "not this one")
    assert len(result.state["all"]) == 5


async def test_a_command_cancels_a_child_of_any_key():
    key = 10**5000
    app = Application(fan_out(second, over="items", into="all", key=lambda _: key))
    path = [["all", 0, "second", key_data(key)]]
    json.dumps(path)
    command = Command(run_id="a", kind="cancel child", arguments={"path": path})
    _, handle = await run_with([command], app, {"items": [0]})
    (lost,) = (await handle.result()).outcomes("all")
    assert isinstance(lost, Cancelled)


async def test_a_command_changes_the_children_in_flight():
    command = Command(
        run_id="a", kind="change limits", arguments={"owner": "all", "part": -1, "n": 10}
    )
    began = anyio.current_time()
    await run_with([command], Application(many), {"items": range(12)})
    assert anyio.current_time() - began == pytest.approx(1.75, abs=0.3)


async def test_a_command_changes_a_rate():
    limits = Limits(10, rate=Rate(1))
    app = Application(fan_out(second, over="items", into="all", limits=limits))
    command = Command(
        run_id="a", kind="change limits", arguments={"owner": "all", "part": 0, "max_rate": 100}
    )
    began = anyio.current_time()
    await run_with([command], app, {"items": range(10)})
    assert anyio.current_time() - began < 3


@pytest.mark.parametrize(
    "command",
    [
        Command(run_id="a", kind="cancel child", arguments={"path": [["all", 0, "second", 77]]}),
        Command(run_id="a", kind="cancel child", arguments={"path": []}),
        Command(run_id="a", kind="cancel child"),
        Command(run_id="a", kind="change limits", arguments={"owner": "nothing", "n": 3}),
        Command(run_id="a", kind="change limits", arguments={"owner": "all", "part": -1, "n": 0}),
        Command(run_id="a", kind="change limits", arguments={"owner": "all", "speed": 3}),
        Command(run_id="a", kind="answer", arguments={"question": "q", "answer": 1}),
        Command(run_id="a", kind="answer"),
        Command(run_id="a", kind="dance"),  # pyright: ignore[reportArgumentType]
    ],
    ids=lambda command: f"{command.kind}",
)
async def test_a_command_that_cannot_be_carried_out_is_logged_and_dropped(
    command: Command, caplog: pytest.LogCaptureFixture
):
    store, handle = await run_with([command], Application(many), {"items": range(6)})
    assert handle.status == "succeeded"
    assert store.commands == []
    assert len(caplog.records) == 1
    assert "drop" in caplog.text


async def test_a_command_is_for_a_run_of_its_store():
    one, other = ReportingStore(), ReportingStore()
    await one.command(Command(run_id="a", kind="cancel"))
    async with Runtime() as runtime:
        first = await Application(many, store=other, watch=True).start(
            {"items": [1]}, id="a", runtime=runtime
        )
        second = await Application(many, store=one, watch=True).start(
            {"items": [1]}, id="a", runtime=runtime
        )
        await first.wait_ended()
        await second.wait_ended()
    assert (first.status, second.status) == ("succeeded", "cancelled")


async def answered_while_it_runs(
    app: Application[Any], state: dict[str, Any], *, hooks: Sequence[RecordingHook] = ()
) -> tuple[ReportingStore, Any]:
    """Answer the first question that a run asks, while it runs; return its result."""
    store = ReportingStore()
    async with no_leaks(), Runtime(store=store, watch=True) as runtime:
        handle = await app.start(state, id="a", runtime=runtime)
        await anyio.sleep(1)
        (question,) = (await Queries(store).questions("a")).open
        arguments = {"question": question.id, "answer": 42}
        await store.command(Command(run_id="a", kind="answer", arguments=arguments))
        result = await handle.result()
    for hook in hooks:
        hook.assert_paired()
    return store, result


asked = list[int]()


@action(reads=["item"], writes=["done"])
async def ask(item: int, context: Context) -> int:
    asked.append(item)
    if item:
        await anyio.sleep(3)
        return item
    return await context.ask("how many", {"of": "them"})


asking = fan_out(ask, over="items", into="all")


async def test_a_child_goes_on_when_it_is_answered_while_siblings_run():
    hook = RecordingHook()
    began = anyio.current_time()
    asked.clear()
    app = Application(asking, hooks=[hook])
    store, result = await answered_while_it_runs(app, {"items": [0, 1]}, hooks=[hook])
    assert result.status == "succeeded"
    assert list(result.state["all"]) == [42, 1]
    assert anyio.current_time() - began == pytest.approx(3, abs=0.1), "beside its sibling"
    assert asked == [0, 1, 0]
    [*_, last] = [one for one in store.reports("a") if one.steps]
    assert last.steps[0].total == 2
    again = await Application(asking, store=store).run(id="a")
    assert list(again.state["all"]) == [42, 1]


async def test_a_child_of_several_steps_goes_on_at_the_step_that_has_asked():
    counted = list[int]()

    @action(reads=["item"], writes=["ready"])
    async def prepare(item: int) -> bool:
        counted.append(item)
        return True

    chain = Graph.chain(prepare, ask, name="both")
    app = Application(fan_out(chain, over="items", item="item", take="done", into="all"))
    _, result = await answered_while_it_runs(app, {"items": [0, 1]})
    assert list(result.state["all"]) == [42, 1]
    assert counted == [0, 1]


async def test_a_grandchild_goes_on_while_its_siblings_run():
    app = Application(fan_out(asking, over="groups", item="items", take="all", into="found"))
    _, result = await answered_while_it_runs(app, {"groups": [[0, 1], [2]]})
    assert result.status == "succeeded"
    assert [[*one] for one in result.state["found"]] == [[42, 1], [2]]


async def test_a_child_of_an_action_goes_on_while_its_siblings_run():
    @action(writes=["found"])
    async def both(context: Context) -> list[int]:
        async with context.fan_out(name="own") as group:
            group.start_each(ask, over=[0, 1], item="item")
            return [one.value async for one in group if isinstance(one, Done)]

    _, result = await answered_while_it_runs(Application(both), {})
    assert result.status == "succeeded"
    assert [*result.state["found"]] == [42, 1]


async def test_children_with_a_store_of_their_own_are_answered_too():
    kept = MemoryStore()
    app = Application(fan_out(ask, over="items", into="all", store=kept))
    _, result = await answered_while_it_runs(app, {"items": [0, 1]})
    assert list(result.state["all"]) == [42, 1]


async def test_a_contestant_that_is_answered_may_win():
    app = Application(fan_out(ask, over="items", into="all", until=first()))
    began = anyio.current_time()
    _, result = await answered_while_it_runs(app, {"items": [0, 1]})
    assert anyio.current_time() - began == pytest.approx(1.3, abs=0.3)
    assert result.state["all"] == 42


async def test_an_answer_that_cannot_be_kept_is_dropped_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
):
    @action(reads=["token"], writes=["signed_in"])
    async def sign_in(token: str) -> bool:
        return bool(token)

    store = ReportingStore()
    graph = Graph.chain(sign_in, asking)
    app = Application(graph, store=store, secret={"token"}, watch=True)
    async with Runtime() as runtime:
        state = {"items": [0, 1], "token": "hunter2-and-more"}
        handle = await app.start(state, id="a", runtime=runtime)
        await anyio.sleep(1)
        (question,) = (await Queries(store).questions("a")).open
        for id_ in (question.id, ["no", "id"], "another"):
            arguments = {"question": id_, "answer": "hunter2-and-more"}
            await store.command(Command(run_id="a", kind="answer", arguments=arguments))
        result = await handle.result()
    assert result.status == "halted"
    assert len(caplog.records) == 3
    assert "hunter2" not in caplog.text


async def test_a_child_that_is_answered_too_late_goes_on_when_the_run_is_resumed():
    # Its parent has halted: nothing else was left in it to do.
    @action(reads=["n"], writes=["done"])
    async def slow(n: int) -> int:
        await anyio.sleep(3)
        return n

    inner = fan_out(ask, over="items", into="all", name="inner")
    graph = Graph.chain(inner, name="halting")
    outer = fan_out(graph, over="groups", item="items", take="all", into="found")
    app = Application(Graph.chain(outer, name="root"))
    store = ReportingStore()
    async with Runtime(store=store, watch=True) as runtime:
        handle = await app.start({"groups": [[0], [1]]}, id="a", runtime=runtime)
        await anyio.sleep(1)
        queries = Queries(store)
        (question,) = (await queries.questions("a")).open
        arguments = {"question": question.id, "answer": 42}
        await store.command(Command(run_id="a", kind="answer", arguments=arguments))
        result = await handle.result()
        assert result.status == "halted"
        assert result.questions == ()  # it was answered
        found = await queries.questions("a")
        assert (found.open, found.answered) == ([], [question.path])
        result = await runtime.run(app, id="a")
    assert [[*one] for one in result.state["found"]] == [[42], [1]]


async def test_an_async_source_is_no_obstacle():
    async def numbers() -> AsyncIterator[int]:
        for number in range(5):
            await anyio.sleep(1.1)
            yield number

    app = Application(
        fan_out(second, over=lambda state: numbers(), reads=[], into="all"), watch=True
    )
    async with Runtime() as runtime:
        handle = await runtime.start(app, {})
        await anyio.sleep(0.5)
        report = handle.report
        assert report is not None
        assert report.steps[0].total is None
        assert report.spent.keys() == {"other"}
        result = await handle.result()
    assert result.report is not None
    assert result.report.spent["other"] == pytest.approx(1.5, abs=0.6)
    assert result.report.spent["action"] == pytest.approx(5, abs=0.6)


async def test_the_end_of_a_run_waits_for_its_own_report_alone():
    store = ReportingStore(0.3)  # longer than the time between two samples
    async with Runtime(watch=True) as runtime:
        app = Application(many, store=store)
        long = await app.start({"items": range(20)}, id="long", runtime=runtime)
        began = anyio.current_time()
        for number in range(3):
            await app.run({"items": [1]}, id=f"short-{number}", runtime=runtime)
        # A call that was under way when it ended, and the one that stores its report.
        assert anyio.current_time() - began <= 3 * (1 + 2 * 0.3) + 0.01
        await long.wait_ended()
    assert all(store.reports(f"short-{number}")[-1].is_over for number in range(3))
    assert len(store.reports("long")) > 20, "reports went on"
    assert store.reports("long")[-1].is_over


def test_a_watcher_with_the_same_file_reads_reports_and_leaves_commands(tmp_path: Path):
    async def main() -> None:
        file = tmp_path / "runs.db"
        watcher = SQLiteStore(file)
        app = Application(many, store=SQLiteStore(file))  # watched without being asked for
        async with Runtime() as runtime:
            handle = await runtime.start(app, {"items": range(100)}, id="a")
            stored: StoredReport | None = None
            with anyio.fail_after(30):
                while stored is None or not parse_report(stored.text).steps:
                    await anyio.sleep(0.05)
                    stored = await watcher.reported("a")
                assert parse_report(stored.text).steps[0].total == 100
                command = Command(run_id="a", kind="cancel", arguments={"reason": "enough"})
                await watcher.command(command)
                assert await handle.wait_ended() == "cancelled"
            assert handle.reason == "enough"
            stored = await watcher.reported("a")
            assert stored is not None
            assert parse_report(stored.text).is_over

    anyio.run(main)
