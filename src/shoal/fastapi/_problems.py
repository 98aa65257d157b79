"""What a client is told of a request that can't be met. Imports FastAPI.

Invariants:
- Nothing that was sent is sent back, neither as a value nor in a message about a secret field: the
  response goes to logs, proxies and people that the request did not go to.
- What is said can be written as JSON, whatever was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

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
