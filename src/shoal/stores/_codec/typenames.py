"""Names of types: how a class is written down, and how it is found again. Imports nothing of ours.

Invariants:
- Finding a name of another package imports nothing and runs nothing. It looks into ``__dict__`` of
  modules that are imported already, past their ``__getattr__`` and past descriptors. So a file
  can't load code by what it says, and a program that reads values of a type imports its module.
- A class of shoal that is public, or ever was, is ``shoal:Name``, wherever it is defined and
  wherever its public home is. A table in ``shoal`` says where, and that module is imported.
- What was written down in the program's main module is found under the name that others import it
  by, where it has one (``python -m``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType

_OURS = __name__.partition(".")[0]


def name_of(kind: type) -> str:
    """Write down where ``kind`` is defined: ``"package.module:Outer.Inner"``."""
    module, name = kind.__module__, kind.__qualname__
    if module == "__main__":
        module = _main_name() or module
    elif module.startswith(f"{_OURS}.") and find(f"{_OURS}:{name}") is kind:
        module = _OURS  # where users find it, wherever we may move it
    return f"{module}:{name}"


def find(name: str) -> object:
    """Return what ``name_of`` has written down, whatever that is now; None if there is nothing."""
    module, _, path = name.partition(":")
    found: object = sys.modules.get("__main__" if module == _main_name() else module)
    if not isinstance(found, ModuleType):
        return None
    for part in path.split("."):
        if not isinstance(found, ModuleType | type):
            return None
        inside = vars(found)
        if part not in inside and found is sys.modules[_OURS]:
            inside = _home_of(part)
        found = inside.get(part)
    return found


def _home_of(name: str) -> Mapping[str, object]:
    """Return what the home of a public name of shoal holds; nothing if it has none.

    A name is missing in ``shoal`` until a program asks for it, and one that has moved always is.
    """
    home: str | None = vars(sys.modules[_OURS])["_HOMES"].get(name)
    try:
        return {} if home is None else vars(importlib.import_module(home))
    except ImportError:  # a store whose driver isn't installed
        return {}


def why_not_found(name: str) -> str:
    """Say why ``find`` finds nothing of use, and what to do."""
    module, _, path = name.partition(":")
    if "<locals>" in path:
        return "it is defined inside of a function: move it to the level of its module"
    if module != _main_name() and module not in sys.modules:
        return (
            f"nothing has imported its module: import {module} before the run is looked up, or say "
            f"what the class is now with codec.moved({name!r}, ...)"
        )
    return f"{module} has no {path} of that kind: a moved or renamed class is told by codec.moved()"


def _main_name() -> str | None:
    """Tell by which name others import the main module, if it was started by one."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None else spec.name
