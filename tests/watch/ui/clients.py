"""Clients of the page, without a server."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import httpx

from shoal.watch.ui._app import UI
from shoal.watch.ui._rendering import prepare
from tests.watch.ui.fakes import FakeQueries

TOKEN = "a-token-of-some-length"
prepare()  # reads files, which no test may do on its event loop

BASE = "http://localhost:8321"


@asynccontextmanager
async def client_of(
    app: Any, *, token: str | None = TOKEN, base: str = BASE
) -> AsyncGenerator[httpx.AsyncClient]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
        yield client


def fake_ui(queries: FakeQueries | None = None, **more: Any) -> UI:
    fake: Any = FakeQueries() if queries is None else queries
    given: dict[str, Any] = {"token": TOKEN, "name": "runs.db"} | more
    return UI(fake, fake, **given)


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag and attributes.items() <= a.items()]

    @property
    def links(self) -> list[str]:
        return [a["href"] for a in self.all("a") if "href" in a]


def words(text: str) -> str:
    return re.sub(r"\s+", " ", Page(text).text)


def events(text: str) -> list[str]:
    """Return the data of each server-sent event."""
    found = [part for part in text.split("\n\n") if "data: " in part]
    return [
        "\n".join(line[6:] for line in part.split("\n") if line.startswith("data: "))
        for part in found
    ]
