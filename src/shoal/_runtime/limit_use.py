"""Tell which limits of a runtime are in use and for which keys runs wait; change their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import nlargest
from itertools import islice
from typing import Any

from shoal._engine.fanout.group import ChildTaskGroup
from shoal._errors.exceptions import BadUse
from shoal._events.paths import key_in_short
from shoal._events.report import BreakerUse, BudgetUse, CircuitUse, LimitUse
from shoal._graph.act import Act
from shoal._graph.parallel import Parallel
from shoal._limits.admission import AdmissionController
from shoal._limits.breaker import Circuits
from shoal._limits.limiters import Limiter, PartGates
from shoal._limits.limits import Limits
from shoal._limits.retry import Account, RetryBudget
from shoal.executors._port import Executor, Pool

RUNTIME = "runtime"
"""The owner of the limits of a runtime, in reports."""
EXECUTOR = "executor"
"""The owner of the workers of an executor, in reports."""
IN_FLIGHT = -1
"""The part of a fan-out that is its children in flight."""
NUMBERS = ("n", "max_rate", "per", "burst", "amount")
"""The numbers of a limit that can change."""
KEYS = 10
"""Keys of a limit that a report tells of, those for which most wait."""
LIMITS = 50
"""Limits that a report tells of."""


def named_limiters(
    by_owner: Mapping[Any, Mapping[str, Limiter]], runtime: object
) -> Mapping[str, Limiter]:
    """Return limiters by the names of their owners; that of ``runtime`` is ``""``.

    Several owners of one name have a limiter each; the later ones have a number behind the name.
    """
    found: dict[str, Limiter] = {}
    for owner, named in by_owner.items():
        name = "" if owner is runtime else str(getattr(owner, "name", type(owner).__name__))
        for among, limiter in named.items():
            base = f"{name}/{among}" if among else name
            label, count = base, 1
            while label in found:
                count += 1
                label = f"{base} {count}"
            found[label] = limiter
    return found


def limiter_that_counts(admission: AdmissionController, owner: object) -> Limiter:
    """Return the limiter of an owner; see ``Runtime.limiter``.

    Raises:
        BadUse: The owner has no limits that are shared in the runtime.
    """
    limits = getattr(owner, "limits", None)
    if isinstance(limits, Limits) and isinstance(owner, Parallel):
        # With those of objects that stand elsewhere too; its own limiter lacks them.
        limits, own = limits.of_fan_out, limits.of_starts
        if limits is not None and limits.of_attempts is not None:
            return admission.limiters.view(limits)
        limits = own
    if not isinstance(limits, Limits):
        msg = (
            f"{owner!r} has no limits that are counted here: give it limits=Limits(...); those "
            f"of a fan-out are, if they have a rate or count by key"
        )
        raise BadUse(msg)
    return admission.limiter(getattr(owner, "definition", owner), limits)


def named_circuits(
    by_owner: Mapping[Any, Mapping[str, Circuits]],
) -> Iterable[tuple[str, Circuits]]:
    """Return the circuits of fan-outs with their names."""
    return [
        (name or str(getattr(owner, "name", owner)), circuits)
        for owner, named in by_owner.items()
        for name, circuits in named.items()
    ]


def circuits_of(
    by_owner: Mapping[Any, Mapping[str, Circuits]], owner: Act, name: str = ""
) -> Circuits:
    """Return the circuits of a fan-out; or of the fan-out ``name`` of an action.

    Raises:
        BadUse: That fan-out has no breaker, or has not run.
    """
    full_name = f"{owner.name}/{name}" if name else ""
    found = by_owner.get(getattr(owner, "definition", owner), {}).get(full_name)
    if found is None:
        msg = (
            f"nothing is known of circuits of {full_name or owner.name!r}: give it "
            f"each=Each(breaker=Breaker(...)), and run it here first"
        )
        raise BadUse(msg)
    return found


def uses_of(limiters: Mapping[str, Limiter], now: float) -> list[LimitUse]:
    """Return the use of each part of some limits.

    Args:
        limiters: The limiters by the names of their owners, as ``Runtime.limiters`` has them.
        now: The time, by the clock of the runtime.
    """
    # Once each: a limit in several places is reported under the first of their names.
    found = {
        part: (owner or RUNTIME, number, limiter)
        for owner, limiter in reversed(list(limiters.items()))
        for number, part in reversed(list(enumerate(limiter.parts)))
    }
    return [
        _use(owner, number, part, now, limiter.charged(part.part))
        for part, (owner, number, limiter) in reversed(list(found.items()))
    ][:LIMITS]


def _use(owner: str, number: int, part: PartGates, now: float, charged: float | None) -> LimitUse:
    counts = part.statistics(now)
    waits: Mapping[str, int] = {}
    if part.part.by is not None and counts.waiting:
        waiting = [(gate.waiting(), key) for key, gate in part.gates.items() if gate.posted]
        busiest = nlargest(KEYS, waiting, key=lambda one: one[0])
        waits = {key_in_short(key): count for count, key in busiest}
    return LimitUse(
        owner=owner,
        part=number,
        limits=counts.limits,
        in_use=counts.in_use,
        slots=counts.slots,
        waiting=counts.waiting,
        paused=counts.paused,
        keys=counts.keys,
        waits=waits,
        cost=charged if counts.spent is None else counts.spent,
        unit=counts.unit,
        amount=counts.amount,
        aside=counts.aside or 0.0,
    )


def uses_of_workers(pools: Mapping[Executor, Pool]) -> list[LimitUse]:
    """Return the use of the open executors whose workers are waited for."""
    return [
        LimitUse(
            owner=EXECUTOR,
            part=number,
            limits=executor.name,
            in_use=pool.gate.used,
            slots=pool.gate.slots,
            waiting=pool.gate.waiting(),
        )
        for number, (executor, pool) in enumerate(pools.items())
        if pool.gate.posted
    ]


def names_of_costs(limiters: Mapping[str, Limiter]) -> Mapping[int, str]:
    """Return the name of the owner of each limit with ``cost=``, by the id of its part."""
    return {
        id(part.part): owner or RUNTIME
        for owner, limiter in limiters.items()
        for part in limiter.parts
        if part.part.cost is not None
    }


def owners_of(limiters: Mapping[str, Limiter]) -> Mapping[str, str]:
    """Return the name of the owner of each limit, by the limit as it is written."""
    return {
        repr(part.part): owner or RUNTIME
        for owner, limiter in reversed(list(limiters.items()))
        for part in limiter.parts
    }


def uses_in_flight(groups: Iterable[ChildTaskGroup]) -> list[LimitUse]:
    """Return how many children some fan-outs have in flight, and may have."""
    return [
        LimitUse(
            owner=group.name,
            part=IN_FLIGHT,
            limits="in flight",
            in_use=group.in_flight - group.uncommitted,
            slots=group.slots,
            waiting=group.more,
        )
        for group in groups
    ]


def uses_of_breakers(circuits: Iterable[tuple[str, Circuits]]) -> tuple[BreakerUse, ...]:
    """Return the state of breakers, each given with the name of its fan-out."""
    return tuple([_breaker_use(owner, one) for owner, one in islice(circuits, LIMITS)])


def uses_of_budgets(accounts: Mapping[RetryBudget, Account], now: float) -> tuple[BudgetUse, ...]:
    """Return what is left of budgets of retries.

    Args:
        accounts: Their accounts, as the services of a runtime have them.
        now: The time, by the clock of the runtime.
    """
    return tuple(
        BudgetUse(
            part=number, budget=repr(budget), left=account.level(now), refused=account.refused
        )
        for number, (budget, account) in enumerate(islice(accounts.items(), LIMITS))
    )


def _breaker_use(owner: str, circuits: Circuits) -> BreakerUse:
    statistics = circuits.statistics()
    return BreakerUse(
        owner=owner,
        breaker=repr(circuits.breaker),
        failing=statistics.failing,
        open=len(statistics.open),
        skipped=statistics.skipped,
        circuits=tuple(
            CircuitUse(
                key=key_in_short(one.key),
                state=one.state,
                failures=one.failed,
                next_in=one.left if one.state == "open" else None,
            )
            for one in circuits.states(KEYS)
        ),
    )


def change_limits(
    limiters: Mapping[str, Limiter],
    groups: Iterable[ChildTaskGroup],
    *,
    owner: str,
    part: int,
    numbers: Mapping[str, Any],
) -> None:
    """Change the numbers of a limit in use.

    Args:
        limiters: The limiters by the names of their owners.
        groups: The fan-outs under way.
        owner: The owner of the limit, as in ``LimitUse``.
        part: Which of its parts, as in ``LimitUse``.
        numbers: The new numbers, by the names in ``Command``.

    Raises:
        BadUse: There is no such limit here.
        DefinitionError: The limit has no such number, or it is out of range.
    """
    unknown = ", ".join(sorted(numbers.keys() - NUMBERS))
    if unknown:
        msg = f"a limit has no {unknown} (it may have {', '.join(NUMBERS)})"
        raise BadUse(msg)
    if part == IN_FLIGHT:
        meant = [group for group in groups if group.name == owner]
        slots = numbers.get("n")
        if not meant or type(slots) is not int or slots < 1 or len(numbers) > 1:
            msg = f"no fan-out {owner!r} is under way here that could have n={slots!r} in flight"
            raise BadUse(msg)
        for group in meant:
            group.resize(slots)
        return
    limiter = limiter_of(limiters, owner)
    limiter.change(
        limiter.limits.with_numbers(
            part,
            n=numbers.get("n"),
            rate=numbers.get("max_rate"),
            per=numbers.get("per"),
            burst=numbers.get("burst"),
            amount=numbers.get("amount"),
        )
    )


def limiter_of(limiters: Mapping[str, Limiter], owner: str) -> Limiter:
    """Return the limiter of an owner, as ``LimitUse`` names it.

    Raises:
        BadUse: There is none.
    """
    limiter = limiters.get("" if owner == RUNTIME else owner)
    if limiter is None:
        known = ", ".join(name or RUNTIME for name in limiters) or "none"
        msg = f"there is no limit of {owner!r} here (there are: {known})"
        raise BadUse(msg)
    return limiter
