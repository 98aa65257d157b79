"""The scheduler, against a brute-force model: logs of charges, and every request."""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

import pytest

from shoal import Limits, Rate
from shoal._limits.accounts import Accounts
from shoal._limits.flows import AT_ONCE, Flow, Priority
from shoal._limits.gates import Costs, Gate
from shoal._limits.meters import CREDIT, MARKS, Meter
from shoal._limits.permits import AttemptPermit, HeldPermits
from shoal._limits.scheduler import FairScheduler

TICK = 1 / 16
"""Half a unit of the fastest rate: nothing is granted between two ticks, where the model would note
it too late. Times, intervals and costs are multiples of powers of 2, so that their sums are exact.
"""


class Clock:
    """A clock that is put forward, and what is to be called on the way."""

    def __init__(self, *, late: float = 0.0) -> None:
        self.now = 0.0
        self.late = late
        self.alarms: list[tuple[float, int, Any]] = []
        self.numbers = count()
        self.taken_back: set[int] = set()

    def __call__(self) -> float:
        return self.now

    def alarm(self, at: float, call: Any) -> Any:
        number = next(self.numbers)
        heappush(self.alarms, (max(at, self.now) + self.late, number, call))
        return lambda: self.taken_back.add(number)

    def forward(self, seconds: float) -> None:
        until = self.now + seconds
        while self.alarms and self.alarms[0][0] <= until:
            at, number, call = heappop(self.alarms)
            if number not in self.taken_back:
                self.now = max(self.now, at)
                call()
        self.now = until

    @property
    def is_set(self) -> bool:
        return any(number not in self.taken_back for _, number, _ in self.alarms)


class Unit:
    """An execution."""

    def __init__(self, priority: Priority = "normal") -> None:
        self.turn_due = self.turns_since = 0.0
        self.held_at: Gate | None = None
        self.costs: Costs | None = None
        self.let_in: set[object] | None = None
        self.priority: Priority = priority
        self.owner = ""
        self.accounts: Accounts | None = None


