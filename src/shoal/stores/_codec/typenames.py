"""Name classes in saved values, and find them again.

Invariants:
- Finding a name of another package imports nothing and executes nothing: it looks into the
  ``__dict__`` of modules that are imported already, past ``__getattr__`` and descriptors. So a file
  can't load code, and a program that reads values of a type has to import the type's module.
- A class of shoal that is public, or ever was, is ``shoal:Name``, wherever it is defined and
  wherever its public home is. A table in ``shoal`` names that home, which is imported.
- A class of the program's main module is named as other modules import it, if they can
  (``python -m``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType

_OURS = __name__.partition(".")[0]


def name_of(kind: type) -> str:
    """Return the place where ``kind`` is defined: ``"package.module:Outer.Inner"``."""
    module, name = kind.__module__, kind.__qualname__
    if module == "__main__":
        module = _main_name() or module
    elif module.startswith(f"{_OURS}.") and find(f"{_OURS}:{name}") is kind:
        module = _OURS  # its public place, so that we may move it between private modules
    return f"{module}:{name}"


def find(name: str) -> object:
    """Return the object that has that name now, which may be no class; None if there is none."""
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
    """Return the reason why ``find`` doesn't find a suitable class, and what to do."""
    module, _, path = name.partition(":")
    if "<locals>" in path:
        return "it is defined inside of a function: move it to the level of its module"
    if module != _main_name() and module not in sys.modules:
        return (
            f"its module has not been imported: import {module} before the run is looked up, or "
            f"name the present class with codec.moved({name!r}, ...)"
        )
    return (
        f"{module} has no {path} of that kind: if the class was moved or renamed, name it with "
        f"codec.moved()"
    )


def _main_name() -> str | None:
    """Return the name by which other modules import the main module; None if it has none."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return None if spec is None else spec.name
