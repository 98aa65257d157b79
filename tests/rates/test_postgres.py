"""Rates and budgets shared through PostgreSQL: connections that are lost, calls cancelled."""

# pyright: reportPrivateUsage=false
# Connections are looked at and cut in the middle of what they do.

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from shoal import Application, Budget, Context, Runtime, action
from shoal.errors import DefinitionError, NotApplied, RateUnavailable
from shoal.rates import BudgetReply, BudgetRequest, RateReply, RateRequest
from shoal.rates import postgres as module
from shoal.rates.postgres import PostgresRates
from shoal.testing import no_leaks
from tests.stores.postgres import PostgresServer
from tests.stores.postgres_proxy import Proxy

from .sharing import keep_to_a_rate, lose_a_process

pytestmark = [pytest.mark.anyio, pytest.mark.services, pytest.mark.realtime]


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        proxy = Proxy(postgres, folder)
        try:
            yield proxy
        finally:
            proxy.close()


@pytest.fixture
def rates(postgres: PostgresServer, proxy: Proxy) -> Iterator[PostgresRates]:
    with PostgresRates(proxy.address, schema=postgres.new_schema(), timeout=0.3) as rates:
        yield rates


def asking(*costs: float, returned: float = 0.0, since: float | None = None) -> BudgetRequest:
    return BudgetRequest(key="k", amount=10, costs=costs, returned=returned, since=since)


async def spend(rates: PostgresRates, request: BudgetRequest) -> BudgetReply:
    [reply] = await rates.spend([request])
    return reply


@pytest.mark.parametrize(
    ("when", "what"),
    [
        ("after", "set_config"),
        ("silent", "INSERT INTO budgets"),
        ("before", "; COMMIT"),
        ("after", "; COMMIT"),
        ("silent", "; COMMIT"),
    ],
)
async def test_a_connection_that_is_lost_at_any_moment(
    rates: PostgresRates, proxy: Proxy, when: str, what: str
):
    """The call is applied once, and its answer is known; or it says that it was not applied."""
    first = await spend(rates, asking(3))
    proxy.cut(when, what)
    request = asking(4, returned=1, since=first.since)
    try:
        reply = await spend(rates, request)
    except NotApplied:
        assert (await spend(rates, asking())).used == 3
    else:
        assert (reply.granted, reply.used) == (1, 6)
        assert (await spend(rates, asking())).used == 6
    assert proxy.cuts == 1


async def test_a_commit_of_which_nobody_knows(rates: PostgresRates, proxy: Proxy):
    await spend(rates, asking(3))
    proxy.cut("after", "; COMMIT", for_good=True)
    with pytest.raises(psycopg.OperationalError) as raised:
        await spend(rates, asking(4))
    assert not isinstance(raised.value, NotApplied), "it was"
    proxy.is_down = False
    assert (await spend(rates, asking())).used == 7


async def test_what_no_call_was_applied_of_is_returned_once_more(
    postgres: PostgresServer, proxy: Proxy
):
    """Unused units are not lost while the server can't be reached."""
    schema = postgres.new_schema()

    @action(reads=["n"], writes=["out"])
    async def body(n: int, context: Context) -> int:
        proxy.is_down = True
        for one in list(rates._idle):
            one.sql.close()
        context.charge(0.25, unit="USD")
        return n

    async def comes_up() -> None:
        await anyio.sleep(0.3)
        proxy.is_down = False

    with PostgresRates(proxy.address, schema=schema) as rates:
        budget = Budget(5, "USD", worst=1.0, name="team", backend=rates)
        # The proxy has threads and sockets of its own.
        async with no_leaks(threads=False, descriptors=False), Runtime(limits=budget) as runtime:
            await runtime.run(Application(body), {"n": 1})
            await comes_up()
        request = BudgetRequest(key="team", amount=5)
        assert (await spend(rates, request)).used == 0.25


@pytest.mark.parametrize("is_committing", [False, True])
async def test_a_call_that_is_cancelled_is_rolled_back_or_awaited(
    postgres: PostgresServer, proxy: Proxy, is_committing: bool, monkeypatch: pytest.MonkeyPatch
):
    """So nothing is granted to nobody."""
    answers: list[BudgetReply] = []
    with PostgresRates(proxy.address, schema=postgres.new_schema(), timeout=5) as rates:
        await spend(rates, asking())
        scope = anyio.CancelScope()
        commit = module._Connection.commit

        def waits(self: Any) -> None:
            if not is_committing:
                anyio.from_thread.run_sync(scope.cancel)
                commit(self)
                return
            self.is_committing = True
            anyio.from_thread.run_sync(scope.cancel)
            time.sleep(0.2)
            self.sql.commit()
            self.is_committing = False

        monkeypatch.setattr(module._Connection, "commit", waits)
        with scope:
            answers.append(await spend(rates, asking(4)))
        monkeypatch.undo()
        assert [reply.granted for reply in answers] == ([1] if is_committing else [])
        assert (await spend(rates, asking())).used == (4 if is_committing else 0)


async def test_cancelled_while_the_server_says_nothing_it_ends_soon(
    postgres: PostgresServer, proxy: Proxy
):
    with PostgresRates(proxy.address, schema=postgres.new_schema(), timeout=60) as rates:
        await spend(rates, asking())
        proxy.speaks.clear()
        began = time.monotonic()
        with anyio.move_on_after(0.05):
            await spend(rates, asking(4))
        assert time.monotonic() - began < 30, "it does not wait for the end of its patience"
        proxy.speaks.set()
        assert (await spend(rates, asking())).used == 0


