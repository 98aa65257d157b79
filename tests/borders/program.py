"""What a border program is, as data: a choice of each feature, and what goes wrong where.

A program is a row: for each feature one of its levels. Everything else follows from that and from
the seed, so a row that fails is made smaller by setting features back to their first, plain level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Backend = Literal["asyncio", "trio"]

FEATURES: Mapping[str, tuple[str, ...]] = {
    # the fan-out in the middle
    "form": ("over", "acts", "acts over", "chosen", "class", "start", "start_each"),
    "place": ("root", "fan", "node", "fan node", "own", "loop", "node loop"),
    "keys": ("str", "int", "none", "field"),
    "result": ("into", "take", "reduce", "nothing"),
    "grow": ("no", "yes"),
    "at_most": ("no", "few", "ample"),
    "until": ("all", "first", "first2", "quorum", "first_item", "restart", "function"),
    "on_error": ("fail", "collect", "ignore", "count", "share"),
    "errors_into": ("no", "yes"),
    "stagger": ("no", "seconds", "inf", "hedge"),
    "limits": ("default", "one", "two", "rate", "by", "cost", "composed"),
    "each_retry": ("no", "yes", "patient"),
    "each_timeout": ("no", "yes"),
    "timeout": ("no", "yes"),
    "breaker": ("no", "act", "by"),
    "store": ("inherit", "none", "own"),
    "hooks": ("inherit", "own"),
    "source": ("list", "field", "generator", "async"),
    "known": ("no", "yes", "again", "never again"),
    "width": ("3", "1", "6", "0"),
    # its children
    "steps": ("1", "2", "3", "nested node"),
    "body": ("async", "plain", "stream"),
    "pauses": ("none", "turns", "seconds", "mixed", "alike"),
    "act_limits": ("no", "one", "rate", "by"),
    "act_retry": ("no", "yes", "function"),
    "act_timeout": ("no", "yes"),
    "cache": ("no", "yes"),
    "asks": ("no", "yes"),
    "manners": (
        "good", "spurious", "generator exit", "cancels itself", "swallows", "slow cleanup",
        "bad cleanup",
    ),
    "executor": ("loop", "elsewhere", "worker dies"),
    # what is around it
    "outer_on_error": ("fail", "collect", "share"),
    "outer_retry": ("no", "yes"),
    "outer_result": ("into", "list", "reduce"),
    "outer_limits": ("default", "one", "rate"),
    "outer_until": ("all", "first"),
    "outer_store": ("inherit", "none", "own"),
    "outer_timeout": ("no", "yes"),
    "outer_width": ("1", "2", "3"),
    "after": ("no", "yes"),
    "app_limits": ("no", "one", "rate"),
    "max_live": ("1000", "1"),
    "telling": ("quick", "turns", "seconds"),
    "kept": ("yes", "no"),
    "saving": ("quick", "slow"),
    "observer": ("no", "clumsy", "very clumsy"),
    # what goes wrong
    "bad": ("nothing", "act", "take", "accept", "cost", "key", "twice", "all acts"),
    "trouble": ("no", "raises", "raises twice", "later", "slow"),
    "trouble_at": (
        "act", "act end", "take", "by", "cost", "key", "grow", "reduce", "accept", "until", "over",
        "pull", "condition", "hook", "own end", "on", "anything",
    ),
    "stop": (
        "no", "cancel", "scope", "native", "twice", "both", "teardown", "child", "timeout", "dies",
        "fails", "hangs",
    ),
    "stop_at": ("anything", "save", "saved", "act", "hook", "pull"),
    "stop2": ("no", "cancel", "scope", "dies", "fails"),
    "stop2_at": ("anything", "save", "saved", "hook"),
    "change": ("no", "version", "renamed", "step added", "folded", "one more act"),
}  # fmt: skip

PLAIN: Mapping[str, str] = {name: levels[0] for name, levels in FEATURES.items()}

When = tuple[str, tuple[str, ...]]
"""A feature, and some of its levels."""


def _excluded() -> Iterator[tuple[When, When, str]]:
    def no(feature: str, levels: str, other: str, others: str, why: str) -> tuple[When, When, str]:
        return ((feature, _levels(feature, levels)), (other, _levels(other, others)), why)

    own, race = "start|start_each", "first|first2|quorum|first_item|restart"
    by_hand = "context.fan_out leaves that to the action"
    for feature in ("grow", "at_most", "until", "errors_into", "stagger", "known"):
        yield no("form", own, feature, "!", by_hand)
    yield no("form", own, "result", "reduce|nothing", by_hand)
    yield no("form", own, "on_error", "ignore|count|share", by_hand)
    yield no("form", own, "source", "field", by_hand)
    yield no("form", "start", "source", "!", "what is started is the action's own list")
    yield no("form", own, "keys", "field", by_hand)
    for feature in ("grow", "errors_into", "known"):
        yield no("form", "class", feature, "!", "classes have tasks, and reduce")
    yield no("form", "class", "result", "into|take|nothing", "classes have tasks, and reduce")
    yield no("form", "class", "source", "field", "classes make their tasks")
    yield no("form", "class", "keys", "field", "a task names its key")
    for feature in ("grow", "known", "keys", "source"):
        yield no("form", "acts", feature, "!", "acts alone have no elements")
    yield no("form", "acts over", "known", "!", "a key is known by act: not modelled")
    yield no("form", "acts", "at_most", "ample", "no more acts than there are")
    yield no("form", "acts", "width", "0", "one act at least")
    yield no("keys", "none|field", "known", "!", "again= is about keys in into=")
    yield no("result", "reduce|nothing", "known", "!", "again= is about keys in into=")
    yield no("result", "take", "form", own, by_hand)
    yield no("known", "!", "width", "0", "nobody to be known")
    yield no("grow", "yes", "known", "never again", "refused: what a skipped one grows is unknown")
    yield no(
        "until", "first_item|restart", "grow", "yes", "refused: decides before there are results"
    )
    yield no("until", race, "on_error", "!", "refused: a failure only removes a contestant")
    yield no("until", race, "errors_into", "yes", "refused: a failure only removes a contestant")
    yield no("until", race, "known", "never again", "refused: in a race nothing is skipped")
    yield no("until", race, "result", "nothing|reduce", "who has won would be nowhere to be seen")
    yield no("until", "all|function", "stagger", "hedge", "refused: hedges are for races")
    yield no("until", "first2|quorum", "at_most", "few", "refused: fewer than are needed")
    yield no("until", "first2|quorum", "width", "1|0", "fewer than are needed")
    yield no("until", "first|first_item|restart", "width", "0", "fewer than are needed")
    yield no("until", "first2|quorum", "form", "class", "its value is only reduced")
    yield no("until", race, "form", "class", "its value is only reduced")
    yield no("errors_into", "yes", "on_error", "fail|ignore", "refused: it could hold nothing")
    yield no("width", "0", "bad", "act|take|cost", "nobody to be bad")
    yield no("bad", "key", "form", "class", "a task without a key has its position")
    yield no("bad", "key|twice", "form", "acts|start", "acts have no keys; start is called by hand")
    yield no("bad", "key|twice", "keys", "none|field", "no function gives the key")
    yield no("bad", "twice", "grow", "yes", "under grow, doubles are dropped")
    yield no("bad", "twice", "width", "0|1", "two are needed")
    yield no("bad", "key", "width", "0", "one is needed")
    yield no("bad", "take", "result", "into|reduce|nothing", "take= has no function")
    yield no("bad", "accept", "until", "all|quorum|first_item|restart|function", "nothing accepts")
    yield no("bad", "cost", "limits", "default|one|two|rate|by|composed", "nothing costs")
    yield no("breaker", "!", "form", "start", "context.fan_out has them: start_each shows it")
    # what surrounds the fan-out, where something does
    outer = ("outer_on_error", "outer_retry", "outer_result", "outer_limits", "outer_until",
             "outer_store", "outer_timeout", "outer_width")  # fmt: skip
    for feature in outer:
        yield no("place", "root|node|loop|node loop", feature, "!", "nothing is around it")
    for feature in ("outer_result", "outer_until"):
        yield no("place", "own", feature, "!", by_hand)
    yield no("place", "own", "outer_on_error", "share", by_hand)
    yield no("outer_until", "first", "outer_on_error", "!", "refused in a race")
    yield no("outer_until", "first", "outer_result", "list|reduce", "one value is the result")
    # without a store there is one life
    for feature in ("asks", "change", "stop2", "saving", "outer_store"):
        yield no("kept", "no", feature, "!", "needs a store")
    yield no("kept", "no", "store", "own", "a store of its own alone: see test_cascade")
    yield no("kept", "no", "stop", "dies|fails|hangs", "there is no store to go wrong")
    yield no("kept", "no", "stop_at", "save|saved", "there is no store")
    yield no("cache", "yes", "body", "stream", "refused: items are not remembered")
    yield no("cache", "yes", "asks", "yes", "what is remembered asks nobody")
    yield no("cache", "yes", "kept", "no", "results are remembered in the store")
    yield no("body", "plain", "act_timeout", "yes", "refused: it can't be interrupted")
    yield no("asks", "yes", "body", "plain", "a plain function can't ask")
    yield no(
        "executor", "worker dies", "outer_store", "none", "cancelled ones run again: not modelled"
    )
    yield no("asks", "yes", "store", "none", "an answer finds no question again")
    yield no("asks", "yes", "outer_store", "none", "an answer finds no question again")
    yield no("manners", "swallows|slow cleanup|cancels itself", "body", "plain", "it never waits")
    yield no("trouble", "slow", "body", "plain", "a plain function on the loop can't be slow")
    yield no("trouble", "later|slow", "trouble_at", "!act", "only an action says so")
    yield no("trouble", "no", "trouble_at", "!", "nothing happens there")
    yield no("stop", "no", "stop_at", "!", "nothing happens there")
    yield no("stop2", "no", "stop2_at", "!", "nothing happens there")
    yield no("stop", "fails|hangs", "stop_at", "saved|act|hook|pull", "only a store does")
    yield no("stop2", "fails", "stop2_at", "saved|hook", "only a store does")
    yield no("trouble_at", "reduce", "result", "into|take|nothing", "nothing reduces")
    yield no("trouble_at", "take", "result", "into|reduce|nothing", "take= has no function")
    yield no("trouble_at", "grow", "grow", "no", "nothing grows")
    yield no(
        "trouble_at", "until", "until", "all|first|first2|quorum|first_item|restart", "no function"
    )
    yield no("trouble_at", "accept", "until", "all|first_item|restart|function", "nothing accepts")
    yield no("trouble_at", "by", "limits", "default|one|two|rate|cost", "no keys")
    yield no("trouble_at", "cost", "limits", "default|one|two|rate|by|composed", "nothing costs")
    yield no("trouble_at", "key", "keys", "none|field", "no function")
    yield no("trouble_at", "key", "form", "acts|start|start_each|class", "no function")
    yield no("trouble_at", "over|pull", "form", "acts|start", "nothing is pulled")
    yield no("trouble_at", "over", "form", "class|start_each", "no function of the state")
    yield no("trouble_at", "pull|over", "source", "field", "no function")
    yield no(
        "trouble_at", "own end", "form", "over|acts|acts over|chosen|class", "no action of its own"
    )
    yield no("trouble_at", "condition", "place", "root|fan|node|fan node|own", "no edge has one")
    yield no("trouble_at", "on", "act_retry", "no|yes", "no function")
    yield no("change", "folded", "form", "acts|class|start|start_each", "no into= to fold")
    yield no("change", "folded", "until", race, "one value is the result")
    yield no(
        "change", "one more act", "form", "acts|chosen|class|start|start_each", "over one act only"
    )
    yield no("change", "one more act", "until", "!", "another race")
    yield no("change", "one more act", "known", "!", "a key is known by act: not modelled")


def _levels(feature: str, levels: str) -> tuple[str, ...]:
    """Read "a|b" as these two; "!" as all but the plain one, "!a" as all but that."""
    if levels.startswith("!"):
        but = levels[1:] or PLAIN[feature]
        return tuple(level for level in FEATURES[feature] if level != but)
    chosen = tuple(levels.split("|"))
    assert set(chosen) <= set(FEATURES[feature]), f"{feature} has no {levels}"
    return chosen


Setting = tuple[str, str]
"""A feature and its level."""
Pair = tuple[Setting, Setting]


def _pairs_excluded() -> dict[Pair, str]:
    """Give all pairs that can't occur, and why."""
    found: dict[Pair, str] = {}
    for (one, levels), (other, others), why in _excluded():
        for level in levels:
            for another in others:
                found[pair((one, level), (other, another))] = why
    return found


