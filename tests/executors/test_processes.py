"""Functions in processes: what holds in the loop holds there."""

from __future__ import annotations

import importlib
import os
import resource
import sys
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, Hook, MemoryStore, Runtime, State, action, fan_out
from shoal.errors import (
    DefinitionError,
    HookFailed,
    NotSendable,
    NoWorker,
    Poisoned,
    RemoteError,
    SecretLeaked,
    StepTimeout,
)
from shoal.events import Item
from shoal.executors import Processes
from shoal.executors._process_transport import ProcessLink, ProcessTransport
from shoal.testing import RecordingHook, no_leaks
from tests.executors import work

pytestmark = [pytest.mark.anyio, pytest.mark.realtime, pytest.mark.services]


@pytest.fixture(name="anyio_backend", params=["asyncio", "trio"])
def on_both(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """The rest of the loops is in test_process_loops: each process takes a while to start."""
    return request.param, {"debug": True} if request.param == "asyncio" else {}


ONE = Processes(1, takes="all")
TWO = Processes(2, takes="all")


@asynccontextmanager
async def runtime_of(**options: Any) -> AsyncGenerator[Runtime]:
    """Open a runtime, and see to it that it leaves nothing behind."""
    before = children()
    async with no_leaks(), Runtime(**options) as runtime:
        yield runtime
    assert children() == before


def children() -> set[int]:
    """Return the processes below this one, the launchers' included."""
    mine = os.getpid()
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found: set[int] = set()
    for pid in parents:
        at: int | None = pid
        while at is not None and at not in (0, mine):
            at = parents.get(at)
        if at == mine and pid != mine:
            found.add(pid)
    return found


async def run(
    runtime: Runtime, act: Any, fields: Mapping[str, Any], where: Any = ONE, **options: Any
) -> State:
    app = Application(act, executor=where, **options)
    return (await app.run(State(fields, secret=fields.keys() & {"token"}), runtime=runtime)).state


async def test_functions_of_all_kinds():
    hook = RecordingHook()
    async with runtime_of() as runtime:
        squares = fan_out(work.square, over="ns", item="n", into="squares")
        state = await run(runtime, squares, {"ns": range(300)}, TWO)
        assert state["squares"] == [n * n for n in range(300)]
        pids = fan_out(work.pid_of, over="ns", item="n", into="pids")
        state = await run(runtime, pids, {"ns": range(100)}, TWO)
        assert 1 <= len({*state["pids"]} - {os.getpid()}) <= 2

        later = fan_out(work.square_later, over="ns", item="n", into="squares")
        state = await run(runtime, later, {"ns": range(50)}, TWO)
        assert state["squares"] == [n * n for n in range(50)]
        assert (await run(runtime, work.count_up, {"n": 3}, hooks=[hook]))["total"] == 3
        assert [event.item for event in hook.of(Item)] == [0, 1, 2]

        state = await run(runtime, work.grow, {"log": [1], "n": 2})
        assert state["log"] == [1, 2]
        assert state["last"] != os.getpid()
        assert (await run(runtime, work.run_application, {"n": 4}))["nested"] == 14
        assert (await run(runtime, work.use_pool, {"n": 3}))["doubled"] == [0, 2, 4]


async def test_contexts():
    hook = RecordingHook()
    async with runtime_of() as runtime:
        each = fan_out(work.use_context, over="ns", item="n", key=str, into="all")
        seen = (await run(runtime, each, {"ns": [5, 6]}, hooks=[hook]))["all"]["5"]
        assert len(seen.pop("idempotent")) == 32
        assert seen.pop("run") in {event.path.id for event in hook.of(Item)}
        assert seen == {
            "step": "use_context",
            "key": "5",
            "depth": 1,
            "attempt": 1,
            "parent": True,
            "left": float("inf"),
        }
        assert sorted(event.item["n"] for event in hook.of(Item)) == [5, 6]
        hook.events.clear()
        await run(runtime, work.use_context_plainly, {"n": 7}, hooks=[hook])
        assert [event.item for event in hook.of(Item)] == [7]


@pytest.mark.parametrize("act", [work.key_there, work.key_of_state])
async def test_idempotency_keys_are_the_same_there(act: Any):
    keys: list[str] = []
    async with runtime_of() as runtime:
        for where in (ONE, "threads"):
            app = Application(act, executor=where)
            fields = {"n": 1, "more": [1, 2]}
            result = await app.run(fields, id=f"in {where}"[:2], runtime=runtime)
            keys.append(result.state["key"])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("act", [work.ask, work.ask_plainly])
async def test_a_question_halts_the_run_and_its_answer_comes(act: Any):
    async with runtime_of() as runtime:
        app = Application(act, executor=ONE, store=MemoryStore())
        result = await app.run({"n": 1}, id="asks", runtime=runtime)
        assert result.status == "halted"
        assert result.questions[0].question == {"n": 1}
        result = await app.run(id="asks", answers={"name": "Ada"}, runtime=runtime)
        assert result.state["answer"] == "1: Ada"


async def test_exceptions_arrive_as_what_they_are():
    async with runtime_of() as runtime:

        async def error_of(kind: str) -> BaseException:
            with pytest.raises(BaseException) as caught:
                await run(runtime, work.fail, {"kind": kind})
            return caught.value

        own = await error_of("own")
        assert type(own) is ValueError
        assert own.args == ("no such kind",)
        assert isinstance(own.__cause__, KeyError)
        assert "in fail" in "".join(own.__notes__)
        awkward = await error_of("awkward")
        assert isinstance(awkward, RemoteError)
        assert (awkward.type, awkward.text) == ("tests.executors.work:Awkward", "1 and 2")
        locked = await error_of("locked")
        assert str(locked) == "tests.executors.work.Locked: has a lock"
        result = await error_of("result")
        assert isinstance(result, NotSendable)
        assert "action 'fail': its result can't be sent back" in str(result)
        assert "_thread.lock" in str(result)
        assert isinstance(await error_of("group"), RemoteError)


@pytest.mark.parametrize(
    ("kind", "type_"), [("interrupt", KeyboardInterrupt), ("exit", SystemExit)]
)
async def test_an_exit_of_a_function_is_one_of_its_run(kind: str, type_: type[BaseException]):
    async with no_leaks():
        with pytest.raises(type_):
            async with Runtime() as runtime:
                await run(runtime, work.fail, {"kind": kind})


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV"])
async def test_a_function_that_kills_its_worker_is_poison(how: str):
    async with runtime_of(max_crashes=2) as runtime:
        with pytest.raises(Poisoned) as caught:
            await run(runtime, work.die, {"how": how})
        text = str(caught.value.__cause__)
        assert "died while action 'die' was at work there" in text
        assert ("exit code 7" if how == "exit" else how) in text


async def test_a_worker_that_dies_takes_only_what_was_at_work_with_it(tmp_path: Path):
    async with runtime_of() as runtime:
        each = fan_out(work.die_once, over="ns", item="n", into="squares")
        fields = {"ns": range(60), "victim": 30, "marks": str(tmp_path)}
        state = await run(runtime, each, fields, TWO)
        assert state["squares"] == [n * n for n in range(60)]
        calls = {int(path.name): len(path.read_text()) for path in tmp_path.iterdir()}
        assert calls.pop(30) == 2
        # One that had ended when its worker died may run again: its answer may have been lost.
        assert sum(calls.values()) <= len(calls) + 3


async def test_a_process_is_killed_after_the_grace(tmp_path: Path):
    path = tmp_path / "pid"

    @action(reads=["path"], writes=["never"], timeout=0.3)
    def hang(path: str) -> None:
        work.hang(path)

    async with runtime_of(grace=0.1) as runtime:
        await run(runtime, work.square, {"n": 3})  # a process that has loaded the module
        with pytest.raises(StepTimeout):
            await run(runtime, hang, {"path": str(path)})
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
        assert (await run(runtime, work.square, {"n": 3}))["square"] == 9


async def test_cleanup_is_awaited_before_the_cancellation_goes_on(tmp_path: Path):
    async with runtime_of() as runtime:
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                while not (tmp_path / "begun").exists():
                    await anyio.sleep(0.01)
                scope.cancel()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel)
                await run(runtime, work.clean_up, {"path": str(tmp_path)})
        assert (tmp_path / "cleaned").exists()


