"""Runs whose program has changed when they are resumed, in the middle of a fan-out.

Each change is either carried over, and then the run comes to what the changed program comes to by
itself, or refused with ``RunConflict``, and then the former program can still go on. The table in
``docs/changed-programs.md`` has the same rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Failed,
    Graph,
    Limits,
    MapStates,
    MemoryStore,
    ParallelAction,
    RunConflict,
    RunPath,
    SQLiteStore,
    State,
    StoreFailed,
    Task,
    Tolerate,
    action,
    fan_out,
    first,
    quorum,
)
from shoal.errors import BadUse
from shoal.stores import StepBegun, Store
from shoal.stores._protocol import Batch
from shoal.testing import RecordingHook
from shoal.types import Act, FanOut

pytestmark = pytest.mark.anyio

NS = [1, 2, 3, 4, 5]
End = Literal["failed", "cancelled", "killed"]
ENDS: tuple[End, ...] = ("failed", "cancelled", "killed")
life: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _first_life() -> None:
    life.clear()
    life.update(first=True, fails=False, calls=[])


# Steps that don't depend on each other, so that their order changes no result.


@action(reads=["n"], writes=["page"])
async def fetch(n: int) -> int:
    life["calls"].append(("fetch", n))
    await anyio.sleep(0.25 if life["first"] else 0)
    return n


async def _title(n: int) -> str:
    life["calls"].append(("title", n))
    if life["first"]:
        await anyio.sleep(n)
        if n == 3 and life["fails"]:
            raise OSError("three is bad")
    return f"title {n}"


parse = action(reads=["n"], writes=["title"], name="parse")(_title)
parse_2 = action(reads=["n"], writes=["title"], name="parse", version="2")(_title)
title = action(reads=["n"], writes=["title"], name="title")(_title)
page = action(writes=["title"], name="page")(_title)


@action(reads=["n"], writes=["size"])
async def measure(n: int) -> int:
    return n * n


@action(reads=["n"], writes=["title"])
async def negative(n: int) -> str:
    return f"minus {n}"


@action(writes=["started"])
async def start() -> bool:
    return True


@action(writes=["between"])
async def between() -> bool:
    return True


@action(reads=["out"], writes=["last"])
async def last(out: Any) -> int:
    return len(out)


def chain(*acts: Act, name: str | None = None) -> Graph:
    return Graph.chain(*acts, name=name)


def fan(act: Any = None, **how: Any) -> Act:
    """A fan-out of two steps for each element; ``how`` says what is another way."""
    given: dict[str, Any] = {
        "key": str, "into": "out", "take": "title", "name": "fan", "limits": Limits(3), **how,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    return fan_out(chain(fetch, parse) if act is None else act, over="ns", item="n", **given)


def pages(*numbers: int, **how: Any) -> Act:
    """A fan-out of an act for each number, without elements."""
    acts = [page.bind(name=f"page {n}", n=n) for n in numbers]
    given: dict[str, Any] = {
        "into": "out", "take": "title", "name": "fan", "limits": Limits(3), **how,
    }  # fmt: skip
    return fan_out(acts, **given)


def joined(state: State, outcome: Done | Failed) -> State:
    return state.put("sums", outcome.key, 1) if isinstance(outcome, Done) else state


def reducing(act: Any = None, **how: Any) -> Act:
    return fan(act, **{"into": None, "reduce": joined, "writes": ["sums"], **how})


def further(_state: State, outcome: Done) -> Iterable[int]:
    return [outcome.element + 10] if outcome.element < 3 else []


def collecting(errors_into: str, **how: Any) -> Act:
    return fan(on_error="collect", errors_into=errors_into, **how)


def titled(state: State) -> str:
    return state["title"]


def prefixed(n: int) -> str:
    return f"k{n}"


def never(_state: State, _outcome: Any) -> bool:
    return False


def chosen(act: Act) -> Act:
    def choose(_: State) -> Act:
        return act

    return fan(choose, reads=[])


class Tasks(ParallelAction):
    """Makes a task for each element, of each of its acts."""

    reads = ("ns", "sums")
    writes = ("sums",)
    name = "fan"
    limits = Limits(3)

    def __init__(self, *acts: Act, key: Callable[[int], str] = str) -> None:
        self.acts, self.key = acts, key

    def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
        for act in self.acts:
            for n in state["ns"]:
                yield Task(act, {"n": n}, key=self.key(n), element=n)

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return state.put("sums", f"{outcome.act} {outcome.key}", 1)


class Mapped(MapStates):
    """The same with one act, and without keys."""

    reads = ("ns", "sums")
    writes = ("sums",)
    name = "fan"
    limits = Limits(3)

    def __init__(self, act: Act) -> None:
        self.act = act

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return self.act

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for n in state["ns"]:
            yield {"n": n}

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return joined(state, outcome)


def by_hand(act: Act, name: str = "tries") -> Act:
    @action(reads=["ns"], writes=["out"], name="search")
    async def search(ns: Sequence[int], context: Context) -> dict[str, Any]:
        found: dict[str, Any] = {}
        async with context.fan_out(name=name, limits=Limits(3)) as group:
            for n in ns:
                group.start(act, {"n": n}, key=str(n))
            async for outcome in group:
                if not isinstance(outcome, Done):
                    raise outcome.error if isinstance(outcome, Failed) else OSError("cancelled")
                found[str(outcome.key)] = outcome.state["title"]
        return dict(sorted(found.items()))

    return search


class Change(NamedTuple):
    """What a program was, what it is now, and what comes of that."""

    before: Callable[[], Act]
    after: Callable[[], Act]
    comes: str
    """``kept``: what is done isn't run again; ``anew``: it is; else what the refusal says."""
    only: tuple[End, ...] = ENDS


