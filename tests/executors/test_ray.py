"""Ray: a real cluster of two nodes on this machine."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Failed,
    Hook,
    Limits,
    MemoryStore,
    Result,
    Runtime,
    action,
    fan_out,
    race,
)
from shoal.errors import NoWorker, Poisoned
from shoal.events import ChildEnded, Item
from shoal.executors import Processes, Ray
from shoal.testing import RecordingHook, no_leaks
from tests.executors.clusters import HAS_RAY, RayCluster, ray_cluster
from tests.executors.one_program import final_state

pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install 'shoal[ray]'"),
    pytest.mark.timeout(240),  # real processes, on a machine that has much else to do
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """No virtual time: a cluster is outside."""
    return request.param, {}


costly = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param("trio", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as found:
        yield found


@pytest.fixture
def ray(cluster: RayCluster) -> Iterator[Ray]:
    """One actor, which is all that most tests need."""
    yield Ray(cluster.address, actors=1)
    assert not import_module("ray").is_initialized()


@pytest.fixture
def four(cluster: RayCluster) -> Ray:
    """As many actors as the cluster has processors."""
    return Ray(cluster.address)


async def warm_up(runtime: Runtime) -> None:
    """Start all actors of the runtime."""
    processes = fan_out(process, over="ns", item="n", into="processes")
    found = 0
    while found < 4:
        result = await Application(processes).run({"ns": range(40)}, runtime=runtime)
        found = len(set(result.state["processes"]))


# -- calling ---------------------------------------------------------------------------------------


@action(reads=["n"], writes=["square"])
def square(n: int) -> int:
    return n * n


@action(reads=["n"], writes=["cube"])
async def cube(n: int) -> int:
    await anyio.sleep(0.001)
    return n**3


@action(reads=["n"], writes=["process"])
def process(n: int) -> int:
    time.sleep(0.05)
    return os.getpid()


async def test_functions_are_called_in_actors_on_both_nodes(
    cluster: RayCluster, four: Ray, anyio_backend: object
):
    processes = fan_out(process, over="ns", item="n", into="processes")
    async with no_leaks(descriptors=False), Runtime(executor=four) as runtime:
        result = await Application(processes).run({"ns": range(60)}, runtime=runtime)
        assert len(set(result.state["processes"])) == 4  # as many as there are processors
        assert os.getpid() not in result.state["processes"]
        nodes = {parent_of(pid) for pid in result.state["processes"]}
        assert len(nodes) == 2
    assert not cluster.actors()


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@costly
async def test_ten_thousand_children(ray: Ray, anyio_backend: object):
    async with Runtime(executor=ray) as runtime:
        for act, power in ((square, 2), (cube, 3)):
            results = fan_out(act, over="ns", item="n", into="results")
            result = await Application(results).run({"ns": range(10_000)}, runtime=runtime)
            assert result.state["results"] == [n**power for n in range(10_000)]


async def test_the_same_program_ends_in_the_same_state(ray: Ray, anyio_backend: object):
    expected = await final_state("loop")
    assert await final_state("threads") == expected
    assert await final_state(Processes(1, takes="all")) == expected
    assert await final_state(ray) == expected


async def test_what_is_defined_nowhere_is_sent_by_value(ray: Ray, anyio_backend: object):
    offset = 40

    @action(reads=["n"], writes=["sum"])
    def add(n: int) -> int:
        return n + offset

    assert (await Application(add, executor=ray).run({"n": 2})).state["sum"] == 42


@action(reads=["n"], writes=["sum"])
async def talk(n: int, context: Context) -> int:
    context.note(f"adding {n}")
    context.charge(0.5)
    total = 0
    with context.span("adding", n=n):
        for number in range(n):
            total += number
            await context.emit(total)
    async with context.fan_out(name="squares") as group:
        for number in range(n):
            group.start(square, {"n": number}, key=number)
        async for outcome in group:
            total += outcome.value if isinstance(outcome, Done) else 0
    return total


@action(reads=["n"], writes=["sum"])
def talk_plainly(n: int, context: Context) -> int:
    for number in range(n):
        anyio.from_thread.run(context.emit, number)
    return n


@action(reads=["n"], writes=["sum"])
async def stream(n: int) -> AsyncGenerator[int | Result[int]]:
    for number in range(n):
        yield number
    yield Result(n)


async def test_functions_use_their_context(ray: Ray, anyio_backend: object):
    hook = RecordingHook()
    async with Runtime(executor=ray) as runtime:
        result = await Application(talk, hooks=[hook]).run({"n": 4}, runtime=runtime)
        assert result.state["sum"] == 6 + 14
        assert [event.item for event in hook.of(Item)] == [0, 1, 3, 6]
        for act in (talk_plainly, stream):
            hook = RecordingHook()
            result = await Application(act, hooks=[hook]).run({"n": 3}, runtime=runtime)
            assert result.state["sum"] == 3
            assert [event.item for event in hook.of(Item)] == [0, 1, 2]


@action(reads=["change"], writes=["answer"])
async def review(change: str, context: Context) -> str:
    return f"{change}: {await context.ask('approve', change)}"


async def test_a_person_is_asked(ray: Ray, anyio_backend: object):
    app = Application(review, store=MemoryStore(), executor=ray)
    async with Runtime() as runtime:
        result = await app.run({"change": "it"}, id="one", runtime=runtime)
        assert [one.name for one in result.questions] == ["approve"]
        answers = {("one", "approve"): "yes"}
        result = await app.run(id="one", answers=answers, runtime=runtime)
        assert result.state["answer"] == "it: yes"


@action(reads=["size"], writes=["data"])
def make(size: int, given: bytes) -> bytes:
    assert len(given) == size
    return given[::-1]


async def test_large_arguments_and_results(ray: Ray, anyio_backend: object):
    # Of several megabytes: they go through the store of objects, and quick ones overtake them.
    data = fan_out(make, over="sizes", item="size", into="data")
    squares = fan_out(square, over="ns", item="n", into="squares")
    given = b"ab" * (2 << 20)
    async with Runtime(executor=ray) as runtime, anyio.create_task_group() as tasks:

        async def run_small() -> None:
            result = await Application(squares).run({"ns": range(1000)}, runtime=runtime)
            assert result.state["squares"] == [n * n for n in range(1000)]

        tasks.start_soon(run_small)
        app = Application(data, inputs={"given": given})
        result = await app.run({"sizes": [len(given)] * 3}, runtime=runtime)
        assert result.state["data"] == [given[::-1]] * 3


MODEL: list[str] = []


def make_model(name: str) -> None:
    MODEL.append(name)


@action(reads=["n"], writes=["models"])
def models(n: int) -> list[str]:
    return MODEL


async def test_an_initializer_is_called_once_in_each_actor(
    cluster: RayCluster, anyio_backend: object
):
    ray = Ray(cluster.address, initializer=make_model, initargs=("large",), actors=2)
    act = fan_out(models, over="ns", item="n", into="models")
    result = await Application(act, executor=ray).run({"ns": range(20)})
    assert result.state["models"] == [["large"]] * 20
    assert not MODEL


# -- limits ----------------------------------------------------------------------------------------


@action(reads=["n"], writes=["span"])
async def span(n: int) -> tuple[float, float]:
    began = time.time()
    await anyio.sleep(0.02)
    return began, time.time()


async def test_limits_hold_across_the_cluster(ray: Ray, anyio_backend: object):
    spans = fan_out(span, over="ns", item="n", into="spans", limits=Limits(3))
    result = await Application(spans, executor=ray).run({"ns": range(60)})
    changes = sorted(
        change for began, ended in result.state["spans"] for change in ((began, 1), (ended, -1))
    )
    running, most = 0, 0
    for _, change in changes:
        running += change
        most = max(most, running)
    assert 2 <= most <= 3


# -- cancelling ------------------------------------------------------------------------------------


@action(reads=["path"], writes=["end"])
async def sleep_and_clean_up(path: str) -> str:
    Path(path).write_text("begun")
    try:
        await anyio.sleep(100)
    finally:
        Path(path).write_text("cleaned up")
    return "slept"


async def test_fifty_cancellations_at_random_times(
    cluster: RayCluster, four: Ray, tmp_path: Path, anyio_backend: object
):
    chance = random.Random(7)
    took: list[float] = []

    async def run(n: int, seconds: float, runtime: Runtime) -> None:
        path = tmp_path / str(n)
        until = time.monotonic() + seconds
        with anyio.move_on_after(seconds):
            await Application(sleep_and_clean_up).run({"path": str(path)}, runtime=runtime)
        took.append(time.monotonic() - until)
        # It never began, or it was cleaned up by the time that the cancellation was acknowledged.
        assert not path.exists() or path.read_text() == "cleaned up"

    async with Runtime(executor=four) as runtime:
        await warm_up(runtime)
        before = cluster.actors()
        async with anyio.create_task_group() as tasks:
            for n in range(50):
                tasks.start_soon(run, n, chance.uniform(0, 2), runtime)
        assert len(took) == 50
        assert max(took) < 30  # not the 100 s that the actions sleep
        assert before <= cluster.actors()  # none was killed


@action(reads=["n"], writes=["winner"])
async def contend(n: int, seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


@action(reads=["n"], writes=["winner"])
def contend_plainly(n: int, seconds: float) -> float:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        anyio.from_thread.check_cancelled()
        time.sleep(0.001)
    return seconds


async def test_the_losers_of_a_race_are_cancelled_and_not_waited_for(
    cluster: RayCluster, four: Ray, anyio_backend: object
):
    async with Runtime(executor=four) as runtime:
        await warm_up(runtime)
        before = cluster.actors()
        for act in (contend, contend_plainly):
            slow = [act.bind(name=f"slow {n}", seconds=100.0) for n in range(3)]
            app = Application(race(*slow, act.bind(name="quick", seconds=0.3), into="winner"))
            began = time.monotonic()
            result = await app.run({"n": 1}, runtime=runtime)
            assert result.state["winner"] == 0.3
            assert time.monotonic() - began < 30  # not the 100 s of the losers
        assert cluster.actors() == before


@action(reads=["n"], writes=["end"])
def dig_in(n: int) -> str:
    time.sleep(100)
    return "done"


async def test_an_actor_that_does_not_listen_is_killed_after_the_grace(
    cluster: RayCluster, anyio_backend: object
):
    ray = Ray(cluster.address, kill_after=0.2, actors=1)
    async with Runtime(executor=ray) as runtime:
        await Application(square).run({"n": 1}, runtime=runtime)
        before = cluster.actors()
        since = time.monotonic()
        with anyio.move_on_after(0.3):
            await Application(dig_in).run({"n": 1}, runtime=runtime)
        assert time.monotonic() - since < 30  # not the 100 s of the action
        result = await Application(square).run({"n": 3}, runtime=runtime)
        assert result.state["square"] == 9
        assert not before & cluster.actors()


# -- dying -----------------------------------------------------------------------------------------


@action(reads=["n"], writes=["result"])
def die_once(n: int, folder: str) -> int:
    begun = Path(folder) / f"{n}"
    with begun.open("a") as file:
        file.write("begun ")
    if n == 5 and begun.read_text() == "begun ":
        time.sleep(0.1)  # others are sent meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    return n


async def test_an_actor_that_dies_is_replaced_and_its_call_made_again(
    ray: Ray, tmp_path: Path, anyio_backend: object
):
    results = fan_out(die_once, over="ns", item="n", into="results")
    result = await Application(results, executor=ray).run(
        {"ns": range(20)}, inputs={"folder": str(tmp_path)}
    )
    assert result.state["results"] == list(range(20))
    assert (tmp_path / "5").read_text() == "begun begun "


@action(reads=["n"], writes=["result"])
async def die_always(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@costly
async def test_what_kills_every_actor_is_poisoned(ray: Ray, anyio_backend: object):
    results = fan_out(
        die_always, over="ns", item="n", into="results", on_error="collect", errors_into="errors"
    )
    app = Application(results, executor=ray)
    async with Runtime(max_crashes=1) as runtime:
        result = await app.run({"ns": range(6)}, runtime=runtime)
    ends = {outcome.key: outcome for outcome in result.outcomes("results")}
    assert result.state["results"] == [0, 1, 2, 4, 5]
    assert isinstance(end := ends[3], Failed)
    assert isinstance(end.error, Poisoned)


@action(reads=["n"], writes=["result"])
def work(n: int) -> int:
    time.sleep(0.002)
    return n


class Ends(Hook):
    """How often each child has ended; an event once many have."""

    def __init__(self, many: int):
        self.ended: Counter[object] = Counter()
        self.are_many = anyio.Event()
        self._many = many

    async def on_child_ended(self, event: ChildEnded) -> None:
        self.ended[event.outcome.key] += 1
        if self.ended.total() == self._many:
            self.are_many.set()


@pytest.fixture
def node(cluster: RayCluster) -> object:
    """A third node. Not started in the test itself, since that blocks."""
    return cluster.add_node()


@costly
async def test_a_node_is_killed_in_the_middle_of_ten_thousand_children(
    cluster: RayCluster, node: object, anyio_backend: object
):
    ray = Ray(cluster.address, actors=6)
    ends = Ends(4000)
    results = fan_out(work, over="ns", item="n", into="results")
    app = Application(results, hooks=[ends], executor=ray)

    async def kill() -> None:
        await ends.are_many.wait()
        await anyio.to_thread.run_sync(cluster.kill, node)  # the run goes on meanwhile

    async with no_leaks(descriptors=False), anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        result = await app.run({"ns": range(10_000)})
        assert result.state["results"] == list(range(10_000))
    assert ends.ended == Counter(range(10_000))


# -- connecting ------------------------------------------------------------------------------------


async def test_where_no_cluster_is_calls_fail_at_once(anyio_backend: object):
    async with no_leaks(descriptors=False), Runtime(executor=Ray("127.0.0.1:1")) as runtime:
        began = time.monotonic()
        with pytest.raises(NoWorker, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
            await Application(square).run({"n": 2}, runtime=runtime)
        assert time.monotonic() - began < 30


async def test_what_the_cluster_never_has_is_said_after_a_while(
    cluster: RayCluster, anyio_backend: object
):
    gold = Ray(cluster.address, resources={"gold": 2}, start_within=0.6)
    ray = Ray(cluster.address, actors=1)
    results = fan_out(square, over="ns", item="n", into="results")
    async with no_leaks(descriptors=False), Runtime() as runtime:
        with pytest.raises(NoWorker, match=r"needs CPU: 1, gold: 2, and no node .* gold: 0"):
            await Application(square, executor=gold).run({"n": 2}, runtime=runtime)
        # It is waited for while others have it.
        result = await Application(results, executor=ray).run({"ns": [3, 4]}, runtime=runtime)
        assert result.state["results"] == [9, 16]


async def test_a_connection_of_the_program_is_left_as_it_is(
    cluster: RayCluster, anyio_backend: object
):
    tools = import_module("ray")
    tools.init(cluster.address, logging_level=logging.ERROR)
    try:
        for ray in (Ray(actors=1), Ray(cluster.address, actors=1)):
            result = await Application(square, executor=ray).run({"n": 2})
            assert result.state["square"] == 4
            assert tools.is_initialized()
            await anyio.to_thread.run_sync(wait_until, lambda: not cluster.actors())
        with pytest.raises(NoWorker, match=f"is connected to the Ray cluster at {cluster.address}"):
            await Application(square, executor=Ray("127.0.0.1:1")).run({"n": 2})
    finally:
        tools.shutdown()


async def test_runtimes_share_a_connection(cluster: RayCluster, anyio_backend: object):
    one, another = Ray(cluster.address, actors=1), Ray(cluster.address, actors=1)
    tools = import_module("ray")
    async with Runtime(executor=one) as outer:
        await Application(square).run({"n": 2}, runtime=outer)
        async with Runtime(executor=another) as inner:
            await Application(square).run({"n": 2}, runtime=inner)
            assert len(cluster.actors()) == 2
        assert tools.is_initialized()
        result = await Application(square).run({"n": 3}, runtime=outer)
        assert result.state["square"] == 9
    assert not tools.is_initialized()


SHUT_DOWN = """
import sys, threading
import ray
from shoal import Application, Runtime
from shoal.errors import NoWorker
from shoal.executors import Ray
from tests.executors.test_ray import dig_in, square
import anyio

