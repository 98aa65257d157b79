"""What a root run starts from, and which starts are refused.

Invariants:
- A secret is never part of a ``Beginning``, so no store is ever given one.
- A run is not resumed unless all secrets that it was started with are given again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar, cast, final

from shoal._engine.config import Halts, RunConfig
from shoal._engine.execution import Execution
from shoal._engine.run import Run
from shoal._errors.exceptions import (
    BadUse,
    MissingField,
    MissingSecret,
    NotData,
    RunClaimed,
    RunConflict,
    StateError,
    note,
)
from shoal._events.identity import RunPath
from shoal._graph.graph import Graph
from shoal._limits.flows import Priority
from shoal._state.digest import digest
from shoal._state.secrets import Secret, Secrets, boxed, reveal, secrets_in, without_secrets
from shoal.stores._protocol import Beginning, RunRecord

from .answers import Answers
from .reopening import Reopening

T = TypeVar("T")


@final
class RunStart(NamedTuple):
    """The fields that a root run starts from: those that are saved, and the secret ones."""

    beginning: Beginning
    secrets: Mapping[str, Secret]
    """The secret fields, which are saved nowhere."""

    @property
    def fields(self) -> Mapping[str, object]:
        """All fields of the state."""
        return {**self.beginning.first, **self.secrets}

    @classmethod
    def of(cls, beginning: Beginning, secret: Collection[str] = ()) -> RunStart:
        """Take the secrets out of ``beginning``: boxed values, and the fields named here."""
        return cls(beginning, {}).declaring(secret)

    def declaring(self, secret: Collection[str]) -> RunStart:
        """Return the same start, with the named fields secret as well."""
        fields = boxed(self.beginning.first, secret)
        secrets = {**secrets_in(fields), **self.secrets}
        if not secrets and not self.beginning.secret:
            return self
        names, first = frozenset(secrets), without_secrets(fields)
        return RunStart(replace(self.beginning, first=first, secret=names), secrets)


StartResolver = Callable[[Execution, RunRecord | None], Awaitable[RunStart]]
"""Decides what a run starts from, given the store's record of it, or None if there is none."""


@final
class RunRequest(NamedTuple):
    """One root run as its caller asked for it, checked: what to start from, and how to run it."""

    first: RunStart | StartResolver
    inputs: Mapping[str, object]
    """What the actions take besides fields, from the runtime, the application and the caller."""
    path: RunPath
    answers: Answers | None = None
    """Answers to questions that the run has asked in an earlier execution."""
    halts: Halts | None = None
    """Steps before and after which the run halts; None if there are none."""
    priority: Priority | None = None
    """How urgent it is; None: as its application says."""
    reopening: Reopening | None = None
    """What a run goes back for to a step that it has completed; None: it doesn't."""
    is_recovered: bool = False
    """Whether another execution has left it, and nobody asks for it now."""


def only_secrets(
    fields: Mapping[str, object], known: Beginning, where: str
) -> Mapping[str, Secret]:
    """Return the secrets among ``fields``, which are given to resume a run that the store has.

    Raises:
        BadUse: A field is not secret in that run.
    """
    for name in sorted(fields.keys() - known.secret):
        names = ", ".join(map(repr, sorted(known.secret))) or "none"
        msg = (
            f"{where}(state) takes the secret fields of the run ({names}), and not {name!r}: "
            f"the rest is saved"
        )
        raise BadUse(msg)
    return secrets_in(boxed(fields, known.secret))


def make_run(
    config: RunConfig, fields: Mapping[str, object], path: RunPath, subject: object
) -> Run:
    """Make a root run that starts with ``fields``.

    Raises:
        SecretLeaked: Its id, or a field that is not secret, holds the text of a secret.
        StateError: It would save or publish a secret field.
    """
    secrets = config.secrets
    secrets.learn(fields)
    # Checked here as well as when the request is made, because only the store knows all that is
    # secret in a run that goes on.
    if secrets.names:
        refuse_in_id(subject, path.id, fields)
        refuse_exposing(subject, config.graph, fields, secrets)
    return Run(config, fields, path=path)


def refuse_exposing(
    subject: object, graph: Graph, fields: Mapping[str, object], secrets: Secrets
) -> None:
    """Refuse to start a run whose secrets would be saved or published.

    Raises:
        StateError: An act writes a secret field, or a fan-out runs over one.
        SecretLeaked: Another field holds the text of a secret.
    """
    if not secrets.names:
        return
    why = graph.exposing(secrets.names)
    if why:
        msg = f"{subject} would expose a secret field: {why}"
        raise StateError(msg)
    for name, value in without_secrets(fields).items():
        what = f"{subject}: field {name!r} of the initial state"
        secrets.refuse(value, what, ("state", name))


def refuse_in_id(subject: object, run_id: str, fields: Mapping[str, object]) -> None:
    """Refuse an id that holds the text of a secret: stores, events and addresses show the id.

    Called before the run is claimed, because a claim is saved under the id
    (see test_an_id_that_holds_a_secret_is_refused_before_anything_is_saved).

    Raises:
        SecretLeaked: The id holds the text of a secret.
    """
    secrets = Secrets.of(fields)
    if secrets.names:
        secrets.refuse(run_id, f"{subject}: the id of the run", ("id",))


