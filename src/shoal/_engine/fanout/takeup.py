"""Taking up a parallel step that an earlier execution has begun, maybe of another program.

Imports joins, sources and what earlier executions have left.

Invariants:
- A result that is recorded as done is where the present program puts it, or the step is refused:
  none is counted as done and missing from ``into``.
- The name of the only act of a fan-out decides nothing: its children are found by their keys.
- A step that was decided has an outcome of every child that is known, also in the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import Literal, cast

from shoal._engine.commit import record_ends
from shoal._engine.replay import unknown_step
from shoal._engine.run import Run
from shoal._engine.unended import CutOff, end_below, is_left
from shoal._errors.exceptions import BadUse, RunConflict, ShoalError, fork_advice
from shoal._events.events import ChildName, Decision, Done, Outcome, Update
from shoal._events.identity import Key, RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import JoinSpec, Shape
from shoal._state.collections import StateMap
from shoal._state.state import Drop, Extend, Increment, Put, PutWithin, Set
from shoal.stores._history import ReplayedHistory, StepBegun
from shoal.stores._protocol import SavedRun, Store
from shoal.stores._records import Conflicts

from .ledger import Ledger
from .recorded import RecordedChildren, conflict, decided, is_unended
from .source import ElementSource

logger = logging.getLogger("shoal")

Declared = Mapping[str, object]
"""What a parallel step declares, as far as what it has saved depends on that: plain data."""

NAMED_SHAPES: tuple[Shape, ...] = ("by act", "by key and act", "by position and act")
"""Where the names of acts are among the data that a later step reads."""


def declared(
    join: JoinSpec,
    *,
    acts: Sequence[str] | None = None,
    versions: Sequence[str] | None = None,
    is_keyed: bool | None = None,
    take: object = None,
) -> Declared:
    """Collect what a parallel step declares.

    Args:
        join: What it does with results.
        acts: The names of its acts; None: each task has its own.
        versions: The versions of their steps, of each of these.
        is_keyed: Whether elements have keys; None: each task says so.
        take: What a child's value is.
    """
    return {
        "acts": None if acts is None else list(acts),
        "versions": None if versions is None else list(versions),
        "keyed": is_keyed,
        "take": "a function" if callable(take) else take if isinstance(take, str) else _list(take),
        "into": join.into,
        "shape": join.shape if join.into is not None else None,
        "errors_into": join.errors_into,
        "reduces": join.reduce is not None,
        "grows": join.grow is not None,
        "until": str(join.until),
    }


def _list(take: object) -> list[str] | None:
    return None if take is None else list(cast("Sequence[str]", take))


# -- what can't be carried over ------------------------------------------------------------------


def refuse_changed(
    run: Run,
    join: JoinSpec,
    now: Declared,
    begun: ReplayedHistory | None,
    recorded: RecordedChildren | None,
) -> StepBegun | None:
    """Refuse to go on with a step where the program puts results elsewhere than when it began.

    What only those children can't have that are kept is refused when the first of them comes up.

    Args:
        run: Its parent.
        join: What becomes of results now.
        now: What the step declares now.
        begun: What an earlier execution has done of it; None: nothing.
        recorded: The children that are recorded.

    Returns what is to be saved of what is declared now; None: it is known.

    Raises:
        RunConflict: Naming what was declared then, and what is now.
    """
    if begun is None:
        return StepBegun(join.name, now)
    then = None if begun.begun is None else begun.begun.declared
    has_grown = any(one.discovered for one in begun.under_way)
    is_empty = not begun.under_way
    why = "" if then is None else _changed(then, now, has_grown=has_grown, is_empty=is_empty)
    if not why and begun.under_way:
        why = join.conflict(run.data)
    if not why and recorded is not None:
        why = _misplaced(join, recorded, begun.under_way)
    if why:
        raise conflict(run, join.name, why)
    if recorded is not None:
        recorded.compares = True
        if then is not None and isinstance(then["acts"], list) and isinstance(now["acts"], list):
            acts = cast("list[str]", then["acts"]), cast("list[str]", now["acts"])
            recorded.acts_in_order = acts if acts[0] != acts[1] else None
        recorded.conflicts = _conflicts(begun, now)
        versions = [_versions(one.declared) for _, one in begun.declarations]
        recorded.has_other_acts = any(one and one != _versions(now) for one in versions)
    return None if then == now else StepBegun(join.name, now)


def _conflicts(begun: ReplayedHistory, now: Declared) -> Conflicts | None:
    """Compare all that a step has declared with what it declares now; None: no result suffers."""
    then = [(number, one.declared) for number, one in begun.declarations]
    kept = [(number, _changed_for_kept(one, now)) for number, one in then]
    takes = (_changed_take(one, now) for _, one in then if _may_have_made(one, now))
    of_value = next(filter(None, takes), "")
    return Conflicts(kept, of_value) if of_value or any(why for _, why in kept) else None


def _may_have_made(then: Declared, now: Declared) -> bool:
    """Tell whether results of a program may have the digests that they would have now."""
    before, after = _versions(then), _versions(now)
    if not before or not after:
        return True
    if len(before) == 1 or len(after) == 1:  # there the name decides nothing
        return not {version for _, version in before}.isdisjoint(version for _, version in after)
    return not before.isdisjoint(after)


def _versions(what: Declared) -> AbstractSet[tuple[str, str]]:
    """Return the acts of a step with the versions of their steps; none: they are not known."""
    acts, versions = what["acts"], what.get("versions")
    if not isinstance(acts, list) or not isinstance(versions, list):
        return frozenset()
    return frozenset(zip(cast("list[str]", acts), cast("list[str]", versions), strict=True))


def refuse_other_decision(
    run: Run, join: JoinSpec, decision: Decision, begun: ReplayedHistory
) -> None:
    """Refuse to go on with a step that was decided by something else than ends it now.

    Raises:
        RunConflict: Naming both.
    """
    until, now = join.until, str(join.until)
    then = None if begun.begun is None else cast("str", begun.begun.declared["until"])
    if then is None:  # saved by a version of shoal that did not say
        if until.may_decide and until.wanted in (None, len(decision.winners)):
            return
        then = f"a race with {len(decision.winners)} winners"
    if then != now:
        why = f"it was decided: until= was {then} and is {now} now"
        raise conflict(run, join.name, why)


def refuse_lost_winner(
    run: Run, decision: Decision, begun: ReplayedHistory | None, now: Declared
) -> None:
    """Refuse to go on with a step that a stream has decided, of an act that it doesn't have now.

    The stream has given its first item, and its result is missing. A step that has one act, before
    and now, finds the stream by its key.

    Args:
        run: Its parent.
        decision: How the step was decided.
        begun: What an earlier execution has done of it.
        now: What the step declares now.

    Raises:
        RunConflict: Naming the act.
    """
    then = None if begun is None or begun.begun is None else begun.begun.declared["acts"]
    acts, winner = now["acts"], decision.winner.act
    if not isinstance(then, list) or not isinstance(acts, list) or winner in acts:
        return
    if len(cast("list[str]", then)) == len(cast("list[str]", acts)) == 1:
        return
    why = (
        f"it was decided by the first item of {winner!r}, which is not among its acts now, "
        f"{_listed(cast('object', acts))} (if it was renamed, give it its old name with name=)"
    )
    raise conflict(run, decision.step, why)


def _changed(then: Declared, now: Declared, *, has_grown: bool, is_empty: bool = False) -> str:
    # Where nothing has been applied, all results go where they go now; but what a race has not
    # accepted is recorded without being applied.
    is_moved = is_empty and "one" not in (then["shape"], now["shape"])
    if _manner(then) != _manner(now) and not is_moved:
        return f"its results went {_manner(then)}, and go {_manner(now)} now"
    field, other = then["errors_into"], now["errors_into"]
    if field is not None and field != other:
        is_now = "into no field" if other is None else f"into {other!r}"
        return f"it collected failures into {field!r}, and now it collects them {is_now}"
    if None not in (then["keyed"], now["keyed"]) and then["keyed"] != now["keyed"]:
        without = "without key=, and now with it" if now["keyed"] else "with key=, and now without"
        return f"its elements were told apart {without}"
    acts, others = then["acts"], now["acts"]
    if has_grown and isinstance(acts, list) and isinstance(others, list):
        before, after = len(cast("list[str]", acts)), len(cast("list[str]", others))
        if before != after:
            return f"it had {before} acts for each element that grow= returned, and now {after}"
    return ""


def _manner(what: Declared) -> str:
    if what["into"] is not None:
        shape = "" if what["shape"] == "one" else f" {what['shape']}"
        return f"into {what['into']!r}{shape}"
    return "to reduce=" if what["reduces"] else "nowhere but into outcomes"


def _changed_for_kept(then: Declared, now: Declared) -> str:
    """Say why a result can't be kept as it is recorded, if it can't."""
    why = _changed_take(then, now)
    if why:
        return why
    if now["grows"] and not then["grows"]:
        return "it had no grow=, so results that are there have brought no elements"
    if then["until"] != now["until"] and now["until"] not in ("all", "a function"):
        return f"until= was {then['until']} and is {now['until']} now"
    if now["until"] not in ("all", "a function") and not _come_up_first(then, now):
        before, after = _listed(then["acts"]), _listed(now["acts"])
        return (
            f"it had the acts {before}, and now it has {after}, while until= counts results, and "
            f"of those that are there already some would come too late"
        )
    return ""


def _listed(names: object) -> str:
    return ", ".join(map(repr, cast("list[str]", names)))


def _come_up_first(then: Declared, now: Declared) -> bool:
    """Tell whether children that may be done come up before all others.

    Results that were there when a contest was decided, and had not come up, would be too many.
    """
    acts, others = then["acts"], now["acts"]
    if not isinstance(acts, list) or not isinstance(others, list):
        return True
    before, after = cast("list[str]", acts), cast("list[str]", others)
    if len(before) == len(after) == 1 or before == after:
        return True
    return now["shape"] == "by act" and after[: len(before)] == before


def _changed_take(then: Declared, now: Declared) -> str:
    """Say why a result that has yet to be applied can't be applied as it is recorded, if so."""
    if then["take"] != now["take"]:
        return f"take= was {_shown(then['take'])} and is {_shown(now['take'])} now"
    return ""


