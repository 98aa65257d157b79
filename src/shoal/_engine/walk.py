"""The walk of a run along its graph, step after step to its end.

Imports runs, what calls actions, and what runs go on from.

Invariants:
- One writer. Only the task that walks a run commits to it.
- A step that is cancelled, or halted, is never completed.
- What follows a completed step is chosen by the state as that step has left it, and saved with it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Literal, NoReturn

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.cancellation import absorb_stray_cancel, ki_protected
from shoal._concurrency.watchdog import is_life_of
from shoal._errors.exceptions import (
    Halting,
    NotData,
    SecretLeaked,
    TooManySteps,
    UpdateTooLarge,
    brief,
)
from shoal._events.events import RunStarted, StepStarted, Update
from shoal._graph.action import Act, FunctionAction
from shoal._graph.policy import Each
from shoal._state.state import NO_CHANGE, Change
from shoal.stores._history import StepBegun, own_declared

from .attempts import Tries, try_again, within
from .call import call_action
from .commit import Write, commit
from .config import Halts, Setting
from .permits import retake_slot
from .publish import publish_attempt_ended, publish_step_ended
from .replay import act_after, fill_model, load_history, next_act, rewind
from .run import Run

STEPS = 64
"""Steps that a run takes without passing a checkpoint, if none of them waits."""
LAST_STEPS = 6
"""Steps that are named where there were too many of them."""


@is_life_of("run")
async def walk(run: Run) -> None:
    """Walk the graph of ``run`` to its end: from its entry, or from where an attempt has failed.

    The last step's change is left for ``commit`` by the caller. A cancellation goes to the action
    that runs; earlier steps stay committed.

    Raises:
        NoTransition: No edge that leaves an act is true; its step is completed.
        TooManySteps: The next step would be one too many.
        Halting: A step waits for answers, or the run is to stop here.
        Poisoned: The run was at work whenever a process died.
        Exception: Whatever an act or a condition raises.
    """
    setting = run.setting
    hooks, straight, halts = setting.hooks, setting.graph.straight, setting.halts
    each = setting.each
    is_timed = each is not None and each.timeout is not None
    act: Act | None = setting.graph.entry
    steps = 0
    if run.pending is None and run.retries is None and run.resume is None and _is_plain(setting):
        run.began = True  # as nearly all children begin: nothing to go on from, nobody to be told
    else:
        act, steps = await _begin(run)
    max_steps = setting.execution.max_steps
    walked: tuple[str, ...] = ()
    try:
        while act is not None:
            steps += 1
            if steps > max_steps - LAST_STEPS:
                if steps > max_steps:
                    raise _too_many_steps(run, act, walked)
                walked += (act.name,)
            if steps % STEPS == 0:
                await checkpoint()
            if setting.gate is not None:
                await setting.gate(act.name)
            is_open, run.step = run.step is not None, act.name
            if hooks.watching_steps:
                change = await _perform_watched(run, act, is_open=is_open)
            elif is_timed:
                change = await _perform_in_time(run, act)
            else:
                change = await _perform(run, act)
            if hooks.failures:
                raise hooks.failures[0]  # a guard's; maybe the act has caught what that raised
            if run.resume is not None:
                run.resume.replayed = None  # what follows is new
            if setting.schema is not None:
                change = setting.schema.checked(change, run.head[1], f"action {act.name!r}")
            if act.name in straight:
                following = straight[act.name]
            else:
                following = await _choose(run, act, change)
            is_parents = following is None and not setting.ends_itself  # its commit saves it
            if is_parents and setting.host is not None:
                # Of a graph as a node the result of its root run has the ledgers.
                is_parents = _empty_fan_outs_of(run, act.name) is None
            if is_parents:
                run.pending = change
            elif halts is not None and following and halts.stop(act.name, following.name):
                await complete_step(run, change, ended="halted")
                _stop_here(run)
            else:
                await complete_step(run, change)
            act = following
    except BaseException:
        if setting.is_resumable:
            run.retry_state().at = act
        raise
    if run.pending is None:
        run.pending = NO_CHANGE  # all steps are completed
        if setting.ends_itself:
            await commit(run, Write(ended="succeeded"))


async def _begin(run: Run) -> tuple[Act | None, int]:
    """Find the act that comes next, and how many steps were taken before; publish the start."""
    setting, retries, resume = run.setting, run.retries, run.resume
    record = None if resume is None else resume.record
    replayed = None if resume is None else resume.replayed
    hooks, suspects = setting.hooks, setting.execution.suspects
    act: Act | None = setting.graph.entry
    steps = 0
    # An attempt that has not come to its first act, since what the store has could not be read
    # for example, leaves all of that to the next.
    begins = run.pending is None and (retries is None or retries.at is None)
    if begins:
        if resume is not None and record is not None and replayed is None:
            await load_history(run)
            record, replayed = resume.record, resume.replayed
        if replayed is not None:
            act = next_act(run, replayed)
            steps = sum(replayed.began.visits.values())
    if not run.began:
        run.began = True
        if hooks.run_started:
            resumed = record is not None or setting.execution.is_resumed
            resumed = resumed and replayed is not None  # else it begins, or was forked
            await hooks.tell(hooks.run_started, RunStarted(path=run.path, resumed=resumed))
    if begins and record is not None and (suspects or record.crashes):
        run.retry_state().noted = record.crashes
        if suspects is not None:
            run.retry_state().crashes = record.crashes
            suspects.check(run.path, record.crashes)
    if not begins:
        act = _stands_at(run)
    elif setting.schema is not None and replayed is None:
        fill_model(run, setting.schema)
    if resume is not None and resume.rewind is not None:
        await rewind(run, *resume.rewind)
        resume.rewind = None
    has_halted_here = resume is not None and resume.has_halted_here
    halts = setting.halts
    if halts is not None and act is not None and not has_halted_here:
        _stop_before(run, act, halts)
    return act, steps


def _is_plain(setting: Setting) -> bool:
    """Tell whether runs that have nothing to go on from begin without any ado."""
    return setting.schema is None and setting.halts is None and not setting.hooks.run_started


def _stands_at(run: Run) -> Act | None:
    """Find where an earlier attempt has come to; None: to the end."""
    if run.pending is not None:
        return None
    retries = run.retry_state()
    assert retries.at is not None, "else it would begin"
    if not retries.is_undecided:
        return retries.at
    following = act_after(run.setting.graph, retries.at, run.head[1])
    retries.is_undecided, retries.attempt = False, retries.before + 1
    return following


def _stop_before(run: Run, act: Act, halts: Halts) -> None:
    """Halt before the first step of all, or of this execution, if the run is to."""
    if halts.stop(None, act.name):
        _stop_here(run)


def _stop_here(run: Run) -> NoReturn:
    """Halt between two steps.

    Raises:
        Halting: That is how it ends.
    """
    run.pending_questions().is_halting = True
    raise Halting(f"run {run.path.id} is to stop here")


async def _choose(run: Run, act: Act, change: Change) -> Act | None:
    """Find what follows ``act`` by the conditions on its edges.

    If that fails, the step is completed nevertheless, so that it isn't run again on resume.
    """
    try:
        return act_after(run.setting.graph, act, change.applied_to(run.head[1]))
    except BaseException:
        await complete_step(run, change)
        if run.setting.is_resumable:
            run.retry_state().is_undecided = True
        raise


def _too_many_steps(run: Run, act: Act, walked: tuple[str, ...]) -> TooManySteps:
    limit = run.setting.execution.max_steps
    return TooManySteps(
        f"run {run.path.id} of {run.path.act!r} has taken {limit} steps, "
        f"the last {' -> '.join(walked)}, and {act.name!r} would be next; "
        f"if that is no endless loop, allow more: Application(..., max_steps=...)"
    )


def _perform(run: Run, act: Act) -> Awaitable[Change]:
    if isinstance(act, FunctionAction):  # as most are: without the hops of ``Performer``
        return call_action(run, act)  # pyright: ignore[reportUnknownArgumentType] # any will do
    return act.perform(run)


async def _perform_in_time(run: Run, act: Act) -> Change:
    """Perform a step of a child that has only so much time."""
    change = await _perform(run, act)
    # It may have swallowed the cancellation. To be found here, before anything is saved of it.
    await checkpoint_if_cancelled()
    return change


async def _perform_watched(run: Run, act: Act, *, is_open: bool) -> Change:
    """Perform a step that hooks listen to; its start was published already, if it ``is_open``."""
    hooks, each = run.setting.hooks, run.setting.each
    event = StepStarted(path=run.path, step=act.name)
    if hooks.step_started and not is_open:
        await hooks.tell(hooks.step_started, event)
    is_childs = each is not None and each.retry is not None  # else the act's, if anybody's
    entered = hooks.enter_around(hooks.around_step, event)
    try:
        if each is not None and each.timeout is not None:
            change = await _perform_in_time(run, act)
        else:
            change = await _perform(run, act)
    except BaseException as error:
        run.setting.secrets.hide(error)
        failure = entered.leave(error)
        if failure is not None and isinstance(error, Exception):
            raise failure from error
        if act.retry is not None and not is_childs and isinstance(error, Exception):
            await publish_attempt_ended(run, error, None)
        raise  # a cancellation is never replaced
    failure = entered.leave(None)
    if failure is not None:
        raise failure
    if (act.retry is not None or is_childs) and not run.is_cached:
        await publish_attempt_ended(run, None, None)
    return change


async def complete_step(
    run: Run, change: Change, *, ended: Literal["succeeded", "halted"] | None = None
) -> None:
    """Commit the current step's ``change``, and publish that the step has ended.

    Args:
        run: Whose step it is.
        change: What the step did.
        ended: How the run ends with it, if it does.
    """
    await absorb_stray_cancel(run.setting.services.native_cancels)
    step = run.step
    assert step is not None
    updates: tuple[Update, ...] = ()
    if change.operations:
        updates = (Update(run.head[0] + 1, step, change.operations),)
    run.questions = None
    if run.retries is not None:
        run.retries.clear_crashes()
    data = change.applied_to(run.head[1])
    own = _empty_fan_outs_of(run, step)
    await commit(run, Write(updates, data, step_completed=step, ended=ended, step_begun=own))
    visits = run.step_counts().visits
    visits[step] = visits.get(step, 0) + 1
    if run.retries is not None:
        run.retries.attempt = run.retries.before + 1
    await publish_step_ended(run, "succeeded")
    if run.retries is not None:
        run.retries.is_cached = False


def _empty_fan_outs_of(run: Run, step: str) -> StepBegun | None:
    """Return which fan-outs of its own an action has opened that have started nothing, if any.

    Nothing else is kept of them, and a later execution has ledgers of them as well (see
    test_an_empty_fan_out_of_an_action_s_own_has_a_ledger_in_each_execution).
    """
    ledgers = None if run.steps is None else run.steps.ledgers
    if not ledgers:
        return None
    act, visit = run.setting.graph.find(step), run.visit(step)
    if not isinstance(act, FunctionAction):
        return None
    names = [
        name
        for name, found in ledgers.items()
        if name.startswith(f"{step}/") and len(found) > visit and not found[visit].total
    ]
    return StepBegun(step, own_declared(sorted(names))) if names else None


async def complete_last(run: Run) -> None:
    """Complete its last step by itself, since its value could not be taken, or not be kept.

    Else the step's change would be saved with the child's end. So another attempt, or another
    execution, takes the value anew, and executes nothing (see
    test_a_child_whose_value_could_not_be_taken_executes_nothing_again). If what the step wrote
    can't be kept either, it is the step that has failed.

    Raises:
        StoreFailed: It could not be saved.
        CommitInDoubt: The same.
        HookFailed: A guarding hook raised.
    """
    retries, step = run.retry_state(), run.step
    change, run.pending = run.pending, None
    if step is not None and change is not None:
        try:
            await complete_step(run, change)
        except (NotData, UpdateTooLarge, SecretLeaked):
            retries.at = run.setting.graph.find(step)
            return
    retries.lacks_value = True


@ki_protected
async def live_child(child: Run, each: Each) -> None:
    """Walk a child's graph to its end, as often and as long as ``each`` allows.

    Raises:
        StepTimeout: It took too long, all its attempts and whatever was waited for together.
        BaseException: What the last attempt raised.
    """
    tries = None if each.retry is None else Tries(each.retry, child)

    async def live() -> None:
        if tries is None:
            await walk(child)
        else:
            await try_again(child, tries, attempt, tells_last=True)

    async def attempt() -> None:
        assert tries is not None
        await retake_slot(child)
        tries.begin()
        await walk(child)

    def cause() -> Exception | None:
        return None if tries is None else tries.last

    def what() -> str:
        path, step = child.path, child.step
        where = "" if step is None else f", in {step!r},"
        return f"child {brief(path.key)} of fan-out {path.step!r}{where} run {path.id},"

    try:
        if each.timeout is None:
            await live()
        else:
            await within(each.timeout, live, child, what=what, cause=cause, keeps_late=True)
    finally:
        if tries is not None:
            tries.last = None  # no cycle from the exception through its traceback to this frame