async def test_a_process_that_hangs_in_its_transaction_does_not_stop_the_others(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    schema = postgres.new_schema()
    commit, hangs, may_go_on = module._Connection.commit, anyio.Event(), threading.Event()

    def slowly(self: Any) -> None:
        monkeypatch.undo()
        anyio.from_thread.run_sync(hangs.set)
        may_go_on.wait(60)
        commit(self)

    with (
        PostgresRates(postgres.address(), schema=schema, timeout=0.2) as one,
        PostgresRates(postgres.address(), schema=schema, timeout=30) as two,
    ):
        await spend(two, asking())
        monkeypatch.setattr(module._Connection, "commit", slowly)
        async with anyio.create_task_group() as tasks:

            async def hang() -> None:
                with pytest.raises(NotApplied):
                    await spend(one, asking(7))

            tasks.start_soon(hang)
            await hangs.wait()
            try:
                assert (await spend(two, asking(7))).granted == 1
            finally:
                may_go_on.set()
        assert (await spend(two, asking())).used == 7


async def test_a_server_that_is_down_is_reported(
    postgres: PostgresServer, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shoal._limits.shared_budget_client.PATIENCE", 0.2)
    proxy.is_down = True

    @action(reads=["n"], writes=["out"])
    async def body(n: int) -> int:
        return n

    with PostgresRates(proxy.address, schema=postgres.new_schema()) as rates:
        budget = Budget(5, "USD", worst=1.0, name="team", backend=rates)
        with pytest.raises(RateUnavailable, match="'team' is shared through PostgresRates"):
            async with no_leaks(threads=False, descriptors=False):
                await Application(body, limits=budget).run({"n": 1})


async def test_processes_that_ask_for_the_same_keys_at_once(postgres: PostgresServer):
    """Tables are made by one of them, and nothing deadlocks in whatever order they ask."""
    schema, keys = postgres.new_schema(), "abcdef"
    granted: list[int] = []

    async def ask(number: int) -> None:
        with PostgresRates(postgres.address(), schema=schema, timeout=5) as rates:
            for turn in range(6):
                order: Sequence[str] = keys if (number + turn) % 2 else keys[::-1]
                requests = [BudgetRequest(key=key, amount=20, costs=(1,)) for key in order]
                granted.extend(reply.granted for reply in await rates.spend(requests))
                await rates.settle([RateRequest(key=k, interval=1, burst=9) for k in order])

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(ask, number)
    assert sum(granted) == 6 * 20


async def test_idle_keys_vanish(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SWEEP", 1)
    schema = postgres.new_schema()
    with PostgresRates(postgres.address(), schema=schema) as rates:
        await rates.settle([RateRequest(key="x", interval=0.01, burst=1, costs=(1,))])
        for per in (None, 0.01):
            request = BudgetRequest(key=f"per {per}", amount=1, per=per, costs=(1,))
            await spend(rates, request)
        postgres.execute(f"UPDATE {schema}.rates SET tat = tat - 9, last = last - 9")
        postgres.execute(f"UPDATE {schema}.budgets SET ends = ends - 9")
        await rates.settle([RateRequest(key="y", interval=1, burst=1, costs=(1,))])
        await rates.spend([asking()])
        await rates.spend([asking()])
    kept = postgres.execute(f"SELECT key FROM {schema}.budgets ORDER BY key")
    assert kept == [("k",), ("per None",)]
    assert postgres.execute(f"SELECT key FROM {schema}.rates") == [("y",)]


@pytest.mark.slow
def test_processes_keep_to_a_rate_together(postgres: PostgresServer, tmp_path: Path):
    keep_to_a_rate(postgres.address(), tmp_path, k=100, burst=4)


@pytest.mark.slow
def test_a_process_that_is_killed_takes_little_with_it(postgres: PostgresServer, tmp_path: Path):
    lose_a_process(postgres.address(), tmp_path)


async def test_rates_are_answered(rates: PostgresRates):
    [reply] = await rates.settle([RateRequest(key="x", interval=60, burst=1, costs=(1, 1))])
    assert isinstance(reply, RateReply)
    assert len(reply.turns) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"address": 3}, "takes an address, such as"),
        ({"address": "postgresql://me:secret@[x"}, "PostgresRates takes an address"),
        ({"schema": "pg_x"}, "takes the name of a schema"),
        ({"timeout": 0}, "seconds above 0"),
    ],
)
async def test_misuse(arguments: dict[str, Any], says: str):
    given: dict[str, Any] = {"address": "", **arguments}
    with pytest.raises(DefinitionError, match=says) as raised:
        PostgresRates(given.pop("address"), **given)
    assert "secret" not in str(raised.value)


async def test_a_repr_shows_the_place_but_no_password():
    rates = PostgresRates("postgresql://me:secret@far:1234/runs")
    assert repr(rates) == "PostgresRates('postgresql://far:1234/runs')"


async def test_without_the_extra_it_says_what_to_install():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "try:\n    import shoal.rates.postgres\n"
        "except ImportError as error:\n    print(error)"
    )
    received = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert "pip install 'shoal[postgres]'" in received
