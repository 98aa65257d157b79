"""``context.idempotency_key``: a name for the effect of a step that is the same in each attempt.

Invariants:
- Equal in all attempts of one visit of one step with one input, in any process.
- Different from the key of another run, step or visit, and of the same visit with another input.
- Nothing secret takes part in it.
"""

from __future__ import annotations

from typing import Any

from shoal._graph.action import FunctionAction
from shoal._state.secrets import Secret
from shoal.executors._effects import Effect

from .questions import asker_key
from .run import Run


def effect(run: Run, action: FunctionAction[..., Any]) -> Effect:
    """Return what names the effect of the current visit of ``action``."""
    data, step = run.head[1], action.name
    # Sorted, since `reads` may be a set, whose order differs between processes. A field that only
    # `state` offers may be missing.
    fields = [
        field for field in sorted(action.reads) if field in data and type(data[field]) is not Secret
    ]
    # The number of the visit comes from the history, so a resumed run has the same.
    return Effect(run.path.id, step, run.visit(step), tuple(fields), asker_key(run.path))


def idempotency_key(run: Run, action: FunctionAction[..., Any]) -> str:
    """Return the key of the current visit of ``action``; see ``Context.idempotency_key``.

    Raises:
        NotData: A field that the action reads can't be hashed.
    """
    return effect(run, action).key(run.head[1].__getitem__)
