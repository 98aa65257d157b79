"""The port through which outcomes are served in place of the functions of actions.

A replay executes the present program on the outcomes of a stored run; see
``shoal.testing.replay``. Everything around the call of a function stays as it is: limits, timeouts,
retries, checks, saves.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, Protocol

from shoal._state.state import Change

RECORDED_ITEM: Final = object()
"""Stands for the item that has decided a race in a stored run, where no item is kept. It counts as
a first item without being judged by ``when=``."""


class StandIn(Protocol):
    """Serves outcomes. No executor is opened: what is called is called on the event loop."""

    def serve(self, run: Any, action: Any, context: Any) -> Awaitable[Change] | None:
        """Return the outcome of one call of the function of ``action``, in the step of ``run``.

        The awaitable raises what the function is to have raised. None: the function is called.

        Args:
            run: The run.
            action: The action.
            context: The context that the function would be given; None if it takes none.
        """
        ...