async def test_secrets_are_used_there_and_shown_nowhere(capfd: pytest.CaptureFixture[str]):
    token = "s3cr3t-t0k3n"
    async with runtime_of() as runtime:
        for act in (work.use_secret, work.use_secret_state):
            state = await run(runtime, act, {"token": token, "n": 1})
            assert state["length"] == len(token)
        with pytest.raises(ValueError, match="bad token") as caught:
            await run(runtime, work.use_secret, {"token": token, "n": -1})
    assert token not in str(caught.value) + "".join(caught.value.__notes__)
    assert token not in "".join(capfd.readouterr())


@pytest.mark.parametrize("n", [0, 1, 2])
async def test_a_secret_is_not_told_from_there(n: int):
    async with runtime_of() as runtime:
        with pytest.raises(SecretLeaked):
            await run(runtime, work.tell_secret, {"token": "s3cr3t-t0k3n", "n": n})


async def test_a_generator_whose_items_are_refused_is_closed_there():
    class Guard(Hook):
        def on_item(self, event: Item) -> None:
            if event.item == 1:
                raise ValueError("not this one")

    async with runtime_of() as runtime:
        with pytest.raises(HookFailed) as caught:
            await run(runtime, work.stream_and_close, {"n": 5}, hooks=[Guard()])
        assert isinstance(caught.value.__cause__, ValueError)
        assert (await run(runtime, work.closed, {}))["closed"] == [5]


