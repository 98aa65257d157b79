"""Inside uvicorn: a service under load, its owners, and what people and other processes ask."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shoal.__main__ import main
from tests.fastapi.serving import PATIENCE, Server, serving, until

pytestmark = [pytest.mark.services, pytest.mark.sweep, pytest.mark.timeout(120)]

APP = "tests.fastapi.loaded:service"


def asked(
    server: Server, path: str, body: Any = None, *, user: str = "", token: str = "open"
) -> Any:
    headers = {"token": token, **({"user": user} if user else {})}
    return server.ask(path, body, headers=headers)


def answer_of(server: Server, path: str) -> tuple[int, dict[str, str], str]:
    """Make a request whose answer is no JSON, or has headers of interest."""
    url = f"http://127.0.0.1:{server.port}{path}"
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        return response.status, dict(response.headers), response.read().decode()


def refused(server: Server, name: str) -> dict[str, str]:
    """Ask for a run that is refused; return the headers of the answer."""
    data = f'{{"state": {{"name": "{name}"}}}}'.encode()
    given = {"content-type": "application/json", "token": "open", "user": "eve"}
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/jobs", data, given)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=PATIENCE)
    with raised.value as error:
        assert error.code == 503
        return dict(error.headers)


def test_a_service_under_load_is_steered_by_its_clients_and_by_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    go, store = tmp_path / "go", tmp_path / "runs.db"
    go.mkdir()
    given = {"STORE": str(store), "GO": str(go)}
    monkeypatch.setenv("SHOAL_STORE", str(store))

    def came(name: str) -> Any:  # one that waits has no answer yet
        body = {"id": name, "state": {"name": name}}
        return server.connect("/jobs", body, token="open", user="eve")

    def began() -> list[str]:
        return (go / "began").read_text().split()

    def status(name: str) -> Any:
        return asked(server, f"/jobs/{name}")[1].get("status")

    def ready() -> Any:
        return server.ask("/readyz")[1]["status"]

    def shoal(*command: str) -> str:
        assert main(list(command)) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    with serving("uvicorn", APP, **given) as server:
        # One runs and two wait: it is red before the fourth is refused.
        first = {"id": "one", "state": {"name": "one"}}
        assert asked(server, "/jobs", first, user="eve")[0] == 202
        until(lambda: began() == ["one"])
        assert ready() == "ok"
        with came("two"):
            until(lambda: "shoal_runs_waiting 1\n" in answer_of(server, "/metrics")[2])
            with came("three"):
                until(lambda: ready() == "busy")
                assert int(refused(server, "four")["retry-after"]) >= 1
                _, headers, metrics = answer_of(server, "/metrics")
                assert headers["content-type"].startswith("text/plain")
                for line in (
                    "shoal_runs_waiting 2\n",
                    "shoal_runs_refused_total 1\n",
                    'shoal_runs_running{application="jobs"} 1\n',
                    'shoal_limit_in_use{owner="work",part="0"} 1\n',
                ):
                    assert line in metrics, line

                # A client without the token gets nothing, and one of another owner sees nothing.
                assert asked(server, "/jobs/one", token="")[0] == 401
                assert asked(server, "/jobs/one", user="bob")[0] == 404
                assert asked(server, "/jobs/one/cancel", {}, user="bob")[0] == 404
                assert asked(server, "/jobs/one/pause", {}, user="bob")[0] == 404
                assert asked(server, "/jobs", user="bob")[1]["runs"] == []
                (run,) = asked(server, "/jobs", user="eve")[1]["runs"]
                assert (run["id"], run["owner"]) == ("one", "eve")
                assert shoal("runs", "--owner", "eve").startswith("one\tjobs\t")
                assert shoal("runs", "--owner", "bob") == ""

                # Limits are changed by the router and by another process.
                more = {"owner": "work", "n": 4}
                assert asked(server, "/jobs/one/limits", more, user="eve")[0] == 202
                assert "Limits(4, by=OWNER)" in str(server.ask("/limits")[1])
                shoal("limit", "one", "work", "-n", "7")
                assert "Limits(7, by=OWNER)" in str(server.ask("/limits")[1])

                # In the order in which they came. A run that another process pauses lends its turn.
                (go / "one").touch()
                until(lambda: began() == ["one", "two"])
                shoal("pause", "two", "--reason", "lunch", "--by", "ops")
                assert asked(server, "/jobs/two", user="eve")[1]["paused"]["by"] == "ops"
                until(lambda: began() == ["one", "two", "three"])
                assert ready() == "ok"
                shoal("cancel", "three", "--reason", "too slow")
                until(lambda: status("three") == "cancelled")
                assert asked(server, "/jobs/two/resume", {}, user="eve")[0] == 202
                (go / "two").touch()
                until(lambda: status("two") == "succeeded")

    # Kept for a moment alone, all of them are gone soon after the service is up again.
    with serving("uvicorn", APP, **given, KEEP="0.2") as server:
        until(lambda: asked(server, "/jobs")[1]["runs"] == [])
