"""Functions in interpreters of this process: what holds in the loop holds there."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, MemoryStore, Runtime, State, action, fan_out, race
from shoal.errors import DefinitionError, NotSendable, NoWorker, RemoteError, SecretLeaked
from shoal.events import GraceExceeded, Item
from shoal.executors import Executor, Interpreters, _interpreter_transport
from shoal.executors._port import Job, PoolHost
from shoal.executors._remote_pool import RemotePool
from shoal.executors._socket_worker import MARK_SIZE, SocketWorker
from shoal.testing import RecordingHook, no_leaks, run_virtual
from tests.executors import work
from tests.executors.one_program import final_state
from tests.executors.test_process_programs import ENVIRONMENT

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]
here_alone = pytest.mark.skipif(
    sys.version_info < (3, 13), reason="interpreters with locks of their own came with Python 3.13"
)


@pytest.fixture(name="anyio_backend", params=["asyncio"])
def library(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """On trio, two tests: an interpreter takes half a second of CPU time to load its modules."""
    return request.param, {}


on_trio_too = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=True)


def one() -> Executor:
    return Interpreters(1, takes="all")


@asynccontextmanager
async def runtime_of(**options: Any) -> AsyncGenerator[Runtime]:
    """Open a runtime, and see to it that it leaves nothing behind."""
    threads, held = threading.active_count(), descriptors()
    async with no_leaks(), Runtime(**options) as runtime:
        yield runtime
    assert threading.active_count() <= threads + 1  # anyio keeps a worker thread
    assert descriptors() == held


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def run(
    runtime: Runtime, act: Any, fields: Mapping[str, Any], where: Executor, **options: Any
) -> State:
    app = Application(act, executor=where, **options)
    return (await app.run(State(fields, secret=fields.keys() & {"token"}), runtime=runtime)).state


@here_alone
async def test_the_same_program_ends_in_the_same_state():
    assert await final_state(one()) == await final_state("loop")


@here_alone
@on_trio_too
async def test_functions_of_all_kinds(tmp_path: Path):
    hook = RecordingHook()
    where = Interpreters(2, takes="all", initializer=work.load, initargs=(7,))
    async with runtime_of() as runtime:
        squares = fan_out(work.square, over="ns", item="n", into="squares")
        state = await run(runtime, squares, {"ns": range(200)}, where)
        assert state["squares"] == [n * n for n in range(200)]
        later = fan_out(work.square_later, over="ns", item="n", into="squares")
        state = await run(runtime, later, {"ns": range(50)}, where)
        assert state["squares"] == [n * n for n in range(50)]
        assert (await run(runtime, work.count_up, {"n": 3}, where, hooks=[hook]))["total"] == 3
        assert [event.item for event in hook.of(Item)] == [0, 1, 2]
        state = await run(runtime, work.grow, {"log": [1], "n": 2}, where)
        assert state["log"] == [1, 2]
        assert state["last"] == os.getpid()
        assert (await run(runtime, work.loaded, {}, where))["loaded"] == [7]
        assert work.LOADED == []  # their modules are their own
        assert (await run(runtime, work.run_application, {"n": 4}, where))["nested"] == 14
        state = await run(runtime, work.use_context_plainly, {"n": 3}, where)
        assert state["seen"] == "use_context_plainly"
        state = await run(runtime, work.fan_out_there, {"n": 5}, where)
        assert len(state["found"]) == 6
        contest = race(work.sleep_long, work.square, into="first")
        assert (await run(runtime, contest, {"n": 3}, where))["first"] == 9


@here_alone
async def test_questions_secrets_and_errors():
    token = "s3cr3t-t0k3n"
    where = one()
    async with runtime_of() as runtime:
        app = Application(work.ask_plainly, executor=where, store=MemoryStore(strict=True))
        result = await app.run({"n": 1}, id="asks", runtime=runtime)
        assert result.status == "halted"
        result = await app.run(id="asks", answers={"name": "Ada"}, runtime=runtime)
        assert result.state["answer"] == "1: Ada"

        fields = {"token": token, "n": 1}
        assert (await run(runtime, work.use_secret_state, fields, where))["length"] == len(token)
        with pytest.raises(SecretLeaked):
            await run(runtime, work.tell_secret, {"token": token, "n": 1}, where)

        with pytest.raises(ValueError, match="no such kind") as caught:
            await run(runtime, work.fail, {"kind": "own"}, where)
        assert isinstance(caught.value.__cause__, KeyError)
        assert "raised in interpreter 1" in "".join(caught.value.__notes__)
        with pytest.raises(RemoteError):
            await run(runtime, work.fail, {"kind": "locked"}, where)


@here_alone
async def test_what_can_not_be_sent_or_loaded_is_refused_by_name():
    lock = threading.Lock()

    @action(reads=["n"], writes=["m"])
    def takes_lock(n: int, lock: object) -> int:
        return n

    @action(reads=["n"], writes=["m"])
    def holds_lock(n: int) -> int:
        with lock:
            return n

    @action(reads=["n"], writes=["m"])
    def imports_much(n: int) -> int:
        importlib.import_module("pydantic_core")  # it refuses to be loaded there
        return n

    where = one()
    async with runtime_of() as runtime:
        app = Application(takes_lock, executor=where)
        with pytest.raises(NotSendable, match=r"input 'lock' can't be sent.*Interpreters\(init"):
            await app.run({"n": 1}, inputs={"lock": lock}, runtime=runtime)
        with pytest.raises(NotSendable, match=r"holds_lock\(\) can't be pickled.*lock"):
            await run(runtime, holds_lock, {"n": 1}, where)
        with pytest.raises(NotSendable, match=r"'square'.*'n': a lock can't be pickled"):
            await run(runtime, work.square, {"n": lock}, where)
        with pytest.raises(ImportError, match="does not support loading in subinterpreters"):
            await run(runtime, imports_much, {"n": 1}, where)


@here_alone
async def test_an_initializer_that_raises_fails_the_actions():
    where = Interpreters(1, initializer=work.refuse_to_load)
    async with runtime_of() as runtime:
        with pytest.raises(ConnectionError, match="server is down"):
            await run(runtime, work.square, {"n": 1}, where)


@here_alone
async def test_interpreters_that_can_not_be_started_are_given_up(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(_interpreter_transport, "_new_interpreter", refuse)
    async with runtime_of() as runtime:
        with pytest.raises(NoWorker, match="MemoryError: none left"):
            await run(runtime, work.square, {"n": 1}, one())


# -- cancelling ------------------------------------------------------------------------------------


@action(reads=["path"], writes=["never"])
def wait_for_file(path: str) -> None:
    """Wait and ask nobody whether that is still wanted."""
    Path(path, "begun").touch()
    while not Path(path, "end").exists():
        threading.Event().wait(0.005)


@here_alone
@on_trio_too
async def test_a_function_that_does_not_end_is_left_behind_and_others_go_elsewhere(tmp_path: Path):
    hook = RecordingHook()
    where = Interpreters(2)
    async with runtime_of(grace=0.05) as runtime:
        pace = fan_out(work.square, over="ns", item="n", into="squares")
        await run(runtime, pace, {"ns": range(50)}, where)  # calls are sent ahead from now on
        async with anyio.create_task_group() as tasks:

            async def cancelled() -> None:
                await run(runtime, wait_for_file, {"path": str(tmp_path)}, where, hooks=[hook])

            tasks.start_soon(cancelled)
            while not (tmp_path / "begun").exists():
                await anyio.sleep(0.005)
            tasks.cancel_scope.cancel()
        left = hook.of(GraceExceeded)[-1]
        assert left.abandoned
        assert "interpreter" in left.place
        state = await run(runtime, pace, {"ns": range(50)}, where)
        assert state["squares"] == [n * n for n in range(50)]
        (tmp_path / "end").touch()  # it ends, and the interpreter is warm and idle again


@here_alone
async def test_a_coroutine_is_cancelled_and_its_cleanup_awaited(tmp_path: Path):
    async with runtime_of() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(run, runtime, work.clean_up, {"path": str(tmp_path)}, one())
        while not (tmp_path / "begun").exists():
            await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()
    assert (tmp_path / "cleaned").exists()


# -- programs --------------------------------------------------------------------------------------

SCRIPT = """
from shoal import Application, action, fan_out
print("runs", __name__)
FACTOR = 2
def helper(n):
    return FACTOR * n
