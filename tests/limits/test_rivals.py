"""Requests that could start wait for nobody's timer: turns taken elsewhere, costs, budgets, holds.

The programs of ``test_shares`` have slots and rates. Those here have budgets too, runs that are
held, limits that are paused and limits that change, all of which change what is first at a gate.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from shoal import Budget, Limits, Rate
from shoal._limits.accounts import Account, Purse
from shoal._limits.flows import AT_ONCE, Flow, Priority, Share
from shoal._limits.gates import Gate
from shoal._limits.meters import CREDIT
from shoal._limits.permits import AttemptPermit, HeldPermits
from shoal._limits.scheduler import FairScheduler
from tests.limits.test_scheduler import Clock, Modelled, Unit
from tests.limits.test_shares import SharedProgram, scheduler_of

TOKENS = Limits(rate=Rate(8, per=1, burst=8), cost=lambda state: 1.0).parts[0]
MONEY = Budget(8, "EUR", worst=1).parts[0]


def budget() -> Gate:
    assert MONEY.terms is not None
    gate = Gate(None, MONEY)
    gate.purse = Purse(Account(MONEY.terms, ""), is_of_run=False)
    gate.purse.account.gates.add(gate)
    return gate


class PricedProgram(SharedProgram):
    """With a budget; runs are held and released, limits are paused and changed."""

    has_flows = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        if not self.has_flows:
            self.units = [Unit() for _ in range(5)]
        self.money = len(self.gates)
        self.gates.append(budget())
        self.spent = 0.0
        self.shut: set[int] = set()

    def flow_of(self, unit: Unit) -> Flow | None:
        return super().flow_of(unit) if self.has_flows else None

    def turn(self, one: Modelled) -> Any:
        if self.has_flows:
            return super().turn(one)
        return not one.permit.is_returning, one.due, one.number

    def rank(self, one: Modelled) -> Any:
        return one.number if self.has_flows else (not one.permit.is_returning, one.due, one.number)

    def run(self) -> None:
        does = [self.come] * 5 + [self.leave] * 2
        does += [self.cancel, self.charge, self.pause, self.hold, self.release]
        does += [self.shut_one, self.open_one, self.resize, self.refill]
        for _ in range(self.random.randrange(20, 120)):
            if self.random.random() < 0.3:
                self.forward(self.random.randrange(1, 24))
            else:
                self.random.choice(does)()
                self.settle()
        while self.waiting or self.running:
            for unit in self.units:
                self.scheduler.release(unit)
            for n in list(self.shut):
                self.shut.discard(n)
                self.set_shut(n)
            self.refill()
            self.settle()
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
        costs = [float(self.random.choice([1, 1, 2, 8])) if n >= 3 else 1.0 for n in needed]
        unit = self.random.choice(self.units)
        gates = tuple([self.gates[n] for n in needed])
        holder = HeldPermits(unit)
        holder.returns = self.random.random() < 0.1
        permit = AttemptPermit(self.scheduler, gates, tuple(costs), holder, flow=self.flow_of(unit))
        one = Modelled(permit, needed, costs, next(self.arrivals))
        if permit.is_returning:
            one.unit = object()  # type: ignore[assignment] # a stand-in: it goes before its equals
        self.waiting.append(one)

    def leave(self) -> None:
        if self.running:
            one = self.running.pop(self.random.randrange(len(self.running)))
            actual = min(one.costs.get(self.money, 0.0), self.random.choice([0.0, 1.0, 8.0]))
            for stake in one.permit.stakes:
                stake.charge(actual)
            self.spent += actual
            one.permit.leave()

    def charge(self) -> None:
        # Charges count at budgets too; `leave` says what an attempt has cost there.
        running = self.running
        self.running = [one for one in running if self.money not in one.needed]
        super().charge()
        self.running = running

    def hold(self) -> None:
        self.scheduler.hold(self.random.choice(self.units))

    def release(self) -> None:
        self.scheduler.release(self.random.choice(self.units))

    def shut_one(self) -> None:
        n = self.random.randrange(len(self.gates))
        self.shut.add(n)
        self.set_shut(n)

    def open_one(self) -> None:
        if self.shut:
            self.set_shut(self.shut.pop())

    def set_shut(self, n: int) -> None:
        self.gates[n].is_shut = n in self.shut
        self.scheduler.serve(self.gates[n])

    def resize(self) -> None:
        gate = self.gates[self.random.choice([0, 3])]
        gate.resize(self.random.choice([1, 2, 3, 5]))
        self.scheduler.serve(gate)

    def refill(self) -> None:
        purse = self.gates[self.money].purse
        assert purse is not None
        purse.account.spend(-self.spent, "")
        self.spent = 0.0
        self.scheduler.serve(self.gates[self.money])

    # -- what must hold

    def opens_at(self, n: int, cost: float) -> float:
        if n in self.shut:
            return math.inf
        if n != self.money:
            return super().opens_at(n, cost)
        aside = sum(one.costs[n] for one in self.running if n in one.needed)
        return -math.inf if self.spent + aside + cost <= 8 else math.inf

    def settle(self) -> None:
        self.clock.forward(0.0)
        refused = [one for one in self.waiting if one.permit.refusal is not None]
        for one in refused:
            assert self.spent + one.costs[self.money] > 8, "it is refused, and would have fit"
            one.permit.cancel()
            self.waiting.remove(one)
        held = [one for one in self.waiting if self.is_held(one) and not one.permit.granted]
        rest = [one for one in self.waiting if one not in held]
        self.waiting = rest  # those that are held wait for nothing else, and nobody for them
        super().settle()
        self.waiting += held

    def is_held(self, one: Modelled) -> bool:
        return one.permit.unit is not None and one.permit.unit.held_at is not None


class PlainProgram(PricedProgram):
    """Without priorities and shares: there is one flow."""

    has_flows = False


@pytest.mark.parametrize(
    "seeds", [range(15), pytest.param(range(15, 2000), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", [PricedProgram, PlainProgram])
def test_the_scheduler_grants_what_the_model_grants(kind: type[PricedProgram], seeds: range):
    for seed in seeds:
        kind(seed).run()


# -- one at a time ---------------------------------------------------------------------------------


class Desk:
    """A scheduler, two shares, and requests that are made in their names."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.scheduler: FairScheduler = scheduler_of(self.clock)
        self.slot = Gate(1)
        self.tokens = Gate(None, TOKENS)
        self.money = budget()

    def request(
        self,
        *needed: Gate,
        cost: float = 1.0,
        share: object = None,
        unit: Unit | None = None,
        priority: Priority = "normal",
    ) -> AttemptPermit:
        unit = unit or Unit(priority)
        shares = [] if share is None else [Share("limit", share, 1.0)]
        flow = self.scheduler.flow_of(unit, shares)
        costs = tuple([1.0 if gate is self.slot else cost for gate in needed])
        return AttemptPermit(self.scheduler, needed, costs, HeldPermits(unit), flow=flow)


