"""What an act says of itself for drawings.

Invariants:
- A sketch is made of declarations alone. Nothing is called that a user has written.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType
from typing import Any, NamedTuple, cast, final

from shoal._drawing.figure import Kind
from shoal._limits.limits import Limits, Part, Rate, SharedRate
from shoal._limits.retry import Retry
from shoal.executors._named import Place

PERIODS = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}


@final
class Sketch(NamedTuple):
    """What is drawn of an act."""

    kind: Kind = "action"
    labels: Sequence[str] = ()
    """What is said of it besides its name, each a few words."""
    within: Sequence[object] = ()
    """Its nodes, the entry first, or the acts of its children. Other objects don't count."""
    edges: Sequence[Any] = ()
    """The edges between its nodes."""
    is_chosen: bool = False
    """Whether ``within`` is what its code names: what it does with that is known while it runs."""
    is_many: bool = False
    """Whether there is a child for each of many elements."""


# -- texts ----------------------------------------------------------------------------------------


def named(function: object) -> str:
    """Return the name of a function, as a label."""
    name: object = getattr(function, "__name__", None)
    if not isinstance(name, str):
        name = type(function).__name__
    return source_of(function) or "a lambda" if name == "<lambda>" else name


def source_of(function: object) -> str:
    """Return the expression of a lambda, as its file has it; "" for any other function.

    It is read when it is asked for: most programs never draw, and reading a file blocks.
    """
    code: object = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or code.co_name != "<lambda>":
        return ""
    starts: list[tuple[int, int]] = []
    ends: list[tuple[int, int]] = []
    for first, last, left, right in code.co_positions():
        if first is None or last is None or left is None or right is None:
            continue
        if (first, left) < (last, right):  # others stand for no expression
            starts.append((first, left))
            ends.append((last, right))
    lines = linecache.getlines(code.co_filename)
    if not starts or max(ends)[0] > len(lines):
        return ""
    (first, left), (last, right) = min(starts), max(ends)
    taken = [line.encode() for line in lines[first - 1 : last]]
    taken[-1] = taken[-1][:right]
    taken[0] = taken[0][left:]  # columns count bytes
    text = " ".join(b" ".join(taken).decode(errors="replace").split())
    # Parentheses at its ends belong to no instruction.
    return next((one for one in (text, f"({text}", f"{text})") if _is_expression(one)), "")


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):  # the file has changed
        return False
    return True


def seconds(length: float) -> str:
    """Return a length of time, as a label."""
    for unit in (86400.0, 3600.0, 60.0):
        if length >= unit and length % unit == 0:
            return f"{length / unit:g} {PERIODS[unit]}"
    return f"{length:g} s"


def of_executor(executor: Place | None) -> Iterator[str]:
    """Yield a label for an executor that an act has itself."""
    if executor is not None:
        yield "on the loop" if isinstance(executor, str) else f"in {executor.name}"


def of_limits(limits: Limits | None) -> Iterator[str]:
    """Yield a label for each number that limits have."""
    for part in () if limits is None else limits.parts:
        by = "" if part.by is None else f" per {named(part.by)}"
        if part.n is not None:
            adapts = "" if part.adapt is None else ", adapting"
            yield f"{part.n:,} at once{by}{adapts}"
        if part.rate is not None:
            yield f"{_rate(part)}{by}"


def _rate(part: Part) -> str:
    rate, name = part.rate, ""
    if isinstance(rate, SharedRate):
        rate, name = rate.rate, f" shared as {rate.name}"
    if isinstance(rate, Rate):
        k, per = rate.k, float(rate.per)
    else:
        assert rate is not None
        k, per = rate.max_rate, float(rate.time_period)
    period = PERIODS.get(per) or seconds(per)
    cost = "" if part.cost is None else f" of {named(part.cost)}"
    return f"{k:,g}/{period}{cost}{name}"


def of_retry(retry: Retry | None) -> Iterator[str]:
    """Yield a label for retries."""
    if retry is not None:
        yield f"{retry.attempts} attempts"


def of_timeout(timeout: float | None) -> Iterator[str]:
    """Yield a label for a timeout."""
    if timeout is not None and timeout < math.inf:
        yield f"timeout {seconds(timeout)}"


# -- code -----------------------------------------------------------------------------------------


def named_by(function: object) -> Sequence[object]:
    """Return the objects that the code of a function names, in the order in which it does.

    Those are globals, variables of functions around it, and attributes of the object whose method
    it is. Members of lists, tuples and mappings count as well. What other functions name that it
    calls does not.
    """
    found: dict[int, object] = {}
    for one in _named_by(function):
        for each in _members(one):
            found.setdefault(id(each), each)
    return [*found.values()]


def _named_by(function: object) -> Iterator[object]:
    while isinstance(function, functools.partial):
        partial = cast("functools.partial[Any]", function)
        yield from (*partial.args, *partial.keywords.values())
        function = partial.func
    if callable(function) and not inspect.isroutine(function):
        call: Any = type(function).__call__  # an object with a method __call__
        function = call.__get__(function)
    owner: object = getattr(function, "__self__", None)
    function = inspect.unwrap(cast("Any", getattr(function, "__func__", function)))
    if not inspect.isfunction(function):
        return
    own: Mapping[str, object] = getattr(owner, "__dict__", {})
    for name in _names_in(function.__code__, "LOAD_ATTR", "LOAD_METHOD") if own else ():
        if name in own:
            yield own[name]
    yield from _around(function)


def _around(function: Callable[..., object]) -> Iterator[object]:
    code: CodeType = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    enclosing: dict[str, object] = {}
    for name, cell in cells:
        try:
            enclosing[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    outside = {**function.__globals__, **enclosing}
    for name in _names_in(code, "LOAD_GLOBAL", "LOAD_DEREF"):
        if name in outside:
            yield outside[name]


def _names_in(code: CodeType, *operations: str) -> Iterator[str]:
    """Yield the names that code loads, and the code of functions inside it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations and isinstance(instruction.argval, str):
            yield instruction.argval
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names_in(constant, *operations)


def _members(found: object) -> Iterator[object]:
    yield found
    if isinstance(found, list | tuple):
        yield from cast("Sequence[object]", found)
    elif isinstance(found, dict):
        yield from cast("Mapping[object, object]", found).values()
