"""Fill in the listings, and the outputs of commands, that pages show.

    python tools/pages.py

writes the files beside the pages of docs/tutorial/ and docs/programs/ into the blocks that name
them in their titles, and below the commands in ``console`` blocks what they print; and on the page
of the examples, the files that its blocks name by their paths in the repository.
tests/test_tutorial.py fails if that changes a page.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LISTED = (DOCS / "tutorial", DOCS / "programs")
BLOCK = re.compile(
    r"(?P<marks>(?:^<!-- [^\n]* -->\n)*)^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
TITLE = re.compile(r'title="([^"]+)"')
SECONDS = 60  # a command of the tutorial takes one or two; more means that it hangs


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code on a page, and the comments just above it that say how it is tested."""

    page: Path
    line: int
    info: str
    marks: tuple[str, ...]
    body: str

    @property
    def language(self) -> str:
        """The first word behind the fence."""
        return self.info.partition(" ")[0]

    @property
    def title(self) -> str:
        """The title that the page shows above the block."""
        found = TITLE.search(self.info)
        return found[1] if found else ""

    def mark(self, name: str) -> str | None:
        """Return what follows ``name:`` in a comment above the block, "" without a colon."""
        for one in self.marks:
            key, _, rest = one.partition(":")
            if key.strip() == name:
                return rest.strip()
        return None


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start("info")) + 1,
            info=match["info"],
            marks=tuple(re.findall(r"<!-- (.*?) -->", match["marks"])),
            body=match["body"],
        )


def listed_pages() -> list[Path]:
    """Return the pages with listings and commands."""
    found = sorted(page for folder in LISTED for page in folder.glob("*.md"))
    return [*found, DOCS / "examples.md"]


def filled(page: Path) -> str:
    """Return the text of such a page with its listings and outputs as they are now."""
    with tempfile.TemporaryDirectory() as folder:
        workshop = Path(folder) / "tutorial"
        shutil.copytree(page.parent, workshop, ignore=shutil.ignore_patterns("*.md", "__pycache__"))

        def fill(match: re.Match[str]) -> str:
            info, body = match["info"], match["body"]
            title = TITLE.search(info)
            if title:
                source = ROOT if "/" in title[1] else page.parent
                body = (source / title[1]).read_text("utf-8")
            elif info == "console":
                commands = [one for one in body.splitlines() if one.startswith("$ ")]
                body = "".join(f"{one}\n{output(one[2:], workshop)}" for one in commands)
            return f"{match['marks']}```{info}\n{body}```"

        return BLOCK.sub(fill, page.read_text("utf-8"))


def output(command: str, folder: Path) -> str:
    """Return what a command prints in ``folder``, and "Killed" if it was, as a shell says."""
    words = shlex.split(command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "COLUMNS": "88"}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    program = {"python": [sys.executable], "shoal": [sys.executable, "-m", "shoal"]}[words[0]]
    ended = subprocess.run(  # the command stands on our own page
        [*program, *words[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if ended.returncode not in (0, -9):
        sys.exit(f"{command} failed:\n{ended.stdout}")
    printed = re.sub(r"(?<=passed) in [0-9.]+s", "", ended.stdout)
    return printed + ("Killed\n" if ended.returncode == -9 else "")


if __name__ == "__main__":
    for one in [DOCS / name for name in sys.argv[1:]] or listed_pages():
        one.write_text(filled(one), "utf-8")
