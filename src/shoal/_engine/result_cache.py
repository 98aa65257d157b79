"""Cache results of actions with ``cache=``: look them up before a call, store them after it.

Invariants:
- Only results of successful attempts are stored, that the state's model accepts and that hold no
  secret.
- The cache is read before the run waits for a permit, and again after the wait: the attempt that
  held the slot before may have stored the result.
- The key of a result is made of the fields that its action reads, the action's name and version,
  and the names of the fields that it writes. Inputs and other fields are not in the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal._concurrency.cancellation import absorb_stray_cancel
from shoal._errors.exceptions import NotData, UpdateTooLarge
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._state.digest import combined, named, written
from shoal._state.state import Change, change_of
from shoal.stores._protocol import CachesResults

from .run import Run


def result_key(act: Act, data: Mapping[str, object]) -> str:
    """Return the key of a result: a hash of ``act`` and of the fields that it reads.

    Raises:
        NotData: A field that the act reads holds a value that is not data.
    """
    # Sorted, since sets have another order in each process.
    parts = [written("result", act.name, act.version, *sorted(act.writes))]
    for field in sorted(act.reads):
        if field in data:  # one that is missing counts as such, and differs from None
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
        StoreFailed: The store raised, or did not answer in time.
    """
    retries = run.retry_state()
    recalling = _cache_of(run).recall(retries.result_key)
    what = f"the result of {action.name!r}"
    operations = await run.config.execution.ask(recalling, what)
    if operations is None:
        return None
    retries.is_cached = True  # events of the step say so, and no attempt is published
    return change_of(run.head[1], operations)


async def store_result(
    run: Run, action: FunctionAction[..., Any], change: Change, seconds: float
) -> Change:
    """Return the result of ``action``, the current step of ``run``, once it is stored.

    If this is cancelled, the result may be stored or not. The step isn't completed, and a resumed
    run may find the result and not execute the action again.

    Raises:
        InvalidState: The model of the state refuses the result.
        SecretLeaked: The result holds a secret.
        StoreFailed: The result could not be stored.
    """
    config, what = run.config, f"room for a result of {action.name!r}"
    # All checks come before the store is asked, since a stored result is used without them; see
    # test_what_its_model_refuses_is_not_remembered.
    if config.schema is not None:
        config.schema.checked(change, run.head[1], f"action {action.name!r}")
    if config.secrets.names:
        config.secrets.refuse(change.operations, f"what action {action.name!r} has come to")
    # A native cancel that the action left on this task is no reason not to store its result; see
    # test_a_cancellation_that_is_left_on_the_task_is_nobody_s.
    await absorb_stray_cancel(config.services.native_cancels)
    key = run.retry_state().result_key
    remembering = _cache_of(run).remember(key, change.operations, seconds)
    # A result that can't be saved fails the action, and the execution goes on.
    await config.execution.ask(remembering, what, (NotData, UpdateTooLarge))
    return change


def _cache_of(run: Run) -> CachesResults:
    # Runs whose store has no cache, or that have no store, share the one of their runtime.
    store = run.config.store
    return store if isinstance(store, CachesResults) else run.config.services.results
