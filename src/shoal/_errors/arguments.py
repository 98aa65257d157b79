"""Checks of arguments that are numbers, for all layers alike. Imports nothing of shoal."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether ``value`` is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Tell whether ``value`` is a finite number above 0: one of seconds, say."""
    return type(value) in (int, float) and 0 < value < math.inf
