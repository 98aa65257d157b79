"""What a program must come to: a sequential model, which knows nothing of the engine.

It goes through the elements one by one and says of each what its value may be, whether it must
fail, and whether it may be missing. What depends on the schedule (who wins a race, whom ``at_most``
leaves out under ``grow``) is said as a choice. What goes wrong only once may turn a child that
would be done into a failed one, never into a missing one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from shoal import ErrorInfo

from .build import MOST_GROWN, grown_from
from .program import Program

Key = Any
Check = Callable[[Any], str | None]
"""Says what is wrong with a value; None: nothing."""

RACES = ("first", "first2", "quorum", "first_item", "restart")


@dataclass(frozen=True, slots=True)
class Slot:
    """One child that there must be."""

    key: Key
    act: str
    position: int
    number: int
    """Of its element."""
    check: Check
    """Of its value."""
    may_be_done: bool
    may_fail: bool
    """For good: each time that it is tried."""
    is_known: bool = False
    """Whether it is skipped, for its value is there from the start."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a step, or of a run."""

    may_succeed: bool
    may_fail: bool
    """Though nothing goes wrong that happens only once."""
    check: Check
    """Of what it has written, if it succeeds."""


def is_one_of(values: Iterable[object]) -> Check:
    allowed = list(values)
    return lambda value: None if value in allowed else f"{value!r} is none of {allowed}"


