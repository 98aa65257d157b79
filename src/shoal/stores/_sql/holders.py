"""Who holds a claim: one process, told from all others, and whether it is known to be gone.

Imports nothing of ours.

Invariants:
- A process is held to be gone only where that is certain: on the same machine, not restarted since,
  and outside of containers or in the same one. Else its lease has to run out.
- Where two processes share a clock that nobody sets, leases are measured by that one.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, final


@final
class Holder(NamedTuple):
    """A process."""

    host: str
    """The name of its machine."""
    boot: str
    """What tells this start of the machine from others, and processes that can see each other from
    those of other containers; empty where the system doesn't say."""
    pid: int
    started: str
    """When it was started, as the system says it. Where the system doesn't even tell its starts
    apart, something random; so two processes are never equal."""

    @property
    def is_near(self) -> bool:
        """Whether it is, or was, among the processes that this one can see."""
        return bool(self.boot) and self.boot == current_holder().boot

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        return self.is_near and bool(self.started) and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@final
class Clock(NamedTuple):
    """What time it is, twice."""

    wall: float
    """Seconds since 1970. People and time servers set it."""
    uptime: float
    """Seconds since the machine was started, sleep included where the system counts it."""


def now() -> Clock:
    """Read both clocks."""
    return Clock(time.time(), time.clock_gettime(_UPTIME) if _UPTIME else time.monotonic())


_UPTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def current_holder() -> Holder:
    """Describe this process."""
    return _described(os.getpid())


@lru_cache(maxsize=1)
def _described(pid: int) -> Holder:
    boot = _boot()
    return Holder(socket.gethostname(), boot, pid, _started(pid) if boot else os.urandom(8).hex())


def _boot() -> str:
    with suppress(OSError):  # a system without: then leases have to run out
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 # a name, no file
    return ""


def _started(pid: int) -> str:
    """Say when a process was started, in ticks since the machine was; empty: there is none."""
    with suppress(OSError):  # there is none, or nobody can know
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()  # before it stands a name, which may hold anything
        if fields[0] not in ("Z", "X"):  # it has ended, and nobody has asked how
            return fields[19]
    return ""
