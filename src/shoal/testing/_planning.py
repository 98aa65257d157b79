"""What a simulation tries, in which order: the same for the same program and number of runs.

Of each four runs, the first has nothing but another order of steps. Two have one fault each: every
pair of a place and a kind of fault at one of its passes, then every pair at another one, and so on,
until each pass of each place had each fault. The last has two or three faults, also while it is
resumed. So few runs try all that can go wrong somewhere, and many runs try it everywhere.

If a changed application resumes what the first one has begun, it would execute nothing in runs that
end in their first life. So three of four have one fault there, or one in a later life and another
that ends the first; places of both applications are tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from random import Random
from typing import final

from shoal.testing._faults import (
    CANCELS,
    KILLS,
    LONG,
    SAVE,
    STEP,
    Backend,
    Fault,
    Passed,
    Plan,
    kinds_at,
)

_SECONDS = {
    "late": (0.5, 10.0, 120.0, 4000.0),
    "slow": (1.0, 10.0, 20.0),  # a store has thirty seconds for a save
    "jumps": (1.0, 60.0, 3600.0, 86400.0),
}
_AT_ONCE = {STEP: 4, SAVE: 2}
"""Passes of a place that are tried before those of another one, where there are many."""
_MOST_STEPS = 2000
"""The most steps of the event loop at which something goes wrong; spread evenly over more."""


@final
class Agenda:
    """The plans of a simulation, by their numbers."""

    def __init__(
        self,
        passed: Mapping[Backend, Passed],
        kinds: Collection[str] | None,
        *,
        is_handed_over: bool = False,
        halts: bool = False,
    ) -> None:
        """Plan by what an undisturbed run has passed.

        Args:
            passed: How often it has passed each place in each life, on each backend.
            kinds: The kinds of faults to try; None: all.
            is_handed_over: Whether another application executes each life but the first.
            halts: Whether the first life ends by itself, with a question.
        """
        self._backends = sorted(passed)
        self._passed = passed
        self._kinds = kinds
        self._is_handed_over = is_handed_over
        self._halts = halts
        self._singles = {one: list(self._single_faults(one)) for one in self._backends}

    def plan(self, number: int) -> Plan:
        """Return the plan of that number, counted from 0."""
        chance = Random(number)  # noqa: S311 # not for secrets
        group, place = divmod(number, 4)
        backends = self._backends
        alone = (0, 1, 2) if self._is_handed_over else (1, 2)
        if place in alone:
            # Dealt out to the backends in turn, so that each backend meets all of its own.
            nth, turn = divmod(len(alone) * group + alone.index(place), len(backends))
            backend = backends[turn]
            singles = self._singles[backend]
            faults = [self._timed(singles[nth % len(singles)], chance)] if singles else []
        else:
            backend = backends[(group + (place > 1)) % len(backends)]
            is_plain = place == 0 or not self._singles[backend]
            faults = [] if is_plain else list(self._several(backend, chance))
        if self._is_handed_over:
            faults = self._handed_over(faults, backend, chance)
        return Plan(backend, number, tuple(faults))

    def _handed_over(self, faults: list[Fault], backend: Backend, chance: Random) -> list[Fault]:
        """Return faults, and before them what ends the first life, so that a second one begins."""
        is_ended = any(fault.life == 1 and fault.what in KILLS | CANCELS for fault in faults)
        # A failure may end the first life as well, and is tried by itself.
        is_alone = len(faults) == 1 and faults[0].life == 1
        if is_ended or is_alone or (self._halts and chance.random() < 0.5):  # noqa: PLR2004 # half
            return faults
        lives = self._passed[backend]
        ways = [
            (place, what) for place in sorted(lives[0]) for what in self._kinds_at(place, backend)
        ]
        if not ways:
            return faults
        surely = [way for way in ways if way[1] in KILLS | CANCELS]
        place, what = chance.choice(surely or ways)
        # The more the first life has done, the less is left for the second one to pass. So it often
        # ends early, and always if the fault is at a late pass, which it would not reach otherwise.
        left = 1.0
        for fault in faults:
            if 1 < fault.life <= len(lives):
                total = max(fault.nth, lives[fault.life - 1].get(fault.place, 0))
                left = min(left, 1 - (fault.nth - 1) / total)
        nth = 1 + int(chance.random() ** 2 * left * lives[0][place])
        if any((fault.life, fault.place, fault.nth) == (1, place, nth) for fault in faults):
            return faults
        return [self._timed(Fault(what, place, nth), chance), *faults]

    def _single_faults(self, backend: Backend) -> Iterator[Fault]:
        """Yield all faults: of each pair of a place and a kind one, then of each another one."""
        found: dict[tuple[bool, str, str], list[Fault]] = {}
        for life, passed in enumerate(self._passed[backend], 1):
            is_later = self._is_handed_over and life > 1  # a place of another application
            for place in sorted(passed):
                for what in self._kinds_at(place, backend):
                    total = passed[place]
                    step = max(1, total // _MOST_STEPS)
                    found.setdefault((is_later, place, what), []).extend(
                        Fault(what, place, nth, life=life) for nth in range(1, total + 1, step)
                    )
        rows: list[list[Sequence[Fault]]] = []
        # In an order by chance, the same for each backend. The second one begins in the middle of
        # it, so that a few runs try all pairs on one backend or the other.
        pairs = sorted(found, key=lambda pair: (Random(repr(pair)).random(), pair))  # noqa: S311 # not for secrets
        turn = len(pairs) * self._backends.index(backend) // len(self._backends)
        for pair in (*pairs[turn:], *pairs[:turn]):
            faults = found[pair]
            Random(repr((backend, pair))).shuffle(faults)  # noqa: S311 # not for secrets
            at_once = _AT_ONCE.get(pair[1], 1)
            rows.append([faults[at : at + at_once] for at in range(0, len(faults), at_once)])
        for row in zip_longest(*rows, fillvalue=()):
            yield from (fault for some in row for fault in some)

    def _kinds_at(self, place: str, backend: Backend) -> Iterator[str]:
        for what in kinds_at(place):
            if self._kinds is not None and what not in self._kinds:
                continue
            if what == "cancelled-natively" and backend == "trio":
                continue
            yield what

    def _timed(self, fault: Fault, chance: Random) -> Fault:
        if fault.what not in LONG:
            return fault
        return replace(fault, seconds=chance.choice(_SECONDS[fault.what]))

    def _several(self, backend: Backend, chance: Random) -> Iterator[Fault]:
        """Yield two or three faults, no two kills or cancels in one life."""
        lives = self._passed[backend]
        passed = {place: count for of_one in reversed(lives) for place, count in of_one.items()}
        pairs = [
            (place, what) for place in sorted(passed) for what in self._kinds_at(place, backend)
        ]
        ended: set[int] = set()
        used: set[tuple[int, str, int]] = set()
        for _ in range(chance.choice((2, 2, 3))):
            place, what = chance.choice(pairs)
            life = chance.choice((*range(1, len(lives) + 1), 1, 2))
            known = lives[life - 1].get(place, 0) if life <= len(lives) else passed[place] // 2
            nth = 1 + chance.randrange(max(1, known))
            if what in KILLS | CANCELS:
                if life in ended:
                    continue
                ended.add(life)
            if (life, place, nth) in used:
                continue
            used.add((life, place, nth))
            yield self._timed(Fault(what, place, nth, life=life), chance)


def simpler(plan: Plan) -> Iterator[Plan]:
    """Yield plans that are simpler in one thing: fewer faults, an earlier pass, a plain order."""
    faults = plan.faults
    for at in range(len(faults)):
        yield replace(plan, faults=(*faults[:at], *faults[at + 1 :]))
    if plan.order is not None:
        yield replace(plan, order=None)
    if plan.backend == "trio" and not any(fault.place == STEP for fault in faults):
        yield replace(plan, backend="asyncio")
    for at, fault in enumerate(faults):
        others: set[int] = {1, fault.nth // 2, fault.nth - 1} - {fault.nth, 0}
        for nth in sorted(others):
            yield replace(plan, faults=(*faults[:at], replace(fault, nth=nth), *faults[at + 1 :]))
        if fault.life > 1:
            other = replace(fault, life=1)
            yield replace(plan, faults=(*faults[:at], other, *faults[at + 1 :]))
