"""Publish the events of a run to hooks, in order.

Invariants:
- Starts and ends are published in pairs: every start has one end.
- No secret is published. Secrets in errors are masked; any other value with a secret is refused.
- All events of one commit are published, also if a guarding hook raises at one of them, or a Ctrl-C
  arrives there.
- The order at a child that is applied: ``RunEnded`` of the child, ``StateUpdated`` of its parent,
  ``ChildEnded``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest

from shoal._concurrency.cancellation import fatal_leaf
from shoal._concurrency.watchdog import Place
from shoal._errors.exceptions import HookFailed, brief
from shoal._errors.inspection import first_of
from shoal._events.events import (
    AttemptEnded,
    ChildEnded,
    ChildHalted,
    ChildRerun,
    ChildStarted,
    Event,
    GraceExceeded,
    Halted,
    HedgeEnded,
    HedgeStarted,
    Item,
    LeaderChanged,
    RunEnded,
    RunSteered,
    Status,
    StepEnded,
    Update,
    WaitEnded,
    Waiting,
)
from shoal._events.hooks import Hooks, Listeners
from shoal._events.identity import RunPath
from shoal._events.making import make_state_updated
from shoal._limits.permits import AttemptPermit
from shoal._state.state import as_named
from shoal.stores._history import Steered

from .progress import recorded_questions
from .run import Run
from .services import Services

logger = logging.getLogger("shoal")


def refuse_secrets(run: Run, value: object, what: str) -> None:
    """Refuse ``value``, which is about to be saved or published, if it holds a secret.

    Raises:
        SecretLeaked: It does; ``what`` names the value.
    """
    if run.config.secrets.names:
        # Most runs have none, and don't look through their values.
        run.config.secrets.refuse(value, what)


def refuse_secrets_in_item(run: Run, item: object, step: str) -> None:
    """Refuse a partial item of an action if it holds a secret; see ``refuse_secrets``."""
    refuse_secrets(run, item, f"a partial item of action {step!r}")


def has_item_listeners(run: Run) -> bool:
    """Return whether anything receives the partial items of ``run``."""
    return run.config.on_item is not None or bool(run.config.hooks.item)


def publish_item(
    run: Run, item: object, step: str, attempt: int, index: int
) -> Awaitable[None] | None:
    """Publish a partial item; return an awaitable if a hook has to be awaited.

    Args:
        run: The run whose action gives the item.
        item: The item.
        step: The name of the action.
        attempt: The number of the attempt at the step.
        index: The number of the item in the attempt, from 0.

    Raises:
        SecretLeaked: The item holds a secret.
    """
    config = run.config
    refuse_secrets_in_item(run, item, step)
    # A race decides by items, so its parent gets them first; see
    # test_the_parent_of_a_child_receives_its_items_first.
    if config.on_item is not None:
        config.on_item(run, item)
    hooks = config.hooks
    if not hooks.item:
        return None
    event = Item(path=run.path, step=step, item=item, attempt=attempt, index=index)
    # Without an await if all hooks are plain functions: most items are given in a loop.
    pending = hooks.notify_nowait(hooks.item, event)
    return None if pending is None else out_of_reach(config.services, pending)


async def publish_child_started(run: Run, child: Run) -> None:
    """Publish that a fan-out of ``run`` started ``child``."""
    hooks = run.config.hooks
    # Set by the walk before the act, and still set: a fan-out is a step of its parent.
    assert run.step is not None
    event = ChildStarted(
        path=run.path,
        step=run.step,
        child=child.path,
        position=child.position,
        element=child.element,
    )
    await hooks.notify(hooks.child_started, event)


async def publish_child_rerun(run: Run, child: Run, step: str) -> None:
    """Publish that ``child`` of ``step`` runs anew, and its saved history is void."""
    hooks = run.config.hooks
    if hooks.child_rerun:
        event = ChildRerun(
            path=run.path,
            step=step,
            child=child.path,
            position=child.position,
            element=child.element,
        )
        await hooks.notify(hooks.child_rerun, event)


async def publish_waiting(run: Run, permit: AttemptPermit) -> Waiting | None:
    """Publish that ``run`` waits for a limit: to start, or with an attempt of its current step.

    Returns the event, for ``publish_wait_ended``; None if no hook listens to either, or if the wait
    is over already.
    """
    hooks = run.config.hooks
    # A place that is taken again may have been free at once: see `_retake_place`. And a permit that
    # was refused waits for nothing.
    if not (hooks.waiting or hooks.wait_ended) or permit.wait_queue is None:
        return None
    limit, key = permit.awaited
    event = Waiting(
        path=run.path, step=run.step or "", limit=limit, key=key, since=run.config.services.clock()
    )
    await hooks.notify(hooks.waiting, event)
    return event


async def publish_wait_ended(run: Run, waiting: Waiting | None) -> None:
    """Publish that the wait that ``waiting`` announced is over, if it was announced."""
    hooks = run.config.hooks
    if waiting is not None and hooks.wait_ended:
        event = WaitEnded(
            path=waiting.path,
            step=waiting.step,
            limit=waiting.limit,
            key=waiting.key,
            # Since the event, and not since the request: that is what a hook can have measured.
            seconds=run.config.services.clock() - waiting.since,
        )
        await hooks.notify(hooks.wait_ended, event)


async def publish_hedge_started(run: Run, after: float) -> None:
    """Publish that a second copy of the current attempt of ``run`` has begun."""
    hooks = run.config.hooks
    if hooks.hedge_started:
        event = HedgeStarted(path=run.path, step=run.step or "", attempt=run.attempt, after=after)
        await hooks.notify(hooks.hedge_started, event)


async def publish_hedge_ended(run: Run, *, is_used: bool) -> None:
    """Publish that a second copy has ended, and whether its result is used."""
    hooks = run.config.hooks
    if hooks.hedge_ended:
        event = HedgeEnded(path=run.path, step=run.step or "", attempt=run.attempt, used=is_used)
        await hooks.notify(hooks.hedge_ended, event)


async def publish_attempt_ended(run: Run, error: Exception | None, next_in: float | None) -> None:
    """Publish how an attempt of the current step ended, and when the next begins."""
    hooks = run.config.hooks
    if hooks.attempt_ended:
        if error is not None:
            run.config.secrets.hide(error)  # before any hook sees it
        event = AttemptEnded(
            path=run.path, step=run.step or "", attempt=run.attempt, error=error, next_in=next_in
        )
        await hooks.notify(hooks.attempt_ended, event)


async def publish_leader_changed(run: Run, step: str, leader: RunPath | None, reason: str) -> None:
    """Publish that another child leads a race of ``run``, or none does any more."""
    hooks = run.config.hooks
    event = LeaderChanged(path=run.path, step=step, leader=leader, reason=reason)
    await hooks.notify(hooks.leader_changed, event)


async def publish_run_steered(run: Run, steered: Steered) -> None:
    """Publish that a root run was steered from outside, which is saved."""
    hooks = run.config.hooks
    if hooks.run_steered:
        event = RunSteered(
            path=run.path,
            what=steered.what,
            by=steered.by,
            reason=steered.reason,
            arguments=steered.arguments,
        )
        await hooks.notify(hooks.run_steered, event)


def _call(place: Place) -> str:
    return f", in a call of its {place.what} {place.name}".rstrip()


async def publish_grace_exceeded(
    run: Run, place: Place, seconds: float, *, abandoned: bool = False
) -> None:
    """Log and publish that code of a run still runs ``seconds`` after it was cancelled."""
    path, step, hooks = run.path, run.step or "", run.config.hooks
    if abandoned:
        run.retry_state().abandoned = True  # before hooks run: they may read the outcome
    key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
    of = f"run {path.id}{key}"
    what, where = (f"action {step!r} of {of}", "") if place.what == "action" else (of, _call(place))
    if where and step:
        where += f" during step {step!r}"
    # With `abandon=True` a thread is left after 0 s, as its action asks for: that is no warning.
    logger.log(
        logging.WARNING if seconds else logging.INFO,
        "%s was cancelled %g s ago and still runs%s, at %s; %s",
        *(what, seconds, where, place.where),
        "it is left behind" if abandoned else "it is waited for",
    )
    if hooks.grace_exceeded:
        event = GraceExceeded(
            path=path, step=step, place=place.where, seconds=seconds, abandoned=abandoned,
            what=place.what, name=place.name,
        )  # fmt: skip
        # The failure is noted in `hooks.failures`, which ends the execution. Raised here, it would
        # replace the cancellation under way.
        with suppress(HookFailed):
            await hooks.notify(hooks.grace_exceeded, event)


def _publish_child_ended(run: Run, publication: _Publication, child: Run) -> Awaitable[None] | None:
    hooks = run.config.hooks
    if child.status == "halted":
        if not hooks.child_halted:
            return None
        halted = ChildHalted(path=run.path, step=run.step or "", halted=_halted(child))
        return publication.publish(hooks, hooks.child_halted, halted)
    if not hooks.child_ended:
        return None
    # The outcome is made here: without a listener, none is.
    event = ChildEnded(path=run.path, step=run.step or "", outcome=child.outcome)
    return publication.publish(hooks, hooks.child_ended, event)


def _halted(child: Run) -> Halted:
    """Return the event's value for a child that is halted."""
    return Halted(
        path=child.path,
        position=child.position,
        element=child.element,
        elapsed=child.elapsed,
        attempts=child.attempts,
        abandoned=child.abandoned,
        questions=recorded_questions(child.value, child.path),
    )


