"""A graph as a node of another graph: one child, executed in the parent's own task.

Invariants:
- The child's end is saved together with the parent's update that takes over the child's writes.
- An error of the child is raised as it is, not in an ExceptionGroup: it is one step, not a fan-out.
"""

from __future__ import annotations

from contextvars import copy_context

from shoal._concurrency.cancellation import absorb_stray_cancel, drive, ki_protected
from shoal._engine.commit import Write, begin_anew, commit
from shoal._engine.publish import publish_child_started
from shoal._engine.questions import halt_for
from shoal._engine.replay import load_end, load_history
from shoal._engine.run import Run
from shoal._engine.spawning import Executing, within
from shoal._engine.standing import stands_for
from shoal._engine.walk import complete_last, walk
from shoal._errors.exceptions import HookFailed
from shoal._events.events import Update
from shoal._graph.graph import Graph
from shoal._state.state import NO_CHANGE, Change, Drop, Set

from .children import check_depth, child_config, narrowed
from .finish import End, record_unapplied, settle_end, wind_up
from .read_ledgers import recall_ledgers
from .recorded import read_recorded_children


@ki_protected
async def enter(graph: Graph, run: Run) -> Change:
    """Execute ``graph`` as one step of ``run``, in a child.

    The child starts with the fields that the graph reads of the parent's state. When it ends, one
    update writes its results to the parent's state. A child that is cancelled or fails leaves the
    parent's state as it was.
    """
    check_depth(run, graph.name)
    hint = "pass it to run(), or write it in an earlier action"
    # Of the beginning of the step, as in the first execution: the child's digest is made of it, so
    # that the child is found again.
    begun = run.playback
    data = run.data if begun is None else begun.began.data
    base = narrowed(data, graph, {}, f"the actions of {graph.name!r}", hint)
    # The results that its fan-outs continue from: they skip elements whose result is there.
    base |= {field: data[field] for field in graph.continues if field in data}
    child = Run(child_config(run, graph.name, graph, host=run.slot_owner), base)
    kept = run.take_retained(graph.name)
    recorded_children = None
    if kept is not None:  # the child of an earlier attempt, which continues
        assert isinstance(kept, Run)
        child = kept
        child.reopen(counts=child.status != "halted")
    else:  # only now: what an attempt of this execution has kept is newer than the store
        visit, store = run.visit(graph.name), run.config.store
        recorded_children = await read_recorded_children(run, graph.name, visit, store)
    if recorded_children is not None:
        decision, record = recorded_children.resume(child)
        if decision == "rests":
            halt_for(run, graph.name, (child,))
        if decision == "runs anew":
            await begin_anew(child, run, graph.name)
        elif decision == "is done":
            await load_end(child)
        elif record is not None:
            child.resume_state().record = record  # also if it is kept: it has ledgers to hand up
            await load_history(child)
        # It is None for a child that begins anew, for instance because its graph has changed.
        if child.playback is not None:
            await recall_ledgers(child)
        if decision == "is kept":
            _take_ledgers(run, child)
            return NO_CHANGE
    if child.is_live:
        await _execute(graph, run, child)
    else:
        _take_ledgers(run, child)
    # The child ran in this task: a native cancellation that it left must not interrupt the save.
    await absorb_stray_cancel(run.config.services.native_cancels)
    try:
        change = _change(graph, child)
        if run.config.schema is not None:
            change = run.config.schema.checked(change, run.data, f"graph {graph.name!r}")
    except Exception as error:
        # Recorded as Done and unused, and retained: another attempt only takes the result again.
        child.discard_result()
        await _record(run, child, error)
        run.retain(graph.name, child)
        raise
    try:
        update = Update(run.number + 1, graph.name, change.operations)
        await commit(run, Write((update,), change.applied_to(run.data), applied=(child,)))
    except HookFailed:
        raise  # the update is saved and published, so the child's result stays
    except Exception as error:
        child.discard_result()
        await _record(run, child, error)
        run.retain(graph.name, child)
        raise
    return NO_CHANGE


@stands_for("graph")
async def _execute(graph: Graph, run: Run, child: Run) -> None:
    """Execute ``child`` to its end, and raise its error if it has one."""
    executing = Executing(child)
    try:
        if run.config.hooks.child_started:
            await publish_child_started(run, child)
        await drive(within(copy_context(), executing), walk(child), _nothing)
        try:
            child.succeed()
        except Exception:
            # The steps are done, only the value is missing: see ``complete_last``.
            await complete_last(child)
            raise
    except BaseException as error:  # noqa: BLE001 # raised again below
        end = settle_end(child, error, reason=run.reason or "its parent was cancelled")
        failure = child.error if end is End.FAILED else None
        if end in (End.FAILED, End.HALTED):
            # The child ran in this task, and may have left a native cancellation on it, which must
            # not interrupt the save.
            await absorb_stray_cancel(run.config.services.native_cancels)
        await _record(run, child, error)
        child.release_error()
        run.retain(graph.name, child, is_halted=end is End.HALTED)
        try:
            # They differ for a false cancellation, for instance: the step fails with the failure
            # made of it.
            if failure is not None and failure is not error:
                raise failure from failure.__cause__
            if end is not End.HALTED:
                raise
        finally:
            del failure  # breaks the traceback cycle
    finally:
        executing.child = None  # user code may have kept a copy of the context, which leads here
        # Also of a child that halted or was cancelled: the result of the run has them.
        _take_ledgers(run, child)
    if child.is_halting:
        halt_for(run, graph.name, (child,))


def _change(graph: Graph, child: Run) -> Change:
    """Return the child's writes, but for its model's defaults, as a change of the parent."""
    # By identity: a field that was only read is the very same object, and comparing users' values
    # might raise.
    first, final = child.initial, child.final_data()
    fields = sorted(graph.writes)
    written = {
        field: final[field]
        for field in fields
        if field in final and (field not in first or final[field] is not first[field])
    }
    dropped = tuple(
        field
        for field in fields
        if field not in final and (field in first or field in graph.sure_writes)
    )
    operations = (
        *(Set(field, value) for field, value in written.items()),
        *(Drop(field) for field in dropped),
    )
    return Change(operations, written, dropped)


def _take_ledgers(run: Run, child: Run) -> None:
    """Add the ledgers of ``child`` to those of ``run``, so that its result has them."""
    for step, ledgers in child.ledgers.items():
        run.ledgers.setdefault(f"{child.config.act}/{step}", []).extend(ledgers)


async def _record(run: Run, child: Run, error: BaseException) -> None:
    """Record an end that the parent doesn't apply; a failure to do so doesn't hide ``error``."""
    subject = f"{child.config.act!r} of run {run.path.id}"
    await wind_up(record_unapplied(run, (child,)), error, subject, "graph")


def _nothing() -> None:
    """Ignore that the child waits: there are no workers to add."""
