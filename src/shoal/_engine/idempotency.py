"""``context.idempotency_key``: a name for the effect of a step that is the same in each attempt.

Invariants:
- Equal in all attempts of one visit of one step with one input, in any process.
- Different from the key of another run, step or visit, and of the same visit with another input.
- Nothing secret takes part in it.
"""

from __future__ import annotations

from typing import Any

from shoal._errors.exceptions import NotData
from shoal._graph.action import FunctionAction
from shoal._state.digest import combined, named, written
from shoal._state.secrets import Secret

from .questions import asker_key
from .run import Run


def idempotency_key(run: Run, action: FunctionAction[..., Any]) -> str:
    """Return the key of the current visit of ``action``; see ``Context.idempotency_key``.

    Raises:
        NotData: A field that the action reads can't be hashed.
    """
    data, step = run.head[1], action.name
    # The number of the visit comes from the history, so a resumed run has the same.
    parts = [written("idempotency", run.path.id, step, str(run.visit(step)))]
    # Sorted, since `reads` may be a set, whose order differs between processes.
    for field in sorted(action.reads):
        # A field that only `state` offers may be missing.
        if field not in data or type(value := data[field]) is Secret:
            continue
        try:
            parts.append(named(field, value))
        except NotData as error:
            msg = (
                f"action {step!r} of run {run.path.id}{asker_key(run.path)} has no idempotency "
                f"key, since it reads field {field!r}, which can't be hashed: {error}"
            )
            raise NotData(msg) from error
    return combined(parts)
