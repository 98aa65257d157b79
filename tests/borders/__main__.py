"""Plays programs by hand: ``python -m tests.borders --programs 1000 --seed 7``.

One that fails is printed as small as it can be made, with the options that play just that one:
``python -m tests.borders --exactly 7 "place=fan" "1:raises:act:2"`` is the plain program of seed 7,
but for a feature, and for what goes wrong in its first life when an action is called the 2nd time.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable

from .coverage import Coverage
from .generate import covering_rows, program
from .play import Report, play, play_all
from .program import FEATURES, PLAIN, Program, Trip
from .shrink import kind_of, shrink
from .stores import stores_of


def exactly(seed: int, words: Iterable[str], schedule: int | None, changes_in: int) -> Program:
    """Make a program of what its ``command`` says."""
    row, trips = dict(PLAIN), list[Trip]()
    for word in words:
        if "=" in word:
            feature, level = word.split("=")
            if level not in FEATURES[feature]:
                sys.exit(f"{feature} is one of {FEATURES[feature]}")
            row[feature] = level
        else:
            life, what, at, nth = word.split(":")
            trips.append(Trip(int(life), at, int(nth), what))
    return Program(seed, row, tuple(trips), schedule, changes_in)


def without(made: Program, features: Iterable[str]) -> Program:
    """Have some features plain."""
    return made.with_(**{name: PLAIN[name] for name in features})


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.borders", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--programs", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--store", choices=["memory", "sqlite"], default="memory")
    parser.add_argument("--stop-after", type=int, default=10, help="kinds of failures")
    parser.add_argument("--without", nargs="*", default=[], help="features that stay plain")
    parser.add_argument("--exactly", type=int, help="play one program: its seed")
    parser.add_argument("--schedule", type=int, help="of that one")
    parser.add_argument("--changes-in", type=int, default=2, help="the life, of that one")
    parser.add_argument("words", nargs="*", help="features and trips of that one")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with stores_of(given.store) as make_store:

        def again(tried: Program) -> Report:
            return play(tried, given.backend, make_store, collect=True)

        if given.exactly is not None:
            report = again(exactly(given.exactly, given.words, given.schedule, given.changes_in))
            print(report)
            return int(bool(report.violations))
        ends, kinds, failures = Counter[str](), Counter[str](), 0
        coverage = Coverage()
        covering_rows()
        started, count = time.monotonic(), 0
        numbers = range(given.seed, given.seed + given.programs)
        chosen = (without(program(number), given.without) for number in numbers)
        for report in play_all(chosen, given.backend, make_store):
            count += 1
            ends.update(report.ends)
            coverage.add(report.program.row)
            if not report.violations:
                continue
            failures += 1
            kind = kind_of(report.violations[0])
            kinds[kind] += 1
            if kinds[kind] == 1:
                print(shrink(report, again), flush=True)
            if len(kinds) >= given.stop_after:
                break
        took = time.monotonic() - started
    each = f"{1000 * took / count:.1f} ms each, {1000 * time.process_time() / count:.1f} of CPU"
    print(f"{count} programs, {failures} failures, {each}")
    print(f"lives ended: {dict(ends)}")
    for kind, times in kinds.most_common():
        print(f"{times:6} {kind}")
    print(coverage)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
