"""What becomes of recorded children: kept, gone on with, applied, run anew, or refused."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    END,
    Application,
    Breaker,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MapStates,
    MemoryStore,
    Outcome,
    ParallelAction,
    Rate,
    Retry,
    RunPath,
    RunResult,
    Skipped,
    State,
    StoreFailed,
    Task,
    Tolerate,
    action,
    fan_out,
    when,
)
from shoal.errors import BadUse, InputChanged
from shoal.events import ChildEnded, ChildRerun, ChildStarted, RunStarted, StateUpdated
from shoal.testing import RecordingHook
from tests.engine.test_resume import check_histories

pytestmark = pytest.mark.anyio

ran = list[Any]()
fails = set[Any]()
elements = list[Any]()
"""What ``over`` gives now: it may be something else when the run goes on."""


@pytest.fixture(autouse=True)
def all_is_well() -> None:
    ran.clear()
    fails.clear()
    elements.clear()


@action(reads=["item"], writes=["out"])
async def upper(item: Any) -> Any:
    ran.append(item)
    await checkpoint()
    if item in fails:
        raise ValueError(item)
    return str(item).upper()


@action(reads=["item"], writes=["out"])
async def lower(item: Any) -> Any:
    ran.append(f"lower {item}")
    await checkpoint()
    if f"lower {item}" in fails:
        raise ValueError(item)
    return str(item).lower()


@action(reads=["out"], writes=["out"])
async def again(out: str) -> str:
    ran.append(f"again {out}")
    await checkpoint()
    if f"again {out}" in fails:
        raise ValueError(out)
    return f"{out}!"


def now(_: State) -> list[Any]:
    return list(elements)


def number(item: Any) -> str:
    return str(item)[0].lower()


two_steps = Graph.chain(upper, again, name="both")


@dataclass
class Lives:
    """An application that fails in its first life, and goes on in the next."""

    make: Callable[[], Any]

    def __post_init__(self) -> None:
        self.store = MemoryStore()
        self.hook = RecordingHook()

    async def fail(self, first: Iterable[Any], *failing: Any, **state: Any) -> None:
        """Run it over ``first``, some of which fail."""
        elements[:] = first
        fails.update(failing)
        with pytest.raises(ExceptionGroup):
            await self.run(**state)
        ran.clear()
        fails.clear()

    async def run(self, **state: Any) -> RunResult[Any]:
        self.hook = RecordingHook()
        graph = Graph.chain(self.make(), name="app")
        app = Application(graph, store=self.store, hooks=[self.hook])
        try:
            return await app.run(state, id="x")
        finally:
            self.hook.assert_paired()

    async def go_on(self, *then: Any, **state: Any) -> RunResult[Any]:
        """Run it over ``then`` to its end; what it comes to is what is recorded."""
        elements[:] = then
        result = await self.run(**state)
        again = await self.run(**state)
        assert again.state == result.state
        for step, ledgers in result._ledgers.items():
            for ledger, recorded in zip(ledgers, again._ledgers[step], strict=True):
                assert counts(ledger) == counts(recorded)
                assert list(map(brief, ledger)) == list(map(brief, recorded))
        return result

    @property
    def reruns(self) -> list[Any]:
        return [event.child.key for event in self.hook.of(ChildRerun)]


def counts(ledger: Any) -> tuple[int, ...]:
    return ledger.done, ledger.failed, ledger.cancelled, ledger.skipped


def brief(outcome: Outcome) -> Any:
    return type(outcome).__name__, outcome.act, outcome.key, outcome.position, outcome.element


def mapping(**options: Any) -> Any:
    return fan_out(
        upper, over=now, reads=[], key=number, into="out", limits=Limits(1), **options
    )  # fmt: skip


def listing(**options: Any) -> Any:
    return fan_out(upper, over=now, reads=[], into="out", limits=Limits(1), **options)


def items(result: RunResult[Any], field: str = "out") -> list[Any]:
    found: Any = result.state[field]
    return list(found.items() if hasattr(found, "items") else found)


# -- inputs that are reordered, filtered and extended ----------------------------------------------


async def test_reordered_elements_keep_their_results_and_take_their_new_places():
    lives = Lives(mapping)
    await lives.fail("abcde", "d")
    result = await lives.go_on(*"edcba")
    assert sorted(ran) == ["d", "e"]
    assert items(result) == [("e", "E"), ("d", "D"), ("c", "C"), ("b", "B"), ("a", "A")]
    assert result.outcomes("out").done == 5


async def test_a_move_alone_is_published_as_an_update_and_not_as_an_end():
    lives = Lives(mapping)
    await lives.fail("abc", "c")
    elements[:] = "cba"
    await lives.run()
    assert [event.child.key for event in lives.hook.of(ChildStarted)] == ["c"]
    assert [event.outcome.key for event in lives.hook.of(ChildEnded)] == ["c"]
    applied = [e.outcome and e.outcome.key for e in lives.hook.of(StateUpdated) if e.depth == 0]
    assert applied == ["c", None]
    records = await lives.store.children(RunPath(run_id="x"))
    assert {one.key: (one.position, one.value, one.status) for one in records} == {
        "a": (2, "A", "succeeded"), "b": (1, "B", "succeeded"), "c": (0, "C", "succeeded")
    }  # fmt: skip


async def test_elements_that_come_no_more_keep_their_results_where_they_have_a_key():
    """The source may know what is done: a queue of what is left to do, for example."""
    lives = Lives(mapping)
    await lives.fail("abcd", "d")
    result = await lives.go_on(*"cdef")
    assert ran == ["d", "e", "f"]
    assert dict(items(result)) == {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E", "f": "F"}
    assert result.outcomes("out").done == 6


async def test_failures_that_come_no_more_are_no_failures_any_more():
    lives = Lives(lambda: mapping(on_error=Tolerate(count=1), errors_into="errors"))
    await lives.fail("abcd", "b", "d")
    result = await lives.go_on(*"ac")
    assert items(result) == [("a", "A"), ("c", "C")]
    assert items(result, "errors") == []
    result.raise_for_failures()
    assert counts(result.outcomes("out")) == (2, 0, 0, 0)


async def test_without_keys_results_pair_with_positions_and_what_changed_runs_anew():
    lives = Lives(listing)
    await lives.fail("abcd", "d")
    result = await lives.go_on(*"acd")  # b is gone, so all others moved up
    assert ran == ["c", "d"]
    assert items(result) == ["A", "C", "D"]
    assert counts(result.outcomes("out")) == (3, 0, 0, 0)


async def test_without_keys_nothing_is_left_behind_the_last_element():
    lives = Lives(listing)
    await lives.fail("abcd", "d")
    result = await lives.go_on("a")
    assert ran == []
    assert items(result) == ["A"]
    assert counts(result.outcomes("out")) == (1, 0, 0, 0)


async def test_extended_elements_run_what_is_new():
    for make in (mapping, listing):
        lives = Lives(make)
        await lives.fail("abc", "c")
        result = await lives.go_on(*"abcde")
        assert ran == ["c", "d", "e"]
        values = result.state["out"]
        assert list(values.values() if make is mapping else values) == list("ABCDE")
        assert lives.reruns == []
        ran.clear()


async def test_elements_inserted_in_front_of_others():
    lives = Lives(mapping)
    await lives.fail("abc", "c")
    result = await lives.go_on(*"zaybxc")
    assert ran == ["z", "y", "x", "c"]
    assert [key for key, _ in items(result)] == list("zaybxc")


async def test_no_elements_at_all_are_left():
    lives = Lives(mapping)
    await lives.fail("abc", "c")
    assert dict(items(await lives.go_on())) == {"a": "A", "b": "B"}
    lives = Lives(listing)
    await lives.fail("abc", "c")
    assert items(await lives.go_on()) == []


async def test_several_acts_for_each_element():
    def make() -> Any:
        return fan_out(
            [upper, lower], over=now, reads=[], key=number, into="out", limits=Limits(1)
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abc", "lower b")
    result = await lives.go_on(*"cba")
    assert ran == ["c", "lower c", "lower b"]
    both = {one: {"upper": one.upper(), "lower": one} for one in "abc"}
    assert [(key, list(found.items())) for key, found in items(result)] == [
        (key, list(both[key].items())) for key in "cba"
    ]

    def keyless() -> Any:
        return fan_out([upper, lower], over=now, reads=[], into="out", limits=Limits(1))

    lives = Lives(keyless)
    ran.clear()
    await lives.fail("abc", "lower c")
    result = await lives.go_on(*"ac")
    assert ran == ["c", "lower c"]
    assert items(result) == [both["a"], both["c"]]


# -- inputs that changed ---------------------------------------------------------------------------


async def test_an_element_that_changed_runs_anew_and_says_so():
    lives = Lives(mapping)
    await lives.fail(["a1", "b1", "c1"], "c1")
    result = await lives.go_on("a1", "b2", "c1")
    assert ran == ["b2", "c1"]
    assert lives.hook.events == []  # of what is recorded
    assert items(result) == [("a", "A1"), ("b", "B2"), ("c", "C1")]


async def test_a_rerun_is_published_before_it_starts():
    lives = Lives(mapping)
    await lives.fail(["a1", "b1", "c1"], "c1")
    elements[:] = ["a1", "b2", "c1"]
    await lives.run()
    (rerun,) = lives.hook.of(ChildRerun)
    assert (rerun.step, rerun.child.key, rerun.position, rerun.element) == ("out", "b", 1, "b2")
    at = lives.hook.events.index(rerun)
    starts = [e for e in lives.hook.of(ChildStarted) if e.child == rerun.child]
    assert lives.hook.events.index(starts[0]) > at
    begun = [e for e in lives.hook.of(RunStarted) if e.path == rerun.child]
    assert [event.resumed for event in begun] == [False]


async def test_what_was_kept_below_a_changed_child_is_forgotten():
    @action(reads=["item"], writes=["below"])
    async def below(item: str) -> list[str]:
        return ["p", "q"]

    inner = fan_out(two_steps, over="below", key=str, into="inner", take="out", limits=Limits(1))
    child = Graph.chain(below, inner, name="child")

    def outer() -> Any:
        return fan_out(child, over=now, reads=[], key=number, into="out", take="inner")

    lives = Lives(outer)
    await lives.fail(["a1"], "again Q")
    assert await lives.store.children(RunPath(run_id="x")) != []
    result = await lives.go_on("a1")
    assert ran == ["again Q"], "what is below goes on too"
    assert items(result) == [("a", {"p": "P!", "q": "Q!"})]

    lives = Lives(outer)
    await lives.fail(["a1"], "again Q")
    result = await lives.go_on("a2")
    assert ran == ["p", "again P", "q", "again Q"], "the old subtree counts no more"
    assert items(result) == [("a", {"p": "P!", "q": "Q!"})]


async def test_a_changed_child_that_fails_leaves_no_old_result():
    lives = Lives(lambda: mapping(on_error=Tolerate(count=1), errors_into="errors"))
    await lives.fail(["a1", "b1", "c1", "d1"], "c1", "d1")
    fails.add("b2")
    result = await lives.go_on("a1", "b2", "c1", "d1")
    assert [key for key, _ in items(result)] == ["a", "c", "d"]
    assert [key for key, _ in items(result, "errors")] == ["b"]

    lives = Lives(lambda: listing(on_error=Tolerate(count=1), errors_into="errors"))
    await lives.fail(["a1", "b1", "c1", "d1"], "c1", "d1")
    fails.add("b2")
    result = await lives.go_on("a1", "b2", "c1", "d1")
    assert items(result) == ["A1", "C1", "D1"]

    def both() -> Any:
        return fan_out(
            [upper, lower], over=now, reads=[], key=number, into="out", limits=Limits(1),
            on_error=Tolerate(count=1),
        )  # fmt: skip

    lives = Lives(both)
    await lives.fail(["a1", "b1"], "b1", "lower b1")
    fails.add("lower a2")
    result = await lives.go_on("a2", "b1")
    assert items(result) == [("a", {"upper": "A2"}), ("b", {"upper": "B1", "lower": "b1"})]


async def test_a_crash_after_a_changed_child_was_forgotten_runs_it_once_more():
    lives = Lives(mapping)
    await lives.fail(["a1", "b1", "c1"], "c1")
    fails.add("b2")
    elements[:] = ["a1", "b2", "c1"]
    with pytest.raises(ExceptionGroup):
        await lives.run()
    assert lives.reruns == ["b"]
    fails.clear()
    ran.clear()
    result = await lives.go_on("a1", "b2", "c1")
    assert "a1" not in ran
    assert items(result) == [("a", "A1"), ("b", "B2"), ("c", "C1")]


async def test_only_what_a_child_reads_counts():
    seen = list[int]()

    @action(reads=["item", "factor"], writes=["out"])
    async def multiply(item: int, factor: int) -> int:
        seen.append(item)
        if item in fails:
            raise ValueError(item)
        return item * factor

    factor, other = 1, 1

    @action(reads=[], writes=["factor", "other"])
    async def settings() -> dict[str, int]:
        return {"factor": factor, "other": other}

    store = MemoryStore()

    def app() -> Application[Any]:
        step = fan_out(multiply, over="ns", key=str, into="out", limits=Limits(1))
        return Application(Graph.chain(settings, step, name="app"), store=store)

    fails.add(3)
    with pytest.raises(ExceptionGroup):
        await app().run({"ns": [1, 2, 3]}, id="x")
    fails.clear()
    seen.clear()
    # The state is what it was, whatever the action would say now: it is completed.
    factor, other = 5, 6
    result = await app().run({"ns": [1, 2, 3]}, id="x")
    assert seen == [3]
    assert items(result) == [("1", 1), ("2", 2), ("3", 3)]


async def test_inputs_count_for_nothing():
    @action(reads=["item"], writes=["out"])
    async def ask(item: str, client: object) -> str:
        ran.append(item)
        if item in fails:
            raise ValueError(item)
        return f"{client}"

    store = MemoryStore()
    step = fan_out(ask, over="ns", key=str, into="out", limits=Limits(1))
    app = Application(step, store=store)
    fails.add("b")
    with pytest.raises(ExceptionGroup):
        await app.run({"ns": ["a", "b"]}, id="x", inputs={"client": "one"})
    fails.clear()
    result = await app.run({"ns": ["a", "b"]}, id="x", inputs={"client": object})
    assert ran == ["a", "b", "b"]
    assert items(result)[0] == ("a", "one")


@pytest.mark.parametrize("deep", [False, True])
async def test_another_version_of_an_act_runs_its_children_anew(deep: bool):
    def make(version: str) -> Any:
        @action(reads=["item"], writes=["out"], version=version, name="work")
        async def work(item: str) -> str:
            ran.append(item)
            if item in fails:
                raise ValueError(item)
            return f"{item}{version}"

        if not deep:
            return fan_out(work, over=now, reads=[], key=number, into="out", limits=Limits(1))
        inner = fan_out(work, over=lambda s: [s["item"]], reads=["item"], into="out", name="inner")
        child = Graph.chain(inner, name="child")
        return fan_out(
            child, over=now, reads=[], key=number, into="outs", take="out", limits=Limits(1)
        )  # fmt: skip

    version = "1"
    lives = Lives(lambda: make(version))
    await lives.fail("ab", "b")
    version = "2"
    elements[:] = "ab"
    result = await lives.run()
    assert ran == ["a", "b"]
    assert "a" in lives.reruns
    expected: Any = {"a": "a2", "b": "b2"}
    assert result.state["outs" if deep else "out"] == (
        expected if not deep else {key: [value] for key, value in expected.items()}
    )


# -- reduce ----------------------------------------------------------------------------------------


def tell(state: State, outcome: Done | Failed) -> State:
    value = outcome.value if isinstance(outcome, Done) else "failed"
    return state.append(told=f"{outcome.key} {value}")


def folding(**options: Any) -> Any:
    return fan_out(
        upper, over=now, reads=[], key=number, reduce=tell, writes=["told"], name="fold",
        limits=Limits(1), **options,
    )  # fmt: skip


async def test_a_changed_input_is_refused_where_its_result_was_reduced():
    lives = Lives(folding)
    await lives.fail(["a1", "b1", "c1"], "c1")
    elements[:] = ["a1", "b2", "c1"]
    with pytest.raises(InputChanged, match=r"'fold': what key 'b' works on.*fork\('x'"):
        await lives.run()
    assert "b2" not in ran
    assert lives.reruns == []
    lives.store = lives.store.copy()
    result = await lives.go_on("a1", "b1", "c1")
    assert result.state["told"] == ["a A1", "b B1", "c C1"]


async def test_what_was_not_reduced_may_change():
    lives = Lives(folding)
    await lives.fail(["a1", "b1", "c1"], "b1")
    result = await lives.go_on("a1", "b2", "c2")
    assert ran == ["b2", "c2"]
    assert result.state["told"] == ["a A1", "b B2", "c C2"]


async def test_reduced_results_may_be_reordered_filtered_and_extended():
    lives = Lives(folding)
    await lives.fail("abc", "c")
    result = await lives.go_on(*"dcb")
    assert ran == ["d", "c"]
    assert result.state["told"] == ["a A", "b B", "d D", "c C"]
    assert result.outcomes("fold").done == 4


async def test_failures_that_reduce_was_given_stay_and_others_run_again():
    lives = Lives(lambda: folding(on_error=Tolerate(count=1)))
    await lives.fail("abcd", "b", "d")
    result = await lives.go_on(*"abcd")
    assert ran == ["d"]
    assert result.state["told"] == ["a A", "b failed", "c C", "d D"]
    ledger = result.outcomes("fold")
    assert (ledger.done, ledger.failed) == (3, 1)


async def test_recorded_failures_count_against_what_is_tolerated():
    lives = Lives(lambda: folding(on_error=Tolerate(count=1)))
    await lives.fail("abcd", "b", "d")
    fails.add("d")
    elements[:] = "abcd"
    with pytest.raises(ExceptionGroup) as raised:
        await lives.run()
    assert [str(error) for error in raised.value.exceptions] == ["b", "d"]
    assert ran == ["d"]


async def test_a_moved_child_counts_once_for_what_is_tolerated():
    @action(reads=["item"], writes=["out"])
    async def at_once(item: str) -> str:
        ran.append(item)
        if item in fails:
            raise ValueError(item)
        return item

    def make() -> Any:
        return fan_out(
            at_once, over=now, reads=[], key=number, into="out", limits=Limits(3),
            on_error=Tolerate(share=0.2, after=3),
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abcx", "x")
    fails.add("x")
    with pytest.raises(ExceptionGroup):
        await lives.go_on(*"cbaxyz")  # c, a and x are of one batch
    assert ran == ["x"], "1 of 4 is too many; were c and a counted twice, 1 of 6 were not"


# -- identity --------------------------------------------------------------------------------------


async def test_a_number_and_its_text_are_two_keys():
    def make() -> Any:
        return fan_out(
            upper, over=now, reads=[], key=lambda item: item, into="out", limits=Limits(1)
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail([1, "1", 2, "2"], "2")
    assert len(await lives.store.children(RunPath(run_id="x"))) == 4
    result = await lives.go_on("1", 1, "2", 2)
    assert ran == ["2"]
    assert items(result) == [("1", "1"), (1, "1"), ("2", "2"), (2, "2")]


@pytest.mark.parametrize("key", [None, str])
async def test_a_second_visit_is_fresh_and_a_crash_in_it_finds_its_own_children(key: Any):
    @action(reads=["turn"], writes=["turn"])
    async def next_turn(turn: int) -> int:
        return turn + 1

    @action(reads=["item", "turn"], writes=["out"])
    async def work(item: str, turn: int) -> str:
        ran.append((turn, item))
        await checkpoint()
        if (turn, item) in fails:
            raise ValueError(item)
        return f"{item}{turn}"

    step = fan_out(work, over="ns", key=key, into="out", limits=Limits(1))
    graph = Graph(
        (step, next_turn), (next_turn, step, when(lambda turn: turn < 3)), (next_turn, END),
        entry=step,
    )  # fmt: skip
    store = MemoryStore()
    app = Application(graph, store=store)
    state = {"ns": ["a", "b", "c"], "turn": 0}
    for turn in range(3):
        fails.add((turn, "b"))
    for turn in range(3):
        ran.clear()
        with pytest.raises(ExceptionGroup):
            await app.run(state, id="x")
        fails.remove((turn, "b"))
        again = [] if turn == 0 else [(turn - 1, "b"), (turn - 1, "c")]
        assert ran == [*again, (turn, "a"), (turn, "b")]
    ran.clear()
    result = await app.run(state, id="x")
    assert ran == [(2, "b"), (2, "c")]
    values = result.state["out"]
    assert list(values.values() if key else values) == ["a2", "b2", "c2"]
    assert [ledger.done for ledger in result._ledgers["out"]] == [3, 3, 3]
    records = await store.children(RunPath(run_id="x"))
    assert sorted((one.visit, one.position) for one in records) == [
        (visit, position) for visit in range(3) for position in range(3)
    ]


async def test_two_fan_outs_of_the_same_act_over_the_same_elements_do_not_collide():
    one = fan_out(upper, over="ns", key=str, into="one", limits=Limits(1))
    two = fan_out(upper, over="ns", key=str, into="two", limits=Limits(1))
    store = MemoryStore()
    app = Application(Graph.chain(one, two), store=store)
    await app.run({"ns": ["a"]}, id="x")
    assert ran == ["a", "a"]
    assert len(await store.children(RunPath(run_id="x"))) == 2


@dataclass
class Url:
    text: str
    seen: set[int]


async def test_elements_that_compare_equal_and_are_made_anew_are_the_same():
    def make() -> Any:
        return fan_out(
            length, over=lambda _: [Url("a", {1, 2, 3}), Url("b", {4})], reads=[],
            key="text", into="out", limits=Limits(1),
        )  # fmt: skip

    @action(reads=["item"], writes=["out"])
    async def length(item: Url) -> int:
        ran.append(item.text)
        if item.text in fails:
            raise ValueError(item.text)
        return len(item.seen)

    lives = Lives(make)
    await lives.fail([], "b")
    result = await lives.go_on()
    assert ran == ["b"]
    assert items(result) == [("a", 3), ("b", 1)]


# -- at_most and grow ------------------------------------------------------------------------------


async def test_at_most_counts_what_was_started_before():
    lives = Lives(lambda: mapping(at_most=3))
    await lives.fail("abcdef", "b")
    result = await lives.go_on(*"bfcdefa")  # a and b were started, so one more may be
    assert ran == ["b", "f"]
    assert dict(items(result)) == {"a": "A", "b": "B", "f": "F"}
    assert counts(result.outcomes("out")) == (3, 0, 0, 0)


async def test_what_was_started_and_did_not_end_well_is_forgotten_if_it_comes_up_too_late():
    """Nobody pulls an endless source to its end only to find it again."""
    lives = Lives(lambda: mapping(at_most=3))
    await lives.fail("abcdef", "b")
    result = await lives.go_on(*"fedcba")
    assert ran == ["f"]
    assert dict(items(result)) == {"a": "A", "f": "F"}
    assert counts(result.outcomes("out")) == (2, 0, 0, 0)


async def test_at_most_over_three_executions():
    lives = Lives(lambda: mapping(at_most=4))
    await lives.fail("abcdef", "b")
    await lives.fail("abcdef", "c")
    assert await lives.store.children(RunPath(run_id="x"))
    result = await lives.go_on(*"abcdef")
    assert ran == ["c", "d"]
    assert dict(items(result)) == {"a": "A", "b": "B", "c": "C", "d": "D"}


async def test_discovered_elements_come_back_in_every_way_to_discover_them():
    found: Mapping[str, str] = {"a": "bc", "b": "cd", "c": "ae", "d": "", "e": "f", "f": ""}

    def grow(_: State, outcome: Done) -> Iterable[str]:
        return list(found[outcome.element])

    def make() -> Any:
        return fan_out(
            upper, over=now, reads=[], key=number, into="out", grow=grow, limits=Limits(1)
        )  # fmt: skip

    for failing in "abcdef":
        lives = Lives(make)
        await lives.fail("a", failing)
        result = await lives.go_on("a")
        assert ran[0] == failing
        assert [key for key, _ in items(result)] == ["a", "b", "c", "d", "e", "f"]
        ran.clear()


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_kept_children_of_an_async_source_take_up_no_room(limit: int):
    async def slowly(_: State) -> AsyncIterator[str]:
        for item in elements:
            await checkpoint()
            yield item

    def make() -> Any:
        return fan_out(
            upper, over=slowly, reads=[], key=number, into="out", limits=Limits(limit)
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abcdefgh", "h")
    result = await lives.go_on(*"abcdefgh")
    assert [key for key, _ in items(result)] == list("abcdefgh")


@pytest.mark.parametrize("limit", [1, 3])
async def test_what_an_async_source_and_grow_both_give_runs_once(limit: int):
    found: Mapping[str, str] = {"a": "bc", "b": "ad", "c": "a", "d": "ef", "e": "a", "f": ""}

    async def slowly(_: State) -> AsyncIterator[str]:
        for item in "ad":
            await anyio.sleep(3)
            yield item

    def make() -> Any:
        return fan_out(
            upper, over=slowly, reads=[], key=number, into="out", limits=Limits(limit),
            grow=lambda state, outcome: list(found[outcome.element]),
        )  # fmt: skip

    for failing in "abcdef":
        lives = Lives(make)
        await lives.fail([], failing)
        done = {one.key for one in await lives.store.children(RunPath(run_id="x")) if one.applied}
        result = await lives.go_on()
        assert sorted(ran) == sorted(set("abcdef") - done)
        assert dict(items(result)) == {key: key.upper() for key in "abcdef"}
        ran.clear()


async def test_what_was_discovered_keeps_its_place_where_more_comes_from_over():
    def grow(_: State, outcome: Done) -> Iterable[str]:
        return [f"{outcome.element}1"] if len(outcome.element) == 1 else []

    def make() -> Any:
        return fan_out(
            upper, over=now, reads=[], into="out", grow=grow, limits=Limits(1)
        )  # fmt: skip

    uninterrupted = Lives(make)
    whole = await uninterrupted.go_on("a", "b", "c")
    for failing in ["a", "a1", "b", "b1", "c", "c1"]:
        lives = Lives(make)
        await lives.fail("abc", failing)
        result = await lives.go_on(*"abc")
        assert sorted(items(result)) == sorted(items(whole))
        positions = [one.position for one in await lives.store.children(RunPath(run_id="x"))]
        assert sorted(positions) == list(range(6))


# -- inputs minus outputs --------------------------------------------------------------------------


async def test_what_was_skipped_is_skipped_again_whatever_became_of_it():
    lives = Lives(mapping)
    await lives.fail(["a1", "b1", "c1", "d1"], "c1", out={"b": "there", "d": "too"})
    result = await lives.go_on("a1", "b2", "c1", "d1", out={"b": "there", "d": "too"})
    assert ran == ["c1"]
    assert items(result) == [("a", "A1"), ("b", "there"), ("c", "C1"), ("d", "too")]
    assert [(type(o), o.key) for o in result.outcomes("out")] == [(Skipped, "b"), (Skipped, "d")]


async def test_results_of_this_visit_are_not_what_was_there_from_the_start():
    lives = Lives(mapping)
    await lives.fail(["a1", "b1"], "b1")
    result = await lives.go_on("a1", "b1")
    assert counts(result.outcomes("out")) == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("again", "expected"),
    [(None, ["bc", "cabc", "c"]), (True, ["abc", "cabc", "c"]), (False, ["bc", "c"])],
)
async def test_again_means_the_same_after_a_crash(again: bool | None, expected: list[str]):
    """In each visit c fails at first: in the next life only that runs, before the next visit."""

    @action(reads=["turn"], writes=["turn"])
    async def next_turn(turn: int) -> int:
        return turn + 1

    @action(reads=["item", "turn"], writes=["out"])
    async def work(item: str, turn: int) -> str:
        ran.append(item)
        if (turn, item) in fails:
            fails.remove((turn, item))
            raise ValueError(item)
        return item.upper()

    step = fan_out(
        work, over=lambda _: list("abc"), reads=[], key=str, into="out", again=again,
        limits=Limits(1),
    )  # fmt: skip
    more = when(lambda turn: turn < 2)
    graph = Graph((step, next_turn), (next_turn, step, more), (next_turn, END), entry=step)
    app, lived = Application(graph, store=MemoryStore()), list[str]()
    fails.update(((0, "c"), (1, "c")))
    while True:
        ran.clear()
        try:
            result = await app.run({"turn": 0, "out": {"a": "A"}}, id="x")
        except ExceptionGroup:
            continue
        finally:
            lived.append("".join(ran))
        break
    assert lived == expected
    assert items(result) == [("a", "A"), ("b", "B"), ("c", "C")]


# -- own fan-outs ----------------------------------------------------------------------------------


def by_hand(end: str = "") -> Any:
    @action(writes=["found"], name="search")
    async def search(context: Context) -> dict[str, str]:
        ran.append("search")
        found: dict[str, str] = {}
        async with context.fan_out(name="tries", limits=Limits(1)) as group:
            group.start_each(two_steps, over=list(elements), key=number)
            async for outcome in group:
                found[str(outcome.key)] = (
                    outcome.value if isinstance(outcome, Done) else type(outcome).__name__
                )
        if "search" in fails:
            raise ExceptionGroup("search", [ValueError("search")])
        return found

    return search


async def test_an_action_runs_again_and_is_given_what_its_children_came_to():
    lives = Lives(by_hand)
    await lives.fail("abc", "search")
    result = await lives.go_on(*"abc")
    assert ran == ["search"]
    assert result.state["found"] == {"a": "A!", "b": "B!", "c": "C!"}
    assert counts(result.outcomes("search/tries")) == (3, 0, 0, 0)


async def test_its_failed_children_go_on_and_its_changed_ones_run_anew():
    lives = Lives(by_hand)
    await lives.fail(["a1", "b1", "c1"], "search", "again B1")
    elements[:] = ["a1", "b1", "c2", "d1"]
    result = await lives.run()
    assert ran == ["search", "again B1", "c2", "again C2", "d1", "again D1"]
    assert lives.reruns == ["c"]
    assert result.state["found"] == {"a": "A1!", "b": "B1!", "c": "C2!", "d": "D1!"}
    again = await lives.run()
    again.raise_for_failures()
    assert counts(again.outcomes("search/tries")) == counts(result.outcomes("search/tries"))


async def test_fan_outs_that_are_opened_in_some_visits_only_are_counted_for_those():
    @action(reads=["turn"], writes=["turn"])
    async def sometimes(turn: int, context: Context) -> int:
        if turn % 2:
            async with context.fan_out(name="odd") as group:
                group.start_each(upper, over=range(turn))
        return turn + 1

    graph = Graph((sometimes, sometimes, when(lambda turn: turn < 4)), (sometimes, END))
    app = Application(graph, store=MemoryStore())
    for _ in range(2):
        result = await app.run({"turn": 0}, id="x")
        assert [ledger.done for ledger in result._ledgers["sometimes/odd"]] == [0, 1, 0, 3]
        outcomes = [one async for one in result.all_outcomes("sometimes/odd", 3)]
        assert [one.element for one in outcomes] == [0, 1, 2]


# -- graphs as nodes -------------------------------------------------------------------------------


async def test_a_node_whose_input_changed_runs_anew():
    version = "1"

    def make() -> Any:
        @action(reads=["word"], writes=["out"], version=version)
        async def first(word: str) -> str:
            ran.append(f"first {version}")
            return word + version

        return Graph.chain(first, again, name="node")

    store = MemoryStore()

    def app() -> Application[Any]:
        return Application(Graph.chain(make(), name="app"), store=store, hooks=[hook])

    hook = RecordingHook()
    fails.add("again a1")
    with pytest.raises(ValueError, match="a1"):
        await app().run({"word": "a"}, id="x")
    fails.clear()
    version = "2"
    result = await app().run({"word": "a"}, id="x")
    assert ran == ["first 1", "again a1", "first 2", "again a2"]
    assert result.state["out"] == "a2!"
    assert [event.child.act for event in hook.of(ChildRerun)] == ["node"]
    hook.assert_paired()


# -- class forms -----------------------------------------------------------------------------------


async def test_tasks_are_found_by_act_and_key_or_position():
    class Tasks(ParallelAction):
        writes = ("told",)
        limits = Limits(1)
        keyed = True

        def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
            for item in elements:
                for act in (upper, lower):
                    yield Task(act, {"item": item}, key=number(item) if self.keyed else None)

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return tell(state, outcome)

    class Keyless(Tasks):
        keyed = False

    lives = Lives(Tasks)
    await lives.fail(["a1", "b1"], "lower b1")
    result = await lives.go_on("b1", "a1")
    assert ran == ["lower b1"]
    assert sorted(result.state["told"]) == ["a A1", "a a1", "b B1", "b b1"]
    lives = Lives(Keyless)
    ran.clear()
    await lives.fail(["a1", "b1"], "lower b1")
    elements[:] = ["b1", "a1"]
    with pytest.raises(InputChanged, match="key 0"):
        await lives.run()


async def test_states_of_an_async_generator_are_found_again():
    class States(MapStates):
        writes = ("told",)
        limits = Limits(1)

        def action(self, state: State, inputs: Mapping[str, Any]) -> Any:
            return two_steps

        async def states(
            self, state: State, inputs: Mapping[str, Any]
        ) -> AsyncIterator[Mapping[str, Any]]:
            for item in elements:
                await checkpoint()
                yield {"item": item}

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return tell(state, outcome)

    lives = Lives(States)
    await lives.fail("abc", "again B")
    result = await lives.go_on(*"abc")
    assert ran == ["again B", "c", "again C"]
    assert result.state["told"] == ["0 A!", "1 B!", "2 C!"]


# -- much of it ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.realtime
async def test_many_children_are_resumed_in_time_that_is_linear():
    """Nothing runs but what is missing, and each element takes as long among many as among few."""
    per_item = list[float]()
    for count in (5_000, 20_000):
        store = MemoryStore()
        failing = True

        @action(reads=["item"], writes=["out"])
        async def work(item: int) -> int:
            if failing and item == count - 1:  # noqa: B023
                raise ValueError
            ran.append(item)
            return item

        app = Application(
            fan_out(work, over="ns", key=int, into="out", limits=Limits(100)), store=store
        )
        with pytest.raises(ExceptionGroup):
            await app.run({"ns": range(count)}, id="x")
        assert len(ran) > count - 200
        failing = False
        missing = set(range(count)) - {
            one.key for one in await store.children(RunPath(run_id="x")) if one.applied
        }
        ran.clear()
        began = time.perf_counter()
        result = await app.run({"ns": range(count)}, id="x")
        per_item.append((time.perf_counter() - began) / count)
        assert set(ran) == missing
        assert len(result.state["out"]) == count
        ran.clear()
    assert per_item[1] < 2 * per_item[0]


async def test_a_store_that_can_not_name_the_children_ends_the_step():
    class Forgetful:
        def __init__(self) -> None:
            self.kept = MemoryStore()
            self.fails = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.kept, name)

        async def children(self, path: RunPath, step: str | None = None, visit: Any = None) -> Any:
            if self.fails and step is not None:
                raise OSError("cable")
            return await self.kept.children(path, step, visit)

    store = Forgetful()
    lives = Lives(mapping)
    lives.store = store  # pyright: ignore[reportAttributeAccessIssue]
    await lives.fail("ab", "b")
    store.fails = True
    with pytest.raises(StoreFailed, match=r"children of step 'out' of run x.*cable"):
        await lives.run()
    assert not ran
    store.fails = False
    assert items(await lives.go_on(*"ab")) == [("a", "A"), ("b", "B")]


async def test_being_cancelled_while_children_are_asked_for_leaves_the_run_resumable():
    class Slow:
        def __init__(self) -> None:
            self.kept = MemoryStore()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.kept, name)

        async def children(self, path: RunPath, step: str | None = None, visit: Any = None) -> Any:
            await anyio.sleep(10)
            return await self.kept.children(path, step, visit)

    lives = Lives(mapping)
    lives.store = Slow()  # pyright: ignore[reportAttributeAccessIssue]
    await lives.fail("ab", "b")
    with anyio.move_on_after(15):
        await lives.run()
    assert not ran
    assert items(await lives.go_on(*"ab")) == [("a", "A"), ("b", "B")]


async def test_attempts_are_remembered():
    @action(reads=["item"], writes=["out"])
    async def third_time_lucky(item: str, context: Context) -> str:
        if context.attempt < 3:
            raise ConnectionError
        return item

    each = Each(retry=Retry(3, on=ConnectionError))
    app = Application(
        fan_out(third_time_lucky, over="ns", key=str, into="out", each=each), store=MemoryStore()
    )
    result = await app.run({"ns": ["a"]}, id="x")
    for one in (result, await app.run(id="x")):
        assert [outcome.attempts async for outcome in one.all_outcomes("out")] == [3]


# -- breakers --------------------------------------------------------------------------------------


async def test_what_a_breaker_passes_over_keeps_its_completed_steps():
    """Skipped in one life, a child goes on in the next where it stood in the one before."""
    breaker = Each(breaker=Breaker(failures=1, cool_down=3600))

    def make() -> Any:
        return fan_out(two_steps, over=now, reads=[], key=number, into="out", limits=Limits(1))

    lives = Lives(make)
    await lives.fail(["a1", "b1"], "again B1")
    fails.add("x1")
    elements[:] = ["x1", "b1"]

    def stop(_: State) -> Iterable[str]:
        yield from elements
        raise ExceptionGroup("the source", [OSError()])

    with pytest.raises(ExceptionGroup, match="the source"):
        step = fan_out(
            two_steps, over=stop, reads=[], key=number, into="out", limits=Limits(1),
            each=breaker, on_error="collect",
        )  # fmt: skip
        graph = Graph.chain(step, name="app")
        await Application(graph, store=lives.store).run({}, id="x")
    records = {one.key: one for one in await lives.store.children(RunPath(run_id="x"))}
    assert records["b"].status == "skipped"
    assert "breaker open" in records["b"].reason
    ran.clear()
    fails.clear()
    result = await lives.go_on("a1", "b1")
    assert ran == ["again B1"]
    assert items(result) == [("a", "A1!"), ("b", "B1!")]


async def test_what_changed_and_was_passed_over_begins_anew():
    breaker = Each(breaker=Breaker(failures=1, cool_down=3600))

    def make() -> Any:
        return fan_out(two_steps, over=now, reads=[], key=number, into="out", limits=Limits(1))

    def stop(_: State) -> Iterable[str]:
        yield from elements
        raise ExceptionGroup("the source", [OSError()])

    lives = Lives(make)
    await lives.fail(["a1", "b1"], "again B1")
    fails.add("x1")
    elements[:] = ["x1", "b2"]
    step = fan_out(
        two_steps, over=stop, reads=[], key=number, into="out", limits=Limits(1),
        each=breaker, on_error="collect",
    )  # fmt: skip
    with pytest.raises(ExceptionGroup, match="the source"):
        await Application(Graph.chain(step, name="app"), store=lives.store).run({}, id="x")
    ran.clear()
    fails.clear()
    result = await lives.go_on("a1", "b2")
    assert ran == ["b2", "again B2"]
    assert items(result) == [("a", "A1!"), ("b", "B2!")]


# -- tried again, in the life after ----------------------------------------------------------------


def tried_again(
    inner: Callable[[], Any], *, take: str = "out", attempts: int = 3
) -> Callable[[], Any]:
    """A child whose only step is a fan-out, and which is tried again where that fails."""
    retry = Retry(attempts, on=(ValueError, TimeoutError, OSError), initial=1, jitter=0)

    def make() -> Any:
        child = Graph.chain(inner(), name="child")
        return fan_out(
            child, over=lambda _: [1], reads=[], key=str, into="outer", take=take,
            each=Each(retry=retry),
        )  # fmt: skip

    return make


class Patchy:
    """A store in memory that doesn't answer the first few times it is asked for a history."""

    def __init__(self) -> None:
        self.kept = MemoryStore()
        self.silent = 0
        self.depth = 0
        """How deep the runs are whose histories it doesn't give."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kept, name)

    async def read(self, path: RunPath, from_number: int = 0) -> Any:
        if self.silent and path.depth == self.depth:
            self.silent -= 1
            await anyio.sleep_forever()
        return await self.kept.read(path, from_number)


@pytest.mark.parametrize("silent", [1, 2, 3])
async def test_what_timed_out_while_its_history_was_read_is_read_by_the_next_attempt(silent: int):
    """Else that would begin at the entry, and completed steps would run again."""

    def inner() -> Any:
        return fan_out(
            two_steps, over=now, reads=[], key=number, into="out", timeout=1, limits=Limits(2)
        )  # fmt: skip

    lives = Lives(tried_again(inner))
    store = Patchy()
    lives.store = store  # pyright: ignore[reportAttributeAccessIssue]
    await lives.fail("ab", "again A", "again B")
    store.silent, store.depth = silent, 2
    elements[:] = "ab"
    result = await lives.run()
    assert sorted(ran) == ["again A", "again B"]
    assert result.state["outer"] == {"1": {"a": "A!", "b": "B!"}}
    assert store.silent == 0
    check_histories(store.kept)


@pytest.mark.parametrize("each", [None, Each(timeout=1)])
async def test_so_is_that_of_a_child_which_was_interrupted(each: Each | None):
    """Whatever interrupts it: its own time, or that its sibling fails."""

    @action(reads=["item"], writes=["out"])
    async def stumbles(item: str) -> str:
        ran.append("stumbles")
        if "stumbles" in fails or (each is None and ran.count("stumbles") == 1):
            raise ValueError
        return item

    def inner() -> Any:
        acts = [two_steps, stumbles]
        return fan_out(acts, over=now, reads=[], key=number, into="out", take="out", each=each)

    lives = Lives(tried_again(inner))
    store = Patchy()
    lives.store = store  # pyright: ignore[reportAttributeAccessIssue]
    await lives.fail("a", "again A", "stumbles")
    store.silent, store.depth = 1, 2
    elements[:] = "a"
    result = await lives.run()
    assert sorted(ran) == ["again A", "stumbles"] + ["stumbles"] * (each is None)
    assert store.silent == 0
    assert result.state["outer"] == {"1": {"a": {"both": "A!", "stumbles": "a"}}}
    check_histories(store.kept)


async def test_a_condition_that_fails_where_a_history_ends_is_asked_again():
    asked = list[str]()

    def ready(out: str) -> bool:
        asked.append(out)
        if len(asked) == 2:  # in the second life
            raise OSError
        return True

    def make() -> Any:
        child = Graph((upper, again, when(ready)), entry=upper, name="child")
        each = Each(retry=Retry(2, on=OSError))
        return fan_out(child, over=now, reads=[], key=number, into="out", take="out", each=each)

    lives = Lives(make)
    await lives.fail("a", "again A")
    result = await lives.go_on("a")
    assert ran == ["again A"]
    assert asked == ["A", "A", "A"]
    assert items(result) == [("a", "A!")]


async def test_a_child_that_was_cancelled_between_two_steps_goes_on_there():
    """A loop that never waits passes a checkpoint now and then, and may be cancelled at it."""
    turns = list[int]()

    @action(reads=["turn"], writes=["turn"])
    async def step(turn: int) -> int:
        turns.append(turn)
        return turn + 1

    @action(reads=["turn"], writes=["turn"])
    async def fails_once(turn: int) -> int:
        ran.append(turn)
        if len(ran) == 1:
            raise ValueError
        return turn

    @action(writes=["turn"])
    async def begin() -> int:
        return 0

    ways = (begin, step), (step, step, when(lambda turn: turn < 500)), (step, END)
    loop = Graph(*ways, entry=begin, name="loop")
    inner = fan_out([loop, fails_once], name="both", into="out", take="turn", limits=Limits(2))
    make = tried_again(lambda: inner)
    app = Application(make(), store=MemoryStore())
    result = await app.run({"turn": 0}, id="x")
    assert len(ran) == 2
    assert turns == list(range(500))
    assert result.state["outer"] == {"1": {"loop": 500, "fails_once": 0}}


async def test_what_changed_is_forgotten_once_however_often_it_is_tried():
    def inner() -> Any:
        return fan_out(two_steps, over=now, reads=[], key=number, into="out", take="out")

    lives = Lives(tried_again(inner, attempts=2))
    await lives.fail(["a1"], "again A1")
    fails.add("again A2")
    elements[:] = ["a2"]
    with pytest.raises(ExceptionGroup):
        await lives.run()
    assert ran == ["a2", "again A2", "again A2"]
    assert lives.reruns == ["a"]
    check_histories(lives.store)
    ran.clear()
    fails.clear()
    await lives.go_on("a2")
    assert ran == ["again A2"]
    check_histories(lives.store)


async def test_a_result_that_is_applied_by_a_later_attempt_is_saved_and_published_once():
    reduced = list[Any]()

    def reduce(state: State, outcome: Done | Failed) -> State:
        reduced.append(outcome.key)
        if len(reduced) == 1:
            raise ValueError
        return tell(state, outcome)

    def inner() -> Any:
        return fan_out(
            two_steps, over=now, reads=[], key=number, reduce=reduce, writes=["told"], name="fold"
        )  # fmt: skip

    lives = Lives(tried_again(inner, take="told"))
    elements[:] = "a"
    result = await lives.run()
    assert result.state["outer"] == {"1": ["a A!"]}
    assert ran == ["a", "again A"]
    check_histories(lives.store)
    told = [event.update.number for event in lives.hook.of(StateUpdated) if event.depth == 2]
    assert told == [1, 2]


async def test_a_recorded_result_that_can_not_be_applied_at_first_is_published_in_pairs():
    """Its child has nothing to do any more, so it has no step."""

    def inner() -> Any:
        return fan_out(
            two_steps, over=now, reads=[], key=number, reduce=reduce, writes=["told"], name="fold"
        )  # fmt: skip

    broken = 5

    def reduce(state: State, outcome: Done | Failed) -> State:
        nonlocal broken
        broken -= 1
        if broken >= 0:
            raise ValueError
        return tell(state, outcome)

    lives = Lives(tried_again(inner, take="told"))
    await lives.fail("a")
    result = await lives.go_on("a")
    assert ran == []
    assert result.state["outer"] == {"1": ["a A!"]}
    check_histories(lives.store)


async def test_collected_failures_count_in_later_attempts_too():
    """What is tolerated is counted over all attempts, as it is collected over all of them."""

    @action(reads=["item"], writes=["out"])
    async def moody(item: str) -> str:
        ran.append(item)
        if item == "a" or ran.count(item) == 1:
            raise ValueError(item)
        return item

    step = fan_out(
        moody, over=lambda _: list("abc"), reads=[], key=str, into="out", errors_into="errors",
        on_error=Tolerate(count=1), limits=Limits(1),
    )  # fmt: skip
    app = Application(tried_again(lambda: step, take="errors")(), store=MemoryStore())
    result = await app.run(id="x")
    assert ran == ["a", "b", "b", "c", "c"], "b and c were one too many, a never was"
    assert list(result.state["outer"]["1"]) == ["a"]


async def test_a_child_that_had_not_started_when_its_siblings_failed_takes_one_attempt():
    def inner() -> Any:
        return fan_out(
            upper, over=lambda _: list("ab"), reads=[], key=number, into="out",
            limits=Limits(rate=Rate(1, per=10)),
        )  # fmt: skip

    fails.add("a")
    store = MemoryStore()
    step = tried_again(inner)()
    hook = RecordingHook()

    class Better(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            fails.clear()

    app = Application(step, store=store, hooks=[hook, Better()])
    await app.run(id="x")
    hook.assert_paired()
    assert ran == ["a", "a", "b"]
    (child,) = await store.children(RunPath(run_id="x", act="out"))
    below = RunPath(
        parent=RunPath(run_id="x"), act="child", step=child.step, visit=0, key=child.key
    )
    assert {one.key: one.attempts for one in await store.children(below)} == {"a": 2, "b": 1}


# -- kept, and in another place --------------------------------------------------------------------


@pytest.mark.parametrize("store", ["inherit", None])
async def test_a_moved_child_stays_applied_though_the_step_fails_before_that_is_saved(store: Any):
    """Nothing but its place was to change."""
    options: dict[str, Any] = {} if store == "inherit" else {"store": store}

    def broken(_: State) -> Iterator[str]:
        yield from elements
        raise ExceptionGroup("the source", [OSError()])

    def make() -> Any:
        over, n = (broken, 3) if "source" in fails else (now, 1)
        return fan_out(
            upper, over=over, reads=[], key=number, into="out", limits=Limits(n), **options
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abc", "c")
    before = {one.key: one for one in await lives.store.children(RunPath(run_id="x"))}
    assert before["a"].applied
    fails.add("source")
    elements[:] = "ba"
    with pytest.raises(ExceptionGroup, match="the source"):
        await lives.run()
    after = {one.key: one for one in await lives.store.children(RunPath(run_id="x"))}
    assert after["a"] == before["a"]
    assert after["b"] == before["b"]
    assert lives.hook.of(ChildEnded) == []
    fails.clear()
    result = await lives.go_on(*"cba")
    assert ran == ["c"]
    assert items(result) == [("c", "C"), ("b", "B"), ("a", "A")]
    assert counts(result.outcomes("out")) == (3, 0, 0, 0)


async def test_a_moved_child_stays_applied_though_another_can_not_be_applied():
    @action(reads=["item"], writes=["out"])
    async def at_once(item: str) -> str:
        ran.append(item)
        if item in fails:
            raise ValueError(item)
        return item.upper()

    def grow(_: State, outcome: Done) -> Iterable[str]:
        if "grow" in fails and outcome.key == "d":
            raise ExceptionGroup("grow", [OSError()])
        return ()

    def make() -> Any:
        return fan_out(
            at_once, over=now, reads=[], key=number, into="out", grow=grow, limits=Limits(4)
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abc", "c")
    before = {one.key: one for one in await lives.store.children(RunPath(run_id="x"))}
    fails.add("grow")
    elements[:] = "dba"  # all of one batch, in which d is the first
    with pytest.raises(ExceptionGroup, match="grow"):
        await lives.run()
    assert ran == ["d"]
    after = {one.key: one for one in await lives.store.children(RunPath(run_id="x"))}
    assert (after["a"], after["b"]) == (before["a"], before["b"])
    assert [event.outcome.key for event in lives.hook.of(ChildEnded)] == ["d"]
    fails.clear()
    result = await lives.go_on(*"dba")
    assert ran == ["d"]
    assert items(result) == [("d", "D"), ("b", "B"), ("a", "A")]


async def test_a_moved_child_takes_its_place_in_the_next_attempt():
    given = 0
    """Elements that the source gives before it fails; the next time it gives all."""

    def source(_: State) -> Iterator[str]:
        nonlocal given
        before, given = given, len(elements)
        yield from elements[:before]
        if before < len(elements):
            raise OSError
        yield from elements[before:]

    def inner() -> Any:
        return fan_out(
            upper, over=source, reads=[], key=number, into="out", limits=Limits(3),
            on_error=Tolerate(share=0.3, after=4), errors_into="errors",
        )  # fmt: skip

    lives = Lives(tried_again(inner))
    given = 4
    await lives.fail("abcd", "c", "d")
    given = 2
    fails.add("e")
    elements[:] = "badce"
    result = await lives.run()
    assert ran == ["d", "c", "e"]
    assert list(result.state["outer"]["1"]) == ["b", "a", "d", "c"], "1 of 5 is tolerated"
    check_histories(lives.store)
    child = RunPath(parent=RunPath(run_id="x"), act="child", step="outer", visit=0, key="1")
    records = {one.key: one for one in await lives.store.children(child)}
    kept = [(records[key].status, records[key].used, records[key].position) for key in "ba"]
    assert kept == [("succeeded", True, 0), ("succeeded", True, 1)]


# -- reduced, and come no more ---------------------------------------------------------------------


async def test_a_reduced_failure_that_comes_no_more_counts_against_what_is_tolerated():
    """It is in the state, and can't be undone."""
    lives = Lives(lambda: folding(on_error=Tolerate(count=1)))
    await lives.fail("abcd", "b", "d")
    fails.add("d")
    elements[:] = "acd"
    with pytest.raises(ExceptionGroup) as raised:
        await lives.run()
    assert [str(error) for error in raised.value.exceptions] == ["b", "d"]
    fails.clear()
    result = await lives.go_on(*"acd")
    assert result.state["told"] == ["a A", "b failed", "c C", "d D"]
    assert counts(result.outcomes("fold")) == (3, 1, 0, 0)


