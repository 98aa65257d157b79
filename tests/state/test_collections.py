"""The persistent collections: whatever is done to one version, the others stay as they were."""

# pyright: reportPrivateUsage=false
# What is shared between versions, and so what they cost, can only be seen from inside.

from __future__ import annotations

import copy
import gc
import linecache
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from types import FrameType
from typing import Any, ClassVar, TypeVar, cast
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shoal import PositionedList, StateList, StateMap
from shoal._state.plain import to_plain

T = TypeVar("T")

repeatable = settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=25)
values = st.integers(0, 5)
keys = st.sampled_from([0, 1, 2, "0", "1", "a"])
positions = st.none() | st.integers(0, 6)


# -- models ------------------------------------------------------------------------------------


class MapModel:
    """What a StateMap promises, the slow way: sorted by position, then by arrival."""

    def __init__(self, items: Mapping[Any, Any] | None = None) -> None:
        self.entries: dict[Any, tuple[Any, float]] = {
            key: (value, -1.0) for key, value in (items or {}).items()
        }

    def put(self, key: Any, value: Any, position: float | None) -> MapModel:
        after = MapModel()
        after.entries = dict(self.entries)
        if position is None:
            position = after.entries[key][1] if key in after.entries else float("inf")
        after.entries[key] = (value, position)  # a known key keeps its turn among equals
        return after

    def items(self) -> list[tuple[Any, Any]]:
        ordered = sorted(self.entries.items(), key=lambda entry: entry[1][1])
        return [(key, value) for key, (value, _) in ordered]


def assert_reads_as_list(found: Sequence[Any], model: list[Any]) -> None:
    assert len(found) == len(model)
    assert list(found) == model
    assert list(reversed(found)) == model[::-1]
    assert found == model
    assert model == found
    assert found != [*model, 9]
    assert found != [*model[:-1], "other"]
    assert repr(found) == repr(model)
    for index in range(-len(model), len(model)):
        assert found[index] == model[index]
    for index in (len(model), -len(model) - 1):
        with pytest.raises(IndexError, match=rf"{index} is out of range.*{len(model)} items"):
            found[index]


def assert_reads_as_map(found: StateMap[Any, Any], model: MapModel) -> None:
    expected = model.items()
    as_dict = dict(expected)
    assert list(found.items()) == expected
    assert list(found) == [key for key, _ in expected]
    assert list(found.values()) == [value for _, value in expected]
    assert [found.in_order(rank) for rank in range(len(expected))] == list(found.values())
    assert len(found) == len(expected)
    assert found == as_dict
    assert as_dict == found
    assert found != {**as_dict, "more": 1}
    assert repr(found) == repr(as_dict)
    for key in (0, 1, 2, "0", "1", "a", None):
        assert (key in found) == (key in as_dict)
        assert found.get(key, "missing") == as_dict.get(key, "missing")
        if key not in as_dict:
            with pytest.raises(KeyError):
                found[key]


# -- any order of changes to any version --------------------------------------------------------


ListVersion = tuple[StateList[Any], list[Any]]
MapVersion = tuple[StateMap[Any, Any], MapModel]
PositionedVersion = tuple[PositionedList[Any], dict[int, Any]]


class ListMachine(RuleBasedStateMachine):
    """Extend any version at any time; all that was ever made is looked at after every step."""

    lists = Bundle[ListVersion]("lists")

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[ListVersion] = []

    def keep(self, made: StateList[Any], model: list[Any]) -> ListVersion:
        self.kept.append((made, model))
        return made, model

    @rule(target=lists, items=st.lists(values, max_size=3))
    def make(self, items: list[int]) -> ListVersion:
        made = self.keep(StateList(items), list(items))
        items.append(99)  # it holds a copy
        return made

    @rule(target=lists, version=lists, item=values)
    def append(self, version: ListVersion, item: int) -> ListVersion:
        made, model = version
        return self.keep(made.append(item), [*model, item])

    @rule(target=lists, version=lists, items=st.lists(values, max_size=3))
    def extend(self, version: ListVersion, items: list[int]) -> ListVersion:
        made, model = version
        return self.keep(made.extend(iter(items)), model + items)

    @rule(target=lists, version=lists)
    def extend_with_itself(self, version: ListVersion) -> ListVersion:
        made, model = version
        return self.keep(made.extend(made), model + model)

    @rule(target=lists, version=lists)
    def copy(self, version: ListVersion) -> ListVersion:
        made, model = version
        return self.keep(pickle.loads(pickle.dumps(made)), model)

    @invariant()
    def every_version_is_what_it_was(self) -> None:
        for made, model in self.kept:
            assert list(made) == model
            assert len(made) == len(model)
        if self.kept:
            assert_reads_as_list(*self.kept[-1])


