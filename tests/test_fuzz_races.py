"""Random races in maps in races, cancelled at random moments in random ways (C04, C05, N01).

Beside what `test_fuzz` asserts: a race is decided once at most, and by an accepted result; what
ended it is published before any loser ends for it, and nothing is applied after it; it succeeds
just if it was decided; and every loser is told who has won.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import anyio
import pytest

from shoal import (
    Act,
    All,
    Cancelled,
    ChildEnded,
    ChildName,
    ChildStarted,
    Decision,
    Done,
    Failed,
    FanOut,
    First,
    FirstItem,
    FunctionAction,
    Graph,
    Hedge,
    Hook,
    Limits,
    Outcome,
    Result,
    State,
    StateUpdated,
    StepEnded,
    Until,
    action,
    all_,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)
from shoal._until import Race
from tests.test_cancellation import RUNS, Watched, seen_runs
from tests.test_fuzz import MOMENTS, Backend, fuzz, live

__all__ = ["seen_runs"]  # a fixture


HEDGE = Hedge(initial=0.25, budget=0.5)


def size(state: State) -> int:
    return len(state) % 3


class ByHand(Hook):
    """Cancels some of the children that live when others start or end."""

    def __init__(self, seed: float) -> None:
        self.random = Random(seed)

    def on_child_started(self, event: ChildStarted) -> None:
        self.cancel(event)

    def on_child_ended(self, event: ChildEnded) -> None:
        self.cancel(event)

    def cancel(self, event: ChildStarted | ChildEnded) -> None:
        run = RUNS.get(event.path.root.id)
        if run is None or self.random.random() < 0.7:
            return
        groups: list[Any] = list(run.setting.execution.groups)
        if not groups:
            return
        groups.sort(key=lambda group: (group.parent.path.depth, group.parent.path.id))
        self.random.choice(groups).cancel_child(self.random.choice(["", 0, 1, "11"]), "by hand")


@dataclass
class Program:
    """A random race, or a map of races, up to three deep."""

    random: Random
    on_asyncio: bool
    until: dict[str, Until] = field(default_factory=dict[str, Until])
    """Of each step."""
    names: int = 0

    def __post_init__(self) -> None:
        self.spoil = self.random.random() < 0.2
        self.graph = Graph.chain(self.level(self.random.randrange(3)))
        self.given: dict[str, Any] = {"item": 1}
        self.settings = dict[str, Any]()
        if self.random.random() < 0.3:
            self.settings["hooks"] = [ByHand(self.random.random())]

    def name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}{self.names}"

    def step(self) -> FunctionAction[..., Any]:
        name, seed = self.name("step"), self.random.random()
        quiet = self.random.random() < 0.3

        async def begin(item: int) -> Random:
            random = Random(f"{seed} {item}")
            if quiet:
                await anyio.sleep(random.choice(MOMENTS))
            else:
                await live(random, spoil=self.spoil, on_asyncio=self.on_asyncio)
            return random

        @action(reads=["item"], writes=[name], name=name)
        async def step(item: int) -> int:
            await begin(item)
            return item

        @action(reads=["item"], writes=[name], name=name)
        async def stream(item: int) -> AsyncIterator[Any]:
            random = await begin(item)
            for n in range(random.randrange(3)):
                await anyio.sleep(random.choice(MOMENTS))
                yield n
            if random.random() < 0.1:
                raise OSError("broke off")
            yield Result(item)

        return stream if self.random.random() < 0.3 else step

    def contestant(self, deeper: int) -> Act:
        random = self.random
        if not deeper or random.random() < 0.4:
            return self.step()
        steps = [self.step()] if random.random() < 0.3 else []
        return Graph.chain(*steps, self.level(deeper - 1), name=self.name("graph"))

    def level(self, deeper: int) -> FanOut:
        random, name = self.random, self.name("level")
        options: dict[str, Any] = {
            "into": name,
            "take": size,
            "stagger": random.choice([None, None, None, 0, 0.25, 0.5, inf, HEDGE]),
        }
        if random.random() < 0.5:
            options["limits"] = Limits(random.choice([1, 2, 3]))
        kind = random.choice(["race", "race", "over", "over", "map"])
        count = random.randrange(2, 5)
        until = all_() if kind == "map" else self.ending(count)
        self.until[name] = until
        if options["stagger"] is HEDGE and not isinstance(until, Race):
            options["stagger"] = None
        if kind == "race":
            acts = [self.contestant(deeper) for _ in range(count)]
            return race(*acts, until=until, reads=["item"], **options)
        elements = [10 + n for n in range(count + random.randrange(2))]
        if isinstance(until, All):
            options["on_error"] = random.choice(["fail", "collect"])
        if random.random() < 0.3:
            options["key"] = str
        return fan_out(
            self.contestant(deeper),
            over=lambda state: list(elements),
            reads=["item"],
            until=until,
            **options,
        )

    def ending(self, count: int) -> Until:
        random, seed = self.random, self.random.random()

        def accept(value: object) -> bool:
            luck = Random(f"{seed} {value}").random()
            if luck < 0.05:
                raise LookupError("accept")
            return luck < 0.8

        def enough(state: State, outcome: Outcome) -> bool:
            luck = Random(f"{seed} {outcome.position}").random()
            if luck < 0.05:
                raise LookupError("until")
            return luck < 0.4

        return random.choice(
            [
                first(),
                first(accept=accept),
                first(random.randrange(1, count), accept=accept),
                quorum(random.randrange(1, count)),
                first_item(),
                first_item(when=accept),
                enough,
            ]
        )

    def check(self, watched: Watched, end: str) -> None:
        decisions: dict[tuple[str, str], Decision] = {}
        for run_id, decision in watched.store.decisions:
            assert (run_id, decision.step) not in decisions, "decided twice"
            decisions[run_id, decision.step] = decision
        for (run_id, step), events in steps_of(watched).items():
            until = self.until.get(step)
            if until is not None:
                check_step(until, decisions.get((run_id, step)), events)


def steps_of(watched: Watched) -> dict[tuple[str, str], list[Any]]:
    """What was told of each step of each run."""
    steps: dict[tuple[str, str], list[Any]] = {}
    for event in watched.hook.events:
        match event:
            case StateUpdated():
                steps.setdefault((event.run_id, event.update.step), []).append(event)
            case ChildEnded() | StepEnded():
                steps.setdefault((event.run_id, event.step), []).append(event)
            case _:
                pass
    return steps


def check_step(until: Until, decision: Decision | None, events: Sequence[Any]) -> None:
    applied = [
        event.outcome
        for event in events
        if isinstance(event, StateUpdated) and event.outcome is not None
    ]
    ended = [event.outcome for event in events if isinstance(event, ChildEnded)]
    used = [outcome for outcome in ended if isinstance(outcome, Done) and outcome.used]
    succeeded = any(isinstance(e, StepEnded) and e.status == "succeeded" for e in events)
    is_race = isinstance(until, Race)
    assert not (isinstance(until, All) and decision), "nothing was to be decided"
    assert {o.run_id for o in used} == {o.run_id for o in applied if isinstance(o, Done)}
    if succeeded and is_race:
        assert decision is not None, "it can't succeed without"
    if is_race:
        assert not any(isinstance(outcome, Failed) for outcome in applied)
    if isinstance(until, First):
        assert len(used) <= until.n
        assert (len(used) == until.n) == (decision is not None)
    if decision is None:
        assert all(outcome.winner is None for outcome in cancelled(ended))
        return
    if isinstance(until, FirstItem):  # the winner may have ended in any way since
        assert {named(outcome) for outcome in used} <= {decision.winner}
        assert len(used) == 1 or not succeeded
        assert {outcome.winner for outcome in cancelled(ended)} <= {None, decision.winner}
        return
    assert decision.winner == named(applied[-1]), "the last that was applied has decided"
    assert decision.winner in decision.winners
    assert set(decision.winners) <= {named(outcome) for outcome in used} | {decision.winner}
    decided_at = max(
        at for at, event in enumerate(events) if isinstance(event, StateUpdated)
    )  # the deciding one's, after which nothing is applied
    for at, event in enumerate(events):
        if isinstance(event, ChildEnded) and isinstance(event.outcome, Cancelled):
            winner = event.outcome.winner
            assert winner in (None, decision.winner)
            if winner is None:  # from outside, maybe while the decision was saved
                assert event.outcome.reason in ("the fan-out was cancelled", "by hand")
            else:
                assert at > decided_at, "who has won is known first"
                assert event.outcome.reason == decision.reason


def cancelled(outcomes: Iterable[Outcome]) -> list[Cancelled]:
    return [outcome for outcome in outcomes if isinstance(outcome, Cancelled)]


def named(outcome: Outcome) -> ChildName:
    return ChildName(outcome.act, outcome.key)


Make = Callable[[Random, bool], Program]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_races(backend: Backend):
    fuzz(backend, range(250), Program)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_random_races(backend: Backend, block: int):
    fuzz(backend, range(1000 * (block + 1), 1000 * (block + 2)), Program)
