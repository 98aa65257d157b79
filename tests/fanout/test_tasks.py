"""Fan-outs as classes: the tasks they make, how these are pulled and named, what they come to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Action,
    Application,
    Cancelled,
    Done,
    Each,
    Failed,
    Graph,
    Limits,
    MapActions,
    MapActionsAndStates,
    MapStates,
    ParallelAction,
    Retry,
    Runtime,
    State,
    Task,
    Tolerate,
    action,
    fan_out,
)
from shoal.errors import (
    BadKey,
    BadResult,
    DefinitionError,
    MissingField,
    MissingInput,
    UndeclaredRead,
    UndeclaredWrite,
)
from shoal.events import ChildEnded, ChildStarted
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act

from .test_fanout import history

pytestmark = pytest.mark.anyio

Inputs = Mapping[str, Any]


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    await checkpoint()
    return 2 * n


@action(reads=["n"], writes=["half"])
async def half(n: int) -> float:
    await checkpoint()
    return n / 2


@action(reads=["n"], writes=["said"])
async def say(n: int, word: str = "default") -> str:
    await checkpoint()
    return f"{word} {n}"


@action(reads=["n"], writes=["never"])
async def sleep(n: float) -> None:
    await anyio.sleep(n)
    if n == 13:
        raise ValueError(n)


class Collecting(ParallelAction):
    """Does what a test gives it; results are appended."""

    reads = ("numbers", "n")
    writes = ("out", "finished")

    def __init__(self, make: Callable[[State, Inputs], Any]) -> None:
        self.make = make

    def tasks(self, state: State, inputs: Inputs) -> Any:
        return self.make(state, inputs)

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        return state.append(out=(outcome.act, outcome.key, outcome.value))

    def finish(self, state: State) -> State:
        return state.update(finished=len(state.get("out", ())))


async def run(act: Any, state: Mapping[str, Any] | None = None, /, **inputs: Any) -> State:
    async with no_leaks():
        given = {"numbers": [1, 2, 3], "n": 0, **(state or {})}
        return (await Application(act).run(given, inputs=inputs)).state


# -- tasks -----------------------------------------------------------------------------------------


async def test_tasks_say_what_each_child_executes_and_starts_with():
    graph = Graph.chain(double, half.bind(name="of"), name="graph")
    made = [
        Task(double, {"n": 1}, key="x"),
        Task(half, {"n": 1}, key="x"),
        Task(graph, {"n": 3}, key="x"),
        Task(half, key=7),
    ]
    step = Collecting(lambda state, inputs: made)
    hook = RecordingHook()
    app = Application(step, hooks=[hook])
    result = await app.run({"numbers": [], "n": 10})
    assert sorted(result.state["out"], key=str) == [
        ("double", "x", 2), ("graph", "x", None), ("half", "x", 0.5), ("half", 7, 5.0),
    ]  # fmt: skip
    assert result.state["finished"] == 4
    assert sorted(event.position for event in hook.of(ChildStarted)) == [0, 1, 2, 3]
    final = [o.state for o in (e.outcome for e in hook.of(ChildEnded)) if isinstance(o, Done)]
    assert {"n": 3, "double": 6, "half": 1.5} in [dict(state) for state in final]
    hook.assert_paired()
    assert result.outcomes("Collecting").done == 4


async def test_the_state_of_a_task_may_be_made_from_the_given_one():
    def make(state: State, inputs: Inputs) -> Iterator[Task]:
        for n in state["numbers"]:
            yield Task(double, state.update(out=[], finished=n))
        yield Task(double, {"n": 5})
        yield Task(double)

    out = (await run(Collecting(make), {"n": 2}))["out"]
    assert sorted(out) == [("double", n, 10 if n == 3 else 4) for n in range(5)]


async def test_tasks_see_their_state_narrowed_and_all_inputs():
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def make(state: State, inputs: Inputs) -> list[Task]:
        seen.append((dict(state), dict(inputs)))
        with pytest.raises(UndeclaredRead):
            state["other"]
        return []

    bound = Collecting(make).bind(word="bound", more=1)
    assert (await run(bound, {"other": 1}))["finished"] == 0
    assert seen == [({"numbers": [1, 2, 3], "n": 0}, {"word": "bound", "more": 1})]


async def test_the_element_of_an_outcome():
    about: list[object] = []

    class About(Collecting):
        def reduce(self, state: State, outcome: Done | Failed) -> State:
            about.append(outcome.element)
            return state

    marker = object()
    await run(About(lambda s, i: [Task(double, {"n": 1}), Task(double, {"n": 1}, element=marker)]))
    assert about == [{"n": 1}, marker]


async def test_what_is_nearest_to_a_task_counts_first():
    def make(state: State, inputs: Inputs) -> Iterator[Task]:
        yield Task(say, {"n": 0}, key="none")
        yield Task(say.bind(word="own"), {"n": 1}, key="own")
        yield Task(say, {"n": 2}, key="task", inputs={"word": "task"})

    async def words(app: Application, **given: Any) -> list[str]:
        state = (await app.run({"numbers": [], "n": 0}, **given)).state
        return [value.split()[0] for *_, value in sorted(state["out"], key=str)]

    step = Collecting(make)
    assert await words(Application(step)) == ["default", "own", "task"]
    bound = step.bind(name="bound", word="bound")
    assert (bound.name, step.name) == ("bound", "Collecting")
    # what is bound already stays, be it to an act that a task brings
    assert await words(Application(bound)) == ["bound", "own", "task"]
    async with Runtime(inputs={"word": "runtime"}) as runtime:
        given: dict[str, Any] = {"runtime": runtime}
        assert await words(Application(bound), **given) == ["bound", "own", "task"]
        assert await words(Application(step), **given) == ["runtime", "own", "task"]
        app = Application(step, inputs={"word": "app"})
        assert await words(app, **given) == ["app", "own", "task"]
        given["inputs"] = {"word": "run"}
        assert await words(app, **given) == ["run", "own", "task"]
    twice = Collecting(lambda s, i: [Task(say.bind(word="own"), inputs={"word": "task"})])
    with pytest.raises(DefinitionError, match="every action that takes 'word' has it bound"):
        await words(Application(twice))


async def test_inputs_of_a_task_reach_its_descendants_and_nobody_else():
    inner = fan_out(say, over="numbers", item="n", into="all")
    step = Collecting(lambda s, i: [Task(inner, inputs={"word": "hi"}, key=1), Task(inner, key=2)])
    out = (await run(step, {"numbers": [5]}))["out"]
    assert sorted(out) == [("all", 1, ["hi 5"]), ("all", 2, ["default 5"])]


async def test_a_missing_input_is_found_when_its_task_is_pulled():
    @action(reads=["n"], writes=["out"])
    async def takes(n: int, tool: object) -> int:
        return n

    def make(state: State, inputs: Inputs) -> Iterator[Task]:
        yield Task(takes, inputs={"tool": 1}, key=1)
        yield Task(takes, key=2)

    with pytest.raises(MissingInput, match=r"'takes' in step 'Collecting'.*'tool'.*to the Task"):
        await run(Collecting(make))
    misspelt = Collecting(lambda s, i: [Task(takes, inputs={"tool": 1, "tol": 1})])
    with pytest.raises(DefinitionError, match=r"step 'Collecting'.*'tol'.*did you mean 'tool'"):
        await run(misspelt)

    class Declaring(Collecting):
        inputs = ("tool",)

    with pytest.raises(MissingInput, match="'tool'"):  # before it starts
        await run(Declaring(lambda s, i: pytest.fail("it started")))
    assert (await run(Declaring(make).bind(tool=2)))["finished"] == 2


async def test_what_a_task_reads_is_given_or_declared():
    @action(reads=["secret"], writes=["out"])
    async def read(secret: int) -> int:
        return secret

    given = Collecting(lambda s, i: [Task(read, {"secret": 1})])
    assert (await run(given))["out"] == [("read", 0, 1)]
    undeclared = Collecting(lambda s, i: [Task(read)])
    with pytest.raises(UndeclaredRead, match=r"'Collecting': 'read' reads secret, which .*reads="):
        await run(undeclared, {"secret": 2})

    class Declaring(Collecting):
        reads = ("secret",)

    assert (await run(Declaring(lambda s, i: [Task(read)]), {"secret": 2}))["finished"] == 1
    missing = Collecting(lambda s, i: [Task(half), Task(half.bind(name="h"))])
    with pytest.raises(MissingField, match="'n'"):
        await Application(Graph.chain(missing)).run({"numbers": []})


async def test_what_finish_and_reduce_write_is_declared():
    class Wrong(Collecting):
        def finish(self, state: State) -> State:
            return state.update(other=1)

    with pytest.raises(UndeclaredWrite, match="'Wrong' writes field 'other'"):
        await run(Wrong(lambda s, i: [Task(double)]))


# -- keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [Task(double, key="x"), Task(half)], "some have a key= and some have none"),
        (lambda: [Task(double), Task(half, key=1)], "some have a key= and some have none"),
        (
            lambda: [Task(double, key=1), Task(half, key=1), Task(double, key=1)],
            r"task 2 has the act 'double' and the key 1, .*its act another name: act.bind\(name=",
        ),
        (lambda: [Task(double, key=True)], r"the key of task 0 \('double'\) is a bool"),
        (lambda: [Task(double, key=cast("Any", 1.5))], "is a float; keys are str or int"),
    ],
)
async def test_keys_that_tell_nothing_apart_are_refused(make: Any, message: str):
    with pytest.raises(BadKey, match=f"tasks of 'Collecting': .*{message}"):
        await run(Collecting(lambda s, i: make()))


async def test_keys_of_one_and_its_text_are_two_and_positions_are_keys():
    out = (await run(Collecting(lambda s, i: [Task(double, key=1), Task(double, key="1")])))["out"]
    assert {key for _, key, _ in out} == {1, "1"}
    out = (await run(Collecting(lambda s, i: [Task(double), Task(half), Task(double)])))["out"]
    assert {(act, key) for act, key, _ in out} == {("double", 0), ("half", 1), ("double", 2)}


@dataclass(frozen=True)
class Times(Action):
    """Two of these are equal when their factors are, whatever they are called."""

    factor: int
    reads = ("n",)
    writes = ("value",)

    async def run(self, n: int) -> int:
        await checkpoint()
        return self.factor * n


@dataclass
class Unhashable(Action):
    factor: int
    reads = ("n",)
    writes = ("value",)

    async def run(self, n: int) -> int:
        return self.factor * n


async def test_acts_that_are_equal_are_told_apart():
    both = [Times(2).bind(name="one"), Times(2).bind(name="two")]
    assert both[0] == both[1]
    out = (await run(Collecting(lambda s, i: [Task(act, {"n": 1}, key="") for act in both])))["out"]
    assert sorted(act for act, *_ in out) == ["one", "two"]
    many = Collecting(lambda s, i: (Task(Unhashable(n), {"n": 1}) for n in range(200)))
    assert sorted(value for *_, value in (await run(many))["out"]) == list(range(200))


# -- pulling and closing ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("is_async", [False, True])
async def test_tasks_are_pulled_as_there_is_room(limit: int, is_async: bool):
    pulled = ended = 0

    class Counting(Collecting):
        limits = Limits(limit)

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            nonlocal ended
            ended += 1
            return state

    def now(state: State, inputs: Inputs) -> Iterator[Task]:
        nonlocal pulled
        for n in range(10):
            pulled += 1
            assert pulled - ended <= limit
            yield Task(double, {"n": n})

    async def later(state: State, inputs: Inputs) -> AsyncIterator[Task]:
        for task in now(state, inputs):
            await checkpoint()
            yield task

    await run(Counting(later if is_async else now))
    assert (pulled, ended) == (10, 10)


WAYS_OUT = ["the end", "at_most", "a failure", "a cancel", "reduce", "a bad task", "its own error"]


@pytest.mark.sweep
@pytest.mark.parametrize("form", ["tasks", "MapStates", "MapActions", "MapActionsAndStates"])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("way_out", WAYS_OUT)
async def test_what_makes_tasks_is_closed_on_every_way_out(way_out: str, is_async: bool, form: str):
    """By the time the step has ended, and in the task that advanced it."""
    closed: list[object] = []

    def steps() -> Iterator[float]:
        yield 1
        yield 13 if way_out == "a failure" else 1
        if way_out == "its own error":
            raise LookupError
        if way_out == "a bad task":
            yield cast("Any", None)
        if way_out != "the end":
            while True:
                yield 100

    def here() -> object:
        return anyio.get_current_task().id if is_async else None

    def make(wrap: Callable[[float], Any]) -> Any:
        def now() -> Iterator[Any]:
            try:
                yield from map(wrap, steps())
            finally:
                closed.append(None)

        async def later() -> AsyncIterator[Any]:
            task = here()
            try:
                for n in steps():
                    yield wrap(n)
            finally:
                assert task == here()
                with anyio.CancelScope(shield=True):
                    await checkpoint()
                closed.append(None)

        return later() if is_async else now()

    class Base(ParallelAction):
        name = "step"
        reads = ()
        writes = ("out",)
        at_most = 2 if way_out == "at_most" else None

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            if way_out == "reduce":
                raise OSError
            return state.increment(out=1)

    count = iter(range(1000))

    def named(n: Any) -> Any:
        return None if n is None else sleeping(n).bind(name=f"act {next(count)}")

    def sleeping(n: float) -> Any:
        @action(writes=["never"])
        async def perform() -> None:
            await cast("Any", sleep)(n)

        return perform

    def started(n: Any) -> Any:
        return None if n is None else {"n": n}

    def tasked(n: Any) -> Any:
        return None if n is None else Task(sleep, {"n": n})

    class Tasks(Base):
        def tasks(self, state: State, inputs: Inputs) -> Any:
            return make(tasked)

    class States(MapStates, Base):
        def action(self, state: State, inputs: Inputs) -> Any:
            return sleep

        def states(self, state: State, inputs: Inputs) -> Any:
            return make(started)

    class Actions(MapActions, Base):
        def actions(self, state: State, inputs: Inputs) -> Any:
            return make(named)

    class ActionsAndStates(MapActionsAndStates, Base):
        def actions(self, state: State, inputs: Inputs) -> Any:
            return [sleep, sleep.bind(name="sleep 2")]

        def states(self, state: State, inputs: Inputs) -> Any:
            return make(started)

    forms: dict[str, type[ParallelAction]] = {
        "tasks": Tasks, "MapStates": States, "MapActions": Actions,
        "MapActionsAndStates": ActionsAndStates,
    }  # fmt: skip
    expected: dict[str, Any] = {
        "a failure": ExceptionGroup, "reduce": OSError, "its own error": LookupError,
        "a bad task": (BadResult, DefinitionError),
    }  # fmt: skip
    ended = False
    async with no_leaks():
        with anyio.move_on_after(20 if way_out == "a cancel" else 1000):
            try:
                await Application(forms[form]()).run({})
            except expected.get(way_out, ()):
                ended = True
            else:
                ended = way_out in ("the end", "at_most")
        assert closed == [None]
    assert ended == (way_out != "a cancel")


async def test_what_a_generator_raises_while_it_closes_is_not_lost(
    caplog: pytest.LogCaptureFixture,
):
    class Failing(MapStates):
        reads = ()
        writes = ("out",)
        at_most = 1

        def action(self, state: State, inputs: Inputs) -> Any:
            return double

        def states(self, state: State, inputs: Inputs) -> Any:
            try:
                yield {"n": 1}
                yield {"n": 2}
            finally:
                raise OSError("closing")

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state.update(out=outcome.key)

    with pytest.raises(OSError, match="closing"):
        await run(Failing())


# -- failures and ends -----------------------------------------------------------------------------


async def test_a_reduce_that_raises_names_the_key():
    class Raising(Collecting):
        def reduce(self, state: State, outcome: Done | Failed) -> State:
            if outcome.key == "b":
                raise OSError("no")
            return state.append(out=outcome.key)

    tasks = [Task(double, {"n": 1}, key=key) for key in "abc"]
    hook = RecordingHook()
    app = Application(Raising(lambda s, i: tasks), hooks=[hook])
    with pytest.raises(OSError, match="no") as caught:
        await app.run({"numbers": [], "n": 0})
    assert any("fan-out 'Raising' applying key 'b'" in note for note in caught.value.__notes__)
    reduced = history(hook, {})[-1:]  # they end in any order
    assert all(key in ("a", "c") for _, state in reduced for key in state["out"])
    hook.assert_paired()


async def test_a_finish_that_raises_leaves_what_was_reduced():
    class Raising(Collecting):
        def finish(self, state: State) -> State:
            raise OSError(len(state["out"]))

    hook = RecordingHook()
    with pytest.raises(OSError, match="2"):
        tasks = [Task(double), Task(half)]
        await Application(Raising(lambda s, i: tasks), hooks=[hook]).run({"numbers": [], "n": 0})
    assert len(history(hook, {})[-1][1]["out"]) == 2


@pytest.mark.parametrize("returned", [None, {}, State()])
@pytest.mark.parametrize("method", ["reduce", "finish"])
async def test_what_is_no_state_made_from_the_given_one_is_refused(method: str, returned: Any):
    def answer(self: object, *_: object) -> Any:
        return returned

    wrong = cast("type[Collecting]", type("Wrong", (Collecting,), {method: answer}))
    with pytest.raises(BadResult, match=f"{method} of (fan-out )?'Wrong'.* returned"):
        await run(wrong(lambda s, i: [Task(double)]))


async def test_failures_are_reduced_where_they_are_collected():
    class Tolerant(Collecting):
        on_error = "collect"

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state.append(out=(outcome.key, type(outcome).__name__))

    made = [Task(sleep, {"n": 1}, key="a"), Task(sleep, {"n": 13}, key="b")]
    assert (await run(Tolerant(lambda s, i: made)))["out"] == [("a", "Done"), ("b", "Failed")]
    Tolerant.on_error = cast("Any", Tolerate(count=0))
    with pytest.raises(ExceptionGroup, match="a child of fan-out 'Tolerant' failed"):
        await run(Tolerant(lambda s, i: made))
    Tolerant.on_error = cast("Any", "ignore")
    assert (await run(Tolerant(lambda s, i: made)))["out"] == [("a", "Done")]


@pytest.mark.parametrize("at_most", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("is_async", [False, True])
async def test_at_most_is_exact(at_most: int, is_async: bool):
    class Some(Collecting):
        pass

    Some.at_most = at_most

    async def later(state: State, inputs: Inputs) -> AsyncIterator[Task]:
        for n in range(3):
            yield Task(double, {"n": n})

    def now(state: State, inputs: Inputs) -> Iterator[Task]:
        return (Task(double, {"n": n}) for n in range(3))

    state = await run(Some(later if is_async else now))
    assert sorted(key for _, key, _ in state.get("out", ())) == list(range(min(3, at_most)))


@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        (None, BadResult, "but `tasks` gave None"),
        (5, BadResult, "but `tasks` gave an int"),
        ("text", BadResult, "but `tasks` gave a str"),
        ([None], BadResult, "tasks of 'Collecting' yields Tasks, not None"),
        ([double], BadResult, "tasks of 'Collecting' yields Tasks, not <action double"),
        ([{"n": 1}], BadResult, "yields Tasks"),
    ],
)
async def test_what_is_no_task_is_refused(made: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        await run(Collecting(lambda s, i: made))


async def test_what_was_to_be_awaited_is_closed():
    async def unawaited() -> Any: ...

    with pytest.raises(BadResult, match="to be awaited"):
        await run(Collecting(lambda s, i: unawaited()))
    with pytest.raises(BadResult, match="to be awaited"):
        await run(Collecting(lambda s, i: [unawaited()]))


# -- the maps --------------------------------------------------------------------------------------


class Numbers(MapStates):
    reads = ("numbers",)
    writes = ("out",)

    def action(self, state: State, inputs: Inputs) -> Any:
        return inputs.get("act", double)

    def states(self, state: State, inputs: Inputs) -> Any:
        return ({"n": n} for n in state["numbers"])

    def key(self, state: Mapping[str, Any]) -> str:
        return f"<{state['n']}>"

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        return state.put("out", outcome.key, outcome.value, outcome.position)


async def test_map_states():
    assert (await run(Numbers()))["out"] == {"<1>": 2, "<2>": 4, "<3>": 6}
    assert (await run(Numbers(), act=half))["out"] == {"<1>": 0.5, "<2>": 1.0, "<3>": 1.5}
    with pytest.raises(BadKey, match="'double' and the key '<1>'"):
        await run(Numbers(), {"numbers": [1, 1]})
    with pytest.raises(DefinitionError, match="Task takes actions; 5 is none"):
        await run(Numbers(), act=5)


async def test_map_actions():
    class Each(MapActions):
        reads = ("n",)
        writes = ("out",)

        def actions(self, state: State, inputs: Inputs) -> Any:
            yield double
            yield half
            if inputs.get("again"):
                yield double

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            assert isinstance(outcome, Done)
            return state.put("out", outcome.act, (outcome.key, outcome.value), outcome.position)

    class EachOf(Each):
        def state(self, state: State, inputs: Inputs) -> Mapping[str, Any]:
            return {"n": state["n"] + 1}

    assert (await run(Each(), {"n": 4}))["out"] == {"double": ("", 8), "half": ("", 2.0)}
    assert (await run(EachOf(), {"n": 3}))["out"] == {"double": ("", 8), "half": ("", 2.0)}
    assert EachOf.name == "EachOf"
    with pytest.raises(BadKey, match=r"the act 'double' and the key ''.*act.bind\(name="):
        await run(Each(), again=True)


async def test_map_actions_and_states():
    class All(MapActionsAndStates):
        reads = ("numbers",)
        writes = ("out",)

        def actions(self, state: State, inputs: Inputs) -> Any:
            yield double
            yield half

        async def states(self, state: State, inputs: Inputs) -> AsyncIterator[Any]:
            for n in state["numbers"]:
                await checkpoint()
                yield {"n": n}

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            assert isinstance(outcome, Done)
            return state.append(out=(outcome.key, outcome.act, outcome.value))

    class Keyed(All):
        def key(self, state: Mapping[str, Any]) -> int:
            return state["n"]

    assert sorted((await run(All(), {"numbers": [4, 6]}))["out"]) == [
        (0, "double", 8), (1, "half", 2.0), (2, "double", 12), (3, "half", 3.0),
    ]  # fmt: skip
    assert sorted((await run(Keyed(), {"numbers": [4, 6]}))["out"]) == [
        (4, "double", 8), (4, "half", 2.0), (6, "double", 12), (6, "half", 3.0),
    ]  # fmt: skip


async def test_a_subclass_of_a_subclass_overrides_what_is_documented():
    log = list[str]()

    class Fewer(Numbers):
        limits = Limits(1)

        def until(self, _state: State, outcome: Done | Failed) -> bool:
            return outcome.key == "<3>"

        @property
        def definition(self) -> object:
            return Fewer

        def tasks(self, state: State, inputs: Inputs) -> Any:
            log.append("tasks")
            made = cast("Iterable[Task]", super().tasks(state, inputs))
            return (task for task in made if task.key != "<2>")

        async def perform(self, run: Any) -> Any:
            log.append("begins")
            change = await super().perform(run)
            log.append("ends")
            return change

        def finish(self, state: State) -> State:
            log.append("finish")
            return state.update(out=sorted(state["out"]))

    class Renamed(Fewer):
        name = "renamed"

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            log.append(f"{self.name} {outcome.key}")
            return super().reduce(state, outcome)

    numbers = {"numbers": [1, 2, 3, 4]}
    assert (await run(Renamed(), numbers))["out"] == ["<1>", "<3>"]
    assert log == ["begins", "tasks", "renamed <1>", "renamed <3>", "finish", "ends"]


async def test_concurrent_runs_of_one_instance_know_nothing_of_each_other():
    step, states = Numbers(), list[State]()

    async def one(n: int) -> None:
        states.append(await run_bare(step, list(range(n))))

    async with anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(one, n)
    assert sorted(len(state.get("out", ())) for state in states) == [0, 1, 2, 3, 4]


async def run_bare(act: Any, numbers: list[int]) -> State:
    return (await Application(act).run({"numbers": numbers})).state


async def test_cancelled_children_are_not_reduced():
    seen: list[object] = []

    class Failing(Collecting):
        def reduce(self, state: State, outcome: Done | Failed) -> State:
            seen.append(outcome.key)
            return state

    hook = RecordingHook()
    made = [Task(sleep, {"n": n}, key=str(n)) for n in (1, 13, 99)]
    with pytest.raises(ExceptionGroup):
        app = Application(Failing(lambda s, i: made), hooks=[hook])
        await app.run({"numbers": [], "n": 0})
    assert seen == ["1"]
    ends = {event.outcome.key: type(event.outcome) for event in hook.of(ChildEnded)}
    assert ends == {"1": Done, "13": Failed, "99": Cancelled}


# -- what is refused where it is defined -----------------------------------------------------------


async def waits(self: object, *_: object) -> Any: ...


async def generates(self: object, *_: object) -> AsyncIterator[Any]:
    yield None


REFUSED: list[tuple[type[ParallelAction], dict[str, Any], str]] = [
    (ParallelAction, {"reads": "n"}, "class Wrong: reads='n' is one string"),
    (ParallelAction, {"writes": [5]}, "class Wrong: writes= lists field names"),
    (ParallelAction, {"inputs": "client"}, "class Wrong: inputs='client' is one string"),
    (ParallelAction, {"name": 5}, "class Wrong: name is a string, not 5"),
    (ParallelAction, {"reduce": waits}, "Wrong.reduce takes a plain function.*'waits'"),
    (ParallelAction, {"reduce": generates}, "Wrong.reduce takes a plain function"),
    (ParallelAction, {"finish": waits}, "Wrong.finish takes a plain function"),
    (ParallelAction, {"tasks": waits}, "Wrong.tasks is a coroutine function; make it an async gen"),
    (ParallelAction, {"limits": 5}, r"class Wrong: limits= takes Limits\(n\), not 5"),
    (ParallelAction, {"on_error": "never"}, "class Wrong: on_error= is 'fail', .*not 'never'"),
    (ParallelAction, {"at_most": -1}, "class Wrong: at_most= takes a number of children, not -1"),
    (MapStates, {"action": waits}, "Wrong.action takes a plain function"),
    (MapStates, {"states": waits}, "Wrong.states is a coroutine function; make it an async gen"),
    (MapStates, {"key": waits}, "Wrong.key takes a plain function"),
    (MapStates, {"reduce": waits}, "Wrong.reduce takes a plain function"),
    (MapActions, {"actions": waits}, "Wrong.actions is a coroutine function"),
    (MapActions, {"state": waits}, "Wrong.state takes a plain function"),
    (MapActionsAndStates, {"actions": generates}, "Wrong.actions takes a plain function"),
    (MapActionsAndStates, {"states": waits}, "Wrong.states is a coroutine function"),
]


@pytest.mark.parametrize(("base", "attributes", "message"), REFUSED)
def test_a_class_that_cannot_work_is_refused_where_it_is_defined(
    base: type[ParallelAction], attributes: dict[str, Any], message: str
):
    with pytest.raises(DefinitionError, match=message):
        type("Wrong", (base,), attributes)


def test_a_class_without_its_methods_has_no_instances():
    class Empty(MapStates):
        pass

    for base in (Empty, ParallelAction, MapActions, MapActionsAndStates):
        with pytest.raises(TypeError, match="abstract"):
            cast("Any", base)()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"act": 5}, "Task takes actions; 5 is none: give an @action"),
        ({"act": waits}, "Task takes actions; .*waits.*: decorate it"),
        ({"act": Numbers}, r"Task takes actions; .*it is a class: write Numbers\(\)"),
        (
            {"act": double, "state": 5},
            r"Task\(state=...\) takes a mapping of names to values, not 5",
        ),
        ({"act": double, "inputs": [1]}, r"Task\(inputs=...\) takes a mapping"),
    ],
)
def test_a_task_that_cannot_work_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        Task(**given)


# -- dataclasses -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frozen(Numbers):
    factor: int
    name: str = "frozen"

    def states(self, state: State, inputs: Inputs) -> Iterable[Mapping[str, Any]]:
        word = inputs.get("word", "")
        return ({"n": self.factor * n + len(word)} for n in state["numbers"])


async def test_frozen_dataclasses_with_slots_can_be_bound_again_and_again():
    step = Frozen(10)
    assert (step.name, Frozen(10, "other").name) == ("frozen", "other")
    bound = step.bind(word="12").bind(name="named").bind(act=half)
    assert (bound.name, bound.factor, step.name) == ("named", 10, "frozen")
    assert (await run(step, {"numbers": [1]}))["out"] == {"<10>": 20}
    assert (await run(bound, {"numbers": [1]}))["out"] == {"<12>": 6.0}
    assert (await Application(bound).run({"numbers": [1]})).outcomes("named").done == 1


async def test_what_a_child_can_do_without_needs_no_declaration():
    @action(reads=["turn"], writes=["turn"], executor="loop")
    def count(state: State) -> State:
        return state.update(turn=state.get("turn", 0) + 1)

    class Turns(MapStates):
        writes = ("turns",)

        def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
            return count

        def states(self, state: State, inputs: Mapping[str, Any]) -> list[dict[str, int]]:
            return [{}, {"turn": 5}]

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            assert isinstance(outcome, Done)
            return state.put("turns", outcome.key, outcome.value)

    assert (await Application(Turns()).run()).state["turns"] == {0: 1, 1: 6}
    with pytest.raises(UndeclaredRead, match=r"'Turns': 'count' reads turn, which .* declare"):
        await Application(Turns()).run({"turn": 1})


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
async def test_a_repeated_key_is_refused_after_attempts_that_came_only_to_the_first(failures: int):
    """The second attempt passes over the first task, which has a child, and learns no key of it."""
    attempts: list[int] = []

    class Twice(ParallelAction):
        writes = ("sums",)

        async def tasks(self, state: State, inputs: Inputs) -> AsyncIterator[Task]:
            attempts.append(len(attempts))
            yield Task(double, {"n": 1}, key="one")
            await checkpoint()
            if len(attempts) <= failures:
                raise ConnectionError("the source broke off")
            yield Task(double, {"n": 2}, key="one")

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            assert isinstance(outcome, Done)
            return state.update(sums=outcome.value)

    def again(error: Exception) -> bool:
        return bool(list(leaves(error, ConnectionError)))

    each = Each(retry=Retry(attempts=failures + 1, initial=0.01, on=again))
    around = fan_out(Twice(), over="rows", item="row", into="out", take="sums", each=each)
    with pytest.raises(ExceptionGroup) as caught:
        await Application(around).run({"rows": [0]})
    (error,) = leaves(caught.value, BadKey)
    assert "which an earlier task has" in str(error)
    assert len(attempts) == failures + 1


def leaves(error: BaseException, kind: type[BaseException]) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(one, kind)
    elif isinstance(error, kind):
        yield error
