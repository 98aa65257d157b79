"""Accounts of budgets: what was spent, and what is set aside for attempts that have begun.

Invariants:
- What is set aside and what is spent are at most the amount, at any moment, unless an attempt says
  that it has cost more than its worst case.
- Each attempt is counted once: its worst case while it runs, and then what it has cost. An attempt
  that never began counts nothing.
- A request for money waits only as long as something under way could make room for it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard, final

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import BadResult, BudgetExceeded, DefinitionError, brief
from shoal._state.digest import digest

from .shared_budgets import BudgetBackend, Grant
from .shared_rates import KEPT_HERE, is_plain

OnEmpty = Literal["fail", "stop", "ask"]
"""What happens to an attempt that doesn't fit into a budget."""
Worst = float | Callable[[Any], float]
"""The most that an attempt may cost; a function is given the state that it would start from."""
ROUNDING = 1e-9
"""Tolerated above an amount, as a share of it: ten times 0.1 add up to slightly less than 1."""
SHOWN = 3
"""Actions that an error names, those that have spent most."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What a ``Budget`` says. By identity: equal budgets are not the same."""

    amount: float
    unit: str
    worst: Worst
    per: float | None = None
    on_empty: OnEmpty = "fail"
    name: str | None = None
    backend: BudgetBackend | None = None
    # Of the `Budget` that it was written as; kept when the amount is changed while it is in use.
    identity: object = field(default_factory=object)
    # Instead of `worst`, for attempts that come by the place where this stands.
    here: Worst | None = None

    @property
    def label(self) -> str:
        """The name under which a run records it."""
        return self.unit if self.name is None else self.name

    def __repr__(self) -> str:
        worst = self.worst if self.here is None else self.here
        given = [f"{self.amount:g}", repr(self.unit), f"worst={name_of(worst)}"]
        if self.per is not None:
            given.append(f"per={self.per:g}")
        if self.on_empty != "fail":
            given.append(f"on_empty={self.on_empty!r}")
        if self.name is not None:
            given.append(f"name={self.name!r}")
        if self.backend is not None:
            given.append(f"backend={self.backend!r}")
        return ", ".join(given)


def name_of(value: object) -> str:
    """Return how a limit shows one of its arguments.

    A function by its own name, without those of the functions around it; see
    test_limits_by_a_local_function_are_shown_by_its_own_name.
    """
    called: str | None = getattr(value, "__qualname__", None)
    return repr(value) if called is None else called.rpartition("<locals>.")[2]


class Level(NamedTuple):
    """What was spent of a budget, as a run records it."""

    budget: str
    """The budget's name, by default its unit."""
    key: str
    """The key that it is counted for; empty without ``by=``."""
    unit: str
    spent: float
    aside: float
    """What is set aside for attempts under way. If the process dies now, it counts as spent."""
    by: Mapping[str, float]
    """What was spent, by the names of actions."""


class Payer(Protocol):
    """The permits of a run, which say where it stands in the tree."""

    @property
    def above(self) -> Payer | None:
        """The permits of the run that started this one, if that is a child of a fan-out."""
        ...