class Log:
    """What was charged at one gate: all of it, in the order in which it went."""

    def __init__(self, rate: Rate, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.charges: list[list[Any]] = []  # when, how much, by whom

    def opens_at(self, cost: float) -> float:
        """Look at all windows: when does none hold too much, with so much more?"""
        opens, units, interval = -math.inf, 0.0, self.rate.per / self.rate.k
        for at, charged, _ in reversed(self.charges):
            units += charged
            opens = max(opens, at + (units + cost - self.burst) * interval)
        return opens

    def check_windows(self) -> None:
        for first, (began, _, _) in enumerate(self.charges):
            units = 0.0
            for at, charged, _ in self.charges[first:]:
                units += charged
                allowed = (at - began) * self.rate.k / self.rate.per + self.burst
                assert units <= allowed, f"{units} from {began} to {at}, and not {allowed}"


class Modelled:
    def __init__(
        self, permit: AttemptPermit, needed: list[int], costs: list[float], number: int
    ) -> None:
        self.permit = permit
        self.needed = needed
        self.costs = dict(zip(needed, costs, strict=True))
        self.number = number
        self.granted = False
        self.unit = permit.unit
        self.due = permit.due  # of start-time fair queueing; only who waits has one


class Program:
    """Claims that come, wait, start, are charged, leave, are cancelled; pauses and time."""

    LIMITS = (
        Limits(2),
        Limits(rate=Rate(2, per=1, burst=4)),
        Limits(1, rate=Rate(1, per=1), by=lambda state: "key"),
        Limits(3, rate=Rate(8, per=1, burst=8), cost=lambda state: 1.0),
    )

    may_overtake = False  # what comes has no turn before anything that waits

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.scheduler = FairScheduler(None, self.clock, self.clock.alarm)  # pyright: ignore[reportArgumentType]
        parts = [limits.parts[0] for limits in self.LIMITS]
        self.gates = [Gate(part.n, part, n) for n, part in enumerate(parts)]
        self.logs = {
            n: Log(part.rate, getattr(part.meter(), "burst", 1))
            for n, part in enumerate(parts)
            if isinstance(part.rate, Rate)
        }
        self.units = [Unit() for _ in range(3)]
        self.waiting: list[Modelled] = []
        self.running: list[Modelled] = []
        self.order: list[Modelled] = []
        self.arrivals = count()

    def run(self) -> None:
        does = [self.come, self.come, self.come, self.leave, self.cancel, self.charge, self.pause]
        for _ in range(self.random.randrange(20, 120)):
            if self.random.random() < 0.4:
                self.forward(self.random.randrange(1, 24))
            else:
                self.random.choice(does)()
                self.settle()
        while self.waiting or self.running:
            while self.running:
                self.leave()
                self.settle()
            self.forward(4)
        assert not self.scheduler.wait_queues
        assert not any(gate.used or gate.posted or gate.users for gate in self.gates)
        for log in self.logs.values():
            log.check_windows()

    # -- what happens

    def come(self) -> None:
        needed = sorted(self.random.sample(range(len(self.gates)), self.random.randrange(1, 4)))
        costs = [float(self.random.choice([1, 1, 2, 8])) if n == 3 else 1.0 for n in needed]
        found_others = any(self.gates[n].posted for n in needed)
        unit = self.random.choice(self.units)
        permit = AttemptPermit(
            self.scheduler,
            tuple(self.gates[n] for n in needed),
            tuple(costs),
            HeldPermits(unit),
            flow=self.flow_of(unit),
        )
        assert self.may_overtake or not (found_others and permit.granted), "it overtakes"
        one = Modelled(permit, needed, costs, next(self.arrivals))
        self.waiting.append(one)

    def flow_of(self, unit: Unit) -> Flow | None:
        return None

    def leave(self) -> None:
        if self.running:
            self.running.pop(self.random.randrange(len(self.running))).permit.leave()

    def cancel(self) -> None:
        """Cancel one that waits, or one that was granted and has not begun."""
        fresh = [one for one in self.running if one.number == -1]
        if self.waiting and (not fresh or self.random.random() < 0.7):
            self.waiting.pop(self.random.randrange(len(self.waiting))).permit.cancel()
        elif self.running:
            one = self.running.pop(self.random.randrange(len(self.running)))
            for n in one.needed:
                if n in self.logs:
                    charges = self.logs[n].charges
                    charges[:] = [charge for charge in charges if charge[2] is not one]
            one.permit.cancel()

    def charge(self) -> None:
        """Correct what was charged, down to nothing; more counts from now on."""
        those = [one for one in self.running if 3 in one.needed]
        if not those:
            return
        one = self.random.choice(those)
        actual = float(self.random.choice([0, 0.5, 1, 2, 8]))
        actual = min(actual, one.costs[3])
        for entry in self.logs[3].charges:
            if entry[2] is one:
                entry[1] = actual
        one.costs[3] = actual
        self.scheduler.charge(one.permit, actual)

    def pause(self) -> None:
        those = [one for one in self.running if 2 in one.needed]
        if those:
            one = self.random.choice(those)
            self.scheduler.pause(one.permit, self.clock.now + self.random.randrange(1, 48) * TICK)

    def forward(self, ticks: int) -> None:
        for _ in range(ticks):
            self.clock.forward(TICK)
            self.settle()

    # -- what must hold

    def rank(self, one: Modelled) -> Any:
        """Return something by which requests that were granted at once are sorted."""
        return one.due, one.number

    def turn(self, one: Modelled) -> Any:
        """Return the turn of a request that waits, by what the scheduler has of it."""
        return one.due, one.number

    def opens_at(self, n: int, cost: float) -> float:
        gate = self.gates[n]
        held = sum(n in one.needed for one in self.running)
        if gate.size is not None and held >= gate.size:
            return math.inf
        opens = gate.paused_until
        return max(opens, self.logs[n].opens_at(cost)) if n in self.logs else opens

    def settle(self) -> None:
        """Account for what was granted, one after the other; then nobody may wait in vain."""
        self.clock.forward(0.0)  # timers that are due at once
        granted = [one for one in self.waiting if one.permit.granted]
        for one in sorted(granted, key=self.rank):
            for n in one.needed:
                opens = self.opens_at(n, one.costs[n])
                assert opens <= self.clock.now, f"gate {n} opens at {opens} only"
            self.waiting.remove(one)
            self.running.append(one)
            for n in one.needed:
                if n in self.logs:
                    self.logs[n].charges.append([self.clock.now, one.costs[n], one])
            for other in self.waiting:  # first come, first served, among equals
                if other.unit is one.unit and other.needed == one.needed:
                    assert other.number > one.number
        for n, gate in enumerate(self.gates):
            assert gate.used == sum(n in one.needed for one in self.running)
            if n in self.logs and gate.meter is not None:
                mine, theirs = self.logs[n].opens_at(1), gate.meter.opens_at(1)
                assert max(mine, self.clock.now) == max(theirs, self.clock.now)
        if not self.scheduler.wait_queues:
            assert not self.clock.is_set, "the clock is looked at though nobody waits"
        shut = [
            (one, n)
            for one in self.waiting
            for n in one.needed
            if self.opens_at(n, one.costs[n]) > self.clock.now
        ]
        for one in self.waiting:
            turn = self.turn(one)
            behind = {n for other, n in shut if self.turn(other) <= turn}
            assert behind & set(one.needed), "it could start, and waits"


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 4000), marks=pytest.mark.slow)]
)
def test_the_scheduler_grants_what_the_model_grants(seeds: range):
    for seed in seeds:
        Program(seed).run()


