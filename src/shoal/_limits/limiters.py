"""Limiters: the gates of one owner of limits (a runtime, application, action or fan-out), by key.

Invariants:
- An owner has one limiter as long as the owner and the runtime live, so that all runs that share
  its limits share its gates.
- A ``Limits`` object has one set of gates in a runtime, as long as the object lives, wherever it
  stands. So limiters of several owners may have gates in common, and a request needs each once.
- Memory follows use: gates of keys that nothing uses are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final
from weakref import WeakKeyDictionary, ref

from shoal._errors.exceptions import BadUse, DefinitionError, brief
from shoal._state.state import State, make_state

from .accounts import Account, Accounts, Purse, Terms, Worst
from .flows import Share
from .gates import FairShare, Gate
from .limits import Limits, Part, Rate, SharedRate, limits_of
from .lines import Line
from .meters import ForeignMeter, Meter
from .places import Origin
from .scheduler import FairScheduler
from .shared_rates import SharedMeter
from .user_functions import cost_of, key_of, share_key_of, weight_of, worst_of

SWEEP = 64
"""Keys that a part keeps before unused ones are dropped: too few gates to be worth the work."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """The use of one part of a ``Limits``, from ``runtime.limiter(owner).statistics()``."""

    limits: str
    """The part, as it is written."""
    keys: int
    """Keys in memory; 1 for a part without ``by=``."""
    in_use: int
    """Slots in use, of all keys together."""
    slots: float | None
    """Slots for each key; None: unlimited. With ``adapt=``, the present number of the first key."""
    waiting: int
    """Attempts and children that wait here; one that waits for several parts counts at one."""
    paused: int
    """Keys that are paused, used or not; 1 if the whole limit is and no key was used yet."""
    unit: str | None = None
    """What a budget or ``cost=`` counts; None if that isn't said."""
    amount: float | None = None
    """How much a budget has, for each key and run, without what people have added; None: it is no
    budget."""
    spent: float | None = None
    """What is spent of a budget, of all keys and of the runs that were at it lately together."""
    aside: float | None = None
    """What is set aside for attempts under way."""
    refused: int = 0
    """Requests that did not fit into a budget."""


