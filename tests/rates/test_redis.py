"""Rates shared through a real server: Valkey's and Redis's own, started for each test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from shoal import Rate, SharedRate
from shoal.errors import DefinitionError, RateUnavailable
from shoal.rates import RateRequest
from shoal.rates.redis import RedisRates
from shoal.testing import no_leaks

from .redis_server import SERVERS, Server
from .sharing import check_windows, keep_to_a_rate, lose_a_process, many

pytestmark = [pytest.mark.anyio, pytest.mark.services, pytest.mark.realtime]

each_server = pytest.mark.parametrize("server", SERVERS, indirect=True)


# -- keys ------------------------------------------------------------------------------------------


@each_server
async def test_idle_keys_vanish(server: Server):
    rate = RateRequest(key="x", interval=0.2, burst=1, costs=(1,))
    with RedisRates(server.url, prefix="here:") as rates:
        await rates.settle([rate])
        assert rates._client.keys() == [b"here:x"]
        await anyio.sleep(0.4)
        assert rates._client.keys() == []


# -- several processes -----------------------------------------------------------------------------


@each_server
@pytest.mark.parametrize(("k", "burst"), [(20, 1), (100, 4), (400, 10)])
def test_processes_keep_to_a_rate_together(server: Server, tmp_path: Path, k: float, burst: float):
    keep_to_a_rate(server.url, tmp_path, k=k, burst=burst)


def test_a_process_that_is_killed_takes_little_with_it(server: Server, tmp_path: Path):
    lose_a_process(server.url, tmp_path)


# -- trouble ---------------------------------------------------------------------------------------


async def test_a_server_that_is_restarted_delays_only(server: Server):
    starts: list[float] = []
    async with no_leaks(processes=False):  # the new server is one
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
