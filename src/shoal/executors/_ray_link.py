"""Actors of a Ray cluster as the workers of a pool.

Each actor has a thread here, which makes it, follows its one stream for as long as it lives, and
passes the batches on to the loop. A thread is the one way that is the same on asyncio and on trio:
only the former can await what Ray returns. Batches to the actor are sent by the loop itself, which
takes 0.2 ms, unless they are large.

Invariants:
- An actor is never restarted by Ray, and nothing is repeated that was sent to it, except a batch
  whose arrival is in doubt; see ``RayActor.submit``. Another actor takes its place, which is a
  decision of the pool's.
- An actor that can't be reached counts as dead, and is killed: what it sends later is not looked
  at, and it can't go on with effects for long.
- No lock is held while Ray is called.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from time import monotonic
from typing import Any, final

from anyio import CapacityLimiter, to_thread

from shoal._version import __version__

from ._links import OnBatch, OnDied
from ._messages import Message
from ._port import PoolHost
from ._ray_actor import RayActor
from ._ray_session import NoCluster, Session, connect, ray
from ._readiness import Readiness
from ._sending import PROTOCOL, brief_text, load

logger = logging.getLogger("shoal")

LOOKED = 0.5
"""Seconds between two looks at an actor that has not started."""
WARNED = 30.0
"""Seconds after which it is said that actors wait for resources that others have."""
REMEMBERED = 5.0
"""Seconds for which the reason why no actor can be started is taken to hold."""
LARGE = 1 << 20
"""Bytes. A batch of that size is copied to the store of objects, which may have to make room for
it on disk first. So it is sent in a thread of its own; the actor puts it in its place."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """How the actors of a pool are made."""

    address: str | None
    needs: Mapping[str, float]
    """What one actor needs, as a cluster names it: ``CPU``, ``GPU``, ``memory``, or its own."""
    env: Mapping[str, Any] | None
    start_within: float
    """Seconds for which the cluster may have no node that can ever hold an actor."""


@final
class RayTransport:
    """Starts the actors of one pool; see ``Transport``."""

    def __init__(
        self,
        host: PoolHost,
        options: ActorOptions,
        initializer: bytes | None,
        on_room: Callable[[int], None],
    ) -> None:
        """Start nothing, and connect to nothing yet.

        Args:
            host: The runtime of the pool.
            options: How actors are made.
            initializer: See ``WorkerCore``.
            on_room: Called on the loop, once, with the number of actors that the cluster can hold.
        """
        self.options: ActorOptions = options
        self.initializer: bytes | None = initializer
        self._host = host
        self._on_room = on_room
        self._links: set[RayLink] = set()  # those whose thread is at work
        # Shared by the threads of the links.
        self._connecting = threading.Lock()
        self._session: Session | None = None
        self._is_closed = False
        self._failure: tuple[str, float] = ("", -math.inf)

    def start(self, on_batch: OnBatch, on_died: OnDied) -> RayLink:
        """Start an actor; see ``Transport.start``."""
        reason, failed_at = self._failure
        if monotonic() - failed_at < REMEMBERED:
            raise OSError(reason)
        link = RayLink(self, on_batch, on_died, self._host)
        self._links.add(link)
        link.thread.start()
        return link

    async def aclose(self) -> None:
        """Wait for the ends of all threads, then disconnect; see ``Transport.aclose``."""
        self._is_closed = True
        for link in list(self._links):
            link.kill()
            link.close()
        # In a thread of its own, which is not counted: it must not wait for a free one.
        await to_thread.run_sync(self._close, limiter=CapacityLimiter(1))

    def _close(self) -> None:
        until = monotonic() + 2.0
        for link in list(self._links):
            link.thread.join(max(0.0, until - monotonic()))
        # Those that still connect find out themselves that the pool is closed.
        if self._connecting.acquire(timeout=max(0.0, until - monotonic())):
            session, self._session = self._session, None
            self._connecting.release()
            if session is not None:
                session.close()

    # -- called in the threads of the links -----------------------------------------------------

    def ensure_connected(self) -> None:
        """Connect, if no other link has done that.

        Raises:
            NoCluster: That is not possible.
        """
        with self._connecting:
            if self._session is not None:
                self._session.check()
                return
            session = connect(self.options.address, self.options.env)
            if self._is_closed:
                session.close()
                raise NoCluster("the pool was closed meanwhile")
            self._session = session
            room = room_for(self.options.needs, _nodes())
            self._host.backend.call_soon(lambda: self._on_room(room))

    def fail(self, reason: str) -> None:
        """Remember why no actor can be started."""
        self._failure = (reason, monotonic())

    def forget(self, link: RayLink) -> None:
        """Forget a link whose thread is about to end."""
        self._links.discard(link)


class _CantStart(Exception):
    """No actor can be started, for a reason that will hold for the next one, too."""


@final
class RayLink:
    """One actor, as its pool reaches it; see ``Link``."""

    def __init__(
        self, transport: RayTransport, on_batch: OnBatch, on_died: OnDied, host: PoolHost
    ) -> None:
        """Start nothing yet: the transport starts the thread."""
        self.name: str = "a Ray actor that has not started"
        self.thread: threading.Thread = threading.Thread(
            target=self._work, name="shoal Ray actor", daemon=True
        )
        self._transport = transport
        self._options = transport.options
        self._on_batch = on_batch
        self._on_died = on_died
        # Wakes the loop from the thread. A socket, because the virtual clocks of tests let real
        # time pass while one is waited for.
        self._heard, self._bell = socket.socketpair()
        for end in (self._heard, self._bell):
            end.setblocking(False)
        self._ready = Readiness(
            self._heard,
            host.backend,
            host.start_task,
            on_readable=self._deliver,
            on_writable=_nothing,
        )
        # Set by the thread, and read by the loop. In this order: a batch that is not sent because
        # there is no actor yet is kept before the loop looks at it again.
        self._actor: Any = None
        self._is_killed = False  # set by the loop, never reset
        # All of these belong to the loop.
        self._inbox: deque[list[Message]] = deque()  # the thread appends
        self._death: str | None = None  # set by the thread, once
        self._is_reported = False
        self._sent = 0  # the number of the last batch

    # -- called by the pool ---------------------------------------------------------------------

    def send(self, batch: list[Message]) -> None:
        """Send a batch; see ``Link.send``. The pool sends none before the actor has started."""
        self._sent += 1
        data = pickle.dumps(batch, PROTOCOL)
        if len(data) < LARGE:
            self._submit(self._sent, data)
        else:
            threading.Thread(target=self._submit, args=(self._sent, data), daemon=True).start()

    def _submit(self, number: int, data: bytes) -> None:
        try:
            if ray().is_initialized():  # else a call would end this process: Ray's way
                self._actor.submit.remote(number, data)
        except Exception as error:  # noqa: BLE001 # the actor's stream says that it has ended
            # If it is not dead (the object store is full, say), it would wait for this batch for
            # ever, and so would the run.
            if not self._is_killed:
                logger.warning("%s is ended, since it can't be sent to: %s", self.name, error)
            self._end_actor()

    def listen(self, is_on: bool) -> None:  # as the port has it
        """Pass on what comes, or keep it; see ``Link.listen``."""
        if not self._is_reported:
            self._ready.read(is_on)

    def pause(self, seconds: float) -> None:
        """Do nothing: what Ray brings together is taken together; see ``Link.pause``."""

    def begun(self) -> None:
        """Return None: what an actor knew is lost with it; see ``Link.begun``."""

    def kill(self) -> None:
        """End the actor at once; see ``Link.kill``."""
        self._is_killed = True
        if self._actor is not None:
            self._end_actor()
        elif self._death is None:  # connecting, or not placed: that may take long
            self._death = "it was not needed any more"
            self._ring()

    def _end_actor(self) -> None:
        with suppress(Exception):  # it may be dead
            if ray().is_initialized():
                ray().kill(self._actor)

    def _deliver(self) -> None:
        with suppress(BlockingIOError):  # trio may call this for a ring that was heard
            self._heard.recv(1 << 12)
        death = self._death  # first: the thread sets it after the last batch
        while self._inbox and not self._is_reported:
            self._on_batch(self._inbox.popleft())
        if death is not None and not self._is_reported:
            self.close()
            self._on_died(death)

    def close(self) -> None:
        """Report nothing any more."""
        if not self._is_reported:
            self._is_reported = True
            self._ready.close()
            self._heard.close()
            self._bell.close()

    def _ring(self) -> None:
        # Full: the loop is about to be woken anyway. Closed: nothing is reported any more.
        with suppress(OSError):
            self._bell.send(b"!")

    # -- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        reason = "its stream was left"
        try:
            self._transport.ensure_connected()
            self._follow()
            reason = "it was told to end"
        except (NoCluster, _CantStart) as error:
            reason = str(error)
            self._transport.fail(reason)
        except BaseException as error:  # noqa: BLE001 # whatever Ray raises, the actor is lost
            reason = _why(error)
        finally:
            if self._actor is not None:
                self._end_actor()
            self._transport.forget(self)
            self._death = self._death or reason
            self._ring()

    def _follow(self) -> None:
        """Make the actor, and pass on what it sends until its stream ends."""
        stream: Any = None
        try:
            actor = self._make()
            stream = actor.events.remote()
            self._wait_for_start(stream, actor)
            for ref in stream:
                self._inbox.append(load(_get(ref)))
                self._ring()
        except SystemExit:
            # Ray was shut down meanwhile. Its objects must not be deleted any more: that would end
            # this process.
            _undeletable.append(stream)
            raise

    def _make(self) -> Any:
        needs = dict(self._options.needs)
        options: dict[str, Any] = {
            "num_cpus": needs.pop("CPU", 0),
            "num_gpus": needs.pop("GPU", 0),
            "memory": needs.pop("memory", None),
            "resources": needs,
            "runtime_env": self._options.env,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "enable_task_events": False,  # Ray would record each batch
        }
        try:
            return actor_class().options(**options).remote(sys.path, self._transport.initializer)
        except (ValueError, TypeError) as error:
            raise _CantStart(f"Ray refuses these options of an actor: {error}") from error

    def _wait_for_start(self, stream: Any, actor: Any) -> None:
        """Wait until the actor has started, which it says by its first item.

        Raises:
            _CantStart: It never will.
        """
        began = said = monotonic()
        while not ray().wait([stream], timeout=LOOKED)[0]:
            if self._is_killed:
                raise _Unneeded
            self._transport.ensure_connected()  # else Ray would connect to anything by itself
            waited = monotonic() - began
            reason = unmet(self._options.needs, _nodes())
            if reason and waited >= self._options.start_within:
                raise _CantStart(reason)
            if monotonic() - said >= WARNED:
                said = monotonic()
                logger.warning(
                    "a Ray actor has waited %.0f seconds to start: others have the resources "
                    "(%s), or its runtime_env is being made",
                    waited,
                    _listed(self._options.needs),
                )
        errors = ray().exceptions
        try:
            about = load(_get(next(stream)))
        except (errors.ActorDiedError, errors.RuntimeEnvSetupError) as error:
            # Else its process was killed, or its node lost: another one may have more luck.
            if not getattr(error, "actor_init_failed", True):
                raise
            reason = _why(error)
            if "No module named 'shoal" in reason:
                reason += (
                    "; install shoal on the nodes of the cluster, or name it in "
                    "Ray(runtime_env={'pip': [...]})"
                )
            raise _CantStart(reason) from error
        if about["shoal"] != __version__:
            msg = (
                f"the cluster has shoal {about['shoal']}, and this process {__version__}: install "
                f"the same version, or name it in Ray(runtime_env={{'pip': [...]}})"
            )
            raise _CantStart(msg)
        self.name = f"the Ray actor in process {about['process']} of {about['host']}"
        self._actor = actor
        if self._is_killed:
            raise _Unneeded


def _get(ref: Any) -> bytes:
    """Return what an actor has yielded."""
    if not ray().is_initialized():  # Ray would connect to anything by itself
        raise SystemExit
    return ray().get(ref)


def _nothing() -> None:
    """Do nothing: the socket is only ever read here."""


class _Unneeded(Exception):
    """The pool has killed an actor before it has started."""


_undeletable: list[object] = []
"""Streams of a connection that was shut down while they were followed."""


@cache
def actor_class() -> Any:
    """Return ``RayActor`` as Ray makes actors of it."""
    method: Any = ray().method
    # They mark the functions themselves; a worker, which imports the class, needs no marks.
    method(concurrency_group="control", max_task_retries=-1)(RayActor.submit)
    method(concurrency_group="events", num_returns="streaming")(RayActor.events)
    return ray().remote(concurrency_groups={"control": 1, "events": 1})(RayActor)


# -- resources -------------------------------------------------------------------------------------


def _nodes() -> list[Mapping[str, float]]:
    """Return what each node that is alive has in all."""
    return [node["Resources"] for node in ray().nodes() if node["Alive"]]


def room_for(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many actors the nodes can hold if nothing else is there, at least one."""
    counts = [
        min(
            (math.floor(node.get(name, 0.0) / need) for name, need in needs.items() if need),
            default=1,
        )
        for node in nodes
    ]
    return max(1, sum(counts))


def unmet(needs: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> str:
    """Return why no node can ever hold an actor; "" if one can."""
    nodes = list(nodes)
    if any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
        return ""
    most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needs}
    return (
        f"an actor needs {_listed(needs)}, and no node of the cluster has that: the most that one "
        f"has is {_listed(most)}; change Ray(num_cpus=..., resources=...), or, if nodes are still "
        f"to come, Ray(start_within=...)"
    )


def _listed(needs: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {need:g}" for name, need in needs.items()) or "nothing"


# -- errors ----------------------------------------------------------------------------------------


def _why(error: BaseException) -> str:
    """Return in a few words why an actor is lost."""
    kind = type(error).__name__
    if isinstance(error, SystemExit):
        return "Ray was shut down in this process"
    if kind == "ActorUnavailableError":
        return "it can't be reached any more, perhaps because its node is lost"
    text = str(error)
    found = re.search(r"The actor is dead because (.+?)(\. Worker exit|\.?$)", text, re.MULTILINE)
    if found is not None and "creation task" not in text:
        return found[1]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return brief_text(f"{kind}: {lines[-1]}" if lines else kind)
