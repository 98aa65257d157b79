"""`simulate`: what it tries, what it says, and that it says it again."""

from __future__ import annotations

import random

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Hedge,
    Limits,
    MemoryStore,
    Retry,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
    race,
)
from shoal.errors import BadUse
from shoal.testing import SimulatedRun, SimulationFailed, simulate, simulated
from shoal.testing._faults import Fault, Plan, plan_of

from .applications import ALL


@action(reads=["n"], writes=["square"], retry=Retry(2, on=TimeoutError), limits=Limits(2))
async def square(n: int) -> int:
    await anyio.sleep(n)
    return n * n


@action(reads=["squares"], writes=["total"])
def add(squares: dict[str, int]) -> int:
    return sum(squares.values())


squares = fan_out(square, over="numbers", item="n", key=str, into="squares")
both = Graph.chain(squares, add, name="both")
NUMBERS = {"numbers": [1, 2, 3]}


def test_an_application_without_bugs_survives_everything() -> None:
    def check(run: SimulatedRun) -> None:
        assert run.state["total"] == 14
        assert run.lives[-1].status == "succeeded"

    tried = simulate(Application(both, store=MemoryStore()), NUMBERS, check=check, seeds=100)
    table = str(tried)
    for what in ("raises", "loses", "late", "hangs"):
        assert tried.times("action.square", what), table
    for what in ("fails", "slow", "in-doubt", "unknown", "dies-before", "dies-after"):
        assert tried.times("store.save", what), table
    for what in ("cancelled", "cancelled-natively", "jumps"):
        assert tried.times("loop.step", what), table
    assert tried.times("store.read", "fails"), table
    assert tried.times("hook.RunStarted", "raises"), table
    assert "never called" not in table


def test_it_uses_what_the_program_names_and_touches_no_store_of_its() -> None:
    made: list[Runtime] = []
    store = SQLiteStore("nowhere/at/all.db")

    def runtime() -> Runtime:
        made.append(Runtime(store=store, limits=Limits(1)))
        return made[-1]

    simulate(Application(both), NUMBERS, runtime=runtime, seeds=10)
    assert len(made) > 12  # one for each process


def test_without_a_store_nothing_is_killed_and_what_fails_has_failed() -> None:
    checked: list[SimulatedRun] = []
    tried = simulate(Application(both), NUMBERS, check=checked.append, seeds=24)
    assert "no store" in str(tried)
    assert len(checked) < tried.runs
    assert all(len(run.lives) == 1 for run in checked)
    kept = simulate(Application(both), NUMBERS, durable=True, seeds=8)
    assert kept.times("store.save", "fails") or kept.times("store.save", "dies-before")


def test_a_failure_is_small_told_and_replayed() -> None:
    seen: list[str] = []

    @action(reads=["n"], writes=["twice"])
    async def double(n: int, world: list[int]) -> int:
        world.append(n)
        await anyio.sleep(1)
        return 2 * n

    doubles = fan_out(double, over="numbers", item="n", key=str, into="doubles", take="twice")
    app = Application(doubles, store=MemoryStore())

    def check(run: SimulatedRun) -> None:
        seen.append(str(run.plan))
        assert len(run.inputs["world"]) == 3, f"called {len(run.inputs['world'])} times"

    def given() -> dict[str, object]:
        return {"world": []}

    with pytest.raises(SimulationFailed) as failed:
        simulate(app, NUMBERS, inputs=given, check=check)
    story = str(failed.value)
    assert story.startswith("check: AssertionError: called "), story
    assert "1st process" in story
    assert "2nd process (resumed)" in story
    assert f"replay={failed.value.replay!r}" in story
    assert len(plan_of(failed.value.replay).faults) == 1
    seen.clear()
    with pytest.raises(SimulationFailed) as again:
        simulate(app, NUMBERS, inputs=given, check=check, replay=failed.value.replay)
    assert seen[-1] == failed.value.replay
    # But for how it was found.
    assert str(again.value).splitlines()[:5] == story.splitlines()[:5]


def test_the_environment_replays_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Application(both, store=MemoryStore())
    monkeypatch.setenv("SHOAL_SIMULATE_SEEDS", "3")
    assert simulate(app, NUMBERS).runs == 5  # two of them undisturbed
    assert simulate(app, NUMBERS, seeds=range(5, 7)).runs == 5, "the variable goes before it"
    monkeypatch.delenv("SHOAL_SIMULATE_SEEDS")
    assert simulate(app, NUMBERS, seeds=range(5, 7)).runs == 4
    monkeypatch.setenv("SHOAL_REPLAY", "trio 7 dies-after@store.save:2")
    tried = simulate(app, NUMBERS)
    assert tried.runs == 3
    assert tried.times("store.save", "dies-after") == 1


