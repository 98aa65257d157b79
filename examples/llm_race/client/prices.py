"""Prices of tokens, by `genai-prices`, whose package contains the data, so no request is sent."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

from examples.llm_race.client.exchange import Prompt, Usage, estimated_input
from examples.llm_race.client.failures import ProviderError
from examples.llm_race.client.providers import Provider

MILLION = 1_000_000


def cost_of(provider: Provider, usage: Usage) -> float | None:
    """Return the USD for `usage`; None if the price of the model is unknown."""
    found = price_of(provider)
    if found is None:
        return None
    price_in, price_out = found
    return (usage.input_tokens * price_in + usage.output_tokens * price_out) / MILLION


def price_of(provider: Provider) -> tuple[float, float] | None:
    """Return the USD per million tokens read and written."""
    if provider.price_in is not None and provider.price_out is not None:
        return provider.price_in, provider.price_out
    if provider.kind == "ollama":  # runs on a local machine
        return 0.0, 0.0
    url = "" if provider.endpoint is None else provider.endpoint.base_url
    return _known_price(provider.model, url)


@cache
def _known_price(model: str, url: str) -> tuple[float, float] | None:
    import genai_prices  # noqa: PLC0415 - takes half a second, and is not always needed

    if not model:
        return None
    # Millions of tokens in one prompt could be charged as a long prompt, which costs more.
    sample = genai_prices.Usage(input_tokens=1000, output_tokens=1000)
    for address in (url, None):
        try:
            price = genai_prices.calc_price(sample, model, provider_api_url=address or None)
        except LookupError:  # an address other than the maker's, or an unknown model
            continue
        return float(price.input_price) * 1000, float(price.output_price) * 1000
    return None


class Purse:
    """The budget for all requests. The worst case is reserved before a request is sent."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.spent = 0.0
        self._set_aside = 0.0

    @contextmanager
    def paying(self, provider: Provider, prompt: Prompt) -> Generator["Bill"]:
        """Reserve the highest possible cost of the exchange, and pay its real cost at the end.

        Raises:
            ProviderError: The budget doesn't suffice, or the price is unknown.
        """
        worst = Usage(input_tokens=estimated_input(prompt), output_tokens=prompt.max_tokens)
        cost = 0.0 if self.limit is None else cost_of(provider, worst)
        if cost is None:
            model = provider.model or provider.name
            message = f"the price of {model} is unknown, so it isn't asked"
            raise ProviderError("budget", message)
        if self.limit is not None and self.spent + self._set_aside + cost > self.limit:
            left = self.limit - self.spent - self._set_aside
            message = f"may cost ${cost:.6f}, and ${left:.6f} is left of ${self.limit:g}"
            raise ProviderError("budget", message)
        self._set_aside += cost
        bill = Bill()
        try:
            yield bill
        finally:
            self._set_aside -= cost
            if bill.usage is not None and self.limit is not None:
                self.spent += cost_of(provider, bill.usage) or 0.0


class Bill:
    """The usage of an exchange, once it is known."""

    usage: Usage | None = None