@final
class Limiter:
    """The gates of one owner's ``Limits``, for all runs of a runtime."""

    def __init__(
        self,
        limits: Limits,
        scheduler: FairScheduler,
        gates_of: Callable[[Part], PartGates],
        on_changed: Callable[[], None],
        *,
        takes_foreign: bool,
    ) -> None:
        """Create the limiter of one owner.

        Args:
            limits: The owner's limits.
            scheduler: The scheduler in which requests wait.
            gates_of: Returns the gates of a part, which other limiters may have too.
            on_changed: Called when ``change`` has replaced parts.
            takes_foreign: Whether limiters of other libraries work here.
        """
        # Not where the limits are written: only the runtime knows on which event loop it is.
        if not takes_foreign:
            _refuse_foreign(limits)
        self._scheduler: FairScheduler = scheduler
        self._on_changed: Callable[[], None] = on_changed
        self._takes_foreign: bool = takes_foreign
        self.origins: tuple[ref[Origin], ...] = tuple([ref(part.origin) for part in limits.parts])
        """The identities of the objects that its parts were written as."""
        # Never replaced: a part's gates stay at their index, also when it is changed.
        self.parts: tuple[PartGates, ...] = tuple(map(gates_of, limits.parts))
        self.worst: tuple[Worst | None, ...] = tuple(
            [None if part.terms is None else part.terms.here for part in limits.parts]
        )
        """The worst cases at budgets for what comes by here, for each part; None: its own."""
        self.same: tuple[Gate, ...] | None
        """The gates that every attempt needs; None if they depend on the state it starts from.

        With these, finding the gates of an attempt calls no user's function and makes no state.
        """
        self.look()

    @property
    def limits(self) -> Limits:
        """The limits as they are now."""
        return limits_of(tuple([gates.part for gates in self.parts]))

    def look(self) -> None:
        """Note which gates every attempt needs, after a part has changed."""
        # With `by=` the gate depends on the state, and with `cost=` the charge does.
        # A budget's gate depends on the run, too.
        if any(
            gates.part.by is not None or gates.part.cost is not None or gates.part.terms is not None
            for gates in self.parts
        ):
            self.same = None
        else:
            # Without a key there is one gate for each part, and it is never dropped. Once each,
            # because `&` may have joined an object with itself.
            self.same = tuple(dict.fromkeys(gates.the_one() for gates in self.parts))
        self.passing: tuple[Gate, ...] | None = self.same
        """The same, if nothing but open gates is asked by any part; see ``passes``."""
        if any(gates.asks_more for gates in self.parts):
            self.passing = None
        self._scheduler.changes += 1
        if any(gates.part.waiting is not None for gates in self.parts):
            self._scheduler.bounds_waiting = True
        self.has_shares: bool = any(gates.part.share is not None for gates in self.parts)
        """Whether a part has ``share=``."""
        if self.has_shares:
            self._scheduler.has_shares = True
        # Shares have turns, so children of another one may start first, as those of another key. A
        # backend of shared rates or budgets is asked for as much as waits, and may be far away:
        # see test_throughput_is_the_rate_however_far_the_backend_is.
        self.tells_apart: bool = self.has_shares or any(
            part.by is not None
            or isinstance(part.rate, SharedRate)
            or (part.terms is not None and part.terms.backend is not None)
            for part in (gates.part for gates in self.parts)
        )
        """Whether others may start before those that wait, or as many are granted as wait."""

    def is_of(self, limits: Limits) -> bool:
        """Return whether its parts were written as the objects in ``limits``."""
        parts = limits.parts
        if len(parts) != len(self.origins):
            return False
        # Without a generator, since each run of the limits' owner asks.
        for origin, part in zip(self.origins, parts, strict=True):
            if origin() is not part.origin:
                return False
        return True

    def change(self, limits: Limits) -> None:
        """Replace the limits by others with the same parts; waiting attempts notice at once.

        Running attempts go on. If there are fewer slots than are in use, nothing new starts until
        enough attempts have ended. Each part keeps its counts. A new ``by=`` or ``cost=`` applies
        to attempts and children that come from now on; those that wait keep their keys and costs.

        Args:
            limits: The new limits: as many parts as before, in the same order, each with ``by=`` if
                the old one had it, and without if not.

        Raises:
            BadUse: ``limits`` is no ``Limits``, or has other parts. With this error, and the other
                two, nothing has changed.
            DefinitionError: A rate doesn't work on this event loop.
            BadResult: A rate is a ``SharedRate`` now, and other processes could not name a key
                that is in use.
        """
        if not isinstance(limits, Limits):
            msg = f"limiter.change(limits) takes Limits(...), not {brief(limits)}"
            raise BadUse(msg)
        if len(limits.parts) != len(self.parts) or any(
            (part.by is None) != (gates.part.by is None) or not _fits(gates.part, part)
            for part, gates in zip(limits.parts, self.parts, strict=True)
        ):
            msg = (
                f"{self.limits!r} can't be changed into {limits!r} while it is in use: the same "
                f"parts are needed, in the same order, with other numbers"
            )
            raise BadUse(msg)
        if not self._takes_foreign:
            _refuse_foreign(limits)
        # All meters before the first change, since making one may raise: limits that are refused
        # must leave every gate as it was. See test_limits_that_are_refused_change_nothing.
        meters = [
            gates.meters_of(part) for part, gates in zip(limits.parts, self.parts, strict=True)
        ]
        # Served at once: with more slots, or a faster rate, waiting requests may start now.
        for part, gates, new in zip(limits.parts, self.parts, meters, strict=True):
            # Before the gates change: what is charged from then on counts under the new part.
            part = part.in_place_of(gates.part)  # noqa: PLW2901 # the given one is of no use
            self._scheduler.costs.replace(gates.part, part)
            for gate in gates.change(part, new):
                self._scheduler.serve(gate)
        self._on_changed()  # a part may have a `cost=` now, or have none any more

    def pause(self, key: Hashable = None, *, part: int = 0) -> None:
        """Start nothing more that needs this limit, until ``resume``; attempts under way go on.

        Pausing again changes nothing. It lasts as long as the runtime, and ``change`` keeps it.

        Args:
            key: Only for this key of a limit with ``by=``, whether or not it is known yet: what
                ``by`` returns, or its text; None: for all.
            part: Which part of the limits, of those that ``&`` has joined, counted from 0.

        Raises:
            BadUse: There is no such part, or it has no keys.

        Examples:
            >>> import anyio
            >>> @action(
            ...     reads=["host"],
            ...     writes=["page"],
            ...     limits=Limits(2, by=lambda state: state["host"]),
            ... )
            ... async def fetch(host: str) -> str:
            ...     return f"a page of {host}"
            >>> async def main() -> None:
            ...     async with Runtime() as runtime:
            ...         limiter = runtime.limiter(fetch)
            ...         limiter.pause("slow.example")
            ...         other = await runtime.run(Application(fetch), {"host": "quick.example"})
            ...         limiter.resume("slow.example")
            ...         print(other.state["page"])
            >>> anyio.run(main)
            a page of quick.example
        """
        for gate in self._part(part, key).set_shut(key, is_shut=True):
            if gate.posted:
                self._scheduler.serve(gate)  # takes its timer away

    def resume(self, key: Hashable = None, *, part: int = 0) -> None:
        """End ``pause``; what has waited starts as the limit allows.

        Without a pause nothing happens.

        Args:
            key: Only this key, which goes on unless all are paused; None: all of them, those that
                were paused by themselves too.
            part: Which part of the limits.

        Raises:
            BadUse: There is no such part, or it has no keys.
        """
        for gate in self._part(part, key).set_shut(key, is_shut=False):
            self._scheduler.serve(gate)

    def _part(self, part: int, key: Hashable) -> PartGates:
        if type(part) is not int or not 0 <= part < len(self.parts):
            msg = f"{self.limits!r} has no part {part!r}: it has {len(self.parts)}, from 0"
            raise BadUse(msg)
        found = self.parts[part]
        if key is not None and found.part.by is None:
            msg = f"{found.part!r} has no keys, so {brief(key)} is none of them: leave out key="
            raise BadUse(msg)
        return found

    def charged(self, part: Part) -> float | None:
        """Return what was charged at one of its parts so far; None if that has no ``cost=``."""
        return None if part.cost is None else self._scheduler.costs.of(part)

    def statistics(self) -> tuple[Statistics, ...]:
        """Return the use of each part, in the order in which ``&`` has joined them."""
        now = self._scheduler.clock()
        return tuple(gates.statistics(now) for gates in self.parts)

    def __repr__(self) -> str:
        used = ", ".join(f"{one.in_use} in use, {one.waiting} waiting" for one in self.statistics())
        return f"<Limiter of {self.limits!r}: {used}>"