CARRIED: dict[str, Change] = {
    "nothing": Change(fan, fan, "kept"),
    # acts
    "act renamed": Change(lambda: fan(parse), lambda: fan(title), "anew"),
    "act renamed, without keys": Change(
        lambda: fan(parse, key=None), lambda: fan(title, key=None), "anew"
    ),
    "act with another version": Change(lambda: fan(parse), lambda: fan(parse_2), "anew"),
    "act with a step before it": Change(lambda: fan(parse), fan, "anew"),
    "act chosen by a function, renamed": Change(
        lambda: chosen(parse), lambda: chosen(title), "anew"
    ),
    "unnamed chain with a step added": Change(
        fan, lambda: fan(chain(fetch, measure, parse)), "anew"
    ),
    "unnamed chain with a step removed": Change(fan, lambda: fan(chain(parse)), "anew"),
    "unnamed chain with a step renamed": Change(fan, lambda: fan(chain(fetch, title)), "anew"),
    "unnamed chain in another order": Change(fan, lambda: fan(chain(parse, fetch)), "kept"),
    "unnamed chain that is given a name": Change(
        fan, lambda: fan(chain(fetch, parse, name="page")), "kept"
    ),
    "named chain with a step added": Change(
        lambda: fan(chain(fetch, parse, name="page")),
        lambda: fan(chain(fetch, measure, parse, name="page")),
        "anew",
    ),
    "named chain with a step removed": Change(
        lambda: fan(chain(fetch, parse, name="page")),
        lambda: fan(chain(parse, name="page")),
        "anew",
    ),
    "named chain in another order": Change(
        lambda: fan(chain(fetch, parse, name="page")),
        lambda: fan(chain(parse, fetch, name="page")),
        "kept",
    ),
    "named chain renamed": Change(
        lambda: fan(chain(fetch, parse, name="page")),
        lambda: fan(chain(fetch, parse, name="site")),
        "kept",
    ),
    "acts with one more": Change(lambda: fan([parse]), lambda: fan([parse, negative]), "kept"),
    "acts with one more in front, without keys": Change(
        lambda: fan([parse], key=None), lambda: fan([negative, parse], key=None), "kept"
    ),
    "acts with one more, without keys": Change(
        lambda: fan([parse], key=None), lambda: fan([parse, negative], key=None), "kept"
    ),
    "acts in another order": Change(
        lambda: fan([parse, negative]), lambda: fan([negative, parse]), "kept"
    ),
    "acts in another order, without keys": Change(
        lambda: fan([parse, negative], key=None), lambda: fan([negative, parse], key=None), "kept"
    ),
    "acts without elements, with one more": Change(
        lambda: pages(*NS), lambda: pages(*NS, 6), "kept"
    ),
    "acts without elements, with one more in front": Change(
        lambda: pages(*NS), lambda: pages(6, *NS), "kept"
    ),
    "acts without elements, in another order": Change(
        lambda: pages(*NS), lambda: pages(5, 4, 2, 3, 1), "kept"
    ),
    "one act, which becomes two that are reduced": Change(
        lambda: reducing(parse), lambda: reducing([parse, negative]), "kept"
    ),
    # what becomes of results
    "failures collected": Change(fan, lambda: collecting("bad"), "kept"),
    "failures ignored": Change(fan, lambda: fan(on_error="ignore"), "kept"),
    "failures that were ignored, not any more": Change(lambda: fan(on_error="ignore"), fan, "kept"),
    "failures collected as before": Change(
        lambda: collecting("bad"), lambda: collecting("bad"), "kept"
    ),
    "grow= removed": Change(lambda: fan(grow=further), fan, ""),
    "until= a number, removed": Change(lambda: fan(until=first(4)), fan, "kept"),
    "until= a function, removed": Change(lambda: fan(until=never), fan, "kept"),
    "until= a function, added": Change(fan, lambda: fan(until=never), "kept"),
    "at_most= added": Change(fan, lambda: fan(at_most=5), "kept"),
    "limits= changed": Change(fan, lambda: fan(limits=Limits(1)), "kept"),
    # the graph around it
    "another step behind it": Change(
        lambda: chain(start, fan()), lambda: chain(start, fan(), last), "kept"
    ),
    "no step behind it": Change(
        lambda: chain(start, fan(), last), lambda: chain(start, fan()), "kept"
    ),
    # fan-outs as classes, and those of an action
    "class as before": Change(lambda: Tasks(parse), lambda: Tasks(parse), "kept"),
    "class with an act added behind": Change(
        lambda: Tasks(parse), lambda: Tasks(parse, negative), "kept"
    ),
    "class without keys": Change(lambda: Mapped(parse), lambda: Mapped(parse), "kept"),
    "an action's own, as before": Change(lambda: by_hand(parse), lambda: by_hand(parse), "kept"),
    "an action's own, renamed": Change(
        lambda: by_hand(parse), lambda: by_hand(parse, "others"), "anew"
    ),
    "an action's own, of another act": Change(
        lambda: by_hand(parse), lambda: by_hand(title), "anew"
    ),
}
REFUSED: dict[str, Change] = {
    "one act becomes a list": Change(
        lambda: fan(parse),
        lambda: fan([parse]),
        "went into 'out' by key, and go into 'out' by key and",
    ),
    "a list becomes one act": Change(
        lambda: fan([parse]),
        lambda: fan(parse),
        "went into 'out' by key and act, and go into 'out' by key",
    ),
    "a list becomes one act of another name": Change(
        lambda: fan([parse]),
        lambda: fan(title),
        "went into 'out' by key and act, and go into 'out' by key",
    ),
    "act of a list removed": Change(
        lambda: fan([parse, negative]),
        lambda: fan([negative]),
        "acts with results, 'parse', which are not among its acts now, 'negative'",
    ),
    "act of a list renamed": Change(
        lambda: fan([parse, negative]),
        lambda: fan([title, negative]),
        "acts with results, 'parse', which are not among its acts now, 'negative', 'title'",
    ),
    "unnamed chain of a list with a step added": Change(
        lambda: fan([chain(fetch, parse), negative]),
        lambda: fan([chain(fetch, measure, parse), negative]),
        "acts with results, 'fetch+parse', which are not among its acts now, "
        "'fetch+measure+parse', 'negative'",
    ),
    "another field": Change(
        fan, lambda: fan(into="results"), "into 'out' by key, and go into 'results' by key now"
    ),
    "a list": Change(
        fan, lambda: fan(key=None), "went into 'out' by key, and go into 'out' by position now"
    ),
    "a mapping": Change(
        lambda: fan(key=None), fan, "went into 'out' by position, and go into 'out' by key now"
    ),
    "into= becomes reduce=": Change(
        fan, reducing, "its results went into 'out' by key, and go to reduce= now"
    ),
    "reduce= becomes into=": Change(reducing, fan, "went to reduce=, and go into 'out' by key now"),
    "into= removed": Change(
        fan, lambda: fan(into=None), "went into 'out' by key, and go nowhere but into outcomes now"
    ),
    "into= added": Change(
        lambda: fan(into=None), fan, "went nowhere but into outcomes, and go into 'out' by key now"
    ),
    "reduce= removed": Change(
        reducing, lambda: fan(into=None), "went to reduce=, and go nowhere but into outcomes now"
    ),
    "reduce= added": Change(
        lambda: fan(into=None), reducing, "went nowhere but into outcomes, and go to reduce= now"
    ),
    "take= changed": Change(fan, lambda: fan(take="page"), "take= was 'title' and is 'page' now"),
    "take= becomes a function": Change(
        fan, lambda: fan(take=titled), "take= was 'title' and is a function"
    ),
    "key= another function": Change(
        fan, lambda: fan(key=prefixed), "had the key '1', and now it has 'k1'"
    ),
    "key= removed, reduced": Change(
        reducing, lambda: reducing(key=None), "told apart with key=, and now without"
    ),
    "key= added, reduced": Change(
        lambda: reducing(key=None), reducing, "told apart without key=, and now with it"
    ),
    "errors_into= renamed": Change(
        lambda: collecting("bad"),
        lambda: collecting("worse"),
        "it collected failures into 'bad', and now it collects them into 'worse'",
    ),
    "errors_into= removed": Change(
        lambda: collecting("bad"), fan, "failures into 'bad', and now it collects them into no"
    ),
    "grow= added": Change(
        fan, lambda: fan(grow=further), "it had no grow=, so results that are there have brought no"
    ),
    "several acts where grow= has found elements": Change(
        lambda: fan([parse], grow=further),
        lambda: fan([parse, negative], grow=further),
        "it had 1 acts for each element that grow= returned, and now 2",
    ),
    "until= all becomes one": Change(
        fan, lambda: fan(until=first()), "went into 'out' by key, and go into 'out' now"
    ),
    "until= all becomes some": Change(
        fan, lambda: fan(until=first(4)), "until= was all and is first(4) now"
    ),
    "acts with one more, of which some count": Change(
        lambda: fan([parse], until=first(4)),
        lambda: fan([parse, negative], until=first(4)),
        "it had the acts 'parse', and now it has 'parse', 'negative'",
    ),
    "acts without elements, in another order, of which some count": Change(
        lambda: pages(1, 2, 3, until=first(3)),
        lambda: pages(2, 1, 3, until=first(3)),
        "it had the acts 'page 1', 'page 2', 'page 3', and now it has 'page 2', 'page 1',",
    ),
    "until= some become more": Change(
        lambda: fan(until=first(4)),
        lambda: fan(until=first(5)),
        "until= was first(4) and is first(5)",
    ),
    "until= some becomes a quorum": Change(
        lambda: fan(until=first(4)),
        lambda: fan(until=quorum(2, by=bool)),
        "went into 'out' by key, and go into 'out' now",
    ),
    "act renamed, reduced": Change(
        lambda: reducing(parse), lambda: reducing(title), "('parse', now 'title')"
    ),
    "unnamed chain with a step added, reduced": Change(
        reducing, lambda: reducing(chain(fetch, measure, parse)), "('fetch+parse', now 'fetch+mea"
    ),
    "one act becomes two others that are reduced": Change(
        lambda: reducing(parse),
        lambda: reducing([title, negative]),
        "acts with results, 'parse', which are not among its acts now, 'negative', 'title'",
    ),
    "fan-out renamed": Change(fan, lambda: fan(name="other"), "was in the middle of step 'fan', "),
    "fan-out renamed with its field": Change(
        lambda: fan(name=None),
        lambda: fan(name=None, into="results"),
        "was in the middle of step 'out', ",
    ),
    "fan-out moved into a node": Change(
        fan, lambda: chain(chain(fan(), name="node"), last), "was in the middle of step 'fan', "
    ),
    "fan-out moved out of a node": Change(
        lambda: chain(chain(fan(), name="node"), last),
        lambda: chain(fan(), last),
        "was in the middle of step 'node', ",
    ),
    "class becomes a fan-out": Change(
        lambda: Tasks(parse), lambda: fan(parse), "went to reduce=, and go into 'out' by key now"
    ),
    "a step before it": Change(
        lambda: chain(start, fan()),
        lambda: chain(start, between, fan()),
        "was in the middle of step 'fan', where 'between' comes in",
    ),
    "a step before those that are completed": Change(
        lambda: chain(start, fan()),
        lambda: chain(between, start, fan()),
        "has completed the step 'start' to begin with, where ",
    ),
    "step before it removed": Change(
        lambda: chain(start, fan()),
        lambda: chain(fan()),
        "has completed the step 'start', which 'fan' does not have any more",
    ),
    "steps that are completed in another order": Change(
        lambda: chain(start, between, fan()),
        lambda: chain(between, start, fan()),
        "has completed the step 'start' to begin with, where ",
    ),
    "class with its act renamed": Change(
        lambda: Tasks(parse), lambda: Tasks(title), "key '1', was of act 'parse', and now it is of"
    ),
    "class with an act in front": Change(
        lambda: Tasks(parse), lambda: Tasks(negative, parse), "what was added stands behind"
    ),
    "class with another key": Change(
        lambda: Tasks(parse),
        lambda: Tasks(parse, key=prefixed),
        "had the key '1', and now it has 'k1'",
    ),
    "class without keys, its act renamed": Change(
        lambda: Mapped(parse), lambda: Mapped(title), "key 0, was of act 'parse', and now it is of"
    ),
}


