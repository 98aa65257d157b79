"""What each provider did in a race: a hook, for displays and reports.

A lane is one provider's part in one race. Lanes are correct at any moment, also for a race that is
cancelled or fails; losers have lanes, too, with their usage.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio

from examples.llm_race.client.exchange import Answer, Asked, Chunk, PutOff, Transcript, Usage
from examples.llm_race.client.failures import Unacceptable, is_refusal
from examples.llm_race.client.prices import cost_of
from examples.llm_race.client.providers import Provider
from examples.llm_race.race.acceptance import Accept, whole
from shoal import Cancelled, Done, Failed, Hook, Outcome, RunPath, Skipped, StepTimeout
from shoal.events import AttemptEnded, ChildEnded, ChildStarted, Item, StepStarted, Waiting

Status = Literal[
    "not started",
    "waiting",
    "asked",
    "streaming",
    "won",
    "answered",
    "rejected",
    "cancelled",
    "failed",
    "skipped",
]


@dataclass(slots=True)
class Lane:
    """One provider's part in a race. Seconds are counted from the start of the race."""

    name: str
    provider: Provider
    status: Status = "not started"
    detail: str = ""
    started: float | None = None
    ttft: float | None = None
    ended: float | None = None
    attempts: int = 0
    transcript: Transcript | None = None
    """The exchange of the current or last attempt."""
    answer: Answer | None = None
    """The provider's answer, whether it counts or not."""
    error: BaseException | None = None
    """The provider's failure."""
    spent: list[Usage] = field(default_factory=list[Usage])
    """The usage of the earlier attempts."""

    @property
    def text(self) -> str:
        return "" if self.transcript is None else self.transcript.text

    @property
    def usage(self) -> Usage:
        """The usage of all attempts."""
        used = self.spent + ([] if self.transcript is None else [self.transcript.usage])
        return Usage(
            input_tokens=sum(one.input_tokens for one in used),
            output_tokens=sum(one.output_tokens for one in used),
            is_reported=all(one.is_reported for one in used),
        )

    @property
    def cost(self) -> float | None:
        """USD; None if the price is unknown."""
        return cost_of(self.provider, self.usage)

    def begin(self, asked: Asked) -> None:
        """Record that a request is sent."""
        self.close()
        self.attempts += 1
        self.transcript = Transcript(asked.prompt)
        self.status, self.detail = "asked", ""

    def add(self, chunk: Chunk, now: float) -> None:
        """Record a part of the answer."""
        assert self.transcript is not None
        self.transcript.add(chunk)
        if chunk.text:
            self.status = "streaming"
            if self.ttft is None:
                self.ttft = now

    def close(self, error: BaseException | None = None) -> None:
        """Add the usage of an attempt; a refused one has used nothing."""
        transcript, self.transcript = self.transcript, None
        if transcript is None or (error and is_refusal(error) and not transcript.has_said):
            return
        self.spent.append(transcript.usage)

    def end(self, outcome: Outcome, accept: Accept | None, now: float) -> None:
        """Record the end of the contestant."""
        self.ended = now
        if isinstance(outcome, Done) and isinstance(outcome.value, Answer):
            self.answer = outcome.value
        match outcome:
            case Done(used=True):
                self.status, self.detail = "answered", ""
            case Done():
                self.detail = reason(accept, outcome.value)
                self.status = "rejected" if self.detail else "answered"
                self.detail = self.detail or "came too late"
            case Failed():
                self.error = outcome.error
                self.answer = getattr(outcome.error, "answer", None)
                self.close(outcome.error)
                self.status, self.detail = "failed", str(outcome.error)
            case Cancelled():
                self.status, self.detail = "cancelled", outcome.reason
            case Skipped():
                self.status, self.detail = "skipped", outcome.reason

    def row(self) -> dict[str, Any]:
        """The lane as data."""
        usage, cost = self.usage, self.cost
        return {
            "provider": self.name,
            "model": self.provider.model,
            "status": self.status,
            "detail": self.detail,
            "started": rounded(self.started),
            "ttft": rounded(self.ttft),
            "total": rounded(self.ended),
            "attempts": self.attempts,
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "usage": "reported" if usage.is_reported else "estimated",
            "cost_usd": None if cost is None else round(cost, 9),
        }


def rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def reason(accept: Accept | None, answer: object) -> str:
    """Return why an answer was not accepted; empty if that was not the reason."""
    try:
        if isinstance(answer, Answer) and not whole(accept)(answer):
            return "not accepted"
    except Unacceptable as error:
        return str(error)
    return ""