def refuse_missing(run_id: str, secret: Collection[str], given: Collection[str]) -> None:
    """Refuse to resume a run without all of its secrets.

    Raises:
        MissingSecret: Secret fields are not given; the message names them.
    """
    missing = sorted(set(secret).difference(given))
    if missing:
        fields = ", ".join(f"{name!r}: ..." for name in missing)
        names = ", ".join(map(repr, missing))
        msg = (
            f"run {run_id} was started with {names} as secret, which is saved nowhere; to go on "
            f"with it give that again: run(State({{{fields}}}, secret={{{names}}}), "
            f"id={run_id!r}), or {{{fields}}} to recover(), fork() or retry_failed()"
        )
        raise MissingSecret(msg, missing)


def refuse_other_owner(run_id: str, known: Beginning, owner: str | None) -> None:
    """Refuse to resume a run for another owner than that which it was started for.

    Raises:
        RunConflict: It has another owner, or none; the message doesn't name them.
    """
    if owner is not None and owner != known.owner:
        what = f"run {run_id} exists, and is not of the given owner"
        msg = (
            f"{what}; to go on with it leave out owner=, if the caller may do so: run("
            f"id={run_id!r}); for a new run take another id"
        )
        raise RunConflict(msg, what)


def refuse_conflict(run_id: str, known: Beginning, wanted: RunStart) -> None:
    """Refuse to resume a run that was started with something else.

    Secrets are not compared: a token, say, may have been renewed.

    Raises:
        RunConflict: The message names what differs.
    """
    begun = wanted.beginning
    first = {name: reveal(value) for name, value in wanted.fields.items()}
    differs = [
        f"{what} was {before!r} and is {now!r} now"
        for what, before, now in (
            ("the application's name", known.application, begun.application),
            ("the application's version", known.version, begun.version),
            ("what it was forked from", known.forked_from, begun.forked_from),
        )
        if before != now
    ]
    fields = [
        field
        for field in sorted({*known.first, *first} - known.secret)
        if not _is_same(known.first, first, field, run_id)
    ]
    if fields:
        differs.append(f"its initial state differs in {', '.join(map(repr, fields))}")
    if differs:
        if known.application != begun.application:
            # Said even if neither name was chosen: the store doesn't have whether one was.
            differs[0] += (
                f" (without name=, it is made of the steps' names; to go on with the run under its "
                f"old name: Application(..., name={known.application!r}))"
            )
        leave_out = f"To go on with it leave out the state: run(id={run_id!r}). " if fields else ""
        what = f"run {run_id} exists, and was started with something else: {'; '.join(differs)}"
        msg = (
            f"{what}. {leave_out}For a new run take another id, or start from what this one has: "
            f"fork({run_id!r}, update={{...}})"
        )
        raise RunConflict(msg, what)


def _is_same(
    one: Mapping[str, object], other: Mapping[str, object], field: str, run_id: str
) -> bool:
    if field not in one or field not in other:
        return False
    first, second = one[field], other[field]
    try:
        return first is second or digest(first) == digest(second)
    except NotData as error:
        msg = (
            f"run {run_id} exists, and whether it was started with the same field {field!r} can't "
            f"be told: {error}; or leave out the state: run(id={run_id!r})"
        )
        raise NotData(msg) from error


@final
class OrphanStart:
    """The start of a run that an earlier execution has left without an end, as far as is known.

    Its application recovers the run with ``unless_taken``, around an execution of a request that
    begins with ``resolve``.
    """

    __slots__ = ("_is_ours", "_run_id", "_same", "_secrets")

    def __init__(
        self,
        run_id: str,
        secrets: Mapping[str, object],
        same: Callable[[RunRecord, Mapping[str, Secret]], RunStart],
    ) -> None:
        """Describe the run; the store is not asked yet.

        Args:
            run_id: The run.
            secrets: The values of its secret fields.
            same: Makes the start that repeats the one that the store has, with these secrets.
        """
        self._run_id = run_id
        self._secrets = secrets
        self._same = same
        # Set once the run was claimed here and had no end. From then on a RunClaimed is about
        # another run: a store of its children's refuses them.
        self._is_ours = False

    async def resolve(self, _execution: Execution, known: RunRecord | None) -> RunStart:
        """Return the start that the store has; called when the run is claimed.

        Raises:
            RunClaimed: The run has ended meanwhile, or the store no longer has it.
        """
        if known is None or known.status is not None:
            msg = f"run {self._run_id} was recovered by another process, and has ended since"
            raise RunClaimed(msg)
        self._is_ours = True
        return self._same(known, only_secrets(self._secrets, known.beginning, "recover"))

    async def unless_taken(self, launched: Awaitable[T]) -> T | None:
        """Return what ``launched`` returns; None if there is nothing to recover.

        Raises:
            Exception: What ``launched`` raises, but not that another execution has the run.
        """
        try:
            return await launched
        except RunClaimed:
            if self._is_ours:
                raise
            return None


def _lacks_field(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_lacks_field, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, MissingField)


def note_missing(run: Run) -> None:
    """Say what to do if a resumed run lacks a field that the program has, perhaps, only now.

    Its beginning is saved, so that "pass it to run()" would be refused.
    """
    error = run.error
    if error is not None and run.config.execution.is_resumed and _lacks_field(error):
        run_id = run.path.id
        note(
            error,
            f"shoal: run {run_id} was resumed; if the program that has begun it knew no such field "
            f"yet, begin a new run with its state: fork({run_id!r}, update={{field: value}})",
        )