@final
class Stake:
    """What one attempt costs at one account: its worst case, until it says more."""

    __slots__ = (
        "_epoch",
        "_mirror",
        "_rests_for",
        "account",
        "cost",
        "is_charged",
        "is_over",
        "is_worst",
        "who",
    )

    def __init__(self, account: Account, cost: float, mirror: Account | None) -> None:
        """Set the worst case aside.

        Args:
            account: The account that limits it.
            cost: The worst case.
            mirror: Counts the same for the run, if the account is that of a runtime.
        """
        self.account: Account = account
        self.cost: float = cost
        self._mirror: Account | None = mirror
        self._epoch: int = account.epoch
        self._rests_for: Payer | None = None
        self.is_charged: bool = False
        self.is_worst: bool = False
        """Whether the attempt has ended without saying what it has cost."""
        self.is_over: bool = False
        # Set before the attempt begins, so before it can charge anything.
        self.who: str = ""
        """The name of the action that spends it."""
        for one in self._accounts():
            one.set_aside(cost)

    def _accounts(self) -> Iterator[Account]:
        # What began in a window that is over counts in that one, which nobody asks any more.
        if self._epoch == self.account.epoch:
            yield self.account
        if self._mirror is not None:
            yield self._mirror

    def charge(self, actual: float) -> None:
        """Replace the worst case, or an earlier charge, by what the attempt has cost."""
        if self.is_over:
            return
        self.wake()
        for one in self._accounts():
            if not self.is_charged:
                one.free(self.cost)
                one.spend(actual, self.who)
            else:
                one.spend(actual - self.cost, self.who)
        self.cost, self.is_charged = actual, True

    def settle(self) -> bool:
        """Count as spent what the attempt has cost; return False if it was."""
        if self.is_over:
            return False
        if not self.is_charged:
            self.charge(self.cost)
            self.is_worst = True
        self.is_over = True
        return True

    def give_back(self) -> None:
        """Count nothing: the attempt never began."""
        if not self.is_over:
            self.wake()
            self.is_over = True
            for one in self._accounts():
                if self.is_charged:
                    one.spend(-self.cost, self.who)
                else:
                    one.free(self.cost)

    def rest(self, payer: Payer | None) -> None:
        """Note that the attempt waits for its children: it settles nothing before they end."""
        if payer is not None and not (self.is_charged or self.is_over):
            self._rests_for = payer
            self.account.resting[payer] += self.cost

    def wake(self) -> None:
        """Note that the attempt itself runs again."""
        payer, self._rests_for = self._rests_for, None
        if payer is not None:
            self.account.resting[payer] -= self.cost
            if self.account.resting[payer] <= ROUNDING * max(1.0, self.cost):
                del self.account.resting[payer]

    def __repr__(self) -> str:
        return f"<Stake of {self.cost:g} at {self.account!r}>"


@final
class Purse:
    """The account of one gate, and whose it is."""

    __slots__ = ("account", "is_of_run")

    def __init__(self, account: Account, *, is_of_run: bool) -> None:
        """Create the purse of a gate.

        Args:
            account: The account.
            is_of_run: Whether it belongs to one run, and not to all runs of a runtime.
        """
        self.account: Account = account
        self.is_of_run: bool = is_of_run

    def stake(self, cost: float, accounts: Accounts | None, now: float) -> Stake:
        """Set ``cost`` aside for an attempt of a run that has ``accounts``."""
        account = self.account
        account.roll(now)
        mirror: Account | None = None
        if accounts is not None and not self.is_of_run:
            mirror = accounts.mirror(account.terms, account.key)
        return Stake(account, cost, mirror)


