"""OpenTelemetry: runs as traces, metrics and log records.

The hook needs the API package alone, ``shoal[otel]``; without an SDK it does nothing that can be
seen. Spans are current while user code runs, so the spans of HTTP clients nest in them.

Invariants:
- Spans, metrics and records have names, ids, keys, counts, and types and texts of errors, in which
  secrets are masked. They have no field of a state, no element, no result.
- A trace has a bounded size: further children begin traces of their own, each with one link to the
  step that started it. No span has links to its children.
- A span that is begun is ended when the hook receives the end of its step or run.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar, Literal, final

import anyio

from shoal._errors.exceptions import DefinitionError, brief
from shoal._events.events import (
    AttemptEnded,
    Cancelled,
    ChildEnded,
    ChildHalted,
    ChildStarted,
    Done,
    Failed,
    GraceExceeded,
    HedgeEnded,
    RunEnded,
    RunStarted,
    SpanStarted,
    Status,
    StepEnded,
    StepStarted,
    WaitEnded,
    Waiting,
)
from shoal._events.hooks import Hook, HookResult
from shoal._events.identity import RunPath
from shoal._state.state import Set
from shoal._version import __version__
from shoal.stores._protocol import CachesResults

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, trace
    from opentelemetry._logs import LoggerProvider, SeverityNumber, get_logger
    from opentelemetry.context import Context as OtelContext
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import (
        INVALID_SPAN,
        Link,
        Span,
        SpanContext,
        TracerProvider,
        set_span_in_context,
    )

    from ._telemetry_spans import (
        Attributes,
        Inside,
        RunInFlight,
        SharedTrace,
        begin_attempt,
        described,
        end_attempt,
        end_span,
        identity_of,
        key_of,
        plain,
        type_of,
        unpacked,
    )
except ImportError as _missing:
    _msg = f"shoal.watch.telemetry needs OpenTelemetry ({_missing}): pip install 'shoal[otel]'"
    raise ImportError(_msg) from _missing

from . import _telemetry_names as names

__all__ = ["OpenTelemetry"]

logger: logging.Logger = logging.getLogger("shoal.watch")

NESTED = 100
"""Children of one step whose spans are in the trace of the step. Viewers show that many at once."""
IN_ONE_TRACE = 1000
"""Child runs in one trace, of all its steps together. Viewers become slow at some 2,000 spans, and
a run has at least two."""
KNOWN = 10_000
"""Runs that were executed in this process whose traces are known, if they are resumed here."""
KEPT = 30 * 86400.0
"""Seconds for which a store keeps the trace of a run: longer than traces are usually kept."""
BOUNDARIES = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
"""Bounds of the buckets of durations, in seconds: from a cached answer to a run of hours."""

Children = Literal["auto", "nested", "linked", "off"]


@final
class OpenTelemetry(Hook):
    """A hook that reports runs to OpenTelemetry.

    *Spans*: ``run <application>``, in it a ``step <action>`` for each step, and in a step ``run
    <act>`` for each child. Further attempts of a step are spans ``attempt``. A failed run or step
    has the status ERROR and ``error.type``; a cancelled one, such as a race's loser, doesn't, and
    has ``shoal.outcome`` and ``shoal.cancel.reason``. A step that starts children has their counts.
    ``context.span`` makes a span too.

    A root run is part of the trace that is current where it is started, or begins one. If it is
    resumed, it begins a new trace, which is linked to the one before.

    *Metrics*: ``shoal.runs.active``, ``shoal.run.duration``, ``shoal.limit.wait``,
    ``shoal.attempts``.

    *Records*: the start of each root run, because spans are exported when they end, which may be
    hours later; and each failed attempt.

    Args:
        children: Where the spans of children are. ``"auto"``: the first 100 children of a step are
            in its trace, as long as the trace has fewer than 1,000 runs. Others begin traces of
            their own, linked to the step, so a sampler may drop most of them. ``"nested"``: all are
            in the trace. ``"linked"``: none is. ``"off"``: children have no spans, and a record for
            each one that failed.
        gen_ai: Whether root runs have the GenAI conventions' names for workflows as well, so that
            viewers of language models group them. The conventions may still change.
        store: A store that caches results, such as any of shoal's: it keeps the trace of each run
            for 30 days, so that a resume in another process is linked as well. By default those of
            the last 10,000 runs of the process are known.
        tracer_provider: Instead of the global one.
        meter_provider: Instead of the global one.
        logger_provider: Instead of the global one.

    Raises:
        DefinitionError: An argument is invalid.

    Examples:
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> app = Application(square, name="squares", hooks=[OpenTelemetry()])
        >>> app.run_sync({"n": 3}).state["square"]
        9
    """

    observer: ClassVar[bool] = True

    def __init__(
        self,
        *,
        children: Children = "auto",
        gen_ai: bool = False,
        store: CachesResults | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        """Get a tracer, a meter and a logger; see the class."""
        if children not in ("auto", "nested", "linked", "off"):
            msg = (
                f"OpenTelemetry(children=...) is 'auto', 'nested', 'linked' or 'off', not "
                f"{brief(children)}"
            )
            raise DefinitionError(msg)
        if store is not None and not isinstance(store, CachesResults):
            msg = (
                f"OpenTelemetry(store=...) takes a store that caches results "
                f"(shoal.stores.CachesResults), not {brief(store)}"
            )
            raise DefinitionError(msg)
        self._children = children
        self._gen_ai = gen_ai
        self._store = store
        self._tracer = trace.get_tracer(names.SCOPE, __version__, tracer_provider)
        self._logger = get_logger(names.SCOPE, __version__, logger_provider)
        meter = metrics.get_meter(names.SCOPE, __version__, meter_provider)
        # Read when metrics are exported: a count for each start and end would cost more than both.
        self._in_flight: dict[tuple[str, bool], int] = {}
        meter.create_observable_up_down_counter(
            names.ACTIVE, [partial(_observed, self._in_flight)], "{run}", "Runs in flight"
        )
        self._duration = meter.create_histogram(
            names.DURATION,
            "s",
            "How long executions of runs took",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._limit_wait = meter.create_histogram(
            names.LIMIT_WAIT,
            "s",
            "How long attempts and children waited for limits",
            explicit_bucket_boundaries_advisory=BOUNDARIES,
        )
        self._attempts = meter.create_counter(
            names.ATTEMPTS, "{attempt}", "Attempts of steps that may have several"
        )
        self._hedges = meter.create_counter(
            names.HEDGES, "{attempt}", "Second copies of late attempts"
        )
        self._agent_duration = (
            meter.create_histogram(names.GEN_AI_DURATION, "s") if gen_ai else None
        )
        self._runs: dict[RunPath, RunInFlight] = {}
        self._unseen: dict[RunPath, float] = {}
        """Children without spans, and when they began."""
        self._since: dict[RunPath, Waiting] = {}
        """Children that wait to start."""
        self._waited: dict[RunPath, float] = {}
        """Children that are starting, and have waited."""
        self._earlier: OrderedDict[str, SpanContext] = OrderedDict()
        """The last traces of root runs of this process."""

    # -- runs -------------------------------------------------------------------------------------

    def on_run_started(self, event: RunStarted) -> HookResult:
        """Begin the span of a run."""
        path = event.path
        which = path.act, path.parent is not None
        self._in_flight[which] = self._in_flight.get(which, 0) + 1
        if path.parent is not None:
            self._begin_child(path, event)
            return None
        current, earlier = otel_context.get_current(), self._earlier.get(path.id)
        if self._store is None:
            self._begin_root(event, current, earlier)
            return None
        return self._begin_root_kept(event, current, earlier, self._store)

    async def _begin_root_kept(
        self,
        event: RunStarted,
        current: OtelContext,
        earlier: SpanContext | None,
        store: CachesResults,
    ) -> None:
        key = f"opentelemetry:{event.run_id}"
        if event.resumed and earlier is None:
            try:
                earlier = unpacked(await store.recall(key))
            except Exception:
                logger.exception("the earlier trace of run %s can't be read", event.run_id)
        run = self._begin_root(event, current, earlier)
        kept = run.span.get_span_context()
        if kept.is_valid:
            packed = f"{kept.trace_id:032x}-{kept.span_id:016x}-{int(kept.trace_flags):02x}"
            try:
                await store.remember(key, (Set("trace", packed),), KEPT)
            except Exception:
                logger.exception("the trace of run %s can't be kept", event.run_id)

    def _begin_root(
        self, event: RunStarted, current: OtelContext, earlier: SpanContext | None
    ) -> RunInFlight:
        links: list[Link] = []
        if event.resumed:
            caller = trace.get_current_span(current).get_span_context()
            if earlier is not None:
                links.append(Link(earlier, {names.LINK: names.RESUMED_FROM}))
            if caller.is_valid:
                links.append(Link(caller, {names.LINK: names.RESUMED_BY}))
            current = set_span_in_context(INVALID_SPAN, current)
        run = self._begin(event, current, links, SharedTrace())
        known = run.span.get_span_context()
        if known.is_valid:
            self._earlier[event.run_id] = known
            if len(self._earlier) > KNOWN:
                self._earlier.popitem(last=False)
        # Later than the span, so that the record is of its trace.
        self._record(
            names.RUN_STARTED,
            SeverityNumber.INFO,
            f"run {event.path.act} {'resumed' if event.resumed else 'started'}",
            {names.RUN_ID: event.run_id, names.APP: event.path.act, names.RESUMED: event.resumed},
            run.span,
        )
        return run

    def _begin_child(self, path: RunPath, event: RunStarted) -> None:
        assert path.parent is not None
        if self._children == "off" or path.parent in self._unseen:
            self._unseen[path] = time.perf_counter()
            return
        parent = self._runs.get(path.parent)
        current = otel_context.get_current()
        if parent is None:  # its parent has other hooks
            self._begin(event, current, (), SharedTrace())
            return
        position = parent.starting.pop(id(path), 0)
        step = parent.step_span or parent.span
        is_nested = self._is_nested(position, parent.trace)
        if not step.is_recording() and (is_nested or not step.get_span_context().is_valid):
            # Nothing of it would be recorded: its trace is not sampled, or there is no SDK.
            self._unseen[path] = time.perf_counter()
            return
        if is_nested:
            parent.trace.runs += 1
            self._begin(event, set_span_in_context(step, current), (), parent.trace)
            return
        links = (Link(step.get_span_context(), {names.LINK: names.SPAWNED_BY}),)
        alone = set_span_in_context(INVALID_SPAN, current)
        run = self._begin(event, alone, links, SharedTrace())
        if not (run.span.is_recording() or step.is_recording()):
            # Its spans would be children of this span, or of the step's: neither is recorded.
            del self._runs[path]
            self._unseen[path] = run.began_at

    def _is_nested(self, position: int, shared: SharedTrace) -> bool:
        if self._children == "auto":
            return position < NESTED and shared.runs < IN_ONE_TRACE
        return self._children == "nested"

    def _begin(
        self,
        event: RunStarted,
        parent: OtelContext,
        links: list[Link] | tuple[Link, ...],
        shared: SharedTrace,
    ) -> RunInFlight:
        path = event.path
        waited = self._waited.pop(path, 0.0)
        attributes = identity_of(path)
        if path.parent is not None:
            attributes[names.PARENT_ID] = path.parent.id
        elif self._gen_ai:
            attributes |= {
                names.GEN_AI_OPERATION: names.GEN_AI_WORKFLOW,
                names.GEN_AI_AGENT: path.act,
            }
        if event.resumed:
            attributes[names.RESUMED] = True
        if waited:
            attributes[names.WAITED] = round(waited, 6)
        # The attributes are given at the start, where samplers see them.
        span = self._tracer.start_span(
            f"run {path.act}", context=parent, attributes=attributes, links=links
        )
        run = self._runs[path] = RunInFlight(span, shared, 0.0)
        return run

    def on_run_ended(self, event: RunEnded) -> None:
        """End the span of a run."""
        path = event.path
        which = path.act, path.parent is not None
        if which in self._in_flight:
            self._in_flight[which] -= 1
        run = self._runs.pop(path, None)
        began_at = self._unseen.pop(path, None) if run is None else run.began_at
        if began_at is None:
            return  # the hook has joined later than the run began
        seconds = time.perf_counter() - began_at
        labels: Attributes = {names.APP: path.act, names.OUTCOME: event.status}
        self._duration.record(seconds, {**labels, names.IS_CHILD: path.parent is not None})
        if run is None:
            return
        if self._agent_duration is not None and path.parent is None:
            named: Attributes = {
                names.GEN_AI_OPERATION: names.GEN_AI_WORKFLOW,
                names.GEN_AI_AGENT: path.act,
            }
            if event.status == "failed" and event.error is not None:
                named[names.ERROR_TYPE] = type_of(event.error)
            self._agent_duration.record(seconds, named)
        if run.step_span is not None:  # its end is told before, unless it never came to that
            self._end_step(run, event.status, event.error)
        if event.reason and run.span.is_recording():
            run.span.set_attribute(names.REASON, event.reason)
        end_span(run.span, event.status, event.error)

    # -- steps ------------------------------------------------------------------------------------

    def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
        """Return a context manager in which the span of the step is current."""
        run = self._runs.get(event.path)
        return _NOTHING if run is None else Inside(self._tracer, run, event)

    def on_step_ended(self, event: StepEnded) -> None:
        """End the span of a step."""
        run = self._runs.get(event.path)
        if run is not None and run.step_span is not None:
            if event.cached:
                run.step_span.set_attribute(names.CACHED, True)
            self._end_step(run, event.status, event.error)

    def _end_step(self, run: RunInFlight, status: Status, error: BaseException | None) -> None:
        span, ended_at = run.step_span, run.step_ended_at
        assert span is not None
        run.step_span = run.step_ended_at = None
        if span.is_recording():
            if run.waited:
                span.set_attribute(names.WAITED, round(run.waited, 6))
            if run.children is not None:
                counts = {f"{names.CHILDREN}{how}": count for how, count in run.children.items()}
                span.set_attributes(
                    {**counts, f"{names.CHILDREN}total": sum(run.children.values())}
                )
        run.waited, run.children, run.attempt = 0.0, None, 1
        run.starting.clear()
        end_span(span, status, error, ended_at)

    def on_attempt_ended(self, event: AttemptEnded) -> None:
        """Count an attempt; report its failure, and begin the span of the next one."""
        outcome = "succeeded" if event.error is None else "failed"
        self._attempts.add(
            1, {names.APP: event.path.act, names.ACTION: event.step, names.OUTCOME: outcome}
        )
        run = self._runs.get(event.path)
        if event.error is None:
            return
        attributes: Attributes = {
            names.RUN_ID: event.run_id,
            names.APP: event.path.act,
            names.ACTION: event.step,
            names.ATTEMPT: event.attempt,
        }
        if event.next_in is not None:
            attributes[names.NEXT_IN] = event.next_in
        again = "" if event.next_in is None else f"; the next begins in {event.next_in:.3g} s"
        self._record(
            names.ATTEMPT_FAILED,
            SeverityNumber.WARN,
            f"attempt {event.attempt} of {event.step} failed{again}",
            {**attributes, **described(event.error)},
            None if run is None else run.attempt_span or run.step_span,
        )
        if run is None:
            return
        run.attempt = event.attempt
        if event.next_in is not None and run.is_inside:
            # The action's own attempts: the step is left when the last one has ended.
            end_attempt(run, "failed", event.error)
            later = time.time_ns() + int(event.next_in * 1e9)
            begin_attempt(self._tracer, run, event.path, later)

    # -- children ---------------------------------------------------------------------------------

    def on_child_started(self, event: ChildStarted) -> None:
        """Note what the start of the child's run doesn't say."""
        parent = self._runs.get(event.path)
        if parent is not None:
            parent.starting[id(event.child)] = event.position
        waiting = self._since.pop(event.child, None)
        if waiting is not None:
            seconds = anyio.current_time() - waiting.since
            self._limit_wait.record(
                seconds, {names.APP: event.child.act, names.LIMIT: waiting.limit}
            )
            self._waited[event.child] = seconds

    def on_child_ended(self, event: ChildEnded) -> None:
        """Count a child by its outcome."""
        outcome = event.outcome
        self._forget(outcome.path)
        parent = self._runs.get(event.path)
        if parent is None:
            return
        counts = parent.children
        if counts is None:
            counts = parent.children = {}
        how = (
            "succeeded"
            if isinstance(outcome, Done)
            else "failed"
            if isinstance(outcome, Failed)
            else "cancelled"
            if isinstance(outcome, Cancelled)
            else "skipped"
        )
        counts[how] = counts.get(how, 0) + 1
        if self._children == "off" and isinstance(outcome, Failed):
            self._record(
                names.CHILD_FAILED,
                SeverityNumber.ERROR,
                f"child {outcome.act} of {event.step} failed",
                {
                    names.RUN_ID: outcome.run_id,
                    names.PARENT_ID: event.run_id,
                    names.APP: outcome.act,
                    names.KEY: key_of(outcome.key),
                    **described(outcome.error),
                },
                parent.step_span,
            )

    def on_child_halted(self, event: ChildHalted) -> None:
        """Forget a child that waits for answers."""
        self._forget(event.halted.path)

    def _forget(self, child: RunPath) -> None:
        if self._since or self._waited:  # else most children would be hashed for nothing
            self._since.pop(child, None)
            self._waited.pop(child, None)

    def on_hedge_ended(self, event: HedgeEnded) -> None:
        """Count a second copy of a late attempt."""
        outcome = "used" if event.used else "unused"
        self._hedges.add(
            1, {names.APP: event.path.act, names.ACTION: event.step, names.OUTCOME: outcome}
        )

    # -- waits, spans, grace ----------------------------------------------------------------------

    def on_waiting(self, event: Waiting) -> None:
        """Note when a child begins to wait; the wait of an attempt is measured by its end."""
        if not event.step:
            self._since[event.path] = event

    def on_wait_ended(self, event: WaitEnded) -> None:
        """Record how long an attempt has waited."""
        self._limit_wait.record(
            event.seconds,
            {names.APP: event.path.act, names.ACTION: event.step, names.LIMIT: event.limit},
        )
        run = self._runs.get(event.path)
        if run is not None:
            run.waited += event.seconds

    def around_span(self, event: SpanStarted) -> AbstractContextManager[object]:
        """Return a context manager around a part of an action, with a span of its own."""
        if event.path not in self._runs:
            return _NOTHING
        attributes = {name: plain(value) for name, value in event.attributes.items()}
        return self._tracer.start_as_current_span(event.name, attributes=attributes)

    def on_grace_exceeded(self, event: GraceExceeded) -> None:
        """Report code that still runs long after it was cancelled."""
        run = self._runs.get(event.path)
        step = event.step or event.path.act
        late = f"{step} still runs {event.seconds:g} s after it was cancelled"
        if event.what != "action":
            late += f", in a call of its {event.what} {event.name}".rstrip()
        self._record(
            names.GRACE,
            SeverityNumber.WARN,
            late,
            {
                names.RUN_ID: event.run_id,
                names.APP: event.path.act,
                names.ACTION: event.step,
                names.PLACE: event.place,
            },
            None if run is None else run.step_span,
        )

    def _record(
        self,
        name: str,
        severity: SeverityNumber,
        body: str,
        attributes: Attributes,
        span: Span | None,
    ) -> None:
        context = otel_context.get_current()
        if span is not None:
            context = set_span_in_context(span, context)
        self._logger.emit(
            timestamp=time.time_ns(),
            context=context,
            severity_number=severity,
            severity_text=severity.name,
            body=body,
            attributes=attributes,
            event_name=name,
        )


def _observed(
    in_flight: dict[tuple[str, bool], int], _options: CallbackOptions
) -> Iterator[Observation]:
    """Yield how many runs are in flight; called by the exporter's thread."""
    for (act, is_child), count in [*in_flight.items()]:
        yield Observation(count, {names.APP: act, names.IS_CHILD: is_child})


_NOTHING: AbstractContextManager[object] = nullcontext()