def _shown(take: object) -> str:
    return repr(take) if take != "a function" else "a function"


def _misplaced(join: JoinSpec, recorded: RecordedChildren, under_way: Sequence[Update]) -> str:
    """Say where results or failures are that earlier executions have applied, if not where meant.

    The updates that applied them say so; stores of earlier versions of shoal have nothing else.
    """
    updates = {update.number: update for update in under_way}
    results_seen = failures_seen = False
    for record in recorded.applied_by(updates):
        update = updates[record.applied or 0]
        field = _collection(update)
        if record.status == "failed" and not failures_seen:
            failures_seen = True
            if field is not None and field != join.errors_into:
                where = "none now" if join.errors_into is None else f"{join.errors_into!r} now"
                return f"errors_into= was {field!r} and is {where}"
        elif record.status == "succeeded" and not results_seen:
            results_seen = True
            meant = None if join.shape == "one" else join.into
            if field is not None and field != meant:
                return f"it collected into {field!r}, one result at a time"
            if field is None and meant is not None and record.used:
                return f"it did not collect into {meant!r}"
            if field is None and join.into is not None and (other := _single(update, join.into)):
                return f"it put its result into {other!r}, and not into {join.into!r}"
            if field is not None and isinstance(update.operations[0], PutWithin) != join.is_nested:
                return f"it did not collect into {meant!r} {join.shape}"
            if update.operations and join.into is None and join.reduce is None:
                return "its results went to reduce="
    return ""


