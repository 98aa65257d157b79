"""A contest of models: all answer the same question, a judge picks, then variants are compared.

Nobody races: every model has its say, and one of them may fail. The contestants are one action
bound to several models, and an expert that takes two calls where the others take one. In the second
stage, the question's variants are put to all of them, each to each::

    question ──► [small, large, expert] ──► judge ──► rephrase ──► variants x contestants ──► table
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, final

from shoal import Action, Application, ErrorInfo, Graph, Hook, Limits, Tolerate, action, fan_out


class Client(Protocol):
    """What talks to models."""

    async def complete(self, model: str, prompt: str) -> str: ...


@dataclass
class Contest:
    question: str
    answers: dict[str, str] = field(default_factory=dict[str, str])
    dropped: dict[str, ErrorInfo] = field(default_factory=dict[str, ErrorInfo])
    winner: str | None = None
    variants: list[str] = field(default_factory=list[str])
    table: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    gaps: dict[str, dict[str, ErrorInfo]] = field(default_factory=dict[str, dict[str, ErrorInfo]])


@action(reads=["question"], writes=["answer"])
async def ask(question: str, model: str, client: Client) -> str:
    return await client.complete(model, question)


@final
class Expert(Action):
    """Has one model draft, and another one check the draft."""

    reads = ("question",)
    writes = ("answer",)

    def __init__(self, *, drafts: str, checks: str) -> None:
        self.drafts = drafts
        self.checks = checks

    async def run(self, question: str, client: Client) -> str:
        draft = await client.complete(self.drafts, question)
        return await client.complete(self.checks, f"check: {draft}")


contestants = [
    ask.bind(name="small", model="tiny-1"),
    ask.bind(name="large", model="huge-9"),
    Expert(drafts="tiny-1", checks="huge-9").bind(name="expert"),
]

contest = fan_out(
    contestants, into="answers", take="answer", errors_into="dropped", on_error=Tolerate(count=1)
)


@action(reads=["question", "answers"], writes=["winner"])
async def judge(question: str, answers: Mapping[str, str], client: Client) -> str:
    ballot = "; ".join(f"{name}: {text}" for name, text in answers.items())
    return await client.complete("judge", f"{question} {ballot}")


@action(reads=["question"], writes=["variants"], executor="loop")
def rephrase(question: str, politely: Sequence[str] = ("Please, {}", "In short, {}")) -> list[str]:
    return [question, *(form.format(question) for form in politely)]


compare = fan_out(
    contestants,
    over="variants",
    item="question",
    key=str,
    into="table",
    take="answer",
    errors_into="gaps",
    on_error="collect",
    limits=Limits(6),
)

stages = Graph.chain(contest, judge, rephrase, compare, name="contest")


async def main(question: str, client: Client, *, hooks: Sequence[Hook] = ()) -> Contest:
    app = Application(stages, state=Contest, hooks=hooks)
    result = await app.run(Contest(question), inputs={"client": client})
    return result.state.data
