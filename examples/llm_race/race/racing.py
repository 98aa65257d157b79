"""One race, from a prompt to a report."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import anyio
import httpx

from examples.llm_race.client.exchange import Answer, Prompt
from examples.llm_race.client.failures import Unacceptable
from examples.llm_race.client.providers import Provider
from examples.llm_race.race.contestant import Contestants
from examples.llm_race.race.scoreboard import Lane, Scoreboard, out_of_time, rounded
from examples.llm_race.race.strategies import Rules, strategy
from shoal import Application, Budget, Hook, NobodyAccepted, Runtime, StepTimeout
from shoal.errors import Rejected
from shoal.events import Event
from shoal.stores import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a race."""

    strategy: str
    answer: Answer | None = None
    """The answer that counts; None if none does."""
    answers: Mapping[str, Answer] = field(default_factory=dict[str, Answer])
    """All acceptable answers, by provider, if all were asked."""
    lanes: Sequence[Lane] = ()
    """The actions and usage of each provider."""
    seconds: float
    error: Exception | None = None
    """Why no answer counts: `NobodyAccepted`, or `StepTimeout`."""

    @property
    def winner(self) -> str | None:
        """The winner; None if no answer counts, or all do."""
        return None if self.answer is None or self.strategy == "all" else self.answer.provider

    @property
    def is_recalled(self) -> bool:
        """Whether an earlier process had the answer: then the losers' actions are unknown."""
        return self.answer is not None and self.answer.provider not in {n.name for n in self.lanes}

    @property
    def cost(self) -> float | None:
        """USD of all lanes, including losers; None if a price or a lane is unknown."""
        if self.is_recalled:
            return None
        costs = [lane.cost for lane in self.lanes]
        return None if None in costs else sum(cost or 0.0 for cost in costs)

    @property
    def ttft(self) -> float | None:
        """Seconds until the first text of the winner."""
        won = (lane.ttft for lane in self.lanes if lane.status == "won")
        return next(won, None)

    def totals(self) -> dict[str, Any]:
        """The result as data, without its lanes."""
        used = [lane.usage for lane in self.lanes]
        is_reported = all(usage.is_reported for usage in used)
        recalled = self.is_recalled
        return {
            "strategy": self.strategy,
            "winner": self.winner,
            "finish": None if self.answer is None else self.answer.finish,
            "seconds": None if recalled else rounded(self.seconds),
            "ttft": rounded(self.ttft),
            "tokens": None if recalled else sum(usage.tokens for usage in used),
            "cost_usd": None if self.cost is None else round(self.cost, 9),
            "usage": None if recalled else "reported" if is_reported else "estimated",
            "error": None if self.error is None else why(self.error),
        }


async def ask(
    prompt: Prompt | str,
    providers: Sequence[Provider],
    rules: Rules | None = None,
    *,
    client: httpx.AsyncClient | None = None,
    budget: Budget | None = None,
    board: Scoreboard | None = None,
    hooks: Iterable[Hook] = (),
    store: Store | None = None,
    run_id: str | None = None,
) -> Report:
    """Let `providers` race for the answer to `prompt`.

    Losers are cancelled, and so are their requests. If the call itself is cancelled, all
    contestants are, and `board` has their usage so far.

    Args:
        prompt: The prompt.
        providers: The contestants.
        rules: The rules of the race; by default, the first complete answer counts.
        client: Sends the requests; by default, a client is opened for this race.
        budget: What requests may cost; by default, there is none. See `spending.budget_of`.
        board: The hook that follows the race; by default, a new one.
        hooks: Other hooks for the race.
        store: The store of the race; with `run_id`, a saved answer is returned again.
        run_id: The race's id in the store.

    Raises:
        ValueError: The rules are impossible with these providers.
    """
    race = Race(providers, rules or Rules(), budget=budget, board=board, hooks=hooks, store=store)
    asked = Prompt(text=prompt) if isinstance(prompt, str) else prompt
    async with Runtime() as runtime:
        if client is not None:
            return await race.hold(asked, runtime, client, run_id)
        async with new_client() as own:
            return await race.hold(asked, runtime, own, run_id)


