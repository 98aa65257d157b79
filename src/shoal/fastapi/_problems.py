"""Turn errors into refusals that an HTTP client understands.

Invariants:
- Each refusal of a body (422) is a list of ``type``, ``loc`` and ``msg``, and is raised as a
  ``RequestValidationError``, so that a service's own handler of that gets it.
- Messages are for HTTP clients: they name endpoints and parts of requests, never Python functions.
- No sent value is repeated, neither by itself nor in a message about a secret field, because a
  response reaches logs, proxies and people that the request didn't reach.
- Every refusal can be written as JSON, whatever the request was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from shoal._errors.exceptions import (
    BadAnswer,
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
"""The place of the answers in a request."""
Place = Sequence[str | int]

_NOT_TAKEN = (
    (InvalidState, "invalid_state", "does not fit the model of the application"),
    (NotData, "no_data", "has a value that can't be saved"),
    (UpdateTooLarge, "too_large", "is larger than the store accepts"),
)
"""The types and messages of refusals, by the class of the error."""
_OF_SECRET = "is not valid for the secret field"  # noqa: S105 # a message, not a secret


def printable(text: str) -> str:
    """Escape halves of surrogate pairs, which UTF-8 can't express."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def without_values(error: RequestValidationError, secret: frozenset[str]) -> RequestValidationError:
    """Return a copy of a validation error without the sent values.

    FastAPI's error has the values in ``input`` and ``ctx``, and the whole body beside them.

    Args:
        error: FastAPI's error.
        secret: The secret fields of the state. Their messages and inner places are replaced:
            messages of validators often repeat the value, and places within a mapping have its
            keys.
    """
    return RequestValidationError([_without_value(one, secret) for one in error.errors()])


def _without_value(error: Any, secret: frozenset[str]) -> dict[str, object]:
    where: Sequence[Any] = error["loc"]
    message = str(error["msg"])
    if tuple(where[:2]) == ("body", "state") and not secret.isdisjoint(where[2:3]):
        is_there = error["type"] != "missing"
        where, message = where[:3], _OF_SECRET if is_there else message
    place = [printable(part) if isinstance(part, str) else part for part in where]
    return {"type": error["type"], "loc": place, "msg": printable(message)}


def refusal(type: str, where: Place, message: str) -> RequestValidationError:  # noqa: A002 # its name in JSON
    """Return the refusal of one part of a request."""
    return RequestValidationError([{"type": type, "loc": [*where], "msg": message}])


def refusal_of(
    error: ShoalError, where: Place = STATE, answered: Sequence[object] = ()
) -> RequestValidationError:
    """Return the refusal for an error that the engine has raised because of the request.

    Args:
        error: The engine's error. Its message is for Python callers, and may have values.
        where: The part of the request that the error concerns, if the error doesn't say so.
        answered: The questions that have answers, in the order in which these were sent.
    """
    match error:
        case SecretLeaked():
            message = "has the text of a secret field, and would be saved"
            return refusal("secret_leaked", ("body", *error.found_in), message)
        case MissingField():
            message = "Field required: a new run can't begin without it"
            return refusal("missing", (*STATE, error.field), message)
        case MissingSecret() if where == STATE:
            message = "Field required: it is secret, so it is not saved"
            missing = [
                {"type": "missing", "loc": [*STATE, one], "msg": message} for one in error.fields
            ]
            return RequestValidationError(missing)
        case MissingSecret():
            message = "the run has secret fields, which are not saved, and this request has none"
            return refusal("missing_secret", ("body",), message)
        case BadAnswer():
            at = [answered.index(error.at), "value"] if error.at in answered else []
            inner = error.place.split(".") if error.place else []
            return refusal("bad_answer", (*where, *at, *inner), error.why)
        case UnknownQuestion():
            at = [answered.index(error.at)] if error.at in answered else []
            return refusal("unknown_question", (*where, *at), error.why)
        case _:
            for kind, name, message in _NOT_TAKEN:
                if isinstance(error, kind):
                    return refusal(name, where, message)
            return refusal("not_taken", where, "is not valid for the application")