class MapMachine(RuleBasedStateMachine):
    """The same for mappings; positions come in any order, known keys move."""

    maps = Bundle[MapVersion]("maps")

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[MapVersion] = []

    def keep(self, made: StateMap[Any, Any], model: MapModel) -> MapVersion:
        self.kept.append((made, model))
        return made, model

    @rule(target=maps, items=st.dictionaries(keys, values, max_size=3))
    def make(self, items: dict[Any, int]) -> MapVersion:
        made = self.keep(StateMap(items), MapModel(items))
        items["late"] = 99  # it holds a copy
        return made

    @rule(target=maps, version=maps, key=keys, value=values, position=positions)
    def put(self, version: MapVersion, key: Any, value: int, position: float | None) -> MapVersion:
        made, model = version
        return self.keep(made.put(key, value, position), model.put(key, value, position))

    @rule(
        target=maps, version=maps, entries=st.lists(st.tuples(keys, values, positions), max_size=4)
    )
    def put_all(
        self, version: MapVersion, entries: list[tuple[Any, Any, float | None]]
    ) -> MapVersion:
        made, model = version
        made = made.put_all(iter(entries))
        for entry in entries:
            model = model.put(*entry)
        return self.keep(made, model)

    @rule(
        target=maps,
        version=maps,
        entries=st.lists(
            st.tuples(st.integers(3, 20), values, st.integers(0, 9)),
            unique_by=lambda entry: entry[0],
            min_size=3,
            max_size=5,
        ),
        is_sorted=st.booleans(),
    )
    def put_new(
        self, version: MapVersion, entries: list[tuple[int, int, int]], *, is_sorted: bool
    ) -> MapVersion:
        """As a fan-out puts the results of a batch: mostly all keys are new."""
        if is_sorted:
            entries = sorted(entries, key=lambda entry: entry[2])
        made, model = version
        for entry in entries:
            model = model.put(*entry)
        return self.keep(made.put_all(list(entries)), model)

    @invariant()
    def every_version_is_what_it_was(self) -> None:
        for made, model in self.kept:
            assert list(made.items()) == model.items()
            assert len(made) == len(model.entries)
        if self.kept:
            assert_reads_as_map(*self.kept[-1])


class PositionedMachine(RuleBasedStateMachine):
    """Lists whose items come by position, in any order, more than once."""

    lists = Bundle[PositionedVersion]("lists")

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[PositionedVersion] = []

    def keep(self, made: PositionedList[Any], model: dict[int, Any]) -> PositionedVersion:
        self.kept.append((made, model))
        return made, model

    @rule(target=lists)
    def make(self) -> PositionedVersion:
        return self.keep(PositionedList(StateMap()), {})

    @rule(target=lists, version=lists, entries=st.lists(st.tuples(st.integers(0, 6), values)))
    def put_all(
        self, version: PositionedVersion, entries: list[tuple[int, int]]
    ) -> PositionedVersion:
        made, model = version
        made = made.put_all((position, value, position) for position, value in entries)
        return self.keep(made, {**model, **dict(entries)})

    @invariant()
    def every_version_is_what_it_was(self) -> None:
        for made, model in self.kept:
            assert list(made) == [model[position] for position in sorted(model)]
        if self.kept:
            made, model = self.kept[-1]
            assert_reads_as_list(made, [model[position] for position in sorted(model)])


def as_test(machine: type[RuleBasedStateMachine]) -> Any:
    case: Any = machine.TestCase
    case.settings = repeatable
    return case


