"""Break the source, and see whether the tests notice.

python -m tests.mutants [PART...]             the patches whose names or invariants contain it
python -m tests.mutants map                   which test executes what, for `sample`: takes long
python -m tests.mutants sample --count 150    small defects at random places of three packages
"""

from __future__ import annotations

import argparse
import sys
from time import monotonic

from . import patches
from .bench import Bench
from .patches import Patch

ONE_BACKEND = "not trio and not uvloop and not eager"


def main() -> int:
    if sys.argv[1:2] in (["map"], ["sample"]):
        from . import sample

        return sample.main(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("part", nargs="*", help="of a name or an invariant; default: all patches")
    parser.add_argument("--seconds", type=float, default=300, help="for the test of one patch")
    parser.add_argument("--whole", action="store_true", help="run the test's whole module")
    options = parser.parse_args()
    chosen = [
        patch
        for patch in patches.read()
        if not options.part
        or any(part in f"{patch.invariant}: {patch.name}" for part in options.part)
    ]
    return try_all(chosen, options.seconds, whole=options.whole)


def try_all(chosen: list[Patch], seconds: float, *, whole: bool) -> int:
    """Apply each patch, run its test, and print what came of it; return how many went unnoticed."""
    bench, unnoticed = Bench(), 0
    try:
        for patch in chosen:
            tests = [f"tests/{patch.red}"]
            if whole:
                tests = [tests[0].partition("::")[0], "-k", ONE_BACKEND]
            began = monotonic()
            verdict = bench.judge(patch.changed(), tests, seconds=seconds)
            unnoticed += not verdict.is_noticed
            took = monotonic() - began
            print(f"{verdict.ending:8} {took:5.1f} s  {patch.invariant}: {patch.name}")
            if verdict.by or not verdict.is_noticed:
                print(f"{'':18}{verdict.by or patch.red}", flush=True)
    finally:
        bench.close()
    print(f"{len(chosen)} patches, {unnoticed} of them unnoticed")
    return unnoticed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
