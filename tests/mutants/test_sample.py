"""How tests are chosen for a small defect."""

from __future__ import annotations

from .sample import in_order, line_before


def test_tests_that_go_other_ways_come_first():
    bits_of = {"same": 0b0011, "again": 0b0011, "more": 0b0111, "slow": 0b1111, "other": 0b1001}
    seconds = dict.fromkeys(bits_of, 0.0) | {"slow": 9.0}
    assert list(in_order(bits_of, seconds)) == ["more", "other", "same", "slow", "again"]


def test_a_line_is_found_by_its_text_after_a_change():
    before, now = "a\nb\nc\nd\n", "new\na\nb\nchanged\nd\n"
    assert [line_before(before, now, line) for line in range(1, 6)] == [0, 1, 2, 2, 4]
    assert line_before(before, before, 3) == 3
