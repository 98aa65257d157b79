"""Walk a run along its graph, step after step to its end.

Invariants:
- One writer. Only the task that walks a run commits to it.
- A step that is cancelled or halted is never completed.
- The conditions on edges see the state as the completed step has left it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, final

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.cancellation import absorb_stray_cancel, ki_protected, ki_unprotected
from shoal._concurrency.watchdog import is_life_of
from shoal._errors.exceptions import NotData, RetryLater, SecretLeaked, TooManySteps, UpdateTooLarge
from shoal._events.events import RunStarted, StepStarted, Update
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._graph.policy import Each
from shoal._state.secrets import Secret
from shoal._state.state import NO_CHANGE, Change
from shoal.stores._history import StepBegun, own_declared

from .attempts import Tries, try_again, within
from .call import call_action, call_admitted, call_simply
from .child_time import ChildTime, described
from .commit import Write, commit, is_silent
from .config import Halts
from .halting import stop_here, stop_if_drained, unless_drained
from .in_place import refuse_changes_in_place
from .permits import hold_permits, passes_of, retake_slot
from .progress import StepCounts
from .publish import publish_attempt_ended, publish_step_ended
from .replay import act_after, fill_model, load_history, next_act, rewind
from .returned import TO_CHECK, checked_result
from .run import Run
from .standing import stands_for

STEPS = 64
"""Steps that a run takes without passing a checkpoint, if none of them waits.

