"""OpenTelemetry: which spans, metrics and records a run makes."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import StatusCode

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Hedge,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    RunCancelled,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
    race,
)
from shoal.errors import DefinitionError
from shoal.testing import Attempt, cancel_everywhere
from shoal.watch.telemetry import OpenTelemetry

pytestmark = pytest.mark.anyio


class Seen:
    """A hook, and all that it has exported."""

    def __init__(self, **options: Any) -> None:
        self.spans_out = InMemorySpanExporter()
        self.logs_out = InMemoryLogRecordExporter()
        self.reader = InMemoryMetricReader()
        sampler = options.pop("sampler", None)
        # Named, because to find out the resource takes a thread that the event loop waits for.
        resource = Resource.get_empty()
        tracers = TracerProvider(resource=resource, sampler=sampler)
        tracers.add_span_processor(SimpleSpanProcessor(self.spans_out))
        loggers = LoggerProvider(resource=resource)
        loggers.add_log_record_processor(SimpleLogRecordProcessor(self.logs_out))
        self.tracers = tracers
        self.hook = OpenTelemetry(
            tracer_provider=tracers,
            meter_provider=MeterProvider([self.reader], resource=resource),
            logger_provider=loggers,
            **options,
        )

    @property
    def spans(self) -> list[ReadableSpan]:
        found = list(self.spans_out.get_finished_spans())
        return sorted(found, key=lambda span: span.start_time or 0)

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.of(name)
        return span

    @property
    def tree(self) -> list[str]:
        """The names of all spans, each after those around it, and indented below them."""
        by_id = {span.context.span_id: span for span in self.spans if span.context}

        def path(span: ReadableSpan) -> list[int]:
            parent = None if span.parent is None else by_id.get(span.parent.span_id)
            return [*([] if parent is None else path(parent)), self.spans.index(span)]

        paths = sorted((path(span), span.name) for span in self.spans)
        return ["  " * (len(places) - 1) + name for places, name in paths]

    @property
    def records(self) -> list[Any]:
        return [data.log_record for data in self.logs_out.get_finished_logs()]

    def metric(self, name: str) -> list[Any]:
        data: Any = self.reader.get_metrics_data()
        return [
            point
            for resource in (() if data is None else data.resource_metrics)
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def check(self) -> None:
        """All spans have ended, and all runs."""
        assert not self.hook._runs
        assert not self.hook._unseen
        assert not self.hook._since
        assert not self.hook._waited
        assert all(point.value == 0 for point in self.metric("shoal.runs.active"))
        assert all(span.end_time is not None for span in self.spans)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_child(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    return (
        inner.parent is not None
        and outer.context is not None
        and inner.parent.span_id == outer.context.span_id
    )


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    tracer = trace.get_tracer("http", tracer_provider=None)
    with tracer.start_as_current_span("GET /"):
        await anyio.sleep(0.01)
    return 2 * n


@action(reads=["double"], writes=["text"])
def show(double: int) -> str:
    return str(double)


doubles = fan_out(double, over="ns", item="n", key=str, into="doubles", take="double")


async def test_a_run_its_steps_and_its_children_nest():
    seen = Seen()
    app = Application(Graph.chain(doubles, name="g"), name="app", hooks=[seen.hook])
    await app.run({"ns": [1, 2]}, id="one")
    assert seen.tree == ["run app", "  step doubles", *["    run double", "      step double"] * 2]
    run, step, child, inner, *_ = seen.spans
    for span in (step, inner):
        assert attributes(span)["shoal.run.root_id"] == "one"
    assert attributes(inner)["shoal.child.key"] == "1"
    assert attributes(run) == {
        "shoal.run.id": "one",
        "shoal.run.root_id": "one",
        "shoal.app.name": "app",
        "shoal.outcome": "succeeded",
    }
    assert attributes(step)["shoal.children.succeeded"] == 2
    assert attributes(step)["shoal.children.total"] == 2
    assert attributes(child)["shoal.child.key"] == "1"
    assert attributes(child)["shoal.run.parent_id"] == "one"
    assert attributes(child)["shoal.run.root_id"] == "one"
    assert {span.status.status_code for span in seen.spans} == {StatusCode.UNSET}
    seen.check()


async def test_spans_of_user_code_nest_in_its_step_also_in_threads():
    seen = Seen()
    tracer = seen.tracers.get_tracer("http")

    @action(writes=["a"])
    async def get() -> str:
        with tracer.start_as_current_span("GET /"):
            await anyio.sleep(0.01)
        return "a"

    @action(reads=["a"], writes=["b"])
    def blocking(a: str) -> str:
        with tracer.start_as_current_span("SELECT"):
            return a

    @action(writes=["c"])
    async def inner(context: Context) -> str:
        part = context.span("part", size=3, what=["x"])
        with part, tracer.start_as_current_span("POST /"):
            return "c"

    await Application(Graph.chain(get, blocking, inner), hooks=[seen.hook]).run()
    assert is_child(seen.one("GET /"), seen.one("step get"))
    assert is_child(seen.one("SELECT"), seen.one("step blocking"))
    assert is_child(seen.one("part"), seen.one("step inner"))
    assert is_child(seen.one("POST /"), seen.one("part"))
    assert attributes(seen.one("part")) == {"size": 3, "what": "['x']"}
    assert not trace.get_current_span().get_span_context().is_valid
    seen.check()


async def test_a_run_is_in_the_trace_of_its_caller():
    seen = Seen()
    with seen.tracers.get_tracer("web").start_as_current_span("GET /start"):
        await Application(show, hooks=[seen.hook]).run({"double": 1})
        async with Runtime() as runtime:
            handle = await runtime.start(Application(show, hooks=[seen.hook]), {"double": 2})
            await handle.result()
    assert [is_child(span, seen.one("GET /start")) for span in seen.of("run show")] == [True, True]
    seen.check()


async def test_an_application_that_is_run_by_hand_nests_in_its_action():
    seen = Seen()
    below = Application(show, name="below", hooks=[seen.hook])

    @action(writes=["text"])
    async def above() -> str:
        return (await below.run({"double": 1})).state["text"]

    await Application(above, hooks=[seen.hook]).run()
    assert seen.tree == ["run above", "  step above", "    run below", "      step show"]


async def test_a_graph_as_a_node_is_a_run_in_its_step():
    seen = Seen()
    inner = Graph.chain(double, show, name="inner")

    @action(reads=["text"], writes=["done"])
    async def last(text: str) -> bool:
        return True

    await Application(Graph.chain(inner, last, name="outer"), hooks=[seen.hook]).run({"n": 1})
    assert seen.tree == [
        "run outer",
        "  step inner",
        "    run inner",
        "      step double",
        "      step show",
        "  step last",
    ]
    seen.check()


async def test_a_thousand_children_have_traces_of_their_own_but_for_a_hundred():
    seen = Seen()
    await Application(doubles, name="app", hooks=[seen.hook]).run({"ns": range(1000)})
    step = seen.one("step doubles")
    runs = seen.of("run double")
    assert len(runs) == 1000
    nested = [run for run in runs if is_child(run, step)]
    assert sorted(int(attributes(run)["shoal.child.key"]) for run in nested) == [*range(100)]
    assert step.links == ()
    traces = Counter(run.context.trace_id for run in runs if run.context and run not in nested)
    assert len(traces) == 900
    for run in runs:
        if run in nested:
            assert run.links == ()
            continue
        assert run.parent is None
        (link,) = run.links
        assert link.context == step.context
        assert dict(link.attributes or {}) == {"shoal.link": "spawned_by"}
    for inner in seen.of("step double"):
        assert sum(is_child(inner, run) for run in runs) == 1
    assert attributes(step)["shoal.children.total"] == 1000
    seen.check()


async def test_a_trace_has_a_thousand_runs_however_they_nest():
    seen = Seen()
    tens = fan_out(doubles, over="groups", item="ns", into="all", take="doubles", name="tens")
    await Application(tens, hooks=[seen.hook]).run({"groups": [range(50)] * 50})
    root = seen.one("run tens").context
    assert root is not None
    inside = [
        span for span in seen.spans if span.context and span.context.trace_id == root.trace_id
    ]
    assert sum(span.name.startswith("run ") for span in inside) == 1001
    assert len(seen.of("run double")) == 2500
    seen.check()


@pytest.mark.parametrize(("children", "nested"), [("nested", 150), ("linked", 0)])
async def test_where_children_are_can_be_chosen(children: str, nested: int):
    seen = Seen(children=children)
    await Application(doubles, hooks=[seen.hook]).run({"ns": range(150)})
    step = seen.one("step doubles")
    assert sum(is_child(run, step) for run in seen.of("run double")) == nested
    assert sum(len(run.links) for run in seen.of("run double")) == 150 - nested
    seen.check()


@action(reads=["n"], writes=["double"])
async def odd(n: int) -> int:
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


async def test_without_spans_of_children_those_that_failed_have_records():
    seen = Seen(children="off")
    app = Application(
        fan_out(odd, over="ns", item="n", into="x", name="odds", on_error="ignore"),
        hooks=[seen.hook],
    )
    await app.run({"ns": range(4)})
    assert seen.tree == ["run odds", "  step odds"]
    failed = [one for one in seen.records if one.event_name == "shoal.child.failed"]
    assert [one.attributes["shoal.child.key"] for one in failed] == ["1", "3"]
    assert failed[0].attributes["error.type"] == "ValueError"
    assert failed[0].span_id == seen.one("step odds").context.span_id  # pyright: ignore[reportOptionalMemberAccess]
    assert attributes(seen.one("step odds"))["shoal.children.failed"] == 2
    durations = {
        (point.attributes["shoal.run.is_child"], point.attributes["shoal.outcome"]): point.count
        for point in seen.metric("shoal.run.duration")
    }
    assert durations == {(False, "succeeded"): 1, (True, "succeeded"): 2, (True, "failed"): 2}
    seen.check()


async def test_failures_are_errors():
    seen = Seen()
    app = Application(fan_out(odd, over="ns", item="n", into="x", name="odds"), hooks=[seen.hook])
    with pytest.raises(ExceptionGroup):
        await app.run({"ns": [1]})
    for name in ("run odds", "step odds", "run odd", "step odd"):
        span = seen.one(name)
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["shoal.outcome"] == "failed"
    assert attributes(seen.one("step odd"))["error.type"] == "ValueError"
    assert seen.one("step odd").status.description == "ValueError: 1 is odd"
    assert attributes(seen.one("run odds"))["error.type"] == "ExceptionGroup"
    seen.check()


async def test_losers_of_a_race_are_no_errors():
    @action(writes=["answer"])
    async def ask(seconds: float) -> str:
        await anyio.sleep(seconds)
        return "42"

    seen = Seen()
    slow, quick = ask.bind(name="slow", seconds=100.0), ask.bind(name="quick", seconds=0.01)
    await Application(race(slow, quick, into="answer"), hooks=[seen.hook]).run()
    for name in ("run slow", "step ask", "step slow"):
        for span in seen.of(name):
            assert span.status.status_code is StatusCode.UNSET
    loser = attributes(seen.one("run slow"))
    assert loser["shoal.outcome"] == "cancelled"
    assert loser["shoal.cancel.reason"] == "'quick' decided fan-out 'answer'"
    step = attributes(seen.one("step answer"))
    assert step["shoal.children.succeeded"] == step["shoal.children.cancelled"] == 1
    assert {span.status.status_code for span in seen.spans} == {StatusCode.UNSET}
    seen.check()


async def test_a_cancelled_run_has_ended_everywhere():
    seen = Seen()
    async with Runtime() as runtime:
        run = await runtime.start(Application(doubles, hooks=[seen.hook]), {"ns": range(300)})
        await anyio.sleep(0.005)
        run.cancel("enough")
        with pytest.raises(RunCancelled):
            await run.result()
    root = attributes(seen.one("run doubles"))
    assert root["shoal.outcome"] == "cancelled"
    assert root["shoal.cancel.reason"] == "enough"
    assert {span.status.status_code for span in seen.spans} == {StatusCode.UNSET}
    assert not trace.get_current_span().get_span_context().is_valid
    seen.check()


def flaky(fails: int, **options: Any) -> tuple[Any, list[str]]:
    seen: list[str] = []

    @action(writes=["answer"], **options)
    async def ask() -> int:
        await anyio.sleep(0.01)
        span: Any = trace.get_current_span()
        seen.append(span.name)
        if len(seen) <= fails:
            raise ConnectionError("try again")
        return len(seen)

    return ask, seen


async def test_further_attempts_of_an_action_are_spans_in_its_step():
    ask, current = flaky(2, retry=Retry(3, on=ConnectionError, initial=1, jitter=0))
    seen = Seen()
    await Application(ask, hooks=[seen.hook]).run()
    assert seen.tree == ["run ask", "  step ask", "    attempt", "    attempt"]
    assert current == ["step ask", "attempt", "attempt"]
    second, third = seen.of("attempt")
    assert [attributes(one)["shoal.attempt"] for one in (second, third)] == [2, 3]
    assert second.status.status_code is StatusCode.ERROR
    assert attributes(second)["error.type"] == "ConnectionError"
    assert third.status.status_code is StatusCode.UNSET
    assert seen.one("step ask").status.status_code is StatusCode.UNSET
    failed = [one for one in seen.records if one.event_name == "shoal.attempt.failed"]
    assert [one.attributes["shoal.attempt"] for one in failed] == [1, 2]
    assert failed[0].attributes["shoal.attempt.next_in_s"] == 1
    assert failed[0].attributes["exception.message"] == "ConnectionError: try again"
    step = seen.one("step ask").context
    assert step is not None
    assert failed[0].span_id == step.span_id
    counts = {p.attributes["shoal.outcome"]: p.value for p in seen.metric("shoal.attempts")}
    assert counts == {"failed": 2, "succeeded": 1}
    seen.check()


async def test_second_copies_of_late_attempts_are_counted():
    calls = list[int]()

    @action(reads=["n"], writes=["m"])
    async def ask(n: int) -> int:
        calls.append(n)
        is_copy = calls.count(n) == 2
        await anyio.sleep(0.1 if is_copy else 5)
        return n

    seen, each = Seen(), Each(hedge=Hedge(initial=1, budget=1))
    step = fan_out(ask, over="ns", item="n", into="ms", take="m", each=each)
    await Application(step, hooks=[seen.hook]).run({"ns": [1]})
    counts = {p.attributes["shoal.outcome"]: p.value for p in seen.metric("shoal.hedges")}
    assert counts == {"used": 1}
    seen.check()


async def test_an_action_that_fails_for_good_has_an_attempt_that_failed():
    ask, _ = flaky(9, retry=Retry(2, on=ConnectionError, initial=0.01))
    seen = Seen()
    with pytest.raises(ConnectionError):
        await Application(ask, hooks=[seen.hook]).run()
    assert seen.tree == ["run ask", "  step ask", "    attempt"]
    assert {span.status.status_code for span in seen.spans} == {StatusCode.ERROR}
    seen.check()


async def test_further_attempts_of_a_child_are_spans_in_the_step_that_failed():
    ask, current = flaky(2)
    seen = Seen()
    each = Each(retry=Retry(3, on=ConnectionError, initial=0.01))
    asking = fan_out(
        Graph.chain(show, ask, name="both"),
        over="ns",
        item="double",
        into="x",
        each=each,
        take="answer",
    )
    await Application(asking, hooks=[seen.hook]).run({"ns": [1]})
    assert seen.tree == [
        "run x",
        "  step x",
        "    run both",
        "      step show",
        "      step ask",
        "        attempt",
        "        attempt",
    ]
    assert current == ["step ask", "attempt", "attempt"]
    assert [attributes(one)["shoal.attempt"] for one in seen.of("attempt")] == [2, 3]
    assert attributes(seen.one("step ask"))["shoal.outcome"] == "succeeded"
    seen.check()


async def test_a_resumed_run_has_a_new_trace_that_is_linked():
    store = MemoryStore()
    ask, _ = flaky(1)
    seen = Seen()
    app = Application(Graph.chain(show, ask, name="app"), store=store, hooks=[seen.hook])
    with pytest.raises(ConnectionError):
        await app.run({"double": 1}, id="one")
    with seen.tracers.get_tracer("web").start_as_current_span("POST /again"):
        await app.run({"double": 1}, id="one")
    first, second = seen.of("run app")
    assert first.context is not None
    assert second.context is not None
    assert first.context.trace_id != second.context.trace_id
    assert second.parent is None
    links = {dict(link.attributes or {})["shoal.link"]: link.context for link in second.links}
    assert links == {"resumed_from": first.context, "resumed_by": seen.one("POST /again").context}
    assert attributes(second)["shoal.run.resumed"] is True
    assert [one.body for one in seen.records] == ["run app started", "run app resumed"]
    seen.check()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_store_keeps_the_trace_for_a_resume_in_another_process(kind: str, tmp_path: Path):
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "runs.db")
    ask, _ = flaky(1)
    first, second = Seen(store=store), Seen(store=store)
    for seen in (first, second):
        app = Application(ask, store=store, hooks=[seen.hook])
        try:
            await app.run(id="one")
        except ConnectionError:
            assert seen is first
    (link,) = second.one("run ask").links
    known = first.one("run ask").context
    assert known is not None
    assert (link.context.trace_id, link.context.span_id) == (known.trace_id, known.span_id)
    assert link.context.is_remote
    first.check()
    second.check()


async def test_a_halted_run_is_no_error_and_goes_on_in_a_new_trace():
    @action(writes=["answer"])
    async def ask(context: Context) -> str:
        return await context.ask("really", "really?")

    store, seen = MemoryStore(), Seen()
    app = Application(ask, store=store, hooks=[seen.hook])
    halted = await app.run(id="one")
    assert halted.status == "halted"
    assert attributes(seen.one("run ask"))["shoal.outcome"] == "halted"
    assert seen.one("step ask").status.status_code is StatusCode.UNSET
    await app.run(id="one", answers={halted.questions[0].address: "yes"})
    first, second = seen.of("run ask")
    assert second.links[0].context == first.context
    seen.check()


async def test_halted_children_leave_nothing_behind():
    @action(reads=["n"], writes=["answer"])
    async def ask(n: int, context: Context) -> str:
        return await context.ask("really", n)

    seen = Seen()
    app = Application(
        fan_out(ask, over="ns", item="n", into="x"), hooks=[seen.hook], store=MemoryStore()
    )
    await app.run({"ns": range(3)}, id="one")
    assert [attributes(one)["shoal.outcome"] for one in seen.of("run ask")] == ["halted"] * 3
    seen.check()


async def test_the_start_of_a_root_run_is_a_record_of_its_trace():
    seen = Seen()

    @action(writes=["found"])
    async def look() -> list[str]:
        return [one.body for one in seen.records]

    result = await Application(look, name="hours", hooks=[seen.hook]).run(id="one")
    assert result.state["found"] == ["run hours started"]
    (record,) = seen.records
    assert record.event_name == "shoal.run.started"
    assert dict(record.attributes) == {
        "shoal.run.id": "one",
        "shoal.app.name": "hours",
        "shoal.run.resumed": False,
    }
    root = seen.one("run hours").context
    assert root is not None
    assert (record.trace_id, record.span_id) == (root.trace_id, root.span_id)


async def test_waits_of_attempts_are_measured():
    seen = Seen()

    @action(reads=["text"], writes=["m"], limits=Limits(1))
    async def work(text: str) -> str:
        await anyio.sleep(2)
        return text

    both = Graph.chain(show, work, name="both")
    app = Application(
        fan_out(both, over="ns", item="double", into="ms", take="m"), hooks=[seen.hook]
    )
    await app.run({"ns": range(3)})
    waits = [attributes(one).get("shoal.limit.waited_s", 0) for one in seen.of("step work")]
    assert sorted(waits) == pytest.approx([0, 2, 4], abs=0.1)  # the threads take real time
    (point,) = seen.metric("shoal.limit.wait")
    assert (point.count, point.sum) == (2, pytest.approx(6, abs=0.1))
    assert dict(point.attributes) == {
        "shoal.app.name": "both",
        "shoal.step.name": "work",
        "shoal.limit": "Limits(1)",
    }
    seen.check()


async def test_waits_of_children_to_start_are_measured():
    seen = Seen()
    limits = Limits(rate=Rate(1))
    app = Application(
        fan_out(double, over="ns", item="n", into="ms", limits=limits), hooks=[seen.hook]
    )
    await app.run({"ns": range(3)})
    waits = [attributes(one).get("shoal.limit.waited_s", 0) for one in seen.of("run double")]
    assert len(waits) == 3
    assert max(waits) > 0.5
    (point,) = seen.metric("shoal.limit.wait")
    assert point.count == 2
    seen.check()


async def test_names_of_gen_ai_are_behind_a_switch():
    seen, plain = Seen(gen_ai=True), Seen()
    await Application(doubles, name="app", hooks=[seen.hook, plain.hook]).run({"ns": [1]})
    named = {
        name: value for name, value in attributes(seen.one("run app")).items() if "gen_ai" in name
    }
    assert named == {"gen_ai.operation.name": "invoke_workflow", "gen_ai.agent.name": "app"}
    assert not any("gen_ai" in name for name in attributes(seen.one("run double")))
    (point,) = seen.metric("gen_ai.invoke_agent.duration")
    assert dict(point.attributes) == named
    assert "gen_ai" not in repr([attributes(span) for span in plain.spans])
    assert plain.metric("gen_ai.invoke_agent.duration") == []


async def test_secrets_appear_nowhere():
    seen = Seen()

    @action(reads=["token", "n"], writes=["m"], retry=Retry(2, on=OSError, initial=0.01))
    async def use(token: str, n: int) -> int:
        raise OSError(f"{token} is refused") from ValueError(token)

    app = Application(
        fan_out(use, over="ns", item="n", into="ms"), secret=["token"], hooks=[seen.hook]
    )
    with pytest.raises(ExceptionGroup):
        await app.run({"token": "s3cr3t-t0k3n", "ns": [1, 2]})
    exported = [span.to_json() for span in seen.spans] + [
        f"{one.body} {dict(one.attributes)}" for one in seen.records
    ]
    assert "is refused" in "".join(exported)
    assert "s3cr3t" not in "".join(exported)
    assert "s3cr3t" not in repr(seen.reader.get_metrics_data())


async def test_a_trace_that_is_not_sampled_costs_no_attributes_and_stays_so_below():
    seen = Seen(sampler=ALWAYS_OFF)
    inner: list[bool] = []

    @action(writes=["x"])
    async def look() -> int:
        inner.append(trace.get_current_span().get_span_context().trace_flags.sampled)
        return 1

    await Application(look, hooks=[seen.hook]).run()
    assert inner == [False]
    assert seen.spans == []
    seen.check()


async def test_children_in_a_trace_that_is_not_sampled_stay_in_it():
    seen = Seen(sampler=ParentBased(ALWAYS_OFF))
    traces: list[tuple[int, bool]] = []

    @action(reads=["n"], writes=["m"])
    async def look(n: int) -> int:
        found = trace.get_current_span().get_span_context()
        traces.append((found.trace_id, found.trace_flags.sampled))
        return n

    deep = fan_out(
        fan_out(look, over="ns", item="n", into="ms"), over="all", item="ns", into="x", take="ms"
    )
    await Application(deep, hooks=[seen.hook]).run({"all": [[1, 2], [3]]})
    assert len(traces) == 3
    assert len(set(traces)) == 1
    assert not traces[0][1]
    counts = {
        p.attributes["shoal.run.is_child"]: p.count for p in seen.metric("shoal.run.duration")
    }
    assert sum(counts.values()) >= 2
    seen.check()


class Broken:
    """A cache that fails."""

    async def recall(self, key: str) -> None:
        raise OSError("the disk is full")

    async def remember(self, key: str, operations: object, seconds: float) -> None:
        raise OSError("the disk is full")


async def test_a_store_that_fails_costs_a_link_and_nothing_else(caplog: pytest.LogCaptureFixture):
    store = MemoryStore()
    ask, _ = flaky(1)
    for fails in (True, False):
        seen = Seen(store=Broken())
        app = Application(ask, store=store, hooks=[seen.hook])
        with seen.tracers.get_tracer("web").start_as_current_span("POST /"):
            if fails:
                with pytest.raises(ConnectionError):
                    await app.run(id="one")
            else:
                await app.run(id="one")
        assert is_child(seen.one("run ask"), seen.one("POST /")) is fails
        assert is_child(seen.one("step ask"), seen.one("run ask"))
    assert [one.getMessage() for one in caplog.records] == [
        "the trace of run one can't be kept",
        "the earlier trace of run one can't be read",
        "the trace of run one can't be kept",
    ]
    caplog.clear()


async def test_a_hook_of_a_fan_out_alone_sees_its_children_as_roots_of_their_own():
    seen = Seen()
    alone = fan_out(double, over="ns", item="n", into="ms", hooks=[seen.hook])
    await Application(alone).run({"ns": [1, 2]})
    assert seen.tree == ["run double", "  step double"] * 2
    seen.check()


async def test_one_hook_may_be_shared_by_many_runs():
    seen = Seen()
    app = Application(doubles, hooks=[seen.hook])
    async with anyio.create_task_group() as tasks:
        for n in range(5):
            tasks.start_soon(lambda n=n: app.run({"ns": range(n)}))  # pyright: ignore[reportUnknownLambdaType, reportArgumentType]
    assert len(seen.of("run doubles")) == 5
    roots = {span.context.trace_id for span in seen.of("run doubles") if span.context}
    assert len(roots) == 5
    for span in seen.of("run double"):
        assert sum(is_child(span, step) for step in seen.of("step doubles")) == 1
    seen.check()


def test_wrong_arguments_are_refused():
    make: Any = OpenTelemetry
    with pytest.raises(DefinitionError, match="'auto', 'nested', 'linked' or 'off', not 'some'"):
        make(children="some")
    with pytest.raises(DefinitionError, match="takes a store that caches results"):
        make(store="runs.db")


async def test_without_an_sdk_runs_go_on():
    await Application(doubles, hooks=[OpenTelemetry()]).run({"ns": range(3)})


def test_without_the_package_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try: import shoal.watch.telemetry\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert b"pip install 'shoal[otel]'" in done.stdout


@pytest.fixture(autouse=True)
def no_complaints(caplog: pytest.LogCaptureFixture) -> Any:
    """Neither OpenTelemetry nor shoal logs that something of the hook has failed."""
    caplog.set_level(logging.WARNING)
    yield
    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []


@action(reads=["n"], writes=["m"], limits=Limits(1), retry=Retry(2, on=ValueError, initial=0.01))
async def wobble(n: int, context: Context) -> int:
    with context.span("part"):
        await anyio.sleep(0.01)
    if context.attempt == 1 and n:
        raise ValueError(n)
    return n


@action(reads=["double"], writes=["half"])
async def halve(double: int) -> int:
    return double // 2


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
def test_wherever_a_run_is_cancelled_all_its_spans_end(backend: Any, how: Any):
    slow, quick = (wobble.bind(name=name) for name in ("slow", "quick"))
    each = Each(retry=Retry(2, on=ValueError))
    mapped = fan_out(
        Graph.chain(double, show, name="both"),
        over="ns",
        item="n",
        into="x",
        take="text",
        each=each,
    )
    graph = Graph.chain(mapped, race(slow, quick, into="m"), name="graph")

    async def scenario(attempt: Attempt) -> None:
        seen = Seen()
        app = Application(graph, hooks=[seen.hook])
        await attempt(lambda: app.run({"ns": [1, 2], "n": 1}))
        seen.check()
        started = sum(name.startswith("run ") for name in map(str.strip, seen.tree))
        assert started == sum(point.count for point in seen.metric("shoal.run.duration"))
        assert not any(
            span.status.status_code is StatusCode.ERROR
            for span in seen.spans
            if attributes(span).get("shoal.outcome") == "cancelled"
        )

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=60) > 5
