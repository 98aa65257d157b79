"""Virtual time for trio: its own ``MockClock``, with conditions for its jumps.

Imported only if trio is used. Trio has no public way to see an idle loop, or to order its
scheduler. ``tests/testing/test_clock.py`` fails if the private parts that are used here change.
"""

from __future__ import annotations

import importlib
import math
import threading
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

import trio
import trio.testing

from shoal.testing._deadlock import VirtualDeadlock
from shoal.testing._stacks import suspended_frames
from shoal.testing._workers import is_owed, may_be_called, working_threads

_run: Any = importlib.import_module("trio._core._run")

# Real seconds for which trio waits for the real world before it asks again whether it must.
_REAL_TURN = 0.005


def virtual_options(seed: int | None) -> dict[str, object]:
    """Return options of ``trio.run`` for virtual time from 0 and, with a seed, a fixed schedule."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    # Naughty, but the class is final, and the loop calls it by this name alone. Otherwise time
    # jumps while threads work, and a deadlock spins for ever.
    bystanders = frozenset(working_threads())
    vars(clock)["_autojump"] = lambda: _pass_time(clock, bystanders)
    if seed is None:
        return {"clock": clock}
    return {"clock": clock, "instruments": [_SeededSchedule(seed)]}


def _pass_time(clock: trio.testing.MockClock, bystanders: Collection[threading.Thread]) -> None:
    """Let time pass. Trio's loop calls this when no task can run."""
    left = trio.lowlevel.current_statistics().seconds_to_next_deadline
    if _waits_for_outside() or (left == math.inf and may_be_called(bystanders)):
        _set_pace(clock, rate=1.0, threshold=_REAL_TURN)
        return
    _set_pace(clock, rate=0.0, threshold=0.0)
    if trio.lowlevel.current_statistics().run_sync_soon_queue_size:
        return  # a thread has called in, and ended, since the loop looked
    if left == math.inf:
        _raise_deadlock(clock.current_time())
    elif left > 0:  # a timer that is due now is run by the loop next
        clock.jump(left)


def _set_pace(clock: trio.testing.MockClock, *, rate: float, threshold: float) -> None:
    if clock.rate != rate:
        clock.rate = rate
        clock.autojump_threshold = threshold


def _waits_for_outside() -> bool:
    io = trio.lowlevel.current_statistics().io_statistics
    waiting = sum(
        getattr(io, f"tasks_waiting{suffix}", 0)
        for suffix in ("", "_read", "_write", "_overlapped")
    )
    if waiting > 1:  # one task always waits, for calls from threads
        return True
    if threading.active_count() == 1:
        return False
    tasks = _tasks_from(trio.lowlevel.current_root_task())
    return any(map(_waits_for_thread, tasks)) or is_owed(trio.lowlevel.current_trio_token())


def _waits_for_thread(task: trio.lowlevel.Task) -> bool:
    # The thread itself can't tell: it is renamed idle just before it hands over its result.
    work = trio.to_thread.run_sync.__code__
    return any(frame.f_code is work for frame in suspended_frames(task.coro))


def _tasks_from(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """Yield the task and all tasks below it."""
    unseen = [task] if task is not None else []
    while unseen:
        seen = unseen.pop()
        yield seen
        unseen += [child for nursery in seen.child_nurseries for child in nursery.child_tasks]


def _raise_deadlock(at: float) -> None:
    """Raise in the main task where it waits, as trio raises Ctrl-C, so that cleanup runs in order.

    If the cleanup gets stuck, this is called again. By then the main task waits for a child behind
    a shield, where nothing more can be raised, so the error is raised in the child.
    """
    main: trio.lowlevel.Task = _run.GLOBAL_RUN_CONTEXT.runner.main_task
    tasks: list[Any] = list(_tasks_from(main))
    error = VirtualDeadlock(at, ((task.name, task.coro) for task in tasks))

    def raise_error() -> NoReturn:
        raise error

    for task in tasks:
        if task._abort_func is not None:  # its wait has not been aborted yet
            task._attempt_abort(raise_error)
            return
    raise error  # trio reports an internal error: untidy, but the program ends


class _SeededSchedule:
    """A trio instrument: seeds trio's scheduler when a run starts, restores it when it ends."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._before: tuple[object, bool] | None = None

    def before_run(self) -> None:
        self._before = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
        _run._r.seed(self._seed)
        # Sorts a batch by age before shuffling it; trio's own plugin for Hypothesis sets it too.
        _run._ALLOW_DETERMINISTIC_SCHEDULING = True

    def after_run(self) -> None:
        if self._before is not None:
            state, _run._ALLOW_DETERMINISTIC_SCHEDULING = self._before
            _run._r.setstate(state)
