"""Compares strategies: latency, winners, costs, and extra requests.

All strategies get the same prompts, one strategy after the other. Each has its own runtime, so a
hedge learns only from its own races. Latency is measured as a user sees it: until the first text of
the answer that counts, and until its end.
"""

import importlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf
from pathlib import Path

import httpx

from examples.llm_race.client.exchange import Prompt
from examples.llm_race.client.providers import Provider
from examples.llm_race.race.racing import Race, Report, new_client
from examples.llm_race.race.strategies import Rules
from shoal import Application, Budget, Limits, Runtime, action, fan_out

QUESTION = "In one sentence: why is the sea salty? (question {n} of many)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The figures of one strategy."""

    strategy: str
    races: int
    answered: int
    ttft: tuple[float, float, float]
    """Seconds until the first text: p50, p95, p99."""
    total: tuple[float, float, float]
    """Seconds until the end: p50, p95, p99."""
    wins: dict[str, float]
    """The winners, as a share of the races."""
    cost_usd: float | None
    """Cost of a race, including losers; None if a price is not known."""
    extra_load: float
    """Requests beyond one per race, as a share of one."""


async def measure(
    providers: Sequence[Provider],
    rules: Rules,
    *,
    count: int,
    at_once: int = 4,
    budget: Budget | None = None,
    runtime: Runtime | None = None,
) -> Figures:
    """Hold `count` races by `rules` and return their figures.

    The runtime has the budget too, so that all races share it, and other strategies with them.
    """
    if runtime is None:
        async with Runtime(limits=budget) as own:
            return await measure(
                providers, rules, count=count, at_once=at_once, budget=budget, runtime=own
            )
    reports: list[Report] = []
    race = Race(providers, rules, budget=budget)

    @action(reads=["n"], writes=["won"])
    async def hold(n: int, client: httpx.AsyncClient) -> bool:
        prompt = Prompt(text=QUESTION.format(n=n), max_tokens=100)
        report = await race.hold(prompt, runtime, client)
        reports.append(report)
        return report.answer is not None

    holding = fan_out(hold, over="ns", item="n", into="won", limits=Limits(at_once))
    async with new_client() as client:
        await Application(holding).run({"ns": range(count)}, inputs={"client": client})
    return figures(rules.strategy, reports)


def figures(strategy: str, reports: Sequence[Report]) -> Figures:
    """Sum up how races went."""
    answered = [report for report in reports if report.answer is not None]
    wins = Counter(report.answer.provider for report in answered if report.answer is not None)
    requests = sum(lane.attempts for report in reports for lane in report.lanes)
    costs = [report.cost for report in reports]
    return Figures(
        strategy=strategy,
        races=len(reports),
        answered=len(answered),
        ttft=percentiles([report.ttft or report.seconds for report in answered]),
        total=percentiles([report.seconds for report in answered]),
        wins={name: won / len(reports) for name, won in wins.most_common()},
        cost_usd=None if None in costs else sum(cost or 0.0 for cost in costs) / len(reports),
        extra_load=requests / len(reports) - 1,
    )


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 50th, 95th and 99th percentile, by nearest rank; infinite without values."""
    if not values:
        return inf, inf, inf
    ordered = sorted(values)
    p50, p95, p99 = (ordered[ceil(p / 100 * len(ordered)) - 1] for p in (50, 95, 99))
    return p50, p95, p99


def as_markdown(rows: Sequence[Figures]) -> str:
    """Write a table for people, and for a README."""
    headings = ["strategy", "first token p50 / p95 / p99", "total p50 / p95 / p99", "wins"]
    headings += ["cost of a race", "extra requests"]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    for row in rows:
        ttft, total = (" / ".join(f"{s:.2f}" for s in times) for times in (row.ttft, row.total))
        wins = ", ".join(f"{name} {share:.0%}" for name, share in row.wins.items())
        cost = "?" if row.cost_usd is None else f"${row.cost_usd:.6f}"
        lines.append(
            f"| {row.strategy} | {ttft} s | {total} s | {wins} | {cost} | {row.extra_load:+.0%} |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Figures]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=2)


class NoPlot(RuntimeError):
    """The library that draws is not installed."""


def plot(rows: Sequence[Figures], path: Path) -> None:
    """Draw the latencies, in the format that the suffix of `path` names.

    Raises:
        NoPlot: matplotlib isn't installed.
    """
    try:
        drawing = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise NoPlot("--plot needs one more package: pip install matplotlib") from None
    figure = drawing.Figure(figsize=(8, 0.7 * len(rows) + 1.6), layout="constrained")
    for n, (title, kind) in enumerate((("first token", "ttft"), ("whole answer", "total")), 1):
        axes = figure.add_subplot(1, 2, n)
        for place, row in enumerate(reversed(rows)):
            times: tuple[float, float, float] = getattr(row, kind)
            axes.plot(times[::2], (place, place), color="0.8", linewidth=5, zorder=1)
            for seconds, colour in zip(times, ("tab:blue", "tab:orange", "tab:red"), strict=True):
                axes.scatter([seconds], [place], color=colour, zorder=2)
        axes.set_yticks(range(len(rows)), [row.strategy for row in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        axes.set_title(f"{title}: p50, p95, p99")
    figure.savefig(path)