@pytest.mark.parametrize("what", ["tokens", "money"])
def test_a_turn_elsewhere_lets_go_ahead_what_is_open_to_it(what: str):
    """At a gate that is shut to many units, a request for one of them is the first one by it."""
    desk = Desk()
    gate = desk.tokens if what == "tokens" else desk.money
    held = [desk.request(desk.slot, share="a"), desk.request(gate, cost=4)]
    elsewhere = desk.request(desk.slot, share="a")
    much = desk.request(gate, cost=8, share="a")
    little = desk.request(gate, cost=1, share="b")
    assert not little.granted  # first come, first served
    assert not much.granted
    held[0].leave()
    assert elsewhere.granted
    assert little.granted  # and not only once there is room for the other one
    assert not much.granted
    for permit in (*held, elsewhere, little, much):
        permit.cancel()
    assert not desk.scheduler._rivals._by_flow  # pyright: ignore[reportPrivateUsage]


def test_so_do_turns_of_all_that_are_before_it():
    """The next one is shut out as well, until its flow has had its turn too."""
    desk = Desk()
    held = [desk.request(desk.slot), desk.request(desk.tokens, cost=4)]
    elsewhere = [desk.request(desk.slot, share=share) for share in "ab"]
    much = [desk.request(desk.tokens, cost=8, share=share) for share in "ab"]
    little = desk.request(desk.tokens, cost=1, share="c")
    held[0].leave()
    assert elsewhere[0].granted
    assert not little.granted  # the other one is the first one now
    elsewhere[0].leave()
    assert elsewhere[1].granted
    assert little.granted
    assert not any(permit.granted for permit in much)


