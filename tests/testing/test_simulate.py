"""`simulate`: what it tries, what it says, and that it says it again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Budget,
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
    first,
    race,
)
from shoal.errors import BadUse, MissingField
from shoal.testing import SimulatedRun, SimulationFailed, simulate, simulated
from shoal.testing._faults import Fault, Plan, plan_of
from shoal.types import Act, FanOut

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
    kept = simulate(Application(both), NUMBERS, durable=True, faults=["dies-before"], seeds=8)
    assert kept.times("store.save", "dies-before")


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
    # pytest shows the story below the line of the test, and no code of shoal's.
    frames = [entry.frame.f_locals for entry in again.traceback[1:]]
    assert all(local["__tracebackhide__"] for local in frames)
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


def test_an_action_that_does_not_end_when_it_is_cancelled_is_shown_where_it_stands() -> None:
    @action(writes=["n"])
    async def stubborn() -> int:
        try:
            await anyio.sleep(1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(60)
        return 1

    with pytest.raises(SimulationFailed, match=r"test_simulate\.py:\d+, in stubborn") as failed:
        simulate(Application(stubborn), faults=["cancelled"], backends=["asyncio"])
    assert failed.value.kind == "ignores cancellation"


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_applications_that_use_much_of_shoal_have_no_bugs(name: str) -> None:
    sample = ALL[name]
    simulate(sample.app(), sample.state, answers=sample.answers, same=sample.same, seeds=300)


@action(reads=["squares"], writes=["total"], name="sum")
def renamed(squares: dict[str, int]) -> int:
    return sum(squares.values())


def within_budget(on_empty: Literal["fail", "stop"], until: Any = None) -> Act:
    """Make a map that has just enough of a budget if each of its children runs once."""

    @action(
        reads=["n"], writes=["square"],
        limits=Budget(1.0, "USD", worst=0.25, on_empty=on_empty),
    )  # fmt: skip
    async def pay(n: int, context: Context) -> int:
        await anyio.sleep(0.1)
        context.charge(0.2, unit="USD")
        return n * n

    given = {} if until is None else {"until": until}
    return fan_out(pay, over="numbers", item="n", key=str, into="squares", **given)


@pytest.mark.parametrize("until", [None, first(3)], ids=["map", "race"])
@pytest.mark.parametrize("on_empty", ["fail", "stop"])
def test_what_faults_have_cost_may_be_missing_for_good(on_empty: Any, until: Any) -> None:
    """An attempt that a fault has ended costs as much as one that has succeeded."""
    app = Application(within_budget(on_empty, until), store=MemoryStore())
    faults = ["cancelled", "raises", "dies-after"]
    tried = simulate(app, {"numbers": [1, 2, 3, 4]}, faults=faults, seeds=40)
    assert tried.runs > 40


def test_a_budget_that_is_too_small_without_any_fault_is_found() -> None:
    app = Application(within_budget("fail"), store=MemoryStore())
    with pytest.raises(SimulationFailed, match="BudgetExceeded"):
        simulate(app, {"numbers": [1, 2, 3, 4, 5]}, seeds=2)


def test_a_child_that_runs_anew_is_no_second_one_though_its_history_is_not_void_yet() -> None:
    """The spending is saved first, and the process dies at that save."""

    def pays(name: str) -> Application[Any]:
        @action(reads=["n"], writes=["square"], name=name)
        async def pay(n: int, context: Context) -> int:
            await anyio.sleep(0.1 * (n % 3))
            context.charge(0.2, unit="USD")
            return n * n

        step = fan_out(pay, over="numbers", item="n", key=str, into="squares", take="square")
        return Application(
            Graph.chain(step, add, name="both"), name="pays", store=MemoryStore(),
            limits=Budget(20.0, "USD", worst=0.2),
        )  # fmt: skip

    plan = "asyncio in-order raises@action.pay:2 2:dies-before@store.save:1"
    changed = pays("pay_again")
    assert simulate(pays("pay"), {"numbers": [0, 1, 2, 3]}, changed=changed, replay=plan).runs


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


def test_faults_happen_at_places_of_a_changed_application_too() -> None:
    lives: list[tuple[int, str]] = []

    @action(reads=["total"], writes=["report"])
    async def tell(total: int) -> str:
        return f"it is {total}"

    def check(run: SimulatedRun) -> None:
        lives.extend((fault.life, fault.place) for fault in run.faults)

    app = Application(both, store=MemoryStore())
    later = Application(Graph.chain(squares, add, tell, name="both"), store=MemoryStore())
    kinds = ["loses", "dies-after"]
    tried = simulate(app, NUMBERS, changed=later, check=check, faults=kinds, seeds=24)
    second = {place for life, place in lives if life == 2}
    assert {"action.square", "action.add", "action.tell", "store.save"} <= second
    assert "never called" not in str(tried)
    without = simulate(app, NUMBERS, changed=later, seeds=2, faults=[])
    assert "never resumed by the changed application" in str(without)


def test_a_run_is_handed_over_by_what_may_go_wrong() -> None:
    seen: list[tuple[str, bool]] = []

    def check(run: SimulatedRun) -> None:
        seen.extend((fault.what, run.lives[-1].is_changed) for fault in run.faults)

    app = Application(both, store=MemoryStore())
    simulate(app, NUMBERS, changed=app, faults=["raises"], check=check, seeds=8)
    assert {what for what, _ in seen} == {"raises"}
    assert sum(is_changed for _, is_changed in seen) > 4


def mixed(*, version: str = "", third: bool = False, asks: str = "why") -> FanOut:
    """Races in a nested fan-out, and a question behind each."""

    def contestant(seconds: int) -> Act:
        @action(name=f"after {seconds} s", reads=["n"], writes=["answer"], version=version)
        async def answer(n: int) -> str:
            await anyio.sleep(seconds)
            return f"{n}!"

        return answer

    @action(reads=["answer"], writes=["said"])
    async def ask(answer: str, context: Context) -> str:
        return f"{answer} {await context.ask(asks, answer) if asks else 'so'}"

    contestants = [contestant(seconds) for seconds in ((1, 2, 3) if third else (1, 2))]
    each = Graph.chain(race(*contestants, into="answer", name="fastest"), ask, name="each")
    inner = fan_out(each, over="ns", item="n", key=str, into="all", take="said", name="inner")
    group = Graph.chain(inner, name="group")
    return fan_out(
        group, over="groups", item="ns", key=lambda ns: f"{ns[0]}", into="groups_said", take="all"
    )


@pytest.mark.sweep
@pytest.mark.parametrize(
    "changes",
    [{"version": "2"}, {"third": True}, {"asks": "why not"}, {"asks": ""}],
    ids=["version", "third contestant", "other question", "no question"],
)
def test_a_changed_application_goes_on_with_questions_races_and_nested_fan_outs(
    changes: dict[str, Any],
) -> None:
    # The question of the first application is answered after the change.
    tried = simulate(
        Application(mixed(), name="mixed", store=MemoryStore()),
        {"groups": [[1, 2], [3]]},
        changed=Application(mixed(**changes), name="mixed", store=MemoryStore()),
        answers=lambda question: "so",
        same=True,
        seeds=8,
    )
    assert "halted" in str(tried)


@dataclass
class Before:
    """The state of the first version."""

    numbers: list[int]
    squares: dict[str, int] = field(default_factory=dict[str, int])
    total: int = 0
    note: str = ""


@dataclass
class WithoutNote:
    """A field is gone."""

    numbers: list[int]
    squares: dict[str, int] = field(default_factory=dict[str, int])
    total: int = 0


@dataclass
class WithUnit:
    """A field without a default is new."""

    numbers: list[int]
    unit: str
    squares: dict[str, int] = field(default_factory=dict[str, int])
    total: int = 0


@action(name="add", reads=["squares", "note"], writes=["total"])
def noting(squares: dict[str, int], note: str) -> int:
    return sum(squares.values())


def typed(model: type[Any], last: Act = add) -> Application[Any]:
    graph = Graph.chain(squares, last, name="both", state=model)
    return Application(graph, store=MemoryStore())


def test_a_changed_state_is_that_of_the_store() -> None:
    # Neither is refused: the later version is not given the state again, as in `recover`.
    tried = simulate(typed(Before), Before([1, 2]), changed=typed(WithoutNote), seeds=4)
    assert "the changed application doesn't begin with this state" in str(tried)
    simulate(typed(WithoutNote), NUMBERS, changed=typed(Before), seeds=4)


def test_a_changed_state_that_a_stored_run_cannot_have_is_found() -> None:
    with pytest.raises(SimulationFailed, match=r"no `state.data`: .* no field 'unit'") as failed:
        simulate(typed(WithoutNote), NUMBERS, changed=typed(WithUnit))
    assert failed.value.kind == "incomplete"
    # A default is for the start of a run, and that was before the field was there.
    with pytest.raises(SimulationFailed, match="reads field 'note'") as failed:
        simulate(typed(WithoutNote), NUMBERS, changed=typed(Before, noting))
    assert isinstance(failed.value.__cause__, MissingField)
    assert "fork('simulated', update={field: value})" in failed.value.__cause__.__notes__[-1]


def test_a_changed_application_is_given_the_secrets_again() -> None:
    def application(version: str) -> Application[Any]:
        @action(reads=["token"], writes=["size"])
        async def use(token: str) -> int:
            return len(token)

        @action(reads=["size"], writes=["twice"], version=version)
        async def double(size: int) -> int:
            return 2 * size

        graph = Graph.chain(use, double)
        return Application(graph, name="login", secret={"token"}, store=MemoryStore())

    given = {"token": "swordfish!"}
    simulate(application("1"), given, changed=application("2"), seeds=4)


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
