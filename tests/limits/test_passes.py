"""Children that go past the request for a permit: what they take and give back, and whom they pass.

That a limit holds is shown by the tests of limits, whose children mostly take this way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from shoal import Application, Graph, Hook, Limits, Rate, RetryLater, Runtime, action, fan_out
from shoal._limits.admission import AdmissionController
from shoal._limits.gates import Gate
from shoal._limits.passes import Passes
from shoal._limits.permits import AttemptPermit
from shoal._limits.scheduler import FairScheduler
from shoal.testing import Attempt, cancel_everywhere, no_leaks, run_virtual

pytestmark = pytest.mark.anyio


def opened() -> Limits:
    """Return limits that are open to all children of these tests."""
    return Limits(5) & Limits(rate=Rate(1000, burst=50))


def in_use(runtime: Runtime) -> int:
    return sum(
        one.in_use for limiter in runtime.limiters().values() for one in limiter.statistics()
    )


def nothing_taken(runtime: Runtime) -> bool:
    admission = runtime._admission  # pyright: ignore[reportPrivateUsage]
    gates = [
        gate
        for named in admission.limiters.by_owner.values()
        for limiter in named.values()
        for part in limiter.parts
        for gate in part.gates.values()
    ]
    return not admission.scheduler.wait_queues and not any(
        gate.used or gate.users for gate in gates
    )


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The requests that were made."""
    made: list[object] = []
    enter = FairScheduler.enter

    def spied(self: FairScheduler, request: Any, *, ahead: bool = False) -> None:
        made.append(request)
        enter(self, request, ahead=ahead)

    monkeypatch.setattr(FairScheduler, "enter", spied)
    return made


def acts(
    first: Callable[[int], Awaitable[int]] | None = None,
    limits: Limits | None = None,
    later: Limits | None = None,
) -> Graph:
    """Return two steps, within limits."""

    @action(reads=["n"], writes=["double"], limits=limits)
    async def double(n: int) -> int:
        await anyio.sleep(0.001)
        return 2 * n if first is None else await first(n)

    @action(reads=["double"], writes=["more"], limits=later)
    async def one_more(double: int) -> int:
        await anyio.sleep(0.001)
        return double + 1

    return Graph.chain(double, one_more, name="steps")


def over(act: Any, of_fan_out: Limits, **options: Any) -> Application[Any]:
    each = fan_out(act, over="ns", item="n", into="found", take="more", limits=of_fan_out)
    return Application(each, **options)


@pytest.mark.parametrize("has_rate", [False, True], ids=["places", "rate"])
async def test_nothing_is_requested_where_all_is_open(requests: list[object], has_rate: bool):
    of_fan_out = Limits(3) & Limits(rate=Rate(1000, burst=50)) if has_rate else Limits(3)
    most = [0]

    async def first(n: int) -> int:
        most[0] = max(most[0], in_use(runtime))
        return 2 * n

    app = over(acts(first, opened(), Limits(5)), of_fan_out, limits=Limits(4))
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(app, {"ns": range(9)})
        assert result.state["found"] == [2 * n + 1 for n in range(9)]
        assert nothing_taken(runtime)
    assert not requests
    # At both parts of the action, at the application, and for the fan-out's rate.
    assert most == [3 * 4 if has_rate else 3 * 3]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_where_a_limit_is_full_its_children_wait_and_nobody_passes_them(
    requests: list[object], backend: Any
):
    order: list[int] = []

    async def first(n: int) -> int:
        order.append(n)
        await anyio.sleep(0.01)
        return 2 * n

    async def main() -> None:
        one = acts(first, Limits(2))
        async with Runtime() as runtime:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runtime.run, over(one, Limits(2)), {"ns": range(4)})
                await anyio.sleep(0.005)
                tasks.start_soon(runtime.run, over(one, Limits(1)), {"ns": [10, 11]})
                await anyio.sleep(0.002)
                assert sorted(order) == [0, 1]  # and 10 waits
            assert nothing_taken(runtime)

    run_virtual(main, backend=backend)
    assert requests
    # Its turn comes with the first place, though a worker was about to take another child then.
    assert order.index(10) == 2


