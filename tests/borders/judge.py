"""What must hold after each life, and in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal import Cancelled, Done, Failed, NobodyAccepted, Outcome, RetryLater, RunPath, StepTimeout
from shoal.errors import Rejected, SpuriousCancel
from shoal.events import ChildEnded, ChildName, ChildStarted, Decision, StateUpdated, Update
from shoal.stores import Completed
from shoal.testing import RecordingHook, assert_well_formed
from shoal.testing._invariants import plain

from .model import RACES, Model
from .stores import Seen
from .tolerance import judge_tolerance
from .world import UNSAVED, Trouble, World, lineage

ORDINARY = (Trouble, StepTimeout, Rejected, RetryLater, NobodyAccepted, SpuriousCancel)
ENDED = ("succeeded", "failed", "cancelled")


def judge_failure(world: World, errors: Sequence[BaseException]) -> None:
    """A run fails with what went wrong in it, and nothing else."""
    for error in errors:
        if isinstance(error, ORDINARY):
            continue
        name = type(error).__name__
        bad = world.program["bad"]
        if name == "BadKey" and bad in ("key", "twice"):
            continue
        if name == "TooFewChildren":
            continue
        if name == "MissingField" and world.has_changed and world.program["change"] == "folded":
            continue  # where all are ignored, reduce= has written nothing that take= could read
        if name == "SavedError" or "Trouble" in str(error):
            continue
        world.violate(f"fails with {error!r}")


# -- after each life -------------------------------------------------------------------------------


def known_from(
    seen: Mapping[str, Seen],
) -> tuple[dict[tuple[str, str], int], set[tuple[str, str, int]], dict[str, RunPath]]:
    """Say what is known of what was done: visits, completed steps and children that are Done."""
    visits: dict[tuple[str, str], int] = {}
    completed: set[tuple[str, str, int]] = set()
    done: dict[str, RunPath] = {}
    for run_id, one in seen.items():
        for entry in one.history:
            if isinstance(entry, Completed):
                at = (run_id, entry.step)
                visit = visits.get(at, 0)
                completed.add((*at, visit))
                visits[at] = visit + 1
        if one.record is not None and one.record.status == "succeeded":
            done[run_id] = one.path
    return visits, completed, done


def judge_life(
    world: World, end: str, *, before: Mapping[str, Seen], seen: Mapping[str, Seen], run_id: str
) -> None:
    """Judge one life: what was told, what is kept, and what has changed of that."""
    if not world.hook_raised and not _was_torn_down(world):
        recorder = RecordingHook()
        recorder.events = world.events
        try:
            recorder.assert_paired()
        except AssertionError as problem:
            world.violate(str(problem))
    _judge_events(world)
    if world.program["kept"] == "no":
        return
    _judge_kept(world, end, before, seen, run_id)
    _judge_published(world, seen)
    _judge_decisions(world, seen)


def may_restart(world: World) -> bool:
    """Tell whether a race may be run again from its start: then its children begin afresh."""
    return world.program["until"] == "restart"


def _judge_events(world: World) -> None:
    numbers: dict[str, int] = {}
    for event in world.events:
        if isinstance(event, StateUpdated):
            last = numbers.get(event.run_id)
            number = event.update.number
            begins = may_restart(world) or world.is_rerun(event.path)
            if last is not None and number != last + 1 and not begins:
                world.violate(f"update {number} of {event.path!r} is told after {last}")
            numbers[event.run_id] = number
    judge_tolerance(world)


def _judge_kept(
    world: World, end: str, before: Mapping[str, Seen], seen: Mapping[str, Seen], root_id: str
) -> None:
    for run_id, one in seen.items():
        if world.store_of(one.path) != "none":  # else only its last update may be kept
            try:
                assert_well_formed(one.history)
            except AssertionError as problem:
                world.violate(f"{one.path!r}: {problem}")
        was = before.get(run_id)
        if was is None or world.has_changed or world.is_rerun(one.path):
            continue
        if world.is_forgotten(one.path):
            continue
        if one.history[: len(was.history)] != was.history:
            world.violate(f"the history of {one.path!r} was {was.history}, is {one.history}")
        old, new = was.record, one.record
        if old is None or new is None:
            continue
        if old.status == "succeeded" and new.status != "succeeded":
            world.violate(f"the record of {one.path!r} was {old.status}, and is {new.status}")
        if old.status == "succeeded" and old.applied is not None and new.applied is None:
            world.violate(f"{one.path!r} was applied, and is not any more")
    root = seen.get(root_id)
    # Where a store has gone wrong, its root run may have the status of an earlier life; also behind
    # a life that was cancelled before its run began, and has left all as it was.
    if any(event.run_id == root_id for event in world.events):
        world.is_outdated = end == "stopped" or world.has_lost_store
    ended = root is not None and root.status in ENDED and not world.is_outdated
    if ended and not world.has_changed:
        for one in seen.values():
            path = one.path
            if path.parent is None or world.store_of(path.parent) == "none":
                continue
            if not world.is_reached(path) or _is_nobodys(world, path, seen):
                continue
            if one.record is None or one.record.status is None:
                world.violate(f"{one.path!r} is still running in a run that has {end}")


def _is_nobodys(world: World, path: RunPath, seen: Mapping[str, Seen]) -> bool:
    """Tell whether no store names a run, or one above it, as anybody's child.

    Where a child of a child was saved before the child was, and the process died, stores have no
    record of the child: nothing shows it, or what is below it, until an execution starts it again.
    """
    told = {event.run_id for event in world.events}
    return any(
        above.id not in told and (above.id not in seen or seen[above.id].record is None)
        for above in lineage(path)
    )


def _judge_published(world: World, seen: Mapping[str, Seen]) -> None:
    """What hooks were told is kept."""
    ends: dict[str, Any] = {}
    for event in world.events:
        match event:
            case StateUpdated() if world.store_of(event.path) != "none" and not may_restart(world):
                one = seen.get(event.run_id)
                if one is None or event.update not in one.history:
                    world.violate(f"{event.update} of {event.path!r} was told and is not kept")
            case ChildEnded() if world.store_of(event.path) != "none":
                ends[event.outcome.run_id] = event.outcome
            case ChildStarted():  # tried again
                ends.pop(event.child.id, None)
            case _:
                pass
    for run_id, outcome in ends.items():
        if getattr(outcome, "reason", "") == UNSAVED:
            continue
        one = seen.get(run_id)
        status = None if one is None or one.record is None else one.record.status
        kind = {"succeeded": "Done"}.get(str(status), str(status).title())
        if kind != type(outcome).__name__ and not _may_go_on_untold(world, outcome, status):
            world.violate(f"{outcome!r} of {outcome.path!r} was told, its record says {status}")


def _may_go_on_untold(world: World, outcome: Outcome, status: str | None) -> bool:
    """Tell whether a child may have been tried again, with another end, and nobody was told.

    Something has to try it again, and the hook has to have raised before: it is told nothing more.
    Or its call was cut short, because all tasks were cancelled. What is Done stays so, and nothing
    succeeds any more behind that.
    """
    is_tried_again = world.program["outer_retry"] == "yes" or may_restart(world)
    is_final = isinstance(outcome, Done) or status == "succeeded"
    is_untold = world.hook_raised or _was_torn_down(world)
    return is_untold and is_tried_again and not is_final


def _was_torn_down(world: World) -> bool:
    return any(trip.what == "teardown" for trip in world.fired_now)


def _judge_decisions(world: World, seen: Mapping[str, Seen]) -> None:
    """A race is decided once, by what is applied last; losers are told who has won.

    One by ``first_item`` may be decided again when its winner has failed, and any in another visit
    of a loop.
    """
    winners: dict[tuple[str, str], set[ChildName]] = {}
    # Whose winner may fail, and whose result comes behind the decision.
    is_by_item = world.program["until"] in ("first_item", "restart")
    for one in seen.values():
        open_ = dict[str, Decision]()
        for entry in one.history:
            match entry:
                case Decision():
                    if entry.step in open_ and not is_by_item:
                        world.violate(f"{entry.step} of {one.path!r} was decided twice")
                    open_[entry.step] = entry
                    winners.setdefault((one.path.id, entry.step), set()).add(entry.winner)
                case Completed():
                    open_.pop(entry.step, None)
                case Update() if entry.step in open_ and not is_by_item:
                    world.violate(f"{entry} of {one.path!r} came after the decision")
                case _:
                    pass
    for event in world.events:
        match event:
            case ChildEnded(outcome=Cancelled(winner=winner)) if winner is not None:
                won = winners.get((event.run_id, event.step))
                if won is None:
                    if world.store_of(event.path) != "none":
                        world.violate(f"{event.outcome} has lost, and nothing was decided")
                elif winner not in won:
                    world.violate(f"{event.outcome} has lost to {winner}, none of {won}")
            case StateUpdated(outcome=Failed()) if (
                event.update.step == "fan" and world.program["until"] in RACES
            ):
                world.violate(f"{event.outcome} was applied in a race")
            case _:
                pass


# -- in the end ------------------------------------------------------------------------------------


def judge_end(world: World, model: Model, end: str, result: Any) -> None:
    """Compare what a program has come to with what it must."""
    verdict = model.whole()
    if end == "failed":
        is_one_life = world.program["kept"] == "no"
        if not verdict.may_fail and not (is_one_life and (world.fired or model.is_flaky)):
            world.violate("it fails for good, and nothing is wrong with it")
        return
    if end in ("cancelled", "stopped", "halted", "refused"):
        if world.program["kept"] == "yes":
            world.violate(f"it ends {end}")
        return
    if not verdict.may_succeed:
        world.violate("it has succeeded, and must fail")
    written = plain(result.state)
    is_another = model.change in ("folded", "one more act")  # of another shape
    problem = None if is_another else verdict.check(written)
    if problem is not None:
        world.violate(f"{problem}; the state is {written}")
    if world.program["after"] == "yes" and written.get("after") != "after":
        world.violate("the step after the fan-out has written nothing")
    _judge_ledgers(world, model, result)


def _judge_ledgers(world: World, model: Model, result: Any) -> None:
    """The root's fan-out, or one in its node, has counted each key once."""
    row = world.program.row
    in_node = "node/fan" if row["after"] == "yes" else "fan"  # alone, the node is the root's graph
    step = {"root": "fan", "node": in_node}.get(row["place"])
    if row["form"] in ("start", "start_each"):
        step = {"root": "own/fan"}.get(row["place"])
    if step is None or world.has_changed:
        return
    ledgers = result._ledgers.get(step)
    if not ledgers:
        world.violate(f"there is no ledger of {step}, but of {sorted(result._ledgers)}")
        return
    ledger = ledgers[-1]
    counted = ledger.done + ledger.failed + ledger.cancelled + ledger.skipped
    slots = model.slots("r", 0, is_given=True)
    if row["at_most"] == "few" and row["known"] != "no":
        return
    if row["form"] == "acts over" and row["grow"] == "yes" and row["keys"] == "none":
        return
    if row["at_most"] == "few":
        slots = slots[:1]
    least = sum(not model.may_be_missing(slot) or slot.number < 10 for slot in slots)
    if counted > len(slots) or (counted < least and not model.ends_early()):
        world.violate(f"the ledger of {step} counts {ledger}, and there are {len(slots)} children")
    if not any(slot.may_be_done for slot in slots) and ledger.done:
        world.violate(f"the ledger of {step} counts {ledger}, and nobody can be done")


def summary(result: Any) -> Any:
    """Give what is compared of two results of one run."""
    ledgers = {
        step: [(ledger.done, ledger.failed, ledger.cancelled, ledger.skipped) for ledger in of_step]
        for step, of_step in result._ledgers.items()
    }
    return plain(result.state), ledgers
