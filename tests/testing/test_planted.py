"""Planted bugs: which of them `simulate` finds, and that it is silent without them."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from shoal.testing import SimulationFailed, simulate

from .planted import crawl, search, shop

FOUND = {
    # What is planted where, what finds it, and what the failure says of it.
    "lost update": (shop, "check", "taken: "),
    "non-idempotent retry": (shop, "check", "charged: "),
    "reducer": (shop, "other result", "its final state"),
    "loser writes": (search, "check", "written: "),
    "swallowed cancellation": (search, "swallowed cancellation", "returned as if it had not"),
    "leak": (search, "leak", "file descriptor"),
    "rate counted twice": (crawl, "check", "calls in a second"),
    "unbounded queue": (crawl, "check", "messages waited"),
    "deadlock": (crawl, "hangs", "enter_async_context(second)"),
}
LATE = ("unbounded queue", "deadlock")
"""Found by the clock jumping before one of many steps: with all faults that takes a second."""


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    for engine in search.ENGINES:
        engine.close()
    search.ENGINES.clear()


@pytest.mark.parametrize("bug", FOUND)
def test_it_finds(bug: str) -> None:
    module, kind, said = FOUND[bug]
    with pytest.raises(SimulationFailed) as failed:
        simulate(
            module.application(bug),
            module.STATE,
            inputs=module.INPUTS,
            check=module.check,
            seeds=500,
            faults=["jumps"] if bug in LATE else None,
        )
    assert failed.value.kind == kind, str(failed.value)
    assert said in str(failed.value)
    with pytest.raises(SimulationFailed) as again:
        simulate(
            module.application(bug), module.STATE, inputs=module.INPUTS, check=module.check,
            replay=failed.value.replay,
        )  # fmt: skip
    assert again.value.kind == kind, "the text that it prints replays it"


@pytest.mark.slow
@pytest.mark.parametrize("module", [shop, search, crawl], ids=["shop", "search", "crawl"])
def test_it_is_silent_without_bugs(module: ModuleType) -> None:
    tried = simulate(
        module.application(), module.STATE, inputs=module.INPUTS, check=module.check, seeds=500
    )
    assert tried.runs == 502  # and the undisturbed ones