TestListVersions = as_test(ListMachine)
TestMapVersions = as_test(MapMachine)
TestPositionedVersions = as_test(PositionedMachine)

all_slices = st.slices(8) | st.builds(
    slice,
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-3, 3).filter(bool),
)


def positioned(items: Iterable[T]) -> PositionedList[T]:
    """In reverse order of position, with gaps."""
    entries = [(2 * at, item, float(2 * at)) for at, item in enumerate(items)]
    return PositionedList(StateMap[int, T]()).put_all(reversed(entries))


@given(items=st.lists(values, max_size=8), wanted=all_slices)
@repeatable
def test_slices_are_a_lists(items: list[int], wanted: slice):
    longer = StateList(items).append(7)  # what comes after a version's end is not its own
    assert longer[-1] == 7
    for found in (StateList(items), longer[: len(items)], positioned(items)):
        assert found[wanted] == items[wanted]
        assert type(found[wanted]) is list


def test_a_kept_version_does_not_see_behind_its_end():
    short = StateList([1, 2])
    longer = short.extend([3, 4])
    assert short[-1] == 2
    assert short[:] == [1, 2]
    assert short[-3:9] == [1, 2]
    assert 3 not in short
    assert longer[-1] == 4
    with pytest.raises(IndexError):
        short[2]


def test_forks_of_one_version_do_not_see_each_other():
    trunk = StateMap({"a": 1}).put("b", 2)
    left, right = trunk.put("c", 3), trunk.put("c", 30)
    further = left.put("b", 20).put("d", 4)
    assert trunk == {"a": 1, "b": 2}
    assert left == {"a": 1, "b": 2, "c": 3}
    assert right == {"a": 1, "b": 2, "c": 30}
    assert further == {"a": 1, "b": 20, "c": 3, "d": 4}


def test_one_and_its_text_are_different_keys():
    both = StateMap[Any, str]().put(1, "number").put("1", "text")
    assert dict(both) == {1: "number", "1": "text"}


# -- order -------------------------------------------------------------------------------------


def test_a_map_reads_in_order_of_position_whatever_order_it_was_put_in():
    found = StateMap[str, int]().put("c", 3, 2).put("a", 1, 0).put("b", 2, 1)
    assert list(found.items()) == [("a", 1), ("b", 2), ("c", 3)]


def test_what_was_there_stands_first_and_what_has_no_position_last():
    found = StateMap({"old": 0}).put("last", 9).put("b", 2, 1).put("a", 1, 0).put("later", 10)
    assert list(found) == ["old", "a", "b", "last", "later"]


def test_an_overwritten_key_stays_unless_it_is_given_a_position():
    found = StateMap({"a": 1, "b": 2, "c": 3})
    assert list(found.put("a", 10)) == ["a", "b", "c"]
    assert list(found.put("a", 10, 5)) == ["b", "c", "a"]
    assert list(found.put("d", 4, 5).put("d", 5).put("e", 6, 4)) == ["a", "b", "c", "e", "d"]


# -- equality ----------------------------------------------------------------------------------


def test_lists_of_all_kinds_are_equal_and_other_things_are_not():
    plain = [1, 2]
    assert StateList([1, 2]) == positioned([1, 2]) == plain
    assert plain == StateList([1, 2])
    others: list[object] = [(1, 2), {1, 2}, "12", {0: 1, 1: 2}, None]
    for other in others:
        assert StateList([1, 2]) != other
        assert positioned([1, 2]) != other


def test_maps_are_equal_in_any_order_and_other_things_are_not():
    assert StateMap({"a": 1, "b": 2}) == StateMap({"b": 2, "a": 1}) == {"b": 2, "a": 1}
    others: list[object] = [[("a", 1)], [("b", 2)], {"a", "b"}, None, "ab"]
    for other in others:
        assert StateMap({"a": 1, "b": 2}) != other


def test_what_a_list_holds_is_compared_as_a_list_does():
    nan = float("nan")
    assert [nan] == [nan]  # the same object
    assert StateList([nan]) == [nan]
    assert positioned([nan]) == [nan]
    assert StateMap({"a": nan}) == {"a": nan}


