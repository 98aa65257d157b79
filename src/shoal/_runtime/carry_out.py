"""Carry out commands that watchers in other processes have left for a run.

A command that can't be carried out raises, and its caller logs that and drops it. No run fails
because of a command.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from shoal._engine.commit import Write, commit
from shoal._engine.fanout.read_runs import recorded_asked, recorded_history
from shoal._engine.parts import read_children
from shoal._engine.progress import recorded_questions
from shoal._engine.questions import require_data
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse, brief
from shoal._events.identity import RunPath
from shoal._events.paths import key_of_data
from shoal._limits.limiters import Limiter
from shoal.stores._history import QuestionAnswered
from shoal.stores._watching import Command

from .handle import RunHandle
from .limit_use import change_limits
from .root_run import RootRun

logger = logging.getLogger("shoal")

BY_WATCHER = "a watcher cancelled it"
DRAINED_BY_WATCHER = "a watcher drained it"


def carry_out(root: RootRun, command: Command, limiters: Mapping[str, Limiter]) -> None:
    """Carry out a command for a root run that is executed here; see ``Command``.

    Args:
        root: The run.
        command: The command.
        limiters: The limiters of the runtime, by the names of their owners.

    Raises:
        Exception: It can't be carried out: it is malformed, or what it is about isn't there.
    """
    arguments = dict(command.arguments)
    if command.kind == "cancel":
        root.cancel(_reason(arguments))
    elif command.kind == "cancel child":
        _cancel_child(root, arguments)
    elif command.kind == "drain":
        root.drain(str(arguments.get("reason") or DRAINED_BY_WATCHER))
    elif command.kind == "answer":
        _answer(root, arguments)
    elif command.kind == "change limits":
        owner, part = arguments.pop("owner"), arguments.pop("part", 0)
        change_limits(limiters, root.groups, owner=owner, part=part, numbers=arguments)
    else:
        msg = f"there is no command {command.kind!r}"
        raise BadUse(msg)


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


def _answer(root: RootRun, arguments: Mapping[str, Any]) -> None:
    """Have the run's own task save an answer, before it takes more results of children.

    The child that has asked goes on in this execution if the fan-out that it belongs to lasts, else
    when the run is resumed.
    """
    run = root.run
    for group in root.groups:
        # Only the task of the root run commits to it, and it executes graphs that are nodes, too.
        if run is not None and group.parent.slot_owner is run:
            group.run_in_parent(
                partial(_save_answer, root, arguments["question"], arguments["answer"])
            )
            return
    msg = "the run waits for nothing that could be interrupted to save an answer"
    raise BadUse(msg)


async def _has_asked(root: RootRun, run: Run, question: str) -> bool:
    """Return whether a run or its descendants have asked a question, by its id."""
    # The store's records lead from halted runs to halted children only, not from a child under way.
    for group in root.groups:
        for child in group.halted:
            if any(one.id == question for one in recorded_questions(child.value, child.path)):
                return True
    execution, path = run.config.execution, run.path
    record = await execution.ask(execution.store.load(path.id), f"run {path.id}")
    if record is None:
        return False
    played = await recorded_history(execution, path, record.beginning)
    _, children = await read_children(execution, execution.store, path)
    asked = recorded_asked(path, run.config.graph, played, children)
    return any(one.id == question for one in asked)


async def _save_answer(root: RootRun, question: object, answer: object) -> None:
    """Save an answer; executed by the task of the run. It can't fail the run by being wrong."""
    run = root.run
    assert run is not None, "its task executes this"
    execution, path, why = run.config.execution, run.path, ""
    if not isinstance(question, str) or not await _has_asked(root, run, question):
        why = "the run has not asked it"
    elif question in execution.answers:
        why = "it was answered before"
    try:
        require_data(answer, "answer")
        run.config.secrets.refuse(answer, "an answer")
    except Exception as error:  # noqa: BLE001 # of a watcher in another process: no run's
        why = why or brief(error)
    if why:
        logger.warning("run %s: an answer to question %s is dropped: %s", path.id, question, why)
        return
    assert isinstance(question, str), "else it was dropped"
    await commit(run, Write(questions=(QuestionAnswered(question, answer),)))
    execution.answers[question] = answer
    for group in root.groups:
        group.look_for_answers()