async def publish_step_ended(run: Run, status: Status) -> None:
    """Publish that the current step of ``run`` has ended; after that the run has none."""
    # Cleared first, and also if nothing listens: a hook that raises must not have it ended twice.
    step, run.step = run.step, None
    listeners = run.config.hooks.step_ended
    if listeners and step is not None:
        event = StepEnded(
            path=run.path, step=step, status=status, error=run.error, cached=run.is_cached
        )
        await run.config.hooks.notify(listeners, event)


async def publish_run_ended(run: Run) -> None:
    """Publish the run's last update, the end of its last step, and its own end."""
    publication = _Publication()
    for publishing in _publish_run_ended(run, publication):
        await publishing
    publication.close()


def _publish_run_ended(run: Run, publication: _Publication) -> Iterator[Awaitable[None]]:
    """Publish as ``publish_run_ended``, and give what has to be awaited before going on."""
    if not run.began:
        return  # its start was not published, so neither is its end
    assert run.status is not None, "only the end of a run that has ended is published"
    hooks, path, status, error = run.config.hooks, run.path, run.status, run.error
    # Before the end of the step: a step's updates lie between its start and its end.
    if hooks.state_updated and (publishing := _publish_last_update(run, publication)) is not None:
        yield publishing
    if run.step is not None and hooks.step_ended:
        step_ended = StepEnded(
            path=path, step=run.step, status=status, error=error, cached=run.is_cached
        )
        if (publishing := publication.publish(hooks, hooks.step_ended, step_ended)) is not None:
            yield publishing
    if hooks.run_ended:
        # A root run has the reason as soon as it is cancelled, and may end otherwise all the same.
        reason = run.reason if status in ("cancelled", "halted") else ""
        questions = run.open_questions if status == "halted" else ()
        ended = RunEnded(path=path, status=status, error=error, reason=reason, questions=questions)
        if (publishing := publication.publish(hooks, hooks.run_ended, ended)) is not None:
            yield publishing
    if status == "halted":
        # If it is cancelled while it waits for answers, its parent publishes that and nothing here.
        run.began = False


