"""The values that commits publish for each child are those that their classes would make."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from shoal import Application, Done, Hook, State, action, fan_out
from shoal._events.identity import RunPath
from shoal._events.making import make_done, make_state_updated
from shoal._state.state import Change, Set
from shoal.events import StateUpdated, Update

PATH = RunPath(act="double", parent=RunPath(run_id="r"), step="all", key=1)
UPDATE = Update(1, "double", (Set("double", 2),))


@dataclass
class Child:
    """A child that has succeeded, with all that its outcome reports."""

    path: RunPath = PATH
    position: int = 3
    element: object = 1
    attempts: int = 2
    elapsed: float = 0.5
    abandoned: bool = True
    value: object = 2
    used: bool = False
    pending: Change | None = None
    retries: object = "some"
    head: tuple[int, Mapping[str, object]] = 0, {"n": 1, "double": 2}


def done(state: State | None = None) -> Done:
    child = dataclasses.asdict(Child(), dict_factory=dict[str, Any])
    del child["pending"], child["head"], child["retries"]
    child["path"] = PATH
    return Done(**child, state=State({"n": 1, "double": 2}) if state is None else state)


VALUES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "outcome": (lambda: make_done(Child(), None), done),
    "update": (
        lambda: make_state_updated(PATH, UPDATE, make_done(Child(), None)),
        lambda: StateUpdated(path=PATH, update=UPDATE, outcome=done()),
    ),
    "update without an outcome": (
        lambda: make_state_updated(PATH, UPDATE, None),
        lambda: StateUpdated(path=PATH, update=UPDATE),
    ),
}


@pytest.mark.parametrize("kind", VALUES)
def test_what_commits_publish_equals_what_the_classes_make(kind: str):
    make, by_class = VALUES[kind]
    made = make()
    assert type(made) is type(by_class())
    assert made == by_class()
    assert by_class() == make()
    assert repr(make()) == repr(by_class())
    assert dataclasses.fields(make()) == dataclasses.fields(by_class())
    for field in dataclasses.fields(by_class()):
        assert getattr(make(), field.name) == getattr(by_class(), field.name)
    for other in (pickle.loads(pickle.dumps(make())), copy.copy(make()), copy.deepcopy(make())):
        assert other == by_class()
        assert type(other) is type(by_class())
    changed = dataclasses.replace(make(), path=PATH.parent)
    assert changed == dataclasses.replace(by_class(), path=PATH.parent)
    with pytest.raises(FrozenInstanceError):
        made.path = PATH
    with pytest.raises(FrozenInstanceError):
        del made.path
    with pytest.raises(AttributeError, match="no attribute 'states'"):
        _ = made.states
    assert not hasattr(by_class(), "__dict__")


def test_the_state_of_an_outcome_is_the_one_at_its_end():
    change = Change((Set("double", 4),), {"double": 4})
    made = make_done(Child(pending=change), None)
    match made:
        case Done(state=state):
            assert dict(state) == {"n": 1, "double": 4}
    assert made.state is state
    assert made == done(State({"n": 1, "double": 4}))


@pytest.mark.anyio
async def test_a_hook_may_keep_an_outcome_and_look_at_its_state_later():
    kept: list[StateUpdated] = []

    class Keeping(Hook):
        def on_state_updated(self, event: StateUpdated) -> None:
            kept.append(event)

    @action(reads=["n"], writes=["double"])
    async def double(n: int) -> int:
        return 2 * n

    spread = fan_out(double, over="numbers", item="n", key=int, into="found", take="double")
    await Application(spread, hooks=[Keeping()]).run({"numbers": [1, 2, 3]})
    outcomes = [event.outcome for event in kept if event.outcome is not None]
    assert [(one.value, one.state["double"]) for one in outcomes if isinstance(one, Done)] == [
        (2, 2),
        (4, 4),
        (6, 6),
    ]
    assert sum(event.depth == 1 for event in kept) == 3
