"""Runs in a FastAPI service. Needs ``shoal[fastapi]``.

- ``runtime_lifespan(Runtime(...))`` opens a runtime for the life of the service, and drains it;
  ``RuntimeDep`` gives it to endpoints.
- ``runs_router(app, authorize=...)`` has endpoints to start, watch and cancel runs of an
  application; ``service_router(authorize=...)`` those that tell how the service is.
- ``cancel_on_disconnect(request)`` cancels what an endpoint awaits when its client goes away.

The rooms: ``_disconnect`` (clients that go away), ``_relay`` (cancelling what another process
executes), ``_lifespan`` (the runtime of a service), ``_models`` (what goes over the wire),
``_problems`` (what is told of a request that can't be met), ``_looking`` (runs, wherever they go
on), ``_starting`` (starting them, once), ``_feed`` (what happens in them, encoded once for all who
follow), ``_events`` (the same as server-sent events to one client), ``_door`` (who may, and what is
data), ``_router`` (the endpoints).
"""

from __future__ import annotations

from ._disconnect import CancelOnDisconnect, cancel_on_disconnect
from ._lifespan import RuntimeDep, RuntimeState, get_runtime, runtime_lifespan
from ._router import OnDisconnect, runs_router, service_router

__all__ = [
    "CancelOnDisconnect",
    "OnDisconnect",
    "RuntimeDep",
    "RuntimeState",
    "cancel_on_disconnect",
    "get_runtime",
    "runs_router",
    "runtime_lifespan",
    "service_router",
]
