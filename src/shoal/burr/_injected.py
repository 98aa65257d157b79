"""The inputs that Burr gives to actions itself: its context of an application, and its tracer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from burr.core import ApplicationContext
from burr.lifecycle.internal import LifecycleAdapterSet
from burr.visibility.tracing import TracerFactory

from ._declared import Declared


def burr_context(run_id: str, step: str) -> ApplicationContext:
    """Return Burr's context of an attempt: its ``app_id`` is the id of our run.

    It has no tracker, persister or initializer: what Burr calls these for is done by hooks and
    stores here, and an application that the action builds itself has its own.
    """
    return ApplicationContext(
        app_id=run_id,
        partition_key=None,
        sequence_id=0,
        tracker=None,
        parallel_executor_factory=ThreadPoolExecutor,
        state_initializer=None,
        state_persister=None,
        action_name=step,
    )


def injected(declared: Declared, run_id: str) -> Mapping[str, Any]:
    """Return those of Burr's own inputs that an action takes.

    The tracer has no listeners: ``context.span`` of shoal's is what hooks are entered around.
    """
    made: dict[str, Any] = {}
    if "__context" in declared.injected:
        made["__context"] = burr_context(run_id, declared.name)
    if "__tracer" in declared.injected:
        made["__tracer"] = TracerFactory(
            action=declared.name,
            sequence_id=0,
            app_id=run_id,
            partition_key=None,
            lifecycle_adapters=LifecycleAdapterSet(),
        )
    return made


def named_for(method: Callable[..., object], made: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``made`` under the names of the parameters of ``method``.

    In a class Python calls a parameter ``__context`` of a method ``_Class__context``.
    """
    if not made:
        return made
    parameters = inspect.signature(method).parameters
    return {
        next((one for one in parameters if one.endswith(name)), name): value
        for name, value in made.items()
    }
