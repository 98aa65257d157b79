"""Workers that share one store: all execute runs, ask for each other's, and are killed at times.

Each effect of a run is a line in a file, with the worker's number; so it is known afterwards how
often it has happened, and under which worker. ``python -m tests.stores.soak`` is one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread

from shoal import (
    Application,
    Hook,
    Limits,
    PostgresStore,
    RunClaimed,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
)
from shoal._events.identity import RunPath
from shoal.events import RunEnded
from shoal.stores._sql.store import DurableStore

WIDTH = 5
"""Children in flight of each run: as many effects may be lost with its worker, and happen again."""
ITEMS = 100_000
"""Of each run: more than it gets done."""
PAUSE = 0.02
"""Seconds that each child takes."""


def open_store(given: Mapping[str, Any]) -> DurableStore:
    """Describe a store in a file, or on a server."""
    if "file" in given:
        return SQLiteStore(given["file"])
    return PostgresStore(given["address"], schema=given["schema"])


# -- a worker --------------------------------------------------------------------------------------


class Ends(Hook):
    """Writes down how root runs have ended, which none of them should."""

    def __init__(self, told: int) -> None:
        self._told = told

    def on_run_ended(self, event: RunEnded) -> None:
        if event.path.parent is None:
            os.write(self._told, f"ended {event.path.id} {event.status} {event.error!r}\n".encode())


async def work(folder: Path, given: Mapping[str, Any]) -> None:
    """Start the runs that are named on standard input, or ask for them; recover others."""
    effects, told = (
        os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for name in ("effects", "told")
    )
    number = os.getpid()

    @action(reads=["run", "item"], writes=["out"])
    async def effect(run: str, item: int) -> int:
        os.write(effects, f"{number} {run} {item}\n".encode())
        await anyio.sleep(PAUSE)
        return item

    act = fan_out(
        effect, over="items", item="item", key=int, into="outs", take="out", limits=Limits(WIDTH)
    )
    app = Application(act, name="soak", store=open_store(given), hooks=[Ends(told)])

    async def ask(run_id: str) -> None:
        try:
            await runtime.start(app, {"run": run_id, "items": range(ITEMS)}, id=run_id)
        except RunClaimed:
            answer = "goes on"
        except Exception as error:  # looked for by who reads this
            answer = f"{type(error).__name__}: {error}"
        else:
            answer = "begun"
        os.write(told, f"{number} {run_id} {answer}\n".encode())

    async with Runtime(apps=[app]) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.keep_recovering, 1.0)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            for run_id in line.split():
                tasks.start_soon(ask, run_id)


# -- the one that starts and kills them ------------------------------------------------------------


class Soaked(NamedTuple):
    """What became of the workers' runs."""

    seconds: float
    effects: int
    """In these."""
    repeated: int
    """Effects that have happened again, since a worker was killed before they were saved."""
    asked: int
    """Times that a worker was asked for a run that another one may execute."""
    kills: int
    answers: Counter[str]
    ends: list[str]
    """Of root runs."""

    @property
    def rate(self) -> float:
        """Effects a second."""
        return self.effects / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.rate:,.0f} effects a second for {self.seconds:.0f} s; {self.kills} workers "
            f"killed, {self.repeated} effects repeated; asked {self.asked} times: "
            f"{dict(self.answers)}"
        )


