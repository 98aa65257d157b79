"""The action of a race: one provider answers one prompt.

The action emits each part of the answer as it arrives, so followers of the run see it, and a race
may be decided by it. Only content counts as a sign of life. The limits of requests and tokens are
on the action, for all races of a runtime together.
"""

import inspect
import math
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import httpx

from examples.llm_race.client.exchange import (
    Answer,
    Asked,
    Chunk,
    Prompt,
    PutOff,
    Transcript,
    Usage,
    estimated_input,
    finish_reason,
    what_lacks,
)
from examples.llm_race.client.failures import (
    ProviderError,
    is_refusal,
    is_retryable,
    retry_after_of,
)
from examples.llm_race.client.prices import cost_of, price_of
from examples.llm_race.client.providers import Provider, Stream
from examples.llm_race.race.spending import worst_case
from shoal import Budget, Context, Limits, Rate, Retry, RetryLater, State, action, shielded
from shoal.errors import HookFailed
from shoal.types import Act

USAGE_TIMEOUT = 1.0  # seconds to wait for the usage report after a complete answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The timeouts and retries of a contestant."""

    ttft_timeout: float = 10.0
    """Seconds until the first text."""
    stall_timeout: float = 15.0
    """Seconds between two texts."""
    patience: float = math.inf
    """Seconds in total that a provider may ask us to wait, before it counts as failed."""
    attempts: int = 2
    """Attempts in total, if a retry may help and the provider doesn't say when to come back."""
    may_restart: bool = True
    """Whether an answer that breaks off after its first text is requested again."""
    only_whole: bool = False
    """Whether an answer that is cut off counts as failed, because no other code judges it."""


