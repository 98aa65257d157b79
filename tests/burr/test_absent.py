"""Without Burr: what an import says."""

from __future__ import annotations

import importlib
import sys

import pytest


def test_without_burr_the_import_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    for name in [one for one in sys.modules if one.startswith("shoal.burr")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "burr", None)
    monkeypatch.delitem(sys.modules, "burr.core", raising=False)
    with pytest.raises(ImportError, match=r"shoal\.burr needs Burr.*pip install 'shoal\[burr\]'"):
        importlib.import_module("shoal.burr")
