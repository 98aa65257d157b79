"""The commands. Each takes the command line and the providers, and returns an exit code."""

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import anyio
import httpx
from rich.console import Console
from rich.table import Table

from examples.interrupts import until_interrupted
from examples.llm_race.batch import BadInput, Batch, Rows, read_prompts
from examples.llm_race.bench import Figures, as_json, as_markdown, measure, plot
from examples.llm_race.client.config import chosen
from examples.llm_race.client.exchange import Prompt
from examples.llm_race.client.prices import price_of
from examples.llm_race.client.providers import Provider
from examples.llm_race.command.display import Printer, Tracer, live_table, print_report
from examples.llm_race.command.options import Options
from examples.llm_race.race.acceptance import acceptance
from examples.llm_race.race.contestant import Terms
from examples.llm_race.race.racing import Race, Report, new_client, scoreboard, why
from examples.llm_race.race.spending import budget_of
from examples.llm_race.race.strategies import Rules, check, is_decided_by_token
from shoal import Application, Hook, Limits, RunConflict, Runtime, SQLiteStore, action, fan_out

UNACCEPTABLE = 5
INTERRUPTED = 130


def rules_of(
    options: Options,
    everybody: Sequence[Provider],
    *,
    streams: bool,
    schema: Mapping[str, Any] | None = None,
) -> Rules:
    """Make the rules of a race from the command line; `schema` applies to every answer."""
    accept = acceptance(
        schema=schema, regex=options.regex, min_chars=options.min_chars, max_chars=options.max_chars
    )
    default = "first-token" if streams and accept is None else "first"
    rules = Rules(
        strategy=options.strategy or default,
        timeout=options.timeout,
        accept=accept,
        streams=streams,
        on_broken_stream=options.on_broken_stream,
        k=options.k,
        normalize=options.normalize,
        judge=None if options.judge is None else chosen(everybody, [options.judge])[0],
        terms=Terms(ttft_timeout=options.ttft_timeout, stall_timeout=options.stall_timeout),
    )
    return rules if options.hedge_delay is None else replace(rules, hedge=options.hedge_delay)


def prompt_of(options: Options, text: str) -> Prompt:
    prompt = Prompt(text=text, system=options.system, schema=options.schema)
    if options.max_tokens is None:
        return prompt
    return replace(prompt, max_tokens=options.max_tokens, may_be_cut=True)


# -- ask ----------------------------------------------------------------------------------------


async def ask(options: Options, everybody: Sequence[Provider]) -> int:
    """Race for one answer: the answer goes to stdout, the providers' results to stderr."""
    # Nothing else runs yet that reading stdin could block.
    text = sys.stdin.read().strip() if options.prompt == "-" else options.prompt
    if not text:
        raise BadInput("there is no prompt")
    providers = chosen(everybody, options.names)
    on_terminal = sys.stderr.isatty() and not options.json and not options.trace
    shares_terminal = on_terminal and sys.stdout.isatty()
    # Without a terminal, streamed text can't be taken back, so streaming needs the option.
    streams = sys.stdout.isatty() if options.stream is None else options.stream
    streams = streams and not options.json
    rules = rules_of(options, everybody, streams=streams, schema=options.schema)
    board = scoreboard(providers, rules)
    printer = Printer(sys.stdout) if is_decided_by_token(rules) and not options.json else None
    hooks: list[Hook] = [printer] if printer is not None and not shares_terminal else []
    race = Race(
        providers,
        rules,
        board=board,
        hooks=hooks,
        store=None if options.save is None else SQLiteStore(options.save),
        budget=budget_of(options.max_cost),
    )
    reports: list[Report] = []
    began = anyio.current_time()

    async def hold() -> None:
        prompt = prompt_of(options, text)
        tracer = Tracer() if options.trace else None
        async with new_client() as client, Runtime() as runtime:
            try:
                reports.append(
                    await race.hold(prompt, runtime, client, options.run_id, watch=tracer)
                )
            except RunConflict:
                raise BadInput(
                    f"{options.save} has another race as {options.run_id!r}: of another prompt, "
                    "--strategy, --system, --schema or --max-tokens; "
                    "choose a different name for this one: --run-id"
                ) from None

    with ExitStack() as stack:
        if on_terminal:
            stack.enter_context(live_table(board, with_text=shares_terminal))
        is_interrupted = await until_interrupted(hold)
    if not reports:
        lanes = [lane for run in list(board.races) for lane in board.take(run, None)]
        reports.append(
            Report(
                strategy=rules.strategy,
                lanes=lanes,
                seconds=anyio.current_time() - began,
                error=InterruptedError("interrupted"),
            )
        )
    [report] = reports
    if not options.json:
        print_answer(report, is_printed=bool(hooks) and printer is not None and printer.has_printed)
    print_report(report, as_json=options.json)
    if is_interrupted:
        return INTERRUPTED
    return UNACCEPTABLE if report.answer is None else 0


def print_answer(report: Report, *, is_printed: bool) -> None:
    """Print the rest of the answer."""
    if report.strategy == "all":
        for name, answer in report.answers.items():
            print(f"# {name}\n\n{answer.text}\n")
    elif report.answer is not None:
        print("" if is_printed else report.answer.text, flush=True)
    elif is_printed:
        print(flush=True)


# -- batch --------------------------------------------------------------------------------------


