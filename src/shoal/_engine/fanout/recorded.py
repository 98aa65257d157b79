"""What earlier executions have left: a run's history, and what becomes of a step's children.

Imports the run and what is above it.

Invariants:
- A child that has ended well and was applied is not run again, and not applied again; one that
  ended well and was not applied, is applied; any other goes on after the last step it completed.
- A child that the store has no end of, in a step that was decided, has lost: it was cancelled for
  that, or died with its process.
- A child that waits for answers rests, unrun, until one of them has come.
- A child whose digest is not the recorded one runs anew. If ``reduce`` has taken what it returned,
  nothing is run: that can't be undone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Literal, final

from shoal._engine.execution import Execution
from shoal._engine.parts import read_done, read_history
from shoal._engine.progress import own_questions, recorded_questions
from shoal._engine.run import Run
from shoal._errors.exceptions import (
    BadUse,
    InputChanged,
    NotData,
    RunConflict,
    UnknownRun,
    brief,
    did_you_mean,
    fork_advice,
    note,
)
from shoal._events.events import (
    Cancelled,
    ChildName,
    Decision,
    Done,
    Failed,
    Outcome,
    Question,
    Skipped,
    Update,
)
from shoal._events.identity import Key, RunPath
from shoal._graph.graph import Graph
from shoal._state.digest import digest
from shoal._state.state import State, make_state
from shoal.stores._history import Entry, ReplayedHistory, Rewound, play
from shoal.stores._protocol import (
    Beginning,
    Browses,
    ChildRecord,
    DoneChild,
    NullStore,
    ReadsInParts,
    Store,
)
from shoal.stores._records import UNREAD, Conflicts, Records, was_started

Fate = Literal["new", "begins again", "goes on", "runs anew", "is done", "is kept", "rests"]
"""What becomes of a child in this execution."""

_LATEST = 200
"""Runs that a mistyped id is compared with: one page of a store's list."""


async def recorded_beginning(execution: Execution, path: RunPath) -> Beginning:
    """Ask what a root run started from.

    Raises:
        StoreFailed: The store did not say.
        UnknownRun: It has none of that id.
    """
    record = await execution.ask(execution.store.load(path.id), f"run {path.id}")
    if record is None:
        raise await unknown_run(execution, path.id)
    return record.beginning


async def unknown_run(execution: Execution, run_id: str) -> UnknownRun:
    """Make the error for an id that the store does not have."""
    error = UnknownRun(f"the store has no run {run_id!r}")
    await note_similar(error, execution, run_id)
    return error


async def note_similar(error: Exception, execution: Execution, run_id: str) -> None:
    """Note which of the latest runs has an id like ``run_id``, where the store lists runs.

    A note, and no part of the message: messages are answered to the clients of a service, who may
    not know of each other's runs (see test_no_other_runs_are_told_of).
    """
    store = execution.store
    if not isinstance(store, Browses):
        return
    with suppress(Exception):  # it only helps: the error is raised without it as well
        latest = await execution.ask(store.runs(limit=_LATEST), "the latest runs")
        like = did_you_mean(run_id, [one.run_id for one in latest])
        if like:
            note(error, f"shoal: {like.removeprefix('; ')}")


async def recorded_history(
    execution: Execution, path: RunPath, beginning: Beginning, *, upto: int | None = None
) -> ReplayedHistory:
    """Play back what the store has of a root run.

    Args:
        execution: Whose store it is.
        path: The run.
        beginning: What it started from.
        upto: The number of the last update that counts; by default, all do.

    Raises:
        StoreFailed: It did not say.
        UnknownRun: It has no such update.
    """
    played = play(beginning.first, (), after=beginning.after, visits=beginning.visits)
    upto_there = None if upto is None else _Upto(upto)

    def take(entries: Sequence[Entry]) -> None:
        for entry in entries if upto_there is None else upto_there.cut(entries):
            played.add(entry)

    await read_history(execution, execution.store, path, take)
    if upto_there is not None and not 0 <= upto_there.number <= upto_there.last:
        msg = (
            f"run {path.id} has updates 1 to {upto_there.last}, so it can't be forked at "
            f"{upto_there.number}"
        )
        raise UnknownRun(msg)
    return played


