"""The names under which runs are reported to OpenTelemetry, all of them."""

from __future__ import annotations

SCOPE = "shoal"
# attributes of spans, and where it says so of metrics and records
RUN_ID = "shoal.run.id"
ROOT_ID = "shoal.run.root_id"
PARENT_ID = "shoal.run.parent_id"
RESUMED = "shoal.run.resumed"
APP = "shoal.app.name"  # metrics too: the application, or the act that a child executes
ACTION = "shoal.step.name"  # metrics too
KEY = "shoal.child.key"
ATTEMPT = "shoal.attempt"
NEXT_IN = "shoal.attempt.next_in_s"
OUTCOME = "shoal.outcome"  # metrics too: succeeded, failed, cancelled, halted
REASON = "shoal.cancel.reason"
CACHED = "shoal.step.cached"
LIMIT = "shoal.limit"  # metrics alone: the limit as it is written, without its keys
WAITED = "shoal.limit.waited_s"
CHILDREN = "shoal.children."  # .total, .succeeded, .failed, .cancelled, .skipped
IS_CHILD = "shoal.run.is_child"  # metrics alone
PLACE = "shoal.grace.place"  # records alone: file, line and function
ERROR_TYPE = "error.type"  # stable conventions from here on
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
# links
LINK = "shoal.link"
SPAWNED_BY = "spawned_by"
RESUMED_FROM = "resumed_from"
RESUMED_BY = "resumed_by"
# metrics
ACTIVE = "shoal.runs.active"
DURATION = "shoal.run.duration"
LIMIT_WAIT = "shoal.limit.wait"
ATTEMPTS = "shoal.attempts"
HEDGES = "shoal.hedges"
# records
RUN_STARTED = "shoal.run.started"
ATTEMPT_FAILED = "shoal.attempt.failed"
CHILD_FAILED = "shoal.child.failed"
GRACE = "shoal.grace.exceeded"
# GenAI conventions 0.1.0, in development: behind a switch
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_WORKFLOW = "invoke_workflow"
GEN_AI_AGENT = "gen_ai.agent.name"
GEN_AI_DURATION = "gen_ai.invoke_agent.duration"