class Dying:
    """A store whose process dies after a while: nothing is kept any more."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store, self._until = store, anyio.current_time() + seconds

    def save(self, batch: Batch) -> Any:
        if anyio.current_time() > self._until:
            raise OSError("the process is dead")
        return self._store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def began(act: Act, store: Any, end: End) -> None:
    """Have a run end in the middle of its fan-out: 1 and 2 are done, others are under way."""
    life["fails"] = end == "failed"
    # Late, as time passes as it does on the wall while a thread saves the second result.
    kept: Any = Dying(store, 2.9) if end == "killed" else store
    app = Application(act, store=kept, name="app")
    with (
        suppress(ExceptionGroup, OSError, StoreFailed),
        anyio.move_on_after({"failed": 3.5, "cancelled": 2.9, "killed": 9}[end]),
    ):
        await app.run(given(), id="x")
        raise AssertionError("it was to be interrupted")
    life["first"] = False
    life["calls"].clear()


def given() -> dict[str, Any]:
    return {"ns": NS, "sums": {}, "count": 0}


async def children(store: Store, step: str = "fan") -> list[Any]:
    return list(await store.children(RunPath(run_id="x"), step))


def store_of(kind: str, path: Path) -> Any:
    return (
        MemoryStore() if kind == "memory" else SQLiteStore(path / "runs.db", synchronous="normal")
    )


def cases(changes: Mapping[str, Change]) -> list[Any]:
    return [
        pytest.param(name, end, id=f"{name}-{end}")
        for name, change in changes.items()
        for end in change.only
    ]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(("change", "end"), cases(CARRIED))
async def test_what_is_carried_over_comes_to_what_the_changed_program_comes_to(
    change: str, end: End, kind: str, tmp_path: Path
):
    before, after, comes, _ = CARRIED[change]
    store = store_of(kind, tmp_path)
    await began(before(), store, end)
    result = await Application(after(), store=store, name="app").run(id="x")
    calls = Counter(n for what, n in life["calls"] if what == "title")
    if comes:
        assert {n: calls[n] for n in NS[:2]} == dict.fromkeys(NS[:2], int(comes == "anew"))
    assert all(count == 1 for n, count in calls.items() if n < 10), "nothing is run twice"
    if change == "grow= removed":  # what it had returned before that still comes
        assert result.state["out"] == {str(n): f"title {n}" for n in (*NS, 11, 12)}
        return
    clean = await Application(after(), name="app").run(given())
    assert result.state.to_plain() == clean.state.to_plain()
    assert list(result.state.get("out", "")) == list(clean.state.get("out", "")), "in input order"
    if "action's own" not in change:
        assert result.outcomes("fan").done == clean.outcomes("fan").done
        kept = await children(store)
        assert {record.status for record in kept} == {"succeeded"}
        assert len(kept) == len({(one.act, one.key) for one in kept}) == clean.outcomes("fan").done
    again = await Application(after(), store=store, name="app").run(id="x")
    assert again.state.to_plain() == clean.state.to_plain()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(("change", "end"), cases(REFUSED))
async def test_what_is_not_carried_over_is_refused_and_the_former_program_goes_on(
    change: str, end: End, kind: str, tmp_path: Path
):
    before, after, message, _ = REFUSED[change]
    store = store_of(kind, tmp_path)
    await began(before(), store, end)
    changed = Application(after(), store=store, name="app")
    said = set[str]()
    for _ in range(2):
        with pytest.raises(RunConflict) as caught:
            await changed.run(id="x")
        assert message in str(caught.value)
        said.update(re.findall(r"with fork\('x', number=(\d)\)", str(caught.value)))
    (advised,) = said
    forked = await changed.fork("x", number=int(advised))
    clean = await Application(after(), name="app").run(given())
    if not change.startswith("until=") and "of which some count" not in change:
        present = {*clean.state.to_plain()} - ({"started"} if "step before it" in change else set())
        assert {name: forked.state.get(name) for name in present} == {
            name: clean.state[name] for name in present
        }
    forked = await changed.fork("x", id="y", number=0)
    assert forked.status == "succeeded"
    result = await Application(before(), store=store, name="app").run(id="x")
    clean = await Application(before(), name="app").run(given())
    if "until= some" in change or "of which some count" in change:
        # The first of more children count, and the store's threads decide which come first.
        assert len(result.state["out"]) == len(clean.state["out"])
        found = {**result.state.to_plain()["out"]}
        expected = {**clean.state.to_plain()["out"]}
        assert {name: found.get(name, one) for name, one in expected.items()} == expected
    else:
        assert result.state.to_plain() == clean.state.to_plain()


@pytest.mark.parametrize("older", [False, True])
async def test_what_was_folded_is_not_folded_once_more_by_a_fork(older: bool):
    store: Any = Older(MemoryStore()) if older else MemoryStore()

    def counted(state: State, _outcome: Any) -> State:
        return state.increment(count=1)

    def program() -> Act:
        return chain(start, reducing(parse, reduce=counted, writes=["count"]))

    await began(program(), store, "failed")
    app = Application(program(), store=store, name="app")
    forked = await app.fork("x")
    assert (forked.state["count"], forked.state["started"]) == (5, True)
    with pytest.raises(BadUse, match=r"in the middle of fan-out 'fan'.*fork\('x', number=1\)"):
        await app.fork("x", number=2)
    assert (await app.fork("x", number=1)).state["count"] == 5
    assert (await app.run(id="x")).state["count"] == 5


async def test_a_fork_that_could_not_begin_is_refused_before_there_is_one():
    """Else its own conflict would advise a fork of itself, which could not begin either."""
    store = MemoryStore()
    await began(chain(start, fan()), store, "failed")
    changed = Application(chain(between, fan()), store=store, name="app")
    for begin in (lambda: changed.run(id="x"), lambda: changed.fork("x")):
        with pytest.raises(RunConflict) as caught:
            await begin()
        assert "give it its old name with name=" in str(caught.value)
        assert "fork('x', number=0)" in str(caught.value)
    assert [one.run_id for one in await store.runs()] == ["x"]
    assert (await changed.fork("x", number=0)).status == "succeeded"


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (lambda: chain(start, collecting("worse"), last), "failures into 'bad', and now"),
        (lambda: chain(start, collecting("bad", into="others")), "go into 'others' by key now"),
        (lambda: chain(between, collecting("bad"), last), "completed the step 'start'"),
    ],
)
async def test_a_retry_that_is_refused_leaves_the_run_as_it_was(
    after: Callable[[], Act], says: str
):
    store, life["fails"] = MemoryStore(), True
    root = RunPath(run_id="x")
    before = Application(chain(start, collecting("bad"), last), store=store, name="app")
    came_to = await before.run(given(), id="x")
    history = await store.read(root)
    changed = Application(after(), store=store, name="app")
    life["first"] = False
    for _ in range(2):
        with pytest.raises(RunConflict) as caught:
            await changed.retry_failed("x")
        assert says in str(caught.value)
        assert "with fork('x', number=" in str(caught.value)
    assert [one.status for one in await store.runs()] == ["succeeded"]
    assert await store.read(root) == history
    assert (await changed.run(id="x")).state == came_to.state
    assert (await before.retry_failed("x")).state["last"] == 5


async def test_an_application_without_a_name_goes_on_under_the_name_that_was_made_up():
    def app(*acts: Act, name: str | None = None) -> Application[Any]:
        return Application(chain(*acts), store=store, name=name)

    store, life["fails"] = MemoryStore(), True
    with pytest.raises(ExceptionGroup):
        await app(start, fan()).run(given(), id="x")
    life["first"] = False
    with pytest.raises(RunConflict) as caught:
        await app(start, fan(), last).run(id="x")
    assert "old name: Application(..., name='start+fan')" in str(caught.value)
    result = await app(start, fan(), last, name="start+fan").run(id="x")
    assert result.state["last"] == 5


async def test_failures_that_a_later_program_has_collected_are_retried():
    store = MemoryStore()
    await began(fan(), store, "failed")
    life["first"] = True  # three is still bad
    collects = Application(collecting("bad"), store=store, name="app")
    result = await collects.run(id="x")
    assert dict(result.state["out"]) == {str(n): f"title {n}" for n in NS if n != 3}
    assert [info.message for info in result.state["bad"].values()] == ["three is bad"]
    life["first"] = False
    result = await collects.retry_failed("x")
    assert dict(result.state["out"]) == {str(n): f"title {n}" for n in NS}
    assert dict(result.state["bad"]) == {}


@pytest.mark.parametrize("is_list_then", [False, True])
async def test_failures_that_were_reduced_are_refused_where_they_are_collected_in_another_form(
    is_list_then: bool,
):
    """They stay in errors_into=, which has them by key and act if acts are a list."""

    def program(*, is_list: bool) -> Application[Any]:
        act = [parse] if is_list else parse
        graph = reducing(act, on_error="collect", errors_into="bad")
        return Application(graph, store=store, name="app")

    store = MemoryStore()
    await began(program(is_list=is_list_then).graph, store, "failed")
    how = "by key" if is_list_then else "by key and act"
    with pytest.raises(RunConflict, match=f"it did not collect failures into 'bad' {how},"):
        await program(is_list=not is_list_then).run(id="x")
    result = await program(is_list=is_list_then).run(id="x")
    assert list(result.state["bad"]) == ["3"]


async def test_what_is_declared_is_kept_with_what_is_saved_first_and_again_where_it_has_changed():
    store = MemoryStore()
    await began(fan(), store, "failed")
    root = RunPath(run_id="x")

    async def said() -> list[StepBegun]:
        return [one for one in await store.read(root) if isinstance(one, StepBegun)]

    (first_said,) = await said()
    assert first_said.step == "fan"
    assert first_said.declared["acts"] == ["fetch+parse"]
    assert first_said.declared["until"] == "all"
    await Application(fan(at_most=9), store=store, name="app").run(id="x")
    assert await said() == [first_said]
    life["first"], store = True, MemoryStore()
    await began(fan(), store, "failed")
    await Application(fan(parse, until=never), store=store, name="app").run(id="x")
    assert [one.declared["until"] for one in await said()] == ["all", "a function"]


@pytest.mark.parametrize("tolerance", ["fail", "collect", "ignore", Tolerate(count=9)])
async def test_a_conflict_inside_of_a_child_refuses_the_run(tolerance: Any):
    """As a failure of that child it would be tolerated, and recorded as what the child came to."""

    @action(reads=["n"], writes=["m"])
    async def work(n: int) -> int:
        if n == 2 and life["first"]:
            await anyio.sleep(3600)
        return n

    def outer(**inner: Any) -> FanOut:
        each = fan_out(work, over="ns", item="n", key=int, name="inner", limits=Limits(1), **inner)
        graph = Graph.chain(each, close, name="both")
        return fan_out(
            graph, over="names", item="name", key=str, into="all", take="closed",
            on_error=tolerance, name="outer", reads=["ns", "names"],
        )  # fmt: skip

    @action(writes=["closed"])
    async def close() -> bool:
        return True

    def total(state: State, outcome: Done) -> State:
        return state.increment(out=outcome.value)

    life["first"], store = True, MemoryStore()
    collects = Application(outer(into="out", take="m"), store=store, name="app")
    with anyio.move_on_after(1):
        await collects.run({"ns": [1, 2], "names": ["a"]}, id="x")
    life["first"] = False
    reduces = Application(outer(reduce=total, writes=["out"]), store=store, name="app")
    with pytest.raises(RunConflict, match="fan-out 'inner'"):
        await reduces.run(id="x")
    result = await collects.run(id="x")
    assert dict(result.state["all"]) == {"a": True}


class Older:
    """A store as earlier versions wrote it: without what steps declare."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def save(self, batch: Batch) -> Any:
        return self._store.save(batch._replace(step_begun=None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


NEEDS_DECLARED = frozenset(
    (  # what nothing else that is kept tells apart
        "reduce= added", "take= changed", "take= becomes a function", "key= removed, reduced",
        "key= added, reduced", "grow= added", "until= all becomes some", "until= some become more",
        "acts with one more, of which some count",
        "acts without elements, in another order, of which some count",
        "several acts where grow= has found elements",
    )
)  # fmt: skip


@pytest.mark.parametrize("change", sorted({*CARRIED, *REFUSED} - NEEDS_DECLARED))
async def test_what_earlier_versions_have_kept_is_taken_up_and_refused_as_well(change: str):
    before, after, comes, _ = {**CARRIED, **REFUSED}[change]
    store: Any = Older(MemoryStore())
    await began(before(), store, "failed")
    changed = Application(after(), store=store, name="app")
    if change in REFUSED:
        with pytest.raises(RunConflict):
            await changed.run(id="x")
        result, program = await Application(before(), store=store, name="app").run(id="x"), before
    else:
        result, program = await changed.run(id="x"), after
    if comes:
        clean = await Application(program(), name="app").run(given())
        assert result.state.to_plain() == clean.state.to_plain()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("until", "now", "says"),
    [
        (first(), {"until": None, "into": None}, "until= was first(1) and is all now"),
        (first(2), {"until": None}, "until= was first(2) and is all now"),
        (first(2), {"until": first(3)}, "until= was first(2) and is first(3) now"),
    ],
)
async def test_what_was_decided_is_refused_where_something_else_ends_the_step(
    until: Any, now: dict[str, Any], says: str, older: bool
):
    inner = MemoryStore()

    def save(batch: Batch) -> None:
        inner.save(batch._replace(step_begun=None) if older else batch)
        if batch.decision is not None:
            raise OSError("the process is dead")

    store: Any = Older(inner)
    store.save = save
    with pytest.raises(StoreFailed):
        await Application(fan(until=until), store=store, name="app").run(given(), id="x")
    life["first"] = False
    with pytest.raises(RunConflict) as caught:
        await Application(fan(**now), store=inner, name="app").run(id="x")
    assert says in str(caught.value).replace("a race with 1 winners", "first(1)").replace(
        "a race with 2 winners", "first(2)"
    )
    result = await Application(fan(until=until), store=inner, name="app").run(id="x")
    assert result.status == "succeeded"


def test_the_documentation_has_the_same_rows():
    page = Path(__file__).parents[2] / "docs" / "changed-programs.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    said = {
        name: row[1].startswith("refused")
        for row in rows
        if row[0] not in ("| change", "| ---")
        for name in row[0].removeprefix("| ").split("; ")
    }
    assert said == {**dict.fromkeys(CARRIED, False), **dict.fromkeys(REFUSED, True)}


