"""What the functions of a program share: where they are, what goes wrong there, what they saw.

Every call of a user's function, every event that a hook is told, and every call of a store passes
a *place* here. Places are counted in each life, and a trip happens at one of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import NoReturn
from zlib import crc32

import anyio
from anyio.lowlevel import checkpoint

from shoal import Context, Done, RunPath
from shoal.events import ChildEnded, ChildRerun, Event, StepEnded
from tests.executors.fake import Exit

from .program import Program, Trip

SLOW = 1000.0
STORE_PLACES = ("save", "saved", "store")
KILLS = 2
"""Deaths in a row, of workers and processes, that condemn no child."""


class Trouble(Exception):  # not an error of ours
    """What goes wrong in a function of a program."""


class Violation(AssertionError):
    """Something that must hold does not."""


def chance(*what: object) -> int:
    """Give a number that depends on all of ``what``, the same in every process."""
    return crc32(repr(what).encode())


place: ContextVar[str] = ContextVar("place", default="")


def cancellation() -> BaseException:
    """Make the backend's cancellation, as somebody does who should not."""
    kind = anyio.get_cancelled_exc_class()
    create = getattr(kind, "_create", None)  # trio's
    return kind() if create is None else create(source="explicit")


def lineage(path: RunPath) -> Iterator[RunPath]:
    """Give a run and those above it, but for the root."""
    while path.parent is not None:
        yield path
        path = path.parent