@final
class _Upto:
    """Leaves out what came after the update of some number, and after what that completed."""

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.last: int = 0
        """The number of the last update that there is."""
        self._is_over = False
        self._rewound: Rewound | None = None  # counts if the update behind it does

    def cut(self, entries: Sequence[Entry]) -> Iterator[Entry]:
        """Return those of the next entries that count."""
        for entry in entries:
            if isinstance(entry, Update):
                self.last = entry.number
                self._is_over = self._is_over or entry.number > self.number
            if self._is_over:
                continue
            if self._rewound is not None:
                yield self._rewound
            self._rewound = entry if isinstance(entry, Rewound) else None
            if self._rewound is None:
                yield entry


async def recorded_children(
    run: Run, step: str, visit: int, store: Store, *, folds: bool = False, in_full: bool = True
) -> RecordedChildren | None:
    """Ask what earlier executions, and attempts, have left of the children of a visit of a step.

    Args:
        run: Their parent.
        step: The step's name.
        visit: Which visit of it.
        store: Where the children are kept, which need not be where their parent is.
        folds: Whether ``reduce`` takes what they return.
        in_full: Whether values and elements of those that are done are needed.

    Raises:
        StoreFailed: A store did not say.
        RunClaimed: The children's store has an execution of the run already.
    """
    config, path = run.config, run.path
    execution, what = config.execution, f"the children of step {step!r} of run {path.id}"
    records = Records()
    if store is not config.store and not isinstance(store, NullStore):
        await execution.claim(store, path.root.id)
        for record in await execution.ask(store.children(path, step, visit), what):
            records.add(record)
    if execution.is_resumed or run.attempt > 1:
        await _read_records(run, step, visit, records, what, in_full=in_full)
    if not records:
        return None
    return RecordedChildren(run, step, records, folds=folds, forgets=isinstance(store, NullStore))


async def _read_records(
    run: Run, step: str, visit: int, records: Records, what: str, *, in_full: bool
) -> None:
    """Add what the parent's own store says to ``records``."""
    execution, store, path = run.config.execution, run.config.store, run.path
    has_undone = False
    playback = run.playback
    numbers = frozenset(() if playback is None else (one.number for one in playback.under_way))

    def take(children: Sequence[DoneChild]) -> None:
        nonlocal has_undone
        has_undone = has_undone or any(run.is_undone(one.applied) for one in children)
        records.add_done(children, numbers)

    if isinstance(store, ReadsInParts) and not in_full:
        await read_done(execution, store, path, step, visit, take=take)
        if not has_undone:  # else they are applied once more, which takes their values
            for record in await execution.ask(store.not_done(path, step, visit), what):
                records.add(record)
            return
    for record in await execution.ask(store.children(path, step, visit), what):
        records.add(record)


def conflict(parent: Run, step: str, why: str) -> RunConflict:
    """Say that a program can't go on with a step that another one has begun, and what to do.

    The execution ends with that, whatever ``on_error`` of a fan-out around it says.
    """
    run_id, root = parent.path.id, parent.path.root.id
    error = RunConflict(
        f"fan-out {step!r} of run {run_id} was begun by a program in which {why}, and some of its "
        f"results are there already; change that back to go on with it, or "
        f"{fork_advice(root, parent.config.execution.forks_at)}"
    )
    return parent.config.execution.refuse(error)