def new_client() -> httpx.AsyncClient:
    """Make a client without limits of its own, because the contestants have their own timeouts.

    Providers on this machine are reached without a proxy, even if the environment names one.
    """
    return httpx.AsyncClient(
        mounts={"all://127.0.0.1": None, "all://localhost": None},
        timeout=httpx.Timeout(None, connect=10.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
    )


class Race:
    """A race, defined once and held for many prompts.

    The runtime keeps its knowledge, latencies and failures of providers, from one race to the next.
    """

    def __init__(
        self,
        providers: Sequence[Provider],
        rules: Rules,
        *,
        board: Scoreboard | None = None,
        hooks: Iterable[Hook] = (),
        store: Store | None = None,
        contestants: Contestants | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Define a race; `contestants`, shared with other races, have their own budget."""
        self.rules = rules
        self.board = board or scoreboard(providers, rules)
        self.app = Application(
            strategy(providers, rules, contestants or Contestants(budget)),
            name="llm_race",
            hooks=[self.board, *hooks],
            store=store,
        )

    async def hold(
        self,
        prompt: Prompt,
        runtime: Runtime,
        client: httpx.AsyncClient,
        run_id: str | None = None,
        *,
        watch: Callable[[Event], Awaitable[None]] | None = None,
    ) -> Report:
        """Hold the race once; `watch` receives every event, and a slow one slows the race."""
        began = anyio.current_time()
        answer: Answer | None = None
        answers: Mapping[str, Answer] = {}
        error: Exception | None = None
        run = self.app.open(
            {"prompt": prompt}, id=run_id, inputs={"client": client}, runtime=runtime
        )
        async with run:
            try:
                if watch is not None:
                    async for event in run:
                        await watch(event)
                state = (await run.result()).state
                answer, answers = state["answer"], state.get("answers", {})
            except NobodyAccepted as failure:
                error = failure
            except StepTimeout as failure:
                error = out_of_time(self.rules.timeout)
                error.__cause__ = failure
        if error is not None:
            answer = cut_off(self.rules, self.board.lanes(run.run_id), error)
            error = self._explained(run.run_id, error) if answer is None else None
        report = Report(
            strategy=self.rules.strategy,
            answer=answer,
            answers=dict(answers),
            seconds=anyio.current_time() - began,
            error=error,
        )
        return replace(report, lanes=self.board.take(run.run_id, report.winner))

    def _explained(self, run_id: str, error: Exception) -> Exception:
        """Add the contestants' failures, if a later step failed because of them."""
        if self.rules.strategy not in ("all", "judge") or not isinstance(error, NobodyAccepted):
            return error
        failed = [lane.error for lane in self.board.lanes(run_id) if lane.error is not None]
        refused = [one for one in leaves_of(error) if isinstance(one, Rejected)]
        errors = [*refused, *(one for one in failed if isinstance(one, Exception))]
        return NobodyAccepted(str(error.message), errors) if errors else error


def cut_off(rules: Rules, lanes: Sequence[Lane], error: Exception) -> Answer | None:
    """Return the best incomplete answer of a lost race, because no complete one will arrive.

    It is the longest one. A quorum has none, because parts of answers don't agree.
    """
    if rules.strategy == "quorum":
        return None
    found: list[Any] = [lane.answer for lane in lanes if lane.name != "judge"]
    found += [getattr(one, "value", getattr(one, "answer", None)) for one in leaves_of(error)]
    cut = [one for one in found if isinstance(one, Answer) and one.lacks and fits(rules, one)]
    return max(cut, key=lambda answer: len(answer.text), default=None)


def fits(rules: Rules, answer: Answer) -> bool:
    """Whether an answer is acceptable, apart from being incomplete."""
    try:
        return rules.accept is None or rules.accept(answer)
    except Unacceptable:
        return False


def scoreboard(providers: Sequence[Provider], rules: Rules) -> Scoreboard:
    """Make a board for races of these providers by these rules."""
    return Scoreboard(providers, judge=rules.judge, accept=rules.accept, timeout=rules.timeout)


def leaves_of(error: Exception) -> Sequence[Exception]:
    """Yield the errors in a group, including nested groups."""
    if not isinstance(error, ExceptionGroup):
        return [error]
    group = cast("ExceptionGroup[Exception]", error)
    return [leaf for one in group.exceptions for leaf in leaves_of(one)]


def why(error: BaseException) -> str:
    """Return the message of an error; for a group, those of its errors."""
    if isinstance(error, BaseExceptionGroup):
        said = [why(inner) for inner in error.exceptions]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportUnknownArgumentType] - of any kind
        return "; ".join(dict.fromkeys(said))
    if isinstance(error, Rejected) and isinstance(error.value, Answer):
        return f"{error.value.provider}: {error.__cause__ or 'not accepted'}"
    return str(error)
