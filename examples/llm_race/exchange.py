"""What goes to a model and what comes back, whoever runs it: values, and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was said before in a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a model is asked."""

    text: str
    system: str = ""
    max_tokens: int = 1024
    may_be_cut: bool = False
    """Whether an answer that ends at `max_tokens` counts as whole: so it does for those who have
    set that limit themselves."""
    schema: Mapping[str, Any] | None = None
    """The JSON Schema that the answer is to have; passed on to providers that know what to do."""
    id: str = ""
    """Which prompt of a batch it is."""
    earlier: Sequence[Turn] = ()
    """What was said before `text`, where it goes on with a conversation."""

    @property
    def turns(self) -> Sequence[Turn]:
        """The whole conversation, `text` being its last word."""
        return (*self.earlier, Turn(role="user", text=self.text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of an answer: some text, or what the provider says about it, or both."""

    text: str = ""
    finish: str | None = None
    """Why the answer is complete, in the provider's own word; None while it is not."""
    input_tokens: int | None = None
    """Tokens read, as reported."""
    output_tokens: int | None = None
    """Tokens written until now, as reported."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The first item of each attempt: the request is about to be sent, and no limit holds it."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class PutOff:
    """The last item of a try that the provider refused, saying when to come back."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an exchange has used: as far as it went, whether or not it came to an answer."""

    input_tokens: int = 0
    output_tokens: int = 0
    is_reported: bool = True
    """Whether the provider has said so; else it is an estimate."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer."""

    text: str
    provider: str
    finish: str
    usage: Usage
    schema: Mapping[str, Any] | None = None
    """The one that it was asked to have."""
    lacks: str = ""
    """Why it is not whole; empty if it is, as far as its provider says."""


FINISHES: Mapping[str, frozenset[str]] = {
    "length": frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded"}),
    "content_filter": frozenset(
        {"content_filter", "safety", "refusal", "recitation", "prohibited_content", "blocklist"}
        | {"spii", "image_safety", "language"}
    ),
    "error": frozenset({"error", "insufficient_system_resource", "malformed_function_call"}),
}
"""Providers' words for ends that are none of an answer's own, by OpenAI's."""


def finish_reason(said: str) -> str:
    """OpenAI's word for why an answer ended, of the provider's own."""
    word = said.lower()
    return next((reason for reason, words in FINISHES.items() if word in words), "stop")


def what_lacks(prompt: Prompt, finish: str) -> str:
    """Say why an answer that ended so is not whole; nothing if it is."""
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
"""What is reckoned with where nobody reports tokens; about right for English."""


def estimated_tokens(text: str) -> int:
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def estimated_input(prompt: Prompt) -> int:
    return sum(estimated_tokens(text) for text in (prompt.system, *(t.text for t in prompt.turns)))


def is_content(item: object) -> bool:
    """Tell whether an item of a stream is text; keep-alives, bookkeeping and blanks are not."""
    return isinstance(item, Chunk) and item.text.strip() != ""


@dataclass(slots=True)
class Transcript:
    """What has come of one exchange until now."""

    prompt: Prompt
    parts: list[str] = field(default_factory=list[str])
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    is_heard: bool = False
    """Whether anything has come."""

    def add(self, chunk: Chunk) -> None:
        self.is_heard = True
        if chunk.text:
            self.parts.append(chunk.text)
        self.finish = chunk.finish or self.finish
        if chunk.input_tokens is not None:
            # A later report may leave out the tokens that came from a cache.
            self.input_tokens = max(self.input_tokens or 0, chunk.input_tokens)
        if chunk.output_tokens is not None:
            self.output_tokens = chunk.output_tokens

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def usage(self) -> Usage:
        """The tokens used so far.

        What was reported on the way counts only once the answer is complete: until then a provider
        has said how many tokens it has read, but not how many it has written. Nothing read or
        nothing written is no report: some servers say so of every answer.
        """
        if self.finish is not None and self.input_tokens and self.output_tokens:
            return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        written = max(self.output_tokens or 0, estimated_tokens(self.text))
        read = self.input_tokens or estimated_input(self.prompt)
        return Usage(input_tokens=read, output_tokens=written, is_reported=False)
