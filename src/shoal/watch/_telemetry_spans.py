"""Spans of runs in flight, of their steps and of their attempts.

Invariants:
- A context that a step or an attempt has attached is detached when the step is left, in the
  opposite order.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import Token
from types import TracebackType
from typing import final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context as OtelContext
from opentelemetry.trace import Span, SpanContext, StatusCode, TraceFlags, set_span_in_context
from opentelemetry.trace import Status as SpanStatus

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import brief
from shoal._events.events import Status, StepStarted, in_short
from shoal._events.identity import RunPath
from shoal._state.state import Operation, Set

from . import _telemetry_names as names

Attributes = dict[str, str | bool | int | float]


@final
class SharedTrace:
    """What runs in one trace share."""

    __slots__ = ("runs",)

    def __init__(self) -> None:
        self.runs = 0


@final
class RunInFlight:
    """A run in flight, and its current step."""

    __slots__ = (
        "attempt",
        "attempt_span",
        "began_at",
        "children",
        "is_inside",
        "span",
        "starting",
        "step",
        "step_ended_at",
        "step_span",
        "tokens",
        "trace",
        "waited",
    )

    def __init__(self, span: Span, shared: SharedTrace, waited: float) -> None:
        self.span = span
        self.trace = shared
        self.began_at = time.perf_counter()
        self.waited = waited
        """Seconds for which the run, or its current step, has waited for limits."""
        self.step = ""
        self.step_span: Span | None = None
        self.step_ended_at: int | None = None
        self.is_inside = False
        """Whether the step is being executed; between attempts of a child it isn't."""
        self.attempt = 1
        self.attempt_span: Span | None = None
        self.tokens: list[Token[OtelContext]] = []
        self.children: dict[str, int] | None = None
        self.starting: dict[int, int] = {}
        """The positions of children that are starting, by the identity of their paths."""


@final
class Inside:
    """The context manager around a step: its span is current inside."""

    __slots__ = ("_event", "_run", "_tracer")

    def __init__(self, tracer: trace.Tracer, run: RunInFlight, event: StepStarted) -> None:
        self._tracer = tracer
        self._run = run
        self._event = event

    def __enter__(self) -> None:
        run, path = self._run, self._event.path
        run.is_inside, run.step_ended_at = True, None
        if run.step_span is not None and run.step == self._event.step:
            # A child is tried again at the step that failed, which has not ended.
            run.attempt += 1
            run.tokens.append(otel_context.attach(set_span_in_context(run.step_span)))
            begin_attempt(self._tracer, run, path, None, counted=True)
            return
        run.step = self._event.step
        attributes = {**identity_of(path), names.ACTION: run.step}
        current = set_span_in_context(run.span)
        run.step_span = self._tracer.start_span(
            f"step {run.step}", context=current, attributes=attributes
        )
        run.tokens.append(otel_context.attach(set_span_in_context(run.step_span)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run = self._run
        run.is_inside, run.step_ended_at = False, time.time_ns()
        status: Status = "succeeded"
        if error is not None:
            status = "failed" if isinstance(error, Exception) else "cancelled"
        end_attempt(run, status, error)
        while run.tokens:
            otel_context.detach(run.tokens.pop())


def identity_of(path: RunPath) -> Attributes:
    """Return the attributes that say which run a span is of, so that any span leads to its run."""
    attributes: Attributes = {
        names.RUN_ID: path.id,
        names.ROOT_ID: path.root.id,
        names.APP: path.act,
    }
    if path.parent is not None:
        attributes[names.KEY] = key_of(path.key)
    return attributes


def begin_attempt(
    tracer: trace.Tracer, run: RunInFlight, path: RunPath, at: int | None, *, counted: bool = False
) -> None:
    """Begin the span of a further attempt, and make it current."""
    assert run.step_span is not None
    number = run.attempt if counted else run.attempt + 1
    run.attempt_span = tracer.start_span(
        "attempt",
        context=set_span_in_context(run.step_span),
        attributes={**identity_of(path), names.ACTION: run.step, names.ATTEMPT: number},
        start_time=at,
    )
    run.tokens.append(otel_context.attach(set_span_in_context(run.attempt_span)))


def end_attempt(run: RunInFlight, status: Status, error: BaseException | None) -> None:
    span, run.attempt_span = run.attempt_span, None
    if span is not None:
        otel_context.detach(run.tokens.pop())
        end_span(span, status, error)


def end_span(
    span: Span, status: Status, error: BaseException | None, at: int | None = None
) -> None:
    """End a span. Only failures are errors: a cancelled loser is no failure of its race."""
    if span.is_recording():
        span.set_attribute(names.OUTCOME, status)
        if status == "failed":
            span.set_status(
                SpanStatus(StatusCode.ERROR, None if error is None else in_short(error))
            )
            if error is not None:
                span.set_attribute(names.ERROR_TYPE, type_of(error))
    span.end(at)


# -- values ----------------------------------------------------------------------------------------


def type_of(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def described(error: BaseException) -> Attributes:
    kind = type_of(error)
    return {
        names.ERROR_TYPE: kind,
        names.EXCEPTION_TYPE: kind,
        names.EXCEPTION_MESSAGE: in_short(error),
    }


def key_of(key: str | int) -> str:
    try:
        return str(key)
    except ValueError:  # more decimal digits than Python converts
        return f"{key:#x}"


def plain(value: object) -> str | bool | int | float:
    """Return a value as OpenTelemetry takes it."""
    if isinstance(value, str | bool) or is_number(value):
        return value  # pyright: ignore[reportReturnType] # it is a number
    return brief(value)


def unpacked(found: Sequence[Operation] | None) -> SpanContext | None:
    """Return the span that a store has kept; None if it has none."""
    for operation in found or ():
        if isinstance(operation, Set) and isinstance(operation.value, str):
            trace_id, span_id, flags = operation.value.split("-")
            return SpanContext(
                int(trace_id, 16),
                int(span_id, 16),
                is_remote=True,
                trace_flags=TraceFlags(int(flags, 16)),
            )
    return None
