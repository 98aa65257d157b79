"""The programs that are measured beside each other do the same work; their figures are drawn."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.compare import by_hand, ours
from benchmarks.compare.plot import plot
from benchmarks.compare.workloads import WORKLOADS, Job, Program

RATIOS = Path(__file__).parent.parent / "benchmarks" / "compare" / "ratios.json"
CONTENDERS: dict[str, dict[str, Program]] = {
    **ours.contenders("asyncio"),
    **by_hand.contenders("asyncio"),
}
PROGRAMS = [(name, work) for name, programs in CONTENDERS.items() for work in programs]


@pytest.mark.parametrize(("name", "work"), PROGRAMS)
def test_each_program_does_the_work_that_is_compared(name: str, work: str, tmp_path: Path):
    workload, program = WORKLOADS[work], CONTENDERS[name][work]
    items, limit = (20, 20) if work in ("race1000", "memory") else (20, 5)
    if workload.unit in ("run", "race"):
        items = 3
    job = Job(items, limit, tmp_path, "asyncio")
    if workload.prepares:
        program(job)
    assert workload.check(program(job), job)


def test_a_wrong_result_is_found():
    job = Job(3, 1, Path(), "asyncio")
    assert WORKLOADS["map"].check({0: 0, 1: 2, 2: 4}, job)
    assert not WORKLOADS["map"].check({0: 0, 1: 2}, job)


def test_the_picture_shows_each_contender_and_its_time():
    rows = [
        {"name": "shoal", "cpu": 10.0, "wall": 20.0},
        {"name": "a < b", "cpu": 3000.0, "wall": 20.0},
    ]
    drawn = ET.fromstring(plot({"map 1000 20 asyncio": rows}, "CPython, two cores"))
    texts = ["".join(text.itertext()) for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"shoal", "a < b", "10.0 µs", "» 3.00 ms", "CPython, two cores"} <= set(texts)


def test_committed_ratios_are_of_work_that_is_measured():
    for cell in json.loads(RATIOS.read_text("utf-8")):
        work, items, limit, backend = cell.rsplit(" ", 3)
        assert work in WORKLOADS
        assert int(items) >= 1
        assert int(limit) >= 1
        assert backend in ("asyncio", "trio")