NOTHING_IS_KEPT: dict[str, tuple[Callable[[], Act], Callable[[], Act]]] = {
    "take=, and the act": (lambda: fan(parse), lambda: fan(chain(fetch, title), take="page")),
    "grow=, and the act": (lambda: fan(parse), lambda: fan(title, grow=further)),
    "until=, and the act": (lambda: fan(parse), lambda: fan(title, until=first(5))),
    "an earlier step is gone": (
        lambda: chain(start, between, fan()),
        lambda: chain(between, fan()),
    ),
}


@pytest.mark.parametrize("change", NOTHING_IS_KEPT)
async def test_what_would_be_refused_goes_on_where_no_result_is_kept(change: str):
    before, after = NOTHING_IS_KEPT[change]
    store = MemoryStore()
    await began(before(), store, "failed")
    result = await Application(after(), store=store, name="app").run(id="x")
    clean = await Application(after(), name="app").run(given())
    assert result.state["out"] == clean.state["out"]


@pytest.mark.parametrize("reduces", [False, True])
async def test_an_act_without_results_may_be_gone(reduces: bool):
    @action(reads=["n"], writes=["title"])
    async def fails(n: int) -> str:
        await anyio.sleep(n)
        raise OSError("it never works")

    make = reducing if reduces else fan
    store = MemoryStore()
    with pytest.raises(ExceptionGroup):
        await Application(make([fails, parse]), store=store, name="app").run(given(), id="x")
    life["first"] = False
    result = await Application(make([parse]), store=store, name="app").run(id="x")
    clean = await Application(make([parse]), name="app").run(given())
    assert result.state.to_plain() == clean.state.to_plain()


