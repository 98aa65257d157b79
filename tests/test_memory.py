"""Memory follows what is in flight, not what there is to do."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Done, FanOut, Limits, State, action, fan_out

SLACK = 2_000_000  # bytes that a peak may be above that of a hundredth of the elements


@action(reads=["item"], writes=["out"])
async def echo(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item


@action(reads=["item"], writes=["out"], run_in="loop")
def at_once(item: int) -> int:
    return item


def count(state: State, _: Done) -> State:
    return state.increment(count=1)


def count_slowly(state: State, outcome: Done) -> State:
    # Slow beside the children, which end at once: it, not they, sets the pace.
    return state.update(sums=sum(range(50)) + outcome.position).increment(count=1)


def count_by_bucket(state: State, outcome: Done) -> State:
    bucket = outcome.element % 10
    counts = state["counts"]
    return state.put("counts", bucket, counts.get(bucket, 0) + 1).increment(count=1)


def numbers(state: State) -> Iterator[int]:
    yield from range(state["n"])


def three_more(state: State, outcome: Done) -> Iterable[int]:
    """Keep the frontier below 100 wide: each of the first levels has three, then one."""
    element, n = outcome.element, state["n"]
    if element < 40:
        following = range(3 * element + 1, 3 * element + 4)
    else:
        following = range(element + 81, element + 82)
    return [item for item in following if item < n]


def fan_out_of(kind: str) -> FanOut:
    common: dict[str, Any] = {"reads": ["n"], "name": "f", "limits": Limits(100)}
    match kind:
        case "generator":
            return fan_out(echo, over=numbers, reduce=count, writes=["count"], **common)
        case "grow":
            return fan_out(
                echo, over=lambda _: [0], grow=three_more, reduce=count, writes=["count"], **common
            )
        case "slow reducer":
            return fan_out(
                at_once, over=numbers, reduce=count_slowly, writes=["count", "sums"], **common
            )
        case _:
            return fan_out(
                at_once, over=numbers, reduce=count_by_bucket, writes=["count", "counts"], **common
            )


KINDS = ["generator", "grow", "slow reducer", "overwriting"]


def peak(kind: str, n: int, backend: Literal["asyncio", "trio"]) -> int:
    application = Application(fan_out_of(kind))
    gc.collect()
    tracemalloc.start()
    try:
        result = application.run_sync({"n": n, "count": 0, "counts": {}}, backend=backend)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.state["count"] == (n if kind != "grow" else result.outcomes("f").done)
    assert result.state["count"] >= n // 2
    return most


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_peak_does_not_grow_with_the_number_of_elements(
    kind: str, backend: Literal["asyncio", "trio"]
) -> None:
    peak(kind, 1_000, backend)  # imports and caches
    assert peak(kind, 20_000, backend) <= peak(kind, 2_000, backend) + SLACK // 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_peak_at_a_million_is_that_at_ten_thousand(
    kind: str, backend: Literal["asyncio", "trio"], capsys: pytest.CaptureFixture[str]
) -> None:
    many = 1_000_000 if backend == "asyncio" else 100_000
    few, most = peak(kind, 10_000, backend), peak(kind, many, backend)
    with capsys.disabled():
        print(f"\n{kind}, {backend}: {few / 1e6:.2f} MB at 10,000, {most / 1e6:.2f} MB at {many:,}")
    assert most <= few + SLACK
