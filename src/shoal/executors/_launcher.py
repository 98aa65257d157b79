"""The launcher: a small process that starts the worker processes of a pool, and ends them.

It has one thread, so it may fork whatever threads the pool's own process has. It loads what workers
need before it forks the first one, and nothing of the user's: no program is run a second time.

It is also why nothing is left behind. It is the parent of all workers, each of which leads a
process group of its own, and it does nothing that could keep it from noticing an end:

- When a worker ends, the rest of its group is killed: processes that functions have started there.
- When the pool's process ends, however it does, all workers and their groups are killed.
- When the launcher itself is killed, the pool kills the workers, and they end when the pool's
  process does, since their sockets are closed then.

From the pool: ``(START, worker, is_spawn)`` with two descriptors, the worker's socket and its mark,
and ``(KILL, worker)``. To the pool: ``(STARTED, worker, pid)``, ``(ENDED, worker, reason)``. All of
them are records of the same length.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, final

from ._process_worker import ignore, work

START = "start"
KILL = "kill"
STARTED = "started"
ENDED = "ended"

RECORD = 256
"""Bytes of a record. Text that doesn't fit is cut off."""
_PARENT_EVERY = 1000
"""Milliseconds between two looks whether the parent lives. Its end closes our socket, unless a
process that it has forked still holds a copy of the other end."""


def to_record(kind: str, number: int, more: object = None) -> bytes:
    """Return a message as a record."""
    if isinstance(more, str):
        more = more.encode()[: RECORD // 4].decode(errors="ignore")
    return json.dumps([kind, number, more]).encode().ljust(RECORD)


def from_record(record: bytes) -> tuple[str, int, Any]:
    """Return the message in a record."""
    kind, number, more = json.loads(record)
    return kind, number, more


def launch(descriptor: int, *modules: str) -> None:
    """Be the launcher of the pool at the other end of this socket.

    Args:
        descriptor: The socket.
        modules: Loaded before the first worker is forked, and so by none of them.
    """
    for module in ("anyio._backends._asyncio", "cloudpickle.cloudpickle", *modules):
        with suppress(ImportError):  # a backend or an extra that this machine has not
            importlib.import_module(module)
    gc.freeze()  # or a collection in a worker would copy all pages that it shares with the others
    with socket.socket(fileno=descriptor) as pool:
        _Launcher(pool).run()


@final
class _Launcher:
    def __init__(self, pool: socket.socket) -> None:
        self._pool = pool
        self._parent = os.getppid()
        self._pids: dict[int, int] = {}  # process ids by the numbers of workers
        self._numbers: dict[int, int] = {}  # and the other way round
        # Written to by Python when a signal arrives, so that `poll` returns.
        self._woken, self._wakes = socket.socketpair()
        self._woken.setblocking(False)
        self._wakes.setblocking(False)

    def run(self) -> None:
        """Serve until the pool's process ends or closes the socket."""
        signal.signal(signal.SIGINT, ignore)
        signal.signal(signal.SIGCHLD, ignore)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._pool, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        try:
            while os.getppid() == self._parent:
                ready = dict(poll.poll(_PARENT_EVERY))
                if self._woken.fileno() in ready:
                    with suppress(BlockingIOError):  # another turn has emptied it
                        self._woken.recv(4096)
                self._reap()
                if self._pool.fileno() in ready and not self._obey():
                    return
        finally:
            # The sockets are about to be closed, and Python would complain at the next signal.
            signal.set_wakeup_fd(-1)
            for pid in self._numbers:
                _kill_group(pid)

    def _obey(self) -> bool:
        """Do what the pool says next. Return False if it has closed the socket."""
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self._pool.recvmsg(
                RECORD, socket.CMSG_LEN(2 * size), socket.MSG_WAITALL
            )
        except OSError:  # the pool is gone, which ends the launcher
            return False
        if not data:
            return False
        descriptors = array.array("i")
        for _, _, held in ancillary:
            descriptors.frombytes(held[: len(held) // size * size])
        kind, number, is_spawn = from_record(data)
        if kind == KILL:
            if number in self._pids:
                _kill_group(self._pids[number])
            return True
        try:
            pid = self._spawn(*descriptors) if is_spawn else self._fork(*descriptors)
        except OSError as error:
            self._tell(ENDED, number, f"it could not be started: {error}")
        else:
            self._pids[number], self._numbers[pid] = pid, number
            self._tell(STARTED, number, pid)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, sock: int, mark: int) -> int:
        pid = os.fork()
        if pid:
            # Done by both, so that it is done before either goes on.
            with suppress(OSError):
                os.setpgid(pid, pid)
            return pid
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for own in (self._pool, self._woken, self._wakes):
                own.close()
            work(sock, mark)
        except BaseException:  # noqa: BLE001 # shown, as any Python does at its end
            traceback.print_exc()
        finally:
            os._exit(1)  # `work` doesn't return, and nothing of the launcher may run in a worker

    def _spawn(self, sock: int, mark: int) -> int:
        for descriptor in (sock, mark):
            os.set_inheritable(descriptor, True)
        code = f"from shoal.executors._process_worker import work; work({sock}, {mark})"
        arguments = command(code, sys.path)
        return os.posix_spawn(sys.executable, arguments, os.environ, setpgroup=0)

    def _reap(self) -> None:
        """Report the workers that have ended, after what they have left behind was killed."""
        while True:
            try:
                # Left as it is, so that no other process gets its id before its group is gone.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # there is no worker
                return
            if ended is None:
                return
            pid = ended.si_pid
            _kill_group(pid)
            _, status = os.waitpid(pid, 0)
            number = self._numbers.pop(pid, None)
            if number is not None:
                del self._pids[number]
                self._tell(ENDED, number, _reason(status))

    def _tell(self, kind: str, number: int, more: object) -> None:
        with suppress(OSError):  # the pool is gone: the next look finds that out
            self._pool.sendall(to_record(kind, number, more))


def command(code: str, path: list[str]) -> list[str]:
    """Return the command that runs ``code`` in a Python like this one, with this ``sys.path``."""
    import subprocess  # noqa: PLC0415 # workers that are forked do without

    start = f"import sys, json; sys.path[:] = json.loads(sys.argv[1]); {code}"
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *flags, "-c", start, json.dumps(path)]


def _kill_group(pid: int) -> None:
    with suppress(OSError):  # the group has ended already
        os.killpg(pid, signal.SIGKILL)
    with suppress(OSError):  # it may not lead a group yet
        os.kill(pid, signal.SIGKILL)


def _reason(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        return f"it was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"it was killed by signal {-code}"