class Noted(ParallelAction):
    """Reduces failures too; each of its tasks is of the act."""

    reads = ("ns", "sums")
    writes = ("sums",)
    name = "fan"
    on_error = "collect"

    def __init__(self, act: Act, key: Callable[[int], str]) -> None:
        self.act, self.key = act, key

    def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
        for n in state["ns"]:
            yield Task(self.act, {"n": n}, key=self.key(n))

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return noted(state, outcome)


def noted(state: State, outcome: Done | Failed) -> State:
    return state.put("sums", f"{outcome.act} {outcome.key}", type(outcome).__name__)


def failing(name: str) -> Act:
    @action(reads=["n"], writes=["title"], name=name)
    async def fails(n: int) -> str:
        await anyio.sleep(n if life["first"] else 0)
        raise OSError("it never works")

    return fails


def noting(*acts: Act, key: Callable[[int], str] = str) -> Act:
    return reducing(list(acts), reduce=noted, on_error="collect", key=key)


def named(n: int) -> str:
    return f"k{n}"


FAILURES_REDUCED: dict[str, tuple[Callable[[], Act], Callable[[], Act], str]] = {
    "act of a list removed": (
        lambda: noting(failing("a"), failing("b")),
        lambda: noting(failing("b")),
        "acts with failures that reduce= has taken, 'a', which are not among its acts now, 'b'",
    ),
    "acts of a list renamed": (
        lambda: noting(failing("a"), failing("b")),
        lambda: noting(failing("c"), failing("d")),
        "acts with failures that reduce= has taken, 'a', 'b', which are not",
    ),
    "one act becomes two others": (
        lambda: noting(failing("a")),
        lambda: noting(failing("b"), failing("c")),
        "acts with failures that reduce= has taken, 'a', which are not",
    ),
    "another key": (
        lambda: noting(failing("a")),
        lambda: noting(failing("a"), key=named),
        "had the key '1', and now it has 'k1'",
    ),
    "class with its act renamed": (
        lambda: Noted(failing("a"), str),
        lambda: Noted(failing("b"), str),
        "key '1', was of act 'a', and now it is of 'b'",
    ),
    "class with another key": (
        lambda: Noted(failing("a"), str),
        lambda: Noted(failing("a"), named),
        "had the key '1', and now it has 'k1'",
    ),
}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("change", FAILURES_REDUCED)
async def test_an_act_whose_failures_were_reduced_may_not_be_gone(
    change: str, kind: str, tmp_path: Path
):
    """The fold would have the failure of the former program beside the end of the present one."""
    before, after, says = FAILURES_REDUCED[change]
    store: Any = MemoryStore()
    if kind == "sqlite":
        store = SQLiteStore(tmp_path / "runs.db", synchronous="normal")
    await began(before(), store, "cancelled")
    with pytest.raises(RunConflict) as caught:
        await Application(after(), store=store, name="app").run(id="x")
    assert says in str(caught.value)
    result = await Application(before(), store=store, name="app").run(id="x")
    clean = await Application(before(), name="app").run(given())
    assert result.state.to_plain() == clean.state.to_plain()
    assert set(result.state["sums"].values()) == {"Failed"}


