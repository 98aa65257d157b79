"""What a process does that is killed: one life of one run.

What holds at its beginning, of all that earlier lives have left, is checked through the store's
port: so it is checked after each kill, by the process that resumes.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio

from shoal import Application, Done, Hook, RunPath, Runtime
from shoal._engine.execution import Execution
from shoal.events import ChildEnded, RunEnded, StateUpdated, StepEnded, Update
from shoal.stores import ChildRecord, Completed, Store
from shoal.stores._protocol import Batch

from .life import Life, append, begin, lines
from .scenarios import SCENARIOS
from .stores import STORES

RUN = "run"
MANY = 1_000_000  # lives


class Tell(Hook):
    """Writes down what it is told that has to be in the store by then."""

    def __init__(self, life: Life) -> None:
        self._life = life

    def _note(self, kind: str, path: RunPath, **more: Any) -> None:
        append(self._life.told, life=self._life.number, kind=kind, run=path.id, **more)

    def on_state_updated(self, event: StateUpdated) -> None:
        outcome, update = event.outcome, event.update
        child = outcome.path.id if isinstance(outcome, Done) else None
        more = {"number": update.number, "operations": repr(update.operations)}
        self._note("update", event.path, child=child, **more)

    def on_step_ended(self, event: StepEnded) -> None:
        if event.status == "succeeded":
            self._note("step", event.path, step=event.step)

    def on_child_ended(self, event: ChildEnded) -> None:
        kind = type(event.outcome).__name__
        status = "succeeded" if isinstance(event.outcome, Done) else kind.lower()
        self._note("child", event.outcome.path, status=status)
        self._life.note_end(event.outcome.path)

    def on_run_ended(self, event: RunEnded) -> None:
        if event.status == "succeeded":
            self._note("end", event.path)


class Census:
    """All that a store has of a run and its descendants, through the port."""

    def __init__(self) -> None:
        self.updates = dict[tuple[str, int], Update]()
        self.completed = Counter[tuple[str, str]]()  # how often each run has completed each step
        self.records = dict[str, ChildRecord]()
        self.paths = dict[str, RunPath]()  # of the children
        self.status: str | None = None  # of the root run
        self.visits = set[tuple[str, str, int]]()

    async def take(self, store: Store) -> None:
        """Read it all; check that each update is there once, and applies what it should."""
        path = RunPath(run_id=RUN)
        assert isinstance(store, AbstractAsyncContextManager), "all that are put to it can be open"
        async with store:  # else each question has a connection made
            record = await store.load(RUN)
            if record is not None:
                self.status = record.status
                await self._take(store, path)

    async def _take(self, store: Store, path: RunPath) -> None:
        numbers = list[int]()
        for entry in await store.read(path):
            if isinstance(entry, Update):
                numbers.append(entry.number)
                self.updates[path.id, entry.number] = entry
            elif isinstance(entry, Completed):
                step = path.id, entry.step
                self.visits.add((*step, self.completed[step]))
                self.completed[step] += 1
        assert numbers == list(range(1, len(numbers) + 1)), f"updates {numbers} of {path!r}"
        children = await store.children(path)
        applied = [child.applied for child in children if child.applied is not None]
        assert len(set(applied)) == len(applied), f"two children, one update: {path!r}"
        assert set(applied) <= set(numbers), f"applied by no update: {path!r}"
        for child in children:
            at = RunPath(
                parent=path, step=child.step, visit=child.visit, act=child.act, key=child.key
            )
            assert at.id not in self.records, f"recorded twice: {at!r}"
            self.records[at.id], self.paths[at.id] = child, at
            await self._take(store, at)

    @property
    def succeeded(self) -> set[str]:
        """The runs that have."""
        ended = {run for run, record in self.records.items() if record.status == "succeeded"}
        return ended | ({RUN} if self.status == "succeeded" else set())

    def check_published(self, told: list[dict[str, Any]], last: int) -> None:
        """What a hook was told is there; how children ended that life ``last`` was told of, too.

        A child that had failed runs again in a later life, so of earlier ones only the good
        ends are looked for.
        """
        steps = Counter[tuple[str, str]]()
        for line in told:
            run = line["run"]
            match line["kind"]:
                case "update":
                    update = self.updates.get((run, line["number"]))
                    assert update is not None, f"told of, and not kept: {line}"
                    assert repr(update.operations) == line["operations"], f"{update} is not {line}"
                    if line["child"] is not None:
                        applied = self.records[line["child"]].applied
                        assert applied == line["number"], f"applied by {applied}: {line}"
                case "step":
                    steps[run, line["step"]] += 1
                case "child":
                    if line["status"] == "succeeded" or line["life"] == last:
                        status = self.records[run].status if run in self.records else "unknown"
                        assert status == line["status"], f"the store says {status}: {line}"
                case kind:
                    assert kind == "end", line
                    assert run in self.succeeded, f"told of, and not kept: {line}"
        for (run, step), times in steps.items():
            kept = self.completed[run, step] + (run in self.succeeded)
            assert times <= kept, f"step {step} of {run}: told {times} times, kept {kept}"


def arm(life: Life) -> None:
    """Have this process pass the places that are in the engine."""
    save, release = Execution.save, Execution.release

    async def saving(self: Execution, batch: Batch, store: Store) -> None:
        root_ended = batch.ended is not None and batch.path.parent is None
        special = "decision" if batch.decision else "finish" if root_ended else ""
        life.passes(special or "batch save")
        await save(self, batch, store)
        life.passes(special or "after save")

    async def releasing(self: Execution) -> None:
        life.passes("finish")
        await release(self)
        life.passes("finish")

    Execution.save = saving
    Execution.release = releasing


def live(life: Life, scenario: str, store: str, backend: str) -> None:
    """Live once, from what earlier lives have left: to the end of the run, or to death."""
    begin(life)
    arm(life)
    STORES[store].arm(life)
    anyio.run(_live, life, scenario, STORES[store].open(life.folder), backend=backend)


async def _live(life: Life, name: str, store: Store) -> None:
    scenario = SCENARIOS[name]
    census = Census()
    await census.take(store)
    told = lines(life.told)
    census.check_published(told, last=life.number - 1)
    kept = sorted(census.visits), sorted(census.succeeded)
    append(life.effects, life=life.number, kind="life", completed=kept[0], succeeded=kept[1])
    for run in census.succeeded - {RUN}:
        life.note_end(census.paths[run])

    app = Application(scenario.graph, name=name, store=store, hooks=[Tell(life)])
    async with Runtime(max_crashes=MANY) as runtime:  # no child is to blame for so many
        life.is_armed = True
        result = await app.run(scenario.first, id=RUN, runtime=runtime)
        life.is_armed = False

    census = Census()
    await census.take(store)
    census.check_published(lines(life.told), last=life.number)
    again = await app.run(id=RUN)
    summary = scenario.summary(result)
    assert scenario.summary(again) == summary
    kept = sorted(census.visits), sorted(census.succeeded)
    more = {"updates": len(census.updates), "summary": json.loads(summary), "text": summary}
    append(life.folder / "result", completed=kept[0], succeeded=kept[1], **more)