async def test_what_was_reduced_and_comes_no_more_stays_and_what_was_not_is_forgotten():
    def make() -> Any:
        return fan_out(
            two_steps, over=now, reads=[], reduce=tell, writes=["told"], name="fold",
            limits=Limits(1),
        )  # fmt: skip

    lives = Lives(make)
    await lives.fail("abc", "again C")
    result = await lives.go_on("a")
    assert ran == []
    assert result.state["told"] == ["0 A!", "1 B!"]
    assert counts(result.outcomes("fold")) == (2, 0, 0, 0)
    assert [one.element async for one in result.all_outcomes("fold")] == ["a", "b"]
    histories = [await lives.store.read(RunPath(act="both", parent=RunPath(run_id="x"), step="fold",
        visit=0, key=key)) for key in range(3)]  # fmt: skip
    assert list(map(len, histories)) == [3, 3, 0], "of the third nothing is left"


# -- below a node ----------------------------------------------------------------------------------


async def test_the_children_of_a_node_s_fan_out_are_not_read_back():
    store = MemoryStore()
    inner = fan_out(upper, over=lambda _: list("ab"), reads=[], name="map")
    own = Graph.chain(Graph.chain(inner, name="node"), by_hand(), name="app")
    app = Application(own, store=store)
    elements[:] = "ab"
    result = await app.run(id="x")
    for one in (result, await app.run(id="x")):
        assert one.outcomes("node/map").done == 2
        with pytest.raises(BadUse, match=r"'map' is a fan-out of 'node'.*outcomes\('node/map'\)"):
            one.all_outcomes("node/map")
        assert len([outcome async for outcome in one.all_outcomes("search/tries")]) == 2


async def test_a_node_s_fan_out_without_children_is_remembered_too():
    store = MemoryStore()
    inner = fan_out(upper, over=lambda _: (), reads=[], reduce=tell, writes=["told"], name="map")
    app = Application(Graph.chain(Graph.chain(inner, name="node"), name="app"), store=store)
    result = await app.run(id="x")
    for one in (result, await app.run(id="x")):
        assert one.outcomes("node/map").total == 0
