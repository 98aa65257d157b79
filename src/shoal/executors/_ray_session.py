"""The connection of this process to a Ray cluster.

A process has one connection at a time; that is Ray's own rule. All pools of the process share it,
those of several runtimes in several threads too. If the program has called ``ray.init`` itself, the
connection is the program's, and is left as it is. Else the first pool makes it, and the last one
shuts it down.

Invariants:
- Nothing here is called on an event loop: connecting takes seconds.
- A connection that was made here is made, held and shut down in one thread. If Ray starts a cluster
  on this machine, Linux ends the cluster's processes together with the *thread* that started them.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast, final

from shoal._errors.exceptions import DefinitionError

LEAST = (2, 55, 1)
"""The oldest version of Ray that works: the first whose streams end with an actor's death."""
ANSWERED_WITHIN = 5.0
"""Seconds for the port of a cluster to answer. Ray itself tries for minutes."""


def check_installed() -> None:
    """Check that Ray can be used, without loading it.

    Raises:
        DefinitionError: It is not installed, or too old.
    """
    least = ".".join(map(str, LEAST))
    if INSTALLED is None:
        msg = (
            "Ray is not installed; install it on this machine and on the nodes of the cluster: "
            f"pip install 'shoal[ray]', which is ray>={least}"
        )
        raise DefinitionError(msg)
    if _numbers(INSTALLED) < LEAST:
        msg = f"ray {INSTALLED} is too old; install ray>={least} here and on all nodes"
        raise DefinitionError(msg)


def _installed() -> str | None:
    try:
        return version("ray")
    except PackageNotFoundError:  # Ray is not installed; the caller says so
        return None


INSTALLED = _installed()
"""The version of Ray that is installed. Looked up when this module is loaded, because that reads
files, and executors are declared on event loops, too."""


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, up to the first part that is none: "2.60.0rc1": 2, 60."""
    found: list[int] = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        found.append(int(part))
    return tuple(found)


def ray() -> Any:
    """Return the module, which takes half a second to load for the first time."""
    return importlib.import_module("ray")


class NoCluster(Exception):
    """There is no cluster at an address, or this process can't be connected to it."""


@final
class Session:
    """The share that one pool has in the connection of the process."""

    def __init__(self, held: _Held | None) -> None:
        """Do not call this; use ``connect``."""
        self._held = held
        self._job = _job()

    def check(self) -> None:
        """Check that the connection is still there.

        Raises:
            NoCluster: It was shut down. It may be followed by another one: functions of Ray's that
                are called then, also by Ray itself, connect to what they find.
        """
        if _job() != self._job:
            msg = (
                "ray.shutdown() was called in this process, while a runtime was open that needs "
                "the connection until its block ends"
            )
            raise NoCluster(msg)

    def close(self) -> None:
        """Give the share up. The last one shuts down what was made here. May be called twice."""
        held, self._held = self._held, None
        if held is not None:
            held.give_up()


def connect(address: str | None, env: Mapping[str, Any] | None) -> Session:
    """Connect this process to a cluster, unless it is connected.

    Args:
        address: As Ray takes it. None: the cluster that ``RAY_ADDRESS`` names, or else one that
            runs on this machine; if none does, one is started.
        env: The ``runtime_env`` of all workers, if the connection is made here.

    Raises:
        NoCluster: The message says why, and what to do.
    """
    with _lock:
        held = _current[0] if _current else None
        if held is not None and held.is_lost:
            _current.clear()
            held = None
        if held is None and ray().is_initialized():
            _check_same(address)
            return Session(None)  # the program's own
        if held is None:
            held = _Held(address, env)
            _current.append(held)
        held.users += 1
    try:
        held.wait()
        _check_same(address)
        return Session(held)
    except BaseException:
        held.give_up()
        raise


def _job() -> str:
    """Return what Ray calls this connection; "" if there is none."""
    return ray().get_runtime_context().get_job_id() if ray().is_initialized() else ""


_lock = threading.Lock()
_current: list[_Held] = []
"""The connection that was made here, if there is one."""


@final
class _Held:
    """A connection that was made here, and the thread that holds it."""

    def __init__(self, address: str | None, env: Mapping[str, Any] | None) -> None:
        self.users = 0  # guarded by `_lock`
        self._address = address
        self._env = env
        self._opened: Future[None] = Future()
        self._is_over = threading.Event()
        # A daemon: a program that forgets to close its runtime can end nevertheless. Ray's own
        # `atexit` function disconnects it.
        self._thread = threading.Thread(target=self._hold, name="shoal Ray", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the connection is there.

        Raises:
            NoCluster: It can't be made.
        """
        self._opened.result()

    @property
    def is_lost(self) -> bool:
        """Whether it could not be made, or the program has shut it down by itself."""
        return self._opened.done() and (
            self._opened.exception() is not None or not ray().is_initialized()
        )

    def give_up(self) -> None:
        with _lock:
            self.users -= 1
            if self.users:
                return
            if self in _current:
                _current.remove(self)
            self._is_over.set()
            # With the lock: a connection can't be made while another one is shut down.
            self._thread.join()

    def _hold(self) -> None:
        try:
            _init(self._address, self._env)
        except BaseException as error:  # noqa: BLE001 # `wait` raises it
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        self._is_over.wait()
        ray().shutdown()


def _init(address: str | None, env: Mapping[str, Any] | None) -> None:
    target = address or os.environ.get("RAY_ADDRESS")
    host, _, port = (target or "").rpartition(":")
    if host and port.isdecimal():
        _knock(cast("str", target), host.strip("[]"), int(port))
    init: Callable[..., object] = ray().init
    try:
        # Ray would warn that it can't handle SIGTERM in this thread, which is as it should be.
        init(address, runtime_env=None if env is None else {**env}, logging_level=logging.ERROR)
        logging.getLogger("ray").setLevel(logging.WARNING)
    except Exception as error:
        if isinstance(error, ConnectionError) and address == "auto":
            msg = (
                "no Ray cluster runs on this machine: start one (ray start --head), give "
                "Ray(address='host:6379'), or leave address= out to have one started"
            )
        else:
            msg = f"this process can't be connected to Ray: {type(error).__name__}: {error}"
        raise NoCluster(msg) from error


def _knock(target: str, host: str, port: int) -> None:
    """Find out at once whether anything listens at an address."""
    try:
        socket.create_connection((host, port), ANSWERED_WITHIN).close()
    except OSError as error:
        msg = (
            f"no Ray cluster answers at {target} ({error}): compare it with the address that "
            f"`ray start --head` has printed, and see whether a firewall is between"
        )
        raise NoCluster(msg) from error


def _check_same(address: str | None) -> None:
    """Check that an address is that of the connection that there is."""
    if address is None or ":" not in address:
        return
    here: str = ray().get_runtime_context().gcs_address
    if _resolved(address) != _resolved(here):
        msg = (
            f"this process is connected to the Ray cluster at {here}, and a process has one "
            f"connection at a time: leave out Ray(address={address!r}), or call ray.shutdown() "
            f"before the runtime is opened"
        )
        raise NoCluster(msg)


def _resolved(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    try:
        return socket.gethostbyname(host.strip("[]")), port
    except OSError:  # it has no address, so it is compared as it is written
        return host, port
