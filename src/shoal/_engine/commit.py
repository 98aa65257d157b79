"""The one door through which the state of a run changes, and through which children's ends go.

Imports runs, what is told of them, and what earlier executions have left.

Invariants:
- One door. Every change of a run's state goes through ``commit``: save, make it the state, publish.
  Nobody sees a state that isn't saved. Nothing in it can be cancelled: what waits there is
  shielded, so a commit happens as a whole or not at all.
- A child's last change is saved by the parent's commit that applies it, not by the child; unless it
  has a store of its own, which then has its end first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, final

from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import HookFailed, NotData, SecretLeaked, UpdateTooLarge
from shoal._events.events import Decision, Status, Update
from shoal._state.state import NO_CHANGE, Change, Drop, Set
from shoal.stores._history import QuestionAnswered, QuestionAsked, Rewound, StepBegun
from shoal.stores._protocol import Batch, Beginning, NullStore, SavedRun

from .publish import is_listening, publish_child_rerun, publish_commit, refuse_secrets
from .run import Run
from .unended import end_unended, may_have_children


@final
class Write(NamedTuple):
    """What one commit of a run saves and publishes: all of it or nothing."""

    updates: Sequence[Update] = ()
    """Numbered on from the run's number."""
    data: Mapping[str, object] | None = None
    """The fields of the state after the last of them; None: as they are."""
    applied: Sequence[Run] = ()
    """Children that the updates apply, one by one."""
    unapplied: Sequence[Run] = ()
    """Children whose end is saved and published without changing the state."""
    step_completed: str | None = None
    """The step that is completed with this."""
    decision: Decision | None = None
    """How the last of the updates decides a race."""
    ended: Status | None = None
    """How the run ends with this."""
    begun: Beginning | None = None
    """What a root run starts from, in its first commit."""
    rewound: Rewound | None = None
    """Where the run goes back to before the updates."""
    forgets: bool = False
    """Whether what was kept of the run before counts no more."""
    questions: Sequence[QuestionAsked | QuestionAnswered] = ()
    """What the run asks with this, or what was answered."""
    step_begun: StepBegun | None = None
    """What the fan-out declares that makes its first commit in this execution."""


SAVE = Write()
"""What is known of the run itself, and nothing else."""


@ki_protected
async def commit(run: Run, write: Write) -> None:
    """Save ``write``, make what it says the state of ``run``, and publish its updates one by one.

    Not cancelled by anything: what it waits for is shielded. Once a save has failed, nothing is
    saved or published here any more; ends that are owed to hooks are, by ``commit_unapplied``.

    Raises:
        NotData: Something of it can't be kept; nothing changed here. The step fails with that.
        UpdateTooLarge: The same, for it is too large.
        SecretLeaked: The same, for it holds what is secret.
        StoreFailed: The store raised; nothing changed here.
        CommitInDoubt: The store did not acknowledge in time; nothing changed here.
        HookFailed: A guarding hook raised; everything is saved, and everybody else was told.
    """
    setting = run.setting
    (number, data), execution = run.head, setting.execution
    updates, applied, unapplied = write.updates, write.applied, write.unapplied
    if setting.secrets.names:
        for update in updates:
            what = f"what step {update.step!r} of run {run.path.id} does to the state"
            refuse_secrets(run, (update.operations, update.discovered), what)
        refuse_secrets(run, write.questions, f"a question of run {run.path.id}, or an answer,")
    gathered: list[Run] = []
    rerun: list[Run] = []
    for child in unapplied:
        if child.resume is not None and child.resume.is_afresh:
            # Its record is about to say what it would have worked on.
            await forget_history(child)
            rerun.append(child)
        if child.setting.is_forgotten and child.status == "succeeded":
            _gather(child)
            gathered.append(child)
    if execution.is_resumed:
        for child in (*unapplied, *applied):
            await _acquit(child)
            if child.status in ("failed", "cancelled"):
                await end_below(child)
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
    )
    await execution.save(batch, setting.store)
    run.head = (number + len(updates), data if write.data is None else write.data)
    if execution.is_resumed and run.retries is not None:
        run.retries.noted = run.retries.crashes
    for child in gathered:
        # Its steps were told when they were completed.
        child.head, child.pending = (1, child.final_data()), NO_CHANGE
    if setting.hooks.listening or is_listening(applied) or is_listening(unapplied):
        await publish_commit(run, updates, applied, unapplied, rerun)


