"""Programs on Ray and their actors are killed at random times: nothing is lost or applied twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.executors.clusters import HAS_RAY, RayCluster, ray_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.crash,
    pytest.mark.services,
    pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'shoal[ray]'"),
    pytest.mark.timeout(3000),
]

KILLS = int(os.environ.get("SHOAL_KILLS", "100"))
CHILDREN = 100


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as found:
        yield found


class Rounds:
    """Runs one after another, whose processes are killed."""

    def __init__(self, cluster: RayCluster, seed: int):
        self.kills: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._cluster = cluster

    def run(self, number: int) -> None:
        """Run a program to its end, however often it is killed; check what has become of it."""
        backend = ("asyncio", "trio")[number % 2]
        with tempfile.TemporaryDirectory() as folder:
            while True:
                said = self._live(folder, str(number), backend)
                if said is not None:
                    break
            keys = list(range(CHILDREN))
            assert said is not None
            assert sorted(said["order"]) == keys
            assert said["total"] == 2 * sum(keys)
            assert said["left"] == {}
            effects = Counter(map(int, (Path(folder) / "effects").read_text().split()))
            assert set(effects) == set(range(CHILDREN))

    def _live(self, folder: str, run: str, backend: str) -> dict[str, Any] | None:
        """Run the program until it ends or is killed; return what it has said, if it has ended."""
        module = ["-m", "tests.executors.ray_life"]
        of_run = [self._cluster.address, folder, run, str(CHILDREN), backend]
        program = [sys.executable, *module, *of_run]
        effects = Path(folder) / "effects"
        before = effects.stat().st_size if effects.exists() else 0
        with subprocess.Popen(
            program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                time.sleep(self._chance.uniform(0, 0.5))
                begun = effects.exists() and effects.stat().st_size > before
                if not begun or self.kills.total() >= KILLS:
                    continue  # a life in which nothing happened would be no test
                before = effects.stat().st_size
                if self._chance.random() < 0.25:
                    process.kill()
                    self.kills["program"] += 1
                    break
                alive = sorted(self._cluster.actors())
                if alive:
                    with suppress(ProcessLookupError):
                        os.kill(self._chance.choice(alive), signal.SIGKILL)
                        self.kills["actor"] += 1
            said, errors = process.communicate()
        if process.returncode == -signal.SIGKILL:
            return None
        assert process.returncode == 0, errors
        # Among lines of Ray's own.
        return json.loads(next(line for line in said.splitlines() if line.startswith("{")))


def shared_memory() -> set[str]:
    """Return the pieces of shared memory that Ray or we have named."""
    names = {one.name for one in Path("/dev/shm").iterdir()}  # looked at, not used
    return {name for name in names if "ray" in name or "plasma" in name or "shoal" in name}


def test_nothing_is_lost_and_nothing_applied_twice(cluster: RayCluster):
    shared = shared_memory()
    rounds = Rounds(cluster, seed=int(os.environ.get("SHOAL_SEED", "1")))
    number = 0
    while rounds.kills.total() < KILLS:
        number += 1
        rounds.run(number)
    print(f"{number} runs, {dict(rounds.kills)} killed")
    until = time.monotonic() + 30
    while cluster.actors():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert shared_memory() == shared
