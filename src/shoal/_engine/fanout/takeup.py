"""Resumes a parallel step that an earlier execution began, perhaps by another program.

Each execution saves what the step declares (``declared``). The next one compares that with its own
declaration, and refuses the step if recorded results would be lost or in the wrong place.

Invariants:
- A result that is recorded as done is where the present program puts it, or the step is refused.
  No result is counted as done and missing from ``into``.
- The name of a fan-out's only act does not matter: its children are found by their keys.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import cast

from shoal._engine.replay import unknown_step
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse, RunConflict, ShoalError, fork_advice
from shoal._events.events import Decision, Done, Update
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import JoinSpec, Shape
from shoal._state.collections import StateMap
from shoal._state.state import Drop, Extend, Increment, Put, PutWithin, Set
from shoal.stores._history import ReplayedHistory, StepBegun
from shoal.stores._records import Conflicts

from .ledger import Ledger
from .recorded import RecordedChildren, conflict

logger = logging.getLogger("shoal")

Declared = Mapping[str, object]
"""The declarations of a parallel step that its saved results depend on, as plain data."""

NAMED_SHAPES: tuple[Shape, ...] = ("by act", "by key and act", "by position and act")
"""Shapes of ``into`` that contain the names of acts, which later steps read."""


def declared(
    join: JoinSpec,
    *,
    acts: Sequence[str] | None = None,
    versions: Sequence[str] | None = None,
    is_keyed: bool | None = None,
    take: object = None,
) -> Declared:
    """Return what a parallel step declares.

    Args:
        join: Says where results and failures go.
        acts: The names of its acts; None: each task has its own act.
        versions: The versions of the steps of each act, in the order of ``acts``.
        is_keyed: Whether elements have keys; None: it depends on the tasks.
        take: Says which part of a child's final state is its value.
    """
    return {
        # A stored format: other versions of shoal have written it, and will read it. So a key is
        # added at most, and `_versions` reads one that may be missing.
        "acts": None if acts is None else list(acts),
        "versions": None if versions is None else list(versions),
        "keyed": is_keyed,
        # Functions of two programs can't be compared, so all of them count as the same.
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


# -- refusing changed programs -------------------------------------------------------------------


def refuse_changed(
    run: Run,
    join: JoinSpec,
    now: Declared,
    begun: ReplayedHistory | None,
    recorded_children: RecordedChildren | None,
) -> StepBegun | None:
    """Refuse a step whose results the present program puts elsewhere than the earlier one.

    Some changes conflict only with results that are kept. They are refused later, when the first
    such child comes up.

    Args:
        run: The parent.
        join: Says where results go now.
        now: The present declaration.
        begun: The history of the step under way; None: no execution has begun it.
        recorded_children: The recorded children; None if there are none.

    Returns the entry that saves the present declaration; None if it is saved already.

    Raises:
        RunConflict: With the former and the present declaration.
    """
    if begun is None:
        return StepBegun(join.name, now)
    then = None if begun.begun is None else begun.begun.declared
    has_grown = any(one.discovered for one in begun.under_way)
    is_empty = not begun.under_way
    # Without a declaration, of an earlier version of shoal, only the updates can tell: see
    # `_misplaced`.
    why = "" if then is None else _changed(then, now, has_grown=has_grown, is_empty=is_empty)
    if not why and begun.under_way:
        why = join.conflict(run.data)
    if not why and recorded_children is not None:
        why = _misplaced(join, recorded_children, begun.under_way)
    if why:
        raise conflict(run, join.name, why)
    if recorded_children is not None:
        # From here on nothing refuses the step as a whole, but single children may still be
        # refused.
        recorded_children.compares = True
        if then is not None and isinstance(then["acts"], list) and isinstance(now["acts"], list):
            acts = cast("list[str]", then["acts"]), cast("list[str]", now["acts"])
            recorded_children.acts_in_order = acts if acts[0] != acts[1] else None
        recorded_children.conflicts = _conflicts(begun, now)
        versions = [_versions(one.declared) for _, one in begun.declarations]
        recorded_children.has_other_acts = any(one and one != _versions(now) for one in versions)
    # Saved again for every change, so that each result can be held against the program that made
    # it.
    return None if then == now else StepBegun(join.name, now)


def fewest_acts(begun: ReplayedHistory) -> int | None:
    """Return the fewest acts for each element in programs that have recorded positions.

    Once ``grow`` has found elements, the number stays the same: another one is refused. All that
    was recorded before is in front of them, so only the last program counts.

    Returns None if no program has declared its acts.
    """
    has_grown = any(one.discovered for one in begun.under_way)
    declarations = begun.declarations[-1:] if has_grown else begun.declarations
    acts = [one.declared["acts"] for _, one in declarations]
    return min((len(cast("Sized", one)) for one in acts if isinstance(one, list)), default=None)


def _conflicts(begun: ReplayedHistory, now: Declared) -> Conflicts | None:
    """Compare all former declarations with the present one; None: all results can be used."""
    then = [(number, one.declared) for number, one in begun.declarations]
    kept = [(number, _changed_for_kept(one, now)) for number, one in then]
    takes = (_changed_take(one, now) for _, one in then if _may_have_made(one, now))
    of_value = next(filter(None, takes), "")
    return Conflicts(kept, of_value) if of_value or any(why for _, why in kept) else None


def _may_have_made(then: Declared, now: Declared) -> bool:
    """Return whether results of a former program may have the same digests as present ones."""
    before, after = _versions(then), _versions(now)
    # Unknown, so it must be assumed.
    if not before or not after:
        return True
    if len(before) == 1 or len(after) == 1:  # the name of an only act does not matter
        return not {version for _, version in before}.isdisjoint(version for _, version in after)
    return not before.isdisjoint(after)


def _versions(what: Declared) -> AbstractSet[tuple[str, str]]:
    """Return the acts of a step with the versions of their steps; empty if they are unknown."""
    acts, versions = what["acts"], what.get("versions")
    if not isinstance(acts, list) or not isinstance(versions, list):
        return frozenset()
    return frozenset(zip(cast("list[str]", acts), cast("list[str]", versions), strict=True))


def refuse_other_decision(
    run: Run, join: JoinSpec, decision: Decision, begun: ReplayedHistory
) -> None:
    """Refuse a step that was decided by another ``until=`` than the present one.

    Raises:
        RunConflict: With both values of ``until=``.
    """
    until, now = join.until, str(join.until)
    then = None if begun.begun is None else cast("str", begun.begun.declared["until"])
    if then is None:  # versions of shoal before declarations: guess by the number of winners
        if until.may_decide and until.wanted in (None, len(decision.winners)):
            return
        then = f"a race with {len(decision.winners)} winners"
    if then != now:
        why = f"it was decided: until= was {then} and is {now} now"
        raise conflict(run, join.name, why)


def refuse_lost_winner(
    run: Run, decision: Decision, begun: ReplayedHistory | None, now: Declared
) -> None:
    """Refuse a step that was decided by the first item of an act that the step lacks now.

    The winner has yielded its first item but has no result yet, and can't continue without its act.
    A step with only one act, then and now, finds the winner by its key.

    Args:
        run: The parent.
        decision: The decision of the step.
        begun: The history of the step under way.
        now: The present declaration.

    Raises:
        RunConflict: With the name of the act.
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
    # As long as nothing is applied, all results may go to a new place. Not so in a race: it records
    # the results that it refuses without applying them, so they would be taken for new ones.
    is_moved = is_empty and "one" not in (then["shape"], now["shape"])
    if _manner(then) != _manner(now) and not is_moved:
        return f"its results went {_manner(then)}, and go {_manner(now)} now"
    field, other = then["errors_into"], now["errors_into"]
    # A field that is new has nothing to lose.
    if field is not None and field != other:
        is_now = "into no field" if other is None else f"into {other!r}"
        return f"it collected failures into {field!r}, and now it collects them {is_now}"
    # None: each task decides that by itself.
    if None not in (then["keyed"], now["keyed"]) and then["keyed"] != now["keyed"]:
        without = "without key=, and now with it" if now["keyed"] else "with key=, and now without"
        return f"its elements were told apart {without}"
    acts, others = then["acts"], now["acts"]
    # What `grow` has found is saved once for all acts, at positions that count them.
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
    """Return why an applied result can't stay as it is recorded; empty if it can."""
    why = _changed_take(then, now)
    if why:
        return why
    if now["grows"] and not then["grows"]:
        return "it had no grow=, so results that are there have brought no elements"
    # Those two count no results, so nothing can be counted that should not be.
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
    """Return whether the children that may be done come up before all others.

    Otherwise a race could be decided by new results while old ones have not come up, and those
    would be too many.
    """
    acts, others = then["acts"], now["acts"]
    # Tasks have acts of their own, and are compared one by one.
    if not isinstance(acts, list) or not isinstance(others, list):
        return True
    before, after = cast("list[str]", acts), cast("list[str]", others)
    if len(before) == len(after) == 1 or before == after:
        return True
    return now["shape"] == "by act" and after[: len(before)] == before