@ki_protected
async def record_ends(run: Run, children: Sequence[SavedRun]) -> None:
    """Save how children of ``run`` ended that this execution has not started.

    No hook receives that. An earlier execution has published their starts, and this one publishes
    ends only of those that it has started itself.

    Raises:
        ShoalError: As ``commit``.
    """
    execution = run.setting.execution
    batch = Batch(run, unapplied=children, before=run.head[0], holder=execution.holder)
    await execution.save(batch, run.setting.store)


async def commit_unapplied(run: Run, children: Sequence[Run]) -> None:
    """Save and publish how children of ``run`` ended that no update applies.

    What can't be saved is published all the same: it has not ended well, for everybody else.

    Raises:
        ShoalError: As ``commit``, but nothing where a save has failed before.
    """
    if run.setting.execution.unsaved:
        await _revoke_ends(run, children)
        return
    try:
        await commit(run, Write(unapplied=children))
    except HookFailed:
        raise  # they are saved, and everybody was told
    except Exception:
        with suppress(HookFailed):  # the save that failed comes first
            await _revoke_ends(run, children)
        raise


@ki_protected
async def _revoke_ends(run: Run, children: Sequence[Run]) -> None:
    for child in children:
        child.revoke_end()
    await publish_commit(run, (), (), children)


def _gather(child: Run) -> None:
    """Have all that a child has written saved with its end, since nothing else is kept of it.

    It is Done, and its parent doesn't apply it now: when it is applied later, or its outcome handed
    over once more, its state is found there.
    """
    initial, final = child.initial, child.final_data()
    changed = {name: final[name] for name in final if final[name] is not initial.get(name, child)}
    dropped = tuple(name for name in initial if name not in final)
    operations = (*(Set(name, changed[name]) for name in changed), *map(Drop, dropped))
    setting, head = child.setting, child.head
    # As its only update, since those before it are kept nowhere.
    child.head, child.pending = (0, initial), Change(operations, changed, dropped)
    try:
        if setting.secrets.names:
            refuse_secrets(child, operations, "what a child has written")
        child.packed = setting.keeper.pack(child)
    except (NotData, UpdateTooLarge, SecretLeaked):
        # Its earlier steps may write what no store takes. Its value was packed before.
        child.head, child.pending, child.packed = head, NO_CHANGE, None


async def end_below(run: Run) -> None:
    """Record ends of what an earlier execution has left under way below ``run``, which has failed.

    Or it was cancelled. In either case it may not have come to all of that.

    Raises:
        ShoalError: As ``commit``.
    """
    setting, played = run.setting, run.playback
    execution = setting.execution
    if execution.unsaved or execution.is_interrupted:
        return
    if isinstance(setting.store, NullStore) and not execution.stores:
        return  # else its children may have a store
    if not may_have_children(setting.graph):
        return
    reason = run.reason if run.status == "cancelled" else "its parent failed"
    decided = None if played is None else played.decided
    await end_unended(execution, setting.store, run, decided, reason, graph=setting.graph)


async def _acquit(child: Run) -> None:
    """Save in a store of its own that nothing is held against a child any more.

    Its end says so where that is saved, in the store of its parent. If that is another one, or
    keeps nothing, what was counted before would stay (see
    test_in_a_store_of_its_own_who_has_ended_is_acquitted).

    Raises:
        ShoalError: As ``commit``.
    """
    setting, retries = child.setting, child.retries
    if retries is None or not setting.ends_itself or setting.is_forgotten:
        return
    if retries.noted != retries.crashes:
        await commit(child, SAVE)


async def forget_history(run: Run) -> None:
    """Have what was kept of ``run`` and its descendants count no more.

    Raises:
        ShoalError: As ``commit``.
    """
    await commit(run, Write(forgets=True))
    if run.resume is not None:
        run.resume.is_afresh = False


async def begin_anew(child: Run, parent: Run, step: str) -> None:
    """Have what was kept of ``child`` count no more, and publish that it runs anew.

    Raises:
        ShoalError: As ``commit``.
    """
    await forget_history(child)
    await publish_child_rerun(parent, child, step)
