"""The command line: what can be said, and what it means."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from examples.llm_race.strategies import STRATEGIES, Strategy
from shoal import Hedge, Stagger

EXITS = """exit codes: 0 there is an answer (batch: to every prompt), 1 something can't be read or
written, 2 wrong usage, 5 no acceptable answer (batch: to some prompt; providers --check: one of
them doesn't answer), 130 interrupted (batch: what is done is kept)"""


class Options(argparse.Namespace):
    """The command line, parsed."""

    command: Literal["ask", "batch", "bench", "serve", "providers"]
    # who
    config: Path | None
    demo: bool
    real: bool
    names: list[str]
    backend: str
    # how
    strategy: Strategy | None
    hedge_delay: Stagger | None
    k: int
    normalize: Literal["text", "json"]
    judge: str | None
    on_broken_stream: Literal["fail", "restart"]
    timeout: float
    ttft_timeout: float
    stall_timeout: float
    max_cost: float | None
    system: str
    max_tokens: int | None
    # what is acceptable
    schema: dict[str, Any] | None
    regex: str | None
    min_chars: int | None
    max_chars: int | None
    # ask
    prompt: str
    stream: bool | None
    save: Path | None
    run_id: str | None
    json: bool
    trace: bool
    # batch
    file: Path
    out: Path
    at_once: int
    resume: bool
    # bench
    count: int
    strategies: list[Strategy]
    plot: Path | None
    # serve
    host: str
    port: int
    key_env: str | None
    # providers
    check: bool


def parse(args: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        prog="python -m examples.llm_race",
        description="Have language models race for the answer.",
        epilog=EXITS,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    whom, how = common()

    ask = commands.add_parser("ask", parents=[whom, how], help="race for one answer", epilog=EXITS)
    ask.add_argument("prompt", metavar="PROMPT", help="what to ask; - reads it from stdin")
    add = ask.add_argument_group("output").add_argument
    add("--stream", action=argparse.BooleanOptionalAction, help="print the answer as it comes")
    add("--json", action="store_true", help="print one JSON object, with everything, on stdout")
    add("--trace", action="store_true", help="print every event of the race on stderr")
    add("--save", type=Path, metavar="RUN.db", help="keep the race in this file...")
    add("--run-id", metavar="ID", help="...as this; what is there already is not asked again")

    batch = commands.add_parser(
        "batch", parents=[whom, how], help="race for many answers, durably", epilog=EXITS
    )
    add = batch.add_argument
    add("file", type=Path, metavar="FILE.jsonl", help="one prompt a line")
    add("-o", "--out", type=Path, metavar="OUT.jsonl", required=True, help="one row an answer")
    add("-c", "--at-once", type=whole(1), metavar="N", default=8, help="races at once (8)")
    add("--resume", action="store_true", help="go on with what is left, or has failed")
    add("--save", type=Path, metavar="RUN.db", help="where progress is kept (OUT.jsonl.db)")

    bench = commands.add_parser(
        "bench", parents=[whom, how], help="compare strategies", epilog=EXITS
    )
    add = bench.add_argument
    add("-n", "--count", type=whole(1), metavar="N", default=50, help="races a strategy (50)")
    add("-c", "--at-once", type=whole(1), metavar="N", default=4, help="races at once (4)")
    add(
        "--strategies",
        type=strategies,
        metavar="A,B",
        default=["first", "first-token", "hedge", "fallback", "cheapest"],
        help="which of them",
    )
    add("--plot", type=Path, metavar="FILE", help="draw them, too: .svg, .png, .pdf")
    add("--json", action="store_true", help="print JSON, not a table")

    serve = commands.add_parser(
        "serve", parents=[whom, how], help="race for whoever asks, as OpenAI would", epilog=EXITS
    )
    add = serve.add_argument
    add("--host", default="127.0.0.1", help="where to listen (127.0.0.1: for this machine alone)")
    add("--port", type=port, default=8000, help="and on which port (8000); 0 for a free one")
    add("--key-env", metavar="NAME", help="the variable that holds the key clients have to show")

    providers = commands.add_parser(
        "providers", parents=[whom], help="say who can be asked", epilog=EXITS
    )
    providers.add_argument("--check", action="store_true", help="ask each for a word")
    providers.add_argument("--json", action="store_true", help="print JSON, not a table")

    options = parser.parse_args(args, Options())
    if options.real and not options.demo:
        parser.error("--real says which --demo")
    if options.demo and options.config is not None:
        parser.error("give either --config or --demo")
    if options.command == "ask" and options.run_id is not None and options.save is None:
        parser.error("--run-id names a race in a file: --save RUN.db")
    return options


def common() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The options that commands share: who is asked, and how."""
    whom = argparse.ArgumentParser(add_help=False)
    add = whom.add_argument_group("who").add_argument
    add("--config", type=Path, metavar="race.toml", help="who races (./race.toml, if it is there)")
    add("-p", "--provider", dest="names", action="append", default=[], metavar="NAME")
    add("--demo", action="store_true", help="ask make-believe models on this machine")
    add("--real", action="store_true", help="with --demo: a real small model on this machine")
    add("--backend", choices=["asyncio", "trio"], default="asyncio")

    how = argparse.ArgumentParser(add_help=False)
    add = how.add_argument_group("how").add_argument
    add("--strategy", choices=STRATEGIES, help="(first-token when streaming, else first)")
    add(
        "--hedge-delay",
        type=hedge_delay,
        metavar="800ms|p95",
        help="when the next is asked, under hedge and cheapest (p95 of the latencies seen)",
    )
    add("--k", type=whole(2), default=2, metavar="N", help="answers to agree, under quorum (2)")
    add("--normalize", choices=["text", "json"], default="text", help="what agreeing means")
    add("--judge", metavar="NAME", help="the provider that chooses, under judge")
    add("--on-broken-stream", choices=["fail", "restart"], default="fail")
    add("--timeout", type=duration, default=60.0, metavar="S", help="for the whole race (60)")
    add("--ttft-timeout", type=duration, default=10.0, metavar="S", help="until some text (10)")
    add("--stall-timeout", type=duration, default=15.0, metavar="S", help="until more text (15)")
    add("--max-cost", type=positive, metavar="USD", help="spend no more in all")
    add("--system", default="", metavar="TEXT", help="the system prompt")
    add("--max-tokens", type=whole(1), metavar="N", help="of an answer (1024)")
    add = how.add_argument_group("what is acceptable").add_argument
    add("--schema", type=json_file, metavar="FILE.json", help="JSON of this schema")
    add("--regex", type=pattern, metavar="RE", help="what this is found in")
    add("--min-chars", type=whole(1), metavar="N")
    add("--max-chars", type=whole(1), metavar="N")
    return whom, how


def duration(text: str) -> float:
    """Seconds, as `2`, `2s`, `800ms` or `10m`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)?", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2, 800ms or 10m")
    return float(found[1]) * {"ms": 0.001, "m": 60.0}.get(found[2], 1.0)


def hedge_delay(text: str) -> Stagger:
    """A fixed time, or a percentile of the latencies that were seen."""
    found = re.fullmatch(r"p(\d+(?:\.\d+)?)", text)
    if found is None:
        return duration(text)
    if not 0 < float(found[1]) < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentile; write p95")
    return Hedge(percentile=float(found[1]), budget=0.1, initial=1.0)


def whole(smallest: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {smallest} up")
        return int(text)

    return whole_number


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, a number up to 65535")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def json_file(text: str) -> dict[str, Any]:
    try:
        value: object = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: a schema is a JSON object")
    return cast("dict[str, Any]", value)


def strategies(text: str) -> list[Strategy]:
    names = text.split(",")
    for name in names:
        if name not in STRATEGIES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(STRATEGIES)}")
    return cast("list[Strategy]", names)