@pytest.mark.parametrize("made", [StateList([1]), StateMap({1: 1}), positioned([1])], ids=repr)
def test_none_of_them_has_a_hash(made: object):
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


@pytest.mark.parametrize("made", [StateList([1]), positioned([1])], ids=["list", "positioned"])
def test_a_list_is_a_sequence_that_cannot_be_changed(made: Any):
    assert issubclass(type(made), Sequence)
    with pytest.raises(TypeError):
        made[0] = 2
    with pytest.raises(TypeError):
        del made[0]
    assert not hasattr(made, "insert")


def test_a_map_is_a_mapping_that_cannot_be_changed():
    made: Any = StateMap({"a": 1})
    assert issubclass(type(made), Mapping)
    with pytest.raises(TypeError):
        made["a"] = 2
    with pytest.raises(TypeError):
        del made["a"]
    assert not hasattr(made, "update")


def test_an_unhashable_key_is_in_no_map_and_changes_none():
    made = StateMap[Any, int]({"a": 1})
    assert [] not in made
    with pytest.raises(TypeError, match="unhashable"):
        made.put_all([("b", 2, None), ([], 3, None)])
    assert made == {"a": 1}
    assert made.put("c", 4) == {"a": 1, "c": 4}


# -- copies ------------------------------------------------------------------------------------


def through_pickle(value: T) -> T:
    return cast("T", pickle.loads(pickle.dumps(value)))


copying = pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, through_pickle])


@copying
def test_a_copy_is_equal_and_of_the_same_kind(copied: Callable[[Any], Any]):
    mapping = StateMap[str, object]({"a": 1}).put("b", [2], 0)
    for made in (StateList([1, [2]]), mapping, positioned([1, [2]])):
        assert copied(made) == made
        assert type(copied(made)) is type(made)
        assert list(copied(made)) == list(made)


@copying
def test_a_copy_goes_on_as_the_original_does(copied: Callable[[Any], Any]):
    mapping = StateMap[str, int]().put("d", 4, 9).put("a", 1, 2).put("z", 0)
    assert list(copied(mapping).put("b", 2, 5)) == list(mapping.put("b", 2, 5))
    made = positioned("ac")
    assert copied(made).put_all([(1, "b", 1)]) == made.put_all([(1, "b", 1)]) == ["a", "b", "c"]
    assert copied(StateList([1])).append(2) == [1, 2]


def test_a_deep_copy_copies_what_is_inside():
    inner = [1]
    made = StateList([inner])
    deep = copy.deepcopy(made)
    inner.append(2)
    assert deep == [[1]]
    assert made == [[1, 2]]


def test_a_pickled_version_holds_nothing_of_those_after_it():
    short = StateList(["kept"])
    short.append("x" * 10_000)
    assert len(pickle.dumps(short)) < 1_000
    early = StateMap[str, object]({"kept": 1})
    early.put("later", "x" * 10_000)
    assert len(pickle.dumps(early)) < 1_000


def test_to_plain_goes_all_the_way_down():
    nested = StateList([StateMap({"a": positioned([1, StateList([2])])}), {"b": StateList([3])}])
    plain = to_plain([nested, (StateList([4]),), "text"])
    assert plain == [[{"a": [1, [2]]}, {"b": [3]}], (StateList([4]),), "text"]
    [[first, second], *_] = cast("list[list[Any]]", plain)
    assert type(first) is type(second) is dict
    assert type(first["a"]) is type(first["a"][1]) is type(second["b"]) is list


# -- cost --------------------------------------------------------------------------------------


class CountedKey:
    """A key that counts how often anybody looks for it."""

    hashed = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        CountedKey.hashed += 1
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountedKey) and other.number == self.number


def hashes_of(puts: int) -> int:
    CountedKey.hashed = 0
    made = StateMap[CountedKey, int]()
    for number in range(puts):
        made = made.put(CountedKey(number), number, puts - number)
    assert len(made) == puts
    return CountedKey.hashed


def test_n_puts_cost_n():
    assert hashes_of(2_000) == 2 * hashes_of(1_000)


