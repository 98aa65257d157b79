"""The races of the service, by the model name of each.

They share contestants, so limits and pauses apply to all of them together, and they share one
budget. For a prompt with a schema, a separate race is held, which is never decided before there is
an answer.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import httpx

from examples.llm_race.client.exchange import Prompt
from examples.llm_race.client.providers import Provider
from examples.llm_race.gateway.openai_api import Problem, stopping
from examples.llm_race.race.acceptance import as_asked, conforming
from examples.llm_race.race.contestant import Contestants
from examples.llm_race.race.racing import Race, Report, new_client, scoreboard
from examples.llm_race.race.strategies import STRATEGIES, Rules, Strategy
from shoal import Budget, Draining, RunCancelled, Runtime
from shoal.events import Event

DEFAULT = "race"
"""The model that races by the service's default strategy; `race:hedge` and so on name one."""

Watch = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The configuration of the service."""

    providers: Sequence[Provider]
    rules: Rules = field(default_factory=Rules)
    strategy: Strategy | None = None
    """The strategy of the model `race`; by default `first-token` for streams, else `first`."""
    defaults: Prompt = field(default_factory=lambda: Prompt(text=""))
    """Defaults for fields that requests omit."""
    key_env: str | None = None
    """The environment variable with the key that clients must send; None: no key is needed."""
    budget: Budget | None = None
    """What all requests may cost together; see `spending.budget_of`."""
    client: Callable[[], httpx.AsyncClient] = new_client


class Races:
    """Make the races, by model name.

    Raises:
        ValueError: The default race is impossible with these providers, or its schema is invalid.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.client: httpx.AsyncClient | None = None
        judged = replace(offer.rules, accept=as_asked(offer.rules.accept))
        self.board = scoreboard(offer.providers, judged)
        contestants = Contestants(offer.budget)

        def race(name: Strategy | None, rules: Rules, *, streams: bool) -> Race:
            usual = "first-token" if streams and rules.accept is None else "first"
            rules = replace(rules, strategy=name or usual, streams=streams)
            if streams:  # text that was sent can't be taken back
                rules = replace(rules, on_broken_stream="fail")
            return Race(offer.providers, rules, board=self.board, contestants=contestants)

        def races(rules: Rules, *, streams: bool) -> dict[str, Race]:
            found: dict[str, Race] = {}
            models: dict[str, Strategy | None] = {DEFAULT: offer.strategy}
            models |= {f"{DEFAULT}:{how}": how for how in STRATEGIES}
            for model, how in models.items():
                # these rules don't allow this strategy, so it isn't offered
                with suppress(ValueError):
                    found[model] = race(how, rules, streams=streams)
            return found

        self.whole = races(offer.rules, streams=False)
        self.streamed = races(offer.rules, streams=True)
        # Streams use it, too: the answer is sent once it is complete.
        self.judged = races(judged, streams=False)
        schema = offer.defaults.schema
        if schema is not None:
            conforming(schema)
        self.models = list(self.whole if schema is None else self.judged)
        """The names of the races without a schema."""
        if DEFAULT not in self.models:  # raises the reason
            race(offer.strategy, offer.rules if schema is None else judged, streams=False)

    def find(self, model: str, prompt: Prompt, *, streams: bool) -> Race:
        """Return the race of a name, for a prompt.

        Raises:
            Problem: No race has that name.
        """
        if prompt.schema is not None:
            found = self.judged.get(model)
        else:
            found = (self.streamed if streams else self.whole).get(model)
        if found is None and model in self.models:
            message = f"{model!r} decides before there is an answer that could have a schema"
            raise Problem(400, message, param="response_format")
        if found is None:
            message = f"there is no model {model!r}; there are {', '.join(self.models)}"
            raise Problem(404, message, code="model_not_found", param="model")
        return found

    async def hold(
        self, race: Race, name: str, prompt: Prompt, runtime: Runtime, watch: Watch | None = None
    ) -> Report:
        """Hold a race, with a new id.

        Raises:
            Problem: The service stops.
        """
        assert self.client is not None, "the lifespan has begun"
        try:
            return await race.hold(prompt, runtime, self.client, name, watch=watch)
        except (Draining, RunCancelled):
            raise stopping() from None
        finally:
            self.board.take(name, None)  # with any outcome, because it isn't needed again
