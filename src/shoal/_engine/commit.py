"""Commit changes: save them, set the state of the run, publish.

Invariants:
- Every change of a run's state, and every end of a child, goes through ``commit``. Nothing is
  visible (to a hook, the caller or a later step) before it is saved. A commit can't be cancelled:
  its waits are shielded, so it happens as a whole or not at all.
- A child's last change is saved by the parent's commit that applies it. A child with a store of its
  own saves its end there first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, final

from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import HookFailed, NotData, SecretLeaked, UpdateTooLarge
from shoal._events.events import Decision, Status, Update
from shoal._state.state import NO_CHANGE, Change, Drop, Set
from shoal.stores._history import QuestionAnswered, QuestionAsked, Rewound, Steered, StepBegun
from shoal.stores._protocol import Batch, Beginning, NullStore, SavedRun

from .publish import (
    is_listening,
    publish_child_rerun,
    publish_commit,
    publish_run_steered,
    refuse_secrets,
)
from .run import Run
from .standing import stands_for
from .unended import end_unended, may_have_children


@final
class Write(NamedTuple):
    """The content of one commit of a run: all of it is saved and published, or nothing."""

    updates: Sequence[Update] = ()
    """Numbered on from the run's number."""
    data: Mapping[str, object] | None = None
    """The fields of the state after the last update; None: unchanged."""
    applied: Sequence[Run] = ()
    """Children that the updates apply, one child for each update."""
    unapplied: Sequence[Run] = ()
    """Children whose end is saved and published without changing the state."""
    step_completed: str | None = None
    """The step that this commit completes."""
    decision: Decision | None = None
    """The decision of a race, made by the last of the updates."""
    ended: Status | None = None
    """The status with which this commit ends the run."""
    begun: Beginning | None = None
    """The start of a root run, in its first commit."""
    rewound: Rewound | None = None
    """The place to which the run goes back before the updates."""
    forgets: bool = False
    """Whether everything saved of the run before is void."""
    questions: Sequence[QuestionAsked | QuestionAnswered] = ()
    """Questions that the run asks, or answers that were given to it."""
    step_begun: StepBegun | None = None
    """The declaration of a fan-out, in its first commit in this execution."""
    steered: Sequence[Steered] = ()
    """That the run was asked for again, after it had been cancelled from outside."""


SAVE = Write()
"""Saves the run's own record, its crashes for example, and no change."""


@stands_for("commit")
@ki_protected
async def commit(run: Run, write: Write) -> None:
    """Save ``write``, set the state of ``run`` to it, and publish its updates one by one.

    A cancellation doesn't interrupt it: all its waits are shielded. Once a save has failed, nothing
    more is saved or published here. Ends that hooks still wait for are published by
    ``commit_unapplied``.

    Raises:
        NotData: Some value can't be saved; nothing changed. The step fails with this error.
        UpdateTooLarge: A value is too large to be saved; otherwise as ``NotData``.
        SecretLeaked: A value holds a secret; otherwise as ``NotData``.
        StoreFailed: The store raised; nothing changed.
        CommitInDoubt: The store did not acknowledge in time; nothing changed in this process.
        HookFailed: A guarding hook raised. Everything is saved, and all other hooks were called.
    """
    config = run.config
    (number, data), execution = run.head, config.execution
    updates, applied, unapplied = write.updates, write.applied, write.unapplied
    if config.secrets.names:
        for update in updates:
            what = f"what step {update.step!r} of run {run.path.id} does to the state"
            refuse_secrets(run, (update.operations, update.discovered), what)
        refuse_secrets(run, write.questions, f"a question of run {run.path.id}, or an answer,")
    gathered: list[Run] = []
    rerun: list[Run] = []
    for child in unapplied:
        if child.resume is not None and child.resume.is_afresh:
            # First void the old history: the record saved below has the digest of the new input,
            # and the old history would count as the history of that input. See
            # test_a_crash_after_a_changed_child_was_forgotten_runs_it_once_more.
            await forget_history(child)
            rerun.append(child)
        if child.config.is_forgotten and child.status == "succeeded":
            _gather(child)
            gathered.append(child)
    if execution.is_resumed or execution.has_lost_workers:
        # Before the ends of the children are saved: a crash in between leaves a child without an
        # end, which the next execution takes up, and not descendants that go on below an end.
        for child in (*unapplied, *applied):
            await _acquit(child)
            if execution.is_resumed and child.status in ("failed", "cancelled"):
                await end_below(child)
    if write.ended is not None and run.path.parent is None:
        execution.is_over = True
    if execution.keeps_nothing and config.keeps_no_history and not execution.unsaved:
        execution.saves_wait = False  # as after a save that took no time
    else:
        batch = Batch(
            run,
            updates,
            applied,
            unapplied,
            write.step_completed,
            write.decision,
            write.ended,
            number,
            write.begun,
            write.rewound,
            write.forgets,
            execution.holder,
            write.questions,
            write.step_begun,
            write.steered,
        )
        await execution.save(batch, config.store)
    # Saved, then set, then published: nothing is visible before it is saved. Number and state are
    # one assignment, which a KeyboardInterrupt can't tear; see
    # test_an_interrupt_in_the_middle_of_a_commit_does_not_tear_it.
    run.head = (number + len(updates), data if write.data is None else write.data)
    # Read by `_acquit` alone.
    if config.parent is None and config.host is None:
        execution.number = run.head[0]
    if run.retries is not None:
        run.retries.noted = run.retries.crashes
    for child in gathered:
        # Back to one change with nothing pending: the updates of its steps were published when
        # the steps were completed, and must not be published again with its end.
        child.head, child.pending = (1, child.final_data()), NO_CHANGE
    if config.hooks.listening or is_listening(applied) or is_listening(unapplied):
        await publish_commit(run, updates, applied, unapplied, rerun)


