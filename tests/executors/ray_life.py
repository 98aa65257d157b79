"""A program on Ray that is killed, and started again; see `test_ray_crash`.

``python -m tests.executors.ray_life ADDRESS FOLDER RUN CHILDREN BACKEND``
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import anyio

from shoal import Application, Done, Runtime, SQLiteStore, State, action, fan_out
from shoal.executors import Ray


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


async def main(address: str, folder: str, run: str, children: str) -> None:
    act = double if int(run) % 2 else double_later
    doubles = fan_out(
        act, over="ns", item="n", key=int, reduce=count, writes=["order", "total"], name="doubles"
    )
    # Where every kill is of the same few children, any limit is reached.
    store = SQLiteStore(Path(folder) / "runs.db")
    async with store, Runtime(store=store, max_crashes=10_000, grace=5) as runtime:
        app = Application(
            doubles, executor=Ray(address, actors=2, concurrency=5), inputs={"folder": folder}
        )
        result = await app.run({"ns": range(int(children))}, id=run, runtime=runtime)
        said = {"order": list(result.state["order"]), "total": result.state["total"]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    at, kept_in, name, many, library = sys.argv[1:]
    anyio.run(main, at, kept_in, name, many, backend=library)
