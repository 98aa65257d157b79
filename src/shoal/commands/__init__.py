"""The commands of ``shoal``: a module for each, or for a few that do the same, with ``add_to``.

``_store`` opens the store that the command line or the environment names, ``_command`` makes a
command of an async function, ``_lines`` writes output.
"""

from __future__ import annotations

from ._lines import Unwritten, flush, shown
from ._store import Refused, add_store, given_store, open_store

__all__ = ["Refused", "Unwritten", "add_store", "flush", "given_store", "open_store", "shown"]