@ki_protected
async def record_ends(run: Run, children: Sequence[SavedRun]) -> None:
    """Save the ends of children of ``run`` that this execution has not started.

    Hooks receive nothing. An earlier execution published the starts of these children, and this one
    publishes ends only of children that it has started itself.

    Raises:
        ShoalError: As ``commit``.
    """
    execution = run.config.execution
    batch = Batch(run, unapplied=children, before=run.head[0], holder=execution.holder)
    await execution.save(batch, run.config.store)


def is_silent(run: Run) -> bool:
    """Return whether a commit of ``run`` does nothing but set its state: it is faster done by hand.

    Asked anew for each commit: a hook may join, and a save in another store may fail.
    """
    config = run.config
    return (
        config.keeps_no_history
        and not config.hooks.listening
        and not config.secrets.names
        and not config.execution.unsaved
    )


@ki_protected
async def record_answered(
    run: Run, answered: QuestionAnswered, steered: Sequence[Steered] = ()
) -> bool:
    """Save an answer that a root run is given from outside, and by whom if that was told.

    Any task may call this, as ``record_steered``. The run need not be at anything in particular:
    its group may be waiting for the cleanup of children; see
    test_an_answer_counts_that_comes_while_cancelled_children_clean_up.

    Returns False, and does nothing, if the run has ended or is about to.

    Raises:
        ShoalError: As ``commit``.
    """
    subject = f"an answer to a question of run {run.path.id}"
    return await _save_beside(run, subject, steered, (answered,))


@ki_protected
async def record_steered(run: Run, steered: Steered) -> bool:
    """Save and publish that a root run is steered from outside.

    Any task may call this: no state changes, so the entry need not be in order with the commits of
    the run's own task.

    Returns False, and does nothing, if the run has ended or is about to.

    Raises:
        ShoalError: As ``commit``.
    """
    if not await _save_beside(run, f"how run {run.path.id} is steered", (steered,)):
        return False
    await publish_run_steered(run, steered)
    return True


async def _save_beside(
    run: Run, subject: str, steered: Sequence[Steered], answered: Sequence[QuestionAnswered] = ()
) -> bool:
    """Save entries of a root run beside the commits of its own task; see ``record_steered``.

    Args:
        run: The run.
        subject: Names the entries if they have a secret.
        steered: How the run was steered.
        answered: The answers that it was given.
    """
    execution = run.config.execution
    if execution.is_over or run.status is not None:
        return False
    if run.config.secrets.names:
        refuse_secrets(run, (answered, steered), subject)
    batch = Batch(
        run, before=run.head[0], holder=execution.holder, questions=answered, steered=steered
    )
    await execution.save(batch, run.config.store)
    return True


