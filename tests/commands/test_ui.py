"""The command `shoal ui`: what it refuses before it serves. The browser's tests have it serve."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, SQLiteStore, action
from shoal.__main__ import main
from shoal.commands import ui
from tests.watch.ui.clients import TOKEN, client_of, words


@action(writes=["n"])
async def one() -> int:
    return 1


app = Application(one, name="one")
apps = [app, Application(one, name="other")]
HERE = "tests.commands.test_ui"


def _serve_nothing(*_: object) -> None:
    """Stand in for the server."""


@pytest.fixture
def store(tmp_path: Path) -> str:
    place = tmp_path / "runs.db"
    Application(one, store=SQLiteStore(place)).run_sync({}, id="a")
    return str(place)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--app", "nothing"], "takes module:name"),
        (["--app", "nothing_there:app"], "there is no module"),
        (["--app", f"{HERE}:nothing"], "nothing"),
        (["--app", f"{HERE}:HERE"], "not an Application, but a str"),
        (["--app", f"{HERE}:apps", "--app", f"{HERE}:app"], ""),
        (["--token", "short"], "16 characters"),
    ],
)
def test_what_it_refuses(
    arguments: list[str], why: str, store: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr("shoal.watch.ui._serve.serve", _serve_nothing)
    code = main(["ui", "--db", store, "--port", "0", *arguments])
    assert code == (2 if why else 0)
    assert why in capsys.readouterr().err


def test_without_its_packages_it_says_how_to_get_them(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in [name for name in sys.modules if name.startswith("shoal.watch.ui")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert main(["ui", "--db", store]) == 2
    said = capsys.readouterr().err
    assert "such as starlette.applications: pip install 'shoal[web]'" in said
    assert said.count("pip install") == 1


@pytest.mark.parametrize("is_empty", [False, True])
def test_with_an_application_it_serves_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_empty: bool
):
    served: list[Any] = []

    def keep(page: Any, _: object) -> None:
        served.append(page)

    monkeypatch.setattr("shoal.watch.ui._serve.serve", keep)
    place = tmp_path / "new.db"
    if is_empty:
        place.touch()
    begin = ["ui", "--db", str(place), "--port", "0", "--token", TOKEN]
    assert main(begin) == 2
    assert main([*begin, "--app", f"{HERE}:app"]) == 0
    [page] = served

    async def look() -> None:
        async with page.router.lifespan_context(page), client_of(page) as client:
            assert "The store has no runs yet" in words((await client.get("/")).text)
            assert (await client.get("/limits")).status_code == 200
            assert (await client.get("/runs/a")).status_code == 404
            await Application(one, name="one", store=SQLiteStore(place)).run({}, id="a")
            assert (await client.get("/runs/a")).status_code == 200

    anyio.run(look)


def test_it_listens_on_this_machine_alone_unless_told_otherwise(
    store: str, monkeypatch: pytest.MonkeyPatch
):
    places: list[tuple[str, int]] = []

    def keep(_: object, listener: socket.socket) -> None:
        places.append(listener.getsockname())

    monkeypatch.setattr("shoal.watch.ui._serve.serve", keep)
    assert main(["ui", "--db", store, "--read-only"]) == 0
    assert main(["ui", "--db", store, "--read-only", "--port", "0", "--host", "127.0.0.2"]) == 0
    assert [host for host, _ in places] == ["127.0.0.1", "127.0.0.2"]


def test_it_serves_no_new_store_in_a_folder_that_is_missing(tmp_path: Path):
    place = tmp_path / "nowhere" / "new.db"
    assert main(["ui", "--db", str(place), "--port", "0", "--app", f"{HERE}:app"]) == 2


def test_a_port_that_is_taken_is_named(store: str, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--db", store, "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_it_prints_an_address_with_a_token_of_its_own(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shoal.watch.ui._serve.serve", _serve_nothing)
    assert main(["ui", "--db", store]) == 0
    assert main(["ui", "--db", store]) == 0
    assert main(["ui", "--db", store, "--read-only"]) == 0
    out = capsys.readouterr().out
    tokens = [line.partition("?token=")[2] for line in out.splitlines() if "?token=" in line]
    assert len(set(tokens)) == len(tokens) == 2
    assert min(map(len, tokens)) >= 32


def test_other_names_lead_to_it_only_with_a_token():
    assert ui._hosts("127.0.0.1", has_token=True) == ["localhost", "127.0.0.1", "::1", "127.0.0.1"]
    assert ui._hosts("0.0.0.0", has_token=True) == ["*"]
    assert "*" not in ui._hosts("::", has_token=False)