async def batch(options: Options, everybody: Sequence[Provider]) -> int:
    """Race for many prompts: one row per answer, and a summary."""
    providers = chosen(everybody, options.names)
    rules = rules_of(options, everybody, streams=False, schema=options.schema)
    check(providers, rules)
    with options.file.open(encoding="utf-8") as lines:
        prompts = read_prompts(lines, prompt_of(options, ""))
    store = options.save or options.out.with_name(f"{options.out.name}.db")
    if not options.resume:
        for path in (store, options.out):
            if path.exists():
                raise BadInput(f"{path} exists already: continue it with --resume, or remove it")
    done: list[Rows] = []
    work = Batch(
        providers=providers,
        rules=rules,
        prompts=prompts,
        out=options.out,
        store=store,
        at_once=options.at_once,
        budget=budget_of(options.max_cost),
    )

    async def run() -> None:
        try:
            done.append(await work.run())
        except RunConflict:
            raise BadInput(
                f"{store} has a batch of other prompts: since it was begun, {options.file} or "
                f"--system, --schema or --max-tokens have changed; put that back, or begin "
                f"another batch, in files of its own"
            ) from None

    if await until_interrupted(run, work.settle):
        print(
            f"interrupted; continue with --resume, {store} has the finished rows", file=sys.stderr
        )
        return INTERRUPTED
    [rows] = done
    print(f"{rows.answered} answered, {rows.failed} not, of {len(prompts)}", file=sys.stderr)
    return UNACCEPTABLE if rows.failed else 0


# -- bench --------------------------------------------------------------------------------------


async def bench(options: Options, everybody: Sequence[Provider]) -> int:
    """Run each strategy, then print all of them side by side."""
    providers = chosen(everybody, options.names)
    if options.plot is not None:
        plot([], options.plot)  # a file that is older than an hour
    rows: list[Figures] = []

    async def run() -> None:
        budget = budget_of(options.max_cost)
        usual = rules_of(options, everybody, streams=False, schema=options.schema)
        async with Runtime(limits=budget) as runtime:
            for name in options.strategies:
                print(f"{name}: {options.count} races", file=sys.stderr)
                rows.append(
                    await measure(
                        providers,
                        replace(usual, strategy=name),
                        count=options.count,
                        at_once=options.at_once,
                        budget=budget,
                        runtime=runtime,
                    )
                )

    is_interrupted = await until_interrupted(run)
    print(as_json(rows) if options.json else as_markdown(rows))
    if options.plot is not None and rows:
        plot(rows, options.plot)
    return INTERRUPTED if is_interrupted else 0


# -- providers ----------------------------------------------------------------------------------


async def providers(options: Options, everybody: Sequence[Provider]) -> int:
    """List the providers with prices and keys; with --check, also whether they answer."""
    rows = [about(provider) for provider in chosen(everybody, options.names)]
    if options.check:

        async def run() -> None:
            found = await checked(chosen(everybody, options.names))
            for row, result in zip(rows, found, strict=True):
                row["check"] = result

        if await until_interrupted(run):
            return INTERRUPTED
    if options.json or not sys.stdout.isatty():
        print(json.dumps(rows))
    else:
        table = Table(*rows[0], box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)
    return 0 if all(row.get("check", "ok").startswith("ok") for row in rows) else UNACCEPTABLE


def about(provider: Provider) -> dict[str, str]:
    price, endpoint = price_of(provider), provider.endpoint
    row = {"name": provider.name, "kind": provider.kind, "model": provider.model}
    if endpoint is not None:
        row |= {"address": endpoint.base_url, "key": key_status(provider)}
    row["USD per million"] = "?" if price is None else f"{price[0]:g} in, {price[1]:g} out"
    limits = {"rpm": provider.rpm, "tpm": provider.tpm}
    row["limits"] = ", ".join(f"{n:g} {what}" for what, n in limits.items() if n is not None)
    return row


def key_status(provider: Provider) -> str:
    """Whether the key is set, and in which variable; never the key."""
    assert provider.endpoint is not None
    if provider.endpoint.key_env is None:
        return "not needed"
    try:
        provider.endpoint.key()
    except Exception as error:  # noqa: BLE001 - the failure is the result
        return str(error)
    return f"in {provider.endpoint.key_env}"


async def checked(asked: Sequence[Provider]) -> list[str]:
    """Ask all providers for one word concurrently, and return the results."""
    prompt = Prompt(text="Reply with the word OK.", max_tokens=16, may_be_cut=True)

    @action(reads=["n"], writes=["result"])
    async def check_one(n: int, client: httpx.AsyncClient) -> str:
        report = await Race([asked[n]], Rules(timeout=30.0)).hold(prompt, runtime, client)
        if report.answer is None and report.error is not None:
            return why(report.error)
        return f"ok in {report.seconds:.2f} s"

    checks = fan_out(
        check_one, over="ns", item="n", into="results", take="result", limits=Limits(20)
    )
    async with new_client() as client, Runtime() as runtime:
        result = await Application(checks).run({"ns": range(len(asked))}, inputs={"client": client})
    return list(result.state["results"])


# -- serve --------------------------------------------------------------------------------------


async def serve(options: Options, everybody: Sequence[Provider]) -> int:
    """Serve races to clients."""
    from examples.llm_race.gateway import serve  # noqa: PLC0415 - FastAPI takes half a second

    rules = rules_of(options, everybody, streams=False)  # each request has its own schema
    defaults = replace(prompt_of(options, ""), may_be_cut=False)  # clients can't ask for it
    return await serve.serve(options, everybody, rules, defaults)


COMMANDS: dict[str, Callable[[Options, Sequence[Provider]], Awaitable[int]]] = {
    "ask": ask,
    "batch": batch,
    "bench": bench,
    "serve": serve,
    "providers": providers,
}
