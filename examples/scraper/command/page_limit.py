"""The limit of pages, which another execution may raise.

The fan-out's `at_most` bounds the number exactly. But when its last page has ended, the step would
be complete, and a crawl that has succeeded never continues. So a hook fails the run before that, if
links are waiting. Each page is saved by then; see `test_a_limit_may_be_raised`.
"""

from collections.abc import Awaitable, Callable

from examples.scraper.output.progress import Tally
from shoal import Done, Failed, Hook
from shoal.errors import HookFailed
from shoal.events import ChildEnded


class LimitReached(Exception):
    """All pages that the limit allows have ended, and there are links left."""


class PageLimit(Hook):
    """Fails the run when the limit is reached. It comes behind the hook that counts pages."""

    def __init__(self, most: int | None, tally: Tally) -> None:
        """Allow `most` pages, of which `tally` has counted those of earlier executions."""
        self._most = most
        self._tally = tally
        self._ended = tally.ended + tally.sitemaps

    @property
    def is_reached(self) -> bool:
        return self._most is not None and self._ended >= self._most and self._tally.waiting > 0

    async def within(self, run: Callable[[], Awaitable[object]]) -> None:
        """Run the crawl, at most until the limit is reached.

        Raises:
            Exception: Any other exception of `run`.
        """
        if self.is_reached:
            return
        try:
            await run()
        except HookFailed as failed:
            if not isinstance(failed.__cause__, LimitReached):
                raise

    def on_child_ended(self, event: ChildEnded) -> None:
        self._ended += isinstance(event.outcome, Done | Failed)
        if self.is_reached:
            raise LimitReached
