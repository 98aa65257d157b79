"""Small defects at random places, and the share that the tests notice.

The tests for a defect are those that execute its lines, as ``map`` has recorded: first the quickest
of each module, then further ones, until they would take too long together.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from time import monotonic

from .bench import ROOT, SOURCE, Bench, Verdict
from .operators import Defect, defects

PACKAGES = ("_engine", "_limits")
"""The engine's run and its fan-outs, and the limits."""
TESTS = ("tests/limits", "tests/fanout", "tests/engine", "tests/runtime", "tests/borders")
WANTED = 0.85
"""The share of defects that must be noticed."""
MAP = ROOT / ".mutants-map"
DURATIONS = ROOT / ".mutants-durations"
SURVIVORS = Path(__file__).with_name("survivors.md")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("what", choices=["map", "sample"])
    parser.add_argument("--count", type=int, default=150, help="how many defects")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--within", default="", help="only in modules whose path contains it")
    parser.add_argument("--work", type=float, default=15, help="seconds of tests for a defect")
    parser.add_argument("--seconds", type=float, default=180, help="until tests count as hung")
    options = parser.parse_args(arguments)
    if options.what == "map":
        return make_map()
    chosen = choose(options.count, options.seed, options.within)
    return judge(chosen, Selection(options.work), options.seconds)


def make_map() -> int:
    """Run the tests once, and record which lines each of them executes."""
    DURATIONS.unlink(missing_ok=True)
    settings = ROOT / ".mutants-settings"
    sources = "".join(f"\n    src/shoal/{package}" for package in PACKAGES)
    settings.write_text(f"[run]\nrelative_files = true\nsource ={sources}\n")
    command = [sys.executable, "-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest"]
    command += ["-q", "-p", "tests.mutants.recorder", "--timeout=300"]
    command += ["-m", "not slow and not services and not crash", *TESTS]
    # Another core of coverage's knows no contexts.
    given = {
        "COVERAGE_FILE": str(MAP),
        "SHOAL_DURATIONS": str(DURATIONS),
        "COVERAGE_CORE": "ctrace",
    }
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **given})


def all_defects(within: str = "") -> Iterator[Defect]:
    for package in PACKAGES:
        for path in sorted((SOURCE / package).rglob("*.py")):
            name = str(path.relative_to(SOURCE))
            if within in name:
                yield from defects(name, path.read_text())


def choose(count: int, seed: int, within: str) -> list[Defect]:
    every = list(all_defects(within))
    # In this order, so that a sample of which only the beginning is tried is one as well.
    return random.Random(seed).sample(every, min(count, len(every)))


class Selection:
    """Which tests are run for a defect."""

    def __init__(self, work: float) -> None:
        import coverage

        self._work = work
        self._data = coverage.CoverageData(str(MAP))
        self._data.read()
        self._seconds = dict(_durations())
        self._by_file: dict[str, Mapping[int, Iterable[str]]] = {}

    def tests(self, defect: Defect) -> list[str]:
        """Return the tests that execute the statement of a defect, as many as there is time for."""
        if defect.module not in self._by_file:
            # The statement decides, and not its first line: a condition may have been passed over.
            found = self._data.contexts_by_lineno(f"src/shoal/{defect.module}")
            self._by_file[defect.module] = found
        lines = self._by_file[defect.module]
        first = [test for test in lines.get(defect.line, ()) if test]
        there = first or [
            test for line in range(defect.line, defect.last + 1) for test in lines.get(line, ())
        ]
        by_module: dict[str, list[str]] = {}
        for test in sorted(set(there) - {""}, key=lambda test: self._seconds.get(test, 1.0)):
            by_module.setdefault(test.partition("::")[0], []).append(test)
        chosen: list[str] = []
        left = self._work
        for some in zip_longest(*by_module.values()):
            for test in filter(None, some):
                left -= self._seconds.get(test, 1.0)
                if chosen and left < 0:
                    return sorted(chosen)
                chosen.append(test)
        return sorted(chosen)  # each module's tests together, so that it is imported once


def _durations() -> Iterator[tuple[str, float]]:
    for line in DURATIONS.read_text().splitlines():
        seconds, _, test = line.partition("\t")
        yield test, float(seconds)


def known() -> frozenset[str]:
    """Return the survivors that have a reason."""
    text = SURVIVORS.read_text() if SURVIVORS.exists() else ""
    return frozenset(re.findall(r"^- (.*)$", text, flags=re.MULTILINE))


def judge(chosen: Sequence[Defect], selection: Selection, seconds: float) -> int:
    """Run the tests with each defect, and print what came of it; return whether it is too bad."""
    bench, excused, survivors = Bench(), known(), list[Defect]()
    noticed = 0
    try:
        for defect in chosen:
            began = monotonic()
            tests = selection.tests(defect)
            verdict = Verdict("survived")
            if tests:
                text = (SOURCE / defect.module).read_text()
                changed = {defect.module: defect.apply(text)}
                verdict = bench.judge(changed, tests, seconds=seconds)
            # What can't even be imported is noticed at once.
            is_noticed = verdict.is_noticed or verdict.ending == "unfit"
            noticed += is_noticed
            how = verdict.ending if tests else "untested"
            if not is_noticed:
                survivors.append(defect)
            took = monotonic() - began
            print(f"{how:8} {took:5.1f} s {len(tests):4}  {defect.line}: {defect.key}", flush=True)
    finally:
        bench.close()
    # Those with a reason change nothing that a test could notice.
    real = [one for one in survivors if one.key not in excused]
    equal = len(survivors) - len(real)
    share = noticed / max(1, len(chosen) - equal)
    print(f"{noticed} of {len(chosen)} were noticed, and {equal} have a reason: {share:.1%}")
    for one in real:
        print(f"- {one.key}")
    return int(share < WANTED)
