"""Border programs: all pairs of features, and random programs, against the model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import pytest

from .coverage import Coverage
from .generate import covering_rows, program
from .known import is_known
from .play import Report, play, play_all
from .program import PLAIN, Backend, Program, Trip
from .shrink import shrink
from .stores import stores_of

pytestmark = pytest.mark.sweep

BLOCK = 1000  # programs


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    """What programs do is logged as what it is: errors."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(programs: Iterable[Program], backend: Backend, kind: str = "memory") -> None:
    with stores_of(kind) as make_store:
        failed = [
            report
            for report in play_all(programs, backend, make_store)
            if report.violations and not is_known(report.program, report.violations)
        ]
        if not failed:
            return

        def again(tried: Program) -> Report:
            return play(tried, backend, make_store, collect=True)

        smallest = shrink(failed[0], again, tries=200)
    pytest.fail(f"{len(failed)} programs fail; one, made small: {smallest}", pytrace=False)


def test_every_pair_of_features_occurs():
    coverage = Coverage()
    for seed in range(len(covering_rows())):
        coverage.add(program(seed).row)
    assert not coverage.missing


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_of_all_pairs(backend: Backend):
    check(map(program, range(len(covering_rows()))), backend)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_programs(backend: Backend):
    check(map(program, range(1000, 1200)), backend)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_programs_in_a_file(backend: Backend):
    check(map(program, range(1200, 1300)), backend, "sqlite")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_programs(backend: Backend, kind: str, block: int):
    first = 10_000 + block * BLOCK
    check(map(program, range(first, first + BLOCK)), backend, kind)


def test_a_program_is_the_same_each_time():
    first, second = (play(program(1003), "asyncio") for _ in range(2))
    assert first.ends == second.ends
    assert first.program == second.program


def test_a_program_that_fails_is_made_small():
    """Here, one fails that has three things in it; all else is left out."""

    def pretend(tried: Program) -> Report:
        has = tried["grow"] == "yes" and tried["width"] == "6" and tried.trips
        return Report(tried, "asyncio", ["it fails"] if has else [])

    trips = (Trip(1, "act", 8, "raises"), Trip(2, "save", 3, "dies"))
    row = {**PLAIN, "grow": "yes", "width": "6", "limits": "rate", "after": "yes", "steps": "3"}
    small = shrink(pretend(Program(1, row, trips, 7)), pretend).program
    assert small.features == {"grow": "yes", "width": "6"}
    assert small.trips == (Trip(2, "save", 1, "dies"),)
    assert small.schedule is None
