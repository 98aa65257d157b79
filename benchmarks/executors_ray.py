"""Children on a Ray cluster, beside plain Ray: what one costs, and what calling it elsewhere does.

``python -m benchmarks.executors_ray``. It starts a cluster of two nodes on this machine, with two
processors each, and ends it. Each contender calls the same function as often: plain Ray tasks, all
at once; Ray's ``ActorPool``; Ray actors, all calls at once in turn; and a fan-out whose action is
called in ``Ray()``, with a result that is an update of the parent's state for each child.

Needs the extra ``[ray]``.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import anyio.from_thread

from benchmarks._measure import in_turn, print_table
from shoal import Application, Runtime, action, fan_out
from shoal.executors import Ray

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

ray: Any = import_module("ray")
STORE = 100 << 20
ACTORS = 4


def spin(seconds: float) -> float:
    """Compute for some time."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return seconds


@action(reads=["seconds"], writes=["took"])
def child(seconds: float) -> float:
    return spin(seconds)


@action(reads=["seconds"], writes=["took"])
async def async_child(seconds: float) -> float:
    return spin(seconds)


def call(actor: Any, seconds: float) -> Any:
    return actor.call.remote(seconds)


class Worker:
    def call(self, seconds: float) -> float:
        return spin(seconds)


def of_shoal(runtime: Runtime, act: Any, seconds: float, n: int, run: Any) -> None:
    """Run a fan-out in a runtime that stays open: its actors are warm, as those of the others."""
    took = fan_out(act, over="all", item="seconds", into="took")

    async def main() -> None:
        result = await Application(took).run({"all": [seconds] * n}, runtime=runtime)
        assert len(result.state["took"]) == n

    run(main)


def measure(seconds: float, n: int, rounds: int, runtime: Runtime, run: Any) -> None:
    task = ray.remote(spin)
    workers = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(ACTORS)]
    pool = ray.util.ActorPool(workers)

    def tasks() -> None:
        ray.get([task.remote(seconds) for _ in range(n)])

    def actor_pool() -> None:
        for _ in pool.map(call, [seconds] * n):
            pass

    def actors() -> None:
        ray.get([workers[index % ACTORS].call.remote(seconds) for index in range(n)])

    contenders: dict[str, Callable[[], object]] = {
        "plain Ray tasks": tasks,
        "ray.util.ActorPool": actor_pool,
        "Ray actors, all calls at once": actors,
        "shoal, plain function on Ray()": lambda: of_shoal(runtime, child, seconds, n, run),
        "shoal, coroutine on Ray()": lambda: of_shoal(runtime, async_child, seconds, n, run),
    }
    print(f"\n{n} calls of a function that computes for {seconds * 1e3:g} ms")
    print_table(in_turn(contenders, rounds), n, "plain Ray tasks")
    for worker in workers:
        ray.kill(worker)


def main() -> None:
    parser = argparse.ArgumentParser(description="Children on a Ray cluster")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--children", type=int, default=10_000)
    given = parser.parse_args()
    print(f"Python {platform.python_version()}, Ray {ray.__version__}, {os.cpu_count()} cores")
    head = {"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False}
    tools = import_module("ray.cluster_utils")
    cluster = tools.Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, object_store_memory=STORE)
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with anyio.from_thread.start_blocking_portal() as portal:
            # They need no processors, so that tasks have theirs.
            runtime = Runtime(executor=Ray(actors=ACTORS, num_cpus=0))
            with portal.wrap_async_context_manager(runtime):
                for seconds, n in ((0.0, given.children), (0.001, given.children // 5)):
                    measure(seconds, n, given.rounds, runtime, portal.call)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
