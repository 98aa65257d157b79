"""What tokens cost, by `genai-prices`, whose data are in the package: nobody is asked for them."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

from examples.llm_race.exchange import Prompt, Usage, estimated_input
from examples.llm_race.failures import ProviderError
from examples.llm_race.providers import Provider

MILLION = 1_000_000


def cost_of(provider: Provider, usage: Usage) -> float | None:
    """The USD for `usage`; None if nobody knows the price of the model."""
    found = price_of(provider)
    if found is None:
        return None
    price_in, price_out = found
    return (usage.input_tokens * price_in + usage.output_tokens * price_out) / MILLION


def price_of(provider: Provider) -> tuple[float, float] | None:
    """The USD for a million tokens read, and written."""
    if provider.price_in is not None and provider.price_out is not None:
        return provider.price_in, provider.price_out
    if provider.kind == "ollama":  # runs on somebody's own machine
        return 0.0, 0.0
    url = "" if provider.endpoint is None else provider.endpoint.base_url
    return _known_price(provider.model, url)


@cache
def _known_price(model: str, url: str) -> tuple[float, float] | None:
    import genai_prices  # noqa: PLC0415 - takes half a second, and not everybody asks for a price

    if not model:
        return None
    # A million tokens of either at once would be charged as a long prompt, where there are such.
    sample = genai_prices.Usage(input_tokens=1000, output_tokens=1000)
    for address in (url, None):
        try:
            price = genai_prices.calc_price(sample, model, provider_api_url=address or None)
        except LookupError:  # another address than the maker's own, or a model of nobody's
            continue
        return float(price.input_price) * 1000, float(price.output_price) * 1000
    return None


class Purse:
    """What may be spent in all. Money is set aside before anything is asked, at its worst case."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.spent = 0.0
        self._set_aside = 0.0

    @contextmanager
    def paying(self, provider: Provider, prompt: Prompt) -> Generator["Bill"]:
        """Set aside what the exchange may cost at most, and pay what it has cost in the end.

        Raises:
            ProviderError: There isn't enough left, or nobody knows what it costs.
        """
        worst = Usage(input_tokens=estimated_input(prompt), output_tokens=prompt.max_tokens)
        cost = 0.0 if self.limit is None else cost_of(provider, worst)
        if cost is None:
            who = provider.model or provider.name
            message = f"nobody knows what {who} costs, so it isn't asked"
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
    """What an exchange has used, once that is known."""

    usage: Usage | None = None
