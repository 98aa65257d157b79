"""Imitation models on this machine: four providers that need neither keys nor a network.

`serving()` runs them in a child process for as long as a `with` block lasts, as the scraper's demo
site does. By hand, `python -m examples.llm_race.demo.server` prints their URL and serves until its
stdin ends. Each uses a different protocol. Its speed and its text depend only on the prompt, so
the same race always ends the same way. In 5 of 100 requests, a model takes `STRAGGLE` seconds
longer, so that hedging can help.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STRAGGLE = 3.0  # seconds
STRAGGLERS = 0.05  # their share of the requests

OPENINGS = (
    "Yes, and here is why:",
    "It depends.",
    "No, but almost:",
    "A fair question.",
    "In short:",
)
BODIES = (
    "the sea is older than every map of it",
    "what is asked at once is answered by whoever is quickest",
    "a shoal turns as one because each fish watches seven others",
    "nobody knows, and the tide comes in all the same",
    "water finds its level, given time",
)


@dataclass(frozen=True, slots=True)
class Model:
    """The behaviour of a model."""

    ttft: float
    """Seconds until its first word, plus or minus a third."""
    pace: float
    """Seconds between two words."""
    words: int
    """The length of its answers."""


MODELS = {
    "swift": Model(ttft=0.12, pace=0.01, words=16),
    "wise": Model(ttft=0.25, pace=0.008, words=40),
    "cheap": Model(ttft=0.35, pace=0.015, words=24),
    "local": Model(ttft=0.18, pace=0.03, words=16),
}


def race_toml(url: str) -> str:
    """Write the configuration for the providers that are served at `url`."""
    kinds = (
        ("swift", "openai", "/openai/v1", 0.5, 2.0),
        ("wise", "anthropic", "/anthropic", 3.0, 15.0),
        ("cheap", "gemini", "/gemini", 0.1, 0.4),
        ("local", "ollama", "/ollama", 0.0, 0.0),
    )
    return "\n".join(
        f'[[provider]]\nname = "{name}"\nkind = "{kind}"\nmodel = "{name}"\n'
        f'base_url = "{url}{path}"\napi_key_env = ""\nprice_in = {cost}\nprice_out = {price}\n'
        for name, kind, path, cost, price in kinds
    )


@contextmanager
def serving() -> Generator[str]:
    """Serve from a child process and yield the URL; the child ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.llm_race.demo.server"],
        cwd=Path(__file__).parents[3],  # where `examples` is importable, wherever this runs
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the race handles a Ctrl-C in the terminal
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin:  # closing stdin ends the child
            url = child.stdout.readline().strip()
            if not url:
                raise RuntimeError("the demo's providers did not start")
            yield url


@dataclass(frozen=True, slots=True)
class Speech:
    """Return a model's answer to a prompt, and its timing."""

    delay: float
    pace: float
    pieces: tuple[str, ...]
    read: int

    @classmethod
    def of(cls, name: str, prompt: str) -> "Speech":
        model, chance = MODELS[name], random.Random(f"{name} {prompt}")
        straggles = chance.random() < STRAGGLERS
        delay = model.ttft * chance.uniform(0.67, 1.33) + (STRAGGLE if straggles else 0.0)
        text = chance.choice(OPENINGS)
        while len(text.split()) < model.words:
            text += f" {chance.choice(BODIES)},"
        pieces = tuple(f"{word} " for word in text.rstrip(",").split())
        if "under its number" in prompt:  # the prompt asks for a judge's choice
            pieces = ("1",)
        return cls(delay, model.pace, pieces, max(1, len(prompt) // 4))


@dataclass(frozen=True, slots=True)
class Wire:
    """The server's side of a protocol: its first event, each word, and its last event."""

    head: Callable[[Speech], str]
    word: Callable[[str], str]
    tail: Callable[[Speech], str]
    media_type: str = "text/event-stream"


def sse(data: Any, event: str = "") -> str:
    return f"{f'event: {event}' + chr(10) if event else ''}data: {json.dumps(data)}\n\n"


def openai_chunk(delta: dict[str, str], finish: str | None = None) -> str:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def openai_tail(speech: Speech) -> str:
    usage = {"prompt_tokens": speech.read, "completion_tokens": len(speech.pieces)}
    return openai_chunk({}, "stop") + sse({"choices": [], "usage": usage}) + "data: [DONE]\n\n"


def anthropic_event(kind: str, **data: Any) -> str:
    return sse({"type": kind, **data}, event=kind)


def anthropic_tail(speech: Speech) -> str:
    usage = {"output_tokens": len(speech.pieces)}
    end = anthropic_event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
    return end + anthropic_event("message_stop")


def gemini_tail(speech: Speech) -> str:
    usage = {"promptTokenCount": speech.read, "candidatesTokenCount": len(speech.pieces)}
    return sse({"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage})


def ollama_line(text: str, **data: Any) -> str:
    return json.dumps({"message": {"role": "assistant", "content": text}, **data}) + "\n"


def ollama_tail(speech: Speech) -> str:
    counts = {"prompt_eval_count": speech.read, "eval_count": len(speech.pieces)}
    return ollama_line("", done=True, done_reason="stop", **counts)


WIRES = {
    "openai": Wire(
        head=lambda _: ": queued\n\n" + openai_chunk({"role": "assistant", "content": ""}),
        word=lambda text: openai_chunk({"content": text}),
        tail=openai_tail,
    ),
    "anthropic": Wire(
        head=lambda speech: anthropic_event(
            "message_start", message={"usage": {"input_tokens": speech.read}}
        ),
        word=lambda text: anthropic_event(
            "content_block_delta", delta={"type": "text_delta", "text": text}
        ),
        tail=anthropic_tail,
    ),
    "gemini": Wire(
        head=lambda _: ": hello\n\n",
        word=lambda text: sse({"candidates": [{"content": {"parts": [{"text": text}]}}]}),
        tail=gemini_tail,
    ),
    "ollama": Wire(
        head=lambda _: ollama_line("", done=False),
        word=lambda text: ollama_line(text, done=False),
        tail=ollama_tail,
        media_type="application/x-ndjson",
    ),
}


class Handler(BaseHTTPRequestHandler):
    """Answers POST requests, by the name of the protocol."""

    # each event is a write, and none must wait for the previous one's acknowledgement
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = self.path.split("/")[1]
        if kind not in WIRES:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if kind == "gemini":
            name = self.path.rpartition("/")[2].partition(":")[0]
            prompt = body["contents"][-1]["parts"][0]["text"]
        else:
            name, prompt = body["model"], body["messages"][-1]["content"]
        with suppress(ConnectionError):  # the client of a loser has disconnected
            self.speak(Speech.of(name, prompt), WIRES[kind])

    def speak(self, speech: Speech, wire: Wire) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", wire.media_type)
        self.end_headers()
        self.send(wire.head(speech))
        wait = speech.delay
        for piece in speech.pieces:
            time.sleep(wait)
            self.send(wire.word(piece))
            wait = speech.pace
        self.send(wire.tail(speech))

    def send(self, text: str) -> None:
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


class Server(ThreadingHTTPServer):
    """Make the web server; port 0 lets the system choose a free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)


def main() -> None:
    os.environ.clear()  # the server must not have any keys
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
