"""``python -m tests.crash --kills 100 --seed 1``: kill a process at its most delicate moments."""

import argparse
import sys
import time
from pathlib import Path

from .harness import BACKENDS, Wrong, crash
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
    given = parser.parse_args()
    since = time.monotonic()
    backends = BACKENDS if given.backend is None else (given.backend,)
    more = {"seed": given.seed, "store": given.store, "only": given.only, "keep": given.keep}
    try:
        tally = crash(given.kills, backends=backends, **more)
    except Wrong as error:
        sys.exit(str(error))
    print(
        f"{given.store} on {' and '.join(backends)}, seed {given.seed}: "
        f"{sum(tally.kills.values())} kills in {tally.rounds} runs and {tally.lives} lives, "
        f"{tally.wasted} more before any new effect, {time.monotonic() - since:.0f} s; "
        f"{tally.again} bodies ran again whose end was not kept yet"
    )
    print(tally.table())


main()
