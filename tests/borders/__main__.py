"""Plays programs by hand: ``python -m tests.borders --programs 1000 --seed 7``."""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections import Counter

from .generate import covering_rows, program
from .play import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.borders", description=__doc__)
    parser.add_argument("--programs", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--store", choices=["memory", "sqlite"], default="memory")
    parser.add_argument("--stop-after", type=int, default=10, help="failures, then stop")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    ends, failures, started = Counter[str](), 0, time.monotonic()
    covering_rows()
    gc.collect()
    gc.freeze()
    for seed in range(given.seed, given.seed + given.programs):
        report = play(program(seed), given.backend)
        ends.update(report.ends)
        if report.violations:
            failures += 1
            print(report, flush=True)
            if failures >= given.stop_after:
                break
    took = time.monotonic() - started
    count = seed + 1 - given.seed
    each = f"{1000 * took / count:.1f} ms each, {1000 * time.process_time() / count:.1f} of CPU"
    print(f"{count} programs, {failures} failures, {each}; {dict(ends)}")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