class Contestants:
    """The actions for all providers, each defined once.

    So races with several strategies share one set of limits and pauses in a runtime.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        """Define none yet; `budget` is what all of them may spend together."""
        self.budget = budget
        self._asking: dict[tuple[str, int], Act] = {}

    def act(self, provider: Provider, terms: Terms) -> Act:
        """Return the action that asks `provider`, with the given terms."""
        key = (provider.name, terms.attempts)
        if key not in self._asking:
            self._asking[key] = asking(provider, terms.attempts, self.budget)
        return self._asking[key].bind(terms=terms)


def contestant(provider: Provider, terms: Terms) -> Act:
    """Return the action that asks `provider`, defined only once; see `Contestants`."""
    return Contestants().act(provider, terms)


def asking(provider: Provider, attempts: int, budget: Budget | None = None) -> Act:
    """Make the action that asks `provider`; its `terms` are bound later.

    It raises the provider's failure; see `failures`. If it is cancelled, so is its request: the
    connection is closed, and the usage so far is charged and paid.
    """
    rest = Rest()
    is_priced = budget is None or price_of(provider) is not None
    limits = limits_of(provider)
    if budget is not None and is_priced:
        # Set aside before a request is sent, in the moment in which all other limits let it start.
        limits &= budget.with_worst(worst_case(provider))

    @action(
        reads=["prompt"],
        writes=["answer"],
        name=provider.name,
        limits=limits,
        retry=Retry(attempts, on=is_worth_another_try, initial=0.25, cap=4.0),
    )
    async def ask(
        prompt: Prompt, client: httpx.AsyncClient, terms: Terms, context: Context
    ) -> Answer:
        transcript, is_asked = Transcript(prompt), False
        try:
            try:
                if not is_priced:
                    model = provider.model or provider.name
                    message = f"the price of {model} is unknown, so it isn't asked"
                    raise ProviderError("budget", message)
                rest.check()
                await context.emit(Asked(prompt))
                is_asked = True
                await follow(provider, client, terms, transcript, context)
            except Exception as error:
                is_asked = is_asked and (transcript.has_said or not is_refusal(error))
                raise
            finally:  # also if it is cancelled, because the usage of a loser is not free
                usage = transcript.usage if is_asked else Usage()
                context.charge(usage.tokens, unit="tokens")
                if budget is not None:
                    context.charge(cost_of(provider, usage) or 0.0, unit="USD")
        except HookFailed:  # a guarding hook's failure is no failure of the provider
            raise
        except Exception as error:
            if transcript.text and not terms.may_restart:
                message = f"broke off after {len(transcript.text)} characters: {error}"
                raise ProviderError("stream", message) from None
            wait = retry_after_of(error) if is_retryable(error) else None
            if wait is None:
                raise
            rest.begin(wait)
            left = context.deadline - anyio.current_time()
            if rest.length > terms.patience or wait >= left:
                raise
            await context.emit(PutOff(str(error), wait))
            raise RetryLater(wait) from None
        rest.end()
        finish = transcript.finish or ""
        answer = Answer(
            text=transcript.text,
            provider=provider.name,
            finish=finish,
            usage=transcript.usage,
            schema=prompt.schema,
            lacks=what_lacks(prompt, finish),
        )
        if terms.only_whole and answer.lacks:
            cut = ProviderError("incomplete", answer.lacks)
            cut.answer = answer
            raise cut
        return answer

    return ask


class Rest:
    """How long a provider has asked to be left alone; this applies to all races.

    The pause lasts, however often the provider asks for it, until the provider has answered.
    """

    def __init__(self) -> None:
        self.end()

    def begin(self, seconds: float) -> None:
        now = anyio.current_time()
        self.since = min(self.since, now)
        self.until = max(self.until, now + seconds)

    def end(self) -> None:
        self.since, self.until = math.inf, -math.inf

    @property
    def length(self) -> float:
        """The seconds since the provider first asked for it."""
        return self.until - self.since

    def check(self) -> None:
        """Fail while the pause lasts.

        Raises:
            ProviderError: The same error as the provider's.
        """
        left = self.until - anyio.current_time()
        if left > 0:
            message = f"wants to be left alone for {left:.1f} s more"
            raise ProviderError("overload", message, retry_after=left, retryable=True)


def is_worth_another_try(error: Exception) -> bool:
    """Whether to retry soon; if the provider said when, the pause applies instead."""
    return is_retryable(error) and retry_after_of(error) is None


def limits_of(provider: Provider) -> Limits:
    """Make the provider's limits: concurrency, requests per minute and tokens per minute.

    They have a key, though only one, so that `RetryLater` pauses the provider for all races.
    """

    def provider_key(_: State) -> str:
        return provider.name

    def tokens(state: State) -> float:
        prompt: Prompt = state["prompt"]
        assert provider.tpm is not None
        return min(provider.tpm, estimated_input(prompt) + prompt.max_tokens)

    limits = Limits(provider.max_concurrency, by=provider_key)
    if provider.rpm is not None:
        limits &= Limits(
            rate=Rate(provider.rpm, per=60, burst=max(1, provider.rpm / 60)), by=provider_key
        )
    if provider.tpm is not None:
        limits &= Limits(
            rate=Rate(provider.tpm, per=60), by=provider_key, cost=tokens, unit="tokens"
        )
    return limits


async def follow(
    provider: Provider,
    client: httpx.AsyncClient,
    terms: Terms,
    transcript: Transcript,
    context: Context,
) -> None:
    """Collect the answer of `provider` as it arrives, and emit each part of it.

    Raises:
        ProviderError: It was silent for too long, ended before it was complete, or was empty.
        Exception: Any exception of the request.
    """
    says_when_whole = False
    with anyio.move_on_after(terms.ttft_timeout) as silence:
        async with opened(provider.ask(transcript.prompt, client)) as stream:
            async for given in stream:
                says_when_whole |= isinstance(given, Chunk)
                chunk = given if isinstance(given, Chunk) else Chunk(text=given)
                if chunk.headers is not None:
                    context.learn(chunk.headers)  # what is left of the provider's rates
                    chunk = replace(chunk, headers=None)
                transcript.add(chunk)
                await context.emit(chunk)
                now = anyio.current_time()  # after the emit, because a reader may have been slow
                if transcript.finish is not None:
                    silence.deadline = min(silence.deadline, now + USAGE_TIMEOUT)
                elif chunk.text:  # only text is a sign of life
                    silence.deadline = now + terms.stall_timeout
    if silence.cancelled_caught and transcript.finish is None:
        what = f"no more text for {terms.stall_timeout:g} s"
        if not transcript.text:
            what = f"no text within {terms.ttft_timeout:g} s"
        raise ProviderError("timeout", what, retryable=True)
    if (says_when_whole and transcript.finish is None) or not transcript.has_said:
        message = "the stream ended before the answer was complete"
        raise ProviderError("stream", message, retryable=True)
    if not transcript.text.strip():
        message = f"no text at all; it ended with {transcript.finish!r}"
        is_filtered = finish_reason(transcript.finish or "") == "content_filter"
        raise ProviderError("refused" if is_filtered else "empty", message)
    if not says_when_whole:
        transcript.finish = "end"


@asynccontextmanager
async def opened(given: Stream | Awaitable[Stream]) -> AsyncGenerator[Stream]:
    """Return the provider's stream; it is closed on every way out."""
    stream = await given if inspect.isawaitable(given) else given
    try:
        yield stream
    finally:
        # Generators and the streams of SDKs have different names for closing.
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if close is not None:
            async with shielded():
                await close()