A checkpoint costs a turn of the event loop, as much as some plain steps. So there is one in 64, and
other tasks wait for 64 plain steps at most.
"""
LAST_STEPS = 6
"""Steps that the error about too many of them names: enough to show a loop of a few acts."""


@is_life_of("run")
@stands_for("walk")
async def walk(run: Run, at: Act | None = None) -> None:
    """Walk the graph of ``run`` to its end, from its entry or from where an attempt has failed.

    The caller commits the change of the last step. A cancellation reaches the action that runs;
    earlier steps stay committed.

    Args:
        run: The run.
        at: The act to go on at, if ``walk_simply`` has begun the run.

    Raises:
        NoTransition: No condition on the edges of an act is true; the act's step is completed.
        TooManySteps: The run has taken as many steps as it may.
        Halting: A step waits for answers, or the run stops at a breakpoint.
        Poisoned: The run was at work in too many crashes.
        Exception: An act or a condition raised it.
    """
    config = run.config
    # Read once: a step of a plain action costs little more than these lookups would.
    hooks, straight, halts = config.hooks, config.graph.straight, config.halts
    is_direct, execution = config.performs_directly, config.execution
    is_simple = config.may_call_simply
    act: Act | None = config.graph.entry
    # Of this execution and earlier ones, so that a loop is found however often the run is resumed;
    # see test_steps_are_counted_over_all_executions.
    steps = 0
    # With `config`, as most children have it, nothing has to be done at the start of a run.
    is_plain = config.schema is None and halts is None and not hooks.run_started
    if at is not None:
        act = at
    elif is_plain and run.pending is None and run.retries is None and run.resume is None:
        # Nearly all children start like this: with nothing to resume and no hook for the start.
        # They pay for no call and no await.
        run.began = True
    else:
        act, steps = await _begin(run)
    max_steps, drain = execution.max_steps, execution.drain
    walked: tuple[str, ...] = ()
    try:
        while act is not None:
            if drain.reason is not None:
                stop_if_drained(run)
            steps += 1
            # Names are collected only near the limit, so that other runs don't pay for the error.
            if steps > max_steps - LAST_STEPS:
                if steps > max_steps:
                    raise _too_many_steps(run, act, walked)
                walked += (act.name,)
            if steps % STEPS == 0:
                await checkpoint()
            if config.gate is not None:
                await unless_drained(run, partial(config.gate, act.name))
            # A run that is resumed in this execution may be at a step whose start is published.
            is_open, run.step = run.step is not None, act.name
            if hooks.watching_steps:
                change = await _perform_watched(run, act, is_open=is_open)
            elif is_simple and act.is_simple and not (execution.suspects or execution.hold.is_on):
                # Else crashes are counted around the call, or it waits while the run is paused.
                change = await call_simply(run, act)
            elif is_direct:
                change = await _perform(run, act)
            else:
                change = await _perform_checked(run, act)
            # The act may have caught what a guarding hook raised, and returned as if it were well;
            # see test_a_guard_that_fails_ends_the_run_also_where_the_action_hides_it.
            if hooks.failures:
                raise hooks.failures[0]
            if run.resume is not None:
                run.resume.replayed = None  # the history ends with this step
            # Checked before anything is saved of it, and before conditions see it.
            if config.schema is not None:
                change = config.schema.checked(change, run.head[1], f"action {act.name!r}")
            if act.name in straight:
                following = straight[act.name]
            else:
                following = await _choose(run, act, change)
            # The last step is saved together with the run's end, in the parent's commit: one save
            # for a child of one step. See
            # test_a_child_saves_its_earlier_steps_itself_and_its_last_with_its_parent.
            is_parents = following is None and not config.ends_itself
            if is_parents and config.host is not None:
                # The parent's commit has no place for empty fan-outs of a graph that is a node,
                # whose ledgers the result of the root run has; so such a step is saved by itself.
                is_parents = _empty_fan_outs_of(run, act.name) is None
            if is_parents:
                run.pending = change
            elif halts is not None and following and halts.stop(act.name, following.name):
                # One save, so that a crash can't leave the run completed and not halted; see
                # test_a_run_is_known_to_be_halted_as_soon_as_the_step_before_is_completed.
                await complete_step(run, change, ended="halted")
                stop_here(run)
            else:
                await complete_step(run, change)
            act = following
    except BaseException:
        # Also for a cancellation: a timeout of the step around may be what is retried. A run that
        # halts may be answered in this execution, see ``FanOutStep``.
        if config.is_resumable or run.is_halting:
            run.retry_state().at = act
        raise
    if run.pending is None:
        run.pending = NO_CHANGE  # not None any more: all steps are completed
        if config.ends_itself:
            await commit(run, Write(ended="succeeded"))


@is_life_of("run")
@stands_for("action")
@ki_unprotected
async def walk_simply(run: Run, native_cancels: Callable[[], int]) -> None:
    """Walk a graph of simple actions, as ``walk`` does, past everything that few runs need.

    Nearly all children come this way. Should anything more be needed after all, a hook that joins
    or a pause for example, ``walk`` goes on from there. For ``RunConfig.walks_simply`` alone.

    Args:
        run: The run.
        native_cancels: Counts the native cancellations of this task.
    """
    # Each line here is passed by each child: an attribute read in one place has no variable.
    config = run.config
    hooks, execution, acts = config.hooks, config.execution, config.graph.simple
    if (
        run.pending is not None
        or run.retries is not None
        or run.resume is not None
        or run.permits is not None
        or hooks.run_started
    ):
        hold_permits(run)
        await walk(run)
        return
    passes, passed = config.passes, run.passed
    if passes is None and config.is_limited_simply:
        passes = passes_of(config)
    run.began = True
    drain, hold, last = execution.drain, execution.hold, acts[-1]
    for at in range(len(acts)):  # the collector visits iterators of lists, and none of ranges
        act = acts[at]
        if hooks.watching_steps or drain.reason is not None or hold.is_on or execution.suspects:
            hold_permits(run)
            await walk(run, act)
            return
        if passes is not None:
            # The admission has let the child in to its first attempt.
            if passed is None and not passes.take(run, act.name):
                hold_permits(run)
                await walk(run, act)
                return
            passed = None
        run.step = act.name
        result: object = None
        change: Change | None = None
        try:
            field = act.only_field
            if field:
                value = run.head[1].get(field, _UNKNOWN)
            else:  # None: the action takes more; empty: it takes nothing
                value = _UNKNOWN if field is None else None
            if type(value) is Secret:
                change = await call_simply(run, act)
            else:
                # As there, with neither a coroutine of its own nor a dict of arguments.
                try:
                    result = await (act.function(value) if field else act.function())
                except RetryLater as error:
                    result = _Later(error)  # the next lines are not a part of its handling
                if act.only_write is None or isinstance(result, TO_LOOK_AT):
                    if type(result) is _Later:
                        change = await call_admitted(run, act, later=result.error)
                    else:
                        change = checked_result(act, None, result)
        finally:
            if passes is not None:
                if act is last:
                    passes.leave_last(run)
                else:
                    passes.leave(run)
        if hooks.failures:
            raise hooks.failures[0]
        if change is None:
            values: Any = {act.only_write: result}
            if act is last:
                run.pending = Change(None, values)
                return
            if (
                run.questions is None
                and run.retries is None
                and is_silent(run)
                and not native_cancels()
            ):
                _complete_silently(run, act.name, values)
                continue
            change = Change(None, values)
        if act is last:
            run.pending = change
        else:
            await complete_step(run, change)


@final
class _Later:
    """Stands for the result of an action that has raised ``RetryLater``."""

    __slots__ = ("error",)

    def __init__(self, error: RetryLater) -> None:
        self.error = error


TO_LOOK_AT: tuple[type[object], ...] = (_Later, *TO_CHECK)
"""Types of results that aren't taken as they are."""
_UNKNOWN = Secret(None)
"""Found in place of a field that the state lacks: such a step takes the way of those with secrets,
which tells them apart."""


