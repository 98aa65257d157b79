"""Where the error of a failed child was raised is kept, for people who look at it later."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from shoal import Application, SQLiteStore, action, fan_out

PASSWORD = "a-password-in-a-local"


def dive(depth: int) -> int:
    if not depth:
        raise ValueError("the ground")
    return dive(depth - 1)


@action(reads=["depth"], writes=["found"])
async def search(depth: int) -> int:
    password = PASSWORD
    return dive(depth) + len(password)


def test_a_failed_child_keeps_the_places_of_its_traceback_alone(tmp_path: Path):
    store = SQLiteStore(tmp_path / "runs.db")
    found = fan_out(search, over="depths", item="depth", key=int, into="found", on_error="collect")
    app = Application(found, store=store)
    app.run_sync({"depths": [1, 100]}, id="a")
    with sqlite3.connect(tmp_path / "runs.db") as database:
        found = database.execute("SELECT error FROM runs WHERE error IS NOT NULL ORDER BY key")
        shallow, deep = [json.loads(error)["trace"] for (error,) in found]
    database.close()
    names = [place.rpartition(", in ")[2] for place in shallow]
    assert names == ["search", "dive", "dive"]
    assert all(place.startswith(f"{__file__}:") for place in shallow)
    assert len(deep) == 30
    assert PASSWORD not in json.dumps(deep)
    assert app.run_sync(id="a").status == "succeeded"  # it is decoded as before
