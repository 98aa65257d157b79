"""What is in an actor of Ray, and what a pool asks of a cluster: all of it without Ray."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shoal
from shoal.errors import DefinitionError
from shoal.executors import Ray, _ray_actor, _ray_link, _ray_session
from shoal.executors import _messages as m
from shoal.executors._ray_actor import RayActor
from shoal.executors._ray_link import room_for, unmet
from shoal.executors._sending import dump, load
from tests.executors.links import job

GO = threading.Event()


def add(a: int, b: int) -> int:
    return a + b


def wait() -> str:
    assert GO.wait(10)
    return "went"


def fail() -> None:
    raise ValueError("no model here")


class Wired:
    """An actor, and what it has sent."""

    def __init__(self, initializer: Any = None):
        self.actor = RayActor([], initializer)
        self.stream = self.actor.events()
        self.number = 0

    def batch(self, *messages: m.Message) -> tuple[int, bytes]:
        self.number += 1
        return self.number, pickle.dumps(list(messages))

    def call(self, function: Any, call: int, **kwargs: object) -> tuple[int, bytes]:
        made = job(function)
        data = dump((made.function, made.access, made.takes_context))
        sent = (m.JOB, call, made.kind, made.name, data, list(sys.path))
        return self.batch(sent, (m.CALL, call, call, dump(kwargs), None, ""))

    def next(self) -> list[m.Message]:
        return pickle.loads(next(self.stream))

    def until(self, kind: str) -> list[m.Message]:
        """Return all messages up to the batch with one of that kind."""
        found: list[m.Message] = []
        while not any(message[0] == kind for message in found):
            found += self.next()
        return found


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    """An actor in this process, which must stay as it is."""
    GO.clear()
    monkeypatch.setattr(_ray_actor, "new_main", lambda: None)
    interval = sys.getswitchinterval()
    made = Wired()
    try:
        yield made
        GO.set()
    finally:
        # Past the order of batches: one that was refused would keep this one waiting for ever.
        made.actor._core.handle([(m.STOP,)])
        for _ in made.stream:  # its threads end with it
            pass
        sys.setswitchinterval(interval)


def test_it_says_first_what_it_is(wired: Wired):
    about = pickle.loads(next(wired.stream))
    assert about["process"] == os.getpid()
    assert about["shoal"] == shoal.__version__
    assert wired.next() == [(m.READY,)]


def test_batches_are_taken_in_order_however_they_arrive(wired: Wired):
    next(wired.stream)
    first, second, third = (wired.call(add, n, a=n, b=n) for n in (1, 2, 3))
    for one in (third, first, first, second, third):  # one late, two of them twice
        wired.actor.submit(*one)
    found: list[m.Message] = []
    while sum(message[0] == m.DONE for message in found) < 3:
        found += wired.next()
    done = [(message[1], load(message[2])) for message in found if message[0] == m.DONE]
    assert done == [(1, 2), (2, 4), (3, 6)]


def test_a_long_call_is_reported_while_it_is_at_work(wired: Wired):
    next(wired.stream)
    wired.until(m.READY)
    wired.actor.submit(*wired.call(wait, 7))
    assert wired.until(m.BEGAN)[-1] == (m.BEGAN, [7])
    GO.set()
    assert load(wired.until(m.DONE)[-1][2]) == "went"


def test_its_stream_ends_when_it_is_told_to(wired: Wired):
    next(wired.stream)
    wired.actor.submit(*wired.call(add, 1, a=1, b=1))
    wired.actor.submit(*wired.batch((m.STOP,)))
    kinds = [message[0] for batch in wired.stream for message in pickle.loads(batch)]
    assert kinds == [m.READY, m.DONE]


def test_its_stream_ends_after_a_failed_initializer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ray_actor, "new_main", lambda: None)
    interval = sys.getswitchinterval()
    wired = Wired(dump((fail, ())))
    next(wired.stream)
    [[refused]] = [pickle.loads(batch) for batch in wired.stream]
    sys.setswitchinterval(interval)
    assert refused[0] == m.REFUSED


# -- resources -------------------------------------------------------------------------------------

NODES = [{"CPU": 4.0, "memory": 8e9}, {"CPU": 2.0, "GPU": 1.0, "memory": 4e9}]


@pytest.mark.parametrize(
    ("needs", "room"),
    [
        ({"CPU": 1}, 6),
        ({"CPU": 3}, 1),
        ({"CPU": 0.5}, 12),
        ({"CPU": 1, "GPU": 1}, 1),
        ({"GPU": 0.25}, 4),
        ({"CPU": 1, "memory": 4e9}, 3),
        ({}, 2),  # one for each node
        ({"CPU": 64}, 1),  # `unmet` says that there is none
    ],
)
def test_how_many_actors_a_cluster_has_room_for(needs: dict[str, float], room: int):
    assert room_for(needs, NODES) == room


def test_what_no_node_can_ever_hold_is_named():
    assert unmet({"CPU": 4}, NODES) == ""
    assert unmet({"GPU": 1}, NODES) == ""
    assert "needs CPU: 4, GPU: 1" in unmet({"CPU": 4, "GPU": 1}, NODES)  # not on one node
    assert "the most that one has is gold: 0" in unmet({"gold": 2}, NODES)
    assert "start_within" in unmet({"CPU": 1}, [])


# -- declaring -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Ray counts as installed, in a version that can be set; None: it is not."""

    def install(version: str | None) -> None:
        monkeypatch.setattr(_ray_session, "INSTALLED", version)

    install("2.60.0")
    return install


