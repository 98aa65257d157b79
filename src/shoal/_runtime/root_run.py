"""A root run from claim to release: what an application and a store know of it meet here.

Imports everything above; anyio.

Invariants:
- Nothing is run, and nothing saved, of a run that another execution holds, that was started with
  something else, or that has succeeded.
- What was claimed is released on every way out.
- What a run starts from is saved before anything happens in it, but for what is secret; so is what
  it was answered.
- Whoever follows it is told when it has ended, once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import final

from anyio import Event
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.background import Hosted
from shoal._concurrency.cancellation import as_failure, drive, ki_protected
from shoal._engine.commit import Write, commit, end_below
from shoal._engine.crash_suspects import Suspects
from shoal._engine.execution import Execution
from shoal._engine.fanout.read_ledgers import recall_ledgers
from shoal._engine.fanout.recorded import recorded_asked, recorded_history
from shoal._engine.fanout.takeup import refuse_left_steps, refuse_retry
from shoal._engine.parts import read_children
from shoal._engine.publish import publish_run_ended
from shoal._engine.questions import Answers, has_halted, resolved
from shoal._engine.replay import refuse_other_way, stand_at
from shoal._engine.run import Run
from shoal._engine.walk import complete_step, walk
from shoal._errors.exceptions import BadUse
from shoal._events.hooks import Hook
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._graph.parallel import Parallel, stores_within
from shoal._state.state import Change, Drop, Set
from shoal.stores._history import Playback, Rewound, play
from shoal.stores._protocol import ChildRecord, NullStore

from .start import First, Start, refuse_conflict, refuse_missing

logger = logging.getLogger("shoal")


@final
class Root:
    """One execution of a root run, or none where there is nothing to be done any more."""

    def __init__(
        self,
        path: RunPath,
        execution: Execution,
        make_run: Callable[[Mapping[str, object]], Run],
        first: Start | First,
        *,
        retries_failed: bool = False,
        answers: Answers | None = None,
    ) -> None:
        """Plan it. Without a store there is nothing to be asked, so the run is made at once.

        Args:
            path: The run's identity.
            execution: What it is part of.
            make_run: Makes the run that starts with the fields that it is given.
            first: What it is to start from.
            retries_failed: Whether failures that were collected are to be run again.
            answers: To questions that it has asked before.
        """
        self.path: RunPath = path
        self._execution = execution
        self._make_run = make_run
        self._first = first
        self._retries_failed = retries_failed
        self._answers: Answers = answers or {}
        self.begun: Event = Event()
        """Set once the run goes on, or is known not to."""
        self.error: Exception | None = None
        """Why it could not begin."""
        self.reason: str = ""
        """Why it was cancelled before it began."""
        self.run: Run | None = None
        self.hosted: Hosted | None = None
        """The task that it lives in, once it does."""
        self._followers: list[Callable[[], None]] = []
        if isinstance(first, Start) and isinstance(execution.store, NullStore):
            self.run = make_run(first.fields)
            self.begun.set()

    def follow(self, on_ended: Callable[[], None], hook: Hook | None = None) -> None:
        """Have ``on_ended`` called when it has ended, and ``hook`` told until then."""
        if hook is not None:
            self._execution.hooks.join(hook)
        if self.has_ended:
            on_ended()
        else:
            self._followers.append(on_ended)

    def unfollow(self, on_ended: Callable[[], None], hook: Hook) -> None:
        """Tell them nothing more."""
        self._execution.hooks.leave(hook)
        if on_ended in self._followers:
            self._followers.remove(on_ended)

    @property
    def has_ended(self) -> bool:
        """Whether all of it is over, cleanup included."""
        return self.hosted is not None and self.hosted.ended.is_set()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was cancelled since its process stops."""
        return self._execution.is_interrupted

    def tell_ended(self) -> None:
        """Hear that it has ended."""
        followers, self._followers = self._followers, []
        for on_ended in followers:
            on_ended()

    def cancel(self, reason: str) -> None:
        """Cancel it, unless it has ended or is cancelled: the first reason counts."""
        assert self.hosted is not None, "it is alive"
        self.hosted.cancel(reason)

    def interrupt(self, reason: str) -> None:
        """Cancel it since its process stops: its store has no end of it, so it can be recovered."""
        assert self.hosted is not None, "it is alive"
        if not self.hosted.is_cancelled:
            self._execution.is_interrupted = True
        self.hosted.cancel(reason)

    def give_reason(self, reason: str) -> None:
        """Hear why it is about to be cancelled."""
        self.reason = reason
        if self.run is not None:
            self.run.reason = reason

    @ki_protected
    async def live(self) -> None:
        """Live the execution; how it ended is in ``run`` or, if it could not begin, in ``error``.

        Raises:
            BaseException: A cancellation of the scope around it, or a KeyboardInterrupt or
                SystemExit from inside.
        """
        try:
            if self.run is None:
                self.run = await self._begin()
                self.begun.set()
            if self.run.status is None:
                await _live(self.run)
        except Exception as error:  # noqa: BLE001 # raised in the caller's frame
            self.error = error
        finally:
            self.begun.set()
            await self._execution.release()

    def forget(self) -> None:
        """Let go of the error that it ended with, whose traceback leads back to here."""
        self.error = None
        if self.hosted is not None:
            self.hosted.fatal = None
        if self.run is not None:
            self.run.error = None
            self._execution.forget()

    async def _begin(self) -> Run:
        """Claim the run, learn what is known of it, and make it; one that succeeded has a status.

        Raises:
            RunClaimed: Another execution has it.
            RunConflict: It was started with something else.
            MissingSecret: It was started with secrets that are not given again.
            UnknownQuestion: It has not asked what is answered.
            StoreFailed: The store could not say what it knows.
        """
        execution, run_id = self._execution, self.path.id
        store = execution.store
        has_died = await execution.claim(store, run_id)
        await checkpoint_if_cancelled()
        record = await execution.ask(store.load(run_id), f"run {run_id}")
        wanted = self._first
        if not isinstance(wanted, Start):
            wanted = await wanted(execution, record)
        if record is None:
            resolved(self._answers, (), {}, run_id)  # refuses any
            run, begun = self._make_run(wanted.fields), wanted.beginning
            if begun.forked_from is not None:
                stand_at(run, play(run.data, (), after=begun.after, visits=begun.visits))
                await recall_ledgers(run, {}, ())
            await commit(run, Write(begun=begun))
            return run
        wanted, known = wanted.declaring(record.beginning.secret), record.beginning
        refuse_conflict(run_id, known, wanted)
        is_over = record.status == "succeeded" and not self._retries_failed
        if not is_over:
            refuse_missing(run_id, known.secret, wanted.secrets)
        execution.is_resumed = True
        if has_died and record.status is None:
            execution.suspects = Suspects(execution.services.max_crashes)
        known = replace(known, first={**known.first, **wanted.secrets})
        run = self._make_run(known.first)
        execution.know_all(stores_within(run.setting.graph))
        played = await recorded_history(execution, self.path, known)
        done, children = await read_children(execution, store, self.path)
        execution.answers = played.answers
        if not is_over:
            visits = {*done, *((one.step, one.visit) for one in children)}
            refuse_left_steps(self.path, run.setting.graph, played, sorted(visits))
        asked = (
            ()
            if record.status == "succeeded"
            else recorded_asked(self.path, run.setting.graph, played, children)
        )
        has_failed = record.status == "failed"
        answered = resolved(self._answers, asked, played.answers, run_id, has_failed=has_failed)
        run.resume_state().has_halted_here = record.status == "halted"
        if self._retries_failed:
            now = played.data
            rewound = self._failed_step(run.setting.graph, played, children)
            played.add(rewound)
            refuse_other_way(run, played)
            act = run.setting.graph.find(rewound.step)
            if isinstance(act, Parallel):
                refuse_retry(self.path, act._join(), played)
            run.resume_state().rewind = rewound, _back(now, played.restored)
        execution.forks_at = played.began.number
        stand_at(run, played)
        await recall_ledgers(run, done, children)
        if is_over:
            run.status = "succeeded"
        elif answered:
            await commit(run, Write(questions=answered))
            execution.answers.update((one.id, one.value) for one in answered)
        return run

    def _failed_step(
        self, graph: Graph, played: Playback, children: Iterable[ChildRecord]
    ) -> Rewound:
        """Find the first step that was completed although children had failed.

        Raises:
            BadUse: There is none, or its failures can't be taken back.
        """
        path = self.path
        failed = {(one.step, one.visit) for one in children if one.status == "failed"}
        for step, visit, number in played.completed_visits():
            act = graph.find(step)
            if (step, visit) in played.decided:
                continue  # who fails in a race only loses it
            if (step, visit) in failed and isinstance(act, Parallel):
                if act._join().reduce is None:
                    return Rewound(step, visit)
                msg = (
                    f"run {path.id}: children of {step!r} have failed, and reduce has taken that; "
                    f"it can't be undone: start a new run from before that step instead, with "
                    f"fork({path.id!r}, number={number})"
                )
                raise BadUse(msg)
        msg = (
            f"run {path.id} has completed no fan-out with failures, so there is none to retry; "
            f"what a child, or a graph as a node, has put up with below itself stays, for it has "
            f"succeeded; a run that has not goes on with run(id={path.id!r})"
        )
        raise BadUse(msg)


