"""A spider of one's own: a parser, and the whole command of the crawler around it.

A file of twenty lines is a crawler with jobs that resume, politeness, output and progress:

    from examples.scraper.spider import Document, Follow, Record, Spider

    def books(page: Document) -> Iterator[Record | Follow]:
        for book in page.css("article.product"):
            yield {"title": book.attribute("title", "h3 a"), "price": book.text(".price")}
        yield from page.follow(".next a")

    if __name__ == "__main__":
        Spider(books, columns=["title", "price"]).main()

`python books.py https://books.example/ --job books --out books.jsonl` runs it; `--help` lists the
rest. Each record is a row of the output, with the `url` of its page. A page whose parser has raised
has failed: `python books.py resume books` fetches it again, with the mended parser.
"""

import inspect
import pickle
import sys
from collections.abc import Sequence

from examples.scraper.reading.document import Document, Element, Follow, Parse, Record

__all__ = ["Document", "Element", "Follow", "Parse", "Record", "Spider"]


class Spider:
    """A parser under the name by which its jobs know it."""

    def __init__(self, parse: Parse, *, columns: Sequence[str] = ()) -> None:
        """Make a spider.

        Args:
            parse: A plain function at the top of its module, that yields records and links.
            columns: The fields of its records, for CSV and SQLite; JSON lines need none.

        Raises:
            ValueError: `parse` can't be called in another process, as is done for large pages.
        """
        if inspect.iscoroutinefunction(parse) or inspect.isasyncgenfunction(parse):
            raise ValueError(f"{parse.__qualname__} is async; a parser is a plain function")
        try:
            pickle.dumps(parse)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"large pages are parsed in another process, which can't import {parse!r}: define "
                f"it with `def` at the top of a module"
            ) from error
        self.parse: Parse = parse
        self.name: str = parse.__qualname__
        self.columns: tuple[str, ...] = tuple(columns)

    def main(self, args: Sequence[str] | None = None) -> None:
        """Run the crawler's command line with this parser, and exit with its code."""
        from examples.scraper.command.cli import main  # noqa: PLC0415 - it imports this module

        sys.exit(main(args, self))
