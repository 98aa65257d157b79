"""A program on Ray that is killed, and started again; see `test_ray_crash`.

``python -m tests.executors.ray_life ADDRESS FOLDER RUN CHILDREN BACKEND``
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio

from shoal import Application, Done, Runtime, SQLiteStore, State, action, fan_out
from shoal.executors import Ray

CHECKED = 2
"""One in so many runs checks what is left of the executor in the process of the run."""


@action(reads=["n"], writes=["double"])
def double(n: int, folder: str) -> int:
    with (Path(folder) / "effects").open("a") as file:
        file.write(f"{n}\n")
    time.sleep(0.03)
    return 2 * n


@action(reads=["n"], writes=["double"])
async def double_later(n: int, folder: str) -> int:
    with (Path(folder) / "effects").open("a") as file:
        file.write(f"{n}\n")
    await anyio.sleep(0.03)
    return 2 * n


def count(state: State, outcome: Done) -> State:
    return state.append(order=outcome.key).increment(total=outcome.value)


def held() -> Counter[str]:
    """Return the threads, descriptors and pieces of shared memory that this process has.

    Without the threads of Ray's C++, whose number changes all the time.
    """
    # Libraries keep these for later: Ray its log, anyio and trio idle threads. An anonymous one is
    # named by a number of its own.
    kept = ("Trio thread", "AnyIO worker")
    found = Counter(one.name for one in threading.enumerate() if not one.name.startswith(kept))
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            name = str(entry.readlink())
        except OSError:  # the one that lists the others
            continue
        if "python-core-driver" not in name:
            found[name.partition(":[")[0]] += 1
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/dev/shm" in line or "memfd" in line:  # looked for, not used
            found[line.split(maxsplit=5)[-1]] += 1
    return found


def held_by_ray(address: str) -> Counter[str]:
    """Return what Ray alone has left in this process after it was used."""
    ray: Any = import_module("ray")
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    actor = ray.remote(Counter).remote()
    ray.get(actor.total.remote())
    ray.kill(actor)
    ray.shutdown()
    return held()


async def left(may_have: Counter[str]) -> Counter[str]:
    """Return what is left beyond what there may be, after threads have had time to end."""
    until = time.monotonic() + 10
    while (found := held() - may_have) and time.monotonic() < until:
        await anyio.sleep(0.1)
    return found


async def main(address: str, folder: str, run: str, children: str) -> None:
    act = double if int(run) % 2 else double_later
    doubles = fan_out(
        act, over="ns", item="n", key=int, reduce=count, writes=["order", "total"], name="doubles"
    )
    # Not in all, since connecting takes a while.
    may_have = Counter[str]()
    if int(run) % CHECKED == 1:
        # A connection of Ray's leaves a socket behind each time, if it has had an actor.
        first, second = held_by_ray(address), held_by_ray(address)
        may_have = second + (second - first)
    # Where every kill is of the same few children, any limit is reached.
    store = SQLiteStore(Path(folder) / "runs.db")
    async with store, Runtime(store=store, max_crashes=10_000, grace=5) as runtime:
        app = Application(
            doubles, executor=Ray(address, actors=2, concurrency=5), inputs={"folder": folder}
        )
        result = await app.run({"ns": range(int(children))}, id=run, runtime=runtime)
        said: dict[str, Any] = {
            "order": list(result.state["order"]),
            "total": result.state["total"],
        }
    said["left"] = dict(await left(may_have)) if may_have else {}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    at, kept_in, name, many, library = sys.argv[1:]
    anyio.run(main, at, kept_in, name, many, backend=library)
