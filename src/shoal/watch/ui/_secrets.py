"""Tell which secret fields a run has: without their values it can't be executed again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast, final

from shoal._runtime.application import Application
from shoal.stores._protocol import Browses, Store

REMEMBERED = 1_000
"""Runs whose secret fields' names are kept: more than there are open pages."""


def why_not_here(missing: Collection[str]) -> str:
    """Say why a run with secret fields isn't executed here."""
    fields = "fields" if len(missing) > 1 else "field"
    return (
        f"It has the secret {fields} {', '.join(sorted(missing))}, saved nowhere, which this page "
        "doesn't take: run it again by a program that has them."
    )


@final
class Secrets:
    """Tells which secret fields runs have. Nothing that runs them again without these succeeds."""

    def __init__(self, store: Browses, applications: Mapping[str, Application[Any]]) -> None:
        """Ask ``store`` about runs of ``applications``, by name."""
        self._store = store
        self._applications = applications
        self._known: dict[str, frozenset[str]] = {}

    async def of(self, run_id: str, application: str) -> frozenset[str]:
        """Return the names of the secret fields of a root run.

        The store has to decode the run's first state, so it is asked once for each run, and only if
        the run's application is known here.
        """
        known = self._applications.get(application)
        if known is None:
            return frozenset()
        if run_id not in self._known:
            try:
                record = await cast("Store", self._store).load(run_id)
            except Exception:  # noqa: BLE001 # running it again would say why
                return known.secret
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            declared = frozenset[str]() if record is None else record.beginning.secret
            self._known[run_id] = declared | known.secret
        return self._known[run_id]
