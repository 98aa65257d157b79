"""Write what a runtime does as metrics, in the text format of Prometheus.

Invariants:
- Nothing is counted for it while runs execute: a request reads what the runtime knows anyway.
- Labels have names out of the program alone, never ids, keys or owners of runs: their number is
  bounded, and they hold no data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from shoal._runtime.limit_use import RUNTIME, named_circuits
from shoal._runtime.runtime import Runtime

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[Mapping[str, str], float]


def metrics_of(runtime: Runtime) -> str:
    """Return all metrics of an open runtime."""
    return "".join(_lines(runtime))


def _lines(runtime: Runtime) -> Iterator[str]:
    load = runtime.load
    alone: tuple[tuple[str, Literal["gauge", "counter"], str, float | None], ...] = (
        ("runs_executing", "gauge", "Root runs that execute.", load.running),
        ("runs_waiting", "gauge", "Root runs that wait for their turn.", load.waiting),
        ("runs_max", "gauge", "Root runs that may execute at once.", load.max_runs),
        ("runs_max_waiting", "gauge", "Root runs that may wait.", load.max_waiting),
        ("runs_refused_total", "counter", "Root runs refused: too many waited.", load.refused),
        ("draining", "gauge", "1 if no more runs are accepted.", runtime.draining),
    )
    for name, kind, text, value in alone:
        if value is not None:
            yield from _metric(name, kind, text, [({}, value)])
    begun = Counter(one.application for one in runtime.runs())
    yield from _metric(
        "runs_running",
        "gauge",
        "Root runs that have begun and not ended, by application.",
        [({"application": name}, count) for name, count in sorted(begun.items())],
    )
    yield from _metric(
        "runs_ended_total",
        "counter",
        "Executions of root runs that have ended, by application and status.",
        [
            ({"application": name, "status": status}, count)
            for (name, status), count in sorted(runtime.ended_runs().items())
        ],
    )
    yield from _limits(runtime)
    yield from _breakers(runtime)


def _limits(runtime: Runtime) -> Iterator[str]:
    found = [
        ({"owner": owner or RUNTIME, "part": str(number)}, part)
        for owner, limiter in runtime.limiters().items()
        for number, part in enumerate(limiter.statistics())
    ]
    for name, text in (
        ("in_use", "Slots of a limit in use."),
        ("waiting", "Attempts and children that wait for a limit."),
        ("paused", "Keys of a limit that are paused."),
        ("keys", "Keys of a limit in memory."),
    ):
        samples = [(labels, getattr(part, name)) for labels, part in found]
        yield from _metric(f"limit_{name}", "gauge", text, samples)
    slots = [(labels, part.slots) for labels, part in found if part.slots is not None]
    budgets = [({**labels, "unit": part.unit or ""}, part) for labels, part in found if part.amount]
    for name, text in (
        ("amount", "What a budget allows."),
        ("spent", "What was spent of a budget."),
        ("aside", "What is set aside of a budget for attempts that go on."),
    ):
        samples = [(labels, getattr(part, name) or 0.0) for labels, part in budgets]
        yield from _metric(f"budget_{name}", "gauge", text, samples)
    yield from _metric("limit_slots", "gauge", "Slots of a limit, for each key.", slots)


def _breakers(runtime: Runtime) -> Iterator[str]:
    # Several fan-outs may have one name, and a sample must not come twice.
    opened, failing, skipped = Counter[str](), Counter[str](), Counter[str]()
    for name, circuits in named_circuits(runtime.services.circuits):
        now = circuits.statistics()
        opened[name] += len(now.open)
        failing[name] += now.failing
        skipped[name] += now.skipped
    for name, kind, text, counts in (
        ("breaker_open", "gauge", "Keys whose circuit is open or half open.", opened),
        ("breaker_failing", "gauge", "Keys that failed since their last success.", failing),
        ("breaker_skipped_total", "counter", "Children that a breaker has skipped.", skipped),
    ):
        samples = [({"fan_out": one}, count) for one, count in sorted(counts.items())]
        yield from _metric(name, kind, text, samples)


def _metric(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Write one metric; nothing if it has no samples."""
    lines = [f"shoal_{name}{_labels(labels)} {float(value):.15g}\n" for labels, value in samples]
    if lines:
        yield f"# HELP shoal_{name} {text}\n# TYPE shoal_{name} {kind}\n"
        yield from lines


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
