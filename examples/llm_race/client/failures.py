"""The failures of an exchange with a provider, and how to react to them.

`is_retryable` and the other functions judge any exception, not only this module's: by its HTTP
status if it has one, then by its class name. The class hierarchies of the SDKs don't help. For the
same broken connection, one SDK raises its own error and another lets httpx's through, and it is the
same for a chunk that is no JSON.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast

Kind = Literal[
    "http",
    "overload",
    "network",
    "stream",
    "timeout",
    "empty",
    "incomplete",
    "refused",
    "account",
    "budget",
    "key",
]

RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
OVERLOAD = frozenset({429, 503, 529})
OF_THE_PROMPT = frozenset({400, 413, 414, 422, 431, 451})
"""Statuses of a prompt that is wrong, too long or not allowed."""

# Some statuses have several meanings, which only the text tells apart: Gemini sends 400 for a wrong
# key and Anthropic for an account without money, and routers send 403 for a prompt. The pattern
# matches unescaped JSON, because some servers repeat the prompt, which must not be mistaken for an
# error of our account.
_ACCOUNT = re.compile(r'"reason":\s*"API_KEY_INVALID"|"message":\s*"Your credit balance is too low')
_REFUSED = re.compile(r"(?i)content.?(filter|policy|management)|moderation|flagged|safety|harmful")
_TOO_LONG = re.compile(
    r"(?i)context.{0,20}(length|window|size)|too (long|large)|maximum.{0,30}tokens"
)

# Errors of clients, by name, so that httpx, its successor and SDKs need not be imported.
NETWORK_ERRORS = frozenset({"TransportError", "APIConnectionError"})
# by the names of their classes, like the errors of SDKs: shoal's are among them
TIMEOUTS = frozenset({"TimeoutException", "APITimeoutError", "StepTimeout"})


class ProviderError(Exception):
    """A provider gave no answer, or an incomplete one."""

    answer: Any = None
    """The text of an incomplete answer, if it is known: an `Answer`."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after = retry_after
        self.retryable = retryable


class Unacceptable(ValueError):
    """An answer is complete, but not acceptable."""


class Incomplete(Unacceptable):
    """An answer is cut off; another provider may still give a complete one."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error, whichever library raised it."""
    response = getattr(error, "response", None)
    for status in (
        getattr(error, "status", None),
        getattr(error, "status_code", None),
        getattr(response, "status_code", None),
    ):
        if isinstance(status, int):
            return status
    return None


def retry_after_of(error: BaseException) -> float | None:
    """Return the seconds that a provider asks to be left alone; None if it doesn't."""
    if isinstance(error, ProviderError):
        return error.retry_after
    headers = getattr(getattr(error, "response", None), "headers", None)
    return None if headers is None else parse_retry_after(headers)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """Read the headers that say when to retry: milliseconds, seconds, or a date."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return seconds
    try:
        date = parsedate_to_datetime(given)
    except ValueError:  # neither, so the header is ignored
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _number(text: str | None) -> float | None:
    if text is None or not re.fullmatch(r"\s*\d+(\.\d+)?\s*", text):
        return None
    return float(text)


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may succeed soon."""
    if isinstance(error, ProviderError):
        return error.retryable
    status = status_of(error)
    if status is not None:
        return status in RETRYABLE
    return isinstance(error, TimeoutError | ConnectionError | json.JSONDecodeError) or bool(
        _names(error) & (NETWORK_ERRORS | TIMEOUTS)
    )


def is_refusal(error: BaseException) -> bool:
    """Whether nothing was used: the request was not sent, did not arrive or was refused."""
    return status_of(error) is not None or kind_of(error) in {"key", "budget", "network"}


def kind_of(error: BaseException) -> str:
    """Return a word for counting failures of this kind."""
    if isinstance(error, ProviderError):
        return error.kind
    names = _names(error)
    if "BudgetExceeded" in names:
        return "budget"
    if "RetryLater" in names:
        return "overload"
    status = status_of(error)
    if status is not None:
        return "overload" if status in OVERLOAD else "http"
    if isinstance(error, TimeoutError) or names & TIMEOUTS:
        return "timeout"
    if isinstance(error, ConnectionError) or names & NETWORK_ERRORS:
        return "network"
    if isinstance(error, json.JSONDecodeError):
        return "stream"
    return type(error).__name__


def is_of_the_prompt(error: BaseException) -> bool:
    """Whether the prompt is to blame: refused, too long, or not supported by the provider.

    Then the same prompt will be refused again, but a different one may not be.
    """
    kind = kind_of(error)
    return kind == "refused" or (kind == "http" and status_of(error) in OF_THE_PROMPT)


def is_too_long(error: BaseException) -> bool:
    """Whether a provider has said that the prompt is too long."""
    return is_of_the_prompt(error) and _TOO_LONG.search(str(error)) is not None


def is_of_the_provider(error: BaseException) -> bool:
    """Whether the next client's prompt would probably fail as well, so that circuits open.

    This is so if a provider is down, slow or overloaded, doesn't know our key, or our account has
    no money. It is not so for failures caused by one client's prompt or schema, for our own budget,
    or for an empty or incomplete answer, because a prompt may ask for just that.
    """
    if isinstance(error, Unacceptable) or is_of_the_prompt(error):
        return False
    return kind_of(error) not in {"empty", "incomplete", "budget"}


def kind_of_refusal(status: int, text: str) -> Kind:
    """Return a word for a refusal, by its status and its body."""
    if status in OVERLOAD:
        return "overload"
    if status == 402 or (status == 400 and _ACCOUNT.search(text)):
        return "account"
    if status in (400, 403) and _REFUSED.search(text):
        return "refused"
    return "http"


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def stream_error(said: Any) -> ProviderError:
    """Make the failure that a provider reports in the middle of a stream."""
    code: object = cast("dict[str, Any]", said).get("code") if isinstance(said, dict) else None
    text = json.dumps(said)
    status = code if isinstance(code, int) else None
    is_busy = status in OVERLOAD or re.search(r"(?i)overload|rate.?limit|exhausted", text)
    if not is_busy and status in (None, 400, 403):
        message = f"an error in the stream: {message_of(said)}"
        if _REFUSED.search(text):
            return ProviderError("refused", message, status=status)
        if status is None and _TOO_LONG.search(text):
            return ProviderError("http", message, status=400)
    return ProviderError(
        "overload" if is_busy else "http" if status in OF_THE_PROMPT else "stream",
        f"an error in the stream: {message_of(said)}",
        status=status,
        retryable=bool(is_busy) or status is None or status in RETRYABLE,
    )


def message_of(said: Any) -> str:
    """Return the message of an error in JSON, in any of the usual shapes."""
    if isinstance(said, list) and said:  # Gemini puts its errors into a list
        return message_of(cast("list[Any]", said)[0])
    if isinstance(said, dict):
        inner = cast("dict[str, Any]", said)
        for name in ("error", "message"):
            if inner.get(name):
                return message_of(inner[name])
    text = said if isinstance(said, str) else json.dumps(said)
    return " ".join(text.split())[:300]