def _collection(update: Update) -> str | None:
    """Return the collection that an update has put something into, at a position: only we do."""
    if not update.operations:
        return None
    first = update.operations[0]
    is_placed = isinstance(first, Put | PutWithin) and first.position is not None
    return first.field if is_placed else None


def refuse_lost(
    run: Run, join: JoinSpec, ledger: Ledger, recorded: RecordedChildren | None
) -> None:
    """Refuse to complete a step where a result is counted as done, and is not collected.

    Nothing that is known leads to that; it would be a defect that loses data unnoticed.

    Raises:
        RunConflict: Another execution has begun the step.
        ShoalError: It was begun by this one.
    """
    if join.into is None or join.is_nested or join.shape == "one":
        return
    unused = sum(isinstance(one, Done) for one in ledger)
    found, brought = len(cast("Sized", run.data[join.into])), ledger.done - unused
    if found < brought:
        why = f"{brought} results are counted as done, while {join.into!r} has {found}"
        if recorded is not None:
            raise conflict(run, join.name, why)
        msg = f"fan-out {join.name!r} of run {run.path.id} is not whole: {why}"
        raise ShoalError(msg)


def _single(update: Update, into: str) -> str | None:
    """Return the field that an update has given a value, if that isn't ``into``."""
    first = update.operations[0] if update.operations else None
    return first.field if isinstance(first, Set) and first.field != into else None


# -- acts ----------------------------------------------------------------------------------------


