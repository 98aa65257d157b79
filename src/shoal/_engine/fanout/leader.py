"""``Leader``: which contestant leads a race by its first item, as hooks receive it.

Invariants:
- A leader is published after the decision for it is saved, and before the others are cancelled.
- It is published once, and again only if its items count no more.
"""

from __future__ import annotations

from typing import final

from shoal._engine.publish import publish_leader_changed
from shoal._engine.run import Run
from shoal._events.events import ChildName
from shoal._events.identity import RunPath

from .race import Race


@final
class Leader:
    """The leader of one step's race, as it was published last."""

    __slots__ = ("_published", "_run", "_step")

    def __init__(self, run: Run, step: str) -> None:
        """Begin without a leader.

        Args:
            run: The run that executes the step.
            step: The step's name.
        """
        self._run = run
        self._step = step
        self._published: ChildName | None = None

    async def publish(self, race: Race | None) -> None:
        """Publish the leader of ``race`` if it is another one than before.

        Raises:
            HookFailed: A guarding hook raised.
        """
        leader = None if race is None or race.is_broken else race.winner
        if leader == self._published:
            return
        self._published = leader
        run = self._run
        if not run.config.hooks.leader_changed:
            return
        path = reason = None
        if leader is None:
            reason = "the race is run again" if race is None else race.why_broken
        else:
            path = RunPath(
                act=leader.act,
                parent=run.path,
                step=self._step,
                visit=run.visit(self._step),
                key=leader.key,
            )
        await publish_leader_changed(run, self._step, path, reason or "")
