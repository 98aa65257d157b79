"""``context.idempotency_key``, computed where the action's function runs.

The key hashes the fields that the action reads, which may be large. Where the function runs they
are there anyway, and most functions don't ask for the key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, final

from shoal._errors.exceptions import NotData
from shoal._state.digest import combined, named, written


@final
class Effect(NamedTuple):
    """What names the effect of one visit of a step, but for the values that the action reads."""

    run_id: str
    step: str
    visit: int
    fields: tuple[str, ...]
    """The fields that take part, in order: those that the action reads and that are there, without
    secrets."""
    child: str = ""
    """How messages name the child, after its run: " (key 'a' of 'map')"."""

    def key(self, value_of: Callable[[str], object]) -> str:
        """Return the key.

        Args:
            value_of: Returns the value of a field when the attempt began.

        Raises:
            NotData: A field can't be hashed.
        """
        parts = [written("idempotency", self.run_id, self.step, str(self.visit))]
        for field in self.fields:
            try:
                parts.append(named(field, value_of(field)))
            except NotData as error:
                msg = (
                    f"action {self.step!r} of run {self.run_id}{self.child} has no idempotency "
                    f"key, since it reads field {field!r}, which can't be hashed: {error}"
                )
                raise NotData(msg) from error
        return combined(parts)


class _HasEffect(Protocol):
    _effect: Effect


def effect_of(context: object) -> Effect:
    """Return the effect of the step whose ``Context`` this is: plain values, to be sent."""
    found: _HasEffect = context  # pyright: ignore[reportAssignmentType] # a `Context` has one
    return found._effect
