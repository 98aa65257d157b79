"""Addresses and texts that nobody meant to write."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from httpx import AsyncClient

from shoal import Application, MemoryStore, RunPath, StoreFailed, action, fan_out
from shoal._events.paths import path_text
from shoal.watch.ui import create_app
from shoal.watch.ui._urls import Urls
from tests.watch.ui.clients import TOKEN, client_of, events, fake_ui
from tests.watch.ui.fakes import FakeQueries

pytestmark = pytest.mark.anyio

KEYS = ["a", "\ud800", "/", "..", "<b>", "\x1b[2J\x00", 10**5000]


@action(reads=["item"], writes=["done"])
async def same(item: str | int) -> str | int:
    if item == "a":
        raise ValueError("<script>\ud800\x1b[2J")
    return item


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    store = MemoryStore()
    many = fan_out(
        same, over="items", item="item", into="all", key=lambda item: item, on_error="collect"
    )
    await Application(many, store=store, name="<i>").run({"items": KEYS}, id="\ud800")
    async with client_of(create_app(store, token=TOKEN)) as client:
        yield client


ROOT = RunPath(run_id="\ud800")


def address(path: RunPath = ROOT) -> str:
    return Urls("", {}).run(path)


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
async def test_runs_of_any_key_have_pages(client: AsyncClient, key: str | int):
    child = RunPath(parent=ROOT, step="all", act="same", key=key)
    for path in (ROOT, child):
        for view in ("", "timeline", "history", "values", "time"):
            page = await client.get(address(path), params={"view": view})
            assert page.status_code == 200, (path, view)
            assert not {"<script>\ufffd", "<b>", "<i>"} & set(page.text.split("<main")[-1].split())
    for what in ("element", "error" if key == "a" else "value"):
        for whole in ("", "?all="):
            assert (await client.get(Urls("", {}).value(child, what) + whole)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"run/s:{'9' * 5000}:a:k",
        f"run/s:{'9' * 30}:a:k",
        "%ff",
        "run/s:0:a:%ff",
        f"run/s:0:a:#{'9' * 5000}",
        "/".join(["run", *["s:0:a:k"] * 3000]),
    ],
    ids=range(6),
)
async def test_an_address_of_no_run_is_not_found(client: AsyncClient, path: str):
    assert (await client.get(Urls("", {}).run(path))).status_code == 404


@pytest.mark.parametrize("after", ["x", "9" * 30, "9" * 5000, "-1", "[1]", "NaN", "[" * 5000])
@pytest.mark.parametrize("view", ["", "history"])
async def test_a_list_has_no_page_after_a_cursor_made_by_hand(
    client: AsyncClient, view: str, after: str
):
    for kind in ("", "fragment", "stream"):
        query = {"view": view, "after": after, "as": kind}
        assert (await client.get(address(), params=query)).status_code == 400


@pytest.mark.parametrize("rest", ["/static/", "/static/x?", "/token#", "/static/#"])
async def test_a_host_with_a_path_opens_no_page(rest: str):
    async with client_of(fake_ui().app, token=None) as client:
        page = await client.get("/runs/crawl-2026-11-30", headers={"host": f"localhost:80{rest}"})
        assert page.status_code in (400, 401)
        page = await client.get("/limits", headers={"host": f"localhost:80{rest}"})
        assert page.status_code in (400, 401)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "0", "9" * 400, "9" * 5000, "1e999", "x"])
@pytest.mark.parametrize("name", ["n", "max_rate"])
async def test_a_limit_takes_no_other_numbers(name: str, number: str):
    ui = fake_ui()
    assert ui._door is not None
    form = {"csrf": ui._door.form_value, "owner": "runtime", "part": "0", name: number}
    async with client_of(ui.app) as client:
        answer = await client.post("/do/limit/crawl-2026-11-30", data=form)
    assert answer.status_code == 409


async def test_a_child_of_any_key_can_be_cancelled():
    queries = FakeQueries()
    ui = fake_ui(queries)
    assert ui._door is not None
    child = RunPath(parent=RunPath(run_id="crawl-2026-11-30"), step="s", act="a", key=10**5000)
    async with client_of(ui.app) as client:
        form = {"csrf": ui._door.form_value}
        answer = await client.post(Urls("", {}).act("cancel", child), data=form)
    assert answer.status_code == 303
    [command] = queries.commands
    assert "path" in json.dumps(command.arguments)


async def test_a_stream_outlives_a_moment_without_its_store():
    class Gone(FakeQueries):
        looks = 0

        async def mark(self) -> object:
            self.looks += 1
            if self.looks in (1, 3):
                raise StoreFailed("the file is gone")
            return self.looks

    queries = Gone()
    async with client_of(fake_ui(queries).app) as client:
        response = await client.get("/limits?as=stream")
    assert len(events(response.text)) == 1
    assert queries.looks > 4


def test_a_path_is_text_as_it_was():
    assert path_text(ROOT) == "%ED%A0%80"
