"""The output: one JSON object a line for every page, written as the crawl goes on."""

import json
from typing import TextIO

from anyio import to_thread

from examples.scraper.crawl import FetchError, kind_of
from examples.scraper.pages import Link, Page
from shoal import Done, Failed, Hook, StateUpdated


class RowWriter(Hook):
    """Writes a row for every page, in the order in which pages become part of the crawl's state.

    So rows and counts agree at any moment, also after an interruption: what was fetched but not
    counted has no row. A row is written whole before the next one is begun, whatever is cancelled
    meanwhile. If it can't be, the crawl fails.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file

    async def on_state_updated(self, event: StateUpdated) -> None:
        if isinstance(event.outcome, Done | Failed):
            row = json.dumps(row_of(event.outcome))
            # In a thread: the file may be a pipe whose reader takes its time.
            await to_thread.run_sync(self.write, row + "\n")

    def write(self, line: str) -> None:
        self.file.write(line)
        self.file.flush()


def row_of(outcome: Done | Failed) -> dict[str, object]:
    """One page, or the failure to get it, as a JSON object."""
    link: Link = outcome.element
    row: dict[str, object] = {
        "url": link.url,
        "final_url": None,
        "status": None,
        "depth": link.depth,
        "parent": link.parent,
        "title": None,
        "error": None,
    }
    if isinstance(outcome, Done):
        page: Page = outcome.value
        row |= {"final_url": page.final_url, "status": page.status, "title": page.title}
    else:
        error = outcome.error
        row["error"] = {"kind": kind_of(error), "message": str(error) or type(error).__name__}
        if isinstance(error, FetchError):
            row |= {"final_url": error.final_url, "status": error.status}
    return row
