"""Ids that are refused, such as those that hold the text of a secret, before anything is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, MemoryStore, Runtime, SQLiteStore, State, action
from shoal.errors import SecretLeaked
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio

TEXT = "s3cr3t-of-somebody"


@action(reads=["token", "n"], writes=["said"])
async def use(token: str, n: int) -> str:
    return f"{len(token)} {n}"


DECLARED = {"token": TEXT, "n": 1}
GIVEN = State({"token": TEXT, "n": 1}, secret={"token"})


@pytest.mark.parametrize("run_id", [TEXT, f"run-of-{TEXT}"])
@pytest.mark.parametrize("how", ["run", "start", "open"])
@pytest.mark.parametrize("is_declared", [True, False])
async def test_an_id_that_holds_a_secret_is_refused_before_anything_is_saved(
    run_id: str, how: str, is_declared: bool, tmp_path: Path
):
    path = tmp_path / "runs.db"
    app = Application(use, name="use", secret={"token"} if is_declared else ())
    state: Any = DECLARED if is_declared else GIVEN
    async with no_leaks():
        async with Runtime(store=SQLiteStore(path)) as runtime:
            with pytest.raises(SecretLeaked) as raised:
                if how == "open":
                    async with app.open(state, id=run_id, runtime=runtime):
                        raise NotImplementedError
                await getattr(runtime, how)(app, state, id=run_id)
            assert TEXT not in str(raised.value)
            assert raised.value.found_in == ("id",)
        for kept in tmp_path.iterdir():
            assert TEXT.encode() not in kept.read_bytes(), kept


async def test_so_is_the_id_of_a_fork():
    store = MemoryStore()
    app = Application(use, name="use", secret={"token"}, store=store)
    await app.run({"token": "another-one", "n": 1}, id="first")
    with pytest.raises(SecretLeaked):
        await app.fork("first", update={"token": TEXT}, id=f"fork-{TEXT}")
    assert [one.run_id for one in await store.runs()] == ["first"]


async def test_a_secret_that_only_the_store_knows_of_is_found_in_the_id_too():
    store = MemoryStore()
    app = Application(use, name="use", store=store)
    with pytest.raises(ValueError, match="fails"):
        await Application(fails, name="use", store=store).run(
            State({"token": "another-one", "n": 1}, secret={"token"}), id=f"run-of-{TEXT}"
        )
    with pytest.raises(SecretLeaked):  # by its id, so that the token is known to be secret
        await app.run({"token": TEXT}, id=f"run-of-{TEXT}")


@action(reads=["token", "n"], writes=["said"])
async def fails(token: str, n: int) -> str:
    await anyio.sleep(0)
    raise ValueError("fails")


@pytest.mark.parametrize("how", ["run", "start", "open"])
async def test_an_empty_text_is_no_id(how: str):
    app = Application(use, name="use")
    async with no_leaks(), Runtime() as runtime:
        with pytest.raises(ValueError, match="at least one character"):
            if how == "open":
                app.open(DECLARED, id="", runtime=runtime)
            await getattr(runtime, how)(app, DECLARED, id="")
