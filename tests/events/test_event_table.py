"""A class of events and the method of hooks that is told of it are entered together, once."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import get_type_hints

import pytest

from shoal import Application, Hook, action, fan_out
from shoal._events import hooks as hooks_module
from shoal._events.events import COMMIT_METHODS, HOOK_METHODS
from shoal._events.hooks import Hooks
from shoal.events import Event, Item, RunEnded, RunStarted, StateUpdated, StepEnded, StepStarted

pytestmark = pytest.mark.anyio


@action(writes=["done"])
async def work() -> bool:
    return True


@action(reads=["number"], writes=["twice"])
async def double(number: int) -> int:
    return 2 * number


METHODS = [name for name in vars(Hook) if name.startswith("on_") and name != "on_event"]


def test_every_method_of_a_hook_has_a_class_of_events():
    assert sorted(METHODS) == sorted(HOOK_METHODS)
    assert HOOK_METHODS.keys() > COMMIT_METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_the_events_that_are_entered_for_it(method: str):
    taken = get_type_hints(getattr(Hook, method), dict(vars(hooks_module)))["event"]
    assert taken is HOOK_METHODS[method]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_calls_as_its_base_is_on_event(method: str):
    received: list[object] = []

    class Counting(Hook):
        def on_event(self, event: Event) -> None:
            received.append(event)

    event = object()
    getattr(Counting(), method)(event)
    assert received == [event]


@pytest.mark.parametrize("method", METHODS)
def test_listeners_are_an_attribute_and_empty_where_there_are_none(method: str):
    name = method.removeprefix("on_")

    def received(_self: Hook, _event: Event) -> None:
        pass

    one: Hook = type("One", (Hook,), {method: received})()
    sorted_out = Hooks([one])
    assert [hook for hook, _ in getattr(sorted_out, name)] == [one]
    others = {other.removeprefix("on_") for other in METHODS} - {name}
    assert not any(getattr(sorted_out, other) for other in others)
    assert sorted_out.listening is (method in COMMIT_METHODS)


def test_a_class_of_events_without_a_method_is_in_no_table():
    before = dict(HOOK_METHODS)

    class Unheard(Event):
        pass

    assert before == HOOK_METHODS
    assert Unheard not in HOOK_METHODS.values()


async def test_on_event_receives_events_without_a_method_of_their_own():
    received: list[str] = []

    class Both(Hook):
        def on_event(self, event: Event) -> None:
            received.append(f"any {type(event).__name__}")

        async def on_step_ended(self, event: StepEnded) -> None:
            received.append(f"own {type(event).__name__}")

    await Application(work, hooks=[Both()]).run()
    assert received == [
        "any RunStarted", "any StepStarted", "any StateUpdated", "own StepEnded", "any RunEnded"
    ]  # fmt: skip


async def test_on_event_may_be_a_coroutine_function_and_receives_events_of_children():
    received: list[type[Event]] = []

    class Watcher(Hook):
        async def on_event(self, event: Event) -> None:
            received.append(type(event))

    fan = fan_out(double, over="numbers", item="number", into="doubled")
    await Application(fan, hooks=[Watcher()]).run({"numbers": [1, 2]})
    assert {RunStarted, StepStarted, StateUpdated, StepEnded, RunEnded} < set(received)
    assert Item not in received


async def test_a_method_that_calls_its_base_calls_on_event_too():
    received: list[str] = []

    class Counting(Hook):
        def on_event(self, event: Event) -> None:
            received.append(type(event).__name__)

        def on_run_ended(self, event: RunEnded) -> None:
            super().on_run_ended(event)

    await Application(work, hooks=[Counting()]).run()
    assert received[-1] == "RunEnded"
