"""Programs with processes, started in every way; and what is left of them when they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}

SQUARES = """
import os, sys
from dataclasses import dataclass
from shoal import Application, action, fan_out
from shoal.executors import Processes

print("runs", __name__)
FACTOR = 2

@dataclass
class Point:
    x: int

class Odd(Exception):
    pass

def helper(n):
    return FACTOR * n

@action(reads=["n"], writes=["point"])
def point(n: int, given: Point) -> Point:
    if n == 3:
        raise Odd(n)
    return Point(helper(n) + given.x)

points = fan_out(point, over="ns", item="n", key=str, into="points", on_error="collect",
                 errors_into="odd", executor=Processes(2))
state = Application(points).run_sync({"ns": range(5)}, inputs={"given": Point(100)}).state
assert dict(state["points"]) == {str(n): Point(2 * n + 100) for n in (0, 1, 2, 4)}
assert list(state["odd"]) == ["3"], state["odd"]
print("done")
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python with the given arguments, in an empty directory."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, stdin: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
        program = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(program)
        return program

    yield run
    for program in started:
        program.kill()
        program.communicate()


@pytest.mark.parametrize("how", ["script", "module", "-c", "stdin", "package"])
def test_no_program_is_run_a_second_time_and_none_needs_a_guard(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], how: str
):
    (tmp_path / "program.py").write_text(SQUARES)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__main__.py").write_text(SQUARES)
    match how:
        case "script":
            program = start("program.py")
        case "module":
            program = start("-m", "program")
        case "package":
            program = start("-m", "package")
        case "-c":
            program = start("-c", SQUARES)
        case _:
            program = start("-", stdin=subprocess.PIPE)
    output, _ = program.communicate(SQUARES if how == "stdin" else None, timeout=50)
    assert output.splitlines() == ["runs __main__", "done"]


NOTEBOOK = r'''
import asyncio, __main__
cells = [
    """
    from shoal import Application, Runtime, action
    from shoal.executors import Processes
    THRESHOLD = 1
    MODEL = None
    def load():
        global MODEL
        MODEL = "a model"
    processes = Processes(1, initializer=load)
    def helper(n): return n + THRESHOLD
    @action(reads=["n"], writes=["m"])
    def shift(n): return helper(n), MODEL
    """,
    "result = await Application(shift, executor=processes).run({'n': 1}, runtime=runtime)",
    "assert result.state['m'] == (2, 'a model'), result.state",
    # The cell is edited, and run again: the worker is the same, and warm.
    """
    THRESHOLD = 10
    @action(reads=["n"], writes=["m"])
    def shift(n): return helper(n), MODEL
    """,
    "result = await Application(shift, executor=processes).run({'n': 1}, runtime=runtime)",
    "assert result.state['m'] == (11, 'a model'), result.state",
]
async def main():
    import ast, inspect, textwrap
    from shoal import Runtime
    async with Runtime() as runtime:
        __main__.runtime = runtime
        for cell in cells:
            code = compile(textwrap.dedent(cell), "<cell>", "exec",
                           flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            pending = eval(code, __main__.__dict__)
            if inspect.iscoroutine(pending):
                await pending
    print("done")
asyncio.run(main())
'''


def test_cells_of_a_notebook_may_be_edited_and_run_again(
    start: Callable[..., subprocess.Popen[str]],
):
    output, _ = start("-c", NOTEBOOK).communicate(timeout=50)
    assert output == "done\n"


STAYS = """
import sys, anyio
from shoal import Application, Runtime, action, fan_out
from shoal.executors import Processes

@action(reads=["n"], writes=["m"])
def stay(n: int) -> None:
    import os, re, subprocess, time
    child = subprocess.Popen(["sleep", "1000"])
    print(os.getppid(), os.getpid(), child.pid, flush=True)
    if n == 0:
        re.match("(a+)+$", "a" * 50 + "b")  # holds the interpreter's lock for ages
    time.sleep(1000)

async def main() -> None:
    stays = fan_out(stay, over="ns", item="n", into="ms", executor=Processes(2, start=sys.argv[1]))
    async with Runtime(grace=0.3) as runtime:
        await Application(stays).run({"ns": range(2)}, runtime=runtime)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    ("started", "backend"), [("forkserver", "asyncio"), ("spawn", "asyncio"), ("spawn", "trio")]
)
def test_nothing_is_left_of_a_program_that_is_killed(
    start: Callable[..., subprocess.Popen[str]], kill: signal.Signals, started: str, backend: str
):
    program = start("-c", STAYS, started, backend)
    assert program.stdout is not None
    pids = {int(pid) for _ in range(2) for pid in program.stdout.readline().split()}
    assert len(pids) == 5  # a launcher, two workers, two programs that these have started
    program.send_signal(kill)
    # The output ends when the last process that could write to it has ended.
    program.communicate(timeout=30)
    for pid in pids:
        assert_gone(pid)


def assert_gone(pid: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":  # ended, and nothing here reaps what has lost its parent
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is left")


def test_a_copy_of_the_program_that_outlives_it_keeps_no_worker_alive(
    start: Callable[..., subprocess.Popen[str]],
):
    """The copy, as pre-forking servers make them, holds all sockets of its parent open."""
    program = start(
        "-Wignore",  # Python warns of a fork with threads
        "-c",
        textwrap.dedent("""
            import os, threading, time, anyio
            from shoal import Application, action
            from shoal.executors import Processes

            @action(reads=["n"], writes=["m"])
            def stay(n: int) -> None:
                import os, time
                print("worker", os.getppid(), os.getpid(), flush=True)
                time.sleep(1000)

            async def main():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(Application(stay, executor=Processes(1)).run, {"n": 1})
                    await anyio.sleep(2)
                    copy = os.fork()
                    if not copy:
                        time.sleep(1000)
                        os._exit(0)
                    print("copy", copy, flush=True)

            anyio.run(main)
        """),
    )
    assert program.stdout is not None
    found: dict[str, list[int]] = {}
    while len(found) < 2:
        kind, *pids = program.stdout.readline().split()
        found[kind] = list(map(int, pids))
    program.kill()
    try:
        for pid in found["worker"]:
            assert_gone(pid)
        os.kill(found["copy"][0], 0)
    finally:
        os.kill(found["copy"][0], signal.SIGKILL)
