"""The service: `uvicorn examples.fastapi_service.service:service`.

Set REVIEWS_TOKEN to what clients have to show; REVIEWS_DB names the file that runs are kept in.
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
    """Let those in who know the token; without one, nobody."""
    token = os.environ.get("REVIEWS_TOKEN", "")
    if not token or not secrets.compare_digest(given.credentials.encode(), token.encode()):
        raise HTTPException(401, "the token is not the one", {"WWW-Authenticate": "Bearer"})


def make_service(database: str) -> FastAPI:
    """Make the service; each worker makes its own, all with one database."""
    app = reviews(SQLiteStore(database))
    # One budget for all requests of this process: a model's provider allows 32 calls at once.
    runtime = Runtime(apps=[app], inputs={"reviewer": PretendReviewer()}, limits=Limits(32))
    service = FastAPI(title="Reviews", lifespan=runtime_lifespan(runtime, within=5))
    service.include_router(runs_router(app, authorize=authorize, prefix="/reviews"))
    service.include_router(service_router(authorize=None))  # what probes ask tells nothing of runs

    @service.get("/busy", dependencies=[Depends(authorize)])
    async def busy(runtime: RuntimeDep) -> dict[str, list[str]]:
        """Say which reviews go on in this worker: an endpoint of our own, beside the router's."""
        return {"reviews": [run.run_id for run in runtime.runs()]}

    return service


service = make_service(os.environ.get("REVIEWS_DB", "reviews.db"))