@final
class RecordedChildren:
    """The recorded children of one execution of a step."""

    __slots__ = (
        "_alike",
        "_folds",
        "_forgets",
        "_left",
        "_parent",
        "_who",
        "acts",
        "acts_done",
        "acts_in_order",
        "acts_now",
        "compares",
        "conflicts",
        "done_left",
        "has_contest",
        "has_other_acts",
        "last_position",
        "renamed",
        "reruns",
        "started",
    )

    def __init__(
        self, parent: Run, who: str, records: Records, *, folds: bool = False, forgets: bool = False
    ) -> None:
        """Collect them.

        Args:
            parent: The run that they are children of.
            who: The step's name, for errors.
            records: What is said of each.
            folds: Whether ``reduce`` takes what they return.
            forgets: Whether nothing is kept of the children but how they ended.
        """
        self._parent = parent
        self._who = who
        self._forgets = forgets
        self._folds = folds
        self._left = records
        self.last_position: int = records.last_position
        self.started: int = records.started
        """How many of them have been started."""
        # What reduce has taken of the others, the records that were read in full say.
        done = 0 if folds else records.done
        self.done_left: int = done + sum(map(self._is_done, records.others))
        """How many are Done and have not come up yet, but for those that ``reduce`` has taken."""
        self.acts: frozenset[str] = frozenset(records.acts)
        """The names of the acts that they are of."""
        self.acts_done: frozenset[str] = frozenset(records.acts_done)
        """Those of acts that have results."""
        self.acts_now: frozenset[str] | None = None
        """The names of the acts that are executed now; None: each child may be of its own."""
        self.acts_in_order: tuple[Sequence[str], Sequence[str]] | None = None
        """The acts of a step, then and now, if those are others: a child's place counts acts."""
        self.renamed: tuple[str, str] | None = None
        """The name of the only act, then and now, if that has changed."""
        self.compares: bool = False
        """Whether a child without a record is compared with what is recorded of its place."""
        self.conflicts: Conflicts | None = None
        """Why results can't be gone on with as they are recorded; None: all of them can."""
        self.has_other_acts: bool = False
        """Whether some of them may be of acts, or versions of acts, that are not executed now."""
        self.has_contest: bool = False
        """Whether the step may be decided before all have ended."""
        self.reruns: set[ChildName] = set()
        """Children that have come up and go on or run anew: an old result of one may be there."""
        self._alike: Counter[str] | None = None  # how many work on the same; made when asked for

    def leave_out(self, acts: Collection[str]) -> None:
        """Have the children of acts that are gone count no more as started: none of them is done.

        Else ``at_most`` would leave no room for those that stand in their place (see
        test_children_of_an_act_that_is_gone_take_no_place_of_at_most).
        """
        self.started -= sum(map(was_started, self._left.of(acts)))

    def get(self, child: ChildName) -> ChildRecord | None:
        """Return what is recorded of a child that has not come up yet."""
        return self._left.get(child)

    def drop(self, child: ChildName) -> None:
        """Have it that a child has come up."""
        record = self._left.pop(child)
        self.done_left -= record is not None and self._is_done(record)

    @property
    def left(self) -> int:
        """How many have not come up yet."""
        return len(self._left)

    def rest(self) -> Sequence[ChildRecord]:
        """Return those that have not come up, in input order."""
        return list(self._left)

    async def in_full(self, records: Sequence[ChildRecord]) -> Sequence[ChildRecord]:
        """Return records with what children have worked on and come to, read once more if need be.

        Raises:
            StoreFailed: The store did not say.
        """
        unread = {ChildName(one.act, one.key) for one in records if one.element is UNREAD}
        if not unread:
            return records
        config, path, one = self._parent.config, self._parent.path, records[0]
        asked = config.store.children(path, one.step, one.visit)
        found = await config.execution.ask(asked, f"the children of step {self._who!r}")
        read = {ChildName(one.act, one.key): one for one in found}
        return [read.get(ChildName(one.act, one.key), one) for one in records]

    def applied_by(self, numbers: Collection[int]) -> Iterator[ChildRecord]:
        """Go through those that updates of these numbers have applied: of ``under_way``."""
        for record in (*self._left.applied_first, *self._left.others):
            if record.applied in numbers and self.is_applied(record):
                yield record

    def folded(self) -> tuple[int, Iterator[ChildRecord]]:
        """Return what ``reduce`` has taken: how many that are done, and the records of others."""
        done = self._left.done if self._folds else 0
        return done, filter(self.is_folded, self._left.others)

    def judge(self, child: Run) -> tuple[Fate, ChildRecord | None]:
        """Decide what becomes of ``child``, which comes up now.

        Raises:
            InputChanged: It would have to run anew, and ``reduce`` has taken its result.
            RunConflict: It has a result that the program can't go on with, since it has changed.
        """
        name = ChildName(child.config.act, child.key)
        record = self._left.get(name)
        if record is None:
            if self.compares:
                self._refuse_renamed(child)
            return "new", None
        fate = self._fate(child, record)
        # Only now: where that raised, the child may come up once more.
        self._left.pop(name)
        self.done_left -= self._is_done(record)
        if self.has_contest and fate not in ("is done", "is kept", "new"):
            self.reruns.add(name)
        return fate, None if fate == "new" else record

    @property
    def may_refuse(self) -> bool:
        """Whether there may be a child that can't be gone on with when it comes up."""
        return self.conflicts is not None or (self._folds and self.has_other_acts)

    def foresee(self, child: Run, record: ChildRecord, *, comes_up: bool) -> None:
        """Refuse a child that would be refused when it comes up: before others are applied.

        Args:
            child: What it would be.
            record: What is recorded of it.
            comes_up: Whether it surely does. What ``reduce`` has taken stays if it does not.

        Raises:
            InputChanged: As ``judge``.
            RunConflict: As ``judge``.
        """
        if comes_up or not self.is_folded(record) or record.digest == child.digest:
            self._fate(child, record)

    def _fate(self, child: Run, record: ChildRecord) -> Fate:
        applied = self.is_applied(record)
        if record.status == "skipped" and record.used:  # for its key alone, whatever else it is now
            return "is kept" if applied else "new"
        if record.digest != child.digest:
            if self.is_folded(record):
                then, now = self.renamed or (child.config.act, child.config.act)
                was = "" if then == now else f" ({then!r}, now {now!r})"
                msg = (
                    f"fan-out {self._who!r}: what key {brief(child.key)} works on, its act{was} or "
                    f"the act's version has changed since its result was reduced (run "
                    f"{child.path.id}); reduce can't be undone: "
                    f"{fork_advice(child.path.root.id, child.config.execution.forks_at)}"
                )
                raise self._parent.config.execution.refuse(InputChanged(msg))
            return "runs anew"
        if self.is_part_of_the_state(record):
            self.refuse_kept(record)
            return "is kept"
        if record.status == "succeeded":  # also where nothing else is kept of it
            if self.conflicts is not None and self.conflicts.of_value:
                raise conflict(self._parent, self._who, self.conflicts.of_value)
            return "is done"
        if self._forgets:
            return "begins again"  # it is counted in ``started``, so it may: it is no other child
        return "rests" if self._waits(child, record) else "goes on"

    def done_elsewhere(self) -> int:
        """Count the children that have not come up and stay Done, since their results stay."""
        if not self.done_left:
            return 0
        done = 0 if self._folds else self._left.done
        others = filter(self._is_done, self._left.others)
        return done + sum(map(self.is_part_of_the_state, others))

    def _is_done(self, record: ChildRecord) -> bool:
        return record.status == "succeeded" and not self.is_folded(record)

    def refuse_kept(self, record: ChildRecord) -> None:
        """Refuse to keep a result as it is recorded, if it can't stay.

        Raises:
            RunConflict: Saying what has changed.
        """
        why = "" if self.conflicts is None else self.conflicts.of_kept(record)
        if why:
            raise conflict(self._parent, self._who, why)

    def _refuse_renamed(self, child: Run) -> None:
        """Refuse a child that is new by its name alone, where another one of its place is done.

        Raises:
            RunConflict: Its act or its key had another name.
        """
        place, act = self._place_then(child), child.config.act
        record = None if place is None else self._left.at(place)
        if record is None:
            return
        if record.status != "succeeded":
            return  # it has no result that could be lost
        if record.key == child.key and self.acts_now is None and record.act != act:
            why = (
                f"child {child.position}, key {brief(child.key)}, was of act {record.act!r}, and "
                f"now it is of {act!r} (if the act was renamed, give it its old name with name=; "
                f"what was added stands behind what was there)"
            )
            raise conflict(self._parent, self._who, why)
        if record.act == act and record.key != child.key and self._works_on_same(record, child):
            why = (
                f"element {child.position} had the key {brief(record.key)}, and now it has "
                f"{brief(child.key)}"
            )
            raise conflict(self._parent, self._who, why)

    def _place_then(self, child: Run) -> int | None:
        """Return the place that a child would have had among the acts of then; None: it has none.

        Without that, the place of another element may be meant (see
        test_elements_that_are_the_same_are_not_taken_for_each_other).
        """
        if self.acts_in_order is None or self.renamed is not None:
            return child.position
        (then, now), act = self.acts_in_order, child.config.act
        if act not in then:
            return None
        return child.position // len(now) * len(then) + then.index(act)

    def _works_on_same(self, record: ChildRecord, child: Run) -> bool:
        """Tell whether a child works on what is recorded of another one."""
        if record.digest != child.digest:
            return False
        if self.acts_now is None:
            if self._alike is None:
                self._alike = Counter(one.digest for one in self._left)
            if self._alike[record.digest] > 1:
                return False  # tasks that only their keys tell apart
        if record.element is UNREAD:
            return True  # the element is part of the digest
        try:
            return digest(record.element) == digest(child.element)
        except NotData:
            return False

    def _waits(self, child: Run, record: ChildRecord) -> bool:
        """Tell whether nothing that a child is halted for has been answered."""
        if record.status != "halted":
            return False
        answers = child.config.execution.answers
        asked = recorded_questions(record.value, child.path)
        return bool(asked) and not any(one.id in answers for one in asked)

    def has_done(self, act: str, key: Key) -> bool:
        """Tell whether that child has yet to come up, and is part of the state."""
        record = self._left.get(ChildName(act, key))
        return record is not None and self.is_part_of_the_state(record)

    def is_part_of_the_state(self, record: ChildRecord) -> bool:
        """Tell whether what a child has come to is where ``into`` or ``reduce`` puts it."""
        counts = self._folds or record.status in ("succeeded", "skipped")
        return counts and self.is_applied(record)

    def is_folded(self, record: ChildRecord) -> bool:
        """Tell whether ``reduce`` has taken what a child has come to, which can't be undone."""
        return self._folds and self.is_applied(record)

    def is_applied(self, record: ChildRecord) -> bool:
        """Tell whether an update that counts has applied a child."""
        number = record.applied
        return number is not None and not self._parent.is_undone(number)