_ORDER = {name: at for at, name in enumerate(FEATURES)}


def pair(one: Setting, other: Setting) -> Pair:
    """Put a pair in the order of the features."""
    return (one, other) if _ORDER[one[0]] < _ORDER[other[0]] else (other, one)


EXCLUDED: Mapping[Pair, str] = _pairs_excluded()


def _partners() -> dict[Setting, set[Setting]]:
    found: dict[Setting, set[Setting]] = {}
    for one, other in EXCLUDED:
        found.setdefault(one, set()).add(other)
        found.setdefault(other, set()).add(one)
    return found


EXCLUDES: Mapping[Setting, set[Setting]] = _partners()
"""What each level can't be combined with."""


def all_pairs() -> Iterator[Pair]:
    """Give every pair of levels of two features."""
    names = list(FEATURES)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            for level in FEATURES[one]:
                for another in FEATURES[other]:
                    yield ((one, level), (other, another))


def fits(settings: set[Setting], one: Setting) -> bool:
    """Tell whether a level can be combined with all of those."""
    excluded = EXCLUDES.get(one)
    return excluded is None or excluded.isdisjoint(settings)


@dataclass(frozen=True, slots=True)
class Trip:
    """Something that goes wrong, once: in this life, when that place is passed the nth time."""

    life: int
    at: str
    """The kind of place: "act", "reduce", "save", ...; "anything": whichever."""
    nth: int
    what: str
    """"raises", "later", "slow", "cancel", "scope", "native", "teardown", "child", "dies", ..."""

    def __str__(self) -> str:
        return f"life {self.life}: {self.what} at {self.at} #{self.nth}"