class World:
    """One program's, in all its lives."""

    def __init__(self, program: Program, name: str = "run") -> None:
        self.program = program
        self.name = name
        """Of its run: no other one in its store is called so."""
        self.life = 0
        self.kills = 0
        """Workers that were killed, in all lives."""
        self.fired: list[Trip] = []
        self.violations: list[str] = []
        self.cancelled_by_hand = set[str]()
        """Ids of children that a trip has cancelled."""
        self.done_runs: dict[str, RunPath] = {}
        """Children that somebody was told to be Done, or whose record says so."""
        self.done_before: dict[str, RunPath] = {}
        """Those that were Done when this life began."""
        self.failed_before: dict[str, RunPath] = {}
        """Children whose failures the state has, by reduce=, since an earlier life."""
        self.done_nowhere = set[str]()
        """Those of them whose parent is kept nowhere: another life does not know of them."""
        self.has_changed = False
        self.rude = set[tuple[str, ...]]()
        """Bodies that have misbehaved."""
        self.completed = set[tuple[str, str, int]]()
        """Steps of runs, with their visits, of which the same is true."""
        self.decided = set[tuple[str, str]]()
        self.bodies = Counter[str]()
        self.is_outdated = False
        """Whether the root run may have the status of an earlier life in its store."""
        self.voided = set[str]()
        """Runs whose history is void in a store, which no hook was told yet."""
        self.begin_life({}, set(), {})

    # -- lives ----------------------------------------------------------------------------------

    def begin_life(
        self,
        visits: dict[tuple[str, str], int],
        completed: set[tuple[str, str, int]],
        done_runs: dict[str, RunPath],
    ) -> None:
        """Begin another life; what the store has is given."""
        self.life += 1
        self.counts = Counter[str]()
        self.pending: dict[str, dict[int, list[Trip]]] = {}
        for trip in self.program.trips:
            if trip.life == self.life and trip.what != "timeout":
                self.pending.setdefault(trip.at, {}).setdefault(trip.nth, []).append(trip)
        self.fired_now: list[Trip] = []
        self.killed_now = set[str]()
        self.armed: Trip | None = None
        self.dead = False
        self.hook_raised = False
        self.rude_now = False
        self.claimed = set[str]()
        """Stores that this life has claimed its run in, by name."""
        self.visits = visits
        self.completed = completed
        for run_id in self.done_nowhere:
            self.done_runs.pop(run_id, None)
        # A store may keep that a child begins afresh, and fail then; or a hook may raise before it
        # is told. What was Done runs again all the same.
        for run_id, done in list(self.done_runs.items()):
            if any(above.id in self.voided for above in lineage(done)):
                del self.done_runs[run_id]
        self.voided = set[str]()
        self.done_runs |= done_runs
        self.done_before = dict(self.done_runs)
        self.done_nowhere = set[str]()
        self.rerun = set[str]()
        self.has_lost_store = False
        """Whether a store has gone wrong in this life."""
        self.forgotten = set[str]()
        """Runs of which a store was told in this life that what it has counts no more."""
        self.own = set[str]()
        """Runs whose action has had a fan-out of its own in this life."""
        self.events: list[Event] = []
        self.running: dict[str, RunPath] = {}
        """Bodies that run now, by id of their run."""
        self.body_ends: dict[str, int] = {}
        """How many events were told when the last body of a run ended, by id of the run."""
        self.in_flight: dict[tuple[str, str], Counter[str]] = {}
        self.attempts = Counter[str]()
        self.most: dict[str, int] = {}
        """Of attempts and children at once, by the name of the action or fan-out."""
        self.starts: dict[str, list[float]] = {}
        self.interrupt: Callable[[str], None] = lambda what: None

    def violate(self, what: str) -> None:
        self.violations.append(f"life {self.life}: {what}")

    # -- places ---------------------------------------------------------------------------------

    def at(self, place: str, subject: object = "") -> str:
        """Pass a place; what goes wrong there goes wrong. Says what its caller has to do."""
        counts, pending = self.counts, self.pending
        counts[place] += 1
        counts["anything"] += 1
        if not pending:
            return ""
        trips: list[Trip] = []
        for kind in (place, "anything"):
            if kind in pending:
                trips += pending[kind].pop(counts[kind], ())
        if self.armed is not None and place in STORE_PLACES:
            trips, self.armed = [self.armed], None
        answer = ""
        for trip in trips:
            answer = self._trip(trip, place, subject) or answer
        if answer == "raises":
            self.hook_raised = self.hook_raised or place == "hook"
            raise Trouble(f"{place} {subject}, once")
        return answer

    def kill_once(self, what: str) -> None:
        """End the worker that calls this, at the first call in each life, for two calls in all.

        With the deaths of processes these are too few to condemn an innocent child.
        """
        deaths = self.kills + sum(trip.what == "dies" for trip in self.program.trips)
        if (
            self.program["executor"] == "worker dies"
            and what not in self.killed_now
            and deaths < KILLS
        ):
            self.killed_now.add(what)
            self.kills += 1
            raise Exit

    def _trip(self, trip: Trip, place: str, subject: object) -> str:
        if trip.what in ("fails", "hangs") and place not in STORE_PLACES:
            self.armed = trip
            return ""
        self.fired.append(trip)
        self.fired_now.append(trip)
        match trip.what:
            case "raises" if place in STORE_PLACES:
                return "fails"
            case "dies":
                self.dead = True
                return "dies"
            case "raises" | "slow" | "later" | "fails" | "hangs":
                return trip.what
            case _:
                self.interrupt(trip.what)
                return ""

    def enter(self, text: str) -> None:
        """Say in a context variable where we are: what is above may be seen there, no sibling."""
        seen = place.get()
        if seen not in ("", text) and not text.startswith(f"{seen}."):
            self.violate(f"at {text} the context is that of {seen}")
        place.set(text)

    def misbehave(self, *subject: str) -> None:
        """Do once what an action must not do."""
        manners = self.program["manners"]
        if manners in ("spurious", "generator exit", "cancels itself") and subject not in self.rude:
            self.rude.add(subject)
            self.rude_now = True
            if manners == "spurious":
                raise cancellation()
            if manners == "generator exit":
                raise GeneratorExit
            task = None
            with suppress(RuntimeError):  # trio has no such thing
                task = asyncio.current_task()
            if task is not None:
                task.cancel()

    @asynccontextmanager
    async def manners(self) -> AsyncGenerator[None]:
        """Live a body as a program's bodies do when they are cancelled."""
        manners = self.program["manners"]
        try:
            yield
        except anyio.get_cancelled_exc_class():
            if manners == "swallows":
                with suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep(3)
                return
            if manners == "bad cleanup":
                raise Trouble("cleanup") from None
            if manners == "slow cleanup":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.25)
            raise

    def fail_for_ever(self, place: str, subject: object) -> NoReturn:
        raise Trouble(f"{place} {subject}, always")

    # -- bodies ---------------------------------------------------------------------------------

    def begin(self, context: Context | None, name: str, *, is_leaf: bool = True) -> None:
        """Hear that a body begins; note what must not be so. One that is cached has no context."""
        if context is not None:
            self._check_not_done(context)
        if not is_leaf:
            assert context is not None
            self._begin_again(context.path)
            return
        self.attempts[name] += 1
        self.attempts["all"] += 1
        self.starts.setdefault(name, []).append(anyio.current_time())
        if context is not None:
            self.running[context.path.id] = context.path
            self._count(context.path, 1)
        for limited in (name, "all"):
            if self.attempts[limited] > self.most.get(limited, self.attempts[limited]):
                self.violate(f"{self.attempts[limited]} attempts of {limited} run at once")

    def _begin_again(self, path: RunPath) -> None:
        """Hear of an action with children of its own: kept nowhere, they run again with it."""
        is_kept = self.program["kept"] == "yes" and self.store_of(path) != "none"
        if not is_kept and path.id in self.own:
            self.rerun.add(path.id)
            self._forget(path)
        self.own.add(path.id)

    def _check_not_done(self, context: Context) -> None:
        path, step = context.path, context.step
        if self.is_rerun(path):
            return
        visit = context._run.visit(step)
        again = visit > 0 and step not in LOOPED
        if again or (path.id, step, visit) in self.completed:
            self.violate(f"{step} of {path!r} was completed, and is executed again")
        for above in lineage(path):
            if above.id in self.done_runs:
                self.violate(f"{above!r} was Done, and {step} is executed again in {path!r}")

    def end(self, context: Context | None, name: str) -> None:
        self.attempts[name] -= 1
        self.attempts["all"] -= 1
        if context is not None:
            self.running.pop(context.path.id, None)
            self._count(context.path, -1)
            for above in lineage(context.path):
                self.body_ends[above.id] = len(self.events)

    def _count(self, path: RunPath, by: int) -> None:
        """Count children in flight: those in which a body runs."""
        for above in lineage(path):
            assert above.parent is not None
            where = (above.parent.id, above.step)
            children = self.in_flight.get(where)
            if children is None:
                children = self.in_flight[where] = Counter()
            children[above.id] += by
            if not children[above.id]:
                del children[above.id]
            if len(children) > self.most.get(above.step, len(children)):
                self.violate(f"{len(children)} children of {above.step} are in flight")

    def is_rerun(self, path: RunPath) -> bool:
        return bool(self.rerun) and (
            path.root.id in self.rerun or any(above.id in self.rerun for above in lineage(path))
        )

    def is_forgotten(self, path: RunPath) -> bool:
        """Tell whether a run may have begun afresh though nobody was told.

        Its store was, and something has gone wrong there before hooks could be.
        """
        return self.has_lost_store and any(above.id in self.forgotten for above in lineage(path))

    def store_of(self, path: RunPath) -> str:
        """Say where a run is kept: in the "main" store, in one of its "own", or in "none"."""
        for above in lineage(path):
            feature = STORE_OF.get(above.step)
            if feature is not None and self.program[feature] != "inherit":
                return self.program[feature]
        return "main"

    def is_reached(self, path: RunPath) -> bool:
        """Tell whether the engine can know, in this life, which store a run is kept in.

        An action names the store of what it starts by itself, and what is below that, when it is
        executed: until then, nobody but the action knows that there is one.
        """
        hidden = ["own/fan", "outer/outer", *(["fan"] if self.program["place"] == "own" else [])]
        for above in lineage(path):
            feature = STORE_OF.get(above.step)
            if feature is not None and self.program[feature] == "own":
                name = "own" if feature == "store" else "outer"
                return above.step not in hidden or name in self.claimed
        return True

    async def rest(self, *subject: object) -> None:
        """Take some time, as the program wants it."""
        pauses = self.program["pauses"]
        if pauses == "none":
            return
        if pauses == "alike":  # so that many end in one tick, and are one batch
            await anyio.sleep(0.25)
            return
        luck = chance(self.program.seed, subject)
        for _ in range(luck % 3):
            luck //= 3
            if pauses == "turns" or (pauses == "mixed" and luck % 2):
                await checkpoint()
            else:
                await anyio.sleep((luck % 4) * 0.25)

    # -- events ---------------------------------------------------------------------------------

    def receive(self, event: Event) -> None:
        """Be told of something."""
        self.events.append(event)
        match event:
            case StepEnded(status="succeeded"):
                at = (event.run_id, event.step)
                visit = self.visits.get(at, 0)
                self.completed.add((*at, visit))
                self.visits[at] = visit + 1
            case ChildEnded():
                outcome = event.outcome
                run_id = outcome.run_id
                if isinstance(outcome, Done):
                    self.done_runs[run_id] = outcome.path
                    if self.store_of(event.path) == "none":
                        self.done_nowhere.add(run_id)
                elif run_id in self.done_runs and outcome.attempts and run_id not in self.rerun:
                    unsaved = getattr(outcome, "reason", "") == UNSAVED
                    if not unsaved:
                        self.violate(f"{outcome.path!r} was Done, and is told as {outcome!r}")
            case ChildRerun():
                self.voided.discard(event.child.id)
                self.rerun.add(event.child.id)
                self._forget(event.child)
            case _:
                pass

    def _forget(self, path: RunPath) -> None:
        """Hear that a child begins afresh: what was done in it counts no more."""
        for run_id, done in list(self.done_runs.items()):
            if path.parent is None or any(above.id == path.id for above in lineage(done)):
                del self.done_runs[run_id]


STORE_OF = {"fan": "store", "own/fan": "store", "outer": "outer_store",
            "outer/outer": "outer_store"}  # fmt: skip
"""The feature that says where the children of a step are kept."""
LOOPED = ("fan", "own", "turn")
"""Steps that a loop comes to again."""
UNSAVED = "its outcome could not be saved"