async def read_questions(
    execution: Execution, path: RunPath, graph: Graph
) -> tuple[Sequence[Question], ReplayedHistory]:
    """Read what a root run and its descendants have asked in the steps under way, in order.

    Args:
        execution: Whose store it is.
        path: The run.
        graph: What it walks.

    Returns that, answered or not, and where its history leads.

    Raises:
        StoreFailed: The store did not say.
        UnknownRun: It has none of that id.
    """
    played = await recorded_history(execution, path, await recorded_beginning(execution, path))
    reading = execution.store.children(path)
    children = await execution.ask(reading, f"the children of run {path.id}")
    return recorded_asked(path, graph, played, children), played


def recorded_asked(
    path: RunPath, graph: Graph, played: ReplayedHistory, children: Iterable[ChildRecord]
) -> list[Question]:
    """Find what a root run and its descendants have asked in the steps under way, in order."""
    found = own_questions(path, played.asked.values())
    children = list(children)
    failed = {(one.step, one.visit, one.act, one.key) for one in children if one.status == "failed"}
    resting = [
        record
        for record in children
        if record.status == "halted"
        and record.visit == _visit(record.step, graph, played)
        and not _has_lost(record, played, failed)
    ]
    for record in sorted(resting, key=lambda one: (one.step, one.position)):
        found += recorded_questions(record.value, path)
    return found