def test_without_ray_it_says_how_to_install_it(installed: Callable[[str | None], None]):
    installed(None)
    with pytest.raises(DefinitionError, match=r"pip install 'shoal\[ray\]'"):
        Ray()


@pytest.mark.parametrize("version", ["2.55.1", "2.56.0rc1", "3.0"])
def test_a_version_of_ray_that_is_new_enough(version: str, installed: Callable[[str | None], None]):
    installed(version)
    Ray()


@pytest.mark.parametrize("version", ["2.55.0", "2.9.3", "1.13"])
def test_a_version_of_ray_that_is_too_old(version: str, installed: Callable[[str | None], None]):
    installed(version)
    with pytest.raises(DefinitionError, match=rf"ray {version} is too old"):
        Ray()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"address": "ray://10.0.0.5:10001"}, "Ray Client, which has no streams"),
        ({"actors": 0}, "actors"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"takes": "async"}, "takes"),
        ({"kill_after": -1}, "kill_after"),
        ({"start_within": float("nan")}, "start_within"),
        ({"num_cpus": -1}, "'CPU', at least 0"),
        ({"resources": {"GPU": "1"}}, "'GPU', at least 0"),
        ({"resources": {"CPU": 2}}, "num_cpus"),
        ({"initializer": "add"}, "takes a function"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(DefinitionError, match=said):
        Ray(**given)


def test_what_cant_be_sent_is_refused_with_a_way_out():
    ray = Ray()
    assert ray.refuse(job(add), {"a": 1}) == ""
    reason = ray.refuse(job(add), {"a": 1, "b": threading.Lock()})
    assert "input 'b'" in reason
    assert "Ray(initializer=...)" in reason
    assert "executor='loop'" in reason


def test_an_initializer_that_cant_be_sent_is_refused(tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        ray = Ray(initializer=add, initargs=(1, file))
        assert "initializer add() can't be sent" in ray.refuse(job(add), {})


def test_an_actor_that_can_not_be_sent_to_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    killed: list[object] = []

    def refuse(number: int, data: bytes) -> None:
        raise MemoryError("the object store is full")

    actor = SimpleNamespace(submit=SimpleNamespace(remote=refuse))
    session = SimpleNamespace(is_initialized=lambda: True, kill=killed.append)
    monkeypatch.setattr(_ray_link, "ray", lambda: session)
    link: Any = object.__new__(_ray_link.RayLink)
    link.name, link._actor, link._sent, link._is_killed = "actor 1", actor, 0, False
    link.send([(m.CANCEL, 1)])
    assert killed == [actor], "else it would wait for batch 1 for ever"
    assert "actor 1 is ended, since it can't be sent to: the object store is full" in caplog.text
