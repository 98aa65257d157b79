"""The identity of a run: its id, its parent, and which child of the parent it is.

Invariants:
- An id depends on nothing but (parent id, step, visit, act, key): never on call order, on sequence
  numbers or on time. So after a crash each child is found again, and the second visit of a loop
  has new children.
- ``1`` and ``"1"`` are different keys.
- Keys and ids are plain values, even if a member of an enum was given. A resume reads plain ones
  from a store, and they must be the same.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import final

from shoal._errors.exceptions import brief

Key = str | int
"""Names a child within its fan-out."""


def plain_key(key: object) -> Key | None:
    """Return ``key`` as a plain str or int, without its subclass; None if it can't be a key."""
    if isinstance(key, str):
        return key if type(key) is str else str.__str__(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return key if type(key) is int else int.__int__(key)
    return None


@final
class RunPath:
    """Where a run stands: its id, the run that started it, and the child's act and key.

    An immutable value, equal to every path of the same id. The id of a child is a hash, made at
    the first access, since most children of a large map never need one.
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
        """Make the path of a root run from its id, or of a child from all but the id."""
        # A str even if given a member of an enum, which would be formatted by its name in the ids
        # of children.
        self._id = str.__str__(run_id) if isinstance(run_id, str) else run_id
        self.act: str = act
        self.parent: RunPath | None = parent
        self.step: str = step
        self.visit: int = visit
        self.key: Key = key
        self.depth: int = 0 if parent is None else parent.depth + 1

    @property
    def id(self) -> str:
        """The run's id: the given one for a root run, 32 hexadecimal digits for a child."""
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
        """The root run that this run descends from; itself for a root run."""
        path = self
        while path.parent is not None:
            path = path.parent
        return path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunPath) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        if self.parent is None:
            return f"<RunPath {self.act} {self.id}>"
        return f"{self.parent!r}/{self.step}#{self.visit}/{self.act}[{brief(self.key)}]"


# By position, and without a call of the class: a hook receives the path of each child, and Python
# 3.13 doesn't specialize calls with names.
def child_path(parent: RunPath, step: str, visit: int, act: str, key: Key) -> RunPath:
    """Return the path of a child, as ``RunPath`` would make it."""
    path = object.__new__(RunPath)
    path._id = None
    path.act = act
    path.parent = parent
    path.step = step
    path.visit = visit
    path.key = key
    path.depth = parent.depth + 1
    return path


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
    """Return the decimal digits of ``key``, whatever ``sys.set_int_max_str_digits`` allows.

    See test_the_id_of_a_vast_key_depends_on_nothing_else.
    """
    try:
        return int.__repr__(key)
    except ValueError:  # more digits than Python converts
        from decimal import Decimal  # noqa: PLC0415 # hardly any program has such keys

        return str(Decimal(key))


def new_run_id() -> str:
    """Return a random id for a root run: 32 hexadecimal digits."""
    return os.urandom(16).hex()