def _has_lost(
    record: ChildRecord, played: ReplayedHistory, failed: Collection[tuple[str, int, str, Key]]
) -> bool:
    """Tell whether a race was decided without a child that rests, which is not recorded yet.

    Where the winner has failed since, the race may have been run again, and the child waits in it.
    """
    decision = played.decided.get((record.step, record.visit))
    if decision is None:
        return False
    winner = decision.winner
    has_failed = (record.step, record.visit, winner.act, winner.key) in failed
    return winner != ChildName(record.act, record.key) and not has_failed


def _visit(step: str, graph: Graph, played: ReplayedHistory) -> int:
    """Return which visit is under way of a step; of an action's own fan-out, that of the action."""
    action, _, _ = step.rpartition("/")
    return played.visit(action if graph.find(step) is None else step)


async def read_outcomes(
    run: Run, step: str, visit: int, kept_in: Store | None = None
) -> AsyncIterator[Outcome]:
    """Read how all children of one visit of a step ended, those that are Done too, in input order.

    Args:
        run: Their parent, whose store has how they ended.
        step: The step's name.
        visit: Which visit of it.
        kept_in: The store that has their histories; by default the same.

    Raises:
        BadUse: Nothing was kept of them.
        StoreFailed: The store did not say.
    """
    config, path = run.config, run.path
    if isinstance(config.store, NullStore):
        msg = (
            f"run {path.id} has no store, so only counts are known of its children that are Done; "
            f"their values are where into= or reduce= has put them"
        )
        raise BadUse(msg)
    execution, what = config.execution, f"the children of step {step!r} of run {path.id}"
    records = await execution.ask(config.store.children(path, step, visit), what)
    decision: Decision | None = None
    if any(is_unended(record) for record in records):
        beginning = await recorded_beginning(execution, path)
        played = await recorded_history(execution, path, beginning)
        decision = played.decided.get((step, visit))
    for record in sorted(records, key=lambda one: one.position):
        record = decided(record, decision)  # noqa: PLW2901 # the same, as it ended
        if is_unended(record):  # forgotten, since it came up no more
            continue
        outcome = outcome_of(record, path)
        if isinstance(outcome, Done):
            reading = (config.store if kept_in is None else kept_in).read(outcome.path)
            entries = await execution.ask(reading, what)
            written = make_state(play({}, entries).data)
            outcome = outcome_of(record, path, written)
        yield outcome


