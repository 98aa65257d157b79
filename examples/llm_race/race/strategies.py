"""The strategies, written with shoal: one act for each.

Each act takes the field `prompt` and writes `answer`; `judge` and `all` also write `answers`, by
provider. If no answer is acceptable, they raise `NobodyAccepted`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from examples.llm_race.client.exchange import Answer, Prompt, is_content
from examples.llm_race.client.failures import Unacceptable, is_of_the_provider
from examples.llm_race.client.prices import price_of
from examples.llm_race.client.providers import Provider
from examples.llm_race.race.acceptance import Accept, whole
from examples.llm_race.race.contestant import Contestants, Terms
from shoal import (
    Breaker,
    Each,
    Graph,
    Hedge,
    NobodyAccepted,
    Stagger,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)
from shoal.errors import Rejected
from shoal.types import Act, Until

Strategy = Literal[
    "first", "first-token", "hedge", "fallback", "cheapest", "quorum", "judge", "all"
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
WAITS_FOR_ALL = frozenset({"quorum", "judge", "all"})  # so it can't stream to its reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of a race."""

    strategy: Strategy = "first"
    timeout: float = 60.0
    """Seconds for the whole race."""
    accept: Accept | None = None
    streams: bool = False
    """Whether the first token also decides if providers are asked one after the other."""
    on_broken_stream: Literal["fail", "restart"] = "fail"
    """The reaction if an answer breaks off whose first token has decided."""
    hedge: Stagger = field(default_factory=lambda: Hedge(percentile=95, budget=0.1, initial=1.0))
    """The delay before the next provider is asked, for `hedge` and `cheapest`."""
    k: int = 2
    """The number of answers that have to agree, for `quorum`."""
    normalize: Literal["text", "json"] = "text"
    """How answers are compared."""
    judge: Provider | None = None
    """The provider that chooses, for `judge`."""
    failures: int = 3
    """The number of consecutive failures after which a provider is skipped..."""
    cool_down: float = 30.0
    """...and the seconds for which it is skipped."""
    terms: Terms = field(default_factory=Terms)


def strategy(
    providers: Sequence[Provider], rules: Rules, contestants: Contestants | None = None
) -> Act:
    """Make the act in which `providers` race by `rules`; `contestants` may be shared with others.

    Raises:
        ValueError: The rules are impossible with these providers, or contradict each other.
    """
    check(providers, rules)
    for one in providers:
        price_of(one)  # now, because the first one reads files, and no race should wait for that
    decides_by_token = is_decided_by_token(rules)
    terms = rules.terms
    if decides_by_token and rules.on_broken_stream == "fail":
        terms = replace(terms, may_restart=False)
    elif decides_by_token:  # the token has decided, but a leader that is cut off can be replaced
        terms = replace(terms, only_whole=True)
    if rules.strategy == "fallback" and len(providers) > 1:
        # the next provider can replace it
        terms = replace(terms, patience=min(terms.patience, 2.0))
    contestants = contestants or Contestants()
    by_name = {one.name: contestants.act(one, terms) for one in order(providers, rules.strategy)}
    rivals = list(by_name.values())
    until: Until = first(accept=whole(rules.accept))
    if decides_by_token:
        until = first_item(when=is_content, on_break=rules.on_broken_stream)

    def racing(stagger: Stagger | None = None, until: Until = until) -> Act:
        return race(
            *rivals,
            into="answer",
            until=until,
            stagger=stagger,
            timeout=rules.timeout,
            each=Each(breaker=breaker(rules)),
            name="race",
        )

    match rules.strategy:
        case "first" | "first-token":
            return racing()
        case "hedge" | "cheapest":
            return racing(stagger=rules.hedge)
        case "fallback":
            return racing(stagger=math.inf)
        case "quorum":
            return racing(until=quorum(rules.k, by=agreement(rules)))
        case "all":
            return Graph.chain(asking_all(rivals, rules), keep_acceptable(rules), name="all")
        case "judge":
            assert rules.judge is not None
            # The judge may also be a contestant, with one set of limits.
            umpire = by_name.get(rules.judge.name) or contestants.act(rules.judge, terms)
            judge = Graph.chain(compose, umpire, read_verdict, name="judge")
            judging = race(
                judge, into="answer", take="verdict", timeout=rules.timeout, name="judging"
            )
            return Graph.chain(
                asking_all(rivals, rules), keep_acceptable(rules), judging, name="judged"
            )