@action(reads=["n"], writes=["m"])
def twice(n):
    return helper(n)
all = fan_out(twice, over="ns", item="n", into="ms", executor="interpreters")
assert Application(all).run_sync({"ns": range(5)}).state["ms"] == [0, 2, 4, 6, 8]
print("done")
"""

ENDLESS = """
import anyio, time
from shoal import Application, Runtime, action
@action(reads=["n"], writes=["m"], executor="interpreters")
def endless(n):
    while True:
        time.sleep(0.001)
@action(reads=["n"], writes=["m"], executor="interpreters")
async def quick(n):
    return n
async def main():
    async with Runtime(grace=0.01) as runtime:
        await Application(quick).run({"n": 1}, runtime=runtime)
        with anyio.move_on_after(0.3):
            await Application(endless).run({"n": 1}, runtime=runtime)
anyio.run(main)
print("done")
"""


def output_of(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


@here_alone
def test_a_program_needs_no_guard():
    assert output_of(SCRIPT) == ["runs __main__", "done"]


@here_alone
def test_a_program_ends_although_a_function_does_not():
    assert "done" in output_of(ENDLESS)  # since Python 3.14, beside a warning of the interpreter


# -- declaring -------------------------------------------------------------------------------------


@here_alone
@pytest.mark.parametrize(
    "options",
    [{"max_workers": 0}, {"concurrency": 0}, {"takes": "some"}, {"initializer": 3}],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match=f"Interpreters\\({next(iter(options))}="):
        Interpreters(**options)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="this Python has them")
def test_an_older_python_is_told_what_to_use():
    with pytest.raises(DefinitionError, match=r"need Python 3\.13 .* use executor='processes'"):
        Application(work.square, executor="interpreters")


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_on_a_virtual_clock_the_end_of_an_interpreter_is_awaited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: Any
):
    def execute(code: str) -> str:
        """Do in this interpreter what is done in another one, which takes a while to end."""
        descriptor = int(code.rpartition("work(")[2].rstrip(")"))
        with socket.socket(fileno=descriptor) as sock:
            mark = memoryview(bytearray(MARK_SIZE)).cast("Q")
            worker = SocketWorker(sock, mark, lambda: None)
            worker.run()
            worker.close()
        time.sleep(0.05)
        return ""

    async def main() -> None:
        async with no_leaks(), Runtime() as runtime:
            assert (await run(runtime, work.square, {"n": 3}, InThread()))["square"] == 9

    monkeypatch.setattr(_interpreter_transport, "_new_interpreter", lambda: execute)
    run_virtual(main, backend=library)
    assert not any("left behind" in message for message in caplog.messages)


class InThread(Executor):
    """One worker, on every Python."""

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        return ""

    def open(self, host: PoolHost) -> RemotePool:
        transport = _interpreter_transport.InterpreterTransport(host, None)
        return RemotePool(
            host, transport, name="interpreters", workers=1, concurrency=1, pause=0, kills=False
        )