@final
class Account:
    """What was spent and set aside of one budget, for one key of it."""

    __slots__ = (
        "_holders",
        "_owner",
        "aside",
        "by",
        "epoch",
        "gates",
        "grant",
        "is_open",
        "key",
        "refused",
        "resting",
        "since",
        "spent",
        "terms",
    )

    def __init__(self, terms: Terms, key: str, owner: Accounts | None = None) -> None:
        """Open an account with nothing spent.

        Args:
            terms: What the budget says.
            key: The key, as text.
            owner: The accounts of the run, if it belongs to one.
        """
        self.terms: Terms = terms  # replaced when the limits are changed
        self.key: str = key
        self._owner: Accounts | None = owner
        self.spent: float = 0.0
        self.aside: float = 0.0
        self._holders: int = 0  # stakes that are set aside
        self.resting: dict[Payer, float] = defaultdict(float)
        """Of ``aside``, what attempts hold that wait for their children, by their permits."""
        self.by: dict[str, float] = defaultdict(float)
        """What was spent, by the names of actions."""
        self.since: float = -math.inf
        """When the present window began."""
        self.epoch: int = 0
        """The number of the present window."""
        self.refused: int = 0
        """Requests that did not fit."""
        # `Any`, because gates are above. Those at which requests wait for this account.
        self.gates: set[Any] = set()
        self.is_open: bool = KEPT_HERE.get() is not None and terms.on_empty != "stop"
        """Whether it refuses nothing: in a replay, where what was refused is on record."""
        self.grant: Grant | None = None
        """What this process was granted, if several share the budget."""
        if terms.backend is not None and not self.is_open:
            backend: BudgetBackend = KEPT_HERE.get() or terms.backend
            self.grant = Grant(backend, f"{terms.label}:{key}" if key else terms.label)

    # -- how much there is ----------------------------------------------------------------------

    @property
    def amount(self) -> float:
        """The amount, with what people have added."""
        return self.terms.amount + self.added

    @property
    def added(self) -> float:
        """What people have added, by their answers."""
        if self._owner is None or self.terms.on_empty != "ask":
            return 0.0
        return math.fsum(self._owner.added(self))

    @property
    def left(self) -> float:
        """What is neither spent nor set aside."""
        return self.amount - self.spent - self.aside

    def fits(self, cost: float, held: float | None = None) -> bool:
        """Return whether ``cost`` fits beside what is spent and held: by default, all set aside."""
        if cost <= 0 or self.is_open:
            return True  # also where more was spent than there is: what is free is never refused
        if self.grant is not None:
            return cost <= self.grant.units + ROUNDING * max(1.0, cost)
        amount, held = self.amount, self.aside if held is None else held
        return self.spent + held + cost <= amount + ROUNDING * max(1.0, amount)

    def opens_at(self, cost: float) -> float:
        """Return when ``cost`` may be set aside: -inf if now, inf if time alone changes nothing."""
        if self.fits(cost):
            return -math.inf
        per = None if self.grant is not None else self.terms.per
        return math.inf if per is None or cost > self.amount else self.since + per

    def roll(self, now: float) -> None:
        """Begin a new window if the present one is over, or none has begun."""
        per = self.terms.per
        # A backend has a clock of its own.
        if self.grant is None and per is not None and now >= self.since + per:
            self.since = now
            self.begin_window()

    def begin_window(self) -> None:
        """Forget what was spent: what began before counts in the window that is over."""
        self.epoch += 1
        self.spent = self.aside = 0.0
        self._holders = 0
        self.resting.clear()
        self.by.clear()

    @property
    def is_resting(self) -> bool:
        """Whether attempts that wait for their children hold some of it."""
        return bool(self.resting)

    def is_new(self, now: float) -> bool:
        """Return whether a new account would behave the same."""
        per = self.terms.per
        if self._holders or self.gates or (self.grant is not None and self.grant.units):
            return False
        return self.spent == 0 or (per is not None and now >= self.since + per)

    # -- changes --------------------------------------------------------------------------------

    def set_aside(self, cost: float) -> None:
        """Set so much aside for one attempt more."""
        self._hold(cost, 1)

    def free(self, cost: float) -> None:
        """Set so much less aside, for one attempt less."""
        self._hold(-cost, -1)

    def _hold(self, cost: float, attempts: int) -> None:
        if self.grant is not None:
            self.grant.units -= cost
        # Not by the sign of the cost, which may be 0: see
        # test_an_attempt_that_is_over_holds_nothing.
        self._holders += attempts
        # Exactly 0 when nothing is held, so that rounding errors don't add up.
        self.aside = max(0.0, self.aside + cost) if self._holders > 0 else 0.0
        self._changed()

    def spend(self, actual: float, who: str) -> None:
        """Count so much more as spent, by the action ``who``."""
        if self.grant is not None:
            self.grant.units -= actual
        self.spent = max(0.0, self.spent + actual)
        # With it, because a record that is made between two changes would keep half of them; see
        # test_a_record_says_by_whom_all_of_it_was_spent.
        self.by[who] += actual
        self._changed()

    def restore(self, level: Level) -> None:
        """Continue from what was recorded. What was set aside then was never settled."""
        self.spent = level.spent + level.aside
        self.by.update(level.by)
        if level.aside:
            self.by[INTERRUPTED] += level.aside

    def _changed(self) -> None:
        if self._owner is not None:
            self._owner.note(self)

    # -- what doesn't fit -----------------------------------------------------------------------

    def is_hopeless(
        self,
        cost: float,
        payer: Payer | None,
        is_busy: Callable[[Collection[Payer]], bool],
        now: float,
    ) -> bool:
        """Return whether nothing under way could make room for ``cost``.

        Args:
            cost: What a request needs; it doesn't fit now.
            payer: The permits of the run that makes the request.
            is_busy: Returns whether anything is at work that is no such request, or one of some
                attempts that hold money inside of their own fan-outs.
            now: The time.
        """
        if self.grant is not None:
            if cost > self.terms.amount:
                return True
            if not self.grant.is_denied(cost, now):
                return False  # the backend is asked first
        elif not self.fits(cost, 0.0):
            return True
        # Attempts around it wait for its end, so they settle nothing before that.
        above, held = payer, 0.0
        while above is not None:
            held += self.resting.get(above, 0.0)
            above = above.above
        if self.grant is None and not self.fits(cost, held):
            return True
        resting = math.fsum(self.resting.values())
        if self.aside - resting > ROUNDING * max(1.0, self.aside):
            return False
        # All that is set aside is held by attempts that wait for children. If every one of those
        # waits for this money, none of them will ever have it.
        return not self.resting or not is_busy(self.resting.keys())

    def exceeded(self, cost: float) -> BudgetExceeded:
        """Return the error of a request that doesn't fit."""
        self.refused += 1
        terms, amount = self.terms, self.amount
        key = f" of key {self.key}" if self.key else ""
        most = sorted(self.by.items(), key=lambda share: -share[1])[:SHOWN]
        shares = [f"{name} {share:g}" for name, share in most if share]
        if len(self.by) > SHOWN:
            shares.append(f"{len(self.by) - SHOWN} others")
        whom = f" (by {', '.join(shares)})" if shares else ""
        aside = f", and {self.aside:g} set aside for attempts under way" if self.aside else ""
        spent, left = f"{self.spent:g}", self.left
        if self.grant is not None:
            spent, left = f"{self.grant.used:g} in all processes", amount - self.grant.used
        alone = ""
        if cost > amount:
            alone = "; no attempt of that size fits at all: give more, or a smaller worst="
        msg = (
            f"budget {terms.label!r}{key}: an attempt may cost {cost:g} {terms.unit}, and "
            f"{max(0.0, left):g} of {amount:g} is left; {spent} is spent{whom}{aside}"
            f"{alone}"
        )
        return BudgetExceeded(
            msg,
            budget=terms.label,
            key=self.key,
            unit=terms.unit,
            amount=amount,
            spent=self.spent if self.grant is None else self.grant.used,
            aside=self.aside,
            cost=cost,
            by=dict(self.by),
            on_empty=terms.on_empty,
        )

    @property
    def level(self) -> Level:
        """What a run records of it."""
        terms = self.terms
        return Level(terms.label, self.key, terms.unit, self.spent, self.aside, dict(self.by))

    def __repr__(self) -> str:
        return (
            f"<Account {self.terms.label!r}: {self.spent:g} spent and {self.aside:g} set aside of "
            f"{self.amount:g} {self.terms.unit}>"
        )