@ki_protected
def _complete_silently(run: Run, step: str, values: Mapping[str, object]) -> None:
    """Do as ``complete_step`` where nothing is saved, published, or to be forgotten.

    The graph takes each of its steps once, and this one has written ``values``.
    """
    number, data = run.head
    run.head = number + 1, {**data, **values}
    counts = run.steps
    if counts is None:
        counts = run.steps = StepCounts()
    counts.visits[step] = 1
    run.step = None


async def _begin(run: Run) -> tuple[Act | None, int]:
    """Return the next act and how many steps were taken before, and publish the run's start.

    The order matters: the history is read before the start is published, since that says whether
    the run is resumed; a poisoned run is refused after its start, so that its end has one.
    """
    config, retries, resume = run.config, run.retries, run.resume
    record = None if resume is None else resume.record
    replayed = None if resume is None else resume.replayed
    hooks, suspects = config.hooks, config.execution.suspects
    act: Act | None = config.graph.entry
    steps = 0
    # Also true after an attempt that failed before its first act, because the history could not be
    # read for example: the next attempt does all of this again.
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
            # A run without a history starts now, also in an execution that resumes others. A fork
            # has a history and is not resumed.
            resumed = record is not None or config.execution.is_resumed
            resumed = resumed and replayed is not None
            spawned_by = config.execution.spawned_by if config.parent is None else None
            event = RunStarted(path=run.path, resumed=resumed, spawned_by=spawned_by)
            await hooks.notify(hooks.run_started, event)
    if begins and record is not None and (suspects or record.crashes):
        run.retry_state().noted = record.crashes
        if suspects is not None:
            run.retry_state().crashes = record.crashes
            suspects.check(run.path, record.crashes)
    if not begins:
        act = _stands_at(run)
    elif config.schema is not None and replayed is None:
        fill_model(run, config.schema)
    if resume is not None and resume.rewind is not None:
        await rewind(run, *resume.rewind)
        resume.rewind = None  # after the save: an attempt that fails in it goes back again
    has_halted_here = resume is not None and resume.has_halted_here
    halts = config.halts
    if halts is not None and act is not None and not has_halted_here:
        _stop_before(run, act, halts)
    return act, steps


def _stands_at(run: Run) -> Act | None:
    """Return the act at which an earlier attempt has failed; None if all steps are completed."""
    if run.pending is not None:
        return None
    retries = run.retry_state()
    assert retries.at is not None, "else it would begin"
    if not retries.is_undecided:
        return retries.at
    # If a condition raises again, `is_undecided` stays set and the next attempt evaluates it again.
    following = act_after(run.config.graph, retries.at, run.head[1])
    retries.is_undecided, retries.attempt = False, retries.before + 1
    return following