async def test_a_secret_in_an_error_of_closing_is_not_logged(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    class Guard(Hook):
        def on_item(self, event: Item) -> None:
            raise ValueError("not this one")

    async with runtime_of() as runtime:
        with pytest.raises(HookFailed):
            fields = {"token": "s3cr3t-t0k3n", "n": 1}
            await run(runtime, work.close_badly, fields, hooks=[Guard()])
    assert "s3cr3t" not in "".join(capfd.readouterr()) + caplog.text
    assert "it raised ValueError('closed with ***')" in caplog.text


# -- what can't be sent ----------------------------------------------------------------------------


def takes_lock(n: int, lock: threading.Lock) -> int:
    return n


async def test_what_can_not_be_sent_is_refused_before_anything_starts():
    async with runtime_of() as runtime:
        with_lock = action(reads=["n"], writes=["m"])(takes_lock)
        app = Application(with_lock, executor=ONE)
        with pytest.raises(NotSendable, match=r"'takes_lock'.* input 'lock' can't be sent.*lock"):
            await app.run({"n": 1}, inputs={"lock": threading.Lock()}, runtime=runtime)
        lock = threading.Lock()

        @action(reads=["n"], writes=["m"])
        def inner(n: int) -> int:
            with lock:
                return n

        with pytest.raises(NotSendable, match=r"inner\(\) can't be pickled.*lock"):
            await run(runtime, inner, {"n": 1})
        with pytest.raises(NotSendable, match=r"'square'.*'n': a lock can't be pickled"):
            await run(runtime, work.square, {"n": lock})


async def test_functions_within_functions_are_sent_whole():
    offset = 10

    @action(reads=["n"], writes=["m"])
    def add(n: int) -> int:
        return n + offset

    async with runtime_of() as runtime:
        assert (await run(runtime, add, {"n": 1}))["m"] == 11


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 0},
        {"max_workers": True},
        {"concurrency": 0},
        {"start": "fork"},
        {"takes": "some"},
        {"initializer": 3},
        {"kill_after": 0},
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match=f"Processes\\({next(iter(options))}="):
        Processes(**options)


# -- starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
async def test_the_initializer_is_called_in_each_process_first(start: Any):
    where = Processes(2, initializer=work.load, initargs=(5,), start=start)
    async with runtime_of() as runtime:
        each = fan_out(work.loaded, over="ns", item="n", into="all")
        state = await run(runtime, each, {"ns": range(20)}, where)
        assert state["all"] == [[5]] * 20
    assert work.LOADED == []


