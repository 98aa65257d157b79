"""Planted bugs: which of them tests by hand find, and hypothesis, without `shoal.testing`.

The guide "Testing concurrent applications" has the table; `test_the_table_of_the_guide` holds it to
`VERDICTS`, and the other tests compute these.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from shoal import Application
from shoal.testing import run_virtual

from .planted import by_hand, crawl, search, shop, stateful

GUIDE = Path(__file__).parents[2] / "docs/guides/testing.md"


class Verdict(NamedTuple):
    """Ways to find a planted bug besides shoal's tools."""

    module: ModuleType
    by_hand: str
    """ "yes"; or "only if thought of", where only the test in ``WRITTEN_FOR`` does."""
    by_hypothesis: str


VERDICTS = {
    "lost update": Verdict(shop, "yes", "yes"),
    "non-idempotent retry": Verdict(shop, "only if thought of", "yes"),
    "loser writes": Verdict(search, "yes", "yes"),
    "reducer": Verdict(shop, "yes", "yes"),
    "swallowed cancellation": Verdict(search, "yes", "yes"),
    "leak": Verdict(search, "only if thought of", "no"),
    "rate counted twice": Verdict(crawl, "yes", "yes"),
    "unbounded queue": Verdict(crawl, "only if thought of", "no"),
    "deadlock": Verdict(crawl, "only if thought of", "yes"),
    "changed graph": Verdict(crawl, "only if thought of", "no"),
}
"""By bug, in the order of the guide."""

FAILURES = (AssertionError, BaseExceptionGroup, TimeoutError, pytest.fail.Exception)
Start = Callable[..., object]


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    for engine in search.ENGINES:
        engine.close()
    search.ENGINES.clear()


def maker(module: ModuleType, bug: str = "") -> by_hand.Make:
    def make() -> Application[Any]:
        # The changed graph is no bug of the crawler's: only its test has two versions.
        return module.application("" if bug == "changed graph" else bug)

    return make


def finds(test: by_hand.Test, module: ModuleType, bug: str, begin: Start = run_virtual) -> bool:
    try:
        begin(partial(test, maker(module, bug)))
    except FAILURES:
        return True
    return False


def really(main: Callable[[], Any]) -> None:
    asyncio.run(main())


def find_by_hand(bug: str) -> tuple[str, by_hand.Test]:
    """Return the verdict, and the test that finds the bug."""
    module = VERDICTS[bug].module
    for test in by_hand.CAREFUL[module]:
        if finds(test, module, bug):
            return "yes", test
    test = by_hand.WRITTEN_FOR[bug]
    assert finds(test, module, bug), "a user who has thought of it finds it"
    return "only if thought of", test


@pytest.mark.parametrize("bug", VERDICTS)
def test_what_is_found_by_hand(bug: str):
    verdict, _ = find_by_hand(bug)
    assert verdict == VERDICTS[bug].by_hand


@pytest.mark.parametrize("module", by_hand.CAREFUL, ids=lambda one: one.__name__.split(".")[-1])
def test_tests_by_hand_pass_without_bugs(module: ModuleType):
    pass_without_bugs(module, run_virtual)


def pass_without_bugs(module: ModuleType, begin: Start) -> None:
    for test in by_hand.CAREFUL[module]:
        begin(partial(test, maker(module)))
    for bug, test in by_hand.WRITTEN_FOR.items():
        if VERDICTS[bug].module is module and bug != "changed graph":
            begin(partial(test, maker(module)))


@pytest.mark.slow
@pytest.mark.parametrize("module", by_hand.CAREFUL, ids=lambda one: one.__name__.split(".")[-1])
def test_tests_by_hand_pass_without_bugs_in_real_time(module: ModuleType):
    pass_without_bugs(module, really)


@pytest.mark.slow
@pytest.mark.parametrize("bug", VERDICTS)
def test_what_is_found_by_hand_in_real_time(bug: str):
    _, test = find_by_hand(bug)
    assert finds(test, VERDICTS[bug].module, bug, really)


@pytest.mark.slow
@pytest.mark.parametrize("bug", VERDICTS)
def test_what_hypothesis_finds(bug: str):
    module, _, verdict = VERDICTS[bug]
    if bug == "changed graph":  # its machine has one program
        assert verdict == "no"
    elif verdict == "yes":
        with pytest.raises(AssertionError):
            stateful.try_it(module, bug)
    else:
        assert stateful.try_it(module, bug).examples >= 100


@pytest.mark.slow
@pytest.mark.parametrize("module", by_hand.CAREFUL, ids=lambda one: one.__name__.split(".")[-1])
def test_hypothesis_finds_nothing_without_bugs(module: ModuleType):
    machine = stateful.try_it(module, "")
    assert machine.examples >= 100
    assert machine.waited > 1000  # seconds of virtual time, which real tests would wait


def test_the_table_of_the_guide():
    text = GUIDE.read_text("utf-8")
    (table,) = re.findall(r"\| planted bug \|.*\n\| ---.*\n((?:\|.*\n)+)", text)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    said = [(by_hand.partition(":")[0], found) for _, _, by_hand, found in rows]
    assert said == [(one.by_hand, one.by_hypothesis) for one in VERDICTS.values()]
    for column, sentence in (
        ([one.by_hand for one in VERDICTS.values()], "tests by hand find {}"),
        ([one.by_hypothesis for one in VERDICTS.values()], "hypothesis finds {}"),
    ):
        assert sentence.format(IN_WORDS[column.count("yes")]) in text


IN_WORDS = {5: "five", 6: "six", 7: "seven", 8: "eight"}
