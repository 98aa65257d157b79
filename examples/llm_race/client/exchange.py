"""Prompts and answers of any model: values, without I/O."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """An earlier message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt for a model."""

    text: str
    system: str = ""
    max_tokens: int = 1024
    may_be_cut: bool = False
    """Whether an answer that ends at `max_tokens` counts as complete; true if the prompt's author
    has set that limit."""
    schema: Mapping[str, Any] | None = None
    """The JSON Schema of the answer; passed on to providers that support it."""
    id: str = ""
    """The id of the prompt in a batch."""
    earlier: Sequence[Turn] = ()
    """The earlier messages, if `text` continues a conversation."""

    @property
    def turns(self) -> Sequence[Turn]:
        """The whole conversation, ending with `text`."""
        return (*self.earlier, Turn(role="user", text=self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of an answer: text, or the provider's report about it, or both."""

    text: str = ""
    finish: str | None = None
    """Why the answer is complete, in the provider's word; None while it is not."""
    input_tokens: int | None = None
    """Tokens read, as reported."""
    output_tokens: int | None = None
    """Tokens written so far, as reported."""
    headers: Mapping[str, str] | None = field(default=None, compare=False, repr=False)
    """The headers of the response, with its first chunk: they say what is left of rates."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The first item of each attempt: the limits are passed, and the request will be sent now."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class PutOff:
    """The last item of an attempt that the provider refused with a time to come back."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The usage of an exchange so far, whether or not it has an answer."""

    input_tokens: int = 0
    output_tokens: int = 0
    is_reported: bool = True
    """Whether the provider has reported it; else it is an estimate."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A complete answer."""

    text: str
    provider: str
    finish: str
    usage: Usage
    schema: Mapping[str, Any] | None = None
    """The provider that was asked."""
    lacks: str = ""
    """Why it is incomplete; empty if it is complete, by its provider's word."""


FINISHES: Mapping[str, frozenset[str]] = {
    "length": frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded"}),
    "content_filter": frozenset(
        {"content_filter", "safety", "refusal", "recitation", "prohibited_content", "blocklist"}
        | {"spii", "image_safety", "language"}
    ),
    "error": frozenset({"error", "insufficient_system_resource", "malformed_function_call"}),
}
"""Providers' words for unnatural ends, as OpenAI's words."""


def finish_reason(said: str) -> str:
    """Return OpenAI's word for the provider's reason to end."""
    word = said.lower()
    return next((reason for reason, words in FINISHES.items() if word in words), "stop")


def what_lacks(prompt: Prompt, finish: str) -> str:
    """Describe why an answer with this end is incomplete; empty if it is complete."""
    match finish_reason(finish):
        case "length" if not prompt.may_be_cut:
            return f"it was cut off after {prompt.max_tokens} tokens or less ({finish!r})"
        case "content_filter":
            return f"it was cut off by a filter ({finish!r})"
        case "error":
            return f"it was cut off by a failure of the provider ({finish!r})"
        case _:
            return ""


CHARS_PER_TOKEN = 4.0
"""Characters per token, if no count is reported; about right for English."""


def estimated_tokens(text: str) -> int:
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def estimated_input(prompt: Prompt) -> int:
    return sum(estimated_tokens(text) for text in (prompt.system, *(t.text for t in prompt.turns)))


def is_content(item: object) -> bool:
    """Whether an item of a stream is text; keep-alives, bookkeeping and blanks are not."""
    return isinstance(item, Chunk) and item.text.strip() != ""


@dataclass(slots=True)
class Transcript:
    """The state of one exchange."""

    prompt: Prompt
    parts: list[str] = field(default_factory=list[str])
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    has_said: bool = False
    """Whether any text has arrived."""

    def add(self, chunk: Chunk) -> None:
        self.has_said = True
        if chunk.text:
            self.parts.append(chunk.text)
        self.finish = chunk.finish or self.finish
        if chunk.input_tokens is not None:
            # A later report may omit the tokens that came from a cache.
            self.input_tokens = max(self.input_tokens or 0, chunk.input_tokens)
        if chunk.output_tokens is not None:
            self.output_tokens = chunk.output_tokens

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def usage(self) -> Usage:
        """The tokens used so far.

        Reports count only once the answer is complete, because until then a provider has reported
        the tokens that it has read, but not those that it has written. Zero tokens read or written
        is no report, because some servers say so of every answer.
        """
        if self.finish is not None and self.input_tokens and self.output_tokens:
            return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        written = max(self.output_tokens or 0, estimated_tokens(self.text))
        read = self.input_tokens or estimated_input(self.prompt)
        return Usage(input_tokens=read, output_tokens=written, is_reported=False)