class Workers:
    """Processes that are started, asked and killed."""

    def __init__(self, folder: Path, given: Mapping[str, Any]) -> None:
        self._command = [sys.executable, "-m", "tests.stores.soak", str(folder), json.dumps(given)]
        self._errors = (folder / "errors").open("ab")
        self.alive = list[subprocess.Popen[str]]()
        self.killed = set[int]()

    def start(self) -> None:
        """Start one more."""
        started = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self.alive.append(started)

    def wait_until_ready(self) -> None:
        for one in self.alive:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n", "see the file of errors"

    def ask(self, number: int, *run_ids: str) -> None:
        """Ask one of them for runs."""
        one = self.alive[number % len(self.alive)]
        assert one.stdin is not None
        one.stdin.write(f"{' '.join(run_ids)}\n")
        one.stdin.flush()

    def kill(self, number: int) -> None:
        """Kill one of them, without a word of warning."""
        one = self.alive.pop(number % len(self.alive))
        self.killed.add(one.pid)
        one.send_signal(signal.SIGKILL)
        one.wait()
        for stream in (one.stdin, one.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def end(self) -> None:
        while self.alive:
            self.kill(0)
        self._errors.close()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def soak(
    folder: Path,
    given: Mapping[str, Any],
    *,
    seconds: float,
    runs: int,
    workers: int = 4,
    asks: float = 50,
    kill_every: float = 5,
    seed: int = 0,
) -> Soaked:
    """Have workers execute runs for some time, and look at what has become of these.

    Args:
        folder: For the files of the workers.
        given: The store, see ``open_store``.
        seconds: How long all of them are at work.
        runs: How many are started.
        workers: How many there are at any time.
        asks: How often a second one of them is asked for one of the runs.
        kill_every: Seconds after which one is killed, and another one started.
        seed: Decides which.
    """
    rng, pool = random.Random(seed), Workers(folder, given)
    run_ids = [f"run-{number}" for number in range(runs)]
    asked = 0
    try:
        for _ in range(workers):
            pool.start()
        pool.wait_until_ready()
        for number in range(workers):
            pool.ask(number, *run_ids[number::workers])
        while len(lines(folder / "told")) < runs:
            time.sleep(0.05)
        before, began_at = len(lines(folder / "effects")), time.monotonic()
        kills = [began_at + n * kill_every for n in range(1, int(seconds / kill_every))]
        while (now := time.monotonic()) < began_at + seconds:
            if kills and now >= kills[0]:
                del kills[0]
                pool.kill(rng.randrange(workers))
                pool.start()
            if now >= began_at + asked / asks:
                # The newest may not listen yet; it reads that later.
                pool.ask(rng.randrange(workers), rng.choice(run_ids))
                asked += 1
            time.sleep(0.002)
        took = time.monotonic() - began_at
        count = len(lines(folder / "effects")) - before
        killed = len(pool.killed)
    finally:
        pool.end()
    told = [line.split(maxsplit=2) for line in lines(folder / "told")]
    return Soaked(
        seconds=took,
        effects=count,
        repeated=check_effects(folder, given, pool.killed, run_ids),
        asked=asked,
        kills=killed,
        answers=Counter(answer for number, _, answer in told if number != "ended"),
        ends=[f"{run_id} {how}" for number, run_id, how in told if number == "ended"],
    )


def check_effects(
    folder: Path, given: Mapping[str, Any], killed: set[int], run_ids: list[str]
) -> int:
    """Check that each effect has happened once, but for what was in flight; count the others."""
    happened: dict[tuple[str, int], list[int]] = {}
    for line in lines(folder / "effects"):
        worker, run_id, item = line.split()
        happened.setdefault((run_id, int(item)), []).append(int(worker))
    in_flight = Counter[tuple[str, int]]()  # effects of a run that a killed worker did not save
    for (run_id, _), numbers in happened.items():
        assert len(set(numbers)) == len(numbers), f"a worker has done something of {run_id} twice"
        in_flight.update((run_id, number) for number in numbers[:-1])
    repeated = in_flight.total()
    saved = asyncio.run(saved_items(open_store(given), run_ids))
    assert saved <= happened.keys(), "something is saved that has not happened"
    for name in happened.keys() - saved:
        in_flight[name[0], happened[name][-1]] += 1
    for (run_id, number), count in in_flight.items():
        assert number in killed, f"something of {run_id} has happened again without a kill"
        assert count <= WIDTH, f"{count} effects of {run_id} were lost with one worker"
    return repeated


async def saved_items(store: DurableStore, run_ids: list[str]) -> set[tuple[str, int]]:
    saved = set[tuple[str, int]]()
    async with store:
        for run_id in run_ids:
            for child in await store.children(RunPath(run_id=run_id, act="soak")):
                if child.status == "succeeded":
                    assert isinstance(child.key, int)
                    saved.add((run_id, child.key))
    return saved


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), json.loads(sys.argv[2])))
