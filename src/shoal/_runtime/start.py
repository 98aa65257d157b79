"""What a root run starts from, and when that is refused. Imports graphs, the store's port, secrets.

Invariants:
- What is secret is in no ``Beginning``, so no store is ever given it.
- Nothing of a run is executed without all that was secret in it when it was started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple, final

from shoal._engine.execution import Execution
from shoal._errors.exceptions import (
    BadUse,
    MissingSecret,
    NotData,
    RunClaimed,
    RunConflict,
    StateError,
)
from shoal._graph.graph import Graph
from shoal._state.digest import digest
from shoal._state.secrets import Secret, Secrets, boxed, reveal, secrets_in, without_secrets
from shoal.stores._protocol import Beginning, RunRecord


@final
class Start(NamedTuple):
    """What a root run starts from: what is saved of that, and what isn't."""

    beginning: Beginning
    secrets: Mapping[str, Secret]
    """The secret fields."""

    @property
    def fields(self) -> Mapping[str, object]:
        """All fields of the state."""
        return {**self.beginning.first, **self.secrets}

    @classmethod
    def of(cls, beginning: Beginning, secret: Collection[str] = ()) -> Start:
        """Tell apart what is secret among the fields: what is in a box, or named here."""
        return cls(beginning, {}).declaring(secret)

    def declaring(self, secret: Collection[str]) -> Start:
        """Return the same, with those of the fields secret that are named."""
        fields = boxed(self.beginning.first, secret)
        secrets = {**secrets_in(fields), **self.secrets}
        names, first = frozenset(secrets), without_secrets(fields)
        return Start(replace(self.beginning, first=first, secret=names), secrets)


First = Callable[[Execution, RunRecord | None], Awaitable[Start]]
"""Says what a run is to start from, given what the store has of it."""


def only_secrets(
    fields: Mapping[str, object], known: Beginning, where: str
) -> Mapping[str, Secret]:
    """Take what is given besides the id of a run that the store has.

    Raises:
        BadUse: Something of it is not secret in that run.
    """
    for name in sorted(fields.keys() - known.secret):
        names = ", ".join(map(repr, sorted(known.secret))) or "nothing"
        msg = (
            f"{where}(state) takes what is secret in the run, which is {names}, and not {name!r}: "
            f"the rest is saved"
        )
        raise BadUse(msg)
    return secrets_in(boxed(fields, known.secret))


def refuse_exposing(who: str, graph: Graph, fields: Mapping[str, object], secrets: Secrets) -> None:
    """Refuse to start a run whose secrets would be saved or told.

    Raises:
        StateError: An act writes one, or runs over it.
        SecretLeaked: Another field holds what one has.
    """
    if not secrets.names:
        return
    why = graph.exposing(secrets.names)
    if why:
        msg = f"{who} would expose a secret field: {why}"
        raise StateError(msg)
    for name, value in without_secrets(fields).items():
        what = f"{who}: field {name!r} of the initial state"
        secrets.refuse(value, what, ("state", name))


def refuse_in_id(who: str, run_id: str, fields: Mapping[str, object]) -> None:
    """Refuse an id that holds the text of a secret: stores, events and addresses have the id.

    Called before the run is claimed, for a claim is saved under the id
    (see test_an_id_that_holds_a_secret_is_refused_before_anything_is_saved).

    Raises:
        SecretLeaked: It does.
    """
    Secrets.of(fields).refuse(run_id, f"{who}: the id of the run", ("id",))


def refuse_missing(run_id: str, secret: Collection[str], given: Collection[str]) -> None:
    """Refuse to go on with a run without what is secret in it.

    Raises:
        MissingSecret: Naming the fields that are not given.
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


def refuse_conflict(run_id: str, known: Beginning, wanted: Start) -> None:
    """Refuse to go on with a run that was started with something else.

    What is secret may be another one now.

    Raises:
        RunConflict: Naming what differs.
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
            # Also where neither name was chosen: whether one was is not kept.
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
class Left:
    """A run that an earlier execution has left without an end, as far as is known."""

    __slots__ = ("_run_id", "_same", "_secrets", "is_ours")

    def __init__(
        self,
        run_id: str,
        secrets: Mapping[str, object],
        same: Callable[[RunRecord, Mapping[str, Secret]], Start],
    ) -> None:
        """Know nothing of it yet.

        Args:
            run_id: The run.
            secrets: What is secret in it.
            same: Says what it is to start from if that is what the store has.
        """
        self._run_id = run_id
        self._secrets = secrets
        self._same = same
        self.is_ours: bool = False
        """Whether it was there, without an end, when it was claimed."""

    async def first(self, _execution: Execution, known: RunRecord | None) -> Start:
        """Leave to the store what it starts from; called when the run is claimed.

        Raises:
            RunClaimed: It has an end by now.
        """
        if known is None or known.status is not None:
            msg = f"run {self._run_id} was recovered by somebody else, and has ended since"
            raise RunClaimed(msg)
        self.is_ours = True
        return self._same(known, only_secrets(self._secrets, known.beginning, "recover"))
