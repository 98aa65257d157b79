"""Whose runs a client may see: ``runs_router(owner=...)``.

Invariants:
- A client never learns of a run of another owner: it is answered as one that doesn't exist. Only an
  ``id`` for a new run that another owner has taken is refused as such, since it can't be used.
"""

# No ``from __future__ import annotations``: FastAPI has to see the annotations as objects.

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from shoal._errors.exceptions import BadResult, DefinitionError, kind_of
from shoal._runtime.runtime import Runtime
from shoal.stores._protocol import NullStore

from ._lifespan import RuntimeDep
from ._looking import Runs, as_responses, ask, unknown

Owner = Callable[..., Any]
"""A dependency that returns the owner of a request: a name, or None for a client that may see the
runs of all owners."""


def whose_of(owner: Owner | None) -> Owner:
    """Return a dependency that returns the checked owner of a request.

    Raises:
        DefinitionError: ``owner`` can't be called.
    """
    if owner is None:
        return _everyone
    if not callable(owner):
        msg = (
            f"runs_router(owner=...) takes a dependency that returns the owner of a request, a "
            f"name, or None; not {owner!r}"
        )
        raise DefinitionError(msg)
    return_owner = Depends(owner)

    async def whose(given: object = return_owner) -> str | None:
        if given is not None and (not isinstance(given, str) or not given):
            what = "an empty one" if given == "" else kind_of(given)
            msg = (
                f"the dependency runs_router(owner=...) returned {what}; it returns a name or None"
            )
            raise BadResult(msg)
        return given

    return whose


async def _everyone() -> None:
    """Return no owner: the router has none."""


def refusing_others(runs: Runs, whose: Owner) -> Any:
    """Return the dependency that answers requests for runs of other owners with 404."""

    async def refuse_others(
        request: Request, runtime: RuntimeDep, owner: Annotated[Any, Depends(whose)]
    ) -> None:
        run_id = request.path_params.get("run_id")
        if owner is None or run_id is None:
            return
        found = await _owner_of(runs, runtime, run_id)
        if found not in (None, owner):
            raise unknown(run_id, is_kept=not isinstance(runs.store(runtime), NullStore))

    return Depends(refuse_others)


async def refuse_taken(runs: Runs, runtime: Runtime, run_id: str | None, owner: str | None) -> None:
    """Refuse the id of a run of another owner for a run that is to be started.

    Raises:
        HTTPException: It is taken.
    """
    if owner is None or run_id is None:
        return
    if await _owner_of(runs, runtime, run_id) not in (None, owner):
        raise HTTPException(409, f"the id {run_id!r} is taken; send another `id`")


async def _owner_of(runs: Runs, runtime: Runtime, run_id: str) -> str | None:
    """Return the owner of a run; empty if it has none, None if there is no such run."""
    handle = runs.here(runtime, run_id)
    if handle is not None:
        return handle.owner
    with as_responses():
        record = await ask(runs.store(runtime).load(run_id))
    if record is None or record.beginning.application != runs.app.name:
        return None
    return record.beginning.owner