async def test_a_chain_below_may_change_too():
    """In a child, and in a node: what has completed steps that are elsewhere now begins anew."""
    made = list[str]()

    def step(name: str, seconds: float) -> Act:
        @action(reads=["n"], writes=[name], name=name)
        async def note(n: int) -> int:
            made.append(name)
            await anyio.sleep(seconds if life["first"] else 0)
            return n

        return note

    def node(*names: str) -> Act:
        return chain(chain(*(step(name, 2.0) for name in names), name="node"))

    store = MemoryStore()
    with anyio.move_on_after(3):
        await Application(node("a", "b"), store=store, name="app").run({"n": 1}, id="x")
    life["first"] = False
    result = await Application(node("b", "a"), store=store, name="app").run(id="x")
    assert made == ["a", "b", "b", "a"]
    assert result.state.to_plain() == {"n": 1, "a": 1, "b": 1}


@action(writes=["out"])
async def answer(n: int) -> int:
    await anyio.sleep(n)
    return n


def asked(*seconds: int, into: str = "out") -> Act:
    acts = [answer.bind(name=f"after {n}", n=n) for n in seconds]
    return fan_out(acts, into=into, take="out", until=first(), name="fan")


@pytest.mark.parametrize("older", [False, True])
async def test_what_was_decided_stays_whatever_its_contestants_are_now(older: bool):
    store = MemoryStore()

    def save(batch: Batch) -> None:
        store.save(batch._replace(step_begun=None) if older else batch)
        if batch.decision is not None:
            raise OSError("the process is dead")

    dying: Any = Older(store)
    dying.save = save
    with pytest.raises(StoreFailed):
        await Application(asked(1, 2), store=dying, name="app").run({}, id="x")
    with pytest.raises(RunConflict) as caught:
        elsewhere = asked(1, 2, into="other")
        await Application(elsewhere, store=store.copy(), name="app").run(id="x")
    assert "'out'" in str(caught.value)
    assert "'other'" in str(caught.value)
    result = await Application(asked(3, 4), store=store, name="app").run(id="x")
    assert result.state["out"] == 1
    assert {one.status for one in await store.children(RunPath(run_id="x"))} == {"succeeded"}