async def main():
    async with Runtime(executor=Ray(sys.argv[1], actors=1)) as runtime:
        await Application(square).run({"n": 2}, runtime=runtime)
        ray.shutdown()
        try:
            await Application(square).run({"n": 2}, runtime=runtime)
        except NoWorker as error:
            print(error)
    print("ended")

anyio.run(main)
"""


def test_a_program_that_shuts_ray_down_is_told_so(cluster: RayCluster):
    # In a process of its own, because Ray ends processes that go on after that.
    program = [sys.executable, "-c", SHUT_DOWN, cluster.address]
    said = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert "ray.shutdown() was called in this process" in said.stdout, said.stderr
    assert "ended" in said.stdout


KILLED = """
import sys
from shoal import Application
from shoal.executors import Ray
from tests.executors.test_ray import dig_in, square

print(Application(square, executor=Ray(sys.argv[1])).run_sync({"n": 2}).state["square"], flush=True)
Application(dig_in, executor=Ray(sys.argv[1])).run_sync({"n": 2})
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_actors_end_with_the_program(cluster: RayCluster, how: signal.Signals):
    program = [sys.executable, "-c", KILLED, cluster.address]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        # Ray may write lines of its own before: of actors that a program before has left dead.
        assert b"4\n" in iter(process.stdout.readline, b"")
        wait_until(lambda: len(cluster.actors()) == 1)
        time.sleep(0.5)  # the function is at work
        process.send_signal(how)
        process.wait(30)
    wait_until(lambda: not cluster.actors())


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
