"""Conditions on the edges of a graph.

Invariants:
- The fields that a condition reads are known when it is built.
- A condition is a plain function of those fields. It is called on the event loop and never waits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, final

from shoal._errors.exceptions import DefinitionError, MissingField, brief
from shoal._state.functions import require_plain, signature_of
from shoal._state.secrets import reveal
from shoal._state.state import FieldAccess, make_state, refuse_awaitable

from .act import Act
from .action import field_names
from .sketch import source_of

Data = Mapping[str, object]

Predicate = (
    Callable[[], object]
    | Callable[[Any], object]
    | Callable[[Any, Any], object]
    | Callable[[Any, Any, Any], object]
    | Callable[[Any, Any, Any, Any], object]
    | Callable[[Any, Any, Any, Any, Any], object]
)
"""A plain function of fields.

Not ``Callable[..., object]``, because type checkers can't infer the parameters of a lambda from
that, and complain (see ``tests/typing``).
"""

_UNNAMEABLE = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)


@final
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Condition:
    """A condition of an edge, made by ``when``. Immutable.

    An edge is taken if its condition is true of the state. Call a condition with the fields of a
    state to evaluate it. ``~c`` is true if ``c`` is not, ``c & d`` if both are, ``c | d`` if one
    is. The second one is evaluated only if the first doesn't decide.
    """

    reads: frozenset[str]
    """The fields that it may read."""
    needs: frozenset[str]
    """The fields that it always reads, so that they must be there."""
    _test: Callable[[Data], bool]
    _label: Callable[[], str]
    _code: str  # the call that makes it, for messages
    _is_joined: bool = False  # whether `_code` needs parentheses

    @property
    def name(self) -> str:
        """Its label in drawings. For a lambda, its expression is read from the source file."""
        return self._label()

    def __call__(self, data: Mapping[str, object]) -> bool:
        """Return whether it is true of the fields in ``data``.

        Raises:
            MissingField: A field that it reads is not there.
            Exception: Whatever the predicate raises.
        """
        return self._test(data)

    def __invert__(self) -> Condition:
        test = self._test
        return Condition(
            reads=self.reads,
            needs=self.needs,
            _test=lambda data: not test(data),
            _label=lambda: f"not {_named_operand(self)}",
            _code=f"~{_operand(self._code, joined=self._is_joined)}",
        )

    def __and__(self, other: Condition) -> Condition:
        return self._joined(other, "&", "and", lambda one, two: lambda d: one(d) and two(d))

    def __or__(self, other: Condition) -> Condition:
        return self._joined(other, "|", "or", lambda one, two: lambda d: one(d) or two(d))

    def _joined(
        self,
        other: Condition,
        sign: str,
        word: str,
        joined: Callable[[Callable[[Data], bool], Callable[[Data], bool]], Callable[[Data], bool]],
    ) -> Condition:
        if not isinstance(other, Condition):
            msg = f"{self!r} {sign} takes a condition, not {brief(other)}: write when(...)"
            raise DefinitionError(msg)
        codes = (_operand(c._code, joined=c._is_joined) for c in (self, other))
        return Condition(
            reads=self.reads | other.reads,
            needs=self.needs,  # the other may never be evaluated
            _test=joined(self._test, other._test),
            _label=lambda: f" {word} ".join(map(_named_operand, (self, other))),
            _code=f" {sign} ".join(codes),
            _is_joined=True,
        )

    def __bool__(self) -> NoReturn:
        msg = (
            f"{self!r} is neither true nor false before a run; "
            f"combine conditions with ~, & and |, not with not, and, or"
        )
        raise DefinitionError(msg)

    def __repr__(self) -> str:
        return self._code


def when(
    test: str | Predicate | None = None, /, *, reads: Iterable[str] | None = None, **fields: object
) -> Condition:
    """Make a condition for an edge of a graph.

    Args:
        test: The name of a field, which must be true; or a plain function, which must return a
            true value. The function's parameters have the names of the fields that they get. A
            parameter with a default may lack its field. A parameter ``state`` gets the state,
            narrowed to ``reads``.
        reads: The fields that a function reads from ``state``.
        fields: Instead of ``test``: fields and values, which must all be equal.

    Raises:
        DefinitionError: The arguments make no condition; the message says why.

    Examples:
        >>> good = when(lambda score: score > 0.9)
        >>> done = good | when("given_up") | when(status="ok", tries=3)
        >>> done({"score": 0.5, "given_up": False, "status": "ok", "tries": 3})
        True
        >>> ~when("ready") & when(status="ok")
        ~when('ready') & when(status='ok')
    """
    if fields and (test is not None or reads is not None):
        msg = (
            f"when() takes one of: a field's name, a function, or fields and their values; "
            f"{', '.join(fields)} was given in addition; combine conditions: when(...) & "
            f"when(...); a field called 'reads' is compared by a function: when(lambda reads: ...)"
        )
        raise DefinitionError(msg)
    if fields:
        _refuse_lookups(fields)
        return _equal(fields)
    if test is None:
        msg = (
            'when() needs a condition: when("ready"), when(status="ok") or '
            "when(lambda score: score > 0.9); for an edge that is always taken, leave it out"
        )
        raise DefinitionError(msg)
    if callable(test):
        return _predicate(test, reads)
    if isinstance(test, str) and reads is None:
        return _true(test)
    msg = (
        "when(reads=...) is for a function that takes `state`"
        if isinstance(test, str)
        else f"when() takes the name of a field or a function, not {brief(test)}"
    )
    raise DefinitionError(msg)


_LOOKUPS = {
    "eq": "{} == {}",
    "ne": "{} != {}",
    "lt": "{} < {}",
    "lte": "{} <= {}",
    "gt": "{} > {}",
    "gte": "{} >= {}",
    "in": "{} in {}",
    "notin": "{} not in {}",
    "contains": "{1} in {0}",
    "is": "{} is {}",
    "isnot": "{} is not {}",
}
"""What Burr writes behind a field and two underscores, and the expression that it means."""


def _refuse_lookups(fields: Mapping[str, object]) -> None:
    """Refuse ``when(age__gte=18)``, which would compare a field ``age__gte``.

    Raises:
        DefinitionError: A name ends like one of Burr's lookups.
    """
    for name, value in fields.items():
        field, _, lookup = name.rpartition("__")
        if field and lookup in _LOOKUPS:
            meant = _LOOKUPS[lookup].format(field, brief(value))
            msg = (
                f"when({name}={brief(value)}) is how Burr compares; instead, you want: "
                f"when(lambda {field}: {meant})"
            )
            raise DefinitionError(msg)


def _true(field: str) -> Condition:
    code = f"when({field!r})"
    fields = frozenset((field,))
    return Condition(
        fields, fields, lambda data: bool(_field(data, field, code)), lambda: field, code
    )


def _equal(values: Mapping[str, object]) -> Condition:
    name = ", ".join(f"{field}={brief(value)}" for field, value in values.items())
    code = f"when({name})"
    fields = frozenset(values)

    def test(data: Data) -> bool:
        found = {field: _field(data, field, code) for field in values}
        return all(bool(found[field] == value) for field, value in values.items())

    return Condition(fields, fields, test, lambda: name, code)


def _predicate(predicate: Callable[..., object], reads: Iterable[str] | None) -> Condition:
    if isinstance(predicate, Act):
        msg = f"{predicate!r} is an act, not a condition: make it a node, or give a plain function"
        raise DefinitionError(msg)
    require_plain(predicate, "when(...)")
    if inspect.isgeneratorfunction(predicate):
        msg = f"when(...) takes a plain function; {predicate!r} is a generator function"
        raise DefinitionError(msg)
    parameters = _parameters(predicate)
    name = _name_of(predicate, parameters)
    code = f"when({name})"
    takes_state = "state" in parameters
    if takes_state and reads is None:
        msg = (
            f"{code} takes `state`, so the fields that it reads can't be known; declare them: "
            f"when(..., reads=[...]), or give its parameters the names of the fields"
        )
        raise DefinitionError(msg)
    if not takes_state and reads is not None:
        msg = (
            f"{code} has reads= but takes no `state`; "
            f"the names of its parameters already say which fields it reads"
        )
        raise DefinitionError(msg)
    declared = field_names(reads or (), "reads")
    parameters.pop("state", None)
    required = [field for field, is_required in parameters.items() if is_required]
    optional = [field for field, is_required in parameters.items() if not is_required]
    fields = declared.union(required, optional)
    access = FieldAccess(code, fields, frozenset())

    def test(data: Data) -> bool:
        values: dict[str, Any] = {field: _field(data, field, code) for field in required}
        values.update((field, reveal(data[field])) for field in optional if field in data)
        if takes_state:
            values["state"] = make_state(data, access)
        result = predicate(**values)
        refuse_awaitable(result, code)
        return bool(result)

    return Condition(fields, frozenset(required), test, lambda: source_of(predicate) or name, code)


def _parameters(predicate: Callable[..., object]) -> dict[str, bool]:
    """Return the names of the parameters, and whether each is required."""
    try:
        parameters = signature_of(predicate).parameters.values()
    except (ValueError, TypeError):
        msg = f"when(...): the parameters of {predicate!r} can't be known; wrap it in a lambda"
        raise DefinitionError(msg) from None
    for parameter in parameters:
        if parameter.name == "self" or parameter.kind in _UNNAMEABLE:
            msg = (
                f"when(...): parameter {parameter} of {predicate!r} names no field; "
                f"name each field that the function gets"
            )
            raise DefinitionError(msg)
    return {one.name: one.default is inspect.Parameter.empty for one in parameters}


def _name_of(predicate: Callable[..., object], parameters: Iterable[str]) -> str:
    name = getattr(predicate, "__name__", None) or brief(predicate)
    return f"lambda {', '.join(parameters)}: ..." if name == "<lambda>" else name


def _field(data: Data, field: str, code: str) -> object:
    try:
        return reveal(data[field])
    except KeyError:
        msg = (
            f"{code} reads field {field!r}, which the state does not have "
            f"(it has: {', '.join(sorted(data)) or 'none'}); "
            f"pass it to run(), or write it in an earlier action"
        )
        raise MissingField(msg) from None


def _named_operand(condition: Condition) -> str:
    name = condition.name
    return _operand(name, joined=not name.isidentifier())


def _operand(text: str, *, joined: bool) -> str:
    return f"({text})" if joined else text
