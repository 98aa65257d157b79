"""The server-sent events that the service sends during a race."""

import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from examples.llm_race.client.exchange import Chunk, Prompt, finish_reason
from examples.llm_race.gateway.offer import Races
from examples.llm_race.gateway.openai_api import (
    ChatRequest,
    Problem,
    chunk,
    counting,
    lost,
    usage_chunk,
)
from examples.llm_race.race.racing import Race
from examples.llm_race.race.strategies import is_decided_by_token
from shoal import Runtime
from shoal.events import Event, Item, LeaderChanged, LeadingItems
from shoal.fastapi import cancel_on_disconnect

Say = Callable[[str], Awaitable[None]]


class Streamed(Response):
    """A streaming response that begins with the first words of the answer.

    A failure before those has its own status. A client that disconnects cancels the race.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, write: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.request = request
        self.write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def say(text: str) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            async with cancel_on_disconnect(self.request):
                try:
                    await self.write(say)
                except Problem as problem:
                    if not has_begun:
                        raise
                    await say(sse(problem.body()))
        except HTTPException:  # the client has disconnected, and gets no error
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def sse(data: object, event: str = "") -> str:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n"


class CompletionStream:
    """One answer, streamed if the first token decides, else sent when it is complete.

    Texts of two providers are never mixed: if the leader breaks off, so does this stream.
    """

    def __init__(self, races: Races, race: Race, name: str, body: ChatRequest) -> None:
        self.races = races
        self.race = race
        self.name = name
        self.body = body
        self.items = LeadingItems("race") if is_decided_by_token(race.rules) else None
        self.sent = ""
        self.broke_off = False

    async def write(self, prompt: Prompt, runtime: Runtime, say: Say) -> None:
        """Hold the race, and send the answer's events.

        Raises:
            Problem: The race is lost, or the service stops.
        """

        async def watch(event: Event) -> None:
            for news in () if self.items is None else self.items.on_event(event):
                self.broke_off = self.broke_off or isinstance(news, LeaderChanged)
                if not self.broke_off and isinstance(news, Item) and isinstance(news.item, Chunk):
                    await self._say_text(say, news.item.text)

        report = await self.races.hold(self.race, self.name, prompt, runtime, watch)
        if report.answer is None:
            assert report.error is not None
            raise lost(report.error)
        if not report.answer.text.startswith(self.sent):
            raise Problem(502, "the answer broke off", code="race_lost")
        for n, answer in enumerate(counting(report)):
            rest = answer.text[len(self.sent) if n == 0 else 0 :]
            await self._say_text(say, rest, n)
            await say(sse(self._chunk({}, finish_reason(answer.finish), n)))
        if self.body.with_usage:
            await say(sse(usage_chunk(self.name, self.body.model, report)))
        await say("data: [DONE]\n\n")

    async def _say_text(self, say: Say, text: str, index: int = 0) -> None:
        if not text:
            return
        delta = (
            {"content": text}
            if index == 0 and self.sent
            else {"role": "assistant", "content": text}
        )
        if index == 0:
            self.sent += text
        await say(sse(self._chunk(delta, index=index)))

    def _chunk(
        self, delta: dict[str, str], finish: str | None = None, index: int = 0
    ) -> dict[str, Any]:
        return chunk(self.name, self.body.model, delta, finish, index)


class RaceStream:
    """One race, sent event by event."""

    def __init__(self, races: Races, race: Race, model: str) -> None:
        self.races = races
        self.race = race
        self.model = model
        self.name = f"race-{uuid.uuid4().hex}"
        self.known: dict[str, tuple[object, ...]] = {}  # the last event sent for each lane

    async def write(self, prompt: Prompt, runtime: Runtime, say: Say) -> None:
        """Hold the race, and send every event."""

        async def watch(event: Event) -> None:
            lanes = self.races.board.lanes(self.name)
            if not self.known and lanes:
                await say(sse(self._beginning([lane.name for lane in lanes]), "race"))
            for lane in lanes:
                now = (lane.status, lane.detail, lane.attempts)
                if self.known.get(lane.name) != now:
                    self.known[lane.name] = now
                    await say(sse(lane.row(), "lane"))
            if isinstance(event, Item) and isinstance(event.item, Chunk) and event.item.text:
                text = {"provider": event.path.act, "text": event.item.text}
                await say(sse(text, "text"))

        try:
            report = await self.races.hold(self.race, self.name, prompt, runtime, watch)
        except Problem as problem:
            if not self.known:
                raise
            await say(sse(problem.body(), "error"))
            return
        answers = {name: answer.text for name, answer in report.answers.items()}
        end = {
            **report.totals(),
            "status": 200 if report.error is None else lost(report.error).status,
            "answer": None if report.answer is None else report.answer.text,
            "answers": answers,
            "lanes": [lane.row() for lane in report.lanes],
        }
        await say(sse(end, "end"))

    def _beginning(self, lanes: Sequence[str]) -> dict[str, Any]:
        strategy = self.race.rules.strategy
        return {"id": self.name, "model": self.model, "strategy": strategy, "lanes": lanes}
