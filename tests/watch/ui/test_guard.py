"""Hosts, the token, and forms of other sites."""

from __future__ import annotations

import re

import pytest
from httpx import AsyncClient

from shoal.errors import DefinitionError
from tests.watch.ui.clients import TOKEN, client_of, fake_ui, words
from tests.watch.ui.fakes import CRAWL, FakeQueries

pytestmark = pytest.mark.anyio

CANCEL = "/do/cancel/crawl-2026-11-30"


async def csrf_of(client: AsyncClient) -> str:
    page = await client.get("/runs/crawl-2026-11-30")
    return re.findall(r'name="csrf" value="([^"]+)"', page.text)[0]


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.example"]
)
async def test_other_hosts_are_refused(host: str):
    async with client_of(fake_ui().app, base=f"http://{host}:8321") as client:
        response = await client.get("/")
    assert response.status_code == 400
    assert "localhost" in response.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
async def test_this_machine_is_served(host: str):
    async with client_of(fake_ui().app, base=f"http://{host}:8321") as client:
        assert (await client.get("/")).status_code == 200


async def test_pages_need_the_token_which_leaves_the_address():
    async with client_of(fake_ui().app, token=None) as client:
        refused = await client.get("/runs/crawl-2026-11-30?status=failed")
        wrong = await client.get("/?token=nothing-like-the-token")
        entered = await client.get(f"/runs/crawl-2026-11-30?status=failed&token={TOKEN}")
        page = await client.get(entered.headers["location"])
    assert refused.status_code == wrong.status_code == 401
    assert "12,589" not in refused.text
    assert entered.status_code == 303
    assert entered.headers["location"] == "/runs/crawl-2026-11-30?status=failed"
    cookie = entered.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert page.status_code == 200
    assert TOKEN not in page.text


async def test_the_token_may_be_typed_in_and_leads_to_no_other_site():
    async with client_of(fake_ui().app, token=None) as client:
        wrong = await client.post("/token", data={"token": "x", "next": "/limits"})
        right = await client.post("/token", data={"token": TOKEN, "next": "/limits"})
        astray = await client.post("/token", data={"token": TOKEN, "next": "//evil.example"})
    assert "That is not the token" in words(wrong.text)
    assert right.headers["location"] == "/limits"
    assert astray.headers["location"] == "/"


async def test_a_form_of_this_page_leaves_a_command():
    queries = FakeQueries()
    async with client_of(fake_ui(queries).app) as client:
        form = {"reason": "enough", "csrf": await csrf_of(client)}
        headers = {"Origin": "http://localhost:8321", "Sec-Fetch-Site": "same-origin"}
        response = await client.post(CANCEL, data=form, headers=headers)
    assert response.status_code == 303
    [command] = queries.commands
    assert (command.run_id, command.kind) == (CRAWL.id, "cancel")
    assert command.arguments == {"reason": "enough", "by": "the page"}


@pytest.mark.parametrize(
    ("headers", "csrf"),
    [
        ({"Origin": "http://evil.example"}, None),
        ({"Origin": "http://localhost:9999"}, None),
        ({"Origin": "null"}, None),
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
        ({}, ""),
        ({}, "0" * 64),
    ],
)
async def test_forms_of_other_sites_change_nothing(headers: dict[str, str], csrf: str | None):
    queries = FakeQueries()
    async with client_of(fake_ui(queries).app) as client:
        form = {"reason": "x", "csrf": await csrf_of(client) if csrf is None else csrf}
        response = await client.post(CANCEL, data=form, headers=headers)
        assert (await client.get(CANCEL)).status_code == 405
        assert (await client.post(CANCEL, json=form)).status_code == 415
    assert response.status_code == 403
    assert not queries.commands


async def test_without_a_token_pages_are_open_and_nothing_can_be_changed():
    queries = FakeQueries()
    async with client_of(fake_ui(queries, token=None).app, token=None) as client:
        page = await client.get("/runs/crawl-2026-11-30")
        response = await client.post(CANCEL, data={"reason": "x", "csrf": ""})
    assert page.status_code == 200
    assert "Cancel" not in words(page.text)
    assert response.status_code == 403
    assert not queries.commands


async def test_a_child_and_a_limit_are_addressed_as_their_process_knows_them():
    queries = FakeQueries()
    async with client_of(fake_ui(queries).app) as client:
        csrf = await csrf_of(client)
        path = "crawl-2026-11-30/pages:0:fetch:a%252Fb"
        await client.post(f"/do/cancel/{path}", data={"reason": "x", "csrf": csrf})
        form = {"owner": "fetch", "part": "1", "n": "40", "csrf": csrf}
        await client.post("/do/limit/crawl-2026-11-30", data=form)
        bad = await client.post("/do/limit/crawl-2026-11-30", data=form | {"n": "0"})
        for pause in ("yes", "no"):
            await client.post("/do/limit/crawl-2026-11-30", data=form | {"pause": pause})
    child, limit, *paused = queries.commands
    assert [(one.kind, one.arguments) for one in paused] == [
        (f"{what} limit", {"owner": "fetch", "part": 1, "by": "the page"})
        for what in ("pause", "resume")
    ]
    assert child.arguments == {
        "path": [["pages", 0, "fetch", "a/b"]],
        "reason": "x",
        "by": "the page",
    }
    assert limit.arguments == {"owner": "fetch", "part": 1, "n": 40, "by": "the page"}
    assert bad.status_code == 409


async def test_a_token_that_can_be_guessed_is_refused():
    with pytest.raises(DefinitionError, match="16 characters"):
        fake_ui(token="1234")
