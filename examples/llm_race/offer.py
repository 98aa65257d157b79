"""What the service offers: races, by the name of the model that stands for each.

They share contestants, so limits and pauses count for all of them together; and one purse.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import httpx

from examples.llm_race.contestant import Contestants
from examples.llm_race.exchange import Prompt
from examples.llm_race.openai_api import Problem, stopping
from examples.llm_race.prices import Purse
from examples.llm_race.providers import Provider
from examples.llm_race.racing import Race, Report, new_client, scoreboard
from examples.llm_race.strategies import STRATEGIES, Rules, Strategy
from shoal import Draining, Event, RunCancelled, Runtime

DEFAULT = "race"
"""The model that races by the service's own strategy; `race:hedge` and so on name one."""

Watch = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the service does, and for whom."""

    providers: Sequence[Provider]
    rules: Rules = field(default_factory=Rules)
    strategy: Strategy | None = None
    """Of the model `race`; by default `first-token` where it streams, else `first`."""
    defaults: Prompt = field(default_factory=lambda: Prompt(text=""))
    """What requests don't say."""
    key_env: str | None = None
    """The variable of the environment that holds the key clients have to show; None: no key."""
    purse: Purse = field(default_factory=Purse)
    client: Callable[[], httpx.AsyncClient] = new_client


class Races:
    """The races that are offered, by the name of the model that stands for each.

    Raises:
        ValueError: The default one can't be held with these providers.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.client: httpx.AsyncClient | None = None
        self.board = scoreboard(offer.providers, offer.rules)
        contestants = Contestants()

        def race(name: Strategy | None, *, streams: bool) -> Race:
            usual = "first-token" if streams and offer.rules.accept is None else "first"
            rules = replace(offer.rules, strategy=name or usual, streams=streams)
            if streams:  # what was sent can't be taken back
                rules = replace(rules, on_broken_stream="fail")
            return Race(offer.providers, rules, board=self.board, contestants=contestants)

        self.whole = {DEFAULT: race(offer.strategy, streams=False)}
        self.streamed = {DEFAULT: race(offer.strategy, streams=True)}
        for how in STRATEGIES:
            with suppress(ValueError):  # by these rules nobody can race so; it isn't offered
                whole, streamed = race(how, streams=False), race(how, streams=True)
                self.whole[f"{DEFAULT}:{how}"], self.streamed[f"{DEFAULT}:{how}"] = whole, streamed

    def find(self, model: str, *, streams: bool) -> Race:
        """The race of a name.

        Raises:
            Problem: There is none.
        """
        found = (self.streamed if streams else self.whole).get(model)
        if found is None:
            message = f"there is no model {model!r}; there are {', '.join(self.whole)}"
            raise Problem(404, message, code="model_not_found", param="model")
        return found

    async def hold(
        self, race: Race, name: str, prompt: Prompt, runtime: Runtime, watch: Watch | None = None
    ) -> Report:
        """Hold a race, under a name of its own.

        Raises:
            Problem: The service stops.
        """
        assert self.client is not None, "the lifespan has begun"
        try:
            return await race.hold(
                prompt, runtime, self.client, self.offer.purse, name, watch=watch
            )
        except (Draining, RunCancelled):
            raise stopping() from None
        finally:
            self.board.take(name, None)  # whatever has become of it: nobody asks any more