def is_unended(record: ChildRecord) -> bool:
    """Tell whether a child has no end: is under way, or rests."""
    return record.status in (None, "halted")


def decided(record: ChildRecord, decision: Decision | None) -> ChildRecord:
    """Say how a child ended of a step that is over by ``decision``, if it is by one."""
    if decision is None or not is_unended(record):
        return record
    return record._replace(
        status="cancelled", value=None, reason=decision.reason, winner=decision.winner
    )


def outcome_of(record: ChildRecord, parent: RunPath, state: State | None = None) -> Outcome:
    """Make the outcome that was recorded of a child of the run ``parent``.

    Args:
        record: What the store says of the child.
        parent: Where its parent stands.
        state: What it has written, if it is Done.
    """
    path = RunPath(
        act=record.act, parent=parent, step=record.step, visit=record.visit, key=record.key
    )
    position, element = record.position, record.element
    attempts, elapsed, abandoned = record.attempts, record.elapsed, record.abandoned
    match record.status:
        case "failed":
            assert record.error is not None, "a store keeps what a child failed with"
            return Failed(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                error=record.error,
            )
        case "cancelled":
            return Cancelled(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                reason=record.reason,
                winner=record.winner,
            )
        case "skipped":
            return Skipped(path=path, position=position, element=element, reason=record.reason)
        case _:
            return Done(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                value=record.value,
                state=make_state({}) if state is None else state,
                used=record.used,
            )
