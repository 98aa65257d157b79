"""Names of types: how a class is written down, and how it is found again. Imports nothing of ours.

Invariants:
- Finding a name imports nothing and runs nothing: it looks into ``__dict__`` of modules that are
  imported already, past their ``__getattr__`` and past descriptors. So what a file says can't load
  code, and whoever reads values of a type has imported its module.
- What was written down in the program's main module is found under the name that others import it
  by, where it has one (``python -m``).
"""

from __future__ import annotations

import sys
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
        found = vars(found).get(part)
    return found


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