@final
class PartGates:
    """The gates of one part of a limit, by key."""

    __slots__ = (
        "_accounts",
        "_identity",
        "_is_shut",
        "_shut_keys",
        "_sweep_at",
        "gates",
        "is_of_run",
        "part",
    )

    def __init__(self, part: Part, *, is_of_run: bool = False) -> None:
        """Create the gates of a part; there is none yet.

        Args:
            part: The part.
            is_of_run: Whether it is a budget that each run has for itself.
        """
        # Stands for this object, which lines must not refer to: that would be a cycle.
        self._identity: object = object()
        self.is_of_run: bool = is_of_run
        self._accounts: Accounts = Accounts()  # of a budget that runs share
        # Replaced by `change`, in all gates at once. A gate made later gets the new one.
        self.part: Part = part
        # A gate must not be dropped while anything refers to it: `Gate.is_new` says when that is.
        self.gates: dict[Hashable, Gate] = {}  # under None, the one of a part without `by=`
        self._sweep_at: int = SWEEP  # the number of keys at which unused ones are dropped
        # What `set_shut` has said, for gates that are made later. Keys as text, because a person
        # names them.
        self._is_shut: bool = False
        self._shut_keys: set[str] = set()

    def set_shut(self, key: Hashable, *, is_shut: bool) -> list[Gate]:
        """Shut or open the gates of a key, or, if it is None, of all; return those that changed."""
        if key is None:
            self._is_shut = is_shut
            self._shut_keys.clear()
        elif is_shut:
            self._shut_keys.add(str(key))
        else:
            self._shut_keys.discard(str(key))
        # By the key of a gate, and not by the one it is found under: a budget's has its run there.
        changed = [
            gate for gate in self.gates.values() if gate.is_shut is not self._must_be_shut(gate.key)
        ]
        for gate in changed:
            gate.is_shut = not gate.is_shut
        return changed

    def _must_be_shut(self, key: Hashable) -> bool:
        return self._is_shut or (bool(self._shut_keys) and str(key) in self._shut_keys)

    @property
    def asks_more(self) -> bool:
        """Whether a start needs more than an open gate, apart from keys, costs and budgets.

        A policy is told of it, its run is counted in line, a share has a turn, or others keep the
        rate.
        """
        part = self.part
        return (
            part.adapt is not None
            or part.share is not None
            or part.waiting is not None
            or not (part.rate is None or isinstance(part.rate, Rate))
            or any(gate.line is not None for gate in self.gates.values())
        )

    def the_one(self) -> Gate:
        """Return the only gate of a part without ``by=``, creating it on first use."""
        gate = self.gates.get(None)
        if gate is None:
            gate = self._made(None)
        return gate

    def find(
        self, state: State, now: float, unit: FairShare | None = None, worst: Worst | None = None
    ) -> tuple[Gate, float]:
        """Return the gate for a start from ``state``, and the units that it charges.

        Args:
            state: The state from which the attempt or child would start.
            now: The time.
            unit: The execution, which has accounts for a budget, and an owner.
            worst: The worst case at a budget where the start comes from; None: the budget's own.
        """
        part = self.part
        if part.terms is not None:
            worst = part.terms.worst if worst is None else worst
            return self._find_budget(part.terms, worst, state, now, unit)
        cost = 1.0 if part.cost is None else cost_of(part, state)
        # After the cost, and both before any gate is made: what a user's function raises leaves no
        # gate.
        key = None if part.by is None else key_of(part, state, unit)
        gate = self.gates.get(key)
        if gate is None:
            # Before the new gate is there: it isn't used yet, so it would be dropped.
            if len(self.gates) >= self._sweep_at:
                self._sweep(now)
            gate = self._made(key)
        return gate, cost

    def share_of(self, state: State, unit: FairShare | None) -> Share | None:
        """Return the share that a start from ``state`` belongs to; None if there are no shares."""
        part = self.part
        if part.share is None:
            return None
        key = share_key_of(part, state, unit)
        return Share(self._identity, key, weight_of(part, key))

    def _made(self, key: Hashable) -> Gate:
        gate = self.gates[key] = Gate(self.part.n, self.part, key)
        gate.is_shut = self._must_be_shut(key)
        if self.part.waiting is not None:
            gate.line = Line(self._identity)
        return gate

    def _find_budget(
        self, terms: Terms, worst: Worst, state: State, now: float, unit: FairShare | None
    ) -> tuple[Gate, float]:
        """Return the gate of a budget, at which the requests of one account wait."""
        part = self.part
        cost = worst_of(part, worst, state)
        key = None if part.by is None else key_of(part, state, unit)
        accounts = None if unit is None else unit.accounts
        is_of_run = self.is_of_run and accounts is not None
        if accounts is None or not self.is_of_run:
            accounts = self._accounts
        at = (id(accounts), key) if is_of_run else key
        gate = self.gates.get(at)
        if gate is None:
            account = accounts.of(terms, key)
            if len(self.gates) >= self._sweep_at:
                self._sweep(now)
                self._accounts.forget_idle(now)
            gate = self.gates[at] = Gate(None, part, key)
            gate.is_shut = self._must_be_shut(key)
            gate.purse = Purse(account, is_of_run=is_of_run)
            account.gates.add(gate)
        return gate, cost

    def accounts(self) -> Collection[Account]:
        """Return the accounts of a budget that are in use, or were lately."""
        return {gate.purse.account: None for gate in self.gates.values() if gate.purse is not None}

    def _sweep(self, now: float) -> None:
        """Drop the gates that are not in use."""
        for gate in self.gates.values():
            if gate.purse is not None and gate.is_new(now):
                gate.purse.account.gates.discard(gate)
        self.gates = {key: gate for key, gate in self.gates.items() if not gate.is_new(now)}
        # Twice what is left: so many keys must come before the next sweep that each of them is
        # looked at twice at most, on average.
        self._sweep_at = max(SWEEP, 2 * len(self.gates))

    def meters_of(self, part: Part) -> list[Meter | ForeignMeter | SharedMeter | None]:
        """Make the meters that the gates, in their order, would have under another part.

        Raises:
            BadResult: The rate is shared, and other processes could not name a key.
        """
        return [part.meter(gate.key) for gate in self.gates.values()]

    def change(
        self, part: Part, meters: Sequence[Meter | ForeignMeter | SharedMeter | None]
    ) -> list[Gate]:
        """Replace the part and its meters, in all gates too; return the gates.

        Args:
            part: The new part.
            meters: What ``meters_of`` has returned for it.
        """
        self.part = part
        for gate, meter in zip(self.gates.values(), meters, strict=True):
            # The same gate, so that what it has granted and what waits at it still counts.
            gate.part, gate.adapt = part, part.adapt
            gate.resize(part.n)
            if gate.purse is not None and part.terms is not None:
                gate.purse.account.terms = part.terms
            if part.waiting is not None and gate.line is None:
                gate.line = Line(self._identity)
            if meter is not None:
                meter.continue_from(gate.meter)  # else a change would grant a burst again
            gate.meter = meter
        return list(self.gates.values())

    def size(self, part: Part) -> None:
        """Replace the part by one that has ``n`` too, and the same rate."""
        self.part = part
        for gate in self.gates.values():
            gate.part, gate.adapt = part, part.adapt
            gate.resize(part.n)

    def statistics(self, now: float) -> Statistics:
        """Return the use of all gates together."""
        gates, terms = self.gates.values(), self.part.terms
        accounts = self.accounts()
        return Statistics(
            unit=self.part.unit if terms is None else terms.unit,
            amount=None if terms is None else terms.amount,
            spent=None if terms is None else math.fsum(one.spent for one in accounts),
            aside=None if terms is None else math.fsum(one.aside for one in accounts),
            refused=sum(one.refused for one in accounts),
            limits=repr(self.part),
            keys=len(gates),
            in_use=sum(gate.used for gate in gates),
            slots=next((gate.size for gate in gates), self.part.n),
            waiting=sum(gate.waiting() for gate in gates),
            paused=self._paused(now),
        )

    def _paused(self, now: float) -> int:
        """Count the keys that are paused; 1 if all are, and none has been used yet."""
        gates, unused = self.gates.values(), set[str]()
        if self._shut_keys:
            unused = self._shut_keys - {str(gate.key) for gate in gates}
        paused = sum(gate.is_shut or gate.paused_until > now for gate in gates)
        return paused + len(unused) or int(self._is_shut)


