"""The service: `uvicorn examples.fastapi_service.service:service`.

Set REVIEWS_TOKEN to the token that clients must send, and REVIEWS_DB to the file for stored runs.
"""

from __future__ import annotations

import os
import secrets
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from examples.fastapi_service.review import PretendReviewer, reviews
from shoal import Limits, Runtime, SQLiteStore
from shoal.fastapi import RuntimeDep, runs_router, runtime_lifespan, service_router

bearer = HTTPBearer()


def authorize(given: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> None:
    """Accept requests with the token; if none is set, refuse all requests."""
    token = os.environ.get("REVIEWS_TOKEN", "")
    if not token or not secrets.compare_digest(given.credentials.encode(), token.encode()):
        raise HTTPException(401, "wrong token", {"WWW-Authenticate": "Bearer"})


def make_service(database: str) -> FastAPI:
    """Make the service; each worker makes its own, and all workers share one database."""
    app = reviews(SQLiteStore(database))
    # One budget for all requests of this process: a model's provider allows 32 calls at once.
    runtime = Runtime(apps=[app], inputs={"reviewer": PretendReviewer()}, limits=Limits(32))
    service = FastAPI(title="Reviews", lifespan=runtime_lifespan(runtime, within=5))
    service.include_router(runs_router(app, authorize=authorize, prefix="/reviews"))
    service.include_router(
        service_router(authorize=None)
    )  # answers to probes contain nothing about runs

    @service.get("/busy", dependencies=[Depends(authorize)])
    async def busy(runtime: RuntimeDep) -> dict[str, list[str]]:
        """List the reviews running in this worker: a custom endpoint beside the router's."""
        return {"reviews": [run.run_id for run in runtime.runs()]}

    return service


service = make_service(os.environ.get("REVIEWS_DB", "reviews.db"))
