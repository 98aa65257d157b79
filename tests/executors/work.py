"""Functions that tests call in worker processes. They are imported there, so this stays small."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from shoal import Application, Context, Done, Result, State, action, shielded


@action(reads=["n"], writes=["square"])
def square(n: int) -> int:
    return n * n


@action(reads=["n"], writes=["pid"])
def pid_of(n: int) -> int:
    return os.getpid()


@action(reads=["seconds"], writes=["pid"])
def spin(seconds: float) -> int:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
    return os.getpid()


@action(reads=["n"], writes=["square"])
async def square_later(n: int) -> int:
    await anyio.sleep(0.001)
    return n * n


@action(reads=["n"], writes=["total"])
async def count_up(n: int) -> AsyncIterator[int | Result[int]]:
    for number in range(n):
        yield number
    yield Result(n)


@action(reads=["n"], writes=["seen"])
async def use_context(n: int, context: Context) -> dict[str, Any]:
    with context.span("part", n=n):
        await context.emit({"n": n})
    context.note(f"at {n}")
    context.charge(2.0)
    return {
        "run": context.run_id,
        "step": context.step,
        "key": context.key,
        "depth": context.depth,
        "attempt": context.attempt,
        "parent": context.parent is not None,
        "left": context.deadline - anyio.current_time(),
        "idempotent": context.idempotency_key,
    }


@action(reads=["n"], writes=["seen"])
def use_context_plainly(n: int, context: Context) -> str:
    anyio.from_thread.run(context.emit, n)
    context.note("plain")
    with context.span("plain part"):
        pass
    return context.step


@action(reads=["n"], writes=["answer"])
async def ask(n: int, context: Context) -> str:
    return f"{n}: {await context.ask('name', {'n': n})}"


@action(reads=["n"], writes=["answer"])
def ask_plainly(n: int, context: Context) -> str:
    return f"{n}: {anyio.from_thread.run(context.ask, 'name', {'n': n})}"


@action(reads=["log", "n"], writes=["log", "last"])
def grow(state: State) -> State:
    return state.append(log=state["n"]).update(last=os.getpid())


@action(reads=["token", "n"], writes=["length"])
def use_secret(token: str, n: int) -> int:
    if n < 0:
        raise ValueError(f"bad token {token}")
    return len(token)


@action(reads=["token", "n"], writes=["length"])
def use_secret_state(state: State) -> State:
    return state.update(length=len(state["token"]))


class Awkward(Exception):
    """Can be pickled, and not loaded."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Locked(Exception):
    """Can't be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


@action(reads=["kind"], writes=["never"])
def fail(kind: str) -> object:
    if kind == "own":
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("no such kind") from error
    if kind == "awkward":
        raise Awkward(1, 2)
    if kind == "locked":
        raise Locked("has a lock")
    if kind == "result":
        return threading.Lock()
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        sys.exit(3)
    if kind == "group":
        raise ExceptionGroup("several", [ValueError("one"), Locked("two")])
    if kind == "generator":
        raise GeneratorExit
    return kind


@action(reads=["how"], writes=["never"])
def die(how: str) -> None:
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), getattr(signal, how))


@action(reads=["n", "victim", "marks"], writes=["square"])
def die_once(n: int, victim: int, marks: str) -> int:
    mark = Path(marks, str(n))
    with mark.open("a") as file:
        file.write("x")
    if n == victim and mark.stat().st_size == 1:
        os._exit(9)
    time.sleep(0.002)
    return n * n


@action(reads=["path"], writes=["never"])
def hang(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)


@action(reads=["path"], writes=["never"])
async def clean_up(path: str) -> None:
    Path(path, "begun").touch()
    try:
        await anyio.sleep(1000)
    finally:
        async with shielded(5):
            await anyio.sleep(0.05)
            Path(path, "cleaned").touch()


@action(reads=["size"], writes=["data"])
def make_large(size: int) -> bytes:
    return b"x" * size


@action(reads=["n"], writes=["nested"])
def run_application(n: int) -> int:
    from shoal import fan_out

    inner = fan_out(square, over="ns", item="n", into="squares", executor="threads")
    return sum(Application(inner).run_sync({"ns": range(n)}).state["squares"])


def double(n: int) -> int:
    return 2 * n


@action(reads=["n"], writes=["doubled"])
def use_pool(n: int) -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        doubled = pool.map(double, range(n))
    thread = threading.Thread(target=double, args=(n,))
    thread.start()
    thread.join()
    return doubled


@action(reads=["path"], writes=["child"])
def leave_child(path: str) -> int:
    child = subprocess.Popen(["sleep", "1000"])
    Path(path).write_text(str(child.pid))
    return child.pid


LOADED: list[int] = []


def load(number: int) -> None:
    LOADED.append(number)


def refuse_to_load() -> None:
    raise ConnectionError("the model's server is down")


def die_at_start() -> None:
    os._exit(5)


@action(writes=["loaded"])
def loaded() -> list[int]:
    return LOADED


@action(reads=["n"], writes=["square"])
def square_or_fail(n: int) -> int:
    if n == 3:
        raise Locked("three")
    return n * n


@action(reads=["n"], writes=["found"])
async def fan_out_there(n: int, context: Context) -> list[Any]:
    found: list[Any] = []
    async with context.fan_out(name="squares") as group:
        group.start_each(square_or_fail, over=range(n), item="n", key=str)
        group.start(square, {"n": 100}, key="hundred")
        with anyio.move_on_after(0):
            await anext(group)
        async for outcome in group:
            value = getattr(outcome, "value", str(getattr(outcome, "error", "")))
            found += [(outcome.key, value)]
    return sorted(found)


@action(reads=["n"], writes=["found"])
async def race_there(n: int, context: Context) -> int:
    async with context.fan_out(name="race") as group:
        group.start(square, {"n": n})
        group.start(sleep_long, {"n": n})
        async for outcome in group:
            group.cancel("one is enough")
            return outcome.value if isinstance(outcome, Done) else -2
    return -1


@action(reads=["n"], writes=["square"])
async def sleep_long(n: int) -> int:
    await anyio.sleep(1000)
    return 0


@action(reads=["token", "n"], writes=["length"])
async def tell_secret(token: str, n: int, context: Context) -> int:
    if n == 0:
        context.note(f"token {token}")
        await anyio.sleep(1000)
    if n == 1:
        await context.emit(token)
    if n == 2:
        with context.span(token):
            await anyio.sleep(1000)
    return n


@action(reads=["token", "n"], writes=["length"])
async def close_badly(token: str, n: int) -> AsyncIterator[int | Result[int]]:
    try:
        yield 1
        yield Result(1)
    finally:
        raise ValueError(f"closed with {token}")


@action(reads=["n"], writes=["total"])
async def stream_and_close(n: int) -> AsyncIterator[int | Result[int]]:
    try:
        for number in range(n):
            yield number
        yield Result(n)
    finally:
        CLOSED.append(n)


CLOSED: list[int] = []


@action(writes=["closed"])
async def closed() -> list[int]:
    return CLOSED


@action(reads=["n", "more"], writes=["key"])
async def key_there(n: int, context: Context) -> str:
    return context.idempotency_key


@action(reads=["n", "more"], writes=["key"])
def key_of_state(state: State, context: Context) -> State:
    return state.update(key=context.idempotency_key)


@action(reads=["n", "marks"], writes=["out"])
async def die_below(n: int, marks: str) -> int:
    """End the worker for the first element, as often as there are files to be removed."""
    if n == 0:
        for mark in Path(marks).iterdir():
            mark.unlink()
            os._exit(9)
    return n


@action(reads=["m", "marks"], writes=["out"])
async def ask_below(m: int, marks: str, context: Context) -> int:
    async with context.fan_out(name="below") as group:
        for n in range(2):
            group.start(die_below, {"n": n if m == 0 else n + 1, "marks": marks}, key=n)
        return len([outcome async for outcome in group])
