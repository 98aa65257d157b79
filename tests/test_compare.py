"""The programs that are measured beside each other do the same work; their figures are drawn."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.compare import by_hand, ours
from benchmarks.compare.__main__ import flatness
from benchmarks.compare.plot import plot
from benchmarks.compare.workloads import WORKLOADS, Job, Part, Program

RATIOS = Path(__file__).parent.parent / "benchmarks" / "compare" / "ratios.json"
CONTENDERS: dict[str, dict[str, Program]] = {
    **ours.contenders("asyncio"),
    **by_hand.contenders("asyncio"),
}
PROGRAMS = [(name, work) for name, programs in CONTENDERS.items() for work in programs]


@pytest.mark.parametrize(("name", "work"), PROGRAMS)
def test_each_program_does_the_work_that_is_compared(name: str, work: str, tmp_path: Path):
    workload, program = WORKLOADS[work], CONTENDERS[name][work]
    items, limit = (20, 20) if work in ("race1000", "memory", "cancel") else (20, 5)
    if workload.unit in ("run", "race"):
        items = 3
    job = Job(items, limit, tmp_path, "asyncio")
    if workload.prepares:
        program(job)
    result = program(job)
    if isinstance(result, Part):
        assert result.wall > 0
        assert result.cpu > 0
        result = result.result
    assert workload.check(result, job)


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


def test_how_flat_the_time_of_an_item_is_is_said_where_sizes_differ():
    row = {"name": "shoal", "cpu": 10.0}
    tables = {
        "map 1000 100 asyncio": [row],
        "map 1000000 100 asyncio": [{**row, "cpu": 12.0}],
        "map 1000 20 asyncio": [row],
    }
    (said,) = flatness(tables)
    assert said.startswith("map, 100 in flight, asyncio: from 1,000 to 1,000,000 items")
    assert "1.20 times" in said