# -- fairness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Rate(8), None])
@pytest.mark.parametrize("seed", range(20))
def test_units_that_always_wait_get_the_same(rate: Rate | None, seed: int):
    """However many requests each has, and whenever it came; but for its first few, at any time."""
    random, clock = Random(seed), Clock()
    scheduler = FairScheduler(None, clock, clock.alarm)  # pyright: ignore[reportArgumentType]
    limits = Limits(1) if rate is None else Limits(rate=rate)
    gate = Gate(limits.parts[0].n, limits.parts[0])
    units = [Unit() for _ in range(4)]
    permits: list[tuple[int, AttemptPermit]] = []
    came: dict[int, int] = {}
    gone: list[int] = []

    def come(which: int) -> None:
        came[which] = len(gone)
        many = random.randrange(150, 400)
        permits.extend(
            (which, AttemptPermit(scheduler, (gate,), None, HeldPermits(units[which])))
            for _ in range(many)
        )

    come(0)
    for step in range(400):
        if random.random() < 0.05 and len(came) < 4:
            come(len(came))
        if rate is not None:
            clock.forward(1 / 8)
        for which, permit in [(which, permit) for which, permit in permits if permit.granted]:
            permits.remove((which, permit))
            gone.append(which)
            permit.leave()
            if rate is None:
                break
        waiting = {which for which, _ in permits}
        if step % 10 == 0:
            for a in waiting:
                for b in waiting:
                    since = max(came[a], came[b])
                    assert abs(gone[since:].count(a) - gone[since:].count(b)) <= AT_ONCE + 1


def served(
    scheduler: FairScheduler, gate: Gate, requests: list[str], units: dict[str, Unit]
) -> Iterator[str]:
    """Have them wait, and let one after the other have the gate; more may come meanwhile."""
    permits: list[tuple[str, AttemptPermit]] = []
    while requests or permits:
        permits += [
            (unit, AttemptPermit(scheduler, (gate,), None, HeldPermits(units[unit])))
            for unit in requests
        ]
        requests.clear()
        held = next(one for one in permits if one[1].granted)
        permits.remove(held)
        yield held[0]
        held[1].leave()


