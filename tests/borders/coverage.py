"""Which pairs of features the programs had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .generate import impossible, pairs_of
from .program import EXCLUDED, Pair, all_pairs


class Coverage:
    """Counts pairs."""

    def __init__(self) -> None:
        self.excluded = len(EXCLUDED)
        self.implied = len(impossible())
        self.possible: set[Pair] = set(all_pairs()) - set(EXCLUDED) - impossible()
        self.covered = set[Pair]()

    def add(self, row: Mapping[str, str]) -> None:
        self.covered.update(pairs_of(row))

    @property
    def missing(self) -> set[Pair]:
        return self.possible - self.covered

    def __str__(self) -> str:
        reasons = Counter(EXCLUDED.values())
        return (
            f"pairs covered: {len(self.covered & self.possible)} of {len(self.possible)} possible; "
            f"{self.excluded} are excluded, {self.implied} more follow from that\n"
            + "\n".join(f"{count:6} excluded: {why}" for why, count in reasons.most_common())
        )
