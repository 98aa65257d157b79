"""Finish the site that zensical has built into site/, and check that it is whole.

    python tools/site.py

copies the pages' Markdown beside them, for the programs that read llms.txt. It fails if that lists
a page that isn't there, or if any page would load something from another server.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS, SITE = ROOT / "docs", ROOT / "site"
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|prev|next))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"'\s)]+"""
    r"""|url\(["']?(?:https?:)?//[^"'\s)]+"""
)
"""What a browser loads by itself; a link that a reader follows is none of it."""


def copy_markdown() -> None:
    """Copy each page of docs/ to the same place below site/."""
    for page in DOCS.rglob("*.md"):
        target = SITE / page.relative_to(DOCS)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, target)


def faults() -> Iterator[str]:
    """Yield what is wrong with the site."""
    for path in (*SITE.rglob("*.html"), *SITE.rglob("*.css")):
        for found in LOADS.findall(path.read_text("utf-8")):
            yield f"{path.relative_to(SITE)} loads from another server: {found}"
    for page in re.findall(r"\]\(([\w./-]+)\)", (SITE / "llms.txt").read_text("utf-8")):
        if not (SITE / page).is_file():
            yield f"llms.txt lists {page}, which isn't there"


if __name__ == "__main__":
    copy_markdown()
    wrong = list(faults())
    print(*wrong, f"{len(list(SITE.rglob('*.html')))} pages", sep="\n")
    sys.exit(bool(wrong))
