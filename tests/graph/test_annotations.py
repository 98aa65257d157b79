"""Annotations that are evaluated when they are read, as all are since Python 3.14."""

# No ``from __future__ import annotations``: with it, annotations are text, in every version.

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from shoal import Action, Application, action, fan_out, when
from shoal.errors import DefinitionError

if sys.version_info < (3, 14):
    pytest.skip("annotations are evaluated at once", allow_module_level=True)

if TYPE_CHECKING:  # so these names have no value when shoal reads the annotations
    from decimal import Decimal  # noqa: TC004

    from shoal import Context  # noqa: TC004
    from shoal import State as StateType  # noqa: TC004


@action(reads=["price"], writes=["total"])
async def add(price: Decimal, vat: Decimal, context: Context) -> Decimal:
    return price + vat


def has_price(price: Decimal) -> bool:
    return price > 0


def prices_of(state: StateType) -> list[object]:
    return [state["price"]]


@dataclass
class Named(Action):
    name: str
    price: Decimal | None = None
    reads = ("price",)
    writes = ("total",)

    async def run(self, price: Decimal) -> Decimal:
        return price


def test_an_action_may_be_annotated_with_names_for_type_checkers():
    assert add.reads == {"price"}
    assert list(add.takes) == ["vat"]
    assert add.takes_context


def test_a_condition_may_be():
    assert when(has_price).reads == {"price"}


def test_a_function_that_gives_the_elements_may_be():
    result = Application(
        fan_out(add.bind(vat=1), over=prices_of, item="price", reads=["price"], into="totals")
    ).run_sync({"price": 2})
    assert result.state["totals"] == [3]


def test_a_class_of_acts_may_leave_its_name_to_its_instances():
    assert "name" not in vars(Named)
    assert Named("one").name == "one"


def test_a_context_by_another_name_is_refused():
    from shoal import Context as Real  # has a value, other than the one above

    with pytest.raises(DefinitionError, match="only a parameter called 'context'"):

        @action(writes=["total"])
        def wrong(given: Real) -> int:
            return 1