INTERRUPTED = "interrupted attempts"
"""Stands for actions in ``Account.by`` whose attempts an earlier process has not settled."""


def _never(_payers: Collection[Payer]) -> bool:
    """Return False: nothing is known to be at work."""
    return False


@final
class Accounts:
    """The accounts of one run and all its descendants, or of one budget of a runtime."""

    __slots__ = (
        "_answers",
        "_by_name",
        "_changed",
        "_mirrors",
        "_recorded",
        "is_busy",
        "keeps",
        "run_id",
        "version",
    )

    def __init__(
        self,
        run_id: str = "",
        answers: Mapping[str, object] | None = None,
        is_busy: Callable[[Collection[Payer]], bool] = _never,
    ) -> None:
        """Begin with nothing spent.

        Args:
            run_id: The root run's id.
            answers: The answers that people have given, by the ids of the questions; it grows.
            is_busy: Returns whether a child of the run is at work, or one of the attempts that it
                is given, which are inside of their own fan-outs.
        """
        self.run_id: str = run_id
        self._answers: Mapping[str, object] = {} if answers is None else answers
        self.is_busy: Callable[[Collection[Payer]], bool] = is_busy
        self._by_name: dict[tuple[str, str], Account] = {}
        self._mirrors: dict[tuple[str, str], Account] = {}
        self._recorded: dict[tuple[str, str], Level] = {}
        self.keeps: bool = False
        """Whether changes are to be recorded."""
        self._changed: dict[tuple[str, str], Account] = {}
        self.version: int = 0
        """Counts the changes that are to be recorded."""

    def of(self, terms: Terms, key: Hashable) -> Account:
        """Return the account of a budget for a key, opening it on first use.

        Raises:
            BadResult: The key is no plain value, so that no record could name it.
            DefinitionError: Another budget of the run goes by this name.
        """
        name = terms.label, key_text(terms.label, key)
        account = self._by_name.get(name)
        if account is None:
            account = self._by_name[name] = self._open(terms, name)
        elif account.terms.identity is terms.identity:
            account.terms = terms  # its amount may have been changed
        elif not _is_same(account.terms, terms):
            msg = (
                f"two budgets of one run are called {terms.label!r}, Budget({account.terms!r}) and "
                f"Budget({terms!r}), and a run records what is spent by the name: give each a "
                f"name=..., or place one object wherever it counts"
            )
            raise DefinitionError(msg)
        return account

    def mirror(self, terms: Terms, key: str) -> Account:
        """Return the account that counts what this run spends of a runtime's budget."""
        # A name of its own: the run may have a budget of the same name, which counts less.
        name = f"{terms.label} of the runtime", key
        account = self._mirrors.get(name)
        if account is None:
            terms = replace(terms, name=name[0], per=None, on_empty="fail", backend=None)
            account = self._mirrors[name] = self._open(terms, name)
        return account

    def _open(self, terms: Terms, name: tuple[str, str]) -> Account:
        account = Account(terms, name[1], self)
        level = self._recorded.pop(name, None)
        if level is not None:
            account.restore(level)
        return account

    def find(self, budget: str, key: str) -> Account | None:
        """Return an account of the run by the name of its budget; None if it has none."""
        return self._by_name.get((budget, key))

    def all(self) -> Collection[Account]:
        """Return the accounts that limit."""
        return self._by_name.values()

    def forget_idle(self, now: float) -> None:
        """Drop the accounts of a runtime for which new ones would behave the same."""
        self._by_name = {
            name: account for name, account in self._by_name.items() if not account.is_new(now)
        }

    # -- the record -----------------------------------------------------------------------------

    def restore(self, levels: Mapping[tuple[str, str], Level]) -> None:
        """Continue from what an earlier execution has recorded."""
        self._recorded = dict(levels)

    def note(self, account: Account) -> None:
        """Note that an account has changed."""
        if self.keeps:
            self.version += 1
            self._changed[account.terms.label, account.key] = account

    def take_changed(self) -> Collection[Account]:
        """Return the accounts that have changed since the last call."""
        changed, self._changed = self._changed, {}
        return changed.values()

    @property
    def spent(self) -> Mapping[str, float]:
        """What the run has spent of each budget, by its name."""
        if not (self._recorded or self._by_name or self._mirrors):  # as of most runs
            return {}
        found: dict[str, float] = defaultdict(float)
        for level in self._recorded.values():
            found[level.budget] += level.spent + level.aside
        for account in (*self._by_name.values(), *self._mirrors.values()):
            found[account.terms.label] += account.spent
        # Without the rounding errors of adding up.
        return {name: round(spent, 12) for name, spent in found.items()}

    def spent_by(self, action: str) -> Mapping[str, float]:
        """Return what the attempts of an action have spent, by units.

        Where two budgets count the same cost, it is what the larger one counts.
        """
        budgets: dict[tuple[str, str], float] = defaultdict(float)
        for account in (*self._by_name.values(), *self._mirrors.values()):
            budgets[account.terms.label, account.terms.unit] += account.by.get(action, 0.0)
        units: dict[str, float] = {}
        for (_, unit), spent in budgets.items():
            units[unit] = max(units.get(unit, 0.0), spent)
        return units

    def levels(self) -> Mapping[str, tuple[str, float, float, float | None]]:
        """Return the unit, what is spent, set aside and there in all, by the name of each budget.

        How much there is in all is None where other runs spend it too.
        """
        found: dict[str, tuple[str, float, float, float | None]] = {}
        for accounts, is_whole in ((self._by_name, True), (self._mirrors, False)):
            for account in accounts.values():
                name = account.terms.label
                unit, spent, aside, amount = found.get(name, (account.terms.unit, 0.0, 0.0, 0.0))
                whole = None if amount is None or not is_whole else amount + account.amount
                found[name] = unit, spent + account.spent, aside + account.aside, whole
        for level in self._recorded.values():
            if level.budget not in found:
                found[level.budget] = level.unit, level.spent + level.aside, 0.0, None
        return found

    # -- questions ------------------------------------------------------------------------------

    def added(self, account: Account) -> Iterator[float]:
        """Yield what people have added to an account, answer by answer."""
        number = 0
        while (id_ := self.question_id(account, number)) in self._answers:
            yield answer_of(self._answers[id_])
            number += 1

    def asked(self, account: Account) -> int:
        """Return how many questions for more were answered."""
        return len(list(self.added(account)))

    def is_denied(self, account: Account) -> bool:
        """Return whether the last answer was that there is no more."""
        given = list(self.added(account))
        return bool(given) and given[-1] <= 0

    def question_id(self, account: Account, number: int) -> str:
        """Return the id of the question for more, of that number; equal in every process."""
        label, key = account.terms.label, account.key
        return digest([self.run_id, "budget", label, key, number]).hex()

    def __repr__(self) -> str:
        return f"<Accounts {list(self._by_name.values())}>"


def is_amount(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite number of at least 0."""
    return is_number(value) and 0 <= value < math.inf


def answer_of(value: object) -> float:
    """Return how much an answer adds; what is no amount adds nothing."""
    return float(value) if is_amount(value) else 0.0


def key_text(label: str, key: Hashable) -> str:
    """Return a key as the text that stands for it in records and at backends.

    Raises:
        BadResult: The key is no plain value.
    """
    if key is None:
        return ""
    if not is_plain(key):
        msg = (
            f"by= returned {brief(key)} for the budget {label!r}: what is spent is recorded by the "
            f"key; return a str, a number, bytes, or a tuple of those"
        )
        raise BadResult(msg)
    return repr(key)


def _is_same(one: Terms, other: Terms) -> bool:
    """Whether two budgets that go by one name are one: they were given the name, and agree."""
    return one.name is not None and (
        (one.name, one.amount, one.unit, one.per, one.on_empty)
        == (other.name, other.amount, other.unit, other.per, other.on_empty)
    )
