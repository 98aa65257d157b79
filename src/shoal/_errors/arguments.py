"""Checks of arguments that are numbers, shared by all packages."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a number. True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Return whether ``value`` is a finite number above 0, as a duration in seconds must be."""
    return type(value) in (int, float) and 0 < value < math.inf