def test_n_appends_share_one_journal():
    first = StateList[int]()
    last = first
    for number in range(1_000):
        last = last.append(number)
    assert last._journal is first._journal
    assert len(last._journal.items) == 1_000


def test_n_puts_share_one_journal():
    first = StateMap[int, int]()
    last = first
    for number in range(1_000):
        last = last.put(number, number)
    assert last._journal is first._journal


def test_a_fork_copies_once_and_then_costs_what_a_trunk_does():
    trunk = StateList(range(1_000))
    trunk.append(1)
    fork = trunk.append(2)
    assert fork._journal is not trunk._journal
    assert fork.append(3).append(4)._journal is fork._journal
    mapping = StateMap(zip(range(1_000), range(1_000), strict=True))
    mapping.put("a", 1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    forked = mapping.put(-1, 2)
    assert forked._journal is not mapping._journal
    assert forked.put(-2, 3).put(-3, 4)._journal is forked._journal


class Counted:
    """A value that can be seen to die."""

    alive: ClassVar[WeakSet[Counted]] = WeakSet()

    def __init__(self, number: int) -> None:
        self.number = number
        Counted.alive.add(self)


def test_overwriting_does_not_pile_up():
    # a reducer that counts by host keeps a few keys, however many outcomes there are
    counts = kept = StateMap[int, Counted]()
    for number in range(5_000):
        counts = counts.put(number % 10, Counted(number))
        if number == 500:
            kept = counts
    assert [counts[key].number for key in range(10)] == list(range(4_990, 5_000))
    assert list(counts) == list(range(10))
    assert [kept[key].number for key in range(10)] == [500, *range(491, 500)]
    gc.collect()
    assert len(Counted.alive) < 1_000


# -- threads and interrupts ---------------------------------------------------------------------


def at_line(number: int, function: Callable[[], object], intrude: Callable[[], object]) -> bool:
    """Call ``function``, and ``intrude`` before the ``number``th line of the collections.

    Not at a ``with`` itself: between its body and its end the interpreter handles no signal.
    Returns whether there are so many lines.
    """
    where: str = cast("Any", StateList).append.__code__.co_filename
    lines = count()
    reached = False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal reached
        if frame.f_code.co_filename != where:
            return None
        line = linecache.getline(where, frame.f_lineno).lstrip()
        if event == "line" and not line.startswith("with ") and next(lines) == number:
            reached = True
            intrude()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        assert reached
    finally:
        sys.settrace(before)
    return reached


class ToldLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, contended: threading.Event) -> None:
        self._contended = contended
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._contended.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def beside_each_other(
    make: Callable[[], Any], ours: Callable[[Any], Any], theirs: Callable[[Any], Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Let one thread come in at every line of what another one does to the same version.

    It gets as far as it can there: to its end, or to where it waits for the first one.
    """
    for number in count():
        version, results = make(), dict[str, Any]()
        stuck_or_done = threading.Event()
        version._journal.lock = ToldLock(stuck_or_done)

        def intruder(version: Any, results: dict[str, Any], done: threading.Event) -> None:
            results["theirs"] = theirs(version)
            done.set()

        def first(version: Any, results: dict[str, Any]) -> None:
            results["ours"] = ours(version)

        other = threading.Thread(target=intruder, args=(version, results, stuck_or_done))

        def intrude(other: threading.Thread, done: threading.Event) -> None:
            other.start()
            done.wait()

        more = at_line(
            number, partial(first, version, results), partial(intrude, other, stuck_or_done)
        )
        if not more:
            assert number > 5, "the other thread came in somewhere"
            return
        other.join()
        yield version, results["ours"], results["theirs"]


def test_two_threads_extend_one_version():
    for version, ours, theirs in beside_each_other(
        lambda: StateList([0]), lambda v: v.append(1), lambda v: v.append(2).append(3)
    ):
        assert version == [0]
        assert ours == [0, 1]
        assert theirs == [0, 2, 3]


def test_two_threads_put_into_one_version():
    for version, ours, theirs in beside_each_other(
        lambda: StateMap({"a": 0}), lambda v: v.put("b", 1), lambda v: v.put("c", 2, 0).put("a", 3)
    ):
        assert list(version.items()) == [("a", 0)]
        assert list(ours.items()) == [("a", 0), ("b", 1)]
        assert list(theirs.items()) == [("a", 3), ("c", 2)]


def test_one_thread_reads_what_another_one_extends():
    for version, ours, theirs in beside_each_other(
        lambda: StateMap({"a": 0}).put("b", 1, 5),
        lambda v: list(v.put("c", 2).put("a", 9, 9).items()),
        lambda v: [*v.items(), v["a"], "c" in v, len(v)],
    ):
        assert list(version.items()) == [("a", 0), ("b", 1)]
        assert ours == [("b", 1), ("a", 9), ("c", 2)]
        assert theirs == [("a", 0), ("b", 1), 0, False, 2]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_anywhere_in_a_put_leaves_every_version_whole():
    for number in count():
        made = StateMap({"a": 1}).put("b", 2)
        more = at_line(number, lambda made=made: made.put("a", 0).put("x", 0, 0), interrupt)
        assert made == {"a": 1, "b": 2}, number
        after = made.put("c", 3).put("d", 4, 1)
        assert after == {"a": 1, "b": 2, "c": 3, "d": 4}, number
        assert list(after) == ["a", "d", "b", "c"], number
        assert list(after.put("a", 6)) == ["a", "d", "b", "c"], number
        assert made.put("b", 5) == {"a": 1, "b": 5}, number
        if not more:
            assert number > 20, "the interrupts reached the code"
            return


def test_an_interrupt_anywhere_in_puts_of_new_keys_leaves_every_version_whole():
    new = [("x", 0, 0), ("y", 1, 1), ("z", 2, 2)]
    for number in count():
        made = StateMap({"a": 1}).put("b", 2, 3)
        more = at_line(number, lambda made=made: made.put_all(new), interrupt)
        assert made == {"a": 1, "b": 2}, number
        after = made.put_all([("c", 3, 2), ("y", 4, 5), ("d", 5, 1)])
        assert list(after.items()) == [("a", 1), ("d", 5), ("c", 3), ("b", 2), ("y", 4)], number
        assert made.put("x", 5) == {"a": 1, "b": 2, "x": 5}, number
        if not more:
            assert number > 15, "the interrupts reached the code"
            return


def test_an_interrupt_anywhere_in_an_append_leaves_every_version_whole():
    for number in count():
        made = StateList([1])
        more = at_line(number, lambda made=made: made.append(0).append(0), interrupt)
        assert made == [1], number
        assert made.append(2).append(3) == [1, 2, 3], number
        if not more:
            assert number > 10, "the interrupts reached the code"
            return


# -- operators -------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [StateList([1]), positioned([1]), [1]], ids=type)
@pytest.mark.parametrize("second", [StateList([2, 3]), positioned([2, 3]), [2, 3]], ids=type)
def test_lists_of_all_kinds_are_added(first: Any, second: Any):
    before = list(first), list(second)
    assert first + second == [1, 2, 3]
    assert (list(first), list(second)) == before
    for wrong in ((2,), {2: 3}, "2", 2):
        with pytest.raises(TypeError):
            _ = first + wrong
        with pytest.raises(TypeError):
            _ = wrong + first


@pytest.mark.parametrize("first", [StateMap({"a": 1, "b": 1}), {"a": 1, "b": 1}], ids=type)
@pytest.mark.parametrize("second", [StateMap({"b": 2, "c": 2}), {"b": 2, "c": 2}], ids=type)
def test_maps_and_dicts_are_merged(first: Any, second: Any):
    merged = first | second
    assert merged == {"a": 1, "b": 2, "c": 2}
    assert list(merged) == ["a", "b", "c"]
    assert first == {"a": 1, "b": 1}
    for wrong in ([("c", 1)], "c", 1):
        with pytest.raises(TypeError):
            _ = first | wrong
        with pytest.raises(TypeError):
            _ = wrong | first


def test_what_is_added_shares_the_journal():
    first = StateList([1])
    more = [2]
    assert type(first + more) is StateList
    assert type(StateMap({"a": 1}) | {"b": 2}) is StateMap