def test_the_same_seed_is_the_same_run() -> None:
    told: list[list[str]] = []

    @action(reads=["n"], writes=["square"], retry=Retry(4, on=ConnectionError, jitter=0.5))
    async def lucky(n: int) -> int:
        await anyio.sleep(random.random())
        return n * n

    def check(run: SimulatedRun) -> None:
        told[-1].append(f"{run.plan} {run.seconds} {run.faults} {[str(e) for e in run.events]}")

    app = Application(fan_out(lucky, over="numbers", item="n", into="squares"), store=MemoryStore())
    for _ in range(2):
        told.append([])
        simulate(app, NUMBERS, check=check, seeds=12)
    assert told[0] == told[1]


def test_an_order_dependent_result_is_a_failure_unless_it_may_be() -> None:
    @action(reads=["n"], writes=["at"])
    async def note(n: int) -> float:
        await anyio.sleep(n)
        return anyio.current_time()

    app = Application(fan_out(note, over="numbers", item="n", into="at"), store=MemoryStore())
    with pytest.raises(SimulationFailed, match="is not that of the undisturbed run: 'at'"):
        simulate(app, NUMBERS)
    assert "same=False" in str(simulate(app, NUMBERS, same=False, seeds=4))
    simulate(app, NUMBERS, same=lambda state: len(state["at"]), seeds=8)


def test_where_children_are_a_matter_of_time_states_are_not_compared() -> None:
    early = fan_out(
        square, over="numbers", item="n", into="squares", until=lambda state, outcome: True
    )
    grown = fan_out(
        square, over="numbers", item="n", key=int, into="squares", at_most=4,
        grow=lambda state, outcome: [10 * outcome.element],
    )  # fmt: skip
    for steps in (early, grown):
        app = Application(steps, store=MemoryStore())
        assert "final states were not compared" in str(simulate(app, NUMBERS, seeds=8))


@action(reads=["question"], writes=["answer"])
async def quick(question: str) -> str:
    await anyio.sleep(1)
    return f"{question}!"


@action(reads=["question"], writes=["answer"])
async def slow(question: str) -> str:
    await anyio.sleep(2)
    return f"{question}?"


def test_races_questions_and_hedges() -> None:
    @action(reads=["question"], writes=["name"])
    async def ask(question: str, context: Context) -> str:
        return await context.ask("who", question)

    @action(reads=["n", "question"], writes=["square"])
    async def nested(n: int, question: str, context: Context) -> int:
        async with context.fan_out(name="both") as group:
            group.start(quick, {"question": question})
            group.start(slow, {"question": question})
            async for _ in group:
                group.cancel()
        return n * n

    hedged = fan_out(
        square.bind(name="hedged"), over="numbers", item="n", into="hedged", take="square",
        each=Each(hedge=Hedge(initial=1.5)),
    )  # fmt: skip
    inner = fan_out(nested, over="numbers", item="n", into="nested", take="square")
    graph = Graph.chain(race(quick, slow, into="answer"), ask, hedged, inner, name="all")

    def check(run: SimulatedRun) -> None:
        assert run.state["name"] == "Ada"
        assert run.state["answer"] in ("why!", "why?")

    tried = simulate(
        Application(graph, store=MemoryStore()),
        {"question": "why", **NUMBERS},
        answers={"who": "Ada"},
        check=check,
        seeds=20,
    )
    assert "it has a race" in str(tried)


def test_a_run_that_asks_and_is_not_answered_has_ended() -> None:
    @action(writes=["name"])
    async def ask(context: Context) -> str:
        return await context.ask("who", "who are you?")

    def check(run: SimulatedRun) -> None:
        assert run.lives[-1].status == "halted"

    simulate(Application(ask, store=MemoryStore()), check=check, seeds=8)


@action(writes=["n"])
async def broken() -> int:
    raise LookupError("nobody home")


def test_the_undisturbed_run_must_succeed() -> None:
    with pytest.raises(SimulationFailed, match="LookupError") as failed:
        simulate(Application(broken))
    assert isinstance(failed.value.__cause__, LookupError)
    assert "by itself" in str(failed.value)