def _changed_take(then: Declared, now: Declared) -> str:
    """Return why an unapplied result can't be applied as it is recorded; empty if it can."""
    if then["take"] != now["take"]:
        return f"take= was {_shown(then['take'])} and is {_shown(now['take'])} now"
    return ""


def _shown(take: object) -> str:
    return repr(take) if take != "a function" else "a function"


def _misplaced(join: JoinSpec, children: RecordedChildren, under_way: Sequence[Update]) -> str:
    """Return where applied results or failures are, if not in the fields of ``join``; else empty.

    The updates that applied them show it. Stores of earlier versions of shoal have no declarations
    to compare, only these updates.
    """
    updates = {update.number: update for update in under_way}
    results_seen = failures_seen = False  # one of each is enough: all went to the same field
    for record in children.applied_by(updates):
        update = updates[record.applied or 0]
        field = _collection(update)
        if record.status == "failed" and not failures_seen:
            failures_seen = True
            if field is not None and field != join.errors_into:
                where = "none now" if join.errors_into is None else f"{join.errors_into!r} now"
                return f"errors_into= was {field!r} and is {where}"
            # Without ``reduce``, failed children run again, and the field begins empty.
            is_nested = isinstance(update.operations[0], PutWithin) if field else join.is_nested
            if join.reduce is not None and is_nested != join.is_nested:
                how = "by key and act" if join.is_nested else "by key"
                return f"it did not collect failures into {field!r} {how}"
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
    """Return the field of the collection that an update has put a result into; None if none.

    Only fan-outs put at a position, so an update of ``reduce`` is not mistaken for that.
    """
    if not update.operations:
        return None
    first = update.operations[0]
    is_placed = isinstance(first, Put | PutWithin) and first.position is not None
    return first.field if is_placed else None


