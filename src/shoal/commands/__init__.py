"""The command ``shoal``.

``runs`` and ``draw`` have the commands of these names, ``_store`` opens stores by name, ``_lines``
writes output.
"""

from __future__ import annotations

from ._lines import Unwritten, flush, shown
from ._store import Refused, open_store

__all__ = ["Refused", "Unwritten", "flush", "open_store", "shown"]