def test_a_limit_that_is_exceeded_and_a_value_changed_in_place_are_found() -> None:
    @action(reads=["tags"], writes=["count"])
    async def count(tags: list[str]) -> int:
        tags.append("seen")
        return len(tags)

    with pytest.raises(SimulationFailed, match="changed field 'tags' in place"):
        simulate(Application(count), lambda: {"tags": ["new"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_applications_that_use_much_of_shoal_have_no_bugs(name: str) -> None:
    sample = ALL[name]
    simulate(sample.app(), sample.state, answers=sample.answers, same=sample.same, seeds=300)


@action(reads=["squares"], writes=["total"], name="sum")
def renamed(squares: dict[str, int]) -> int:
    return sum(squares.values())


def test_a_later_version_resumes_what_an_earlier_one_has_begun() -> None:
    # The fan-out is as it was, and its children that are done stay so, whatever kills the process.
    app = Application(both, store=MemoryStore())
    later = Application(Graph.chain(squares, renamed, name="both"), store=MemoryStore())
    resumed: list[int] = []

    def check(run: SimulatedRun) -> None:
        assert [life.is_changed for life in run.lives] == [life.number > 1 for life in run.lives]
        resumed.append(len(run.lives) - 1)

    deaths = ["dies-before", "dies-after"]
    with pytest.raises(SimulationFailed, match="has completed the step 'add'") as failed:
        simulate(app, NUMBERS, changed=later, faults=deaths)
    assert failed.value.kind == "fails"
    assert "2nd process (resumed by the changed application): after" in str(failed.value)
    kept = Application(Graph.chain(squares, add, name="both"), store=MemoryStore())
    simulate(app, NUMBERS, changed=lambda: kept, faults=deaths, check=check, seeds=12)
    assert sum(resumed) > 3


def test_children_of_a_changed_act_run_again_however_often_the_process_dies() -> None:
    @action(name="square", reads=["n"], writes=["square"], version="2", limits=Limits(1))
    async def again(n: int) -> int:
        await anyio.sleep(n)
        return n * n

    anew = fan_out(again, over="numbers", item="n", key=str, into="squares")
    later = Application(Graph.chain(anew, add, name="both"))  # kept, as the first one is
    for replay in (
        # The start of "1" is told, and that it runs again could not be saved.
        "dies-before@store.save:4 2:dies-before@store.save:1",
        "fails@store.save:4 2:fails@store.save:1",
        # The end of "3" is told, which has waited to begin again.
        "dies-before@store.save:6 2:dies-before@store.save:3",
        "fails@store.save:6 2:fails@store.save:2",
    ):
        plan = f"asyncio in-order {replay}"
        tried = simulate(Application(both), NUMBERS, changed=later, replay=plan)
        assert tried.times("store.save", replay.partition("@")[0]) == 2


def test_a_later_version_that_comes_to_something_else_is_not_compared() -> None:
    @action(reads=["squares"], writes=["total"], name="add")
    def more(squares: dict[str, int]) -> int:
        return 1 + sum(squares.values())

    app = Application(both, store=MemoryStore())
    later = Application(Graph.chain(squares, more, name="both"), store=MemoryStore())
    tried = simulate(app, NUMBERS, changed=later, seeds=8, faults=["dies-after"])
    assert "the changed application comes to another state: 'total': 15 and 14" in str(tried)
    with pytest.raises(SimulationFailed, match="other result"):
        simulate(app, NUMBERS, changed=later, seeds=20, faults=["dies-after"], same=True)
    with pytest.raises(SimulationFailed, match="nobody home") as failed:
        simulate(app, NUMBERS, changed=Application(broken))
    assert "of the application changed=" in failed.value.__notes__[0]


@simulated(Application(both, store=MemoryStore()), NUMBERS, seeds=10)
def test_the_decorator_calls_a_test_with_each_run(
    run: SimulatedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.state["total"] == 14
    assert monkeypatch is not None


def test_the_decorator_passes_on_what_the_test_says() -> None:
    @simulated(Application(both, store=MemoryStore()), NUMBERS, seeds=4)
    async def checked(run: SimulatedRun, least: int) -> None:
        """Say why."""
        await anyio.sleep(1)
        assert run.state["total"] > least

    assert checked.__doc__ == "Say why."
    checked(least=13)
    with pytest.raises(SimulationFailed, match="check"):
        checked(least=14)
    with pytest.raises(BadUse, match="takes none"):
        simulated(Application(both), NUMBERS)(lambda: None)


@pytest.mark.parametrize(
    "text", ["", "asyncio", "curio 3", "trio x", "trio 3 raises", "trio 3 dies@store.save:1"]
)
def test_a_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(BadUse, match="copy the text"):
        plan_of(text)


def test_plans_are_texts_and_back() -> None:
    faults = (
        Fault("late", "action.my action", 2, seconds=0.5),
        Fault("dies-after", "store.save", 10, life=2),
        Fault("raises", "hook.StateUpdated", 1),
    )
    for plan in (Plan("trio", None, faults), Plan("asyncio", 7)):
        assert plan_of(str(plan)) == plan
    assert "call 2 of action 'my action' answered late, by 0.5 s" in faults[0].sentence


def test_misuse_is_refused() -> None:
    app = Application(both)
    with pytest.raises(BadUse, match="no fault 'raise'; did you mean 'raises'"):
        simulate(app, NUMBERS, faults=["raise"])
    with pytest.raises(BadUse, match="takes 'asyncio', 'trio' or both"):
        simulate(app, NUMBERS, backends=["curio"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadUse, match="takes a number of runs"):
        simulate(app, NUMBERS, seeds=-1)
    with pytest.raises(BadUse, match="takes an Application"):
        simulate(both, NUMBERS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadUse, match=r"simulate\(changed=...\) takes an Application"):
        simulate(app, NUMBERS, changed=both, durable=True)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadUse, match="leave durable=False away"):
        simulate(app, NUMBERS, changed=app, durable=False)
