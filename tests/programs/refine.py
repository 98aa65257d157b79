"""A draft that is refined until its critics are content, or patience runs out.

Each turn, all critics read the draft at once; what they said last time is gone by then::

        ┌──────────────────── otherwise ───────────────────┐
        ▼                                                  │
    write ──► critique (a child for each critic) ──► weigh ┴─ good, or the last turn ─► END

The same application is run in three ways: to its end, step by step, and watched by its events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shoal import END, Application, Done, Graph, action, fan_out, when
from shoal.events import ChildEnded, Set, StateUpdated, Update


class Model(Protocol):
    async def write(self, topic: str, remarks: Mapping[str, str]) -> str: ...
    async def criticise(self, text: str, critic: str) -> tuple[float, str]: ...


@dataclass
class Remark:
    score: float
    text: str


@dataclass
class Essay:
    topic: str
    critics: list[str]
    goal: float = 0.9
    turns: int = 5
    turn: int = 0
    text: str = ""
    remarks: dict[str, Remark] = field(default_factory=dict[str, Remark])
    score: float = 0.0


@action(reads=["topic", "remarks", "turn"], writes=["text", "turn"])
async def write(
    topic: str, remarks: Mapping[str, Remark], turn: int, model: Model
) -> dict[str, object]:
    advice = {critic: remark.text for critic, remark in remarks.items()}
    return {"text": await model.write(topic, advice), "turn": turn + 1}


@action(reads=["text", "critic"], writes=["remark"])
async def criticise(text: str, critic: str, model: Model) -> Remark:
    return Remark(*await model.criticise(text, critic))


@action(reads=["remarks"], writes=["score"], executor="loop")
def weigh(remarks: Mapping[str, Remark]) -> float:
    return min(remark.score for remark in remarks.values())


def is_good(score: float, goal: float) -> bool:
    return score >= goal


def is_last(turn: int, turns: int) -> bool:
    return turn >= turns


critique = fan_out(
    criticise, over="critics", item="critic", key=str, into="remarks", name="critique"
)
refine = Graph(
    (write, critique),
    (critique, weigh),
    (weigh, END, when(is_good) | when(is_last)),
    (weigh, write),
    entry=write,
    name="refine",
)
app = Application(refine, state=Essay)


async def main(essay: Essay, model: Model) -> Essay:
    """Refine it to the end."""
    result = await app.run(essay, inputs={"model": model})
    return result.state.data


async def step_through(essay: Essay, model: Model) -> Sequence[tuple[str, float]]:
    """Take one step at a time; return each one's name, and the score after it."""
    seen: list[tuple[str, float]] = []
    async with app.open(essay, inputs={"model": model}, stepwise=True) as run:
        while (step := await run.step()) is not None:
            seen.append((step, run.state.data.score))
    return seen


async def watch(essay: Essay, model: Model) -> Sequence[str]:
    """Return what a display would show: a line for each remark, and one for each turn."""
    lines: list[str] = []
    async with app.open(essay, inputs={"model": model}) as run:
        async for event in run:
            match event:
                case ChildEnded(outcome=Done(key=critic, value=Remark(text=text))):
                    lines.append(f"{critic}: {text}")
                case StateUpdated(update=Update(operations=[Set("score", score)])):
                    lines.append(f"score: {score}")
                case _:
                    pass
    return lines