def _back(now: Mapping[str, object], then: Mapping[str, object]) -> Change:
    """Make the change that leads from the fields ``now`` to those of ``then``."""
    values = {
        field: value for field, value in then.items() if field not in now or now[field] is not value
    }
    dropped = tuple(field for field in now if field not in then)
    sets = tuple(Set(field, value) for field, value in values.items())
    return Change((*sets, *map(Drop, dropped)), values, dropped)


@ki_protected
async def _live(run: Run) -> None:
    """Live the whole life of a root run; how it ended is in ``status`` and ``error``.

    Raises:
        BaseException: A cancellation of the scope around it, or a KeyboardInterrupt or
            SystemExit from inside; the end is saved and published before it travels on.
    """
    is_saved = False

    async def to_end() -> None:
        nonlocal is_saved
        is_saved = await _walk_to_end(run)

    try:
        await drive(copy_context(), to_end(), _nothing)
    except BaseException as error:
        if has_halted(run, error):
            run.halt()
            await _finish(run)
            return
        failure = as_failure(error)
        if failure is None:
            run.cancel(run.reason or type(error).__name__)
            await _finish(run)
            raise
        run.fail(failure)
        del failure  # no cycle from the exception through its traceback to this frame
    await _finish(run, is_saved=is_saved)


async def _walk_to_end(run: Run) -> bool:
    """Return whether it is saved already that it succeeded.

    It is saved with the last step, unless somebody hears of that step first, and may object, or
    be cancelled meanwhile.
    """
    await walk(run)
    change, run.pending = run.pending, None
    assert change is not None, "the walk leaves the last change, even if it is none"
    if run.step is not None:  # else an earlier execution has completed all of them
        is_saved = not run.setting.hooks.listening
        await complete_step(run, change, ended="succeeded" if is_saved else None)
    else:
        is_saved = False
    run.succeed()
    return is_saved


async def _finish(run: Run, *, is_saved: bool = False) -> None:
    """Save and publish how the run ended; a failure to do so is the run's, if it has no other.

    Nothing in here can be cancelled, so no end is ever lost.
    """
    save = partial(_save_end, run)
    publish = partial(publish_run_ended, run)
    for end in (publish,) if is_saved else (save, publish):
        try:
            await end()
        except Exception as error:
            if run.status not in ("succeeded", "halted"):
                logger.exception("at the end of run %s, which %s", run.path.id, run.status)
            else:
                run.fail(error, "succeeded", "halted")


async def _save_end(run: Run) -> None:
    execution = run.setting.execution
    if execution.is_interrupted and run.status not in ("succeeded", "halted"):
        return  # for whoever resumes it this is no end
    if run.status == "succeeded" or not execution.unsaved:
        if execution.is_resumed and run.status in ("failed", "cancelled"):
            await end_below(run)
        await commit(run, Write(ended=run.status))


def _nothing() -> None:
    """Stand in for a callback that nobody needs."""
