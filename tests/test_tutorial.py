"""Pages with listings show the files beside them as they are, and what they print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.pages import filled, listed_pages


@pytest.mark.sweep  # not all places, but as long as a hundred other tests
@pytest.mark.realtime
@pytest.mark.parametrize("page", listed_pages(), ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_a_page_shows_its_files_and_what_they_print(page: Path) -> None:
    assert filled(page) == page.read_text("utf-8"), "python tools/pages.py writes it anew"
