"""A search: two engines race for the answer, which is then written down."""

from __future__ import annotations

import os
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from shoal import Application, Graph, MemoryStore, Retry, action, race
from shoal.testing import SimulatedRun

STATE = {"question": "where?"}


class Engine:
    """Answers questions, some time after they are asked, over connections."""

    def __init__(self) -> None:
        self.written: dict[str, str] = {}
        self.open: list[int] = []

    async def ask(self, name: str, seconds: float, *, gives_back: bool) -> str:
        connection = os.open(os.devnull, os.O_RDONLY)
        try:
            await anyio.sleep(seconds)
            answer = f"here, says {name}"
        except BaseException:
            if gives_back:
                os.close(connection)
            else:
                self.open.append(connection)
            raise
        os.close(connection)
        return answer

    def close(self) -> None:
        """Close what was left open: for the test, not for the application."""
        while self.open:
            os.close(self.open.pop())


ENGINES: list[Engine] = []


def INPUTS() -> dict[str, Any]:  # noqa: N802 # as in the other modules
    ENGINES.append(Engine())
    return {"engine": ENGINES[-1]}


def check(run: SimulatedRun) -> None:
    """What is written down is the answer, and nothing else."""
    written = set(run.inputs["engine"].written.values())
    assert written == {run.state["answer"]}, f"written: {sorted(written)}"


def application(bug: str = "") -> Application[Any]:
    """Return the search; ``bug`` is "", "loser writes", "swallowed cancellation" or "leak"."""

    def engine(name: str, seconds: float) -> Any:
        @action(
            name=name,
            reads=["question"],
            writes=["answer"],
            timeout=30,
            retry=Retry(5, on=(ConnectionError, TimeoutError)),
        )
        async def ask(question: str, engine: Engine) -> str:
            try:
                answer = await engine.ask(name, seconds, gives_back=bug != "leak")
            except BaseException:
                if bug == "swallowed cancellation":
                    return "no answer"
                raise
            if bug == "loser writes":
                engine.written[name] = answer
                await checkpoint()
            return answer

        return ask

    @action(reads=["answer"])
    async def write(answer: str, engine: Engine) -> None:
        engine.written["answer"] = answer

    fastest = race(engine("quick", 1), engine("thorough", 3), into="answer")
    return Application(Graph.chain(fastest, write, name="search"), store=MemoryStore())