def check(providers: Sequence[Provider], rules: Rules) -> None:
    if not providers:
        raise ValueError("a race needs at least one provider")
    if rules.strategy == "quorum" and rules.k > len(providers):
        raise ValueError(f"{len(providers)} providers can't give {rules.k} answers that agree")
    if rules.strategy == "judge" and rules.judge is None:
        raise ValueError("the strategy judge needs a provider that judges: --judge NAME")
    if rules.strategy == "first-token" and rules.accept is not None:
        raise ValueError(
            "first-token decides before there is an answer to be accepted or not: "
            "use --strategy first, or accept every answer"
        )


def is_decided_by_token(rules: Rules) -> bool:
    if rules.strategy == "first-token":
        return True
    return rules.streams and rules.accept is None and rules.strategy not in WAITS_FOR_ALL


def order(providers: Sequence[Provider], strategy: Strategy) -> list[Provider]:
    """Return the providers in the order in which they are asked, if not all at once."""
    if strategy != "cheapest":
        return sorted(providers, key=lambda provider: -provider.weight)

    def price(provider: Provider) -> float:
        found = price_of(provider)
        return math.inf if found is None else sum(found)  # unknown prices last

    return sorted(providers, key=price)


def breaker(rules: Rules) -> Breaker:
    """Make the breaker that skips failing providers; each provider has its own circuit.

    All races of a runtime share the circuits, so only failures count that would also happen to
    other prompts: one client's prompts never exclude a provider for other clients.
    """
    return Breaker(failures=rules.failures, cool_down=rules.cool_down, on=is_of_the_provider)


def agreement(rules: Rules) -> Callable[[Answer], object]:
    """Return the value by which answers are compared."""
    accept = whole(rules.accept)

    def essence(answer: Answer) -> object:
        accept(answer)
        if rules.normalize == "text":
            return " ".join(answer.text.casefold().split()).rstrip(".!")
        try:
            return json.dumps(json.loads(answer.text), sort_keys=True)
        except ValueError as error:
            raise Unacceptable(f"no JSON: {error}") from None

    return essence


# -- all, and a judge --------------------------------------------------------------------------


def asking_all(rivals: Sequence[Act], rules: Rules) -> Act:
    """Ask all providers; one that takes too long has failed, and the other answers still count."""
    return fan_out(
        rivals,
        into="answers",
        take="answer",
        errors_into="errors",
        on_error="collect",
        each=Each(timeout=rules.timeout, breaker=breaker(rules)),
        name="race",
    )


def keep_acceptable(rules: Rules) -> Act:
    """Make the step that keeps the acceptable answers, and one of them as `answer`."""

    @action(reads=["answers"], writes=["answers", "answer"], name="accept", executor="loop")
    def keep(answers: Mapping[str, Answer]) -> dict[str, Any]:
        kept: dict[str, Answer] = {}
        cut: dict[str, Answer] = {}
        refused: list[Exception] = []
        for name, answer in answers.items():
            try:
                if rules.accept is None or rules.accept(answer):
                    (cut if answer.lacks else kept)[name] = answer
            except Unacceptable as error:
                rejected = Rejected(f"the answer of {name} is not acceptable", answer)
                rejected.__cause__ = error
                refused.append(rejected)
        kept = kept or cut  # better than no answer, because all providers have answered
        if not kept:
            raise NobodyAccepted(
                "no answer is acceptable", refused or [Unacceptable("there was none")]
            )
        return {"answers": kept, "answer": next(iter(kept.values()))}

    return keep


BALLOT = """{question}

Above is a question. Below are {count} answers to it, each under its number. Which one is the best?
Reply with its number alone.

{answers}"""


@action(reads=["prompt", "answers"], writes=["prompt"], executor="loop")
def compose(prompt: Prompt, answers: Mapping[str, Answer]) -> Prompt:
    """Ask for the best answer. Names are omitted, because a judge may recognise itself."""
    told = "\n\n".join(f"# {n}\n{answer.text}" for n, answer in enumerate(answers.values(), 1))
    text = BALLOT.format(question=prompt.text, count=len(answers), answers=told)
    return Prompt(text=text, earlier=prompt.earlier, max_tokens=16, may_be_cut=True)


@action(reads=["answer", "answers"], writes=["verdict"], executor="loop")
def read_verdict(answer: Answer, answers: Mapping[str, Answer]) -> Answer:
    """Return the answer that the judge's reply names."""
    digits = "".join(c if c.isdigit() else " " for c in answer.text).split()
    number = int(digits[0]) if digits else 0
    if not 1 <= number <= len(answers):
        raise Unacceptable(f"the judge names none of {len(answers)} answers: {answer.text!r}")
    return list(answers.values())[number - 1]
