"""Results of actions with ``cache=``: looked up before one is executed, stored afterwards.

Imports runs and digests.

Invariants:
- Only what has succeeded is stored, would be allowed to be written, and holds no secret.
- A result is looked up before anything is waited for, and once more after a wait: the attempt that
  had the slot before has stored it by then.
- A result is found by what its action reads, the action's name, its version and the names of what
  it writes; never by inputs, nor by fields that it doesn't read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal._concurrency.cancellation import absorb_stray_cancel
from shoal._errors.exceptions import NotData, UpdateTooLarge
from shoal._graph.action import Act, FunctionAction
from shoal._state.digest import combined, named, written
from shoal._state.state import Change, change_of
from shoal.stores._protocol import CachesResults

from .run import Run


def result_key(act: Act, data: Mapping[str, object]) -> str:
    """Hash what ``act`` is and what it is about to read.

    Raises:
        NotData: A field that it reads holds what is no data.
    """
    parts = [written("result", act.name, act.version, *sorted(act.writes))]
    for field in sorted(act.reads):
        if field in data:
            try:
                parts.append(named(field, data[field]))
            except NotData as error:
                msg = (
                    f"action {act.name!r} has cache=, so what it reads is hashed; "
                    f"field {field!r}: {error}"
                )
                raise NotData(msg) from error
    return combined(parts)


async def lookup(run: Run, action: FunctionAction[..., Any]) -> Change | None:
    """Return the stored result of ``action``, the current step of ``run``; None if there is none.

    Raises:
        StoreFailed: The store did not say.
    """
    retries = run.retry_state()
    recalling = _cache_of(run).recall(retries.result_key)
    what = f"the result of {action.name!r}"
    operations = await run.setting.execution.ask(recalling, what)
    if operations is None:
        return None
    retries.is_cached = True
    return change_of(run.head[1], operations)


async def store_result(
    run: Run, action: FunctionAction[..., Any], change: Change, seconds: float
) -> Change:
    """Return the result of ``action``, the current step of ``run``, once it is stored.

    Cancelled meanwhile, it was or it wasn't: the step isn't completed, and a resume may find that
    the action needn't be executed.

    Raises:
        InvalidState: The model of the state refuses it.
        SecretLeaked: It holds what is secret.
        StoreFailed: It could not be stored.
    """
    setting, what = run.setting, f"room for a result of {action.name!r}"
    if setting.schema is not None:  # what it refuses is no result
        setting.schema.checked(change, run.head[1], f"action {action.name!r}")
    if setting.secrets.names:
        setting.secrets.refuse(change.operations, f"what action {action.name!r} has come to")
    await absorb_stray_cancel(setting.services.native_cancels)
    key = run.retry_state().result_key
    remembering = _cache_of(run).remember(key, change.operations, seconds)
    await setting.execution.ask(remembering, what, (NotData, UpdateTooLarge))
    return change


def _cache_of(run: Run) -> CachesResults:
    store = run.setting.store
    return store if isinstance(store, CachesResults) else run.setting.services.results