class Model:
    """The model of one program; ``changed``: it may have become the other one meanwhile."""

    def __init__(self, program: Program, *, changed: bool = False) -> None:
        self.program = program
        self.row = program.row
        self.change = program["change"] if changed else "no"
        whats = {trip.what for trip in program.trips}
        rude = ("spurious", "generator exit", "cancels itself", "bad cleanup")
        self.is_flaky = bool(whats & {"raises", "slow", "later"}) or program["manners"] in rude
        self.may_lose_children = "child" in whats
        self.has_breaker = self.row["breaker"] != "no"

    # -- children of the fan-out in the middle ----------------------------------------------------

    def values(self, prefix: str, text: str) -> list[str]:
        """Give what a child may come to."""
        count = 1 if self.row["steps"] == "nested node" else int(self.row["steps"])
        found = [self._value(prefix, text, count, "")]
        match self.change:
            case "version":
                found.append(self._value(prefix, text, count, "@2"))
            case "renamed":
                found.append(self._value(f"{prefix}x", text, count, ""))
            case "step added":
                found.append(self._value(prefix, text, count + 1, ""))
            case _:
                pass
        return found

    def _value(self, prefix: str, text: str, count: int, mark: str) -> str:
        value = f"{prefix}1{mark}({text})"
        for at in range(2, count + 1):
            value = f"{prefix}{at}{mark}({text},{value})"
        return value

    def acts(self, prefix: str) -> list[str]:
        """Give what the act of a child may be called, at most: it may have been renamed."""
        row, names = self.row, list[str]()
        for name in (prefix, f"{prefix}x"):
            if row["steps"] == "nested node":
                names.append(f"{name}node")
            elif row["steps"] == "1":
                names.append(f"{name}1")
            else:
                names.append(f"{name}chain")
            for count in range(1, 5):
                names.append("+".join(f"{name}{at}" for at in range(1, count + 1)))
        return names

    def is_bad(self, number: int) -> bool:
        """Tell whether a child fails each time."""
        bad = self.row["bad"]
        return bad == "all acts" or (bad in ("act", "take") and number % 3 == 1)

    def numbers(self) -> list[int]:
        return list(range(1, 1 + int(self.row["width"])))

    def slots(self, item: str, visit: int, *, is_given: bool) -> list[Slot]:
        """Give the children of the fan-out in the middle, in order.

        ``is_given``: whether it sees what its field holds from the start.
        """
        row = self.row
        if row["form"] == "acts":
            prefixes = ["a", *(f"b{n}" for n in self.numbers()[1:])]
            if len(prefixes) == 1:
                prefixes = ["a"]
            return [
                self._slot("", prefix, at, item, _number(item))
                for at, prefix in enumerate(prefixes)
            ]
        numbers = self.numbers()
        if row["grow"] == "yes":
            numbers += [more for number in numbers for more in grown_from(number)]
        prefixes = ["a", "b"] if row["form"] == "acts over" else ["a"]
        base = "e" if row["source"] == "field" else item
        found: list[Slot] = []
        for at, number in enumerate(numbers):
            key = {"str": str(number), "int": number, "field": f"{base}.{number}"}.get(
                row["keys"], at
            )
            for prefix in prefixes:
                slot = self._slot(key, prefix, len(found), f"{base}.{number}", number)
                if number == 1 and is_given and self.skips_known(visit):
                    slot = Slot(
                        key, slot.act, slot.position, number, is_one_of(["known"]),
                        may_be_done=True, may_fail=False, is_known=True,
                    )  # fmt: skip
                found.append(slot)
        return found

    def skips_known(self, visit: int) -> bool:
        """Tell whether keys are skipped that are in the field already."""
        row = self.row
        if row["grow"] == "yes" or row["until"] in RACES:
            return False
        return (row["known"] == "yes" and visit == 0) or row["known"] == "never again"

    def _slot(self, key: Key, prefix: str, at: int, text: str, number: int) -> Slot:
        is_bad = self.is_bad(number)
        values = is_one_of(self.values(prefix, text))
        return Slot(key, prefix, at, number, values, may_be_done=not is_bad, may_fail=is_bad)

    # -- fan-outs ---------------------------------------------------------------------------------

    def ends_early(self) -> bool:
        """Tell whether some of the children need not come to anything."""
        row = self.row
        cuts = row["grow"] == "yes" or "loop" in row["place"] or row["form"] == "class"
        return row["until"] != "all" or (row["at_most"] == "few" and cuts)

    def focus(self, item: str, visit: int, *, is_given: bool) -> Verdict:
        """Say what becomes of the fan-out in the middle."""
        row = self.row
        slots = self.slots(item, visit, is_given=is_given)
        goes_on = visit > 0 and row["known"] == "never again"  # with those that were left out
        if row["at_most"] == "few" and row["grow"] == "no" and not goes_on:
            left = [slot for slot in slots if slot.is_known]
            slots = [*left, *[slot for slot in slots if not slot.is_known][:1]]
            slots.sort(key=lambda slot: slot.position)
        if row["until"] in RACES:
            verdict = self._race(slots)
        else:
            verdict = self._policy(slots, row["on_error"])
        may_succeed, may_fail = verdict
        if goes_on and row["on_error"] == "share" and any(slot.may_fail for slot in slots):
            may_fail = True  # a visit before has done the others: all that end here have failed
        may_fold_nothing = not slots or (row["on_error"] == "ignore" and self.is_flaky)
        if self.change == "folded" and (row["bad"] != "nothing" or may_fold_nothing):
            may_succeed, may_fail = True, True  # take= and known keys are gone, maybe the field
        if row["bad"] in ("key", "twice", "cost") and slots:
            touched = row["bad"] != "cost" or any(slot.number % 3 == 1 for slot in slots)
            if touched:
                may_fail = True
                few = self.ends_early() or row["at_most"] == "few"
                may_succeed = may_succeed and (few or any(slot.is_known for slot in slots))
        if self.has_breaker and (self.is_flaky or any(slot.may_fail for slot in slots)):
            may_succeed, may_fail = True, True  # whoever is skipped fails nobody
        if self.may_lose_children or self.change == "one more act":
            may_succeed, may_fail = True, True
        if row["form"] in ("start", "start_each"):
            check = partial(self._check_own, slots)
        else:
            check = partial(self._check_fan, slots, visit, is_given)
        return Verdict(may_succeed, may_fail, check)

    def _policy(self, slots: Sequence[Slot], on_error: str) -> tuple[bool, bool]:
        """Say whether the step may succeed, and whether it may fail each time."""
        bad = sum(slot.may_fail and not slot.may_be_done for slot in slots)
        maybe = sum(slot.may_fail for slot in slots)
        early = self.ends_early()
        match on_error:
            case "fail":
                return not bad or early, maybe > 0
            case "count" | "share" if self._folds() and self.is_flaky:
                return True, True  # what reduce= was given, it is not asked about again
            case "count":
                return bad <= 1 or early, maybe > 1
            case "share":
                is_one = self.row["at_most"] == "few" and self.row["grow"] == "yes"
                ended = 1 if is_one else len(slots)  # with at_most, nothing that grows is started
                must = bad > 0.5 * ended
                if self.row["grow"] == "yes":  # nothing grows from what has failed
                    is_one = self.row["at_most"] == "few"
                    ended = 1 if is_one else sum(slot.number < MOST_GROWN for slot in slots)
                may = maybe >= 2 or (ended < 2 and maybe > 0) or maybe > 0.5 * ended
                return not must or early, may
            case _:
                return True, False

    def _folds(self) -> bool:
        """Tell whether reduce= is given failures: in one of the programs, if it has changed."""
        return self.row["result"] == "reduce" or self.change == "folded"

    def _race(self, slots: Sequence[Slot]) -> tuple[bool, bool]:
        row = self.row
        needed = 2 if row["until"] in ("first2", "quorum") else 1
        good = [slot for slot in slots if slot.may_be_done]
        good = [slot for slot in good if not self.is_bad(slot.number // MOST_GROWN)]
        if row["bad"] == "accept":
            good = [slot for slot in good if slot.number % 3 != 1]
            if row["form"] == "acts":
                good = []
        may_succeed = len(good) >= needed
        may_fail = not may_succeed
        if row["at_most"] == "few" and row["grow"] == "yes":
            may_fail = may_fail or len(good) < len(slots)
        refuses = any(
            trip.what == "raises" and trip.at in ("accept", "anything")
            for trip in self.program.trips
        )
        if refuses:  # that of an accept= is an answer, and final
            may_fail = True
        if row["until"] == "first_item" and row["body"] == "stream":
            may_fail = may_fail or any(slot.may_fail for slot in slots)
        if row["bad"] == "accept" and row["form"] == "acts":
            may_succeed = may_fail = True
        return may_succeed, may_fail

    def may_be_missing(self, slot: Slot) -> bool:
        """Tell whether a child may have come to nothing, in a step that has succeeded."""
        if slot.is_known:
            return False
        if self.ends_early() or self.may_lose_children:
            return True
        is_grown = slot.number >= MOST_GROWN and self.row["on_error"] == "ignore"
        if is_grown and (self.is_flaky or self.is_bad(slot.number // 10)):
            return True  # nothing grows from what has failed and is ignored
        may_be_skipped = self.has_breaker and (self.is_flaky or self.row["bad"] != "nothing")
        return may_be_skipped or (self.row["on_error"] == "ignore" and self.may_fail_once(slot))

    def may_fail_once(self, slot: Slot) -> bool:
        return slot.may_fail or self.is_flaky

    def _check_fan(
        self, slots: Sequence[Slot], visit: int, is_given: bool, written: Mapping[str, Any]
    ) -> str | None:
        """Check what the fan-out in the middle has written."""
        row = self.row
        is_collecting = row["errors_into"] == "yes" and "alone" not in written
        errors = cast("Mapping[Any, Any] | None", written.get("fan errors"))
        if is_collecting and errors is None:
            return "there is no errors_into= field"
        failed = self._keys_in(errors or {}, slots)
        if isinstance(failed, str):
            return failed
        result = "reduce" if row["form"] == "class" else row["result"]
        if result == "nothing":
            return None
        if row["form"] == "acts over" and row["grow"] == "yes" and row["keys"] == "none":
            return None  # both acts grow the same elements, and no key drops the doubles
        if result == "reduce":
            return self._check_reduced(slots, failed, written.get("fan", {}))
        if "fan" not in written:
            return "there is no into= field"
        value = written["fan"]
        if row["until"] in ("first", "quorum", "first_item", "restart"):
            problems = [slot.check(value) for slot in slots if slot.may_be_done]
            return None if None in problems else f"no child comes to {value!r}"
        found = self._values_in(value, slots)
        if isinstance(found, str):
            return found
        return self._check_each(slots, found, failed, is_collecting=is_collecting)

    def _check_each(
        self,
        slots: Sequence[Slot],
        found: Mapping[int, Any],
        failed: set[int],
        *,
        is_collecting: bool,
    ) -> str | None:
        """Check that each child is in one of the two, and what it has come to."""
        on_error = self.row["on_error"]
        unnamed = len(failed) if -1 in failed else 0
        for slot in slots:
            at = slot.position
            if at in found and at in failed:
                return f"{slot.key!r} of {slot.act} is both done and failed"
            if at in found:
                problem = slot.check(found[at])
                if problem is not None:
                    return f"{slot.key!r} of {slot.act}: {problem}"
                if not slot.may_be_done:
                    return f"{slot.key!r} of {slot.act} is done, and fails each time"
            elif at in failed:
                if not self.may_fail_once(slot):
                    return f"{slot.key!r} of {slot.act} has failed, and nothing is wrong with it"
            else:
                collected = on_error not in ("fail", "ignore") and not is_collecting
                if collected and self.may_fail_once(slot):
                    continue
                if unnamed and self.may_fail_once(slot):
                    continue
                if not self.may_be_missing(slot):
                    return f"{slot.key!r} of {slot.act} is missing"
        if self.row["until"] == "first2" and len(found) != 2:
            return f"{len(found)} have won, not 2"
        return None

    def _values_in(self, value: Any, slots: Sequence[Slot]) -> dict[int, Any] | str:
        """Take an into= field apart: what there is, by position."""
        row, several = self.row, self.row["form"] in ("acts", "acts over")
        by_position: dict[int, Any] = {}
        if row["form"] == "acts":
            value = {"": value}
        if row["keys"] == "none" and row["form"] != "acts":
            if not isinstance(value, list):
                return f"into= is no list: {value!r}"
            entries = [
                (act, one)
                for entry in cast("list[Any]", value)
                for act, one in (entry.items() if several else [("", entry)])
            ]
            if several:  # each entry is {act: value}, in order
                return self._align(slots, [one for _, one in entries])
            return self._align(slots, [one for _, one in entries])
        if not isinstance(value, Mapping):
            return f"into= is no mapping: {value!r}"
        value = cast("Mapping[Any, Any]", value)
        keys = list(value)
        order: list[int] = []
        for key in keys:
            inner: Any = value[key]
            named: Iterable[tuple[str, Any]] = inner.items() if several else [("a", inner)]
            for act, one in named:
                slot = self._find(slots, key, act if several else None)
                if slot is None:
                    return f"there is {act} of {key!r}, which nobody asked for"
                by_position[slot.position] = one
                order.append(slot.position)
        in_order = order == sorted(order)
        if not in_order and row["grow"] == "no" and row["known"] == "no":
            return f"not in input order: {keys}"
        return by_position

    def _align(self, slots: Sequence[Slot], values: Sequence[Any]) -> dict[int, Any] | str:
        """Find which child each value of a list is of; lists close up."""
        found: dict[int, Any] = {}
        left = list(slots)
        for value in values:
            if self.row["grow"] == "yes":  # in order of discovery, which is anybody's
                slot = next((one for one in left if one.check(value) is None), None)
            else:
                while left and left[0].check(value) is not None:
                    left.pop(0)
                slot = left[0] if left else None
            if slot is None:
                return f"{value!r} is nobody's, out of order, or there twice, in {values}"
            left.remove(slot)
            found[slot.position] = value
        return found

    def _find(self, slots: Sequence[Slot], key: Key, act: str | None) -> Slot | None:
        for slot in slots:
            is_it = slot.key == key and type(slot.key) is type(key)
            if is_it and (act is None or act in self.acts(slot.act)):
                return slot
        return None

    def _keys_in(self, errors: Mapping[Any, Any], slots: Sequence[Slot]) -> set[int] | str:
        """Take an errors_into= field apart: who has failed, by position."""
        several, failed = self.row["form"] in ("acts", "acts over"), set[int]()
        if self.row["form"] == "acts":
            errors = {"": errors}
        grows = self.row["grow"] == "yes" and self.row["keys"] == "none"
        for key, inner in errors.items():
            named = inner.items() if several else [("a", inner)]
            for act, error in named:
                if not isinstance(error, ErrorInfo):
                    return f"errors_into= holds {error!r}"
                if grows:
                    return {-1}  # positions are those of discovery
                slot = self._find(slots, key, act if several else None)
                if slot is None:
                    return f"errors_into= has {act} of {key!r}, which nobody asked for"
                failed.add(slot.position)
        return failed

    def _check_reduced(
        self, slots: Sequence[Slot], failed: set[int], value: Mapping[Any, Any]
    ) -> str | None:
        """Check what reduce= has made: {key: value or "error"}."""
        several, row = self.row["form"] in ("acts", "acts over"), self.row
        if row["grow"] == "yes" and row["keys"] == "none":
            return None if len(value) <= len(slots) else f"more than {len(slots)}: {value!r}"
        unknown = set(value)
        for slot in slots:
            names = [f"{act} {slot.key}" for act in self.acts(slot.act)] if several else [slot.key]
            name = next((one for one in names if one in value), None)
            if name is None:
                if not self.may_be_missing(slot) and row["until"] not in RACES:
                    return f"{names} is missing in {value!r}"
                continue
            unknown.discard(name)
            one = value[name]
            if one == "error":
                if not self.may_fail_once(slot):
                    return f"{name} has failed, and nothing is wrong with it"
            else:
                problem = slot.check(one)
                if problem is not None or not slot.may_be_done:
                    return f"{name}: {problem or 'is done, and fails each time'}"
        return f"{unknown} are nobody's" if unknown else None

    def _check_own(self, slots: Sequence[Slot], written: Mapping[str, Any]) -> str | None:
        """Check what an action has made of its own fan-out: [[key, value]]."""
        value, row = written.get("fan"), self.row
        if not isinstance(value, list):
            return f"the action has written {value!r}"
        pairs = dict(cast("list[tuple[Any, Any]]", value))
        for slot in slots:
            if slot.key not in pairs:
                if self.may_be_missing(slot):
                    continue
                return f"{slot.key!r} is missing"
            one = pairs.pop(slot.key)
            if one == "Failed":
                problem = None if self.may_fail_once(slot) else "has failed, and nothing is wrong"
            elif one in ("Cancelled", "Skipped"):
                problem = None if self.may_be_missing(slot) else f"is {one}"
            elif one == "?":
                kept_nowhere = "none" in (row["store"], row["outer_store"])
                problem = None if kept_nowhere else "its state is not kept"
            else:
                problem = slot.check(one)
            if problem is not None:
                return f"{slot.key!r}: {problem}"
        return f"{list(pairs)} are nobody's" if pairs else None

    # -- the whole --------------------------------------------------------------------------------

    def part(self, item: str, *, is_given: bool) -> Verdict:
        """Say what becomes of the fan-out in the middle, as often as a loop comes to it."""
        if "loop" not in self.row["place"]:
            return self.focus(item, 0, is_given=is_given)
        visits = [self.focus(item, visit, is_given=is_given) for visit in (0, 1)]
        return Verdict(
            all(visit.may_succeed for visit in visits),
            any(visit.may_fail for visit in visits),
            visits[-1].check,
        )

    def whole(self) -> Verdict:
        """Say what becomes of the run."""
        place = self.row["place"]
        if place in ("root", "node", "loop", "node loop"):
            return self.part("r", is_given=True)
        return self._outer()

    def _outer(self) -> Verdict:
        row = self.row
        numbers = list(range(1, 1 + int(row["outer_width"])))
        inner = {n: self.part(f"ro.{n}", is_given=False) for n in numbers}
        slots = [
            Slot(n, "outer", at, n, partial(self._check_inner, verdict), verdict.may_succeed,
                 verdict.may_fail)
            for at, (n, verdict) in enumerate(inner.items())
        ]  # fmt: skip
        if row["outer_until"] == "first":
            may_succeed = any(slot.may_be_done for slot in slots)
            may_fail = all(slot.may_fail for slot in slots)
        else:
            bad = sum(not slot.may_be_done for slot in slots)
            maybe = sum(slot.may_fail for slot in slots)
            count = len(slots)
            match row["outer_on_error"]:
                case "fail":
                    may_succeed, may_fail = not bad, maybe > 0
                case "share" if row["outer_result"] == "reduce" and self.is_flaky:
                    may_succeed = may_fail = True  # see _policy
                case "share":
                    may_succeed = bad <= 0.5 * count
                    may_fail = maybe >= 2 or maybe > 0.5 * count
                    if row["outer_result"] == "reduce" and self.is_flaky:
                        may_fail = True  # what reduce= was given, it is not asked about again
                case _:
                    may_succeed, may_fail = True, False
        if self.may_lose_children:
            may_succeed = may_fail = True
        return Verdict(may_succeed, may_fail, partial(self._check_outer, slots))

    def _check_inner(self, verdict: Verdict, value: object) -> str | None:
        """Check what a child of the fan-out around has come to."""
        if self.row["place"] == "own":
            if value == "?":
                unsure = self.row["outer_store"] == "none" or not self._surely_writes()
                return None if unsure else "its state is not kept"
            return verdict.check({"fan": value, "alone": True})
        if value == "done":
            return None
        return verdict.check({"fan": value, "alone": True})

    def _surely_writes(self) -> bool:
        return self.row["result"] in ("into", "take") and self.row["form"] != "class"

    def _check_outer(self, slots: Sequence[Slot], written: Mapping[str, Any]) -> str | None:
        row = self.row
        value = written.get("outer")
        if row["outer_until"] == "first":
            problems = [slot.check(value) for slot in slots if slot.may_be_done]
            return None if None in problems else f"no child comes to {value!r}: {problems}"
        failed: set[Any] = set(written.get("outer errors", {}))
        values: dict[Any, Any]
        if row["place"] == "own":
            if not isinstance(value, list):
                return f"the action has written {value!r}"
            values = dict(cast("list[tuple[Any, Any]]", value))
            failed = {key for key, one in values.items() if one == "Failed"}
            gone = {key for key, one in values.items() if one in ("Cancelled", "Skipped")}
            values = {k: v for k, v in values.items() if k not in failed and k not in gone}
        elif row["outer_result"] == "list":
            if not isinstance(value, list):
                return f"into= is no list: {value!r}"
            listed = cast("list[Any]", value)
            failed = {key + 1 for key in failed}
            left = [slot.key for slot in slots if slot.key not in failed]
            if len(left) != len(listed) and not self.may_lose_children:
                return f"{len(listed)} are in the list, and {failed} have failed"
            values = dict(zip(left, listed, strict=False))
        elif row["outer_result"] == "reduce":
            reduced = cast("dict[Any, Any]", value or {})
            values = {key: one for key, one in reduced.items() if one != "error"}
        else:
            values = cast("dict[Any, Any]", value)
            if list(values) != sorted(values):
                return f"not in input order: {list(values)}"
        for slot in slots:
            if slot.key in values and slot.key in failed:
                return f"{slot.key} of the fan-out around is both done and failed"
            if slot.key in values:
                problem = slot.check(values[slot.key])
                if problem is not None:
                    return f"in {slot.key} of the fan-out around: {problem}"
            elif slot.key in failed:
                if not (slot.may_fail or self.is_flaky):
                    return f"{slot.key} of the fan-out around has failed without a reason"
            elif not self.may_lose_children:
                return f"{slot.key} of the fan-out around is missing"
        return None


def _number(item: str) -> int:
    return int(item.rpartition(".")[2]) if "." in item else 1
