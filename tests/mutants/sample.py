"""Small defects at random places, and the share that the tests notice.

The tests for a defect are those that execute its line, as ``map`` has recorded: first those that go
different ways through its module, then further ones, until they would take too long together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, cast

from .bench import PACKAGES, ROOT, SOURCE, Bench, Verdict
from .operators import Defect, defects

MAP = ROOT / ".mutants-map"
TESTS = (  # all of them, those first that are likely to be chosen: a map may be cut short
    *("tests/limits", "tests/fanout", "tests/engine", "tests/runtime", "tests/events"),
    *("tests/stores", "tests/state", "tests/graph", "tests/borders", "tests/testing", "tests"),
)
WANTED = 0.85
"""The share of defects that must be noticed."""
IMPORTED = 0.1
"""Seconds that another module of tests takes to import."""
MOST = 400
"""Tests that are put in order for a defect: more than there is time for."""
SURVIVORS = Path(__file__).with_name("survivors.md")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("what", choices=["map", "sample"])
    parser.add_argument("tests", nargs="*", help="for `map`: record these anew; default: all")
    parser.add_argument("--count", type=int, default=150, help="how many defects")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--within", default="", help="only in modules whose path contains it")
    parser.add_argument("--work", type=float, default=6, help="seconds of tests for a defect")
    parser.add_argument("--again", type=float, default=60, help="and if these notice nothing")
    parser.add_argument("--seconds", type=float, default=180, help="until tests count as hung")
    options = parser.parse_args(arguments)
    if options.what == "map":
        return make_map(options.tests)
    chosen = choose(options.count, options.seed, options.within)
    return judge(chosen, Selection(options.work, options.again), options.seconds)


def make_map(tests: Sequence[str]) -> int:
    """Run the tests once, each on one backend, and record which lines each of them executes."""
    if not tests:
        MAP.unlink(missing_ok=True)
    with MAP.open("a") as file:  # the text to which the rows after it refer
        file.write(f"{json.dumps(dict(sources()))}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.recorder"]
    command += ["--backends=one", "--timeout=300", "-m", "not slow and not services and not crash"]
    given = {**os.environ, "SHOAL_LINES": str(MAP)}
    return subprocess.call([*command, *(tests or TESTS)], cwd=ROOT, env=given)


def sources() -> Iterator[tuple[str, str]]:
    """Yield the path of each module and its text."""
    for package in PACKAGES:
        for path in sorted((SOURCE / package).rglob("*.py")):
            yield str(path.relative_to(SOURCE)), path.read_text()


def all_defects(within: str = "") -> Iterator[Defect]:
    for name, text in sources():
        if within in name:
            yield from defects(name, text)


def choose(count: int, seed: int, within: str) -> list[Defect]:
    every = list(all_defects(within))
    # In this order, so that a sample of which only the beginning is tried is one as well.
    return random.Random(seed).sample(every, min(count, len(every)))


class Selection:
    """Which tests are run for a defect."""

    def __init__(self, *works: float) -> None:
        self._works = works
        self._seconds: dict[str, float] = {}
        self._texts: list[Mapping[str, str]] = []
        # By module and test: in which of the texts, and a bit for each line.
        self._lines: dict[str, dict[str, tuple[int, int]]] = {}
        for line in MAP.read_text().splitlines():
            row: Any = json.loads(line)
            if isinstance(row, dict):
                self._texts.append(cast("dict[str, str]", row))
                continue
            seconds, test, modules = row
            self._seconds[test] = seconds
            for module, bits in modules.items():
                there = self._lines.setdefault(module, {})
                there[test] = len(self._texts) - 1, int(bits, 16)

    def tests(self, defect: Defect) -> Iterator[list[str]]:
        """Yield tests that execute a defect's line: as many as there is time for, then further."""
        lines = self._lines.get(defect.module, {})
        now = (SOURCE / defect.module).read_text()
        at = [line_before(texts.get(defect.module, ""), now, defect.line) for texts in self._texts]
        there = [test for test, (text, bits) in lines.items() if bits >> at[text] & 1]
        if not there:  # perhaps the interpreter tells of the statement's first line alone
            statement = (2 << (defect.last - defect.line)) - 1
            there = [test for test, (text, bits) in lines.items() if bits & (statement << at[text])]
        bits_of = {test: lines[test][1] for test in there}
        tests = list(filter(exists, islice(in_order(bits_of, self._seconds), MOST)))
        for work in self._works:
            chosen = dict.fromkeys(self._cut(tests, work))
            tests = [test for test in tests if test not in chosen]
            # Each module's tests together, so that it is imported once.
            yield sorted(chosen, key=module_of)

    def _cut(self, tests: Iterable[str], work: float) -> Iterator[str]:
        """Yield tests as long as there is time for them, and the first one in any case."""
        left, modules = work, set[str]()
        for test in tests:
            module = module_of(test)
            seconds = self._seconds[test] + (0 if module in modules else IMPORTED)
            if left >= seconds or not modules:
                left -= seconds
                modules.add(module)
                yield test
            elif left < IMPORTED:
                return


def in_order(bits_of: Mapping[str, int], seconds: Mapping[str, float]) -> Iterator[str]:
    """Yield tests so that the first ones differ as much as they can in what they execute.

    Many tests go the same way through a module, and what one of them doesn't notice the others will
    hardly. So each round takes tests that execute lines which no test of the round has executed,
    for as little time as possible.
    """
    left = dict(bits_of)
    while left:
        seen = 0
        while True:
            news = {test: (bits & ~seen).bit_count() for test, bits in left.items()}
            news = {test: new for test, new in news.items() if new}
            if not news:
                break
            test = max(news, key=lambda test: news[test] / (seconds[test] + IMPORTED))
            seen |= left.pop(test)
            yield test


def line_before(before: str, now: str, line: int) -> int:
    """Return which line of a text became a line of the changed text, or the nearest one above."""
    if before == now:
        return line
    matcher = SequenceMatcher(None, before.splitlines(), now.splitlines(), autojunk=False)
    found = 0
    for first, first_now, size in matcher.get_matching_blocks():
        if first_now < line:
            found = first + min(line - first_now, size)
    return found


def exists(test: str) -> bool:
    """Whether a test is still there: pytest runs none at all if one of them isn't."""
    module, _, name = test.partition("::")
    function = name.partition("[")[0].rpartition("::")[2]
    path = ROOT / module
    return path.exists() and f"def {function}(" in path.read_text()


def module_of(test: str) -> str:
    return test.partition("::")[0]


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
            began, tried, rounds = monotonic(), 0, 0
            verdict = Verdict("survived")
            changed = {defect.module: defect.apply((SOURCE / defect.module).read_text())}
            for tests in selection.tests(defect):
                if tests and verdict.ending == "survived":
                    tried, rounds = tried + len(tests), rounds + 1
                    verdict = bench.judge(changed, tests, seconds=seconds)
            # What can't even be imported is noticed at once. If the first tests could be run, it is
            # the others that don't go together.
            is_noticed = verdict.is_noticed or (verdict.ending == "unfit" and rounds == 1)
            noticed += is_noticed
            how = verdict.ending if tried else "untested"
            if not is_noticed:
                survivors.append(defect)
            took = monotonic() - began
            print(f"{how:8} {took:5.1f} s {tried:4}  {defect.line}: {defect.key}", flush=True)
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