def _publish_last_update(run: Run, publication: _Publication) -> Awaitable[None] | None:
    """Publish the last update of a run, if it has one; return what has to be awaited."""
    change, hooks = run.pending, run.config.hooks
    operations = () if change is None else change.operations
    if not operations:
        return None
    # As `Run.last_update` makes it, without two calls for each child.
    update = as_named(Update, (run.head[0] + 1, run.step or "", operations, (), 0))
    updated = make_state_updated(run.path, update, None)
    return publication.publish(hooks, hooks.state_updated, updated)


async def publish_commit(
    run: Run,
    updates: Sequence[Update],
    applied: Sequence[Run],
    unapplied: Sequence[Run],
    rerun: Sequence[Run] = (),
) -> None:
    """Publish the events of one commit.

    Args:
        run: The run that was committed to.
        updates: The updates of its state.
        applied: The children that the updates apply, one child for each update.
        unapplied: Other children that have ended.
        rerun: Children among ``unapplied`` whose saved history became void though they never
            started; see
            test_a_void_history_is_published_though_the_child_never_starts.
    """
    publication, hooks = _Publication(), run.config.hooks
    for child in rerun:
        await publication.include(publish_child_rerun(run, child, child.config.step))
    for update, child in zip_longest(updates, applied):
        if child is not None and child.began:
            of_child = child.config.hooks
            if of_child.step_ended or of_child.run_ended or child.status == "halted":
                for publishing in _publish_run_ended(child, publication):
                    await publishing
            elif of_child.state_updated:
                # Most hooks listen to neither, and a generator for each child costs as much as the
                # event.
                publishing = _publish_last_update(child, publication)
                if publishing is not None:
                    await publishing
        if hooks.state_updated:
            # What is kept was published with its outcome by the execution that applied it.
            outcome = None if child is None or child.disposition.is_kept else child.outcome
            event = make_state_updated(run.path, update, outcome)
            publishing = publication.publish(hooks, hooks.state_updated, event)
            if publishing is not None:
                await publishing
        # The end of a child that is Done was published when it was saved; see
        # test_the_end_of_a_done_child_is_published_once.
        listens = hooks.child_ended or hooks.child_halted
        if listens and child is not None and not child.disposition.is_saved:
            publishing = _publish_child_ended(run, publication, child)
            if publishing is not None:
                await publishing
    for child in unapplied:
        # After all updates, since they change nothing.
        for publishing in _publish_run_ended(child, publication):
            await publishing
        publishing = _publish_child_ended(run, publication, child)
        if publishing is not None:
            await publishing
    publication.close()


