"""What must hold of every run, as far as it is seen from outside: by its hooks, store and result.

The functions return or raise a `Violation` for each of DESIGN's promises: events in order and by
pairs, updates without gaps, what was told is kept, one end per child, a decision that stays, a
store whose state is the result's. A child that begins afresh, because its input has changed, is
another one, and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from shoal._errors.exceptions import (
    BadUse,
    BudgetExceeded,
    ChangedInPlace,
    CommitInDoubt,
    DefinitionError,
    HookFailed,
    LeaseLost,
    NobodyAccepted,
    Poisoned,
    RunConflict,
    SavedError,
    ShoalError,
    StateError,
    StoreFailed,
    TooFewChildren,
    brief,
)
from shoal._events.events import (
    Cancelled,
    ChildEnded,
    ChildRerun,
    ChildStarted,
    Done,
    ErrorInfo,
    GraceExceeded,
    RunStarted,
    StateUpdated,
    Status,
    Update,
)
from shoal._events.identity import RunPath
from shoal._state.secrets import Secret
from shoal.stores._history import Entry, play
from shoal.stores._memory import MemoryStore
from shoal.stores._protocol import Beginning, ChildRecord
from shoal.testing._faults import ACTION, HOOK, KILLS, LONG, READ, SAVE, Fault
from shoal.testing._faulty_acts import InjectedFault
from shoal.testing._faulty_hooks import HookFault
from shoal.testing._faulty_store import FaultyStore, StoreFault, kept_runs
from shoal.testing._recording import RecordingHook
from shoal.testing._violation import Violation
from shoal.testing._well_formed import second_decisions

if TYPE_CHECKING:
    from shoal._runtime.result import RunResult
    from shoal.testing._lives import Life

_OURS = (InjectedFault, StoreFault, HookFault)
_MOST = 300  # characters of a message
_NEVER = (BadUse, DefinitionError, StateError, ChangedInPlace, RunConflict)
"""Errors that say that the program is wrong, whatever has happened to it."""


_BY_BUDGET = re.compile(r" was (skipped|cancelled): budget ")
"""Matches the reason of a contestant that a budget has stopped, as ``NobodyAccepted`` has it."""


class Seen(NamedTuple):
    """A run as its store has it."""

    path: RunPath
    record: ChildRecord | None
    history: Sequence[Entry]
    status: Status | None
    beginning: Beginning | None = None


def look(stores: Iterable[MemoryStore]) -> Mapping[str, Seen]:
    """Return all that stores have of runs, by id: a history is in one, its end in its parent's."""
    seen: dict[str, Seen] = {}
    for store in stores:
        for path, kept in kept_runs(store):
            one = seen.get(path.id)
            record, history, status = kept.record, tuple(kept.history), kept.status
            begun = kept.beginning
            if one is not None:
                record = one.record if one.record is not None and one.record.status else record
                history, status = one.history or history, one.status or status
                begun = one.beginning or begun
            seen[path.id] = Seen(path, record, history, status, begun)
    return seen


def done_in(seen: Mapping[str, Seen]) -> frozenset[str]:
    """Return the ids of the children that are recorded as done."""
    return frozenset(
        run_id
        for run_id, one in seen.items()
        if one.record is not None and one.record.status == "succeeded"
    )


