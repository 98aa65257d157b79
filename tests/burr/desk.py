"""A help desk, as an application of Burr's and action by action as ours.

A letter comes in. The desk asks back if it is unclear, drafts an answer and shows it until its
reader is content, translates it side by side, and says it word by word. It has each kind of action
that Burr has: plain and async functions, classes of two steps, a parallel one, and a stream.
"""

# Burr's own types are unknown in part.
# pyright: reportAssignmentType=false, reportMissingTypeArgument=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from typing import Any

from burr.core import Action, Application, ApplicationBuilder, State, action, expr, when
from burr.core.action import streaming_action
from burr.core.parallelism import MapStates as BurrMapStates

import shoal
from shoal import Done, Failed, MapStates, Result
from shoal.types import Act


def questions_about(letter: str) -> list[str]:
    """Stand in for a model."""
    return [] if "please" in letter else ["what do you want?"]


def drafted(letter: str, answers: list[str], drafts: list[str], feedback: str) -> str:
    """Stand in for a model."""
    number = f"draft {len(drafts) + 1} on {letter!r}"
    return " ".join([number, *answers, *([f"({feedback})"] if feedback else [])])


# -- Burr's ----------------------------------------------------------------------------------------


@action(reads=[], writes=["letter", "languages"])
def receive(state: State, letter: str, languages: list[str]) -> State:
    return state.update(letter=letter, languages=languages)


@action(reads=["letter"], writes=["questions"])
async def wonder(state: State) -> State:
    return state.update(questions=questions_about(state["letter"]))


class Clarify(Action):
    @property
    def reads(self) -> list[str]:
        return ["questions", "answers"]

    @property
    def writes(self) -> list[str]:
        return ["answers"]

    @property
    def inputs(self) -> list[str]:
        return ["replies"]

    def run(self, state: State, replies: list[str]) -> dict[str, Any]:
        return {"answers": [f"{a}: {b}" for a, b in zip(state["questions"], replies, strict=True)]}

    def update(self, result: dict[str, Any], state: State) -> State:
        return state.extend(**result)


@action(
    reads=["letter", "answers", "drafts", "feedback"], writes=["draft", "drafts"], tags=["shown"]
)
def draft(state: State) -> tuple[dict[str, Any], State]:
    text = drafted(state["letter"], state["answers"], state["drafts"], state["feedback"])
    return {"length": len(text)}, state.update(draft=text).append(drafts=text)


@action(reads=[], writes=["feedback", "rounds"])
def hear(state: State, feedback: str = "") -> State:
    return state.update(feedback=feedback).increment(rounds=1)


@action(reads=["draft", "language"], writes=["translated"])
def translate(state: State) -> State:
    return state.update(translated=f"{state['language']}: {state['draft']}")


class Translate(BurrMapStates):
    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        return translate

    def states(self, state: State, context: Any, inputs: Any) -> Iterator[State]:
        for language in state["languages"]:
            yield state.update(language=language)

    def reduce(self, state: State, states: Iterator[State]) -> State:
        return state.update(translations=[one["translated"] for one in states])

    @property
    def reads(self) -> list[str]:
        return ["draft", "languages"]

    @property
    def writes(self) -> list[str]:
        return ["translations"]


@streaming_action(reads=["draft"], writes=["sent"])
def send(state: State) -> Generator[Any]:
    words: list[str] = state["draft"].split()
    for word in words:
        yield {"word": word}, None
    yield {"words": len(words)}, state.update(sent=" ".join(words))


def burrs() -> Application[Any]:
    return (
        ApplicationBuilder()
        .with_actions(receive, wonder, draft, hear, send, clarify=Clarify(), translate=Translate())
        .with_transitions(
            ("receive", "wonder"),
            ("wonder", "clarify", expr("len(questions) > 0")),
            ("wonder", "draft"),
            ("clarify", "draft"),
            ("draft", "hear"),
            ("hear", "draft", ~when(feedback="")),
            ("hear", "translate", expr("len(languages) > 0")),
            (["hear", "translate"], "send"),
        )
        .with_state(answers=[], drafts=[], feedback="", rounds=0)
        .with_entrypoint("receive")
        .build()
    )


# -- ours ------------------------------------------------------------------------------------------


# With an input of the name of a field that it doesn't read, an action of ours has it renamed, or
# takes Burr's place last.
@shoal.action(reads=["letter"], writes=["questions"], name="wonder")
async def our_wonder(letter: str) -> list[str]:
    return questions_about(letter)


@shoal.action(reads=["questions", "answers"], writes=["answers"], name="clarify")
async def our_clarify(
    questions: list[str], answers: list[str], replies: list[str] | None = None
) -> list[str]:
    said = zip(questions, replies or [], strict=True)
    return [*answers, *(f"{question}: {reply}" for question, reply in said)]


@shoal.action(
    reads=["letter", "answers", "drafts", "feedback"], writes=["draft", "drafts"], name="draft"
)
async def our_draft(
    letter: str, answers: list[str], drafts: list[str], feedback: str
) -> Mapping[str, Any]:
    text = drafted(letter, answers, drafts, feedback)
    return {"draft": text, "drafts": [*drafts, text]}


@shoal.action(reads=["draft", "language"], writes=["translated"])
async def our_translate(draft: str, language: str) -> str:
    return f"{language}: {draft}"


class OurTranslate(MapStates):
    name = "translate"

    def action(self, state: shoal.State, inputs: Any) -> Act:
        return our_translate

    def states(self, state: shoal.State, inputs: Any) -> Iterator[Mapping[str, Any]]:
        for language in state["languages"]:
            yield state.update(language=language)

    def reduce(self, state: shoal.State, outcome: Done | Failed) -> shoal.State:
        assert isinstance(outcome, Done)
        return state.append(translations=outcome.value)

    @property
    def reads(self) -> list[str]:
        return ["draft", "languages"]

    @property
    def writes(self) -> list[str]:
        return ["translations"]


@shoal.action(reads=["draft"], writes=["sent"], name="send")
async def our_send(draft: str) -> AsyncIterator[Any]:
    for word in draft.split():
        yield {"word": word}
    yield Result(draft)


OURS: Mapping[str, Act] = {
    "wonder": our_wonder,
    "clarify": our_clarify,
    "draft": our_draft,
    "translate": OurTranslate(),
    "send": our_send,
}
"""What has moved, in the order in which it did."""
