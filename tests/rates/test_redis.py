"""Rates shared through a real server: Valkey's and Redis's own, started for each test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from shoal import Application, Limits, Rate, SharedRate, action, fan_out
from shoal._limits.shared_rates import SLACK
from shoal.errors import DefinitionError, RateUnavailable
from shoal.rates import RateRequest
from shoal.rates.redis import RedisRates
from shoal.testing import RateBackendConformance, no_leaks

pytestmark = [pytest.mark.anyio, pytest.mark.services, pytest.mark.realtime]

SERVERS = ("valkey-server", "redis-server")
SHARER = Path(__file__).with_name("sharer.py")


each_server = pytest.mark.parametrize("server", SERVERS, indirect=True)


class Server:
    """A server of its own, on a free port, that keeps nothing on disk."""

    def __init__(self, program: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._command = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(directory), "--daemonize", "no"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, f"{self._command} does not listen"
                time.sleep(0.02)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def find(*programs: str) -> str:
    """Find a server. In CI one of them is enough, and none a failure: else skipped for ever."""
    for program in programs:
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found is not None:
            return found
    if os.environ.get("CI") == "true" and programs == SERVERS:
        pytest.fail(f"{' or '.join(programs)} is missing")
    pytest.skip(f"needs {' or '.join(programs)}")


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Whatever server there is; or, where a test names some, that one."""
    named: str | None = getattr(request, "param", None)
    served = Server(find(*(SERVERS if named is None else (named,))), tmp_path)
    served.start()
    try:
        yield served
    finally:
        served.kill()


def noting(starts: list[float]) -> Any:
    @action(reads=["n"], writes=["out"])
    async def noting(n: int) -> int:
        starts.append(time.monotonic())
        return n

    return noting


def many(starts: list[float], rate: SharedRate) -> Application[Any]:
    act = noting(starts)
    return Application(fan_out(act, over="ns", item="n", into="out", limits=Limits(rate=rate)))


LATE = 0.05
"""Seconds by which a busy machine is late, now and then."""


def check_windows(starts: list[float], k: float, burst: float, late: float = LATE) -> None:
    """In any window of t seconds at most k * t + burst start: look at all of them."""
    starts = sorted(starts)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = k * (starts[last] - starts[first] + late) + burst
            assert last - first + 1 <= allowed + 1e-6 * k, (
                f"{last - first + 1} in {starts[last] - starts[first]} s, {allowed} are allowed"
            )


# -- as reckoned -----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", SERVERS, indirect=True)
class TestRedisRates(RateBackendConformance):
    @pytest.fixture
    def backend(self, server: Server) -> Iterator[RedisRates]:
        with RedisRates(server.url) as rates:
            yield rates


@each_server
async def test_idle_keys_vanish(server: Server):
    rate = RateRequest(key="x", interval=0.2, burst=1, costs=(1,))
    with RedisRates(server.url, prefix="here:") as rates:
        await rates.settle([rate])
        assert rates._client.keys() == [b"here:x"]
        await anyio.sleep(0.4)
        assert rates._client.keys() == []


# -- several processes -----------------------------------------------------------------------------


