"""Conditions: what they say of a state, what they look at, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from shoal import State, action, when
from shoal.errors import BadResult, DefinitionError, MissingField, UndeclaredRead, UndeclaredWrite
from shoal.types import Condition


def is_good(score: float, limit: float = 0.9) -> bool:
    return score > limit


def of_state(state: State) -> bool:
    return state["score"] > 1 and state.get("bonus", 0) == 0


class Above:
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, score: float) -> bool:
        return score > self.limit

    def below(self, score: float) -> bool:
        return score < self.limit


TRUE: list[tuple[Condition, Mapping[str, object], Mapping[str, object]]] = [
    (when("ready"), {"ready": [1]}, {"ready": []}),
    (when(status="ok"), {"status": "ok"}, {"status": "bad"}),
    (when(status="ok", tries=3), {"status": "ok", "tries": 3}, {"status": "ok", "tries": 2}),
    (when(status=None), {"status": None}, {"status": 0}),
    (when(lambda score: score > 0.9), {"score": 1}, {"score": 0.5}),
    (when(lambda a, b: a < b), {"a": 1, "b": 2}, {"a": 2, "b": 1}),
    (when(lambda: True), {}, {}),
    (when(is_good), {"score": 1}, {"score": 0.5}),
    (when(is_good), {"score": 0.5, "limit": 0.1}, {"score": 0.5}),
    (when(functools.partial(is_good, limit=0.1)), {"score": 0.5}, {"score": 0.05}),
    (when(Above(1)), {"score": 2}, {"score": 0}),
    (when(Above(1).below), {"score": 0}, {"score": 2}),
    (when(lambda score: [score] if score else []), {"score": 1}, {"score": 0}),
    (when(of_state, reads=["score", "bonus"]), {"score": 2}, {"score": 2, "bonus": 1}),
    (when(lambda state, a: a in state["b"], reads=["b"]), {"a": 1, "b": [1]}, {"a": 2, "b": [1]}),
    (~when("ready"), {"ready": 0}, {"ready": 1}),
    (when("a") & when("b"), {"a": 1, "b": 1}, {"a": 1, "b": 0}),
    (when("a") | when("b"), {"a": 0, "b": 1}, {"a": 0, "b": 0}),
    (~(when("a") | when("b")), {"a": 0, "b": 0}, {"a": 0, "b": 1}),
]


@pytest.mark.parametrize(("condition", "yes", "no"), TRUE, ids=lambda value: repr(value)[:40])
def test_it_is_true_or_false_of_a_state(
    condition: Condition, yes: Mapping[str, object], no: Mapping[str, object]
):
    assert condition(yes) is True
    if no or yes:
        assert condition(no) is False
    assert condition({**yes, "other": 1}) is True


def test_the_second_is_looked_at_only_if_the_first_does_not_decide():
    assert (when("a") | when("b"))({"a": 1})
    assert not (when("a") & when("b"))({"a": 0})
    with pytest.raises(MissingField, match="'b'"):
        (when("a") & when("b"))({"a": 1})


@pytest.mark.parametrize(
    ("condition", "reads", "needs"),
    [
        (when("ready"), {"ready"}, {"ready"}),
        (when(status="ok", tries=3), {"status", "tries"}, {"status", "tries"}),
        (when(is_good), {"score", "limit"}, {"score"}),
        (when(of_state, reads=["score"]), {"score"}, set[str]()),
        (when(lambda state, a: a, reads=["b"]), {"a", "b"}, {"a"}),
        (when(lambda: True), set[str](), set[str]()),
        (~when("a"), {"a"}, {"a"}),
        (when("a") & when("b"), {"a", "b"}, {"a"}),
        (when("a") | ~when("b"), {"a", "b"}, {"a"}),
    ],
)
def test_what_it_reads_and_needs_is_known(condition: Condition, reads: set[str], needs: set[str]):
    assert condition.reads == reads
    assert condition.needs == needs


@pytest.mark.parametrize(
    ("condition", "code", "name"),
    [
        (when("ready"), "when('ready')", "ready"),
        (when(status="ok", tries=3), "when(status='ok', tries=3)", "status='ok', tries=3"),
        (when(is_good), "when(is_good)", "is_good"),
        (when(Above(1).below), "when(below)", "below"),
        (when(lambda a, b: a < b), "when(lambda a, b: ...)", "a < b"),
        (~when(lambda a: (a or 1) > 0), "~when(lambda a: ...)", "not ((a or 1) > 0)"),
        (~when("a"), "~when('a')", "not a"),
        (~~when("a"), "~~when('a')", "not (not a)"),
        (when("a") & ~when(b=1), "when('a') & ~when(b=1)", "a and (not (b=1))"),
        (
            (when("a") & when("b")) | when("c"),
            "(when('a') & when('b')) | when('c')",
            "(a and b) or c",
        ),
        (~(when("a") | when("b")), "~(when('a') | when('b'))", "not (a or b)"),
    ],
    ids=lambda value: "" if isinstance(value, Condition) else value,
)
def test_it_shows_how_it_was_written(condition: Condition, code: str, name: str):
    assert repr(condition) == code
    assert condition.name == name


def test_a_callable_object_is_named_by_its_repr():
    assert "Above" in repr(when(Above(1)))


@pytest.mark.parametrize(
    "condition", [when("score"), when(score=1), when(is_good), ~when("score")], ids=repr
)
def test_a_missing_field_names_the_condition_and_what_there_is(condition: Condition):
    with pytest.raises(MissingField) as caught:
        condition({"tries": 1, "limit": 2})
    message = str(caught.value)
    assert f"{condition!r} reads field 'score'".lstrip("~") in message
    assert "(it has: limit, tries)" in message


def test_the_state_is_narrowed_to_what_is_declared():
    seen: list[object] = []

    def look(state: State) -> bool:
        seen.append(dict(state))
        with pytest.raises(UndeclaredRead, match=r"when\(look\).*'b'.*declared: a"):
            state.get("b")
        with pytest.raises(UndeclaredWrite, match="'a'"):
            state.update(a=2)
        return state["a"] == 1

    assert when(look, reads=["a"])({"a": 1, "b": 2})
    assert seen == [{"a": 1}]


def test_what_a_predicate_raises_is_not_replaced():
    def lookup(score: dict[str, int]) -> bool:
        return score["missing"] > 1

    with pytest.raises(KeyError, match="missing") as caught:
        when(lookup)({"score": {}})
    assert type(caught.value) is KeyError


def test_a_predicate_that_returns_an_awaitable_is_refused():
    async def later() -> bool:
        return True

    with pytest.raises(BadResult, match=r"when\(lambda score: \.\.\.\) .*awaited"):
        when(lambda score: later())({"score": 1})


def test_it_never_changes():
    condition: Any = when("a")
    with pytest.raises(AttributeError):
        condition.reads = frozenset("b")


async def later(score: float) -> bool:
    return score > 1


class Later:
    async def __call__(self, score: float) -> bool:
        return score > 1


def numbers(score: int) -> Any:
    yield score


@action(reads=["score"], writes=["ok"])
def an_action(score: float) -> bool:
    return score > 1


def any_fields(*fields: int) -> bool:
    return True


def any_names(**fields: int) -> bool:
    return True


def by_place(a: int, /) -> bool:
    return True


untyped: Any = when
REFUSED: list[tuple[Callable[[], object], str]] = [
    (untyped, r"when\(\) needs a condition: when\(\"ready\"\)"),
    (lambda: untyped(5), r"name of a field or a function, not 5"),
    (lambda: untyped(True), r"name of a field or a function, not True"),
    (lambda: untyped({"a": 1}), r"name of a field or a function, not {'a': 1}"),
    (lambda: untyped("a", b=1), r"b was given in addition; combine conditions: when\(...\) & when"),
    (lambda: untyped(is_good, b=1), r"b was given in addition; combine conditions"),
    (lambda: untyped(reads=["a"], b=1), r"b was given in addition.*called 'reads'"),
    (lambda: untyped(reads=["a"]), r"needs a condition"),
    (lambda: untyped("a", reads=["a"]), r"reads=...\) is for a function that takes `state`"),
    (lambda: untyped(is_good, reads=["score"]), r"when\(is_good\) has reads= but takes no"),
    (lambda: untyped(of_state), r"when\(of_state\) takes `state`.*reads=\[...\]"),
    (lambda: untyped(of_state, reads="score"), r"reads='score' is one string"),
    (lambda: untyped(of_state, reads=[1]), r"field names, which are strings, not 1"),
    (lambda: untyped(later), r"plain function.*'later' is a coroutine function"),
    (lambda: untyped(Later()), r"is a coroutine function"),
    (lambda: untyped(functools.partial(later, score=1)), r"is a coroutine function"),
    (lambda: untyped(numbers), r"numbers.* is a generator function"),
    (lambda: untyped(an_action), r"<action an_action .* is an act, not a condition"),
    (lambda: untyped(Above.below), r"parameter self of .*below.* names no field"),
    (lambda: untyped(any_fields), r"parameter \*fields\b.* of .*any_fields.* names no field"),
    (lambda: untyped(any_names), r"parameter \*\*fields\b.* of .*any_names.* names no field"),
    (lambda: untyped(by_place), r"parameter a\b.* of .*by_place.* names no field"),
    (lambda: untyped(max), r"parameters of <built-in function max> can't be known"),
    (lambda: untyped("a") & "b", r"when\('a'\) & takes a condition, not 'b': write when"),
    (lambda: untyped("a") | is_good, r"when\('a'\) \| takes a condition, not <function is_good"),
    (lambda: untyped("a") and when("b"), r"neither true nor false before a run; .*~, & and \|"),
    (lambda: not untyped("a"), r"when\('a'\) is neither true nor false"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_is_no_condition_is_refused(build: Callable[[], object], message: str):
    with pytest.raises(DefinitionError, match=message):
        build()
