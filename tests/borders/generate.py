"""Choosing programs: first so that every pair of features occurs, then at random.

Deterministic: the same seed, the same programs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from .program import EXCLUDED, FEATURES, PLAIN, Pair, Program, Setting, Trip, all_pairs, fits, pair

USER_SITES = ("act", "act end", "hook", "take", "reduce", "by", "grow", "own end", "anything")
TRIES = 8  # levels of a feature are tried in so many orders before a pair counts as impossible


def settings_of(row: Mapping[str, str]) -> list[Setting]:
    return list(row.items())


def pairs_of(row: Mapping[str, str]) -> Iterator[Pair]:
    """Give all pairs that a row has."""
    items = settings_of(row)
    for at, one in enumerate(items):
        for other in items[at + 1 :]:
            yield (one, other)


def fill(
    random: Random, fixed: Mapping[str, str], wanted: set[Pair] | None, plainness: float
) -> dict[str, str] | None:
    """Choose the features that are not fixed; None: no way was found.

    With ``wanted``, levels are preferred that make pairs of those; with ``plainness``, features
    are left plain that often.
    """
    row = dict(fixed)
    settings = set(row.items())
    names = [name for name in FEATURES if name not in row]
    random.shuffle(names)
    for name in names:
        levels = [level for level in FEATURES[name] if fits(settings, (name, level))]
        if not levels:
            return None
        if wanted is None:
            plain = PLAIN[name] in levels and random.random() < plainness
            level = PLAIN[name] if plain else random.choice(levels)
        else:
            random.shuffle(levels)
            level = max(
                levels,
                key=lambda level, name=name: sum(
                    pair((name, level), config) in wanted for config in settings
                ),
            )
        row[name] = level
        settings.add((name, level))
    return {name: row[name] for name in FEATURES}


_rows: list[dict[str, str]] | None = None
_impossible: set[Pair] = set()


def covering_rows() -> list[dict[str, str]]:
    """Make rows in which every possible pair occurs; remembered."""
    global _rows  # noqa: PLW0603 # made once in a process
    if _rows is not None:
        return _rows
    random = Random(0)
    wanted = {one for one in all_pairs() if one not in EXCLUDED}
    rows: list[dict[str, str]] = []
    todo = sorted(wanted)
    random.shuffle(todo)
    while todo:
        one = todo.pop()
        if one not in wanted:
            continue
        for _ in range(TRIES):
            row = fill(random, dict(one), wanted, 0)
            if row is not None:
                break
        else:
            row = fill_by_search(random, dict(one))
            if row is None:
                wanted.discard(one)
                _impossible.add(one)
                continue
        wanted.difference_update(pairs_of(row))
        rows.append(row)
    _rows = rows
    return rows


def impossible() -> set[Pair]:
    """Give the pairs that no row can have, though nothing excludes just these two."""
    covering_rows()
    return _impossible


def fill_by_search(random: Random, fixed: Mapping[str, str]) -> dict[str, str] | None:
    """Fill a row, the features first of which the fewest levels are left."""
    row = dict(fixed)
    settings = set(row.items())
    if not all(fits(settings, one) for one in settings):
        return None
    while len(row) < len(FEATURES):
        left = {
            name: [level for level in FEATURES[name] if fits(settings, (name, level))]
            for name in FEATURES
            if name not in row
        }
        name = min(left, key=lambda name: (len(left[name]), name))
        if not left[name]:
            return None
        row[name] = random.choice(left[name])
        settings.add((name, row[name]))
    return {name: row[name] for name in FEATURES}


def trips_of(random: Random, row: Mapping[str, str]) -> list[Trip]:
    """Say what goes wrong where, as a row wants it."""
    trips: list[Trip] = []

    def nth(at: str) -> int:
        most = {"anything": 60, "save": 12, "saved": 12, "hook": 30}.get(at, 8)
        return 1 + int(most * random.random() ** 2)

    at = row["trouble_at"]
    match row["trouble"]:
        case "raises":
            trips.append(Trip(1, at, nth(at), "raises"))
        case "raises twice":
            first = nth(at)
            trips.append(Trip(1, at, first, "raises"))
            life, then = random.choice([1, 1, 2]), random.choice([at, "act", "act", "reduce"])
            number = first + 1 if (life, then) == (1, at) else nth(then)
            trips.append(Trip(life, then, number, "raises"))
        case "later" | "slow":
            trips.append(Trip(1, "act", nth("act"), row["trouble"]))
        case _:
            pass
    if row["stop"] != "no":
        trips.append(Trip(1, row["stop_at"], nth(row["stop_at"]), row["stop"]))
    if row["stop2"] != "no":
        trips.append(Trip(2, row["stop2_at"], nth(row["stop2_at"]), row["stop2"]))
    return trips


def make(seed: int, row: Mapping[str, str]) -> Program:
    """Make a program of a row."""
    random = Random(f"program {seed}")
    trips = trips_of(random, row)
    kept = row["kept"] == "yes"
    if random.random() < 0.4:  # more of it
        kinds = ["raises"] * 3 + (["cancel", "scope", "dies"] if kept else [])
        for _ in range(random.randrange(1, 4)):
            what = random.choice(kinds)
            if what == "raises" and row["body"] != "plain" and random.random() < 0.2:
                trips.append(Trip(1, "act", random.randrange(1, 5), "slow"))
            at = random.choice(USER_SITES if what == "raises" else ("anything", "hook", "act"))
            life = random.choice([1, 1, 2, 3]) if kept else 1
            trips.append(Trip(life, at, 1 + int(40 * random.random() ** 3), what))
    schedule = random.choice([None, seed])
    return Program(seed, row, tuple(trips), schedule, random.choice([2, 2, 3]))


THEMES: Sequence[Mapping[str, Sequence[str]]] = (
    # tried again from outside, and more than one thing goes wrong
    {"place": ("fan", "fan node"), "outer_retry": ("yes",), "trouble": ("raises", "raises twice")},
    {
        "place": ("fan", "fan node"),
        "outer_retry": ("yes",),
        "result": ("reduce", "take"),
        "steps": ("1", "2"),
        "trouble": ("raises twice",),
        "trouble_at": ("act", "reduce", "take"),
        "telling": ("quick",),
        "pauses": ("alike", "none"),
    },
    {
        "place": ("fan",),
        "outer_retry": ("yes",),
        "each_retry": ("no", "yes"),
        "act_retry": ("no", "yes"),
        "trouble": ("raises twice", "later"),
        "pauses": ("seconds", "mixed"),
        "limits": ("default", "one", "two", "rate"),
    },
    {
        "place": ("fan",),
        "outer_retry": ("yes",),
        "kept": ("no",),
        "limits": ("rate", "one"),
        "trouble": ("raises twice",),
        "trouble_at": ("reduce", "take"),
    },
    # gone on with, and interrupted again
    {"stop2": ("cancel", "scope", "dies"), "trouble": ("raises",), "kept": ("yes",)},
    {"form": ("start", "start_each"), "trouble": ("raises",), "trouble_at": ("own end",),
     "stop2": ("cancel", "scope")},
    {"on_error": ("share",), "bad": ("act",), "width": ("6",), "pauses": ("mixed", "seconds"),
     "stop": ("cancel", "scope", "dies"), "limits": ("two", "default"), "stop_at": ("act", "hook")},
    {"store": ("none", "own"), "stop": ("scope", "dies", "timeout")},
    # all of the loop's tasks cancelled
    {"stop": ("teardown",), "stop_at": ("act", "hook", "anything"),
     "form": ("start", "start_each", "over"), "pauses": ("turns", "none")},
    # streams that break off
    {"until": ("restart", "first_item"), "body": ("stream",), "width": ("1", "3"),
     "trouble": ("raises", "raises twice"), "trouble_at": ("act end",)},
    # a frontier, slowly
    {"grow": ("yes",), "stagger": ("seconds", "inf"), "pauses": ("seconds", "mixed")},
    {"place": ("node",), "after": ("yes",), "on_error": ("ignore",), "bad": ("all acts",),
     "trouble": ("raises",), "trouble_at": ("anything", "act")},
)  # fmt: skip
"""Features that have met badly before: half of the random programs have those of one line."""


def themed(random: Random) -> dict[str, str]:
    """Choose some features that go together."""
    row: dict[str, str] = {}
    if random.random() < 0.5:
        return row
    for feature, levels in random.choice(THEMES).items():
        level = random.choice(levels)
        if fits(set(row.items()), (feature, level)):
            row[feature] = level
    return row


def program(seed: int) -> Program:
    """Make the program of a number: the first ones cover all pairs, the others are random."""
    rows = covering_rows()
    if seed < len(rows):
        return make(seed, rows[seed])
    random = Random(f"row {seed}")
    row = None
    while row is None:
        row = fill(random, themed(random), None, random.choice([0, 0.3, 0.6, 0.8, 0.9]))
    return make(seed, row)
