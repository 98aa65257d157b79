"""`shoal top`: the progress of the runs that processes execute now."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from shoal import Application, Limits, Runtime, SQLiteStore, action, fan_out
from shoal.__main__ import main


@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    await anyio.sleep(0 if item < 2 else 60)
    return item


many = fan_out(work, over="items", into="all", limits=Limits(3), title="things")


def test_it_shows_what_the_running_runs_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.db"

    async def run() -> None:
        app = Application(many, name="sort", store=SQLiteStore(file))
        async with Runtime() as runtime:
            await runtime.run(app, {"items": [0, 1]}, id="over")
            handle = await runtime.start(app, {"items": range(10)}, id="busy")
            await anyio.sleep(0.7)
            await anyio.to_thread.run_sync(look)
            handle.cancel("enough")

    def look() -> None:
        assert main(["top", "--db", str(file)]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.split("\t")[:2] == ["busy", "sort"]
        assert "things 2/10 · 3 running" in line
        assert main(["top", "--db", str(file), "--json"]) == 0
        (found,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert found["run_id"] == "busy"
        assert found["age"] < 5
        (step,) = found["steps"]
        assert (step["step"], step["total"], step["ended"], step["in_flight"]) == ("all", 10, 2, 3)

    anyio.run(run)
    assert main(["top", "--db", str(file)]) == 0
    assert capsys.readouterr().out == ""


def test_a_wrong_number_of_seconds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("0", "-1", "soon"):
        with pytest.raises(SystemExit):
            main(["top", "--db", "x.db", "--every", given])
    assert "number of seconds" in capsys.readouterr().err


def test_on_a_terminal_it_looks_until_it_is_interrupted(tmp_path: Path) -> None:
    import os
    import pty
    import signal

    pytest.importorskip("rich")
    file = tmp_path / "runs.db"
    Application(many, store=SQLiteStore(file)).run_sync({"items": [0]})
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "shoal", "top", "--db", str(file), "--every", "0.1"],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    found, until, is_sent = b"", time.monotonic() + 60, False
    while time.monotonic() < until:
        try:
            part = os.read(master, 1 << 16)
        except OSError:
            break
        if not part:
            break
        found += part
        if b"no run is executed" in found and not is_sent:
            is_sent = True
            program.send_signal(signal.SIGINT)
    assert program.wait(30) == 130
    os.close(master)
    assert found.rfind(b"\x1b[?25h") > found.rfind(b"\x1b[?25l") >= 0