def test_so_does_a_turn_that_was_taken_without_a_wait():
    desk = Desk()
    taken = desk.request(desk.tokens, cost=4)
    much = desk.request(desk.tokens, cost=8, share="a")
    little = desk.request(desk.tokens, cost=1, share="b")
    assert not little.granted
    assert not much.granted
    desk.request(desk.slot, share="a")
    assert little.granted
    assert not much.granted
    assert taken.granted


def test_what_fits_into_a_budget_need_not_wait_for_what_does_not():
    """A run that comes has its first turn before the ninth of another one."""
    desk, large = Desk(), Unit()
    first = desk.request(desk.money, cost=8)
    many = [desk.request(desk.money, cost=6, unit=large) for _ in range(12)]
    first.stakes[0].charge(0.0)
    first.leave()
    assert many[0].granted
    for permit in many[1:9]:
        permit.cancel()
    small = desk.request(desk.money, cost=2)
    desk.clock.forward(0.0)
    assert small.granted


def test_what_comes_to_an_open_rate_has_no_credit_for_a_late_timer():
    """It hasn't waited for one: else the rate lets more pass than it promises."""
    clock, large = Clock(), Unit()
    scheduler = scheduler_of(clock)
    gate = Gate(None, Limits(rate=Rate(1), cost=lambda state: 1.0).parts[0])

    def request(cost: float, unit: Unit) -> AttemptPermit:
        return AttemptPermit(scheduler, (gate,), (cost,), HeldPermits(unit))

    request(1, large)
    much = [request(2, large) for _ in range(AT_ONCE + 1)]
    for permit in much[:-1]:
        permit.cancel()  # so the turn of the last one is a later one
    clock.forward(1 + CREDIT / 2)
    little = request(1, Unit())
    clock.forward(0.0)
    assert little.granted
    assert gate.meter is not None
    assert gate.meter.opens_at(1) == clock.now + 1


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_a_request_of_many_units_is_not_passed_for_ever(priority: Priority):
    """By normal runs, which come one after the other and never wait."""
    desk = Desk()
    desk.request(desk.tokens, cost=8)
    much = desk.request(desk.tokens, cost=8, priority=priority)
    passed = 0
    while not much.granted:
        desk.clock.forward(1 / 8)
        little = desk.request(desk.tokens, cost=1)
        passed += little.granted
        little.leave()
        assert passed < 200, "others pass it as long as they come"


def test_nor_by_ever_new_shares():
    desk, held = Desk(), list[AttemptPermit]()
    waits = [desk.request(desk.slot, share="b") for _ in range(2)]
    for _ in range(9):  # turns that it takes while another share waits
        held.append(desk.request(desk.tokens, cost=1, share="a"))
    much = desk.request(desk.tokens, cost=8, share="a")
    assert not much.granted
    for passed in range(99):
        desk.clock.forward(1 / 8)
        desk.request(desk.tokens, cost=1, share=passed).leave()
        if much.granted:
            break
    assert much.granted, "others pass it as long as they come"
    for permit in (*waits, *held, much):
        permit.leave()


def test_a_request_of_a_held_run_keeps_no_other_waiting():
    desk, held = Desk(), Unit()
    for gate in (desk.tokens, desk.money):
        taken = desk.request(gate, cost=4)
        much = desk.request(gate, cost=8, unit=held)
        little = desk.request(gate, cost=1)
        assert not little.granted
        desk.scheduler.hold(held)
        assert little.granted
        next_one = desk.request(gate, cost=1)
        assert next_one.granted
        desk.scheduler.release(held)
        assert not much.granted
        for permit in (taken, little, next_one):
            permit.leave()
        much.cancel()


def test_a_budget_that_is_paused_refuses_nothing():
    """By a person, or until some time: the money is there, and is not what it waits for."""
    desk = Desk()
    for attribute, value in (("is_shut", True), ("paused_until", 5.0)):
        setattr(desk.money, attribute, value)
        permit = desk.request(desk.money, cost=2)
        desk.clock.forward(1.0)
        assert permit.refusal is None
        assert not permit.granted
        setattr(desk.money, attribute, type(value)())
        desk.scheduler.serve(desk.money)
        assert permit.granted
        permit.stakes[0].charge(0.0)
        permit.leave()