def _stop_before(run: Run, act: Act, halts: Halts) -> None:
    """Halt if there is a breakpoint before the first step of this execution."""
    if halts.stop(None, act.name):
        stop_here(run)


async def _choose(run: Run, act: Act, change: Change) -> Act | None:
    """Return the act that follows ``act``, by the conditions on its edges.

    If a condition raises, the step is completed all the same, so that a resume doesn't execute it
    again. See test_a_condition_that_failed_is_asked_again_and_its_act_is_not.
    """
    try:
        return act_after(run.config.graph, act, change.applied_to(run.head[1]))
    except BaseException:
        await complete_step(run, change)
        # After the save: if that fails, the step is not completed and must be executed again.
        if run.config.is_resumable:
            run.retry_state().is_undecided = True
        raise


def _too_many_steps(run: Run, act: Act, walked: tuple[str, ...]) -> TooManySteps:
    limit = run.config.execution.max_steps
    return TooManySteps(
        f"run {run.path.id} of {run.path.act!r} has taken {limit} steps, "
        f"the last {' -> '.join(walked)}, and {act.name!r} would be next; "
        f"if that is no endless loop, allow more: Application(..., max_steps=...)"
    )


def _perform(run: Run, act: Act) -> Awaitable[Change]:
    if type(act) is FunctionAction:  # most acts are: this spares them two calls each
        return call_action(run, act)  # pyright: ignore[reportUnknownArgumentType] # any will do
    return act.perform(run)


async def _perform_checked(run: Run, act: Act) -> Change:
    """Perform a step of a child that has a timeout, or in a runtime with ``debug=True``."""
    each = run.config.each
    if run.config.services.debug:
        change = await refuse_changes_in_place(run, act, partial(_perform, run, act))
    else:
        change = await _perform(run, act)
    if each is not None and each.has_timeout:
        # The action may have swallowed the cancellation by its child's timeout. That is found here,
        # before the step is saved; see test_a_child_that_swallows_its_timeout_has_failed.
        await checkpoint_if_cancelled()
    return change


async def _perform_watched(run: Run, act: Act, *, is_open: bool) -> Change:
    """Perform a step and publish its events; its start only unless it ``is_open`` already."""
    hooks, each = run.config.hooks, run.config.each
    event = StepStarted(path=run.path, step=act.name)
    if hooks.step_started and not is_open:
        await hooks.notify(hooks.step_started, event)
    # Attempts are those of the child's retry if it has one, which publishes their failures, or
    # else of the act's. Without any retry no attempts are published.
    is_childs = each is not None and each.retry is not None
    entered = hooks.enter_around(hooks.around_step, event)
    try:
        if run.config.performs_directly:
            change = await _perform(run, act)
        else:
            change = await _perform_checked(run, act)
    except BaseException as error:
        run.config.secrets.hide(error)  # before `around_step` sees it
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


@ki_protected
async def complete_step(
    run: Run, change: Change, *, ended: Literal["succeeded", "halted"] | None = None
) -> None:
    """Commit the current step's ``change``, and publish that the step has ended.

    Args:
        run: The run.
        change: The change that the step makes.
        ended: The status of the run, if it ends with this step.
    """
    config = run.config
    if config.services.native_cancels()():
        # A native cancel that the action left on this task would interrupt the save.
        await absorb_stray_cancel(config.services.native_cancels)
    step = run.step
    assert step is not None
    # Before the commit, which saves the record of the run: a completed step has no open question,
    # and no crash is counted against a run that has got further.
    run.questions = None
    if run.retries is not None:
        run.retries.clear_crashes()
    number, before = run.head
    data = change.applied_to(before)
    if is_silent(run):
        # As `commit` does it: children without a store or hooks pay for no record of what they do.
        run.head = (number + 1 if change.values or change.dropped else number, data)
        if run.retries is not None:
            run.retries.noted = run.retries.crashes
    else:
        updates: tuple[Update, ...] = ()
        if change.operations:
            updates = (Update(number + 1, step, change.operations),)
        own = _empty_fan_outs_of(run, step)
        await commit(run, Write(updates, data, step_completed=step, ended=ended, step_begun=own))
    # After the commit: if that fails, the step is not completed, and this visit goes on.
    visits = run.step_counts().visits
    visits[step] = visits.get(step, 0) + 1
    if run.retries is not None:
        run.retries.attempt = run.retries.before + 1
        run.retries.is_repeated = False
    if config.hooks.step_ended:
        await publish_step_ended(run, "succeeded")
    else:
        run.step = None
    if run.retries is not None:
        run.retries.is_cached = False  # after the event, which says whether the step was cached


