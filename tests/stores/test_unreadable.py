"""What a store has kept and nobody can read any more: the error says what to do, in full."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shoal import Application, SQLiteStore, StoreFailed, action, fan_out
from shoal._errors.exceptions import brief
from shoal.errors import NotDecodable, UpdateTooLarge

anyio_test = pytest.mark.anyio

REMEDY = r"import app_models before .*codec\.moved\(.*\)"


@pytest.fixture
def module() -> Generator[ModuleType]:
    """A program's module of classes, which isn't imported when the program starts anew."""
    made = ModuleType("app_models")

    @dataclass
    class Page:
        title: str

    Page.__module__, Page.__qualname__ = "app_models", "Page"
    made.__dict__["Page"] = Page
    sys.modules["app_models"] = made
    yield made
    sys.modules.pop("app_models", None)


def application(path: Path, module: ModuleType, where: str) -> Application:
    @action(reads=["item"], writes=["out"])
    async def work(item: Any) -> Any:
        if item == 2 or getattr(item, "title", "") == "2":
            raise RuntimeError("stop")
        return module.Page("t") if where == "a value" else item

    page = fan_out(work, over="items", into="outs")
    store = SQLiteStore(path, synchronous="normal")
    return Application(page, name="app", store=store)


@anyio_test
@pytest.mark.parametrize("where", ["a value", "an element", "the state"])
async def test_a_type_that_is_gone_raises_the_documented_error(
    tmp_path: Path, module: ModuleType, where: str
):
    app = application(tmp_path / "runs.db", module, where)
    page = module.Page
    items = [page("1"), page("2")] if where == "an element" else [1, 2]
    state = {"items": items, "more": page("m") if where == "the state" else None}
    with pytest.raises(ExceptionGroup):
        await app.run(state, id="x")
    del sys.modules["app_models"]
    with pytest.raises(NotDecodable, match=REMEDY) as raised:
        await app.run(id="x")
    assert not isinstance(raised.value, StoreFailed)
    assert "run x" in raised.value.__notes__[0]
    sys.modules["app_models"] = module  # as it says
    with pytest.raises(ExceptionGroup):
        await app.run(id="x")


def test_an_error_of_ours_is_shown_in_full_for_its_end_says_what_to_do():
    text = "a" * 5000 + ": give it a default"
    assert brief(UpdateTooLarge(text)) == f"UpdateTooLarge({text!r})"
    assert len(brief(ValueError(text))) <= 300
