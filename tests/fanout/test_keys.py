"""Positions of children: those that were reserved, and the first behind all that are used."""

from __future__ import annotations

from shoal._engine.fanout.keys import Positions


def test_no_position_behind_a_reserved_one_is_used_twice():
    positions = Positions(1)
    positions.next = 2
    positions.reserve(4, 7)
    assert positions.end() == 7
    assert positions.free() == 2, "the reserved ones come later"
    positions.reserve(7, 7)
    positions.reserve(7, 9)
    assert list(positions.reserved) == [(4, 9)]
    positions.next = 4
    assert (positions.free(), positions.end(), positions.pulled) == (9, 9, 4)
    positions.next = 11
    assert positions.end() == 11


def test_positions_go_on_behind_those_of_an_earlier_execution():
    assert Positions(2, last=4).end() == 6, "its last element may lack a child"
    former = Positions(2)
    former.next = 2
    former.reserve(4, 8)
    positions = Positions(3)
    positions.go_on(former)
    assert (positions.next, list(positions.reserved), positions.end()) == (3, [(6, 12)], 12)
