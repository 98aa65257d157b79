"""Random applications of everything there is, compared with a sequential model of each.

Steps, branches, loops, fan-outs of all kinds, classes, graphs in graphs and `context.fan_out`, up
to three deep, with limits everywhere; run on shuffled schedules, and interrupted or not. Beside
what `interrupted` asserts: a run that is not interrupted comes to what the model comes to; attempts
never exceed a limit, and no slot or permit is lost; context variables never reach a sibling; each
failure is raised, in input order, or counted; observers that fail change nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, NamedTuple, Protocol, cast
from zlib import crc32

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    END,
    Cancelled,
    Context,
    Done,
    ErrorInfo,
    Failed,
    Graph,
    Hook,
    Limits,
    MapActions,
    MapStates,
    ParallelAction,
    State,
    Task,
    Tolerate,
    action,
    fan_out,
    when,
)
from shoal._graph.policy import OnError
from shoal.events import ChildEnded, ChildStarted, Event, StepEnded, StepStarted
from shoal.types import Act, FanOut
from tests.engine.test_cancellation import RUNS, Watched, cancellation, seen_runs, this_task

from .interrupted import MOMENTS, Backend, fuzz, nap

__all__ = ["seen_runs"]  # a fixture

Data = dict[str, Any]
LIMITS = [1, 2, 3, 100]

place: ContextVar[str] = ContextVar("place", default="")


class ModelFails(Exception):  # no error: what the model says of a run
    """A run of this would fail."""


class Unsure(Exception):
    """What becomes of this depends on the schedule."""


def canonical(value: object) -> Any:
    """Values as both the engine and the model have them: errors are all alike, no own types."""
    match value:
        case ErrorInfo():
            return "error"
        case Mapping():
            items = cast("Mapping[Any, object]", value).items()
            return {key: canonical(inner) for key, inner in items}
        case str():
            return value
        case Sequence():
            return [canonical(inner) for inner in cast("Sequence[object]", value)]
        case _:
            return value


def digest(value: object) -> int:
    """A number that depends on all there is in a value, but on no order of keys."""
    return crc32(json.dumps(canonical(value), sort_keys=True, default=repr).encode())


# -- what actions do -------------------------------------------------------------------------------


class Fate(NamedTuple):
    """What an action is going to do: decided by what it reads, so the model knows it too."""

    pauses: Sequence[float | None]
    end: str
    """"value", "error", "cancellation", "generator exit" or "cancels itself"."""
    cleanup: str
    """"none", "waits" or "fails", if it is cancelled."""

    @staticmethod
    def of(seed: float, read: object, program: Program) -> Fate:
        random = Random(f"{seed} {digest(read)}")
        pauses = [random.choice([None, *MOMENTS]) for _ in range(random.randrange(3))]
        cleanup = random.choice(["none", "none", "none", "none", "waits", "fails"])
        end = "value"
        if random.random() < program.failures:
            end = random.choice(["error", "error", "cancellation", "generator exit"])
        if program.misbehaves and random.random() < 0.1:
            end = "cancels itself"
        return Fate(pauses, end, cleanup)

    def check(self) -> None:
        """Tell the model."""
        if self.end != "value":
            raise ModelFails

    async def live(self) -> None:
        try:
            for pause in self.pauses:
                await (checkpoint() if pause is None else anyio.sleep(pause))
            self.finish()
        except anyio.get_cancelled_exc_class():
            if self.cleanup == "waits":
                with anyio.CancelScope(shield=True):
                    await nap()
            if self.cleanup == "fails":
                raise OSError("cleanup") from None
            raise

    def finish(self) -> None:
        match self.end:
            case "error":
                raise ValueError
            case "cancellation":
                raise cancellation()
            case "generator exit":
                raise GeneratorExit
            case "cancels itself":
                this_task().cancel()
            case _:
                pass


# -- parts of programs: each makes an act, and says what it comes to -------------------------------


class Part(Protocol):
    """A node of a graph."""

    act: Act
    gives: list[str]
    """Fields that are there afterwards, for certain."""

    def model(self, data: Data) -> None:
        """Change ``data`` as the act would."""
        ...


@dataclass
class Step:
    """An action that reads some fields and writes one."""

    program: Program
    reads: list[str]
    wanted: Callable[[Data], object] = digest
    """What it writes."""
    writes: str = ""
    """Where; by default to a field of its own."""

    def __post_init__(self) -> None:
        self.name, random = self.program.name("step"), self.program.random
        self.writes = self.writes or self.name
        self.gives, self.seed = [self.writes], random.random()
        limit = self.program.limit_of_action(self.name)
        reads, program = self.reads, self.program

        def read(state: State) -> Data:
            return {field: canonical(state[field]) for field in reads}

        def result(state: State) -> State:
            return state.update({self.writes: self.wanted(read(state))})

        options: dict[str, Any] = {
            "reads": reads, "writes": [self.writes], "name": self.name, "limits": limit
        }  # fmt: skip

        @action(**options)
        async def waits(state: State) -> State:
            with program.running(self.name), program.at(state["item"]):
                await self.fate(read(state)).live()
            return result(state)

        @action(**options, executor="loop")
        def is_quick(state: State) -> State:
            with program.running(self.name), program.at(state["item"]):
                self.fate(read(state)).finish()
            return result(state)

        @action(**options)
        async def writes_surely(item: str) -> object:
            with program.running(self.name), program.at(item):
                await self.fate({"item": item}).live()
            return self.wanted({"item": item})

        every = [waits, waits, is_quick]
        self.act: Act = random.choice([*every, writes_surely] if reads == ["item"] else every)

    def fate(self, read: Data) -> Fate:
        return Fate.of(self.seed, read, self.program)

    def model(self, data: Data) -> None:
        read = {field: data[field] for field in self.reads}
        self.fate(read).check()
        data[self.writes] = self.wanted(read)


class Line:
    """A graph: parts one after the other, some of them taken sometimes, or again."""

    def __init__(self, program: Program, deeper: int, known: Sequence[str], *, root: bool) -> None:
        self.program, self.deeper, self.root = program, deeper, root
        self.known = list(known)
        self._edges: list[tuple[Any, ...]] = []
        self._exits: list[tuple[Act, bool]] = []  # and whether other edges leave it
        self._models: list[Callable[[Data], None]] = []
        self._entry: Act | None = None
        random = program.random
        for _ in range(random.choice([1, 1, 2, 3])):
            random.choice([self._plain, self._plain, self._plain, self._branch, self._loop])()
        edges = [(act, END) for act, is_left in self._exits if is_left]
        name = program.name("graph")
        if self._edges or edges:
            self.graph = Graph(*self._edges, *edges, entry=self._entry, name=name)
        else:
            assert self._entry is not None
            self.graph = Graph.chain(self._entry, name=name)

    def model(self, data: Data) -> None:
        for model in self._models:
            model(data)

    def child(self, data: Data, given: Data) -> Data:
        """What a child that executes this comes to: it sees what it reads, and what it is given."""
        final = {field: data[field] for field in self.graph.reads if field in data} | given
        self.model(final)
        return final

    def _add(self, act: Act) -> None:
        self._edges += [(exit_, act) for exit_, _ in self._exits]
        self._exits = [(act, False)]
        self._entry = self._entry or act

    def _part(self) -> Part:
        return self.program.part(self.deeper, self.known, root=self.root)

    def _plain(self) -> None:
        part = self._part()
        self._add(part.act)
        self._models.append(part.model)
        self.known += part.gives

    def _branch(self) -> None:
        """One of two ways, or one that may be left out."""
        fork = Step(self.program, ["item"], lambda read: digest(read) % 2 == 0)
        ways = [self._part() for _ in range(self.program.random.choice([1, 2]))]
        self._add(fork.act)
        self._edges.append((fork.act, ways[0].act, when(fork.name)))
        self._exits = [(ways[0].act, False)]
        if len(ways) == 2:
            self._edges.append((fork.act, ways[1].act))
            self._exits.append((ways[1].act, False))
        else:
            self._exits.append((fork.act, True))
        self.known += fork.gives

        def model(data: Data) -> None:
            fork.model(data)
            if data[fork.name]:
                ways[0].model(data)
            elif len(ways) == 2:
                ways[1].model(data)

        self._models.append(model)

    def _loop(self) -> None:
        turns = self.program.random.choice([1, 2, 3])
        start = Step(self.program, ["item"], lambda _: 0)
        turn = start.writes
        self._add(start.act)
        body = self.program.part(self.deeper, [*self.known, turn], root=False)
        self._add(body.act)
        tick = Step(self.program, ["item", turn], lambda read: read[turn] + 1, writes=turn)
        self._add(tick.act)
        again = when(lambda state: state[turn] < turns, reads=[turn])
        self._edges.append((tick.act, body.act, again))
        self._exits = [(tick.act, True)]
        self.known += [turn, *body.gives]

        def model(data: Data) -> None:
            start.model(data)
            while data[turn] < turns:
                body.model(data)
                tick.model(data)

        self._models.append(model)


@dataclass
class Node:
    """A graph as a node."""

    line: Line

    def __post_init__(self) -> None:
        self.act: Act = self.line.graph
        self.gives: list[str] = []

    def model(self, data: Data) -> None:
        final = self.line.child(data, {})
        data.update((name, final[name]) for name in self.line.graph.writes if name in final)


class Mapped:
    """A fan-out of any kind: over elements, acts, or both; collected, reduced or neither."""

    def __init__(self, program: Program, deeper: int, known: Sequence[str], *, root: bool) -> None:
        self.program, random, self.name = program, program.random, program.name("map")
        self.lines = [
            Line(program, deeper, known, root=False) for _ in range(random.choice([1, 1, 1, 2]))
        ]
        self.is_several = len(self.lines) > 1
        self.has_elements = not self.is_several or random.random() < 0.7
        self.width, self.seed = random.choice([0, 1, 2, 3, 5]), random.random()
        self.keyed = self.has_elements and random.random() < 0.5
        self.how = random.choice(["into", "into", "reduce", "neither"])
        self.grows = self.keyed and random.random() < 0.3
        self.on_error: OnError = random.choice(
            ["fail", "collect", "ignore", Tolerate(count=random.randrange(3)),
             Tolerate(share=0.4, after=random.randrange(4))]
        )  # fmt: skip
        self.at_most = random.randrange(6) if random.random() < 0.15 else None
        self.has_errors = self.on_error not in ("fail", "ignore") and random.random() < 0.5
        self.source_fails = self.has_elements and random.random() < program.failures / 2
        self.take: Any = plain
        if not self.is_several and self.lines[0].known[len(known) :] and random.random() < 0.3:
            self.take = self.lines[0].known[-1]
        self.errors = f"{self.name} errors"
        self.gives = [self.name] if self.how == "into" else []
        self.gives += [self.errors] if self.has_errors else []
        program.in_flight[self.name] = random.choice(LIMITS)
        if root and self.keyed and self.how == "into" and not (self.is_several or self.grows):
            program.given[self.name] = {f"r.{self.name}{random.randrange(3)}": "known"}
        self.act: Act = self._make()

    def _make(self) -> FanOut:
        graphs = [line.graph for line in self.lines]
        options: dict[str, Any] = {
            "name": self.name,
            "on_error": self.on_error,
            "at_most": self.at_most,
            "limits": Limits(self.program.in_flight[self.name]),
        }
        if self.has_elements:
            options |= {"over": self._source(), "reads": ["item"]}
        if self.keyed:
            options["key"] = str
        if self.has_errors:
            options["errors_into"] = self.errors
        if self.how == "into":
            options |= {"into": self.name, "take": self.take}
        if self.how == "reduce":
            options |= {"reduce": self._reduce, "writes": [self.name], "take": self.take}
        if self.grows:
            options["grow"] = self._grow
        return fan_out(graphs if self.is_several else graphs[0], **options)

    def _elements(self, item: str) -> list[str]:
        return [f"{item}.{self.name}{n}" for n in range(self.width)]

    def _grow(self, _: State, outcome: Done | Failed) -> list[str]:
        return self._grown(outcome.element)

    def _grown(self, element: str) -> list[str]:
        return [element, f"{element}+"] if element.count("+") < 2 else [element]

    def _source(self) -> Callable[[State], Any]:
        def listed(state: State) -> list[str]:
            return self._elements(state["item"])

        def generated(state: State) -> Iterator[str]:
            with self.program.at("source", of=state["item"]):  # which no child may notice
                yield from listed(state)
            if self.source_fails:
                raise LookupError("source")

        async def generated_async(state: State) -> AsyncIterator[str]:
            random = Random(self.seed)
            place.set("source")
            try:
                for element in generated(state):
                    if random.random() < 0.4:
                        await anyio.sleep(random.choice(MOMENTS))
                    yield element
            finally:
                if random.random() < 0.3:
                    with anyio.CancelScope(shield=True):
                        await nap()

        random = Random(self.seed)
        return random.choice([generated, generated_async, *([] if self.source_fails else [listed])])

    def _reducer_fails(self, act: str, element: object) -> bool:
        random = Random(f"{self.seed} {act} {element}")
        return random.random() < self.program.failures / 2

    def _reduce(self, state: State, outcome: Done | Failed) -> State:
        if self._reducer_fails(outcome.act, outcome.element):
            raise LookupError("reduce")
        value = canonical(outcome.value) if isinstance(outcome, Done) else "error"
        return state.put(self.name, f"{outcome.act} {outcome.key}", value)

    def model(self, data: Data) -> None:
        item = data["item"]
        visits = data.setdefault(VISITS, Counter())
        first_visit = visits[self.name] == 0
        elements: list[Any] = self._elements(item) if self.has_elements else [None]
        known: Data = dict(data.get(self.name, {})) if self._skips(first_visit) else {}
        values, errors = dict[Any, Any](), dict[Any, Any]()
        reduced: Data = dict(data.get(self.name, {})) if self.how == "reduce" else {}
        started = done = failed = 0
        if self.grows and self.at_most is not None:
            raise Unsure
        if self.source_fails and self.at_most is not None:
            raise Unsure
        for at, element in enumerate(elements):  # grows while it is gone through
            key = element if self.keyed else at if self.has_elements else ""
            found = list[str]()
            for line in self.lines:
                if started == self.at_most:
                    break
                if key in known:
                    continue
                started += 1
                name = line.graph.name
                try:
                    final = line.child(data, {"item": element} if self.has_elements else {})
                except ModelFails:
                    failed += 1
                    value: Any = "error"
                    if self.on_error == "ignore":
                        continue
                    self._put(errors, key, name, value)
                else:
                    done += 1
                    value = plain(State(final)) if self.take is plain else final[self.take]
                    self._put(values, key, name, value)
                if self.how == "reduce":
                    if self._reducer_fails(name, element):
                        raise ModelFails
                    reduced[f"{name} {key}"] = value
                found += self._grown(element) if self.grows else []
            elements += [one for one in dict.fromkeys(found) if one not in elements]
        self._judge(done, failed)
        visits[self.name] += 1
        if self.how == "into":
            positions = self.has_elements and not self.keyed
            data[self.name] = list(values.values()) if positions else known | values
        if self.how == "reduce" and reduced:
            data[self.name] = reduced
        if self.has_errors:
            data[self.errors] = errors

    def _skips(self, first_visit: bool) -> bool:
        return first_visit and self.keyed and self.how == "into" and not self.grows

    def _put(self, collection: Data, key: Any, act: str, value: Any) -> None:
        if not self.is_several:
            collection[key] = value
        elif self.has_elements:
            collection.setdefault(key, {})[act] = value
        else:
            collection[act] = value

    def _judge(self, done: int, failed: int) -> None:
        if self.source_fails or (failed and self.on_error == "fail"):
            raise ModelFails
        if isinstance(self.on_error, Tolerate):
            if self.on_error.is_exceeded(failed, done + failed, at_end=True):
                raise ModelFails
            if failed and self.on_error.share is not None:
                raise Unsure  # there may have been too many at some moment


class Classes:
    """A parallel action in the form of a class."""

    def __init__(self, program: Program, deeper: int, known: Sequence[str]) -> None:
        random, self.name = program.random, program.name("class")
        self.line = line = Line(program, deeper, known, root=False)
        self.width = width = random.randrange(4)
        self.count = f"{self.name} count"
        self.gives = [self.count]
        self.on_error: OnError = random.choice(["fail", "collect", "ignore"])
        program.in_flight[self.name] = limit = random.choice(LIMITS)
        keyed = random.random() < 0.5
        into, counted = self.name, self.count

        class Base(ParallelAction):
            name = self.name
            reads = sorted({"item"} | line.graph.reads)
            writes = (into, counted)
            on_error = self.on_error
            limits = Limits(limit)

            @property
            def needed_by(self) -> Mapping[str, str]:
                return line.graph.needed_by  # others of its reads needn't be there

            def reduce(self, state: State, outcome: Done | Failed) -> State:
                value = plain(outcome.state) if isinstance(outcome, Done) else "error"
                return state.put(into, str(outcome.position), value)

            def finish(self, state: State) -> State:
                return state.update({counted: len(state.get(into, ()))})

        class Tasks(Base):
            name = into

            def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
                for n in range(width):
                    given = {"item": f"{state['item']}.{into}{n}"}
                    yield Task(line.graph, given, key=f"{n}" if keyed else None)

        class States(Base, MapStates):
            name = into

            def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
                return line.graph

            async def states(
                self, state: State, inputs: Mapping[str, Any]
            ) -> AsyncIterator[Mapping[str, Any]]:
                for n in range(width):
                    await checkpoint()
                    yield {"item": f"{state['item']}.{into}{n}"}

            def key(self, state: Mapping[str, Any]) -> str | None:
                return state["item"] if keyed else None

        class Actions(Base, MapActions):
            name = into

            def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterable[Act]:
                return [line.graph.bind(name=f"{into} act {n}") for n in range(width)]

            def state(self, state: State, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
                return {"item": f"{state['item']}.{into}0"}

        self.is_one_state = False
        kind = random.choice([Tasks, States, Actions])
        self.is_one_state = kind is Actions
        self.act: Act = kind()

    def model(self, data: Data) -> None:
        reduced: Data = dict(data.get(self.name, {}))
        failed = 0
        for n in range(self.width):
            item = f"{data['item']}.{self.name}{0 if self.is_one_state else n}"
            try:
                reduced[str(n)] = plain(State(self.line.child(data, {"item": item})))
            except ModelFails:
                failed += 1
                if self.on_error == "collect":
                    reduced[str(n)] = "error"
        if failed and self.on_error == "fail":
            raise ModelFails
        if reduced:
            data[self.name] = reduced
        data[self.count] = len(reduced)


class ByHand:
    """An action with a fan-out of its own, consumed in one way or another."""

    def __init__(self, program: Program, deeper: int, known: Sequence[str]) -> None:
        random, self.name = program.random, program.name("hand")
        self.line = line = Line(program, deeper, known, root=False)
        self.width = width = random.randrange(4)
        self.ending = ending = random.choice(["consume", "leave", "cancel"])
        self.gives = [self.name]
        limit = program.in_flight[f"{self.name}/tries"] = random.choice(LIMITS)
        keyed, each = random.random() < 0.5, random.random() < 0.5

        @action(
            reads=sorted({"item"} | line.graph.reads), writes=[self.name], name=self.name,
            limits=program.limit_of_action(self.name),
        )  # fmt: skip
        async def by_hand(state: State, context: Context) -> State:
            item: str = state["item"]
            elements = [f"{item}.{self.name}{n}" for n in range(width)]
            found: Data = {}
            with program.running(self.name) as attempt, program.at(item):
                async with context.fan_out(name="tries", limits=Limits(limit)) as group:
                    attempt.pause()
                    if each:
                        group.start_each(line.graph, over=elements, key=str if keyed else None)
                    for element in () if each else elements:
                        key = element if keyed else None
                        group.start(line.graph, {"item": element}, key=key)
                    if ending != "leave":
                        async for outcome in group:
                            is_done = isinstance(outcome, Done)
                            value = plain(outcome.state) if is_done else "error"
                            found[str(outcome.position)] = value
                            if ending == "cancel":
                                group.cancel()
                attempt.resume()
            if ending == "consume":
                return state.update({self.name: found})
            if ending == "cancel" and not each:
                assert len(found) == width, "what was started has an outcome"
            return state.update({self.name: width})

        self.act: Act = by_hand

    def model(self, data: Data) -> None:
        found: Data = {}
        for n in range(self.width):
            try:
                item = f"{data['item']}.{self.name}{n}"
                found[str(n)] = plain(State(self.line.child(data, {"item": item})))
            except ModelFails:
                found[str(n)] = "error"
                if self.ending == "leave":
                    raise
        data[self.name] = found if self.ending == "consume" else self.width


VISITS = " visits"
"""Where the model of a run keeps how often each of its steps was completed."""


def plain(state: State) -> Data:
    return {name: canonical(value) for name, value in state.items() if name != VISITS}


# -- programs --------------------------------------------------------------------------------------


class Clumsy(Hook):
    """An observer that waits, and in the end raises, whatever it is told of then."""

    observer = True

    def __init__(self, seed: float) -> None:
        self.random = Random(seed)
        self.method = self.random.choice([name for name in dir(Hook) if name.startswith("on_")])
        self.patience = self.random.randrange(4)

    async def _receive(self, event: Event) -> None:
        if f"on_{snake_case(type(event).__name__)}" != self.method:
            return
        self.patience -= 1
        await self.random.choice([checkpoint, nap])()
        if self.patience < 0:
            raise self.random.choice([LookupError(), cancellation(), GeneratorExit()])

    on_run_started = on_step_started = on_state_updated = on_child_started = _receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    on_child_ended = on_step_ended = on_run_ended = _receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


def snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]


@dataclass
class Attempt:
    """One attempt of an action: counted while it holds slots."""

    counts: list[tuple[Counter[str], str]]

    def resume(self) -> None:
        for counter, name in self.counts:
            counter[name] += 1

    def pause(self) -> None:
        for counter, name in self.counts:
            counter[name] -= 1


@dataclass
class Program:
    """A random application."""

    random: Random
    on_asyncio: bool

    def __post_init__(self) -> None:
        random, self._numbers = self.random, count(1)
        self.failures = random.choice([0, 0, 0.03, 0.15])
        self.misbehaves = self.on_asyncio and random.random() < 0.1
        self.in_flight: dict[str, int] = {}  # limits of fan-outs
        self.attempts: dict[str, int] = {}  # limits of actions, and of the application
        self.given: Data = {"item": "r"}
        place.set("r")  # for whoever calls run: all below it sees that, and more
        self.runs = Counter[str]()
        self.parts = 0
        self.line = Line(self, random.choice([1, 1, 2, 3]), ["item"], root=True)
        self.graph = self.line.graph
        self.settings: dict[str, Any] = {"max_live": random.choice([1, 2, 1000])}
        if random.random() < 0.4:
            limit = self.attempts["all"] = random.choice([1, 2, 5])
            self.settings["limits"] = Limits(limit)
        if random.random() < 0.3:
            self.settings["hooks"] = [Clumsy(random.random()), Clumsy(random.random())]

    def name(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers)}"

    def limit_of_action(self, name: str) -> Limits | None:
        if self.random.random() < 0.8:
            return None
        self.attempts[name] = self.random.choice([1, 2])
        return Limits(self.attempts[name])

    def part(self, deeper: int, known: Sequence[str], *, root: bool) -> Part:
        random = self.random
        self.parts += 1
        if deeper == 0 or self.parts > 12 or random.random() < 0.3:
            return Step(self, sorted({"item", random.choice(known)}))
        match random.randrange(8):
            case 0:
                return Node(Line(self, deeper - 1, known, root=False))
            case 1:
                return Classes(self, deeper - 1, known)
            case 2 | 3:
                return ByHand(self, deeper - 1, known)
            case _:
                return Mapped(self, deeper - 1, known, root=root)

    # what runs tell

    @contextmanager
    def running(self, name: str) -> Generator[Attempt]:
        attempt = Attempt([(self.runs, name), (self.runs, "all")])
        attempt.resume()
        held = dict(self.runs)
        try:
            for limited, limit in self.attempts.items():
                assert held.get(limited, 0) <= limit, "more attempts run than the limit says"
            yield attempt
        finally:
            attempt.pause()

    @contextmanager
    def at(self, item: str, of: str = "") -> Generator[None]:
        """Say where we are: to the steps that follow in this run, and to all below it."""
        seen = place.get()
        is_above = item == seen or item.startswith(f"{seen}.") or bool(of)
        assert seen, f"at {item}: in nobody's context"
        assert is_above, f"at {item}: a context variable of {seen}"
        place.set(item)
        yield

    def model(self) -> Data | None:
        """What a run comes to; None if it fails."""
        data = dict(self.given)
        try:
            self.line.model(data)
        except ModelFails:
            return None
        return plain(State(data))

    def check(self, watched: Watched, end: str) -> None:
        """Assert what has to hold after a run that has ended so."""
        check_in_flight(self, watched)
        check_failures(watched)
        if end == "succeeded":
            ends = [event.outcome for event in watched.of(ChildEnded)]
            of_acts = [one for one in ends if "/" not in one.path.step]
            assert not any(isinstance(outcome, Cancelled) for outcome in of_acts)
        if self.misbehaves or end not in ("succeeded", "failed"):
            return
        try:
            expected = self.model()
        except Unsure:
            return
        if end == "failed":
            assert expected is None, "it failed, and should not have"
        else:
            assert plain(watched.state) == expected


def check_in_flight(program: Program, watched: Watched) -> None:
    in_flight = Counter[tuple[str, str]]()
    for event in watched.hook.events:
        match event:
            case ChildStarted():
                where = event.run_id, event.child.step
                in_flight[where] += 1
                assert in_flight[where] <= program.in_flight.get(event.child.step, 1)
            case ChildEnded() if event.outcome.attempts:
                in_flight[event.run_id, event.outcome.path.step] -= 1
            case _:
                pass


def check_failures(watched: Watched) -> None:
    """Each failure of a fan-out's child is raised with the others, in input order, or counted."""
    ended: dict[tuple[str, str], list[ChildEnded]] = {}
    totals = Counter[tuple[str, str]]()
    for event in watched.hook.events:
        match event:
            case StepStarted():
                ended[event.run_id, event.step] = []
            case ChildEnded():
                ended[event.run_id, event.step].append(event)
                if event.depth == 0:
                    totals[event.outcome.path.step, type(event.outcome).__name__] += 1
            case StepEnded(error=ExceptionGroup() as group) if (
                f"fan-out {event.step!r} failed" in group.message
            ):
                of_step = [one.outcome for one in ended[event.run_id, event.step]]
                failed = [one for one in of_step if isinstance(one, Failed)]
                failed.sort(key=lambda outcome: outcome.position)
                assert [id(one.error) for one in failed] == list(map(id, group.exceptions))
            case _:
                pass
    run = RUNS.get(watched.id)
    for step, ledgers in () if run is None else run.ledgers.items():
        if not any(name == step for name, _ in totals):
            continue  # of a graph in this one, whose run tells
        for kind in ("Done", "Failed", "Cancelled", "Skipped"):
            counted = sum(getattr(ledger, kind.lower()) for ledger in ledgers)
            told = totals[step, kind]
            never_began = kind == "Cancelled" and "/" in step  # of what an action has started
            assert counted >= told if never_began else counted == told, (step, kind)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_applications(backend: Backend):
    fuzz(backend, range(150), Program)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_random_applications(backend: Backend, block: int):
    fuzz(backend, range(1000 * (block + 1), 1000 * (block + 2)), Program)