class _Publication:
    """Publishes several events in a row: all of them, also if a hook raises at one."""

    __slots__ = ("_failure",)

    def __init__(self) -> None:
        # The first interruption; without one, the first failure. `close` raises it.
        self._failure: BaseException | None = None

    def publish(self, hooks: Hooks, listeners: Listeners, event: Event) -> Awaitable[None] | None:
        """Publish an event; return what has to be awaited, None if all hooks are plain functions.

        A commit has two events for each child, so none of them costs a coroutine for nothing.
        """
        try:
            pending = hooks.notify_nowait(listeners, event)
        except BaseException as error:
            if not self._keeps(error):
                raise
            return None
        return None if pending is None else self.include(pending)

    async def include(self, publishing: Awaitable[None]) -> None:
        try:
            await publishing
        except BaseException as error:
            if not self._keeps(error):
                raise

    def _keeps(self, error: BaseException) -> bool:
        """Keep what a hook has raised until the other events are published; return whether it did.

        Also a Ctrl-C while a hook ran: each start that hooks received must have its end all the
        same; see test_every_start_has_its_end_though_a_ctrl_c_arrives_in_a_hook. Other errors come
        from the engine itself, and must end the commit at once.
        """
        if isinstance(error, HookFailed):
            self._failure = first_of(self._failure, error)
        elif fatal_leaf(error) is None:
            return False
        elif self._failure is None or isinstance(self._failure, Exception):
            self._failure = error
        return True

    def close(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # breaks the traceback cycle


def is_listening(children: Sequence[Run]) -> bool:
    """Return whether hooks listen to ``children``, which may have others than their parent."""
    # Children of one fan-out share their hooks, so the first one speaks for all.
    return bool(children) and children[0].config.hooks.listening


async def out_of_reach(services: Services, work: Awaitable[None]) -> None:
    """Await ``work`` in another task, out of reach of native cancels of the action that runs.

    See test_a_native_timeout_of_the_action_does_not_reach_hooks.
    """
    failure: Exception | None = None

    async def live() -> None:
        nonlocal failure
        try:
            await work
        except Exception as error:  # noqa: BLE001 # raised below
            failure = error

    # What `live` raises is handed over as a value, so that it is raised here and not there.
    hosted = services.host(live, _ignore)
    interruption = await hosted.wait()
    try:
        # In this order: a KeyboardInterrupt outranks a cancellation, and that outranks a failure.
        for raised in (hosted.fatal, interruption, failure):
            if raised is not None:
                raise raised
    finally:
        del failure, interruption  # breaks the traceback cycle


def _ignore(_reason: str) -> None:
    """Take the reason of a cancellation, which the work doesn't need: its waits are shielded."""
