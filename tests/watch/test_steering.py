"""Processes that execute runs, and steer those of each other through one store."""

# pyright: reportPrivateUsage=false
# The writer's connection is told how large its file may be.

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, Limits, Runtime, StoreFailed, action, fan_out
from shoal.stores._sql.store import DurableStore
from shoal.watch import Queries
from tests.stores.durable import InFile, InSchema, Kept
from tests.stores.postgres import PostgresServer

pytestmark = pytest.mark.realtime

WORKER = """
    import json, sys
    import anyio
    from shoal import *
    from shoal.watch import Queries
    from shoal.stores._watching import Command

    @action(reads=["item"], writes=["done"])
    async def work(item: int, context: Context) -> int:
        if item == 0:
            return await context.ask("how many", {"of": "them"})
        if item == 1:
            await anyio.sleep(60)
        await anyio.sleep(0.3)
        return item

    async def steer(store, other):
        # Answer the question, cancel the child that sleeps, and let the others all run at once.
        queries = Queries(store)
        async def leave(kind, **arguments):
            await store.command(Command(run_id=other, kind=kind, arguments=arguments))
        while True:
            await anyio.sleep(0.05)
            try:
                asked = (await queries.questions(other)).open
                uses = {(use.owner, use.part): use for use in await queries.limits(other)}
            except errors.UnknownRun:
                continue
            if asked and ("all", -1) in uses:
                break
        await leave("answer", question=asked[0].id, answer=42)
        await leave("cancel child", path=[["all", 0, "work", 1]], reason="by the other")
        await leave("change limits", owner="all", part=-1, n=50)

    async def main(store, mine, other):
        app = Application(
            fan_out(work, over="items", item="item", into="all", name="all", limits=Limits(2),
                    on_error="ignore"),
            name=mine,
        )
        async with store, Runtime(store=store) as runtime, anyio.create_task_group() as tasks:
            handle = await app.start({"items": list(range(40))}, id=mine, runtime=runtime)
            tasks.start_soon(steer, store, other)
            result = await handle.result()
            print(json.dumps([result.status, sorted(result.state["all"]),
                [str(one.reason) for one in result.outcomes("all") if isinstance(one, Cancelled)]]))

    from shoal import errors
    expression, mine, other = sys.argv[1:]
    anyio.run(main, eval(expression), mine, other)
"""


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "sqlite":
        return InFile(tmp_path / "runs.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return InSchema(server)


def test_two_workers_steer_each_other(place: Kept, tmp_path: Path):
    program = tmp_path / "worker.py"
    program.write_text("\n".join(line[4:] for line in WORKER.splitlines()))
    began = time.monotonic()
    both = [
        subprocess.Popen(
            [sys.executable, str(program), "{}({})".format(*place.code), mine, other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for mine, other in (("one", "two"), ("two", "one"))
    ]
    try:
        said = [worker.communicate(timeout=60) for worker in both]
    finally:
        for worker in both:
            worker.kill()
    assert [error for _, error in said] == ["", ""]
    for out, _ in said:
        status, values, reasons = json.loads(out)
        assert status == "succeeded"
        assert values == [*range(2, 40), 42]
        assert reasons == ["by the other"]
    # Two at a time the others would take six seconds.
    assert time.monotonic() - began < 20


@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    await anyio.sleep(0.2)
    return item


@pytest.mark.services
def test_reports_go_on_after_connections_were_lost(postgres: PostgresServer):
    place = InSchema(postgres)
    step = fan_out(work, over="items", item="item", into="all", limits=Limits(4))
    ages = list[float]()

    async def main() -> None:
        async with place.store() as store, Runtime(store=store) as runtime:
            app = Application(step, name="lost")
            handle = await app.start({"items": range(40)}, id="a", runtime=runtime)
            for _ in range(3):
                await anyio.sleep(0.5)
                await anyio.to_thread.run_sync(terminate, place)
                await anyio.sleep(0.1)
                reported = await store.reported("a")
                assert reported is not None
                ages.append(time.time() - reported.at)
            result = await handle.result()
            assert sorted(result.state["all"]) == [*range(40)]
            reported = await store.reported("a")
            assert reported is not None
            assert '"is_over":true' in reported.text

    anyio.run(main)
    assert max(ages) < 2


def terminate(place: InSchema) -> None:
    """End all connections that stores have, as an administrator does."""
    for pid in place.backends():
        place.server.execute("SELECT pg_terminate_backend(%s)", pid)


@action(reads=["item"], writes=["done"])
async def write(item: int) -> str:
    await anyio.sleep(0.05)
    return "x" * 3000


def test_a_full_disk_loses_reports_and_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    place = InFile(tmp_path / "runs.db")
    step = fan_out(write, over="items", item="item", into="all", limits=Limits(4))

    async def main() -> None:
        async with place.store(patience=0.5) as store, Runtime(store=store) as runtime:
            app = Application(step, name="full")
            state = {"items": range(60)}
            handle = await app.start(state, id="a", runtime=runtime)
            await anyio.sleep(0.3)
            make_room(store, pages=0)
            with pytest.raises(StoreFailed, match="can't grow"):
                await handle.result()
            overview = await Queries(store).overview("a")
            assert (overview.is_lost, overview.summary.holder) == (True, "")
            assert 0 < overview.counts["succeeded"] < 60
            make_room(store, pages=1_000_000)
            assert len((await app.run(id="a", runtime=runtime)).state["all"]) == 60
            overview = await Queries(store).overview("a")
            assert overview.report is not None
            assert overview.report.is_over

    anyio.run(main)
    assert [one.levelname for one in caplog.records if "reports" in one.message] in (
        [],
        ["WARNING"],
    )


def make_room(store: DurableStore, *, pages: int) -> None:
    """Let the file have so many pages, or none more than it has."""
    writer = store._writer
    assert writer is not None
    data: Any = writer._database
    data._sql.execute(f"PRAGMA max_page_count = {max(pages, 1)}")
