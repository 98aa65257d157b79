"""Acceptable answers: those with a schema, a pattern, a length."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jsonschema_rs

from examples.llm_race.client.exchange import Answer
from examples.llm_race.client.failures import Incomplete, Unacceptable

Accept = Callable[[Answer], bool]


def acceptance(
    *,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    min_chars: int | None = None,
    max_chars: int | None = None,
) -> Accept | None:
    """Make the check that an answer is acceptable; None if every answer is.

    The check raises `Unacceptable` with the reason if an answer isn't.

    Raises:
        ValueError: The schema or the pattern is invalid.
    """
    checks: list[Callable[[str], None]] = []
    if schema is not None:
        checks.append(conforming(schema))
    if regex is not None:
        checks.append(_matches(regex))
    if min_chars is not None or max_chars is not None:
        checks.append(_is_as_long(min_chars or 0, max_chars))
    if not checks:
        return None

    def accept(answer: Answer) -> bool:
        for check in checks:
            check(answer.text)
        return True

    return accept


def whole(accept: Accept | None) -> Accept:
    """Make the check that refuses answers that are cut off, and judges the others by `accept`."""

    def judge(answer: Answer) -> bool:
        if answer.lacks:
            raise Incomplete(answer.lacks)
        return accept is None or accept(answer)

    return judge


def as_asked(accept: Accept | None) -> Accept:
    """Make the check that judges an answer by the schema of its prompt, if any, and by `accept`.

    So one race can be held for prompts with different schemas.
    """

    def judge(answer: Answer) -> bool:
        if answer.schema is not None:
            conforming(answer.schema)(answer.text)
        return accept is None or accept(answer)

    return judge


def conforming(schema: Mapping[str, Any]) -> Callable[[str], None]:
    """Make the check that raises `Unacceptable` for a text that isn't JSON of a schema.

    Raises:
        ValueError: The schema is invalid.
    """
    try:
        validator = jsonschema_rs.validator_for(dict(schema), retriever=_refuse)
    except jsonschema_rs.ValidationError as error:
        raise ValueError(f"no JSON Schema: {error.message}") from None
    except ValueError as error:
        raise ValueError(f"no JSON Schema: {error}") from None

    def check(text: str) -> None:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise Unacceptable(f"no JSON: {error}") from None
        for error in validator.iter_errors(value):
            where = "/".join(map(str, error.instance_path)) or "the whole"
            raise Unacceptable(f"not of the schema, at {where}: {error.message}")

    return check


def _refuse(_: str) -> NoReturn:
    """Refuse references of a schema: a stranger's could read local files, or ask our network."""
    raise ValueError("a schema must not refer to anything outside of itself")


def _matches(regex: str) -> Callable[[str], None]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from None

    def check(text: str) -> None:
        if pattern.search(text) is None:
            raise Unacceptable(f"nothing in it matches {regex!r}")

    return check


def _is_as_long(least: int, most: int | None) -> Callable[[str], None]:
    def check(text: str) -> None:
        length = len(text.strip())
        if length < least:
            raise Unacceptable(f"only {length} characters long, not {least}")
        if most is not None and length > most:
            raise Unacceptable(f"{length} characters long, more than {most}")

    return check
