"""The command line: its options and their meaning."""

import argparse
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from examples.llm_race.race.strategies import STRATEGIES, Strategy
from shoal import Hedge, Stagger

EXITS = """exit codes: 0 there is an answer (batch: to every prompt), 1 a file can't be read or
written, 2 wrong usage, 5 no acceptable answer (batch: to some prompt; providers --check: one of
them doesn't answer), 130 interrupted (batch: finished rows are kept)"""


class Options(argparse.Namespace):
    """The command line, parsed."""

    command: Literal["ask", "batch", "bench", "serve", "providers"]
    # the providers
    config: Path | None
    demo: bool
    real: bool
    names: list[str]
    backend: str
    # the race
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
    # acceptable answers
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
        description="Let language models race for the answer.",
        epilog=EXITS,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    models, how = common()

    ask = commands.add_parser(
        "ask", parents=[models, how], help="race for one answer", epilog=EXITS
    )
    ask.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from stdin")
    add = ask.add_argument_group("output").add_argument
    add("--stream", action=argparse.BooleanOptionalAction, help="print the answer as it arrives")
    add("--json", action="store_true", help="print the whole result as one JSON object on stdout")
    add("--trace", action="store_true", help="print every event of the race on stderr")
    add("--save", type=Path, metavar="RUN.db", help="keep the race in this file...")
    add(
        "--run-id",
        metavar="ID",
        help="...under this id; if it has an answer already, no provider is asked",
    )

    batch = commands.add_parser(
        "batch", parents=[models, how], help="race for many answers, durably", epilog=EXITS
    )
    add = batch.add_argument
    add("file", type=Path, metavar="FILE.jsonl", help="one prompt per line")
    add("-o", "--out", type=Path, metavar="OUT.jsonl", required=True, help="one row per answer")
    add("-c", "--at-once", type=whole(1), metavar="N", default=8, help="races at once (8)")
    add(
        "--resume",
        action="store_true",
        help="continue with the prompts that are left or have failed",
    )
    add("--save", type=Path, metavar="RUN.db", help="the file for the progress (OUT.jsonl.db)")

    bench = commands.add_parser(
        "bench", parents=[models, how], help="compare strategies", epilog=EXITS
    )
    add = bench.add_argument
    add("-n", "--count", type=whole(1), metavar="N", default=50, help="races per strategy (50)")
    add("-c", "--at-once", type=whole(1), metavar="N", default=4, help="races at once (4)")
    add(
        "--strategies",
        type=strategies,
        metavar="A,B",
        default=["first", "first-token", "hedge", "fallback", "cheapest"],
        help="the strategies to compare",
    )
    add("--plot", type=Path, metavar="FILE", help="draw the latencies, too: .svg, .png, .pdf")
    add("--json", action="store_true", help="print JSON, not a table")

    serve = commands.add_parser(
        "serve", parents=[models, how], help="serve races with OpenAI's API", epilog=EXITS
    )
    add = serve.add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen on (127.0.0.1: only this machine)",
    )
    add("--port", type=port, default=8000, help="the port to listen on (8000); 0 for a free one")
    add(
        "--key-env",
        metavar="NAME",
        help="the environment variable with the key that clients must send",
    )

    providers = commands.add_parser(
        "providers", parents=[models], help="list the providers", epilog=EXITS
    )
    providers.add_argument("--check", action="store_true", help="ask each provider for a word")
    providers.add_argument("--json", action="store_true", help="print JSON, not a table")

    options = parser.parse_args(args, Options())
    if options.real and not options.demo:
        parser.error("--real needs --demo")
    if options.demo and options.config is not None:
        parser.error("give either --config or --demo")
    if options.command == "ask" and options.run_id is not None and options.save is None:
        parser.error("--run-id needs the file of the race: --save RUN.db")
    return options


def common() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The options that all commands share: the providers and the rules."""
    models = argparse.ArgumentParser(add_help=False)
    add = models.add_argument_group("providers").add_argument
    add(
        "--config",
        type=Path,
        metavar="race.toml",
        help="the providers' file (./race.toml, if it exists)",
    )
    add("-p", "--provider", dest="names", action="append", default=[], metavar="NAME")
    add("--demo", action="store_true", help="ask imitation models on this machine")
    add("--real", action="store_true", help="with --demo: ask a real small model on this machine")
    add("--backend", choices=["asyncio", "trio"], default="asyncio")

    how = argparse.ArgumentParser(add_help=False)
    add = how.add_argument_group("how").add_argument
    add("--strategy", choices=STRATEGIES, help="(first-token when streaming, else first)")
    add(
        "--hedge-delay",
        type=hedge_delay,
        metavar="800ms|p95",
        help="the delay of the next provider, for hedge and cheapest (p95 of latencies seen)",
    )
    add(
        "--k",
        type=whole(2),
        default=2,
        metavar="N",
        help="the number of answers that must agree, for quorum (2)",
    )
    add(
        "--normalize",
        choices=["text", "json"],
        default="text",
        help="how answers are compared, for quorum",
    )
    add("--judge", metavar="NAME", help="the provider that chooses, for judge")
    add("--on-broken-stream", choices=["fail", "restart"], default="fail")
    add(
        "--timeout", type=duration, default=60.0, metavar="S", help="timeout of the whole race (60)"
    )
    add(
        "--ttft-timeout",
        type=duration,
        default=10.0,
        metavar="S",
        help="timeout of the first text (10)",
    )
    add(
        "--stall-timeout",
        type=duration,
        default=15.0,
        metavar="S",
        help="timeout between two texts (15)",
    )
    add("--max-cost", type=positive, metavar="USD", help="spend at most this in total")
    add("--system", default="", metavar="TEXT", help="the system prompt")
    add("--max-tokens", type=whole(1), metavar="N", help="the longest answer (1024)")
    add = how.add_argument_group("acceptable answers").add_argument
    add("--schema", type=json_file, metavar="FILE.json", help="accept JSON of this schema")
    add("--regex", type=pattern, metavar="RE", help="accept text that matches")
    add("--min-chars", type=whole(1), metavar="N")
    add("--max-chars", type=whole(1), metavar="N")
    return models, how


def duration(text: str) -> float:
    """Read seconds: `2`, `2s`, `800ms` or `10m`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)?", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2, 800ms or 10m")
    return float(found[1]) * {"ms": 0.001, "m": 60.0}.get(found[2], 1.0)


def hedge_delay(text: str) -> Stagger:
    """Read a fixed time, or a percentile of the latencies seen."""
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
