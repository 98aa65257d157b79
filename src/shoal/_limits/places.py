"""The places of a limit: one object that is given to several actions or fan-outs is one limit."""

from __future__ import annotations

from typing import final
from weakref import ref


@final
class Origin:
    """The identity of a ``Limits`` object, which all values made from it have.

    It remembers on how many definitions the object was placed. That is known where programs are
    declared, so it is the same whichever of them runs first.
    """

    __slots__ = ("__weakref__", "_name", "_owner", "is_of_runtime", "is_shared")

    def __init__(self) -> None:
        """Create the identity of an object that was placed nowhere yet."""
        self._owner: ref[object] | None = None  # weak: a limit must not keep its actions alive
        self._name: str = ""
        self.is_of_runtime: bool = False
        """Whether a runtime has it: then what a budget counts is shared by all its runs."""
        self.is_shared: bool = False
        """Whether it was placed on more than one definition. Once set, it stays, so that a limit
        means the same whenever definitions that are made anew for each request are collected."""

    def stand_on(self, owner: object, name: str = "", *, is_runtime: bool = False) -> None:
        """Note a place: a definition and, for the own fan-out of an action, its name."""
        self.is_of_runtime = self.is_of_runtime or is_runtime
        if self._owner is None:
            self._owner, self._name = ref(owner), name
        elif self._owner() is not owner or self._name != name:
            self.is_shared = True

    def __reduce__(self) -> tuple[type[Origin], tuple[()]]:
        # A copy in another process, or by `deepcopy`, is another limit.
        return Origin, ()

    def __repr__(self) -> str:
        return f"<Origin{' shared' if self.is_shared else ''}>"


NOWHERE: Origin = Origin()
"""The origin of values that the gates keep: else no origin would ever be collected."""
