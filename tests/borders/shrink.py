"""Making a program that fails small: features and trips are left out as long as it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from shoal.testing._shrinking import shrink as shrink_any

from .play import Report
from .program import FEATURES, PLAIN, Program, fits


def kind_of(violation: str) -> str:
    """Say what kind of violation it is: its words, without what differs from program to program."""
    text = violation.split("\n", maxsplit=1)[0]
    text = re.sub(r"<RunPath[^>]*>\S*", "PATH", text)
    text = re.sub(r"life \d+: ", "", text)
    text = re.sub(r"['\"].*?['\"]", "Q", text)
    text = re.sub(r"in [\d.]+ of the fan-out around: ", "", text)
    text = re.sub(r"[\d.]+", "#", text)
    text = text.replace("PATH was Done, and a# is executed again", "executed again")
    return text.split(";")[0].split("(")[0][:60]


def _simpler(program: Program) -> Iterator[Program]:
    """Give programs that are one thing simpler."""
    for at in range(len(program.trips)):
        yield replace(program, trips=(*program.trips[:at], *program.trips[at + 1 :]))
    if program.schedule is not None:
        yield replace(program, schedule=None)
    for name in program.features:
        if not name.startswith(("trouble", "stop")):  # they have become trips
            yield program.with_(**{name: PLAIN[name]})
    for name, levels in FEATURES.items():
        for level in levels[1 : levels.index(program[name])]:
            yield program.with_(**{name: level})
    for at, trip in enumerate(program.trips):
        for nth in {1, trip.nth // 2, trip.nth - 1} - {trip.nth, 0}:
            smaller = replace(trip, nth=nth)
            yield replace(program, trips=(*program.trips[:at], smaller, *program.trips[at + 1 :]))


def simpler(program: Program) -> Iterator[Program]:
    """Give programs that are one thing simpler, and whose features go together."""
    return filter(can_be, _simpler(program))


def can_be(program: Program) -> bool:
    """Tell whether its features go together. What goes wrong is said by the trips."""
    settings = {one for one in program.row.items() if not one[0].startswith(("trouble", "stop"))}
    return all(fits(settings - {one}, one) for one in settings)


def shrink(report: Report, again: Callable[[Program], Report], *, tries: int = 600) -> Report:
    """Return what a smaller program comes to, which fails in the same way."""
    kind = kind_of(report.violations[0])
    plain = {name: PLAIN[name] for name in FEATURES if name.startswith(("trouble", "stop"))}

    def fails(program: Program) -> Report | None:
        other = again(program)
        return other if any(kind_of(one) == kind for one in other.violations) else None

    best = fails(report.program.with_(**plain)) or report
    _, smallest, _ = shrink_any(best.program, best, simpler, fails, tries=tries)
    return smallest
