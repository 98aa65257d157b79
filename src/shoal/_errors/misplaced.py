"""Arguments that a function doesn't take: its error says where they belong.

Invariants:
- Only the error changes. The function keeps its signature, its type and its kind.
- An argument that the function takes is never looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, isclass, iscoroutinefunction, signature
from typing import Any, Final, TypeVar

from .exceptions import most_like
from .tracebacks import frames_hidden

F = TypeVar("F", bound=Callable[..., Any])

_SHOWN = 5
"""Arguments by name that an error lists: those that come first matter most."""
_BY_PLACE = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD

_AT_ONCE = {
    "concurrency max_concurrency max_concurrent max_workers workers parallelism": (
        "how much runs at once is said by limits=Limits(20)"
    ),
    "rate": "rates are limits: limits=Limits(rate=Rate(5, per=1.0))",
}
_OF_A_CHILD = {
    "retry work_timeout breaker": (
        "what applies to each child by itself goes into Each: each=Each({name}=...)"
    ),
    "retries attempts": "a child is retried by each=Each(retry=Retry(3, on=ConnectionError))",
}
_INPUTS = {
    "inputs": (
        "give inputs to Application(inputs={{...}}) or run(inputs={{...}}), or bind them: "
        "act.bind(client=client)"
    )
}
_BY_TIME = {
    "timeout": "what bounds a run is its caller: with anyio.fail_after(seconds): await app.run(...)"
}
_RETRIES = {
    "retry retries": (
        "actions and children are retried: action(retry=Retry(...)), "
        "fan_out(each=Each(retry=Retry(...)))"
    )
}
_OF_AN_APPLICATION = {
    **_BY_TIME,
    **_RETRIES,
    "store hooks secret executor limits": (
        "it belongs to the application: Application(act, {name}=...)"
    ),
}
_FIELD = "fields of the state are given in one mapping: {{{name!r}: ...}}"
_OF_A_RATE = "how many start per second is a Rate: rate=Rate(5, per=1.0)"

_HINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "action": {
        **_AT_ONCE,
        **_INPUTS,
        "retries attempts": "an action is retried by retry=Retry(3, on=ConnectionError)",
        "inputs": (
            "each parameter of the function that is not in reads= is an input: give it to the "
            "application or the run, inputs={{...}}, or bind it: act.bind(client=client)"
        ),
    },
    "fan_out": {
        "*": (
            "takes its elements from a field of the state: fan_out(act, over='urls', ...), "
            "and then app.run({'urls': urls})"
        ),
        **_AT_ONCE,
        **_INPUTS,
        **_OF_A_CHILD,
        "hedge": "a second copy of each late child is made by each=Each(hedge=Hedge(...))",
        "accept by": "the condition takes it: until=first(accept=...), until=quorum(2, by=...)",
    },
    "race": {
        **_AT_ONCE,
        **_INPUTS,
        **_OF_A_CHILD,
        "hedge": "contestants that start when others are late are stagger=Hedge(...)",
        "first n count": "more than one winner is until=first(2)",
        "on_error errors_into": (
            "a contestant that fails only leaves the race, and result.outcomes(name) has its error"
        ),
        "over item key": (
            "a race over elements is a fan-out: fan_out(act, over='elements', until=first(1))"
        ),
    },
    "Application": {
        **_BY_TIME,
        **_RETRIES,
        **_AT_ONCE,
        "id answers owner runtime halt_before halt_after progress": (
            "it belongs to each run: app.run(..., {name}=...)"
        ),
        "entry": "the graph has an entry: Graph((a, b), entry=a)",
    },
    "Application.run": {**_OF_AN_APPLICATION, "": _FIELD},
    "Application.start": {**_OF_AN_APPLICATION, "": _FIELD},
    "Application.open": {**_OF_AN_APPLICATION, "": _FIELD},
    "Application.run_sync": {
        **_OF_AN_APPLICATION,
        "runtime": "it has a runtime of its own: await app.run(..., runtime=runtime)",
        "": _FIELD,
    },
    "Runtime": {
        **_AT_ONCE,
        "hooks max_live max_steps max_depth": (
            "it belongs to the application: Application(act, {name}=...)"
        ),
    },
    "Graph": {"start entrypoint first": "where it begins is entry=act"},
    "Limits": {
        "concurrency max_concurrency max limit": "how many at once is the number: Limits(20)",
        "per_key key": "a limit for each key takes a function of the state: Limits(2, by=host_of)",
        "per per_second": _OF_A_RATE,
    },
    "Rate": {
        "seconds period time_period interval": "the seconds are per=: Rate(5, per=1.0)",
        "n rate max_rate": "the number comes first: Rate(5, per=1.0)",
    },
    "Retry": {
        "max_attempts retries times tries": "the number of attempts comes first: Retry(3, ...)",
        "exceptions retry_on errors": "the failures that are tried again are on=ConnectionError",
        "delay wait": "the first delay is initial=, in seconds",
        "backoff multiplier": "each delay is factor= times the one before",
        "max_delay": "the longest delay is cap=, in seconds",
    },
    "Each": {
        "retries attempts": "a child is retried by retry=Retry(3, on=ConnectionError)",
        "limits on_error stagger store hooks": (
            "it belongs to the fan-out: fan_out(act, {name}=...)"
        ),
    },
}
"""What to write instead, by the function, and by one or several names that it doesn't take.

