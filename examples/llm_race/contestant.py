"""One provider, asked one prompt: the action that races are made of.

It emits each part of the answer as it comes, so whoever watches the run sees it, and a race may be
decided by it. Content alone counts as a sign of life. Requests and tokens are limited where the
action stands, for all races of a runtime together.
"""

import inspect
import math
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx

from examples.llm_race.exchange import (
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
from examples.llm_race.failures import ProviderError, is_refusal, is_retryable, retry_after_of
from examples.llm_race.prices import Purse
from examples.llm_race.providers import Provider, Stream
from shoal import Context, Limits, Rate, Retry, RetryLater, State, action, shielded
from shoal.errors import HookFailed
from shoal.types import Act

USAGE_TIMEOUT = 1.0  # seconds that a whole answer is waited on for what it has used


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How much a contestant is put up with."""

    ttft_timeout: float = 10.0
    """Seconds until the first text."""
    stall_timeout: float = 15.0
    """Seconds from some text to the next."""
    patience: float = math.inf
    """Seconds for which a provider may have us wait, in all, before it counts as failed."""
    attempts: int = 2
    """Tries in all, where trying again may help and the provider doesn't say when."""
    may_restart: bool = True
    """Whether an answer that breaks off after its first text is asked for again."""
    only_whole: bool = False
    """Whether an answer that is cut off counts as failed, for nobody else judges it."""


class Contestants:
    """Those who race, each defined once.

    So races by several strategies have one set of limits, and pauses, in a runtime.
    """

    def __init__(self) -> None:
        self._asking: dict[tuple[str, int], Act] = {}

    def act(self, provider: Provider, terms: Terms) -> Act:
        """The action that asks `provider`, on these terms."""
        key = (provider.name, terms.attempts)
        if key not in self._asking:
            self._asking[key] = asking(provider, terms.attempts)
        return self._asking[key].bind(terms=terms)


def contestant(provider: Provider, terms: Terms) -> Act:
    """The action that asks `provider`, as the only one that does; see `Contestants`."""
    return Contestants().act(provider, terms)


def asking(provider: Provider, attempts: int) -> Act:
    """The action that asks `provider`, on `terms` that are yet to be bound.

    It fails with what the provider failed with; see `failures`. When it is cancelled its request is
    too: the connection is closed, and what was used by then is charged and paid.
    """
    rest = Rest()

    @action(
        reads=["prompt"],
        writes=["answer"],
        name=provider.name,
        limits=limits_of(provider),
        retry=Retry(attempts, on=is_worth_another_try, initial=0.25, cap=4.0),
    )
    async def ask(
        prompt: Prompt, client: httpx.AsyncClient, purse: Purse, terms: Terms, context: Context
    ) -> Answer:
        transcript = Transcript(prompt)
        try:
            with purse.paying(provider, prompt) as bill:
                rest.check()
                await context.emit(Asked(prompt))
                try:
                    await follow(provider, client, terms, transcript, context)
                except Exception as error:
                    if is_refusal(error) and not transcript.is_heard:
                        bill.usage = Usage()
                    raise
                finally:  # also when it is cancelled: what a loser has used is not free
                    bill.usage = bill.usage or transcript.usage
                    context.charge(bill.usage.tokens)
        except HookFailed:  # no failure of the provider's: whoever watches could not
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
    """How long a provider has asked to be left alone: by everybody, also by who doesn't wait.

    It goes on, however often the provider asks for it, until that has given an answer.
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
        """Seconds from the first time that it asked for it."""
        return self.until - self.since

    def check(self) -> None:
        """Refuse to ask while it lasts.

        Raises:
            ProviderError: As the provider itself would.
        """
        left = self.until - anyio.current_time()
        if left > 0:
            message = f"wants to be left alone for {left:.1f} s more"
            raise ProviderError("overload", message, retry_after=left, retryable=True)


def is_worth_another_try(error: Exception) -> bool:
    """Tell whether to ask again in a moment; who said when is not asked before."""
    return is_retryable(error) and retry_after_of(error) is None


def limits_of(provider: Provider) -> Limits:
    """What the provider can take: at once, requests a minute and tokens a minute.

    They have a key, though only one: so `RetryLater` pauses the provider for everybody.
    """

    def who(_: State) -> str:
        return provider.name

    def tokens(state: State) -> float:
        prompt: Prompt = state["prompt"]
        assert provider.tpm is not None
        return min(provider.tpm, estimated_input(prompt) + prompt.max_tokens)

    limits = Limits(provider.max_concurrency, by=who)
    if provider.rpm is not None:
        limits &= Limits(rate=Rate(provider.rpm, per=60, burst=max(1, provider.rpm / 60)), by=who)
    if provider.tpm is not None:
        limits &= Limits(rate=Rate(provider.tpm, per=60), by=who, cost=tokens)
    return limits


async def follow(
    provider: Provider,
    client: httpx.AsyncClient,
    terms: Terms,
    transcript: Transcript,
    context: Context,
) -> None:
    """Write down the answer of `provider` as it comes, and emit each part of it.

    Raises:
        ProviderError: It was silent for too long, ended before it was whole, or said nothing.
        Exception: What asking it raised.
    """
    says_when_whole = False
    with anyio.move_on_after(terms.ttft_timeout) as silence:
        async with opened(provider.ask(transcript.prompt, client)) as stream:
            async for given in stream:
                says_when_whole |= isinstance(given, Chunk)
                chunk = given if isinstance(given, Chunk) else Chunk(text=given)
                transcript.add(chunk)
                await context.emit(chunk)
                now = anyio.current_time()  # after that: whoever reads it may have taken a while
                if transcript.finish is not None:
                    silence.deadline = min(silence.deadline, now + USAGE_TIMEOUT)
                elif chunk.text:  # nothing else is a sign of life
                    silence.deadline = now + terms.stall_timeout
    if silence.cancelled_caught and transcript.finish is None:
        what = f"no more text for {terms.stall_timeout:g} s"
        if not transcript.text:
            what = f"no text within {terms.ttft_timeout:g} s"
        raise ProviderError("timeout", what, retryable=True)
    if (says_when_whole and transcript.finish is None) or not transcript.is_heard:
        message = "the stream ended before the answer was whole"
        raise ProviderError("stream", message, retryable=True)
    if not transcript.text.strip():
        message = f"no text at all; it ended with {transcript.finish!r}"
        is_filtered = finish_reason(transcript.finish or "") == "content_filter"
        raise ProviderError("refused" if is_filtered else "empty", message)
    if not says_when_whole:
        transcript.finish = "end"


@asynccontextmanager
async def opened(given: Stream | Awaitable[Stream]) -> AsyncGenerator[Stream]:
    """The stream that a provider gave or promised; closed on every way out."""
    stream = await given if inspect.isawaitable(given) else given
    try:
        yield stream
    finally:
        # Generators have one name for it, the streams of SDKs another.
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        if close is not None:
            async with shielded():
                await close()