def short(error: BaseException) -> str:
    """Return an exception in a line, and of a group what it consists of."""
    inner = list(leaves(error))
    if inner != [error]:
        more = f", and {len(inner) - 2} more" if len(inner) > 2 else ""  # noqa: PLR2004
        return f"{type(error).__name__} of {'; '.join(map(short, inner[:2]))}{more}"
    text = str(error)
    text = text if len(text) <= _MOST else f"{text[:_MOST]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# -- failures --------------------------------------------------------------------------------------


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that a group, of groups, consists of."""
    if isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        if inner:  # `NobodyAccepted` may have none
            for one in inner:
                yield from leaves(one)
            return
    yield error


def is_explained(error: BaseException, fired: Collection[Fault]) -> bool:
    """Return whether a run may fail with an exception after the faults that have happened."""
    return all(
        _explains(fired, leaf) or (bool(fired) and _lacks_budget(leaf, error))
        for leaf in leaves(error)
    )


def may_fail_for_good(error: BaseException) -> bool:
    """Return whether what went wrong before may keep a run from succeeding ever after.

    What was spent of a budget stays spent, and a child that was at work in too many crashes is not
    started again.
    """
    return any(isinstance(leaf, Poisoned) or _lacks_budget(leaf, error) for leaf in leaves(error))


def _lacks_budget(leaf: BaseException, error: BaseException) -> bool:
    """Return whether ``leaf`` of ``error`` says that a budget is empty.

    Any fault may empty one: an attempt that it has ended is made once more, and both cost.
    """
    if isinstance(leaf, BudgetExceeded):
        return True
    return isinstance(leaf, TooFewChildren) and _stopped_by_budget(error)


def _stopped_by_budget(error: BaseException) -> bool:
    """Return whether a race has lost contestants to a budget with ``on_empty="stop"``."""
    if isinstance(error, NobodyAccepted) and any(map(_BY_BUDGET.search, error.reasons)):
        return True
    if not isinstance(error, BaseExceptionGroup):
        return False
    inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return any(map(_stopped_by_budget, inner))


def _explains(fired: Collection[Fault], error: BaseException) -> bool:
    if any(isinstance(cause, _OURS) for cause in _causes(error)):
        return True
    if isinstance(error, _NEVER):
        return False
    places = {fault.place for fault in fired}
    if isinstance(error, StoreFailed | CommitInDoubt | LeaseLost):
        return bool(places & {SAVE, READ})
    if isinstance(error, HookFailed):
        return any(place.startswith(HOOK) for place in places)
    takes_time = any(fault.what in LONG or fault.what == "hangs" for fault in fired)
    if isinstance(error, SavedError) and "Injected" in str(error):
        return True
    if isinstance(error, TimeoutError):
        return takes_time
    # Our own errors may follow from any failure: a breaker that is open, nobody who is accepted.
    acted = takes_time or any(place.startswith(ACTION) for place in places)
    killed = any(fault.what in KILLS for fault in fired)
    return isinstance(error, ShoalError) and (acted or killed or bool(places & {SAVE}))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that led to it."""
    unseen, known = [error], set[int]()
    while unseen:
        one = unseen.pop()
        if id(one) in known:
            continue
        known.add(id(one))
        yield one
        unseen += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        if isinstance(one, BaseExceptionGroup):
            unseen += cast("BaseExceptionGroup[BaseException]", one).exceptions


# -- one life --------------------------------------------------------------------------------------


def judge_life(
    life: Life,
    before: Mapping[str, Seen],
    seen: Mapping[str, Seen],
    *,
    stores: Sequence[FaultyStore],
    again: Iterable[tuple[RunPath, str]],
    result: RunResult[Any] | None,
) -> Iterator[Violation]:
    """Yield what is wrong with a life: with what it told, and with what is kept of it.

    Args:
        life: The life.
        before: What stores had before it.
        seen: What they have after it.
        stores: The stores as they were in it.
        again: Calls of actions in runs that were done before it.
        result: What it has come to, if it succeeded or is halted.
    """
    whats = {fault.what for fault in life.faults}
    places = {fault.place for fault in life.faults}
    if not any(place.startswith(HOOK) for place in places):
        yield from _judge_pairs(life)
    # Where the clock jumps, an action that still runs is not to blame.
    if "jumps" not in whats:
        yield from _judge_grace(life)
    reborn = _reborn(life, stores)
    for path, name in again:
        if not _is_reborn(path, reborn):
            yield Violation(
                "executed again",
                f"action {name!r} was called in {path!r}, which had succeeded before, and what is"
                " done is not done again",
            )
    yield from _judge_numbers(life, reborn)
    yield from _judge_ends(life, before, reborn)
    if not seen:
        return
    yield from _judge_kept(before, seen, reborn)
    yield from _judge_told(life, seen, reborn)
    yield from _judge_decisions(seen)
    if life.status != "killed" and READ not in places:
        for store in stores:
            for run_id in store.kept._claims:
                yield Violation("not released", f"run {run_id} was not given back to its store")
    if result is not None:
        yield from _judge_result(result, seen)


