"""The random applications of `test_graphs`, simulated: everything goes wrong around them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from shoal import Application, MemoryStore
from shoal.testing import SimulationFailed, simulate

from .test_graphs import Program, place


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(4))
def test_random_applications_survive(block: int) -> None:
    for seed in range(40 * block, 40 * (block + 1)):
        place.set("r")
        program = Program(Random(f"simulated {seed}"), on_asyncio=False)
        if program.failures:  # some of its steps raise by themselves
            continue

        def given(program: Program = program) -> dict[str, Any]:
            place.set("r")
            return program.given

        settings = {name: one for name, one in program.settings.items() if name != "hooks"}
        app = Application(program.graph, store=MemoryStore(), **settings)
        try:
            simulate(app, given, seeds=range(12 * seed, 12 * (seed + 1)))
        except SimulationFailed as failed:
            if "OSError: cleanup" not in str(failed):  # which some raise by themselves
                raise
