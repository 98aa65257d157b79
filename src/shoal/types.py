"""Types: classes that annotations name, for programs that are type checked.

Programs get objects of these classes and don't make them: a function under ``@action`` is a
``FunctionAction``, and ``fan_out`` returns a ``FanOut``. Parameters of shoal take the unions
(``Key``, ``Until``, ``OnError``, ``Priority``), and ``Adaptive`` is the protocol behind
``Limits(adapt=)``.

Examples:
    >>> from shoal import action
    >>> from shoal.types import Act
    >>> def describe(act: Act) -> str:
    ...     return f"{act.name} reads {', '.join(act.reads)}"
    >>> @action(reads=["text"], writes=["length"])
    ... async def measure(text: str) -> int:
    ...     return len(text)
    >>> describe(measure)
    'measure reads text'
"""

from __future__ import annotations

from shoal._engine.fanout.action_group import ChildGroup
from shoal._engine.fanout.ledger import Ledger
from shoal._events.identity import Key
from shoal._graph.act import Act, Input
from shoal._graph.action import FunctionAction
from shoal._graph.condition import Condition
from shoal._graph.fan_out import FanOut
from shoal._graph.policy import Inherit, OnError
from shoal._graph.until import All, First, FirstItem, Quorum, Until
from shoal._limits.adaptive import Adaptive, Ended
from shoal._limits.breaker import BreakerStatistics, Circuits
from shoal._limits.flows import Priority
from shoal._limits.limiters import Limiter, Statistics
from shoal._runtime.handle import RunEvents
from shoal._runtime.open_run import OpenRun
from shoal._runtime.recovery import Recovered
from shoal._runtime.seats import RunLoad

__all__ = [
    "Act",
    "Adaptive",
    "All",
    "BreakerStatistics",
    "ChildGroup",
    "Circuits",
    "Condition",
    "Ended",
    "FanOut",
    "First",
    "FirstItem",
    "FunctionAction",
    "Inherit",
    "Input",
    "Key",
    "Ledger",
    "Limiter",
    "OnError",
    "OpenRun",
    "Priority",
    "Quorum",
    "Recovered",
    "RunEvents",
    "RunLoad",
    "Statistics",
    "Until",
]