def refuse_lost(
    run: Run, join: JoinSpec, ledger: Ledger, recorded_children: RecordedChildren | None
) -> None:
    """Refuse to complete a step if a result is counted as done but missing from ``into``.

    No known situation leads here. This check turns an unknown defect into an error, so that no data
    is lost silently.

    Raises:
        RunConflict: An earlier execution began the step.
        ShoalError: This execution began it.
    """
    if join.into is None or join.is_nested or join.shape == "one":
        return
    found = len(cast("Sized", run.data[join.into]))
    if found >= ledger.done:
        return
    brought = ledger.done - sum(isinstance(one, Done) for one in ledger)
    if found < brought:
        why = f"{brought} results are counted as done, while {join.into!r} has {found}"
        if recorded_children is not None:
            raise conflict(run, join.name, why)
        msg = f"fan-out {join.name!r} of run {run.path.id} is not whole: {why}"
        raise ShoalError(msg)


def _single(update: Update, into: str) -> str | None:
    """Return the field that an update has set, if it isn't ``into``; else None."""
    first = update.operations[0] if update.operations else None
    return first.field if isinstance(first, Set) and first.field != into else None


# -- acts ----------------------------------------------------------------------------------------


def as_recorded(
    graphs: Sequence[Graph],
    shape: Shape,
    run: Run,
    step: str,
    recorded_children: RecordedChildren | None,
) -> Sequence[Graph]:
    """Return the acts of a step, under the names under which its children are recorded.

    If the step has only one act, then and now, all children are of that act, even if its name has
    changed: the key alone identifies a child. Their digests decide whether they run anew.

    Args:
        graphs: The acts.
        shape: The shape of ``into``.
        run: The parent.
        step: The step's name.
        recorded_children: The recorded children; None if there are none.

    Raises:
        RunConflict: There are results of acts that the step doesn't have any more, or failures of
            theirs that ``reduce`` has taken.
    """
    if recorded_children is None:
        winner = _only_act_decided(run)
        is_renamed = winner and len(graphs) == 1 and shape not in NAMED_SHAPES
        return [graphs[0].bind(name=winner)] if is_renamed else graphs
    names = frozenset(graph.name for graph in graphs)
    recorded_children.acts_now = names
    lost = recorded_children.acts - names
    if not lost:
        return graphs
    if len(graphs) == len(recorded_children.acts) == 1 and shape not in NAMED_SHAPES:
        (old,) = lost
        recorded_children.renamed = old, graphs[0].name
        # Children are made under the old name, so that is the name of now as far as records go.
        recorded_children.acts_now = lost
        return [graphs[0].bind(name=old)]
    gone = lost & recorded_children.acts_done
    folded = lost & {one.act for one in recorded_children.folded()[1]}
    if gone or folded:
        # A failure that `reduce` has taken can't be removed either, see
        # test_an_act_whose_failures_were_reduced_may_not_be_gone.
        had = "acts with results" if gone else "acts with failures that reduce= has taken"
        why = (
            f"it had {had}, {_names(gone or folded)}, which are not among its acts now, "
            f"{_names(names)} (if one was renamed, give it its old name with name=)"
        )
        raise conflict(run, step, why)
    recorded_children.leave_out(lost)
    return graphs


