"""Accounts of budgets: which of them may be dropped, and what a new window leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal._limits.accounts import Account, Accounts, Level, Purse, Terms
from shoal.rates import MemoryRates


class Payer:
    def __init__(self, above: Payer | None = None) -> None:
        self.above = above


def account(**terms: Any) -> Account:
    return Account(Terms(10.0, "USD", worst=1.0, **terms), "")


USES: dict[str, Callable[[Account], object]] = {
    "it is held": lambda one: one.set_aside(1.0),
    "it is held by an attempt that may cost nothing": lambda one: one.set_aside(0.0),
    "requests may wait for it": lambda one: one.gates.add("a gate"),
    "it was spent": lambda one: one.spend(0.5, "act"),
    "all but a little was given back": lambda one: (one.spend(5, "a"), one.spend(-4.9, "a")),
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_an_account_in_use_is_not_dropped(use: Callable[[Account], object]):
    one = account()
    assert one.is_new(0.0)
    use(one)
    assert not one.is_new(0.0)


def test_an_account_is_dropped_when_its_window_is_over_or_its_grant_is_returned():
    one = account(per=60.0)
    one.roll(5.0)
    one.spend(1.0, "act")
    assert not one.is_new(64.5)
    assert one.is_new(65.0)
    one = account(backend=MemoryRates())
    assert one.is_new(0.0)
    assert one.grant is not None
    one.grant.units = 0.5
    assert not one.is_new(0.0), "these units are to be returned"


@pytest.mark.parametrize("worst", [0.0, 1.0])
@pytest.mark.parametrize("ends", ["charged", "settled", "given back"])
def test_an_attempt_that_is_over_holds_nothing(worst: float, ends: str):
    """-0.0 is not below 0: an attempt that was free counted twice, and kept its account."""
    accounts = Accounts()
    one = accounts.of(Terms(10.0, "USD", worst=worst), None)
    stake = Purse(one, is_of_run=True).stake(worst, accounts, 0.0)
    if ends == "given back":
        stake.give_back()
    else:
        if ends == "charged":
            stake.charge(0.0)
        assert stake.settle()
    assert one.aside == 0
    assert one.is_new(0.0) is (one.spent == 0)


def test_levels_say_how_much_there_is_unless_other_runs_spend_it_too():
    accounts = Accounts()
    own, shared = Terms(10.0, "USD", worst=1.0), Terms(50.0, "tokens", worst=5.0)
    accounts.restore({("tokens", "before"): Level("tokens", "before", "tokens", 2.0, 1.0, {})})
    for key in ("a", "b"):
        accounts.of(own, key).spend(2.0, "act")
        accounts.mirror(shared, key).set_aside(5.0)
    assert accounts.levels() == {
        "USD": ("USD", 4, 0, 20),
        "tokens of the runtime": ("tokens", 0, 10, None),
        "tokens": ("tokens", 3, 0, None),
    }
    assert accounts.spent == {"USD": 4, "tokens": 3, "tokens of the runtime": 0}
    assert accounts.spent_by("act") == {"USD": 4, "tokens": 0}


def test_a_window_begins_with_nothing_held_by_parents_that_wait():
    """Their money counts in the window in which they began."""
    one, parent = account(per=60.0), Payer()
    one.roll(0.0)
    of_parent = Purse(one, is_of_run=True).stake(4.0, None, 0.0)
    of_parent.rest(parent)
    assert one.is_resting
    one.spend(1.0, "act")
    now = Purse(one, is_of_run=True).stake(3.0, None, 60.0)
    assert not one.is_resting
    assert not one.by
    assert (one.aside, one.spent, one.epoch) == (3, 0, 2)
    assert not one.is_hopeless(8.0, Payer(parent), lambda _: False, 61.0), "the 3 will be settled"
    of_parent.wake()
    of_parent.charge(2.0)
    assert (one.aside, one.spent) == (3, 0)
    assert now.settle()
    assert (one.aside, one.spent) == (0, 3)
    assert one.is_new(120.0)
