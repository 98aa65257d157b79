"""What requests may cost: one budget, with a worst case for each provider."""

from collections.abc import Callable

from examples.llm_race.client.exchange import Prompt, Usage, estimated_input
from examples.llm_race.client.prices import cost_of
from examples.llm_race.client.providers import Provider
from shoal import Budget, State


def budget_of(limit: float | None) -> Budget | None:
    """Make the budget of all requests, in USD; None: there is none.

    Other actions cost nothing. Each provider has a worst case of its own; see `worst_case`.
    """
    return None if limit is None else Budget(limit, "USD", worst=0, name="money")


def worst_case(provider: Provider) -> Callable[[State], float]:
    """Return the function of the most that a request may cost; its price is known."""

    def worst(state: State) -> float:
        prompt: Prompt = state["prompt"]
        usage = Usage(input_tokens=estimated_input(prompt), output_tokens=prompt.max_tokens)
        return cost_of(provider, usage) or 0.0

    return worst
