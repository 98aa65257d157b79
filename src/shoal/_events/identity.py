"""Identity of a run: who its parent is, and which child of it. Imports errors.

Invariants:
- An id depends on nothing but (parent id, step, visit, act, key): never on call order, on sequence
  numbers or on time. So a crash finds its children again, and a loop's second visit fresh ones.
- ``1`` and ``"1"`` are different keys.
- Keys and ids are plain, also where a member of an enum was given: so a resume, which has them from
  a store, finds what was there.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import final

from shoal._errors.exceptions import brief

Key = str | int
"""What names a child within its fan-out."""


def plain_key(key: object) -> Key | None:
    """Return the key that ``key`` is: of a subclass, what it is of that; None: it can't be one."""
    if isinstance(key, str):
        return key if type(key) is str else str.__str__(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return key if type(key) is int else int.__int__(key)
    return None


@final
class RunPath:
    """Where a run stands: its id, the run that started it, and as which child.

    A value: equal to one of the same id, and not to be changed. The id of a child is a hash made
    when somebody first asks, since most children of a large map are never asked.
    """

    __slots__ = ("_id", "act", "depth", "key", "parent", "step", "visit")

    def __init__(
        self,
        *,
        run_id: str | None = None,
        act: str = "",
        parent: RunPath | None = None,
        step: str = "",
        visit: int = 0,
        key: Key = "",
    ) -> None:
        """Describe a root run by its id, or a child by its parent, step, visit, act and key."""
        # Of an enum's member, too: else it would be formatted in the ids of children, by its name.
        self._id = str.__str__(run_id) if isinstance(run_id, str) else run_id
        self.act: str = act
        self.parent: RunPath | None = parent
        self.step: str = step
        self.visit: int = visit
        self.key: Key = key
        self.depth: int = 0 if parent is None else parent.depth + 1

    @property
    def id(self) -> str:
        """The run's id: as given for a root run, 32 hexadecimal digits for a child."""
        if self._id is None:
            assert self.parent is not None, "a root run has its id from the start"
            self._id = child_id(self.parent.id, self.step, self.visit, self.act, self.key)
        return self._id

    @property
    def parent_id(self) -> str | None:
        """The id of the run that started this one; None for a root run."""
        return None if self.parent is None else self.parent.id

    @property
    def root(self) -> RunPath:
        """The root run that it descends from; itself, if it is one."""
        path = self
        while path.parent is not None:
            path = path.parent
        return path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunPath) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        """Show the chain of keys that leads here."""
        if self.parent is None:
            return f"<RunPath {self.act} {self.id}>"
        return f"{self.parent!r}/{self.step}#{self.visit}/{self.act}[{brief(self.key)}]"


def child_id(parent_id: str, step: str, visit: int, act: str, key: Key) -> str:
    """Hash the identity of a child into 32 hexadecimal digits (BLAKE2b, 128 bits).

    Each part is prefixed with its length, and the key with its type, so that no two different
    identities share one text.
    """
    # The base classes' own methods: an enum member that equals "a" has the id of "a".
    name = f"i{_digits(key)}" if isinstance(key, int) else f"s{str.__str__(key)}"
    text = "".join(f"{len(part)}:{part}" for part in (parent_id, step, str(visit), act, name))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _digits(key: int) -> str:
    """Write ``key`` in decimal digits, however many, and whatever Python was told of their number.

    See test_the_id_of_a_vast_key_depends_on_nothing_else.
    """
    try:
        return int.__repr__(key)
    except ValueError:  # more digits than Python writes
        from decimal import Decimal  # noqa: PLC0415 # hardly any program has such keys

        return str(Decimal(key))


def new_run_id() -> str:
    """Make a random id for a root run that was given none: 32 hexadecimal digits."""
    return os.urandom(16).hex()
