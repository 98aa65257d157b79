"""Prices of tokens, by `genai-prices`, whose package contains the data, so no request is sent."""

from functools import cache

from examples.llm_race.client.exchange import Usage
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
