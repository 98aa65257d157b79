"""``python -m tests.crash --kills 100 --seed 1``: kill a process at its most delicate moments.

With ``--budgets`` it is killed while it spends.
"""

import argparse
import sys
import time
from pathlib import Path

from . import spending_harness
from .harness import BACKENDS, Wrong, crash
from .spending import FAULTS, MODES
from .stores import STORES


def main() -> None:
    """Kill, and print how often where."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each phase, at least")
    parser.add_argument("--seed", default="1", help="decides who is killed when")
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--backend", choices=BACKENDS, help="by default, all take turns")
    parser.add_argument("--only", type=int, help="the one round to try")
    parser.add_argument("--keep", type=Path, help="a new folder, in which files are left")
    money = parser.add_argument_group("--budgets", "kill processes that spend; --kills in all")
    money.add_argument("--budgets", action="store_true")
    money.add_argument("--children", type=int, default=0, help="at least so many")
    money.add_argument("--size", type=int, default=150, help="of the outer map of each run")
    money.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    money.add_argument("--fault", choices=FAULTS, default="", help="to see that it is found")
    given = parser.parse_args()
    try:
        kill_spenders(given) if given.budgets else kill(given)
    except Wrong as error:
        sys.exit(str(error))


def kill(given: argparse.Namespace) -> None:
    since = time.monotonic()
    backends = BACKENDS if given.backend is None else (given.backend,)
    more = {"seed": given.seed, "store": given.store, "only": given.only, "keep": given.keep}
    tally = crash(given.kills, backends=backends, **more)
    print(
        f"{given.store} on {' and '.join(backends)}, seed {given.seed}: "
        f"{sum(tally.kills.values())} kills in {tally.rounds} runs and {tally.lives} lives, "
        f"{tally.wasted} more before any new effect, {time.monotonic() - since:.0f} s; "
        f"{tally.again} bodies ran again whose end was not kept yet"
    )
    print(tally.table())


def kill_spenders(given: argparse.Namespace) -> None:
    since = time.monotonic()
    tally = spending_harness.crash(
        given.kills,
        children=given.children,
        seed=given.seed,
        store=given.store,
        size=given.size,
        only=given.only,
        modes=tuple(given.modes),
        fault=given.fault,
        keep=given.keep,
    )
    print(
        f"{given.store}, seed {given.seed}: {sum(tally.kills.values())} kills in {tally.rounds} "
        f"rounds and {tally.lives} lives, {tally.children} children and {tally.attempts} attempts "
        f"that cost something, {time.monotonic() - since:.0f} s"
    )
    print(tally.table())


main()