def out_of_time(seconds: float) -> StepTimeout:
    """Describe a race's timeout without the names of its runs, which its client doesn't know."""
    return StepTimeout(f"timeout of {seconds:g} s")


def has_run_out_of_time(outcome: Outcome) -> bool:
    if isinstance(outcome, Failed):
        return isinstance(outcome.error, StepTimeout)
    return isinstance(outcome, Cancelled) and outcome.reason.startswith("timeout of ")


def limit_in_words(limit: str) -> str:
    """Return a short name for a provider's limit, from its description in an event."""
    if "cost=" in limit:
        return "tokens a minute"
    if "rate=" in limit:
        return "requests a minute"
    if limit.startswith("Budget("):
        return "what others may cost"
    return "requests at once" if limit.startswith("Limits(") else limit


class Scoreboard(Hook):
    """The lanes of all running races, by the run of the race.

    The hook guards the run, because others rely on its counts: it must not miss an event.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        *,
        judge: Provider | None = None,
        accept: Accept | None = None,
        timeout: float,
    ) -> None:
        self.providers = {provider.name: provider for provider in providers}
        self.judge = judge
        self.accept = accept
        self.timeout = timeout
        self.races: dict[str, dict[str, Lane]] = {}
        self._began: dict[str, float] = {}  # the races, by the same runs

    def lanes(self, run_id: str) -> list[Lane]:
        """Return the lanes of a race."""
        return list(self.races.get(run_id, {}).values())

    def take(self, run_id: str, winner: str | None) -> list[Lane]:
        """Forget a race that is over, and return its lanes; `winner` is the provider that won."""
        lanes = self.lanes(run_id)
        self.races.pop(run_id, None)
        self._began.pop(run_id, None)
        for lane in lanes:
            if lane.name == winner and lane.answer is not None:
                lane.status = "won"
        return lanes

    def on_step_started(self, event: StepStarted) -> None:
        if event.step == "race":
            self._began[event.run_id] = anyio.current_time()
            self.races[event.run_id] = {n: Lane(n, p) for n, p in self.providers.items()}
        elif event.step == "judging" and self.judge is not None:
            # The contestants may have run in an earlier process.
            self._began.setdefault(event.run_id, anyio.current_time())
            self.races.setdefault(event.run_id, {})["judge"] = Lane("judge", self.judge)

    def on_child_started(self, event: ChildStarted) -> None:
        lane = self._lane(event.child)
        if lane is not None:
            lane.started = self._since(event.run_id)
            lane.status, lane.detail = "waiting", ""

    def on_waiting(self, event: Waiting) -> None:
        lane = self._lane(event.path)  # a lane without a start
        if lane is not None:
            lane.status = "waiting"
            lane.detail = lane.detail or f"for {limit_in_words(event.limit)}"

    def on_item(self, event: Item) -> None:
        lane = self._lane(event.path)
        if lane is None:
            return
        if isinstance(event.item, Asked):
            lane.begin(event.item)
        elif isinstance(event.item, PutOff):
            lane.transcript = None  # the provider refused it, so it has used nothing
            lane.status = "waiting"
            lane.detail = f"{event.item.seconds:g} s, for it said: {event.item.reason}"
        elif isinstance(event.item, Chunk):
            assert event.path.parent is not None
            lane.add(event.item, self._since(event.path.parent.id))

    def on_attempt_ended(self, event: AttemptEnded) -> None:
        lane = self._lane(event.path)
        if lane is not None and event.error is not None:
            lane.close(event.error)
            when = "" if event.next_in is None else f"again in {event.next_in:.1f} s: "
            lane.status, lane.detail = "waiting", f"{when}{event.error}"

    def on_child_ended(self, event: ChildEnded) -> None:
        lane = self._lane(event.outcome.path)
        if lane is not None:
            lane.end(event.outcome, self.accept, self._since(event.run_id))
            if has_run_out_of_time(event.outcome):
                lane.detail = str(out_of_time(self.timeout))

    def _lane(self, path: RunPath) -> Lane | None:
        """Return the lane of a contestant; None for any other run."""
        parent = path.parent
        return None if parent is None else self.races.get(parent.id, {}).get(path.act)

    def _since(self, run_id: str) -> float:
        return anyio.current_time() - self._began[run_id]
