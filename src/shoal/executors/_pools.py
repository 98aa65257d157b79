"""The executors that are open in a runtime.

Invariants:
- An executor is opened once in a runtime, when the first attempt needs it. It is closed when the
  runtime's block ends, after all of its runs, however the block ends.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import final

from anyio import CancelScope, create_task_group

from ._port import Executor, Pool, PoolHost
from ._threads import ThreadPool

logger = logging.getLogger("shoal")


@final
class Pools:
    """The open executors of one runtime."""

    __slots__ = ("_host", "_open")

    def __init__(self, host: PoolHost) -> None:
        """Open none yet."""
        self._host = host
        # Strong: a pool has workers to end, even if nothing refers to its executor any more.
        self._open: dict[Executor, Pool] = {}

    def of(self, executor: Executor) -> Pool:
        """Return the pool of an executor, opening it on first use."""
        pool = self._open.get(executor)
        if pool is None:
            pool = self._open[executor] = executor.open(self._host)
        return pool

    @property
    def opened(self) -> Mapping[Executor, Pool]:
        """The pools that are open."""
        return self._open

    @property
    def must_close(self) -> bool:
        """Whether there is anything to close: threads need nothing."""
        return not all(isinstance(pool, ThreadPool) for pool in self._open.values())

    async def aclose(self) -> None:
        """Close all pools, at once. What goes wrong is logged.

        In a task of the runtime's own: its block ends after that.
        """
        closing, self._open = self._open, {}
        # A cancellation of the runtime must not leave workers behind.
        with CancelScope(shield=True):
            async with create_task_group() as group:
                for executor, pool in closing.items():
                    group.start_soon(_close, executor, pool)


async def _close(executor: Executor, pool: Pool) -> None:
    try:
        await pool.aclose()
    except Exception:
        logger.exception("while %r was closed", executor)