@dataclass(frozen=True, slots=True)
class Program:
    """A border program."""

    seed: int
    row: Mapping[str, str]
    trips: Sequence[Trip] = ()
    schedule: int | None = None
    """Decides the order of simultaneous steps; None: first come, first served."""
    changes_in: int = 2
    """The life in which the program is another one, if it changes."""
    notes: Sequence[str] = field(default=(), compare=False)

    def __getitem__(self, feature: str) -> str:
        return self.row[feature]

    def with_(self, **changed: str) -> Program:
        """Make another one with some features changed, by name."""
        return replace(self, row={**self.row, **changed})

    @property
    def features(self) -> dict[str, str]:
        """What is not plain."""
        return {name: level for name, level in self.row.items() if level != PLAIN[name]}

    @property
    def command(self) -> str:
        """Give the options by which ``python -m tests.borders`` plays just this one."""
        words = [f"--exactly {self.seed}"]
        if self.schedule is not None:
            words.append(f"--schedule {self.schedule}")
        if self["change"] != "no" and self.changes_in != 2:
            words.append(f"--changes-in {self.changes_in}")
        words += [f'"{name}={level}"' for name, level in self.features.items()]
        words += [f'"{t.life}:{t.what}:{t.at}:{t.nth}"' for t in self.trips]
        return " ".join(words)

    def __str__(self) -> str:
        features = ", ".join(f"{name}={level!r}" for name, level in self.features.items())
        trips = "".join(f"\n  {trip}" for trip in self.trips)
        schedule = "" if self.schedule is None else f", schedule {self.schedule}"
        change = f", changes in life {self.changes_in}" if self["change"] != "no" else ""
        return f"program {self.seed}{schedule}{change}: {features or 'plain'}{trips}"
