"""Which attributes of an object a user is offered: what ``dir`` returns, and completion shows.

Some methods of public classes are there for other packages of shoal, and are public so that these
may call them. They mean nothing to a user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def hides(names: str) -> Callable[[C], C]:
    """Leave names out of ``dir`` of the instances of a class, and of its subclasses.

    They can be used as before. A subclass that is a user's may define such a name itself; it is
    left out all the same.

    Args:
        names: The names, with spaces between them.
    """
    hidden = frozenset(names.split())

    def decorate(cls: C) -> C:
        described: Any = cls.__dir__

        def shown(self: object) -> Iterable[str]:
            return sorted({*described(self)} - hidden)

        changed: Any = cls
        changed.__dir__ = shown
        return cls

    return decorate
