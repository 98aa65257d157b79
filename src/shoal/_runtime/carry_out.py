"""Carry out commands that watchers in other processes have left for a run.

A command that can't be carried out raises, and its caller logs that and drops it. No run fails
because of a command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from time import time
from typing import Any, cast

from shoal._engine.commit import record_answered, record_steered
from shoal._engine.fanout.read_runs import recorded_asked, recorded_history
from shoal._engine.parts import read_children
from shoal._engine.progress import recorded_questions
from shoal._engine.questions import require_data
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse, ShoalError, brief
from shoal._events.events import Question
from shoal._events.identity import RunPath
from shoal._events.paths import key_of_data
from shoal._limits.limiters import Limiter
from shoal.stores._history import QuestionAnswered, Steered
from shoal.stores._watching import Command, CommandKind

from .answers import kept_answer, refusal_of
from .handle import RunHandle
from .limit_use import change_limits, limiter_of
from .root_run import BY_WATCHER, RootRun

logger = logging.getLogger("shoal")

DRAINED_BY_WATCHER = "a watcher drained it"
ENDED = "the run has ended"
"""Why a command is refused that comes too late."""
REFUSED = "refused"
"""What is on record of a command that could not be carried out."""

Limiters = Callable[[], Mapping[str, Limiter]]
"""Returns the limiters of a runtime by the names of their owners."""


async def carry_out(root: RootRun, command: Command, limiters: Limiters) -> None:
    """Carry out a command for a root run that is executed here, and put it on record.

    Args:
        root: The run.
        command: The command; see ``Command``.
        limiters: Returns the limiters of the runtime, by the names of their owners.

    Raises:
        Exception: It can't be carried out: it is malformed, or what it is about isn't there. That
            is on record, too, if its sender can look for it.
    """
    arguments = dict(command.arguments)
    by = str(arguments.pop("by", ""))
    steered = Steered(command.kind, by, time(), arguments)
    try:
        if command.kind == "answer":
            if not await root.in_turn(partial(_answer, root, arguments, by)):
                raise BadUse(ENDED)
        else:
            act = None
            if command.kind not in ("pause", "resume", "cancel", "drain"):
                act = partial(_act, root, command.kind, arguments, limiters)
            if not await root.steer(steered, act):
                raise BadUse(ENDED)
            if command.kind == "cancel":  # last: nothing is recorded of a run that has ended
                root.cancel(_reason(arguments))
            elif command.kind == "drain":
                root.drain(str(arguments.get("reason") or DRAINED_BY_WATCHER))
    except Exception as error:
        if "id" in arguments and root.run is not None:
            refused = {"id": arguments["id"], "command": command.kind, "why": _text_of(error)}
            with suppress(Exception):  # the run has ended, or its store fails
                await root.steer(Steered(REFUSED, by, time(), refused))
        raise


def _act(
    root: RootRun, kind: CommandKind, arguments: Mapping[str, Any], limiters: Limiters
) -> None:
    told = ("id", "reason", "owner", "part", "key")
    owner, part = arguments.get("owner", ""), arguments.get("part", 0)
    if kind == "cancel child":
        _cancel_child(root, arguments)
    elif kind == "change limits":
        numbers = {name: value for name, value in arguments.items() if name not in told}
        change_limits(limiters(), root.groups, owner=owner, part=part, numbers=numbers)
    elif kind in ("pause limit", "resume limit"):
        limiter, key = limiter_of(limiters(), owner), arguments.get("key")
        (limiter.pause if kind == "pause limit" else limiter.resume)(key, part=part)
    else:
        msg = f"there is no command {kind!r}"
        raise BadUse(msg)


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, ShoalError) else brief(error)


def _reason(arguments: Mapping[str, Any]) -> str:
    return str(arguments.get("reason") or BY_WATCHER)


def _cancel_child(root: RootRun, arguments: Mapping[str, Any]) -> None:
    path = root.path
    for step, visit, act, key in cast("list[tuple[str, int, str, Any]]", arguments["path"]):
        path = RunPath(act=act, parent=path, step=step, visit=visit, key=key_of_data(key))
    if path.parent is None or not RunHandle[Any](root).cancel_child(
        path, _reason(arguments), act=path.act
    ):
        msg = f"no such child is under way: {path!r}"
        raise BadUse(msg)


async def _asked(root: RootRun, run: Run, id_: str) -> Question | None:
    """Return the question of a run or its descendants that has an id; None if there is none."""
    # The store's records lead from halted runs to halted children only, not from a child under way.
    for group in root.groups:
        for child in group.halted:
            for one in recorded_questions(child.value, child.path):
                if one.id == id_:
                    return one
    execution, path = run.config.execution, run.path
    record = await execution.ask(execution.store.load(path.id), f"run {path.id}")
    if record is None:
        return None
    played = await recorded_history(execution, path, record.beginning)
    _, children = await read_children(execution, execution.store, path)
    asked = recorded_asked(path, run.config.graph, played, children)
    return next((one for one in asked if one.id == id_), None)


async def _answer(root: RootRun, arguments: Mapping[str, Any], by: str) -> bool:
    """Save an answer, and let the child go on that has asked, if its fan-out lasts.

    If that is about to end, the child goes on when the run is resumed. A wrong answer can't fail
    the run. Returns False if the run has ended.
    """
    run, id_, answer = root.run, arguments.get("question"), arguments.get("answer")
    if run is None or run.status is not None:
        return False
    execution, path, why = run.config.execution, run.path, ""
    question = await _asked(root, run, id_) if isinstance(id_, str) else None
    if question is None:
        why = "the run has not asked it"
    elif question.id in execution.answers:
        why = "it was answered before"
    else:
        try:
            require_data(answer, "answer")
            run.config.secrets.refuse(answer, "an answer")
        except Exception as error:  # noqa: BLE001 # of a watcher in another process: no run's
            why = brief(error)
        wrong = None if why else refusal_of(question, answer)
        why = why or ("" if wrong is None else wrong.text)
    told = {name: arguments[name] for name in ("id", "question") if name in arguments}
    if why or question is None:
        logger.warning("run %s: an answer to question %s is dropped: %s", path.id, id_, why)
        if "id" in arguments:
            refused = {**told, "command": "answer", "why": why}
            return await record_steered(run, Steered(REFUSED, by, time(), refused))
        return True
    steered = (Steered("answer", by, time(), told),) if "id" in arguments or by else ()
    answered = QuestionAnswered(question.id, kept_answer(question, answer))
    if not await record_answered(run, answered, steered):
        return False
    execution.answers[question.id] = answered.value
    for group in tuple(root.groups):
        group.look_for_answers()
    return True