def _reborn(life: Life, stores: Sequence[FaultyStore]) -> Collection[str]:
    """Return the ids of runs that have begun afresh in a life."""
    afresh = {run_id for store in stores for run_id in store.afresh}
    return afresh | {event.child.id for event in life.events if isinstance(event, ChildRerun)}


def _is_reborn(path: RunPath, reborn: Collection[str]) -> bool:
    """Return whether a run, or one above it, has begun afresh."""
    above: RunPath | None = path if reborn else None
    while above is not None:
        if above.id in reborn:
            return True
        above = above.parent
    return False


def _judge_pairs(life: Life) -> Iterator[Violation]:
    recorder = RecordingHook()
    recorder.events = list(life.events)
    try:
        recorder.assert_paired()
    except AssertionError as error:
        yield Violation("events", str(error))


def _judge_grace(life: Life) -> Iterator[Violation]:
    for event in life.events:
        if isinstance(event, GraceExceeded) and event.what != "store":  # it was slow on purpose
            whose = "action" if event.what == "action" else f"{event.what} {event.name} in step"
            yield Violation(
                "ignores cancellation",
                f"{whose} {event.step!r} still ran {event.seconds:g} s after it was cancelled, at "
                f"{event.place}",
            )


def _judge_numbers(life: Life, reborn: Collection[str]) -> Iterator[Violation]:
    numbers: dict[str, int] = {}
    for event in life.events:
        if not isinstance(event, StateUpdated) or _is_reborn(event.path, reborn):
            continue
        last, number = numbers.get(event.run_id), event.update.number
        if last is not None and number != last + 1:
            yield Violation("events", f"update {number} of {event.path!r} was told after {last}")
        numbers[event.run_id] = number


def _judge_ends(
    life: Life, before: Mapping[str, Seen], reborn: Collection[str]
) -> Iterator[Violation]:
    """Say which children have ended twice, or otherwise than before."""
    done = set(done_in(before))
    begun = {event.run_id for event in life.events if isinstance(event, RunStarted)}
    for event in life.events:
        match event:
            case ChildStarted() if life.is_changed and event.child.id not in begun:
                # It was about to run anew, and what is kept of it could not be declared void: with
                # a budget, what was spent is saved before that.
                pass
            case ChildStarted() if event.child.id in done:
                if not _is_reborn(event.child, reborn):
                    yield Violation("two ends", f"{event.child!r} was done, and has begun again")
            case ChildEnded(outcome=Done()):
                done.add(event.outcome.run_id)
            case ChildEnded(outcome=Cancelled()) if life.is_changed and life.status != "succeeded":
                # A child that was about to run anew, with another input, and hasn't: it is in the
                # store as it was, and an execution that ends early has nothing else to tell.
                pass
            case ChildEnded() if event.outcome.run_id in done:
                if not _is_reborn(event.outcome.path, reborn):
                    yield Violation(
                        "two ends", f"{event.outcome.path!r} was done, and is {event.outcome!r}"
                    )
            case _:
                pass


def _judge_kept(
    before: Mapping[str, Seen], seen: Mapping[str, Seen], reborn: Collection[str]
) -> Iterator[Violation]:
    for run_id, one in seen.items():
        numbers = _numbers(one)
        # Without a store of its own, only the last update of a child is kept, with its end.
        whole = numbers[:1] in ([], [1]) or len(numbers) > 1
        if whole and numbers != list(range(1, len(numbers) + 1)):
            yield Violation("history", f"updates of {one.path!r} are numbered {numbers}")
        was = before.get(run_id)
        if was is None or _is_reborn(one.path, reborn):
            continue
        if tuple(one.history[: len(was.history)]) != tuple(was.history):
            yield Violation(
                "history", f"the history of {one.path!r} was {was.history}, and is {one.history}"
            )
        old, new = was.record, one.record
        if old is None or old.status != "succeeded":
            continue
        if new is None or new.status != "succeeded":
            yield Violation("two ends", f"the record of {one.path!r} was {old}, and is {new}")
        elif old.applied is not None and new.applied != old.applied:
            yield Violation(
                "applied twice",
                f"{one.path!r} was applied by update {old.applied}, and now by {new.applied}",
            )