async def commit_unapplied(run: Run, children: Sequence[Run]) -> None:
    """Save and publish the ends of children of ``run`` that no update applies.

    Children whose end can't be saved are published as cancelled, so that every start that a hook
    received has its end.

    Raises:
        ShoalError: As ``commit``; but if a save has failed before, only ``HookFailed``.
    """
    if run.config.execution.unsaved:
        await _revoke_ends(run, children)
        return
    try:
        await commit(run, Write(unapplied=children))
    except HookFailed:
        raise  # the ends are saved, and all hooks were called
    except Exception:
        with suppress(HookFailed):  # the failed save is the cause, and is raised
            await _revoke_ends(run, children)
        raise


@ki_protected
async def _revoke_ends(run: Run, children: Sequence[Run]) -> None:
    for child in children:
        # Hooks must not see an end that no store has.
        child.revoke_end()
    await publish_commit(run, (), (), children)


def _gather(child: Run) -> None:
    """Turn all changes of a child into its last update, so that they are saved with its end.

    No store keeps the child's history. The child is Done and not applied now, so an execution that
    applies it later, or returns its outcome again, reads its state from this update.
    """
    initial, final = child.initial, child.final_data()
    # By identity: equal values may differ in type, and the default `child` is no field's value.
    changed = {name: final[name] for name in final if final[name] is not initial.get(name, child)}
    dropped = tuple(name for name in initial if name not in final)
    operations = (*(Set(name, changed[name]) for name in changed), *map(Drop, dropped))
    config, head = child.config, child.head
    # It is the only update, so the state before it is the initial one.
    child.head, child.pending = (0, initial), Change(operations, changed, dropped)
    try:
        if config.secrets.names:
            refuse_secrets(child, operations, "what a child has written")
        child.packed = config.keeper.pack(child)
    except (NotData, UpdateTooLarge, SecretLeaked):
        # Earlier steps of a child without a store may write values that no store accepts. Only its
        # value has to be data, and that was packed when it succeeded.
        child.head, child.pending, child.packed = head, NO_CHANGE, None


async def end_below(run: Run) -> None:
    """Record ends for all descendants of ``run`` that an earlier execution left under way.

    ``run`` has failed or was cancelled, maybe before it took all of them up again.

    Raises:
        ShoalError: As ``commit``.
    """
    config, played = run.config, run.playback
    execution = config.execution
    # An interrupted run is resumed by another process, which takes up all that is under way.
    if execution.unsaved or execution.is_interrupted:
        return
    # A run without a store may have fan-outs with one, then `execution.stores` has it.
    if isinstance(config.store, NullStore) and not execution.stores:
        return
    if not may_have_children(config.graph):
        return  # spares the store a question for each failed child
    reason = run.reason if run.status == "cancelled" else "its parent failed"
    decided = None if played is None else played.decided
    await end_unended(execution, config.store, run, decided, reason, graph=config.graph)


async def _acquit(child: Run) -> None:
    """Save in a child's own store that no crash is counted against the child any more.

    The child's end says so too, but is saved in the store of its parent. If that is another store,
    or keeps nothing, the child's own store would keep the old count (see
    test_in_a_store_of_its_own_an_ended_child_is_acquitted).

    Raises:
        ShoalError: As ``commit``.
    """
    config, retries = child.config, child.retries
    if retries is None or not config.ends_itself or config.is_forgotten:
        return
    if retries.noted != retries.crashes:  # else the store has this number already
        await commit(child, SAVE)


async def forget_history(run: Run) -> None:
    """Make void all that is saved of ``run`` and its descendants.

    Raises:
        ShoalError: As ``commit``.
    """
    # By itself, so that no update of the new history can be part of the same save.
    await commit(run, Write(forgets=True))
    # After the save: if that fails, the history still has to be made void.
    if run.resume is not None:
        run.resume.is_afresh = False


async def begin_anew(child: Run, parent: Run, step: str) -> None:
    """Make void all that is saved of ``child``, and publish that it runs anew.

    Raises:
        ShoalError: As ``commit``.
    """
    await forget_history(child)
    await publish_child_rerun(parent, child, step)