@final
class Limiters:
    """The limiters of all owners in a runtime."""

    def __init__(self, scheduler: FairScheduler, *, takes_foreign: bool = True) -> None:
        """Create the registry of a runtime.

        Args:
            scheduler: The scheduler in which requests wait.
            takes_foreign: Whether limiters of other libraries work here; they need asyncio.
        """
        self._scheduler: FairScheduler = scheduler
        self._takes_foreign: bool = takes_foreign
        # Weak: actions made while running leave nothing behind. See
        # test_actions_made_dynamically_leave_nothing_in_a_long_lived_runtime.
        self.by_owner: WeakKeyDictionary[object, dict[str, Limiter]] = WeakKeyDictionary()
        # By the identity of the `Limits` objects and as long as these live, and not by their
        # owners: an object may stand on actions that are made anew for each request. Gates keep
        # parts without their origin, else nothing here would ever be collected.
        self._gates: WeakKeyDictionary[Origin, PartGates] = WeakKeyDictionary()
        # Weak, since limiters call it, and this refers to them: that would be a cycle.
        self._on_changed: Callable[[], None] = partial(_look_again, ref(self))

    def of(self, owner: object, limits: Limits, name: str = "") -> Limiter:
        """Return the limiter of ``owner``, creating it on first use.

        Args:
            owner: A runtime, an application, or the definition of an action or a fan-out.
            limits: The owner's limits; only read when the limiter is created.
            name: Distinguishes several limiters of one owner.

        Raises:
            DefinitionError: The limits have a rate that doesn't work on this event loop.
        """
        named = self.by_owner.get(owner)
        if named is None:
            named = self.by_owner[owner] = {}
        found = named.get(name)
        # Its objects may stand in more places since: then a fan-out has them among those of its
        # children's attempts.
        if found is None or not found.is_of(limits):
            found = named[name] = self.view(limits)
        return found

    def view(self, limits: Limits) -> Limiter:
        """Return a limiter of no owner, for looking at limits and for changing them."""
        return Limiter(
            limits,
            self._scheduler,
            self._gates_of,
            self._on_changed,
            takes_foreign=self._takes_foreign,
        )

    def _gates_of(self, part: Part) -> PartGates:
        """Return the gates of a part, which are those of its object wherever that stands."""
        gates = self._gates.get(part.origin)
        if gates is None:
            terms = part.terms
            is_of_run = terms is not None and terms.per is None and terms.backend is None
            gates = PartGates(part.of_gates, is_of_run=is_of_run)
            self._gates[part.origin] = gates
        elif gates.part.n is None and part.n is not None:
            # Until now it stood on one fan-out, which counts places in flight by itself.
            gates.size(part.of_gates)
            self.look()
        if part.origin.is_of_runtime:
            gates.is_of_run = False
        return gates

    def look(self) -> None:
        """Let all limiters note which gates every attempt needs."""
        for named in self.by_owner.values():
            for limiter in named.values():
                limiter.look()

    def of_attempt(
        self, scopes: tuple[Limiter, ...], owner: object, limits: Limits | None
    ) -> tuple[Limiter, ...]:
        """Return the limiters of an attempt: ``scopes``, and that of its action, ``owner``."""
        if limits is None:
            return scopes
        return (*scopes, self.of(owner, limits))

    def gates(
        self, limiters: Sequence[Limiter], data: Mapping[str, object], unit: FairShare | None = None
    ) -> tuple[tuple[Gate, ...], tuple[float, ...] | None]:
        """Return the gates that a start from ``data`` needs, and the units that they charge.

        Args:
            limiters: The limiters that apply.
            data: The fields of the state.
            unit: The execution, from whose accounts budgets are paid.

        Raises:
            Exception: Whatever ``by=`` or ``cost=`` raises.
            BadResult: ``by=`` returned no valid key, or ``cost=`` no valid number.
        """
        # The common case: no limit has `by=` or `cost=`, so no state is made and no user's function
        # is called.
        same: tuple[Gate, ...] = ()
        for limiter in limiters:
            if limiter.same is None:
                break
            same += limiter.same
        else:
            # Once each: one object may limit the action, the application and the runtime.
            return same if len(limiters) == 1 else tuple(dict.fromkeys(same)), None
        # One `by=` or `cost=` is enough: then all gates are sought in one way, so that gates and
        # costs have one order.
        parts: dict[PartGates, Worst | None] = {}
        for limiter in limiters:
            for gates, worst in zip(limiter.parts, limiter.worst, strict=True):
                # What is nearest to the action knows best what it costs.
                parts[gates] = parts.get(gates) if worst is None else worst
        state, now = make_state(data), self._scheduler.clock()
        found = [gates.find(state, now, unit, worst) for gates, worst in parts.items()]
        return tuple([gate for gate, _ in found]), tuple([cost for _, cost in found])

    def shares(
        self,
        limiters: Sequence[Limiter],
        fields: Callable[[], Mapping[str, object]],
        unit: FairShare | None = None,
    ) -> tuple[Share, ...]:
        """Return the shares that a start belongs to, in the order of the limiters.

        Args:
            limiters: The limiters that apply.
            fields: Returns the fields of the start, and of the runs around it.
            unit: The execution, which has an owner.

        Raises:
            Exception: Whatever ``share=`` or ``weight=`` raises.
            BadResult: ``share=`` returned no valid key, or ``weight=`` no valid number.
        """
        parts = [gates for limiter in limiters if limiter.has_shares for gates in limiter.parts]
        if not parts:
            return ()
        state = make_state(fields())
        found = (gates.share_of(state, unit) for gates in dict.fromkeys(parts))
        return tuple([share for share in found if share is not None])


def _look_again(limiters: ref[Limiters]) -> None:
    found = limiters()
    if found is not None:  # else the runtime is gone, and a limiter of it is not
        found.look()


def _fits(old: Part, new: Part) -> bool:
    """Whether a part may replace another one: no budget may, but for one of other numbers."""
    if old.terms is None or new.terms is None:
        return old.terms is new.terms
    kept = (old.terms.unit, old.terms.name, old.terms.per, old.terms.backend, old.terms.on_empty)
    return kept == (
        *(new.terms.unit, new.terms.name, new.terms.per, new.terms.backend, new.terms.on_empty),
    )


def _refuse_foreign(limits: Limits) -> None:
    for part in limits.parts:
        rate = part.rate
        if rate is not None and not isinstance(rate, Rate | SharedRate):
            kind = type(rate)
            msg = (
                f"{limits!r}: {kind.__module__}.{kind.__qualname__} works on asyncio only; "
                f"Rate({rate.max_rate:g}, per={rate.time_period:g}) works on trio too"
            )
            raise DefinitionError(msg)