async def test_tasks_that_only_keys_tell_apart_may_be_added_in_front():
    class Same(ParallelAction):
        reads = ("sums",)
        writes = ("sums",)
        name = "fan"

        def __init__(self, *keys: str) -> None:
            self.keys = keys

        def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
            for key in self.keys:
                yield Task(parse, {"n": 1 if key < "x" else 3}, key=key)

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return joined(state, outcome)

    store = MemoryStore()
    life["fails"] = True
    with pytest.raises(ExceptionGroup):
        await Application(Same("a", "b", "x"), store=store, name="app").run({"sums": {}}, id="x")
    life["first"] = False
    again = Application(Same("0", "a", "b", "x"), store=store, name="app")
    result = await again.run(id="x")
    assert result.state["sums"] == dict.fromkeys("0abx", 1)


async def test_the_start_of_a_child_is_published_though_its_rerun_could_not_be_saved():
    store = MemoryStore()
    await began(fan(parse), store, "failed")

    def save(batch: Batch) -> None:
        if batch.afresh:
            raise OSError("the process is dead")
        store.save(batch)

    dying: Any = Older(store)
    dying.save = save
    hook = RecordingHook()
    app = Application(fan(parse_2), store=dying, hooks=[hook], name="app")
    with pytest.raises(StoreFailed):
        await app.run(id="x")
    hook.assert_paired()
