"""What watching costs on the map of `benchmarks.map`, whose children do nothing.

So each row shows the cost per child at its largest: with children that wait for a network, the same
microseconds are a small share. Each row is one way to watch; `nothing` has no hooks at all.
"""

from __future__ import annotations

import argparse
import io
import platform
from collections.abc import Callable, Mapping, Sequence

import anyio
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from benchmarks._measure import in_turn, print_table
from benchmarks.map import Listening, by_shoal, doubles
from shoal import Application, Hook, Runtime
from shoal._runtime.display import showing
from shoal.watch.logging import LogContext
from shoal.watch.progress import Boards, Terminal
from shoal.watch.telemetry import Children, OpenTelemetry

BASE = "nothing"


class Dropping(SpanExporter):
    """Takes spans, and sends them nowhere: a network is not what is measured."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def telemetry(children: Children, sampler: Sampler = ALWAYS_ON) -> OpenTelemetry:
    """Make a hook with an SDK behind it."""
    tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(Dropping()))
    return OpenTelemetry(
        children=children,
        tracer_provider=tracers,
        meter_provider=MeterProvider(shutdown_on_exit=False),
        logger_provider=LoggerProvider(shutdown_on_exit=False),
    )


def rows(items: int) -> Mapping[str, Callable[[], object]]:
    """Return the ways to watch, by what the table calls them."""

    def watched(*hooks: Hook) -> Callable[[], object]:
        return by_shoal(Application(doubles, hooks=hooks), items)

    def with_progress() -> None:
        async def run() -> None:
            async with Runtime(watch=True) as runtime:
                # A terminal that throws everything away: a slow one is not what is measured.
                with showing(Boards(Terminal(io.StringIO())), runtime.watch_reports):
                    await runtime.run(Application(doubles), {"numbers": range(items)})

        anyio.run(run)

    return {
        BASE: watched(),
        "reports: watch=True": by_shoal(Application(doubles, watch=True), items),
        "progress=True": with_progress,
        "a hook on every update": watched(Listening()),
        "logging: LogContext": watched(LogContext()),
        "OpenTelemetry without an SDK": watched(OpenTelemetry()),
        "OpenTelemetry, children off": watched(telemetry("off")),
        "OpenTelemetry, nothing sampled": watched(telemetry("auto", ALWAYS_OFF)),
        "OpenTelemetry, two spans a child": watched(telemetry("auto")),
    }


def main() -> None:
    """Measure, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, medians of {options.rounds} rounds in turn")
    print(f"map over {options.items:,} children that do nothing, no store; processor time")
    print_table(in_turn(rows(options.items), options.rounds, cpu=True), options.items, BASE)


if __name__ == "__main__":
    main()