def as_recorded(
    graphs: Sequence[Graph], shape: Shape, run: Run, step: str, recorded: RecordedChildren | None
) -> Sequence[Graph]:
    """Return the acts of a step under the names that its children are recorded under.

    Where it has only one act, before and now, that is the one which the children are of, whatever
    it is called: the key alone names a child. Whether they run anew is up to their digests.

    Args:
        graphs: The acts.
        shape: How results are arranged.
        run: The parent.
        step: The step's name.
        recorded: Its children.

    Raises:
        RunConflict: There are results of acts that it doesn't have any more.
    """
    if recorded is None:
        return graphs
    names = frozenset(graph.name for graph in graphs)
    recorded.acts_now = names
    lost = recorded.acts - names
    if not lost:
        return graphs
    if len(graphs) == len(recorded.acts) == 1 and shape not in NAMED_SHAPES:
        (old,) = lost
        recorded.renamed = old, graphs[0].name
        recorded.acts_now = lost
        return [graphs[0].bind(name=old)]
    if lost & recorded.acts_done:
        gone, known = _names(lost & recorded.acts_done), _names(names)
        why = (
            f"it had acts with results, {gone}, which are not among its acts now, {known} (if one "
            f"was renamed, give it its old name with name=)"
        )
        raise conflict(run, step, why)
    recorded.leave_out(lost)
    return graphs


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def refuse_left_steps(
    path: RunPath, graph: Graph, played: ReplayedHistory, visits: Iterable[tuple[str, int]]
) -> None:
    """Refuse to go on with a root run whose step under way its graph doesn't have any more.

    Args:
        path: The run.
        graph: What it walks.
        played: Where its history leads.
        visits: The steps that have children, and in which visits.

    Raises:
        RunConflict: Naming the step.
    """
    for name, visit in visits:
        step = name
        if graph.find(step) is None:
            action = step.rpartition("/")[0]  # of an action's own fan-out, if it is one
            step = step if graph.find(action) is None else action
        if graph.find(step) is None and visit >= played.visit(step):
            acts = ", ".join(repr(act.name) for act in graph.acts)
            msg = (
                f"run {path.id} was in the middle of step {step!r}, which {graph.name!r} does not "
                f"have now (it has: {acts}); if it was renamed, give it its old name with name=, "
                f"or {fork_advice(path.id, played.last_behind(graph.find))}"
            )
            raise RunConflict(msg)


def refuse_retry(path: RunPath, join: JoinSpec, played: ReplayedHistory) -> None:
    """Refuse to go back into a step that puts results elsewhere now than when it was completed.

    What ``refuse_changed`` says of its children comes up only when the run is there; but this is
    known before, so the run keeps the end that it has come to (see
    test_a_retry_that_is_refused_leaves_the_run_as_it_was).

    Args:
        path: The run.
        join: What becomes of results now.
        played: Its history, with the step under way.

    Raises:
        RunConflict: Naming what was declared then, and what is now.
    """
    then = None if played.begun is None else played.begun.declared
    why = "" if then is None else _changed(then, declared(join), has_grown=False)
    if why:
        msg = (
            f"fan-out {join.name!r} of run {path.id} was completed by a program in which {why}; "
            f"change that back to retry what has failed in it, or "
            f"{fork_advice(path.id, played.began.number)}"
        )
        raise RunConflict(msg)


# -- forks ---------------------------------------------------------------------------------------


def has_folded(played: ReplayedHistory) -> bool:
    """Tell whether the step under way has given results to ``reduce``, so that it can't begin anew.

    Of what earlier versions of shoal have saved, its updates say so, unless they only set fields.
    """
    if played.number <= played.began.number:
        return False
    if played.begun is not None:
        return bool(played.begun.declared.get("reduces"))
    operations = (one for update in played.under_way for one in update.operations)
    return any(
        isinstance(one, Increment | Extend | Drop)
        or (isinstance(one, Put) and one.position is None)
        for one in operations
    )