The hint of ``"*"`` is for too many arguments by place; without it, those by name are listed.
``{name}`` stands for the name that was given. A name that is neither here nor like one that the
function takes has the hint of ``""``; without that, Python's own error is raised for it. The hints
of a class are those of its ``__init__``.
"""


def says_where(function: F) -> F:
    """Make a function or class of ``_HINTS`` say where arguments belong that it doesn't take.

    The function raises a ``TypeError``, as it would otherwise.
    """
    made: Any = function
    name = made.__name__
    if not isclass(made):
        return _checked(made, name)
    changed: Any = made
    changed.__init__ = _checked(changed.__init__, name)
    for method in [one.partition(".")[2] for one in _HINTS if one.startswith(f"{name}.")]:
        setattr(changed, method, _checked(vars(changed)[method], f"{name}.{method}"))
    return function


def _checked(function: Any, label: str) -> Any:
    hints = {name: hint for names, hint in _HINTS[label].items() for name in names.split(" ")}
    parameters = signature(function).parameters
    known = frozenset(parameters)
    assert known.isdisjoint(hints), f"{label} takes {known.intersection(hints)}"
    by_name = [name for name, one in parameters.items() if one.kind is Parameter.KEYWORD_ONLY]
    by_place = [name for name, one in parameters.items() if one.kind in _BY_PLACE]
    most = len(by_place)
    if any(one.kind is Parameter.VAR_POSITIONAL for one in parameters.values()) or not by_name:
        most = sys.maxsize

    def check(args: Sequence[object], given: Iterable[str]) -> None:
        if len(args) > most:
            msg = f"{label}() {hints.get('*') or _few(most - (by_place[:1] == ['self']), by_name)}"
            raise TypeError(msg)
        if known.issuperset(given):
            return
        for name in given:
            if name in known:
                continue
            hint = hints.get(name)
            if hint is None:
                similar = most_like(name, [*by_place, *by_name])
                hint = f"did you mean {similar}=?" if similar else hints.get("")
            if hint:
                msg = f"{label}() takes no {name}=; {hint.format(name=name)}"
                raise TypeError(msg)

    if iscoroutinefunction(function):  # and it stays one, for those who ask

        @wraps(function)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            with frames_hidden:
                check(args, kwargs)
                return await function(*args, **kwargs)

        return call_async

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with frames_hidden:  # those between the line that is wrong and the check that says so
            check(args, kwargs)
            return function(*args, **kwargs)

    return call


def _few(most: int, by_name: Sequence[str]) -> str:
    """Say that few arguments are given by place, and which of the others by name."""
    few = "no argument" if most == 0 else f"{most} argument{'s' if most > 1 else ''}"
    named = ", ".join(f"{name}=" for name in by_name[:_SHOWN])
    more = ", ..." if len(by_name) > _SHOWN else ""
    return f"takes {few} by place, and the others by name: {named}{more}"