def test_nothing_is_taken_where_a_request_would_wait():
    now = 0.0
    act: Any = acts(None, Limits(rate=Rate(1, burst=1))).entry
    admission = AdmissionController(anyio.Event, lambda: now)  # pyright: ignore[reportArgumentType]
    limiter, scheduler = admission.limiter(act, act.limits), admission.scheduler
    needed, _ = admission.limiters.gates((limiter,), {})
    first, waiting = (AttemptPermit(scheduler, needed) for _ in range(2))
    unit: Any = SimpleNamespace(held_at=None, priority="normal")
    passes = Passes(scheduler, admission.limiters, [act], scopes=(), own=(), unit=unit)
    run: Any = SimpleNamespace(passed=None)
    now = 1.5  # its next turn has come, and the timer that says so is late
    assert not passes.take(run, act.name)
    waiting.cancel()
    for one, name, value in (
        (needed[0], "is_shut", True),
        (needed[0], "paused_until", 2.0),
        (needed[0], "slots", 1),
        (unit, "held_at", needed[0]),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one, name, value)
            assert not passes.take(run, act.name), name
    assert passes.take(run, act.name)
    assert needed[0].used == 2
    passes.leave(run)
    first.leave()
    assert needed[0].used == needed[0].users == 0


def test_nothing_is_taken_past_the_turns_of_classes():
    """Where others wait, a grant counts as a turn of its class, and a pass counts none."""
    act: Any = acts(None, Limits(9)).entry
    admission = AdmissionController(anyio.Event, lambda: 0.0)  # pyright: ignore[reportArgumentType]
    limiter, scheduler = admission.limiter(act, act.limits), admission.scheduler
    unit: Any = SimpleNamespace(held_at=None, priority="interactive")
    passes = Passes(scheduler, admission.limiters, [act], scopes=(), own=(), unit=unit)
    run: Any = SimpleNamespace(passed=None)
    assert passes.take(run, act.name)
    waiting = AttemptPermit(scheduler, (Gate(0),))
    assert not passes.take(run, act.name)
    unit.priority = "normal"
    assert passes.take(run, act.name)
    other: Any = SimpleNamespace(priority="batch")
    scheduler.flow_of(other, ())  # from now on there are classes
    assert not passes.take(run, act.name)
    waiting.leave()
    assert passes.take(run, act.name)
    assert limiter.statistics()[0].in_use == 3


def test_who_waits_for_several_limits_is_not_passed_at_the_one_that_is_open():
    order: list[str] = []
    narrow, wide = Limits(1), Limits(2)

    def named(name: str, limits: Limits) -> Any:
        @action(name=name, reads=["n"], writes=["more"], limits=limits)
        async def act(n: int) -> int:
            order.append(f"{name} {n}")
            await anyio.sleep(1)
            return n

        return act

    async def main() -> None:
        async with Runtime() as runtime, anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.run, over(named("wide", wide), Limits(2)), {"ns": range(6)})
            await anyio.sleep(0.5)
            both = over(named("both", narrow & wide), Limits(1))
            tasks.start_soon(runtime.run, both, {"ns": [0, 1]})

    run_virtual(main)
    assert order.index("both 0") == 2


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
@pytest.mark.parametrize("listens", [False, True], ids=["", "listens"])
def test_cancelled_anywhere_all_is_given_back(backend: Any, how: Any, listens: bool):
    class Listening(Hook):
        async def on_child_started(self, event: object) -> None:
            await anyio.sleep(0)

    async def scenario(attempt: Attempt) -> None:
        hooks = [Listening()] if listens else []
        act = acts(None, opened(), opened())
        app = over(act, Limits(2) & opened(), limits=Limits(9), hooks=hooks)
        async with Runtime() as runtime:
            await attempt(runtime.run, app, {"ns": range(3)})
            assert nothing_taken(runtime)

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=60) >= 10


async def test_a_child_that_fails_or_cancels_itself_gives_all_back():
    async def fails(n: int) -> int:
        if n == 1:
            raise ValueError(n)
        if n == 2 and _is_asyncio():
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await anyio.sleep(0)
        return 2 * n

    act = fan_out(
        acts(fails, opened(), opened()),
        over="ns",
        item="n",
        key=int,
        into="found",
        take="more",
        limits=Limits(2) & opened(),
        on_error="ignore",
    )
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(Application(act, limits=Limits(9)), {"ns": range(4)})
        assert {0: 1, 3: 7}.items() <= result.state["found"].items()
        assert nothing_taken(runtime)