def _numbers(one: Seen) -> list[int]:
    return [entry.number for entry in one.history if isinstance(entry, Update)]


def _judge_told(
    life: Life, seen: Mapping[str, Seen], reborn: Collection[str]
) -> Iterator[Violation]:
    """Say what hooks were told and the store doesn't have."""
    for event in life.events:
        match event:
            case StateUpdated() if not _is_reborn(event.path, reborn):
                one = seen.get(event.run_id)
                is_whole = one is not None and _numbers(one)[:1] == [1]
                is_root = event.path.parent is None
                if (is_whole or is_root) and (one is None or event.update not in one.history):
                    yield Violation(
                        "not kept", f"{event.update} of {event.path!r} was told, and is not kept"
                    )
            case ChildEnded(outcome=Done()) if not _is_reborn(event.path, reborn):
                one = seen.get(event.outcome.run_id)
                status = None if one is None or one.record is None else one.record.status
                parent = seen.get(event.run_id)
                if parent is not None and parent.history and status != "succeeded":
                    yield Violation(
                        "not kept",
                        f"{event.outcome.path!r} was told to be done, and its record says {status}",
                    )
            case _:
                pass


def _judge_decisions(seen: Mapping[str, Seen]) -> Iterator[Violation]:
    """Say which races were decided twice: but for those whose winner may fail after it has won."""
    for one in seen.values():
        for _, first, entry in second_decisions(one.history):
            what = f"race {entry.step!r} of {one.path!r}: {first}, {entry}"
            yield Violation("decided twice", what)


def _judge_result(result: RunResult[Any], seen: Mapping[str, Seen]) -> Iterator[Violation]:
    """Say how the state of the store differs from that of the result."""
    root = seen.get(result.run_id)
    if root is None or root.beginning is None:
        return
    begun = root.beginning
    stored = play(begun.first, root.history, after=begun.after, visits=begun.visits).data
    state = {
        name: value for name, value in result._run.head[1].items() if not isinstance(value, Secret)
    }
    fields = different(state, stored)
    if fields:
        yield Violation("store differs", f"the store and the result differ in {fields}")


# -- in the end ------------------------------------------------------------------------------------


def plain(value: object) -> Any:
    """Return a value without types of shoal's, but for errors: what it is compared by."""
    match value:
        case ErrorInfo() | str() | bytes():
            return value
        case Mapping():
            items = cast("Mapping[Any, object]", value).items()
            return {key: plain(inner) for key, inner in items}
        case Sequence():
            return [plain(inner) for inner in cast("Sequence[object]", value)]
        case _:
            return value


def different(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """Return the fields in which two states differ, with both values; "" if in none.

    Values whose classes don't say when they are equal are taken for equal.
    """
    said: list[str] = []
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            said.append(f"{name!r}, which one of them lacks")
            continue
        mine, theirs = plain(one[name]), plain(other[name])
        if mine != theirs and type(mine).__eq__ is not object.__eq__:
            said.append(f"{name!r}: {brief(mine)} and {brief(theirs)}")
    return "; ".join(said)


def judge_finality(
    status: str,
    called: Mapping[str, int],
    before: RunResult[Any] | None,
    after: RunResult[Any] | None,
) -> None:
    """Hold a run that had succeeded, and was run once more, to what it was.

    Raises:
        Violation: It was executed, or is another one.
    """
    if status != "succeeded" or after is None or before is None:
        raise Violation("not final", f"it had succeeded, and run once more it {status}")
    if called:
        names = ", ".join(sorted(called))
        raise Violation("not final", f"it had succeeded, and run once more it called {names}")
    fields = different(before.state, after.state)
    if fields:
        raise Violation("not final", f"it had succeeded, and run once more it differs in {fields}")