def _only_act_decided(run: Run) -> str | None:
    """Return the act of the winner of the step under way, if the step had no other act then.

    The winner has no record yet if the process died right behind the decision, see
    test_the_first_item_decides_though_its_act_is_renamed_before_there_is_a_record.
    """
    played = run.playback
    if played is None or played.decision is None or played.begun is None:
        return None
    then, winner = played.begun.declared["acts"], played.decision.winner.act
    return winner if then == [winner] else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def refuse_left_steps(
    path: RunPath, graph: Graph, played: ReplayedHistory, visits: Iterable[tuple[str, int]]
) -> None:
    """Refuse to resume a root run if its graph lacks the step under way.

    Args:
        path: The path of the run.
        graph: The graph that it walks.
        played: Its replayed history.
        visits: The steps and visits that have children.

    Raises:
        RunConflict: With the name of the step.
    """
    for name, visit in visits:
        step = name
        if graph.find(step) is None:
            action = step.rpartition("/")[0]  # an action's own fan-out is named "action/name"
            step = step if graph.find(action) is None else action
        # A step of an earlier visit is completed, and needs no act any more.
        if graph.find(step) is None and visit >= played.visit(step):
            acts = ", ".join(repr(act.name) for act in graph.acts)
            msg = (
                f"run {path.id} was in the middle of step {step!r}, which {graph.name!r} does not "
                f"have now (it has: {acts}); if it was renamed, give it its old name with name=, "
                f"or {fork_advice(path.id, played.last_behind(graph.find))}"
            )
            raise RunConflict(msg)


def refuse_retry(path: RunPath, join: JoinSpec, played: ReplayedHistory) -> None:
    """Refuse to retry failed children of a step whose results go elsewhere now than then.

    ``refuse_changed`` would find this too, but only after the run was taken back into the step.
    Checked before, the run keeps its end (see
    test_a_retry_that_is_refused_leaves_the_run_as_it_was).

    Args:
        path: The path of the run.
        join: Says where results go now.
        played: The history of the run, with the step under way.

    Raises:
        RunConflict: With the former and the present declaration.
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
    """Return whether ``reduce`` has taken results of the step under way: it can't begin anew then.

    Earlier versions of shoal saved no declaration. Then the updates show it, unless ``reduce`` only
    set fields.
    """
    # Nothing was applied since the step began, so there is nothing to fold twice.
    if played.number <= played.began.number:
        return False
    if played.begun is not None:
        return bool(played.begun.declared.get("reduces"))
    operations = (one for update in played.under_way for one in update.operations)
    return any(
        isinstance(one, Increment | Extend | Drop)
        # A fan-out puts at a position, so this one is of `reduce`.
        or (isinstance(one, Put) and one.position is None)
        for one in operations
    )


def refuse_fork(run_id: str, graph: Graph, played: ReplayedHistory) -> None:
    """Refuse a fork whose run could not begin there, or would give results to ``reduce`` twice.

    Args:
        run_id: The id of the run that is forked.
        graph: The graph of the new run.
        played: The history of the forked run, up to the point where the new one begins.

    Raises:
        BadUse: The point is in the middle of a step with ``reduce``.
        RunConflict: The graph lacks the step behind which the new run would begin.
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
    """Return ``errors_into`` as an empty field, for a step whose failed children run again.

    Empty if nothing changes: there is no such field, or ``reduce`` has taken the failures, which
    stay.
    """
    field = join.errors_into
    if field is None:
        return {}
    found = data.get(field)
    is_there = isinstance(found, StateMap)  # the former program may have had no errors_into
    if is_there and (join.reduce is not None or not found):
        return {}
    return {field: StateMap[object, object]()}