def share(server: Server, logs: list[Path], *, k: float, burst: float, n: int, slots: int) -> Any:
    """Start processes that share a rate, and let them go all at once."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, str(SHARER), ("asyncio", "trio")[number % 2], server.url),
                *(str(k), str(burst), str(n), str(slots), str(log)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, log in enumerate(logs)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def join(processes: Any) -> None:
    for process in processes:
        process.communicate(timeout=30)


def read(*logs: Path) -> list[float]:
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return sorted(float(line) for line in lines if not line.startswith("late"))


def lateness(*logs: Path) -> float:
    """By how much the machine itself was late, at most, more than is made allowance for."""
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return max(float(line[5:]) for line in lines if line.startswith("late"))


@each_server
@pytest.mark.parametrize(("k", "burst"), [(20, 1), (100, 4), (400, 10)])
def test_processes_keep_to_a_rate_together(server: Server, tmp_path: Path, k: float, burst: float):
    logs = [tmp_path / f"{number}.log" for number in range(4)]
    n = int(k * 2 / len(logs))
    processes = share(server, logs, k=k, burst=burst, n=n, slots=64)
    join(processes)
    assert all(process.returncode == 0 for process in processes)
    starts = read(*logs)
    assert len(starts) == n * len(logs)
    slack = RateRequest(key="x", interval=1 / k, burst=burst).slack
    late = lateness(*logs)
    check_windows(starts, k, burst, late=max(0.0, late - slack))
    assert starts[-1] - starts[0] <= n * len(logs) / k * 1.05
    assert all(read(log)[0] - starts[0] < 1 for log in logs)  # each has its share


def test_a_process_that_is_killed_takes_little_with_it(server: Server, tmp_path: Path):
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    k = 100
    victim, *others = processes = share(server, logs, k=k, burst=5, n=100, slots=64)
    while not logs[0].exists() or not logs[0].read_text():
        time.sleep(0.01)
    time.sleep(0.3)
    victim.kill()
    join(processes)
    assert victim.returncode == -signal.SIGKILL
    starts = read(*logs)
    check_windows(starts, k, 5, late=max(0.0, lateness(*logs) - SLACK))
    assert len(read(*logs[1:])) == 200
    assert all(process.returncode == 0 for process in others)
    assert starts[-1] - starts[0] <= len(starts) / k * 1.05 + 0.1


# -- trouble ---------------------------------------------------------------------------------------


async def test_a_server_that_is_restarted_delays_only(server: Server):
    starts: list[float] = []
    async with no_leaks():
        with RedisRates(server.url) as rates:
            app = many(starts, SharedRate(Rate(20), "x", rates))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(app.run, {"ns": range(15)})
                await anyio.sleep(0.2)
                await anyio.to_thread.run_sync(server.kill)
                await anyio.sleep(0.3)
                await anyio.to_thread.run_sync(server.start)
    assert len(starts) == 15
    check_windows(starts, 20, 1)


async def test_a_server_that_is_down_is_reported(server: Server):
    server.kill()
    with RedisRates(server.url) as rates:
        app = many([], SharedRate(Rate(20), "openai", rates, patience=0.5))
        begun = time.monotonic()
        with pytest.raises(RateUnavailable) as caught:
            async with no_leaks():
                await app.run({"ns": range(15)})
    assert time.monotonic() - begun < 3
    assert f"'openai' is shared through RedisRates('redis://127.0.0.1:{server.port}')" in str(
        caught.value
    )
    assert "ConnectionError" in str(caught.value)


async def test_a_server_that_hangs_is_reported_and_used_again_when_it_goes_on(server: Server):
    starts: list[float] = []
    with RedisRates(server.url, timeout=0.3) as rates:
        app = many(starts, SharedRate(Rate(50), "x", rates, patience=0.8))
        await app.run({"ns": range(3)})
        server.signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(RateUnavailable, match="Timeout"):
            await app.run({"ns": range(15)})
        assert time.monotonic() - begun < 4
        server.signal(signal.SIGCONT)
        await app.run({"ns": range(15)})
    assert len(starts) == 18
    check_windows(starts, 50, 1)


async def test_a_process_goes_on_alone_while_the_server_hangs(server: Server):
    starts: list[float] = []
    alone: list[float] = []
    server.signal(signal.SIGSTOP)
    with RedisRates(server.url, timeout=0.2) as rates:
        rate = SharedRate(Rate(100, burst=5), "x", rates, alone=Rate(10), patience=0.3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(many(starts, rate).run, {"ns": range(80)})
            await anyio.sleep(1.5)
            alone = list(starts)
            server.signal(signal.SIGCONT)
    check_windows(alone, 10, 1)
    assert 5 <= len(alone) <= 14
    assert len(starts) == 80


async def test_cancelled_while_the_server_hangs_it_ends_soon(server: Server):
    with RedisRates(server.url, timeout=0.5) as rates:
        server.signal(signal.SIGSTOP)
        begun = time.monotonic()
        async with no_leaks():
            with anyio.move_on_after(0.2):
                await many([], SharedRate(Rate(20), "x", rates)).run({"ns": range(15)})
            assert time.monotonic() - begun < 2
        server.signal(signal.SIGCONT)


async def test_nobody_elses_threads_are_taken(server: Server):
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    starts: list[float] = []
    release = False

    def block() -> None:
        while not release:
            time.sleep(0.01)

    try:
        with RedisRates(server.url) as rates:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, block)
                await anyio.sleep(0.05)
                with anyio.fail_after(5):
                    await many(starts, SharedRate(Rate(100), "x", rates)).run({"ns": range(5)})
                release = True
    finally:
        release = True
        limiter.total_tokens = before
    assert len(starts) == 5


# -- the client ------------------------------------------------------------------------------------


async def test_a_client_may_be_given_and_stays_open(server: Server):
    import redis

    client: Any = redis.Redis(port=server.port, socket_timeout=1)
    starts: list[float] = []
    try:
        with RedisRates(client) as rates:
            await many(starts, SharedRate(Rate(100), "x", rates)).run({"ns": range(5)})
        assert client.ping()
    finally:
        client.close()
    assert len(starts) == 5


async def test_what_is_no_server_is_refused():
    import redis.asyncio

    for wrong in (redis.asyncio.Redis(), 6379, None):
        with pytest.raises(DefinitionError, match=r"takes an address, such as 'redis://localhost'"):
            RedisRates(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match="seconds above 0"):
        RedisRates("redis://localhost", timeout=0)


def test_a_repr_shows_the_place_but_no_password():
    assert repr(RedisRates("redis://me:secret@far:1234/2")) == "RedisRates('redis://far:1234')"
    assert repr(RedisRates("unix:///run/it.sock")) == "RedisRates('unix:///run/it.sock')"


def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "try:\n    import shoal.rates.redis\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    received = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert "pip install 'shoal[redis]'" in received
