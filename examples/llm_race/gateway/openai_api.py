"""The messages between the service and its clients: OpenAI's chat completions.

This module has only their shapes and meaning; `service` sends them.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, Field

from examples.llm_race.client.exchange import Answer, Prompt, Turn, finish_reason
from examples.llm_race.client.failures import is_of_the_prompt, is_too_long, kind_of, retry_after_of
from examples.llm_race.race.acceptance import conforming
from examples.llm_race.race.racing import Report, leaves_of, why

COOL_DOWN = 30.0
"""The seconds of Retry-After if all providers are skipped."""


# -- requests ------------------------------------------------------------------------------------


class Part(BaseModel):
    """A part of a message; only texts can be passed on."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """The format of the answer. With `text`, the service's own schema applies."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_(self) -> Mapping[str, Any] | None:
        """The JSON Schema of the format; None if it has none.

        Raises:
            Problem: The format needs a schema, and has none.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        if self.json_schema is None:
            raise Problem(400, "a json_schema is missing", param="response_format.json_schema")
        try:
            conforming(self.json_schema.schema_)
        except ValueError as error:
            where = "response_format.json_schema.schema"
            raise Problem(400, f"{where}: {error}", param=where) from None
        return self.json_schema.schema_


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`.

    Sampling parameters (`temperature`, `seed`, ...) are ignored. Fields that would change the
    answer are refused: None is their only value.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    n: Literal[1] | None = None
    stop: None = None
    tools: None = None
    functions: None = None
    audio: None = None
    logprobs: Literal[False] | None = None

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def prompt(self, defaults: Prompt) -> Prompt:
        """Make the prompt of the race; missing fields are taken from `defaults`.

        Raises:
            Problem: The conversation doesn't end with a user's text, or its schema is invalid.
        """
        said = [one for one in self.messages if one.role in ("user", "assistant")]
        if not said or said[-1].role != "user" or not said[-1].text.strip():
            raise Problem(400, "the last message has to be a user's, with text", param="messages")
        earlier = [
            Turn(role="user" if one.role == "user" else "assistant", text=one.text)
            for one in said[:-1]
        ]
        orders = [one.text for one in self.messages if one.role in ("system", "developer")]
        schema = None if self.response_format is None else self.response_format.schema_
        limit = self.max_completion_tokens or self.max_tokens
        return replace(
            defaults,
            text=said[-1].text,
            earlier=earlier,
            system="\n\n".join(orders) or defaults.system,
            max_tokens=limit or defaults.max_tokens,
            may_be_cut=limit is not None,
            schema=defaults.schema if schema is None else schema,
        )


# -- answers -------------------------------------------------------------------------------------


def completion(name: str, model: str, report: Report) -> dict[str, Any]:
    """A complete answer; with `race:all`, one choice for each acceptable one."""
    assert report.answer is not None
    choices = [
        {
            "index": n,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": None,
            "finish_reason": finish_reason(answer.finish),
        }
        for n, answer in enumerate(counting(report))
    ]
    return {
        **head(name, model, "chat.completion"),
        "choices": choices,
        "usage": usage(counting(report)),
        "race": {**report.totals(), "lanes": [lane.row() for lane in report.lanes]},
    }


def chunk(
    name: str, model: str, delta: Mapping[str, str], finish: str | None = None, index: int = 0
) -> dict[str, Any]:
    """A part of a streamed answer."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**head(name, model, "chat.completion.chunk"), "choices": [choice]}


def usage_chunk(name: str, model: str, report: Report) -> dict[str, Any]:
    """The last part of a streamed answer, for clients that requested it."""
    totals = {**report.totals(), "lanes": [lane.row() for lane in report.lanes]}
    shared = head(name, model, "chat.completion.chunk")
    return {**shared, "choices": [], "usage": usage(counting(report)), "race": totals}


def head(name: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def counting(report: Report) -> Sequence[Answer]:
    """Return the answers that count: all of them, with `race:all`."""
    if report.strategy == "all":
        return [*report.answers.values()]
    return [] if report.answer is None else [report.answer]


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Return the usage of these answers; `race` has the losers', too."""
    read = sum(answer.usage.input_tokens for answer in answers)
    written = sum(answer.usage.output_tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


# -- failures ------------------------------------------------------------------------------------

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}


class Problem(Exception):
    """A request that can't be fulfilled, with the error for its client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": TYPES.get(
                    self.status, "server_error" if self.status >= 500 else TYPES[400]
                ),
                "param": self.param,
                "code": self.code,
            }
        }


def stopping() -> Problem:
    """The error while the service is stopping."""
    message = "the service stops; ask again in a moment"
    return Problem(503, message, code="draining", headers={"Retry-After": "1"})


def lost(error: Exception) -> Problem:
    """The error of a race without a winner, from the contestants' failures."""
    message = f"no acceptable answer: {why(error)}"
    leaves = [*leaves_of(error)]
    kinds = {kind_of(leaf) for leaf in leaves}
    of_the_prompt = [leaf for leaf in leaves if is_of_the_prompt(leaf)]
    others = {kind_of(leaf) for leaf in leaves if not is_of_the_prompt(leaf)}
    # so that clients don't retry: it would be refused again
    if of_the_prompt and others <= {"budget"}:
        code = "context_length_exceeded" if any(map(is_too_long, of_the_prompt)) else "refused"
        return Problem(400, message, code=code, param="messages")
    if kinds == {"budget"}:  # a retry doesn't help, and clients that know this code don't retry
        headers = {"x-should-retry": "false"}
        return Problem(429, message, code="insufficient_quota", headers=headers)
    if kinds <= {"overload", "budget"}:
        waits = [wait for leaf in leaves if (wait := retry_after_of(leaf)) is not None]
        return Problem(
            429, message, code="rate_limit_exceeded", headers=retry_after(min(waits, default=1.0))
        )
    if kinds == {"TooFewChildren"}:  # all providers are skipped because of recent failures
        return Problem(503, message, code="passed_over", headers=retry_after(COOL_DOWN))
    if kinds == {"timeout"}:
        return Problem(504, message, code="timeout")
    return Problem(502, message, code="race_lost")


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
