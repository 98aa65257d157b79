"""A service that executes one run at a time, of owners that a header names.

A run of the name N goes on until there is a file N in the folder ``GO``. Each appends its name to
the file ``began`` there when it begins to work.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

from shoal import OWNER, Application, Graph, Limits, Runtime, SQLiteStore, action
from shoal.fastapi import runs_router, runtime_lifespan, service_router

GO = Path(os.environ.get("GO", "."))


class Job(BaseModel):
    """What a run is about."""

    name: str
    worked: bool = False
    ended: bool = False


@action(reads=["name"], writes=["worked"], limits=Limits(5, by=OWNER))
async def work(name: str) -> bool:
    with (GO / "began").open("a") as file:
        file.write(f"{name}\n")
    while not (GO / name).exists():  # another process makes it
        await anyio.sleep(0.02)
    return True


@action(writes=["ended"])
async def end() -> bool:
    return True


def authorize(token: Annotated[str, Header()] = "") -> None:
    """Let in what knows the token."""
    if token != "open":
        raise HTTPException(401)


def owner_of(user: Annotated[str | None, Header()] = None) -> str | None:
    """Return whose runs a request is about; no name is that of an operator, who sees all."""
    return user


store = SQLiteStore(os.environ.get("STORE", "runs.db"), synchronous="normal")
jobs = Application(Graph.chain(work, end), name="jobs", state=Job, store=store)
runtime = Runtime(apps=[jobs], limits=Limits(9), max_runs=1, waiting=2)
keep = timedelta(seconds=float(os.environ.get("KEEP", "3600")))
service = FastAPI(lifespan=runtime_lifespan(runtime, within=1, keep=keep))
service.include_router(runs_router(jobs, authorize=authorize, owner=owner_of, prefix="/jobs"))
service.include_router(service_router(authorize=None, metrics=True))