def _empty_fan_outs_of(run: Run, step: str) -> StepBegun | None:
    """Return the declaration of fan-outs of an action that have started no child; None: no such.

    Nothing else of them is saved, and a later execution needs their ledgers as well (see
    test_an_empty_fan_out_of_an_action_s_own_has_a_ledger_in_each_execution).
    """
    ledgers = None if run.steps is None else run.steps.ledgers
    if not ledgers:
        return None
    act, visit = run.config.graph.find(step), run.visit(step)
    if not isinstance(act, FunctionAction):
        return None
    names = [
        name
        for name, found in ledgers.items()
        if name.startswith(f"{step}/") and len(found) > visit and not found[visit].total
    ]
    return StepBegun(step, own_declared(sorted(names))) if names else None


async def complete_last(run: Run) -> None:
    """Complete a child's last step by itself, since the child's value could not be taken or saved.

    Usually that step is saved with the child's end. Saved alone, another attempt or execution only
    takes the value again and executes nothing (see
    test_a_child_whose_value_could_not_be_taken_executes_nothing_again). If the step's change can't
    be saved either, the step has failed.

    Raises:
        StoreFailed: The step could not be saved.
        CommitInDoubt: Whether the step is saved is unknown.
        HookFailed: A guarding hook raised.
    """
    retries, step = run.retry_state(), run.step
    # Taken back: as long as it is set, the walk counts as finished.
    change, run.pending = run.pending, None
    if step is not None and change is not None:
        try:
            await complete_step(run, change)
        except (NotData, UpdateTooLarge, SecretLeaked):
            retries.at = run.config.graph.find(step)  # the next attempt executes the step again
            return
    # Only after the save: a step that could not be saved has to be executed again.
    retries.lacks_value = True


@ki_protected
async def live_child(child: Run, each: Each | None) -> None:
    """Walk a child's graph to its end, with the attempts and the time that ``each`` allows.

    Raises:
        StepTimeout: The child took too long, with all its attempts and waits together, or with its
            work.
        BaseException: The last attempt raised it.
    """
    retry = None if each is None else each.retry
    tries = None if retry is None else Tries(retry, child)
    times, time = child.config.times, None
    if times is not None:
        time = times[child] = ChildTime(child, each)

    async def live() -> None:
        if tries is None:
            await walk(child)
        else:
            await try_again(child, tries, attempt, publishes_last=True)

    async def attempt() -> None:
        assert tries is not None
        await retake_slot(child)
        tries.begin()  # after the wait for the slot, which is no part of the attempt
        await walk(child)

    def cause() -> Exception | None:
        return None if tries is None else tries.last

    try:
        bounded = live
        if each is not None and time is not None:
            for seconds, clock, name in (
                (each.work_timeout, time.work, "work_timeout"),
                (each.timeout, time.total, "timeout"),
            ):
                if seconds is not None and clock is not None:
                    bounded = partial(
                        within,
                        seconds,
                        bounded,
                        child,
                        what=partial(described, child),
                        cause=cause,
                        keeps_late=True,
                        time=clock,
                        waited=time.waited,
                        named=name,
                    )
        await bounded()
    finally:
        if times is not None and time is not None:
            time.end()
            del times[child]
        if tries is not None:
            tries.last = None  # breaks the traceback cycle
