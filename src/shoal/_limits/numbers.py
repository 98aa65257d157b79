"""The numbers that users may give to limits, checked where they are given."""

from __future__ import annotations

import sys

from shoal._errors.exceptions import DefinitionError, brief


def check_number(what: str, value: object) -> None:
    """Check that ``value``, given as ``what``, is a finite number above 0.

    Raises:
        DefinitionError: It isn't.
    """
    # A larger int is no float, and every calculation with it would raise.
    most = sys.float_info.max
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= most:
        msg = f"{what} takes a number above 0, not {brief(value)}"
        raise DefinitionError(msg)


def check_count(what: str, value: object) -> None:
    """Check that ``value``, given as ``what``, is a whole number of at least 1.

    Raises:
        DefinitionError: It isn't.
    """
    if type(value) is not int or value < 1:  # a bool is no count
        msg = f"{what} takes a whole number of at least 1, not {value!r}"
        raise DefinitionError(msg)
