"""Living a program: life after life, until it has succeeded, or fails for good."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from shoal import MemoryStore, RunCancelled, RunClaimed, RunConflict, StoreFailed
from shoal.errors import BadUse, CommitInDoubt, HookFailed, InputChanged, LeaseLost
from shoal.events import Update
from shoal.stores._history import StepBegun
from shoal.testing import VirtualDeadlock, run_virtual
from shoal.testing._invariants import leaves

from . import judge
from .build import Builder
from .hooks import witness
from .model import Model
from .program import Backend, Program
from .stores import Mortal, look, merge
from .world import Violation, World

MOST_LIVES = 14
MOST_HALTS = 100
RUN = "run"
RUNS = count()


@dataclass(slots=True)
class Report:
    """What has become of a program."""

    program: Program
    backend: Backend
    violations: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = "".join(f"\n  ! {violation}" for violation in self.violations)
        lives = ", ".join(self.ends)
        return (
            f"{self.program}\n  on {self.backend}, lives: {lives}{lines}"
            f"\n  again: python -m tests.borders --backend {self.backend} {self.program.command}"
        )


class Player:
    """Plays one program."""

    def __init__(self, program: Program, backend: Backend, make_store: Any = MemoryStore) -> None:
        self.program = program
        self.backend: Backend = backend
        self.run_id = RUN if make_store is MemoryStore else f"{RUN}{next(RUNS)}"
        self.world = World(program, self.run_id)
        self.world.life = 0
        kept = program["kept"] == "yes"
        own = "own" in (program["store"], program["outer_store"])
        self.stores: dict[str, Any] = {"main": make_store() if kept else None}
        self.stores |= {name: MemoryStore() if own else None for name in ("own", "outer")}
        self.report = Report(program, backend)
        self.is_changed = False
        self.was_changed = False
        self.has_reduced = False
        """Whether the changed program has had results reduced."""
        self.is_stuck = False
        """Whether neither program can go on: see docs/changed-programs.md."""
        self.begun_beside = set[str]()
        """Runs whose fan-out the changed program has begun beside one of the former."""
        self.rude = 0
        """Lives that failed by a body that misbehaves once: no more than there are bodies."""
        self.has_died = False
        self.seen: dict[str, Any] = {}
        self.result: Any = None
        self.app: Any = None

    def play(self) -> Report:
        """Live all lives, and judge."""
        try:
            with noticing(self.world.violations):
                run_virtual(self._play, backend=self.backend, seed=self._schedule)
        except VirtualDeadlock as error:
            self.world.violate(f"hangs: {str(error)[:2000]}")
        except (Violation, *UNEXPECTED) as error:
            if isinstance(error, BaseExceptionGroup) and error.subgroup(VirtualDeadlock):
                self.world.violate("hangs")
            else:
                self.world.violate(f"{type(error).__name__}: {error}{_where(error)}")
        self.report.violations = self.world.violations
        return self.report

    @property
    def _schedule(self) -> int | None:
        """What decides the order of steps; trio has none by itself."""
        schedule = self.program.schedule
        return 0 if schedule is None and self.backend == "trio" else schedule

    async def _play(self) -> None:
        await cancel_shielded_checkpoint()
        ends = self.report.ends
        while len(ends) - ends.count("halted") - self.rude < MOST_LIVES and len(ends) < MOST_HALTS:
            end = await self._live()
            ends.append(end)
            self.rude += self.world.rude_now and end == "failed"
            if self.world.violations or self.is_stuck:
                return
            if end == "succeeded":
                break
            if self.stores["main"] is None:
                break
            if end == "failed" and self._fails_for_good():
                break
        else:
            self.world.violate(f"comes to no end in {len(ends)} lives: {ends}")
            return
        model = Model(self.program, changed=self.was_changed)
        judge.judge_end(self.world, model, ends[-1], self.result)
        if (
            ends[-1] == "succeeded"
            and self.stores["main"] is not None
            and self.program.seed % 3 == 0
        ):
            await self._live_again(model)

    def _fails_for_good(self) -> bool:
        """Tell whether nothing went wrong in the last life that happens only once."""
        last = max([trip.life for trip in self.program.trips], default=0)
        went_wrong = bool(self.world.fired_now) or self.world.rude_now
        return self.world.life > max(last, 1) and not went_wrong

    async def _live_again(self, model: Model) -> None:
        """Run what has succeeded once more: nothing is executed, and all is as it was."""
        before = judge.summary(self.result)
        executed = sum(self.world.counts[place] for place in ("act",))
        self.world.program = self.program.__class__(
            self.program.seed, self.program.row, (), self.program.schedule
        )
        end = await self._live()
        self.report.ends.append(end)
        if end != "succeeded":
            self.world.violate(f"it has succeeded, and run again it {end}")
            return
        if self.world.counts["act"]:
            self.world.violate("it has succeeded, and run again it executes actions")
        after = judge.summary(self.result)
        if before != after and not self.world.has_changed:
            self.world.violate(f"it has succeeded with {before}, run again with {after}")
        del executed

    async def _live(self) -> str:
        world, program = self.world, self.program
        if world.life + 1 == program.changes_in and program["change"] != "no":
            self.is_changed = self.was_changed = world.has_changed = True
        world.begin_life(*judge.known_from(self.seen))
        world.failed_before = {
            run_id: one.path
            for run_id, one in self.seen.items()
            if one.record is not None
            and one.record.status == "failed"
            and one.record.applied is not None
        }
        names = [name for name, store in self.stores.items() if store is not None]
        if self.app is None or self.app[0] != self.is_changed:
            stores = {name: Mortal(world, self.stores[name]) for name in names}
            kept = {"own": None, "outer": None, **stores}
            builder = Builder(world, changed=self.is_changed, stores=kept)
            app = builder.application(stores.get("main"), [witness(world)])
            self.app = (self.is_changed, builder, stores, app)
        _, builder, stores, app = self.app
        for name in names:
            stores[name].begin(self.stores[name], has_died=self.has_died)
        world.most = builder.limits
        given: Any = builder.given()
        if self.run_id in self.seen and program.seed % 3:
            given = None
        tasks = self._tasks()
        end = await self._run(app, given)
        for _ in range(3):
            await cancel_shielded_checkpoint()
        for _ in range(50):
            if self._tasks() <= tasks:
                break
            await cancel_shielded_checkpoint()
        else:
            names_left = [task.name for task in anyio.get_running_tasks()]
            world.violate(f"something is alive afterwards: {names_left}")
        self.has_died = world.dead
        world.claimed = {name for name, store in stores.items() if store.holders}
        for name, store in stores.items():
            if isinstance(store.inner, MemoryStore):
                claimed = list(store.inner._claims)
                if claimed and not world.dead and not self._may_stay_claimed():
                    world.violate(f"run {claimed} was not given back")
                self.stores[name] = store.inner.copy()
            else:
                await store.give_back()
        seen: dict[str, Any] = {}
        paths = {event.path for event in world.events if world.store_of(event.path) != "none"}
        told = sorted(paths, key=lambda path: path.depth)
        for name in names:
            merge(seen, await look(self.stores[name], self.run_id, told))
        judge.judge_life(world, end, before=self.seen, seen=seen, run_id=self.run_id)
        if self.is_changed and _reduced(seen) > _reduced(self.seen):
            self.has_reduced = True
        if self.is_changed and _is_left(self.seen, seen):
            self.begun_beside |= _begun(seen) - _begun(self.seen)
        self.seen = seen
        if end == "refused":
            self.is_stuck = not self.is_changed
            self.is_changed = False
        return end

    def _may_refuse(self, error: BaseException) -> bool:
        """Tell whether this program may refuse to go on.

        The former one does where both have had results reduced, for it could not be known before an
        element came up that it was one of those; and where each has begun the fan-out of another
        child, and the changed one has had results applied there (see ``_is_left``).
        """
        if self.is_changed:
            return True
        if not isinstance(error, InputChanged):
            return any(
                f"of run {run_id} " in str(error) and _has_updates(self.seen[run_id])
                for run_id in self.begun_beside
            )
        row = self.program.row
        is_known = row["form"] != "class" and row["source"] in ("list", "field")
        return self.has_reduced and (not is_known or row["grow"] == "yes")

    def _may_stay_claimed(self) -> bool:
        return any(
            trip.what in ("fails", "hangs", "raises", "teardown") for trip in self.world.fired_now
        )

    def _tasks(self) -> int:
        if self.backend == "asyncio":
            return len(asyncio.all_tasks())
        import trio  # optional

        return trio.lowlevel.current_statistics().tasks_living

    async def _run(self, app: Any, given: Any) -> str:
        """Live one life; say how it ended."""
        world = self.world
        trips = [trip for trip in self.program.trips if trip.life == world.life]
        whats = {trip.what for trip in trips} if world.program is self.program else set[str]()
        answers: dict[Any, Any] = {}
        if self.report.ends[-1:] == ["halted"] and self.result is not None:
            some = self.result.questions
            if self.program.seed % 2 and len(self.report.ends) < MOST_LIVES:
                some = some[:1]
            answers = {one.address: "yes" for one in some}
        scope = anyio.CancelScope()
        if "timeout" in whats:
            nth = next(trip.nth for trip in trips if trip.what == "timeout")
            scope.deadline = anyio.current_time() + nth * 0.25
        handle: Any = None
        opened = bool(whats & {"cancel", "child"}) or self.program.seed % 4 == 0
        task: asyncio.Task[str] | None = None
        requests = 0

        def interrupt(what: str) -> None:
            nonlocal requests
            native = self.backend == "asyncio" and task is not None
            if what in ("native", "twice", "both") and native:
                assert task is not None
                requests += task.cancel()
                if what == "twice":
                    requests += task.cancel()
                if what == "both":
                    scope.cancel()
            elif what in ("scope", "native", "twice", "both", "teardown") and not native:
                scope.cancel()
            elif what == "teardown":
                for other in asyncio.all_tasks():
                    if other is not self._main:
                        requests += other.cancel() if other is task else 0
                        other.cancel()
            elif handle is not None and handle.status is None:
                with suppress(BadUse):
                    if what == "cancel":
                        handle.cancel("by hand")
                    elif what == "child" and world.running:
                        path = min(world.running.values(), key=lambda path: path.id)
                        if path.parent is not None:
                            world.cancelled_by_hand.add(path.id)
                            handle.cancel_child(path, "by hand")

        world.interrupt = interrupt

        async def call() -> Any:
            nonlocal handle
            if not opened:
                return await app.run(given, id=self.run_id, answers=answers or None)
            async with app.open(given, id=self.run_id, answers=answers or None) as handle:
                return await handle.result()

        async def live() -> str:
            end = ""
            with scope:
                end = await self._end_of(call)
            if scope.cancelled_caught != (not end):
                world.violate("a cancel was lost, or came from nowhere")
            return end or "cancelled"

        if self.backend == "trio" or not whats & {"native", "twice", "both", "teardown"}:
            return await live()
        self._main = asyncio.current_task()
        task = asyncio.create_task(live())
        await asyncio.wait([task])
        torn_down = any(trip.what == "teardown" for trip in world.fired_now)
        if not torn_down:
            if task.cancelled() != (requests > 0):
                world.violate("a native cancel was lost, or came from nowhere")
            if task.cancelling() != requests:
                world.violate(f"{requests} cancels were asked for, {task.cancelling()} are pending")
        return "cancelled" if task.cancelled() else task.result()

    async def _end_of(self, call: Callable[[], Awaitable[Any]]) -> str:
        """Run it, and say how it ended."""
        try:
            self.result = await call()
        except RunCancelled:
            return "cancelled"
        except RunConflict as error:
            if not self._may_refuse(error):
                raise
            return "refused"
        except Exception as error:  # judged
            return self._judge_error(error)
        return "halted" if self.result.status == "halted" else "succeeded"

    def _judge_error(self, error: Exception) -> str:
        found = list(leaves(error))
        hang = next((leaf for leaf in found if isinstance(leaf, VirtualDeadlock)), None)
        if hang is not None:
            self.world.violate(f"hangs: {str(hang)[:2000]}")
            return "failed"
        if any(
            isinstance(leaf, StoreFailed | CommitInDoubt | RunClaimed | LeaseLost) for leaf in found
        ):
            whats = {trip.what for trip in self.world.fired_now}
            if not whats & {"dies", "fails", "hangs", "raises"}:
                self.world.violate(f"the store is blamed for nothing: {error!r}")
            return "stopped"
        if any(isinstance(leaf, HookFailed) for leaf in found):
            if not self.world.hook_raised:
                self.world.violate(f"a hook is blamed for nothing: {error!r}")
            return "stopped"
        if any(isinstance(leaf, RunConflict) and self._may_refuse(leaf) for leaf in found):
            return "refused"
        judge.judge_failure(self.world, found)
        return "failed"


def _reduced(seen: Mapping[str, Any]) -> int:
    """Count what reduce= has been given, as far as it is kept."""
    entries = (entry for one in seen.values() for entry in one.history)
    return sum(isinstance(entry, Update) and entry.step == "fan" for entry in entries)


def _begun(seen: Mapping[str, Any]) -> set[str]:
    """Find the runs that have begun the fan-out in the middle."""
    return {
        run_id
        for run_id, one in seen.items()
        if any(isinstance(entry, StepBegun) and entry.step == "fan" for entry in one.history)
    }


def _has_updates(one: Any) -> bool:
    return any(isinstance(entry, Update) for entry in one.history)


def _is_left(before: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
    """Tell whether a fan-out that was under way is as it was, so it was refused, or not compared.

    A child that waits for answers is compared when it has them, any other one when the store has
    said what there is of it: fan-outs of other children may begin before that.
    """
    return any(
        (was := before[run_id]).record is not None
        and was.record.status != "succeeded"
        and run_id in seen
        and seen[run_id].history == was.history
        for run_id in _begun(before)
    )


UNEXPECTED = (Exception, BaseExceptionGroup)


def _where(error: BaseException) -> str:
    import traceback  # only for what is wrong

    return "\n" + "".join(traceback.format_exception(error))[-3000:]


@contextmanager
def noticing(violations: list[str]) -> Generator[None]:
    """Note warnings and what is raised where nobody can catch it."""
    before = sys.unraisablehook

    def note(unraisable: Any) -> None:
        violations.append(f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sys.unraisablehook = note
        try:
            yield
        finally:
            sys.unraisablehook = before
    violations += [f"warning: {one.message}" for one in caught]


AT_ONCE = 50  # programs whose garbage is collected together


def play_all(
    programs: Iterable[Program], backend: Backend, make_store: Any = MemoryStore
) -> Iterator[Report]:
    """Play many. What only shows when garbage is collected is looked for in some at once."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        some: list[Program] = []
        for program in programs:
            some.append(program)
            yield play(program, backend, make_store)
            if len(some) == AT_ONCE:
                yield from _late(some, backend, make_store)
                some = []
        yield from _late(some, backend, make_store)
    finally:
        gc.enable()


def _late(programs: Sequence[Program], backend: Backend, make_store: Any) -> Iterator[Report]:
    """Find out in which program there is something that shows when garbage is collected."""
    found: list[str] = []
    with noticing(found):
        gc.collect()
    if found:
        for program in programs:
            report = play(program, backend, make_store, collect=True)
            if report.violations and report.violations[0].startswith(("warning", "unraisable")):
                yield report


def play(
    program: Program, backend: Backend, make_store: Any = MemoryStore, *, collect: bool = False
) -> Report:
    """Play a program."""
    player = Player(program, backend, make_store)
    report = player.play()
    if collect:
        with noticing(report.violations):
            del player
            gc.collect()
    return report
