"""``RemotePool``: workers somewhere else, and the calls that are made there.

Invariants:
- A call that was submitted ends: with the worker's answer, with the death of its worker if it was
  at work there, or with ``NoWorker`` if no worker can be started.
- A call is moved to another worker only if it has not begun. Each time that it is sent, it has
  another number, so an answer from its former worker is never taken for its own.
- What is sent in one turn of the loop is one batch for each worker.
- Workers start when there are calls for them, and stay until the pool closes.
- A call that waits for children of its own keeps no other call out of its worker, since the
  children may have no other one. The same is true of calls that are to be alone, on both sides.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any, final

import anyio

from shoal._concurrency.backend import Waiter
from shoal._concurrency.background import StartTask
from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import NoWorker, WorkerDied, note
from shoal._limits.gates import Gate

from . import _messages as m
from ._links import Transport
from ._pace import LONG, MOST, PAUSE, WINDOW, Pace
from ._port import ContextPort, ItemsPort, Job, PoolHost
from ._remote_call import RemoteCall
from ._remote_context import facts_of
from ._remote_workers import Record, RemoteWorker, dumped_arguments
from ._sending import load_error

logger = logging.getLogger("shoal")

PLAIN, OTHER, ALONE = range(3)
"""The queues: for the lanes, for the loops, and for calls that have a worker for themselves."""
STARTS = 3
"""Workers in a row that may die before they are ready. One may be killed by chance; if three are,
the next one would be, too."""
STARTING = 10.0
"""Seconds for which a worker that starts is left its share of the calls. Then it is known not to be
ready in a moment: it waits for its place on a busy cluster."""
WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds until workers are started again, after they couldn't be; doubled each time. Calls fail at
once meanwhile. So a map of a million children starts a dozen workers that fail, and not a million.
"""
PATIENCE = 0.005
"""Seconds that a call may hold up those that were sent behind it while another worker is idle.
Shorter than what it takes to notice, longer than most calls behind which any are sent."""
SETTLED = 0.002
"""Seconds until a worker counts as idle: the end of one call mostly brings the next one, soon."""
LEFT = 2
"""Calls that are left to a worker after a pause: the estimate may be wrong, and answers take time.
"""
CLOSING = 2.0
"""Seconds for an idle worker to end by itself when the pool closes, before it is killed: for
``atexit`` functions and the like."""


