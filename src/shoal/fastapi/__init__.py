"""Runs in a FastAPI service. Needs ``shoal[fastapi]``.

- ``runtime_lifespan(Runtime(...))`` opens a runtime for the life of the service, and drains it;
  ``RuntimeDep`` passes it to endpoints.
- ``runs_router(app, authorize=...)`` has endpoints to start, follow and cancel runs of an
  application; ``service_router(authorize=...)`` has those for the health of the service.
- ``cancel_on_disconnect(request)`` cancels the work of an endpoint when its client disconnects.

The modules, from the bottom up:

- ``_disconnect``: clients that disconnect. ``_retention``: deleting old runs.
- ``_lifespan``: the runtime of a service.
- ``_models``: requests and responses. ``_problems``: refusals.
- ``_owners``: whose runs a client may see. ``_metrics``: metrics for Prometheus.
- ``_looking``: finding runs, in this process or in a store. ``_starting``: starting them once.
- ``_feed``: events of a run, encoded once for all clients. ``_events``: one client's stream.
- ``_door``: authorization, and checks of request bodies.
- ``_steering``: endpoints that pause, drain or cancel a run, here or elsewhere. ``_router``: the
  others.
"""

from __future__ import annotations

try:
    from ._disconnect import CancelOnDisconnect, cancel_on_disconnect
    from ._lifespan import RuntimeDep, RuntimeState, get_runtime, runtime_lifespan
    from ._router import OnDisconnect, runs_router, service_router
except ModuleNotFoundError as _missing:
    if (_missing.name or "").startswith("shoal"):
        raise  # a defect of ours, and no package that is missing
    _msg = (
        f"shoal.fastapi needs {_missing.name}, which isn't installed: pip install 'shoal[fastapi]'"
    )
    raise ModuleNotFoundError(_msg, name=_missing.name) from None

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
