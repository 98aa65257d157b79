"""The programs of the documentation and an example, simulated: they have no bugs to be found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import pytest

from shoal import MemoryStore
from shoal.testing import simulate

DOCS = Path(__file__).parents[2] / "docs"
MODELS = {"models": [f"model {n}" for n in range(8)], "epochs": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def their_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Import the programs by their names, as they import each other, and forget them again."""
    monkeypatch.chdir(tmp_path)  # where the stores are that they name
    before = set(sys.modules)
    for folder in ("tutorial", "programs"):
        monkeypatch.setattr(sys, "path", [str(DOCS / folder), *sys.path])
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(DOCS)):
            del sys.modules[name]


def test_the_newsletter_of_the_tutorial() -> None:
    approved, news = import_module("approved"), import_module("news")

    def inputs() -> dict[str, object]:
        news.downloads.clear()  # what the stand-in for the Internet remembers
        return {}

    simulate(
        approved.app,
        {"urls": ["news/tide", "news/rain", "news/busy"]},
        inputs=inputs,
        answers={"approve": True},
        seeds=60,
    )


@pytest.mark.parametrize(
    ("program", "state"), [("search", MODELS), ("review", {"files": ["a.py", "b.py"]})]
)
def test_the_programs_that_are_compared(
    program: str, state: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(name: str, seconds: float = 0) -> str:
        await anyio.sleep(seconds or 0.005 + crc32(name.encode()) % 20 / 1000)
        return name

    monkeypatch.setattr(import_module("world"), "call", call)  # theirs writes a file
    simulate(import_module(f"{program}_shoal").app, state, seeds=60)


def test_the_reviews_of_the_service() -> None:
    pytest.importorskip("pydantic")
    review = import_module("examples.fastapi_service.review")
    simulate(
        review.reviews(MemoryStore()),
        {"files": [{"path": "a", "text": "x"}, {"path": "b", "text": "y\nz"}]},
        inputs=lambda: {"reviewer": review.PretendReviewer()},
        answers={"verdict": "accepted"},
        seeds=60,
    )