@final
class RemotePool:
    """The workers of an executor that one runtime has."""

    def __init__(
        self,
        host: PoolHost,
        transport: Transport,
        *,
        name: str,
        workers: int,
        concurrency: int,
        kill_after: float | None = None,
        window: float = WINDOW,
        pause: float = PAUSE,
        kills: bool = True,
    ) -> None:
        """Start nothing yet.

        Args:
            host: The runtime.
            transport: Starts the workers.
            name: What people are told an attempt waits for: "processes".
            workers: How many workers there may be.
            concurrency: Coroutines at once in each of them.
            kill_after: Seconds that a function is waited for after a cancellation; None: the grace
                of the runtime.
            window: Seconds of work that are sent ahead; see ``_pace``.
            pause: Seconds for which a busy worker is not looked at. 0 if links can't do that.
            kills: Whether the link can kill a worker. If not, functions that don't end after a
                cancellation are left behind in it.
        """
        self._host = host
        self._transport = transport
        self._name = name
        self._most = workers
        self._window = window
        self._kills = kills
        # Where time is virtual, it would jump to the end of each pause.
        self._pause = pause if host.backend.is_real else 0.0
        self._looks_at = 0.0  # when the present pauses end: all in one turn of the loop
        self._concurrency = concurrency
        self._clock = host.backend.clock
        # The loop's own thread need not wake the loop, as `call_soon` does for others.
        loop: Any = host.backend.token
        is_trio = host.backend.library == "trio"
        self._soon: Callable[[Callable[[], None]], object] = (
            host.backend.call_soon if is_trio else loop.call_soon
        )
        self.grace: float = host.grace if kill_after is None else kill_after
        """Seconds that a function is waited for after a cancellation."""
        self.start_task: StartTask = host.start_task
        """Starts a task of the runtime."""
        self.waiter: Callable[[], Waiter] = host.backend.waiter
        """Returns a future for one task."""
        self.gate: Gate = host.new_gate(2 * workers, name)
        """See ``Pool.gate``."""
        self._pace = Pace()  # of plain functions in general, for the gate
        self._has_timed = False  # whether it was ever given a call with a timeout
        self._has_others = False  # whether it was ever given a coroutine function or a generator
        self._records: weakref.WeakKeyDictionary[Job, Record] = weakref.WeakKeyDictionary()
        self._forgotten: deque[int] = deque()  # records of actions that are gone
        self._numbers = count(1)  # of calls and functions
        # Calls that no worker has room for: by `RemoteCall.lane`.
        self._queues: tuple[deque[RemoteCall], ...] = (deque(), deque(), deque())
        self._workers: list[RemoteWorker] = []  # those that were started and have not died
        self._failed_starts = 0  # in a row
        # While no worker can be started: the error for those that wait, when to try again, and how
        # long to pause after that.
        self._unable: Callable[[RemoteCall], BaseException] | None = None
        self._able_at = -math.inf
        self._wait_to_start = WAIT
        self._will_send = False  # whether `_send_all` is about to be called by the loop
        self._quiet: Callable[[], object] | None = None  # calls the alarm of `_even_out` off
        self._is_closed = False
        self._all_ended: anyio.Event | None = None  # set only while the pool closes

    def call(self) -> RemoteCall:
        """Make a call; see ``Pool.call``."""
        return RemoteCall(self)

    def allow(self, workers: int) -> None:
        """Allow another number of workers, for transports that learn late how many have room."""
        self._most = workers
        self._resize()
        for queue in self._queues:
            self._fill(queue)

    # -- from calls -----------------------------------------------------------------------------

    def submit(
        self,
        call: RemoteCall,
        job: Job,
        kwargs: Mapping[str, Any],
        context: ContextPort | None,
        items: ItemsPort | None,
        *,
        alone: bool,
    ) -> None:
        """Send a call as soon as a worker has room; see ``CallPool.submit``."""
        record = self._records.get(job)
        if record is None:
            record = self._record(job)
        call.record = record
        call.arguments = dumped_arguments(job, kwargs)
        if context is not None:
            given = kwargs if job.access is None else None
            call.facts = facts_of(context, given, self._clock)
        if items is not None:
            call.run_id = items.run_id
        if record.is_other and not self._has_others:
            self._has_others = True
            self._resize()
        call.queue = ALONE if alone else OTHER if record.is_other else PLAIN
        queue = self._queues[call.queue]
        queue.append(call)
        # If others wait there, no worker has room.
        if len(queue) == 1 or len(self._workers) < self._most:
            self._fill(queue)

    def take_back(self, call: RemoteCall) -> bool:
        """Forget a call that was not sent; return whether that was so."""
        if call.number:
            return False
        if call.record is not None and call in self._queues[call.queue]:
            self._queues[call.queue].remove(call)
            if call.queue == ALONE and not self._queues[ALONE]:
                self._keep_no_idle_ones()
        return True

    def _keep_no_idle_ones(self) -> None:
        """Let workers have calls again that were kept for a call that was taken back."""
        for worker in self._workers:
            worker.is_kept = _is_for_one(worker)
        for queue in self._queues:
            self._fill(queue)

    def cancel(self, call: RemoteCall) -> None:
        """Tell the worker of a call that it is cancelled."""
        worker: RemoteWorker | None = call.worker
        if call.number and worker is not None:
            self._post(worker, (m.CANCEL, [call.number]))

    def reply(
        self, call: RemoteCall, number: int, value: bytes | None, error: bytes | None
    ) -> None:
        """Send a reply to a function."""
        if call.number:
            self._post(call.worker, (m.REPLY, call.number, number, value, error))

    def rest(self, call: RemoteCall, is_resting: bool) -> None:
        """Let a call that waits for children take up no room, or again."""
        if not call.number or call.is_resting == is_resting:
            return
        call.is_resting = is_resting
        call.worker.count(call.record, -1 if is_resting else 1)
        if call.queue == ALONE:
            call.worker.is_kept = not is_resting or _is_for_one(call.worker)
        for queue in self._queues:
            self._fill(queue)

    def kill(self, call: RemoteCall) -> bool:
        """End the worker of a call, once no other call is at work there, or leave it behind."""
        worker: RemoteWorker | None = call.worker
        if not call.number or worker is None:
            return False
        if not self._kills:
            if not call.record.is_other:
                worker.stuck.add(call.number)
                self._post(worker, (m.WITHDRAW, worker.waiting()))
            return False
        if worker.is_doomed:
            return worker.is_killed
        worker.is_doomed = True
        self._post(worker, (m.WITHDRAW, worker.waiting()))
        if worker.has_innocent:
            until = self._clock() + self.grace
            worker.reprieve = self._host.set_alarm(until, partial(self._kill, worker))
            # The lane does one thing at a time: if it is this call, the others there have not
            # begun, and will be given back in a moment.
            return not call.record.is_other and not worker.has_innocent_others
        self._kill(worker)
        return True

    def _kill(self, worker: RemoteWorker) -> None:
        worker.is_killed = True
        worker.call_off()
        worker.link.kill()

    # -- functions ------------------------------------------------------------------------------

    def _record(self, job: Job) -> Record:
        record = self._records[job] = Record(job, next(self._numbers))
        weakref.finalize(job, self._forgotten.append, record.number).atexit = False
        return record

    # -- placing --------------------------------------------------------------------------------

    def _fill(self, queue: deque[RemoteCall]) -> None:
        """Send calls that wait, as far as workers have room; start workers for the rest."""
        while queue:
            call = queue[0]
            record: Record = call.record
            if call.queue == ALONE:
                worker = self._room_alone()
            elif record.is_other:
                worker = self._room_for_other()
            else:
                worker = self._room_for_plain(record)
            if worker is None:
                break
            queue.popleft()
            self._assign(call, worker)
        if queue and len(self._workers) < self._most:
            self._start(len(queue) - self._starting())

    def _ready(self) -> list[RemoteWorker]:
        return [one for one in self._workers if one.is_open]

    def _room_for_plain(self, record: Record) -> RemoteWorker | None:
        """Return the worker for a call of a plain function; None if it has to wait."""
        best = None
        for one in self._workers:  # a loop: this is asked several times for each call
            if one.is_open:
                if not one.plain:
                    return one
                if best is None or one.load < best.load:
                    best = one
        if best is None:
            return None
        if len(self._workers) < self._most and not self._starting():
            self._start(1)
        seconds = record.pace.seconds
        if seconds is None or seconds > LONG:
            return None
        has_room = best.load < self._window and best.plain <= MOST
        return best if best.plain == 1 or has_room else None

    def _room_for_other(self) -> RemoteWorker | None:
        """Return the worker for another call; None if it has to wait."""
        best = min(self._ready(), key=_others, default=None)
        if best is None or not best.others:
            return best
        most = self._concurrency
        starting = self._starting()
        if starting:  # leave their share to those that will be ready in a moment
            here = sum(one.others for one in self._workers) + len(self._queues[OTHER])
            most = min(most, math.ceil(here / (len(self._ready()) + starting)))
        elif len(self._workers) < self._most:
            self._start(1)
        return best if best.others < most else None

    def _room_alone(self) -> RemoteWorker | None:
        """Return a worker without calls, for one that is to be alone there; None: wait."""
        kept = [one for one in self._workers if one.is_kept]
        if not kept:
            # Kept from now on, so that it runs out of calls.
            kept = sorted(self._ready(), key=_at_work)[:1]
            for worker in kept:
                worker.is_kept = True
        return next((one for one in kept if one.is_at_rest and not one.is_doomed), None)

    def _starting(self) -> int:
        """Return how many workers will be ready in a moment."""
        since = self._clock() - STARTING
        return sum(not one.is_ready and one.started_at > since for one in self._workers)

    def _assign(self, call: RemoteCall, worker: RemoteWorker) -> None:
        record: Record = call.record
        number = call.number = next(self._numbers)
        call.worker = worker
        if record.number not in worker.jobs:
            worker.jobs.add(record.number)
            self._post(worker, record.message())
        if not worker.calls:
            worker.link.listen(True)
            worker.moved_at = self._clock()
        worker.calls[number] = call
        worker.count(record, 1)
        worker.urgent += call.is_urgent
        if call.time is not None:
            self._has_timed = True
            if record.is_other:
                call.time.start()
            else:
                worker.start_time()
        message = (m.CALL, number, record.number, call.arguments, call.facts, call.run_id)
        self._post(worker, message)

    def _post(self, worker: RemoteWorker, message: m.Message) -> None:
        worker.out.append(message)
        if not self._will_send:
            self._will_send = True
            self._soon(self._send_all)

    @ki_protected
    def _send_all(self) -> None:
        self._will_send = False
        if self._forgotten:
            self._forget()
        for worker in self._workers:
            if worker.out:
                batch, worker.out = worker.out, []
                worker.link.send(batch)
                if worker.plain > LEFT and self._pause:
                    self._look_later(worker)

    def _look_later(self, worker: RemoteWorker) -> None:
        """Take the next answers of a worker together, if nothing of them is urgent."""
        seconds = worker.load * (1 - LEFT / worker.plain)
        if seconds < self._pause / 8 or worker.urgent or worker.others or worker.is_doomed:
            return
        if any(one.is_open and not one.plain for one in self._workers):
            return  # calls are about to be moved there
        now = self._clock()
        until = now + min(seconds, self._pause)
        if not now < self._looks_at <= until:
            self._looks_at = until
        worker.link.pause(self._looks_at - now)

    def _forget(self) -> None:
        gone = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        for worker in self._workers:
            known = [number for number in gone if number in worker.jobs]
            if known:
                worker.jobs.difference_update(known)
                worker.out.append((m.FORGET, known))

    # -- workers --------------------------------------------------------------------------------

    def _start(self, wanted: int) -> None:
        """Start workers, as many as wanted if so many are left to be started."""
        if self._is_closed:
            return
        if self._unable is not None and self._clock() < self._able_at:
            self._fail_waiting(self._unable)
            return
        for _ in range(min(wanted, self._most - len(self._workers))):
            worker = RemoteWorker(self._clock())
            try:
                worker.link = self._transport.start(
                    partial(self._on_batch, worker), partial(self._on_died, worker)
                )
            except OSError as error:
                # Found out in no time, so every call may try.
                self._fail_waiting(partial(self._no_worker, str(error), error))
                return
            self._workers.append(worker)
            worker.link.listen(True)

    def _on_not_started(self, error_for: Callable[[RemoteCall], BaseException]) -> None:
        """Fail the calls that wait, and those that come while it is too early to try again."""
        self._failed_starts = 0
        self._unable = error_for
        self._able_at = self._clock() + self._wait_to_start
        self._wait_to_start = min(2 * self._wait_to_start, LONGEST_WAIT)
        self._fail_waiting(error_for)

    def _fail_waiting(self, error_for: Callable[[RemoteCall], BaseException]) -> None:
        if any(one.is_ready for one in self._workers):
            return  # they will be called there
        waiting = [call for queue in self._queues for call in queue]
        for queue in self._queues:
            queue.clear()
        # Soon, and not now: `submit` may be on the stack, whose caller does not wait yet.
        self._host.backend.call_soon(partial(_refuse, waiting, error_for))

    def _no_worker(self, reason: str, cause: BaseException | None, call: RemoteCall) -> NoWorker:
        error = NoWorker(
            f"action {call.record.name!r} can't be called in {self._name}, because no worker could "
            f"be started: {reason}"
        )
        error.__cause__ = cause
        return error

    @ki_protected
    def _on_died(self, worker: RemoteWorker, reason: str) -> None:
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        worker.call_off()
        at_work, name = worker.at_work(), worker.link.name
        calls, worker.calls = worker.calls, {}
        moved: list[RemoteCall] = []
        for number, call in calls.items():
            if call.is_given_up:
                call.end(None)
            elif number in at_work:
                msg = f"{name} died while action {call.record.name!r} was at work there: {reason}"
                call.end(WorkerDied(msg, worker=name, others=len(at_work) - 1))
            else:
                moved.append(call)
        self._put_back(moved)
        if self._is_closed:
            if not self._workers and self._all_ended is not None:
                self._all_ended.set()
            return
        if not worker.is_ready and not worker.is_killed and not worker.is_refused:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                reason = f"{STARTS} in a row died at their start: {reason}"
                self._on_not_started(partial(self._no_worker, reason, None))
        for queue in self._queues:
            self._fill(queue)

    def _put_back(self, calls: list[RemoteCall]) -> None:
        """Let calls wait again, before all others: they were first."""
        for call in reversed(calls):
            call.number = 0
            if call.time is not None:
                call.time.stop()
            self._queues[call.queue].appendleft(call)

    @ki_protected
    def _on_batch(self, worker: RemoteWorker, batch: list[m.Message]) -> None:
        for message in batch:
            kind: str = message[0]
            if kind == m.DONE or kind == m.FAILED or kind == m.CANCELLED:  # noqa: PLR1714 # quicker
                call = worker.calls.pop(message[1], None)
                if call is not None:
                    self._on_ended(worker, call, message)
            elif kind == m.WITHDRAWN:
                self._on_withdrawn(worker, message[1])
            elif kind == m.BEGAN:
                worker.began.update(message[1])
            elif kind == m.READY:
                worker.is_ready = True
                self._failed_starts, self._wait_to_start, self._unable = 0, WAIT, None
            elif kind == m.REFUSED:
                worker.is_refused = True
                self._on_not_started(partial(_refused, worker.link.name, message[1]))
            else:
                call = worker.calls.get(message[1])
                if call is not None:
                    call.deliver(message)
        if self._has_timed:
            worker.start_time()
        for queue in self._queues:
            if queue:
                self._fill(queue)
        if worker.is_doomed and not worker.is_killed and not worker.has_innocent:
            self._kill(worker)
        elif not worker.calls and worker.is_ready and not self._is_closed:
            worker.link.listen(False)
            if len(self._workers) > 1:
                self._even_out(SETTLED)
        elif worker.plain > LEFT and self._pause and self._queues[PLAIN]:
            self._look_later(worker)

    def _on_ended(self, worker: RemoteWorker, call: RemoteCall, message: m.Message) -> None:
        seconds: float = message[-1]
        record: Record = call.record
        if not call.is_resting:
            worker.count(record, -1)
        worker.urgent -= call.is_urgent
        worker.began.discard(message[1])
        worker.stuck.discard(message[1])
        worker.moved_at = self._clock()
        if call.queue == ALONE:
            worker.is_kept = _is_for_one(worker)
        record.pace.learn(seconds)
        if not record.is_other:
            self._pace.learn(seconds)
            self._resize()
        call.end(message)

    def _on_withdrawn(self, worker: RemoteWorker, numbers: list[int]) -> None:
        returned: list[RemoteCall] = []
        for number in numbers:
            call = worker.calls.pop(number, None)
            if call is None:
                continue
            worker.count(call.record, -1)
            worker.urgent -= call.is_urgent
            worker.stuck.discard(number)
            if call.queue == ALONE:
                worker.is_kept = _is_for_one(worker)
            if call.is_given_up:
                call.end(None)
            else:
                returned.append(call)
        self._put_back(returned)

    def _resize(self) -> None:
        """Let the gate grant as many calls as can be at work or sent ahead, and the next ones.

        Those wait in the queue, so that what a worker has ended is replaced at once.
        """
        ahead = 1 if self._pace.seconds is None else self._pace.ahead(self._window)
        slots = self._most * (1 + 2 * ahead) + self._has_others * self._most * self._concurrency
        # Estimates waver. Each change of the gate costs more than a few slots are worth.
        if abs(slots - self.gate.slots) > self.gate.slots / 4:
            self._host.resize(self.gate, slots)

    # -- evening out ----------------------------------------------------------------------------

    def _even_out(self, after: float = 0.0) -> None:
        """Take calls that wait behind a long one back, if there is an idle worker for them then."""
        if self._quiet is not None or self._queues[PLAIN]:
            return
        idle = sum(one.is_ready and not one.plain and not one.is_doomed for one in self._workers)
        behind = [one for one in self._workers if one.plain > 1]
        if not idle or not behind:
            return
        now, next_at = self._clock(), math.inf
        for worker in behind:
            due = max(worker.moved_at + PATIENCE, now + after)
            if due > now:
                next_at = min(next_at, due)
                continue
            self._post(worker, (m.WITHDRAW, worker.waiting()))
            worker.moved_at = now
        if next_at < math.inf:
            self._quiet = self._host.set_alarm(next_at, self._ring)

    def _ring(self) -> None:
        self._quiet = None
        self._even_out()

    # -- closing --------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End all workers; see ``Pool.aclose``."""
        self._is_closed = True
        if self._quiet is not None:
            self._quiet()
        for worker in self._workers:
            worker.link.listen(True)
            if worker.calls or not worker.is_ready:
                self._kill(worker)
            else:
                worker.out.append((m.STOP,))
        self._send_all()
        await self._wait_for_all(min(self._host.grace, CLOSING))
        for worker in list(self._workers):
            self._kill(worker)
        await self._wait_for_all(CLOSING)
        await self._transport.aclose()
        # Only now: workers that had not come to start were ended by the transport; see
        # test_workers_that_were_about_to_start_are_not_left_behind.
        if self._workers:
            names = ", ".join(one.link.name for one in self._workers)
            logger.error("%s could not be ended, and are left behind: %s", self._name, names)

    async def _wait_for_all(self, seconds: float) -> None:
        if not self._workers:
            return
        self._all_ended = anyio.Event()
        with anyio.move_on_after(seconds):
            await self._all_ended.wait()

    def __repr__(self) -> str:
        calls = sum(len(one.calls) for one in self._workers)
        return (
            f"<RemotePool of {len(self._workers)}/{self._most} {self._name}, {calls} calls sent, "
            f"{sum(map(len, self._queues))} waiting>"
        )


def _others(worker: RemoteWorker) -> int:
    return worker.others


def _at_work(worker: RemoteWorker) -> int:
    return sum(not call.is_resting for call in worker.calls.values())


def _is_for_one(worker: RemoteWorker) -> bool:
    """Return whether a call is at work there that was to be alone."""
    return any(call.queue == ALONE and not call.is_resting for call in worker.calls.values())


def _refuse(calls: list[RemoteCall], error_for: Callable[[RemoteCall], BaseException]) -> None:
    for call in calls:
        call.end(error_for(call))


def _refused(worker: str, data: bytes, call: RemoteCall) -> BaseException:
    """Return what the initializer has raised, as a new object for each call."""
    error = load_error(data, worker)
    note(error, f"shoal: the initializer raised it, so action {call.record.name!r} was not called")
    return error
