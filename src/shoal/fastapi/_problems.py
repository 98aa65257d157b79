"""What a client is told of a request that can't be met. Imports FastAPI, and errors.

Invariants:
- Each refusal of what was sent (422) is a list of ``type``, ``loc`` and ``msg``, and reaches a
  service's own handler of ``RequestValidationError``, if there is one.
- Messages are for HTTP clients: they name endpoints and what is sent, never functions of Python.
- Nothing that was sent is sent back, neither as a value nor in a message about a secret field: the
  response goes to logs, proxies and people that the request did not go to.
- What is said can be written as JSON, whatever was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from shoal._errors.exceptions import (
    InvalidState,
    MissingField,
    MissingSecret,
    NotData,
    SecretLeaked,
    ShoalError,
    UnknownQuestion,
    UpdateTooLarge,
)

STATE = ("body", "state")
"""The place of the initial state in a request."""
ANSWERS = ("body", "answers")
"""The place of answers in a request."""
Place = Sequence[str | int]

_NOT_TAKEN = (
    (InvalidState, "invalid_state", "does not fit the model of the application"),
    (NotData, "no_data", "has a value that can't be kept"),
    (UpdateTooLarge, "too_large", "is larger than the store takes"),
)
"""What else is said of what was sent, by the kind of the error."""
_OF_SECRET = "is not what the secret field asks for"  # noqa: S105 # no secret, but about one


def printable(text: str) -> str:
    """Write halves of surrogate pairs as escapes, for UTF-8 has no form for them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def without_values(error: RequestValidationError, secret: frozenset[str]) -> RequestValidationError:
    """Make an error that says what doesn't fit and where, and has nothing of what was sent.

    FastAPI's own has the values in ``input`` and ``ctx``, and all of the body beside the errors.

    Args:
        error: FastAPI's.
        secret: The fields of the state of which messages may say nothing: a validator's own message
            often repeats the value, and within a mapping the place has its keys.
    """
    return RequestValidationError([_told(one, secret) for one in error.errors()])


def _told(error: Any, secret: frozenset[str]) -> dict[str, object]:
    where: Sequence[Any] = error["loc"]
    message = str(error["msg"])
    if tuple(where[:2]) == ("body", "state") and not secret.isdisjoint(where[2:3]):
        is_there = error["type"] != "missing"
        where, message = where[:3], _OF_SECRET if is_there else message
    place = [printable(part) if isinstance(part, str) else part for part in where]
    return {"type": error["type"], "loc": place, "msg": printable(message)}


def refusal(type: str, where: Place, message: str) -> RequestValidationError:  # noqa: A002 # its name in JSON
    """Make the refusal of one part of what was sent."""
    return RequestValidationError([{"type": type, "loc": [*where], "msg": message}])


def refusal_of(
    error: ShoalError, where: Place = STATE, answered: Sequence[object] = ()
) -> RequestValidationError:
    """Make a refusal of an error that the engine has raised of what was sent.

    Args:
        error: The engine's. Its own message is for callers in Python, and may have values.
        where: The part that it is about, if the error doesn't say so itself.
        answered: For which questions there are answers, in the order in which they were sent.
    """
    match error:
        case SecretLeaked():
            message = "has the text of a secret field, and would be saved"
            return refusal("secret_leaked", ("body", *error.found_in), message)
        case MissingField():
            message = "Field required: a new run can't begin without it"
            return refusal("missing", (*STATE, error.field), message)
        case MissingSecret() if where == STATE:
            message = "Field required: it is secret, so it is saved nowhere"
            told = [
                {"type": "missing", "loc": [*STATE, one], "msg": message} for one in error.fields
            ]
            return RequestValidationError(told)
        case MissingSecret():
            message = "the run has secret fields, which are saved nowhere, and none are taken here"
            return refusal("missing_secret", ("body",), message)
        case UnknownQuestion():
            at = [answered.index(error.at)] if error.at in answered else []
            return refusal("unknown_question", (*where, *at), error.why)
        case _:
            for kind, name, message in _NOT_TAKEN:
                if isinstance(error, kind):
                    return refusal(name, where, message)
            return refusal("not_taken", where, "is not what the application takes")