async def test_an_initializer_that_raises_fails_the_actions_and_starts_no_more():
    async with runtime_of() as runtime:
        each = fan_out(work.square, over="ns", item="n", into="all", on_error="collect")
        app = Application(each, executor=Processes(2, initializer=work.refuse_to_load))
        with pytest.raises(ConnectionError, match="server is down") as caught:
            await run(runtime, work.square, {"n": 1}, Processes(1, initializer=work.refuse_to_load))
        assert "the initializer raised it" in "".join(caught.value.__notes__)
        started: list[object] = []
        start = ProcessTransport.start

        def counting(self: ProcessTransport, *args: Any) -> ProcessLink:
            started.append(args)
            return start(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ProcessTransport, "start", counting)
            result = await app.run({"ns": range(100)}, runtime=runtime)
        assert result.status == "succeeded"
        assert len(started) <= 4


async def test_workers_that_die_at_their_start_are_given_up():
    async with runtime_of() as runtime:
        where = Processes(1, initializer=work.die_at_start)
        with pytest.raises(NoWorker, match=r"3 in a row died at their start.*exit code 5"):
            await run(runtime, work.square, {"n": 1}, where)


async def test_with_no_descriptor_left_no_worker_can_be_started():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with runtime_of() as runtime:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(NoWorker, match="Too many open files"):
                await run(runtime, work.square, {"n": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await run(runtime, work.square, {"n": 3}))["square"] == 9


async def test_a_launcher_that_is_killed_is_replaced():
    async with runtime_of() as runtime:
        pid = (await run(runtime, work.pid_of, {"n": 1}))["pid"]
        launcher = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(launcher, 9)
        with anyio.fail_after(10):  # its worker may have some more calls before it is ended
            while (await run(runtime, work.pid_of, {"n": 1}))["pid"] == pid:
                await anyio.sleep(0.01)
        with anyio.fail_after(5):
            while Path(f"/proc/{pid}").exists():
                await anyio.sleep(0.01)


async def test_a_copy_of_the_program_does_not_hold_up_the_closing():
    launchers: list[Any] = []
    start = ProcessTransport.start

    def watched(self: ProcessTransport, *args: Any) -> ProcessLink:
        link = start(self, *args)
        launchers.append(link._launcher)
        return link

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProcessTransport, "start", watched)
        async with Runtime() as runtime:
            await run(runtime, work.square, {"n": 1})
            held = os.dup(launchers[0]._sock.fileno())  # as in a process that was forked
    os.close(held)
    assert launchers[0]._process.returncode == 0  # it has ended by itself, and was not killed


async def test_modules_are_found_that_came_after_the_start(tmp_path: Path):
    (tmp_path / "shoal_came_later.py").write_text("def double(n: int) -> int:\n    return 2 * n\n")
    async with runtime_of() as runtime:
        await run(runtime, work.square, {"n": 1})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(tmp_path), *sys.path])
            double = importlib.import_module("shoal_came_later").double
            act = action(reads=["n"], writes=["twice"])(double)
            assert (await run(runtime, act, {"n": 3}))["twice"] == 6
    del sys.modules["shoal_came_later"]


async def test_what_a_function_has_started_ends_with_its_worker(tmp_path: Path):
    async with runtime_of() as runtime:
        pid = (await run(runtime, work.leave_child, {"path": str(tmp_path / "pid")}))["child"]
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        await gone(pid)


async def gone(pid: int) -> None:
    """Raise ProcessLookupError once there is no such process."""
    with anyio.fail_after(5):
        while True:
            os.kill(pid, 0)
            await anyio.sleep(0.01)


@pytest.mark.slow
async def test_a_result_of_a_hundred_megabytes():
    async with runtime_of() as runtime:
        began = time.perf_counter()
        state = await run(runtime, work.make_large, {"size": 100_000_000})
        assert len(state["data"]) == 100_000_000
        assert time.perf_counter() - began < 20
