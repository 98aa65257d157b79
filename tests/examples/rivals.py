"""Models whose answers, times and failures are scripted: any async function can race."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import httpx

from examples.llm_race import Chunk, Prompt, Provider, Report, Rules, Scoreboard, Terms
from examples.llm_race.race.racing import Race, scoreboard
from shoal import Budget, Runtime


@dataclass
class Rival:
    """One model: asked again, it does what comes next in `fails`, and in the end it answers."""

    name: str
    text: str = "a fine answer"
    ttft: float = 1.0
    pace: float = 0.1
    fails: list[Exception | None] = field(default_factory=list[Exception | None])
    """What each try raises before it says anything; None: nothing."""
    breaks: list[int] = field(default_factory=list[int])
    """After how many words each try ends, with no end of the answer."""
    finish: str | None = "stop"
    reported: tuple[int, int] | None = (10, 20)
    limits: dict[str, Any] = field(default_factory=dict[str, Any])
    asked_at: list[float] = field(default_factory=list[float])
    prompts: list[str] = field(default_factory=list[str])
    closed: int = 0

    def provider(self) -> Provider:
        given: dict[str, Any] = {"price_in": 1.0, "price_out": 10.0, **self.limits}
        return Provider.of(self.stream, name=self.name, model=f"{self.name}-1", **given)

    async def stream(self, prompt: str) -> AsyncIterator[Chunk]:
        self.asked_at.append(anyio.current_time())
        self.prompts.append(prompt)
        try:
            await anyio.sleep(self.ttft)
            failure = self.fails.pop(0) if self.fails else None
            if failure is not None:
                raise failure
            yield Chunk(input_tokens=None if self.reported is None else self.reported[0])
            words = self.text.split()
            last = self.breaks.pop(0) if self.breaks else None
            for n, word in enumerate(words):
                if n == last:
                    return
                yield Chunk(text=word if n + 1 == len(words) else f"{word} ")
                await anyio.sleep(self.pace)
            yield Chunk(
                finish=self.finish,
                output_tokens=None if self.reported is None else self.reported[1],
            )
        finally:
            self.closed += 1


NO_CLIENT = httpx.AsyncClient()  # for who doesn't need one


def terms(**given: Any) -> Terms:
    return Terms(**given)


async def hold(
    rivals: Sequence[Rival | Provider],
    rules: Rules | None = None,
    *,
    prompt: str = "why?",
    max_tokens: int = 100,
    board: Scoreboard | None = None,
    budget: Budget | None = None,
    **given: Any,
) -> Report:
    """Hold one race."""
    providers = [one.provider() if isinstance(one, Rival) else one for one in rivals]
    rules = replace(rules or Rules(), **given)
    race = Race(providers, rules, board=board or scoreboard(providers, rules), budget=budget)
    async with Runtime(seed=1, limits=budget) as runtime:
        asked = Prompt(text=prompt, max_tokens=max_tokens)
        return await race.hold(asked, runtime, NO_CLIENT)


def lanes(report: Report) -> dict[str, str]:
    """How each ended."""
    return {lane.name: lane.status for lane in report.lanes}
