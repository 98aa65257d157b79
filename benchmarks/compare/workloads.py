"""What is measured: the same work for every contender, with results that are checked.

Imports nothing but the standard library: it is imported in the processes of all contenders, some of
which run in environments without shoal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Job(NamedTuple):
    """One measured run of a program."""

    items: int
    limit: int
    folder: Path
    """An empty folder of its own, on a disk."""
    backend: Literal["asyncio", "trio"]


Program = Callable[[Job], object]
"""Does the work and returns its result; or a ``Part``, if not all of that is what is measured."""


class Part(NamedTuple):
    """A result, and the part of the time that counts: what follows a preparation, for example."""

    result: object
    wall: float
    cpu: float


@dataclass(frozen=True)
class Workload:
    """One kind of work."""

    title: str
    check: Callable[[Any, Job], bool]
    """Returns whether a result is right."""
    sizes: tuple[tuple[int, int], ...] = ((1_000, 20),)
    """Numbers of items, each with the most that are in flight."""
    more: tuple[tuple[int, int], ...] = ()
    """Sizes that take long: measured with ``--all``."""
    unit: str = "item"
    """What the times are per."""
    clock: Literal["cpu", "wall"] = "cpu"
    """Which time the ratio compares. Processor time depends less on what else the machine does;
    where a program waits for a disk or a timer, its waits are what counts."""
    base: str = ""
    """The key of the loop by hand that the ratio compares with; by default, of the first."""
    prepares: bool = False
    """Whether the program is called twice, and only the second time is measured."""


def doubled(result: Any, job: Job) -> bool:
    """Each number has its double, in a mapping."""
    return dict(result) == {n: 2 * n for n in range(job.items)}


def four_times(result: Any, job: Job) -> bool:
    return dict(result) == {n: 4 * n for n in range(job.items)}


def listed(result: Any, job: Job) -> bool:
    return sorted(result) == [2 * n for n in range(job.items)]


def counted(result: object, job: Job) -> bool:
    return result == job.items


def summed(result: Any, job: Job) -> bool:
    """Groups of ten, of whose doubles each has the sum."""
    return dict(result) == {
        group: sum(2 * n for n in range(10 * group, 10 * group + 10))
        for group in range(job.items // 10)
    }


def anything(_result: object, _job: Job) -> bool:
    return True


EVERYDAY = ((1_000, 5), (1_000, 20), (1_000, 100), (5_000, 5), (5_000, 20), (5_000, 100))
LARGE = (100_000, 100)

WORKLOADS: Mapping[str, Workload] = {
    "map": Workload(
        "map", doubled, ((100, 20), *EVERYDAY, LARGE), more=((10_000, 100), (1_000_000, 100))
    ),
    "state": Workload("map, State in and out", doubled, ((5_000, 20), LARGE)),
    "two": Workload("map, two steps", four_times, EVERYDAY),
    "eleven": Workload("map, ten further steps", doubled, ((5_000, 20),)),
    "sleep": Workload("map, each sleeps 1 ms", doubled, ((2_000, 20),), clock="wall"),
    "nested": Workload("nested map, ten in each", summed, ((5_000, 20),)),
    "list": Workload("map into a list", listed, ((5_000, 20),)),
    "count": Workload("map, counted", counted, ((5_000, 20),)),
    "hook": Workload("map, a hook on each update", doubled, ((5_000, 20),)),
    "hooks": Workload("map, five hooks on each update", doubled, ((5_000, 20),)),
    "stream": Workload("map, a consumer of each update", doubled, ((5_000, 20),)),
    "capacity": Workload("map, an application's limit", doubled, ((5_000, 20),)),
    "rate": Workload("map, a rate", doubled, ((5_000, 20),)),
    "race": Workload("race of three", counted, ((300, 3),), unit="race"),
    "race1000": Workload("race of a thousand", counted, ((2_000, 1_000),), unit="contestant"),
    "race-seen": Workload(
        "race of three, until its winner is published",
        counted,
        ((100, 3),),
        unit="race",
        clock="wall",
    ),
    "race-back": Workload(
        "race of three, until it has returned",
        counted,
        ((100, 3),),
        unit="race",
        clock="wall",
        base="anyio",
    ),
    "cancel": Workload(
        "cancelling, to the last child", counted, ((10_000, 10_000),), unit="child", base="anyio"
    ),
    "run": Workload("a run of one step", counted, ((300, 1),), unit="run"),
    "service": Workload(
        "a service's requests of four calls each", counted, ((400, 20),), unit="request"
    ),
    "threads": Workload("map, plain functions in threads", doubled, ((2_000, 20),)),
    "memory": Workload(
        "children in flight at once", counted, ((10_000, 10_000),), unit="child in flight"
    ),
    "durable": Workload(
        "durable map", doubled, ((100, 20), (1_000, 20)), ((10_000, 100), LARGE), clock="wall"
    ),
    "durable-run": Workload(
        "a durable run of one step", counted, ((100, 1),), unit="run", clock="wall"
    ),
    "resume": Workload(
        "durable map, resumed before the last", doubled, ((1_000, 20),), clock="wall", prepares=True
    ),
    "start": Workload("import", anything, ((1, 1),), unit="start"),
}
