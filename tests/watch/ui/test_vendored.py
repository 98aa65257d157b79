"""The scripts that the page uses are those of the packages that they are said to be of."""

from __future__ import annotations

import tomllib
from hashlib import sha256
from pathlib import Path

from shoal.watch import ui

STATIC = Path(ui.__file__).parent / "static"


def test_vendored_files_have_the_hashes_that_were_noted():
    noted = tomllib.loads((STATIC / "VENDORED.toml").read_text())["file"]
    for file in noted:
        assert sha256((STATIC / file["name"]).read_bytes()).hexdigest() == file["sha256"]
        assert file["version"] in (STATIC.parents[4] / "noxfile.py").read_text()
    scripts = {path.name for path in STATIC.glob("*.js")} - {"ui.js"}  # our own
    assert scripts == {file["name"] for file in noted if file["name"].endswith(".js")}
