"""The scheduler in front of the gates: grants requests all they need at once, in fair turns.

Invariants:
- All or nothing: a request is granted at the moment all gates it needs are open, and holds none of
  them while it waits. So two limits can't be acquired in two orders and deadlock, and a closed gate
  delays only requests that need it.
- Work conserving, no overtaking: a request that could be granted never waits, and a request that
  finds others with an earlier turn at one of its gates waits behind them.
- Requests of one run are served first come, first served, with one exception. What waits for its
  next attempt goes before all of its flow that has not started, because a fan-out reads many of
  those ahead.
- Runs take turns, however many requests each has waiting (start-time fair queueing, see ``flows``).
  A turn that a returning child takes early counts as a turn of its run, so a run whose children
  fail gets no more than its fair share. A run may use its first few turns in one go. So small runs
  are served one after the other, instead of all at once and all of them late; a large run only gets
  a few turns a little earlier.
- Classes of priority, and shares of a limit, take turns by their weights, and the runs in each of
  them among themselves.
- Nothing leaks: no slot and no unit of a rate is lost when the holder fails or is cancelled, even
  if it is cancelled in the loop iteration in which its request is granted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from random import random
from typing import final

from shoal._concurrency.backend import Clock, Waiter
from shoal._concurrency.cancellation import ki_protected, ki_unprotected
from shoal._errors.arguments import is_number
from shoal._errors.exceptions import BadResult, brief
from shoal._state.state import refuse_awaitable

from .accounts import Accounts, Stake
from .adaptive import Adaptive, Ended
from .flows import FIRST, LAST, WEIGHTS, Flow, Key, Priority, Share, Turn
from .gates import Acquired, Costs, FairShare, Gate, PermitRequest, WaitQueue
from .headers import RateHeaders
from .lines import Line
from .meters import CREDIT, ForeignMeter
from .rivals import Rivals
from .shared_budget_client import SharedBudgetClients
from .shared_rate_client import SharedRateClients, StartTask
from .timers import GateTimers, SetAlarm

PATIENCE = 0.05
"""Seconds after which a request is looked at again that waits for money of attempts that wait."""


@final
class FairScheduler:
    """Grants requests for gates in fair turns. Belongs to one event loop."""

    __slots__ = (
        "_timers",
        "_classes",
        "_judgement",
        "_rivals",
        "_soon",
        "_unjudged",
        "_budgets",
        "_clients",
        "arrivals",
        "bounds_waiting",
        "changes",
        "clock",
        "costs",
        "first_flow",
        "has_shares",
        "wait_queues",
        "waiter",
    )

    def __init__(
        self,
        waiter: Callable[[], Waiter],
        clock: Clock,
        set_alarm: SetAlarm | None = None,
        start_task: StartTask | None = None,
        chance: Callable[[], float] = random,
    ) -> None:
        """Create an empty scheduler.

        Args:
            waiter: Makes the future that a task awaits while its request waits.
            clock: The loop's clock.
            set_alarm: Schedules a call at a time; None: requests wait for slots only, never for
                time.
            start_task: Starts a task; None: no rate is shared with other processes.
            chance: Returns random numbers in [0, 1).
        """
        self.waiter: Callable[[], Waiter] = waiter
        self.clock: Clock = clock
        # By what the requests of each have in common. Empty ones are removed at once, so that the
        # fast path while nothing waits is one test of this dict.
        self.wait_queues: dict[Hashable, WaitQueue] = {}
        self.costs: Costs = Costs()
        """What was charged at limits with ``cost=``, by all executions."""
        self.bounds_waiting: bool = False
        """Whether any limit has ``waiting=``. Set by ``Limiters``, and never unset."""
        self.changes: int = 0
        """Counts the changes of limits. Set by ``Limiter``, for what is derived from its gates."""
        self.arrivals: int = 0
        """Counts the requests that have begun to wait. Set here alone."""
        self.first_flow: Flow = Flow(weight=WEIGHTS["normal"], is_first=True)
        """Where everything without a priority or a share takes turns."""
        # Empty until a run has a priority: until then `first_flow` is all there is.
        self._classes: dict[Priority, Flow] = {}
        self.has_shares: bool = False
        """Whether any limit has ``share=``. Set by ``Limiters``, and never unset."""
        self._rivals: Rivals = Rivals()
        self._timers: GateTimers = GateTimers(clock, set_alarm, self._open)
        # Gates of budgets at which the first request may wait for money that will never be there.
        # Judged in a callback of the loop, because here requests are being moved.
        self._unjudged: dict[Gate, None] = {}
        self._soon: SetAlarm | None = set_alarm
        self._judgement: Callable[[], object] | None = None  # cancels the callback
        self._clients: SharedRateClients = SharedRateClients(
            clock, start_task, chance, self.serve, self._refuse
        )
        self._budgets: SharedBudgetClients = SharedBudgetClients(
            clock, start_task, self.serve, self._judge_soon, self._refuse, is_kept=self._is_kept
        )

    # -- entering and leaving -------------------------------------------------------------------

    @ki_protected
    def enter(self, request: PermitRequest, *, ahead: bool = False) -> None:
        """Grant ``request`` at once if possible, else put it in a wait queue.

        Args:
            request: Neither granted nor waiting.
            ahead: Whether it goes before all requests that are not ``ahead``.
        """
        gate: Gate | None = None
        wait_queue: WaitQueue | None = None
        flow = request.flow or self.first_flow
        kind = ahead, request.is_returning, request.unit, flow
        # The turn after all those that come before this request, whatever their arrival. While
        # nothing waits no turn is compared, and most requests come then.
        turn = FIRST if ahead else LAST
        if self.wait_queues:
            wait_queue = self.wait_queues.get((*kind, request.needed))
            key: Key = not ahead, not request.is_returning, math.inf, sys.maxsize
            turn = (key,) if flow.parent is None or ahead else (*flow.path(), key)
        if wait_queue is None:
            gate = self._shut(request, turn)
            if gate is None:
                self.take(request)
                if flow.parent is not None and self.wait_queues and not ahead:
                    # It goes before others that wait, so it counts; else a flow whose requests are
                    # never long enough in line could keep one waiting that needs many units. See
                    # test_a_request_of_many_units_is_not_passed_for_ever.
                    flow.on_turn(flow.round)
                    self.serve(*self._rivals.after_turn(flow))
                return
        # A request that must wait may need more gates by that, and so another wait queue. An
        # attempt that reacquires its slots goes on holding its in-flight slot meanwhile.
        if not ahead and request.include_slot():
            wait_queue = self.wait_queues.get((*kind, request.needed))
        if wait_queue is None:
            # The gate found above stays valid: gates were only added, and this one is still closed.
            gate = gate or self._shut(request, turn)
            assert gate is not None, "others wait in front of it"
            name = *kind, request.needed
            wait_queue = WaitQueue(name, flow, is_behind=not ahead, is_new=not request.is_returning)
            self.wait_queues[name] = wait_queue
            flow.add()
            # Joined before it is posted: the turn of an empty wait queue is not defined.
            self._join(request, wait_queue)
            self._post(wait_queue, gate)
        else:
            self._join(request, wait_queue)
        # Last, because it may release the in-flight slot of the request's child, and that grants
        # other requests: they must find this one waiting.
        request.suspend_slot()

    def _join(self, request: PermitRequest, wait_queue: WaitQueue) -> None:
        unit = request.unit
        if unit is not None:
            request.due = wait_queue.flow.join(unit, is_returning=request.is_returning)
        wait_queue.requests[request] = self.arrivals
        self.arrivals += 1
        request.wait_queue = wait_queue
        if self.bounds_waiting and unit is not None:
            for line in _lines(request):
                line.join(unit, self.clock())

    def _shut(self, request: PermitRequest, turn: Turn, *, but: Gate | None = None) -> Gate | None:
        """Find a gate that keeps ``request`` waiting; None if all are open.

        A gate that only lacks what a backend grants is returned only if all others are open, so
        that nothing is requested that another closed gate would leave unused. Of these, a budget
        comes before a rate: its grant is kept meanwhile, and units of a rate lapse.

        Args:
            request: Is neither granted nor posted.
            turn: Its turn; a wait queue with an earlier one is not overtaken.
            but: A gate to ignore.
        """
        unit = request.unit
        # An attempt under way that reacquires its slots goes on, so it isn't held.
        if unit is not None and unit.held_at is not None and turn[0][0]:
            return unit.held_at
        # Remembered while the others are looked at: it counts only if none of them is closed.
        asks: Gate | None = None
        now: float | None = None
        for at, gate in enumerate(request.needed):
            if gate is but:
                continue
            if gate.posted:
                first = gate.first()
                if first is not None and first.turn() < turn:  # no overtaking
                    return gate
            opens = gate.opens_at(request.cost(at), paid=request.paid)
            if opens == -math.inf:
                continue
            now = self.clock() if now is None else now  # most gates have no rate: read it lazily
            if opens > now:
                if not gate.asks:
                    return gate
                asks = gate if asks is None or asks.shared is not None else asks
        return asks

    @ki_protected
    def take(self, request: PermitRequest, *, at: Gate | None = None, credit: float = 0.0) -> None:
        """Grant ``request``, whether or not there is room.

        Args:
            request: Is neither granted nor waiting.
            at: The gate that kept it waiting...
            credit: ...and the seconds for which that gate was open before it was looked at.
        """
        request.granted = True
        if request.paid:
            for gate in request.needed:
                gate.used += 1
            return
        request.paid = True
        if self.bounds_waiting and request.unit is not None:
            for line in _lines(request):
                line.admit(request.unit, self.clock())
        # One reading of the clock for all gates, and none where nothing needs it.
        now: float | None = None
        since: float | None = None
        for index, gate in enumerate(request.needed):
            gate.used += 1
            if gate.adapt is not None:
                since = now = self.clock() if now is None else now
            if gate.meter is not None:
                request.taken_at = now = self.clock() if now is None else now
                gate.meter.take(now, request.cost(index), credit if gate is at else 0.0)
                if request.costs is not None:
                    self._count(gate, request.costs[index], request.unit)
            if gate.purse is not None:
                now = self.clock() if now is None else now
                accounts = None if request.unit is None else request.unit.accounts
                stake = gate.purse.stake(request.cost(index), accounts, now)
                request.stakes = (*request.stakes, stake)
        request.on_granted(since)  # after the charges, because it may remove gates from `needed`

    def _count(self, gate: Gate, cost: float, unit: FairShare | None) -> None:
        """Count what is charged at a gate, or given back, if a user's function says how much."""
        part = gate.part
        if part is None or part.cost is None or not cost:
            return
        self.costs.add(part, cost)
        if unit is not None:
            if unit.costs is None:
                unit.costs = Costs()
            unit.costs.add(part, cost)

    @ki_protected
    def leave(self, request: PermitRequest) -> None:
        """Release the slots that ``request`` holds and grant them on; or end its wait."""
        if request.granted:
            # All slots are released before any is granted on: the next request may need several.
            request.granted = False
            for gate in request.needed:
                gate.used -= 1
            if self.wait_queues:
                self.serve(*request.needed)
        elif request.wait_queue is not None:
            self._drop(request, request.wait_queue)

    def _drop(self, request: PermitRequest, wait_queue: WaitQueue) -> None:
        """Remove a request that is not granted from its wait queue."""
        gate = wait_queue.gate
        assert gate is not None, "a wait queue with requests is posted"
        gate.unpost(wait_queue)
        del wait_queue.requests[request]
        request.wait_queue = None
        if self.bounds_waiting:
            self._leave_lines(request)
        if wait_queue.requests:
            gate.post(wait_queue)  # with the turn of the request that is first now
        else:
            self._end(wait_queue)
            gate.first()  # drops its stale entry, which would keep its execution alive
        # Another wait queue may be first now, and the gate open to its request: see
        # test_a_request_behind_a_cancelled_one_is_next.
        self.serve(gate)
        self._return_unused(request)

    def _leave_lines(self, request: PermitRequest) -> None:
        if request.unit is not None:
            for line in _lines(request):
                line.leave(request.unit, self.clock())

    def _end(self, wait_queue: WaitQueue) -> None:
        # At once, since an empty dict is what the fast path of `enter` and `leave` looks for.
        del self.wait_queues[wait_queue.key]
        wait_queue.flow.remove()
        self._rivals.forget(wait_queue.flow)
        if not self.wait_queues:
            self._timers.clear()

    # -- granting -------------------------------------------------------------------------------

    @ki_protected
    def serve(self, *gates: Gate, due: float = math.inf) -> None:
        """Grant the requests waiting at ``gates`` that can be granted, in their turns.

        Args:
            gates: Gates that may have opened.
            due: The time at which a timer should have fired, if a timer calls this. A rate is not
                charged for the seconds by which the timer was late.
        """
        serving = [gate for gate in gates if gate.posted]
        while serving:
            gate = serving[0]
            if len(serving) > 1:
                # Turns count across gates. Sought anew each time, because a grant changes them.
                gate = min(serving, key=Gate.first_turn)
            wait_queue = gate.first()
            if wait_queue is None:
                serving.remove(gate)
                continue
            request = wait_queue.first()
            opens = gate.opens_at(request.cost_at(gate), paid=request.paid)
            now = self.clock()
            # A request whose task is being cancelled is removed, not granted: the task would only
            # release the slots again. See test_a_cancel_in_the_tick_of_the_grant.
            is_shut = opens > now and not request.is_gone
            other: Gate | None = None
            # A closed gate that asks a backend hands the wait queue on as well, if another gate is
            # closed: while it is posted there, nothing is requested that it couldn't use. The one
            # of a held execution leaves any gate, since those behind it needn't wait for it.
            held_at = None if request.unit is None else request.unit.held_at
            is_held = held_at is not None and held_at is not gate and wait_queue.is_behind
            if not request.is_gone and (not is_shut or is_held or gate.asks):
                other = self._shut(request, wait_queue.turn(), but=gate)
            if is_shut and (other is None or other.asks):
                # No overtaking: the wait queues behind the first one stay as well.
                self._set_alarm(gate, request)
                serving.remove(gate)
                continue
            gate.unpost(wait_queue)
            if other is not None:
                self._post(wait_queue, other)
                self._return_unused(request)
                continue
            if not request.is_gone:
                flow = wait_queue.flow
                if flow.parent is None:
                    flow.round = max(flow.round + 1.0 / flow.active, request.due)
                elif wait_queue.is_behind:
                    flow.on_turn(request.due)
                    serving += [gate for gate in self._rivals.after_turn(flow) if gate.posted]
                # If the gate opened by time, the timer may have been late: see
                # test_late_timers_cost_a_rate_nothing_up_to_a_hundredth_of_a_second.
                credit = min(now - opens, CREDIT) if opens >= due else 0.0
                self.take(request, at=gate, credit=credit)
            del wait_queue.requests[request]
            request.wait_queue = None
            if self.bounds_waiting:
                self._leave_lines(request)
            if wait_queue.requests:
                gate.post(wait_queue)  # its next request waits for its own turn
            else:
                self._end(wait_queue)
            # Last: a callback may enter a request again, which must be consistent by then.
            request.wake()

    def _open(self, gate: Gate, due: float) -> None:
        self.serve(gate, due=due)

    def _post(self, wait_queue: WaitQueue, gate: Gate) -> None:
        """Post ``wait_queue`` at ``gate``, with an alarm for the time at which the gate opens."""
        gate.post(wait_queue)
        if gate.first() is wait_queue:
            self._set_alarm(gate, wait_queue.first())
        elif wait_queue.flow.parent is not None:
            self._rivals.note(gate)

    def _set_alarm(self, gate: Gate, request: PermitRequest) -> None:
        opens = gate.opens_at(request.cost_at(gate), paid=request.paid)
        if gate.shared is not None and not gate.is_shut:
            self._clients.want(gate)
        if gate.purse is not None:
            self._judge_soon(gate)
        # A foreign limiter doesn't say when it has room, and others may use it: poll it.
        if opens == math.inf and isinstance(gate.meter, ForeignMeter):
            opens = self.clock() + gate.meter.pause
        if opens < math.inf:
            # It is open already to what has come behind the others there, and has its turn before
            # them. Without credit: that request has not waited for the timer.
            self._timers.set(max(opens, self.clock()), gate)
        if request.flow is not None or self._classes:
            self._rivals.note(gate)

    @ki_protected
    def _refuse(self, gate: Gate, make_error: Callable[[], Exception]) -> None:
        """Fail all requests that wait at ``gate`` for its rate, each with an error of its own."""
        for wait_queue in gate.wait_queues():
            for request in list(wait_queue.requests):
                # Requests that are paid wait for a slot. `_drop` serves the gate, so requests
                # further on in the copy may have left the wait queue since.
                if not request.paid and request.wait_queue is wait_queue:
                    self._drop(request, wait_queue)
                    request.refuse(make_error())

    # -- budgets --------------------------------------------------------------------------------

    def _judge_soon(self, gate: Gate, *, after: float = 0.0) -> None:
        """Find out in the next iteration of the loop which requests at ``gate`` can never start."""
        self._unjudged[gate] = None
        if self._soon is None or (self._judgement is not None and after):
            return
        if self._judgement is not None:
            self._judgement()  # it may be a later one
        self._judgement = self._soon(self.clock() + after, self._judge)

    @ki_protected
    def _judge(self) -> None:
        """Refuse the first request of each gate that nothing under way could make room for."""
        self._judgement = None
        unjudged, self._unjudged = self._unjudged, {}
        for gate in unjudged:
            wait_queue = gate.first()
            if wait_queue is None or gate.purse is None:
                continue
            request, account = wait_queue.first(), gate.purse.account
            cost = request.cost(request.needed.index(gate))
            # Paid: it waits for a slot. Else it may fit by now, and waits for another gate, or for
            # the end of a pause: see test_a_budget_that_is_paused_refuses_nothing.
            if request.paid or account.opens_at(cost) <= self.clock():
                continue
            unit = request.unit
            accounts = None if unit is None else unit.accounts
            is_busy = Accounts().is_busy if accounts is None else accounts.is_busy
            now = self.clock()
            if account.is_hopeless(cost, request.payer, is_busy, now):
                # The next one is judged in its turn: `_drop` serves the gate.
                self._drop(request, wait_queue)
                request.refuse(account.exceeded(cost))
                self._return_units(gate)
            elif gate.asks and account.grant is not None and not account.grant.is_denied(cost, now):
                self._budgets.want(gate, account.grant)
            elif account.is_resting:
                # Nothing tells when what is at work ends, if no limit counts it.
                self._judge_soon(gate, after=PATIENCE)

    def look_at(self, stakes: Iterable[Stake]) -> None:
        """Serve the gates of accounts that have changed."""
        for stake in stakes:
            for gate in tuple(stake.account.gates):
                if gate.posted:
                    self.serve(gate)
                self._return_units(gate)

    def _return_units(self, gate: Gate) -> None:
        """Return what this process was granted of a shared budget, if nothing waits for it."""
        grant = None if gate.purse is None else gate.purse.account.grant
        if grant is not None and grant.units and not gate.posted:
            self._budgets.want(gate, grant)

    def _return_unused(self, request: PermitRequest) -> None:
        """Do so for a request that has left a gate, at all that it needs."""
        for gate in request.needed:
            if gate.purse is not None:
                self._return_units(gate)

    def _is_kept(self, gate: Gate) -> bool:
        """Whether a request needs what was granted there as soon as a shared rate lets it start.

        Returned meanwhile, it would have to be asked for again, and the units of the rate would
        have lapsed by then: see test_a_shared_rate_and_a_shared_budget_together.
        """
        assert gate.purse is not None, "a budget's"
        gates = gate.purse.account.gates
        return any(
            one.gate is not None
            and one.gate.shared is not None
            and not gates.isdisjoint(one.first().needed)
            for one in self.wait_queues.values()
        )

    def close(self) -> None:
        """Stop the timer, and return unused units of shared rates to their backends."""
        self._soon, judgement, self._judgement = None, self._judgement, None
        if judgement is not None:
            judgement()
        self._timers.close()
        self._clients.close()
        self._budgets.close()

    # -- held executions ------------------------------------------------------------------------

    @ki_protected
    def hold(self, unit: FairShare) -> None:
        """Grant nothing to an execution until ``release``, except slots of attempts under way.

        Requests that wait elsewhere stay there until it is their turn, and are moved then.
        """
        if unit.held_at is None:
            unit.held_at = Gate(0, name="paused")
            unit.held_at.is_hold = True
            # Those whose turn it is keep others waiting that need less; see
            # test_a_request_of_a_held_run_keeps_no_other_waiting.
            at = [one.gate for one in self.wait_queues.values() if one.first().unit is unit]
            self.serve(*dict.fromkeys(gate for gate in at if gate is not None))

    @ki_protected
    def release(self, unit: FairShare) -> None:
        """Grant the requests of a held execution that can be granted now, in their turns."""
        gate, unit.held_at = unit.held_at, None
        if gate is not None:
            gate.resize(None)
            self.serve(gate)

    # -- flows ----------------------------------------------------------------------------------

    def flow_of(self, unit: FairShare, shares: Sequence[Share]) -> Flow | None:
        """Return where a request takes turns; None: where everything without a share does.

        Args:
            unit: Its execution.
            shares: Its shares of limits, the outermost first.
        """
        if unit.priority == "normal" and not shares:
            return None
        flow = self.first_flow
        if unit.priority != "normal":
            flow = self._class(unit.priority)
        for share in shares:
            flow = flow.child((share.limit, share.key), share.weight)
        return flow

    def _class(self, priority: Priority) -> Flow:
        if not self._classes:
            # Now that there are several classes, the first flow is the one of those between.
            around = Flow()
            self.first_flow.move_below(around, WEIGHTS["normal"])
            self._classes = {"normal": self.first_flow}
            for name in ("interactive", "batch"):
                self._classes[name] = around.child(name, WEIGHTS[name])
        return self._classes[priority]

    # -- corrections by holders -----------------------------------------------------------------

    def correct(self, held: Acquired, by: Sequence[float], unit: FairShare | None = None) -> None:
        """Charge so many more units at each gate of ``held``; fewer where negative.

        Args:
            held: What was charged.
            by: The units.
            unit: The execution that pays.
        """
        for gate, cost in zip(held.needed, by, strict=True):
            if gate.meter is not None and cost:
                gate.meter.correct(cost, held.taken_at)
                self._count(gate, cost, unit)
                self._look(gate)

    def refund(self, held: Acquired, unit: FairShare | None = None) -> None:
        """Give back the units charged for an attempt or a child that never started."""
        for stake in held.stakes:
            stake.give_back()
        self.look_at(held.stakes)
        held.stakes = ()
        for at, gate in enumerate(held.needed):
            if gate.meter is not None:
                cost = 1.0 if held.costs is None else held.costs[at]
                gate.meter.give_back(cost, held.taken_at)
                self._count(gate, -cost, unit)
                self._look(gate)

    def _look(self, gate: Gate) -> None:
        """Serve ``gate`` after its meter has changed, and send the change to a shared rate."""
        if gate.posted:
            self.serve(gate)
        if gate.shared is not None:
            self._clients.want(gate)

    def charge(
        self,
        held: Acquired,
        actual: float,
        unit: FairShare | None = None,
        *,
        named: str | None = None,
    ) -> None:
        """Replace the units charged by ``actual`` at gates with a ``cost=`` function.

        Args:
            held: What was charged.
            actual: The units.
            unit: The execution that pays.
            named: What the function counts; None: at all gates with one.
        """
        paid = [one for one in held.stakes if named in (None, one.account.terms.unit)]
        for stake in paid:
            stake.charge(actual)
        self.look_at(paid)
        if held.costs is None:
            return
        due = tuple(
            actual if gate.has_cost and (named is None or gate.unit == named) else cost
            for gate, cost in zip(held.needed, held.costs, strict=True)
        )
        self.correct(held, [new - old for new, old in zip(due, held.costs, strict=True)], unit)
        # So a further call corrects this one; see test_charging_what_it_was.
        held.costs = due

    def learn(self, held: Acquired, said: RateHeaders) -> None:
        """Adjust the rates of ``held`` to what a server has said of them."""
        now = self.clock()
        for gate in held.needed:
            if gate.learn(said, now) and gate.posted:
                self.serve(gate)  # sets the alarm to the new time

    def pause(self, held: Acquired, until: float) -> bool:
        """Pause the gates of ``held`` that belong to one key of many.

        Gates without keys are left alone: a pause there would stop all traffic, though only one
        server asked for it. See test_without_keys_only_the_child_waits.

        Returns whether there are any such gates.
        """
        keyed = [gate for gate in held.needed if gate.is_keyed]
        for gate in keyed:
            gate.paused_until = max(gate.paused_until, until)
            if gate.posted:
                self.serve(gate)  # sets the alarm to the new time
        return bool(keyed)

    def adapt(self, held: Acquired, error: BaseException | None) -> None:
        """Let ``adapt=`` policies adjust the slots after an attempt or a child has ended.

        Called before its slots are released, so that a policy sees how many were in use.

        Raises:
            Exception: Whatever a user's policy raises.
            BadResult: The policy returned no finite number.
        """
        if held.since is None:  # none of its gates adapts
            return
        now = self.clock()
        for gate in held.needed:
            if gate.adapt is None or gate.size is None:
                continue
            # One for each gate, since each has a `used` of its own, which counts this attempt too.
            ended = Ended(error, now - held.since, held.since, now, gate.used)
            size = _size_after(gate.adapt, gate.size, gate.changed_at, ended)
            if size < gate.size:
                gate.changed_at = now
            gate.resize(max(1.0, size))  # with 0 slots nothing would end that could raise it again
            if gate.posted:
                self.serve(gate)

    def __repr__(self) -> str:
        waiting = sum(len(one.requests) for one in self.wait_queues.values())
        return f"<FairScheduler, {waiting} waiting>"


def _lines(request: PermitRequest) -> list[Line]:
    return [gate.line for gate in request.needed if gate.line is not None]


@ki_unprotected
def _size_after(adapt: Adaptive, n: float, changed_at: float, ended: Ended) -> float:
    """Return the new number of slots by the policy, which may be the user's code."""
    size: object = adapt.after(n, changed_at, ended)
    if not is_number(size) or not -math.inf < size < math.inf:
        refuse_awaitable(size, "Limits(adapt=...).after")
        msg = (
            f"Limits(adapt=...): {type(adapt).__name__}.after returned {brief(size)}; it returns "
            f"a number of slots"
        )
        raise BadResult(msg)
    return size