def test_a_closed_scheduler_calls_nothing_later():
    clock = Clock()
    scheduler, gate = FairScheduler(None, clock, clock.alarm), Gate(1)  # pyright: ignore[reportArgumentType]
    scheduler._judge_soon(gate, after=5)
    scheduler.close()
    scheduler._judge_soon(gate)
    assert {number for _, number, _ in clock.alarms} == clock.taken_back == {0}


def test_small_units_are_served_one_after_the_other():
    clock = Clock()
    scheduler, gate = FairScheduler(None, clock, clock.alarm), Gate(1)  # pyright: ignore[reportArgumentType]
    units = {unit: Unit() for unit in "abc"}
    requests = [unit for unit in "abc" for _ in range(AT_ONCE)]
    assert list(served(scheduler, gate, requests.copy(), units)) == requests


def test_a_large_unit_that_others_keep_joining_has_its_turns_all_the_same():
    clock = Clock()
    scheduler, gate = FairScheduler(None, clock, clock.alarm), Gate(1)  # pyright: ignore[reportArgumentType]
    units, requests, gone = {"large": Unit()}, ["large"] * 300, list[str]()
    for unit in served(scheduler, gate, requests, units):
        gone.append(unit)
        if len(gone) % 4 == 0:  # as many come as are served: there is never a pause
            units[str(len(gone))] = Unit()
            requests += [str(len(gone))] * 4
        if len(gone) == 800:
            break
    # There are ever more of them, since it takes some of the time that they would need.
    assert gone.count("large") > 50, gone.count("large")
    assert gone[-200:].count("large") > 5, gone[-200:].count("large")


def test_a_small_unit_need_not_wait_for_a_large_one():
    clock = Clock()
    scheduler, gate = FairScheduler(None, clock, clock.alarm), Gate(1)  # pyright: ignore[reportArgumentType]
    units, requests, gone = {"large": Unit(), "small": Unit()}, ["large"] * 300, list[str]()
    for unit in served(scheduler, gate, requests, units):
        gone.append(unit)
        if len(gone) == 100:
            requests += ["small"] * 4
    assert gone[100:106].count("small") == 4


# -- timers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("late", "reaches"), [(0.0, 1.0), (0.008, 1.0), (0.05, 100 / 140)])
def test_late_timers_cost_a_rate_nothing_up_to_a_hundredth_of_a_second(late: float, reaches: float):
    clock = Clock(late=late)
    scheduler = FairScheduler(None, clock, clock.alarm)  # pyright: ignore[reportArgumentType]
    part = Limits(rate=Rate(10)).parts[0]
    gate = Gate(None, part)
    permits = [AttemptPermit(scheduler, (gate,)) for _ in range(1001)]
    clock.forward(100 + late)
    started = sum(permit.granted for permit in permits)
    assert started - 1 == pytest.approx(1000 * reaches, rel=0.01)
    assert CREDIT == 0.01


# -- the memory of a meter -------------------------------------------------------------------------


def test_a_meter_remembers_only_so_much_and_then_gives_back_too_late():
    meter = Meter(1.0, 10_000)
    for n in range(1000):
        meter.take(n / 1000, 1)
    assert len(meter._marks) == MARKS  # pyright: ignore[reportPrivateUsage]
    before = meter.tat
    meter.correct(-1, 0.001)
    assert before - 1 <= meter.tat <= before
    meter.take(2000, 1)
    assert len(meter._marks) == 1  # pyright: ignore[reportPrivateUsage]
    meter.correct(-1, 0.999)  # which is long gone: it makes no room now
    assert meter.tat == 2001


def test_units_that_are_given_back_leave_those_that_passed_in_between():
    meter = Meter(10.0, 5)
    for now in range(3):
        meter.take(now, 1)
    meter.give_back(1, 2)
    meter.give_back(1, 0)
    assert meter.tat == 11, "only the unit that passed at 1 is left"
