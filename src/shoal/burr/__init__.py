"""Actions and graphs of Burr's as acts of shoal's, so that a team moves one at a time.

Needs ``shoal[burr]``.

- ``act(action)`` makes an action of an action of Burr's, with limits, retries and timeouts.
- ``graph(graph)`` makes a graph of a graph or an application of Burr's. ``acts=`` has the actions
  that have been moved already.
- ``parallel(action)`` makes an action of one of Burr's that makes tasks, whose tasks are children.

The modules, from the bottom up:

- ``_state``: Burr's states, over ours. ``_conditions``: Burr's conditions.
- ``_declared``: what an action declares. ``_injected``: the inputs that Burr gives itself.
- ``_calls``: functions that call an action. ``_graphs``: graphs. ``_parallel``: tasks.
- ``_acts``: the three functions.
"""

from __future__ import annotations

from importlib import import_module


def _require() -> None:
    try:
        import_module("burr.core")
    except ImportError as error:
        msg = f"shoal.burr needs Burr, which isn't installed ({error}): pip install 'shoal[burr]'"
        raise ImportError(msg, name="burr") from error


_require()

from ._acts import act, graph, parallel  # noqa: E402 # they import Burr

__all__ = ["act", "graph", "parallel"]