def refuse_fork(run_id: str, graph: Graph, played: ReplayedHistory) -> None:
    """Refuse to fork a run where the new one could not begin, or would fold results twice.

    Args:
        run_id: The run that is forked.
        graph: What the new one walks.
        played: The history of the other one, up to where the new one is to begin.

    Raises:
        BadUse: It is in the middle of a step that folds.
        RunConflict: The graph doesn't have the step behind which it would begin.
    """
    if has_folded(played):
        number, step = played.began.number, played.step_under_way
        msg = (
            f"run {run_id} was in the middle of fan-out {step!r} at number {played.number}, whose "
            f"reduce= had taken results; a new run would fold them once more: "
            f"{fork_advice(run_id, number)}"
        )
        raise BadUse(msg)
    step = played.began.step
    if step is not None and graph.find(step) is None:
        number = played.last_behind(graph.find)
        fork = "" if number is None else f", or {fork_advice(run_id, number)}"
        msg = f"run {run_id} {unknown_step(step, graph)}; change the graph back{fork}"
        raise RunConflict(msg)


def without_failures(join: JoinSpec, data: Mapping[str, object]) -> dict[str, object]:
    """Empty ``errors_into`` where the step is taken up again, for those children run again.

    What ``reduce`` was given stays. Returns the field, if it changes by that.
    """
    field = join.errors_into
    if field is None:
        return {}
    found = data.get(field)
    is_there = isinstance(found, StateMap)  # else it did not collect failures then
    if is_there and (join.reduce is not None or not found):
        return {}
    return {field: StateMap[object, object]()}


# -- what was decided ----------------------------------------------------------------------------

Pick = Literal["leave", "anew"] | None


def only(winner: ChildName, act: str, key: Key, *, anew: bool) -> Pick:
    """Leave out all children but the winner."""
    if (act, key) != winner:
        return "leave"
    return "anew" if anew else None


def without(out: AbstractSet[ChildName], begun: AbstractSet[ChildName], act: str, key: Key) -> Pick:
    """Leave out the children that are out; those that have begun run anew."""
    child = ChildName(act, key)
    return "leave" if child in out else "anew" if child in begun else None


async def end_losers(
    run: Run,
    recorded: RecordedChildren,
    decision: Decision,
    make: Callable[[], ElementSource] | None,
    room_of: Callable[[ElementSource], int],
    *,
    kept_in: Store,
) -> list[Outcome]:
    """Record that children have lost which had no end when the process died.

    Args:
        run: Their parent.
        recorded: What is known of them; those that are recorded here are known no more.
        decision: How the step was decided.
        make: Makes a source of those that nothing is recorded of; None: there are none.
        room_of: Says how many of its children were in flight, at most.
        kept_in: The store that has the children's histories.

    Returns how they ended.

    Raises:
        ShoalError: That could not be saved.
    """
    lost: list[SavedRun] = []
    if make is not None and not any(one.winner == decision.winner for one in recorded.rest()):
        try:
            source = make()
            lost += _unrecorded(source, recorded, decision, room_of(source))
        except Exception:  # it is decided, and needs no source: what that raises must not undo it
            who, run_id = decision.step, run.path.id
            logger.exception("the losers of fan-out %r of run %s can't be made", who, run_id)
    execution, graph = run.config.execution, run.config.graph
    for record in recorded.rest():
        name = ChildName(record.act, record.key)
        if name == decision.winner:
            continue  # of streams, that one goes on
        loser = CutOff(decided(record, decision), run.path)
        if is_left(record):
            await end_below(execution, kept_in, loser, decision.reason, graph)
        if is_unended(record):
            recorded.drop(name)
            lost.append(loser)
    if lost:
        await record_ends(run, lost)
    return [one.outcome for one in lost]


def _unrecorded(
    source: ElementSource, recorded: RecordedChildren, decision: Decision, room: int
) -> list[Run]:
    """Make the children that may have been under way, and that nothing is recorded of.

    What an async source brings is not waited for: nobody knows then who they were.
    """
    lost: list[Run] = []

    def pick(act: str, key: Key) -> Pick:
        name = ChildName(act, key)
        return "leave" if name == decision.winner or recorded.get(name) is not None else "anew"

    source.pick = pick
    # The winner was in flight, and so were those that have completed a step and not ended.
    others = [one for one in recorded.rest() if (one.act, one.key) != decision.winner]
    most = 0 if source.waits else room - 1 - sum(map(is_unended, others))
    most = min(most, source.may_start - (recorded.get(decision.winner) is None))
    try:
        for _ in range(recorded.left + room):
            child = None if len(lost) >= most else source.take()
            if child is None:
                break
            if child != "dropped":
                child.resume_state().is_afresh = False
                child.never_start(decision.reason, decision.winner)
                lost.append(child)
    except Exception:  # it is decided, and needs no source: what that raises must not undo it
        logger.exception("while the losers of fan-out %r were looked for", source.who)
    finally:
        source.close()
    return lost