def test_a_child_that_is_interrupted_gives_all_back():
    kept: list[Runtime] = []

    async def interrupted(n: int) -> int:
        raise KeyboardInterrupt

    async def main() -> None:
        async with Runtime() as runtime:
            kept.append(runtime)
            await runtime.run(
                over(acts(interrupted, opened()), Limits(2) & opened()), {"ns": range(3)}
            )

    with pytest.raises(KeyboardInterrupt):
        run_virtual(main)
    assert nothing_taken(kept[0])


def test_a_child_that_is_put_off_gives_its_slot_back_and_keeps_what_the_rate_charged():
    at: list[float] = []

    async def busy(n: int) -> int:
        at.append(anyio.current_time())
        if len(at) == 1:
            raise RetryLater(0.25)
        return 2 * n

    async def main() -> None:
        limits = Limits(1) & Limits(rate=Rate(1, burst=1))
        app = over(acts(busy, limits, None), Limits(1) & Limits(rate=Rate(1, burst=5)))
        async with Runtime() as runtime:
            result = await runtime.run(app, {"ns": [1]})
            assert result.state["found"] == [3]
            assert nothing_taken(runtime)

    run_virtual(main)
    # The next turn of the rate, and not the time that was asked for.
    assert at[1] - at[0] == pytest.approx(1)


def test_a_child_that_never_began_has_paid_nothing():
    at: list[float] = []

    class Cancelling(Hook):
        async def on_child_started(self, event: object) -> None:
            await anyio.sleep(0.1)

    async def first(n: int) -> int:
        at.append(anyio.current_time())
        return n

    async def main() -> None:
        # One unit, and the next one after 1,000 seconds.
        app = over(
            acts(first, Limits(rate=Rate(0.001, burst=1)), None), Limits(1), hooks=[Cancelling()]
        )
        async with Runtime() as runtime:
            with anyio.move_on_after(0.05):
                await runtime.run(app, {"ns": [1]})
            assert not at
            assert nothing_taken(runtime)
            began = anyio.current_time()
            await runtime.run(app, {"ns": [1]})
            assert at[0] - began < 1

    run_virtual(main)


async def test_limits_that_change_are_asked_anew(requests: list[object]):
    made: list[int] = []

    async def first(n: int) -> int:
        made.append(len(requests))
        if n == 1:
            runtime.limiter(app).change(Limits(9, waiting=9))
        return 2 * n

    app = over(acts(first), Limits(1), limits=Limits(9))
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(app, {"ns": range(4)})
        assert nothing_taken(runtime)
    assert made == [0, 0, 2, 4]  # one for each step, from the second one of that child on


@pytest.mark.parametrize(
    "limits",
    [
        Limits(9, by=lambda state: state["n"]),
        Limits(rate=Rate(1000, burst=50), cost=lambda _: 1),
        Limits(9, waiting=3),
        Limits(9, share=lambda state: state["n"]),
    ],
    ids=["by", "cost", "waiting", "share"],
)
async def test_limits_that_ask_more_than_an_open_gate_are_requested(
    requests: list[object], limits: Limits
):
    async with no_leaks(), Runtime() as runtime:
        await runtime.run(over(acts(None, limits, None), Limits(2)), {"ns": range(3)})
        assert nothing_taken(runtime)
    assert len(requests) == 3


def test_a_pass_that_is_given_back_twice_is_given_back_once(monkeypatch: pytest.MonkeyPatch):
    def twice(leave: Callable[[Passes, Any], None]) -> Callable[[Passes, Any], None]:
        def left(self: Passes, run: Any) -> None:
            leave(self, run)
            leave(self, run)

        return left

    monkeypatch.setattr(Passes, "leave", twice(Passes.leave))
    monkeypatch.setattr(Passes, "leave_last", twice(Passes.leave_last))

    async def main() -> None:
        async with Runtime() as runtime:
            await runtime.run(
                over(acts(None, opened(), opened()), Limits(2) & opened()), {"ns": range(3)}
            )
            assert nothing_taken(runtime)

    run_virtual(main)


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
