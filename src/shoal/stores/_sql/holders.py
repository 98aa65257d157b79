"""Identify the process that holds a lease, and tell whether it is known to be gone.

Invariants:
- A process counts as gone only if that is certain: it ran on this machine, since its last boot, and
  in the same container (or outside of any). Otherwise its lease has to expire.
- Two processes that share a clock that can't be set (seconds since boot) measure leases with it.
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
class LeaseHolder(NamedTuple):
    """A process, identified uniquely among all machines."""

    host: str
    """The name of its machine."""
    boot: str
    """The id of the machine's boot and of the process's pid namespace; empty if the system has no
    such ids. Processes with the same value can see each other."""
    pid: int
    started: str
    """The start time of the process, as the system counts it. A random text if the system has no
    boot id; so two processes are never equal."""

    @property
    def is_near(self) -> bool:
        """Whether the process is, or was, among those that this process can see."""
        return bool(self.boot) and self.boot == current_holder().boot

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended."""
        return self.is_near and bool(self.started) and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@final
class Clock(NamedTuple):
    """The time by two clocks."""

    wall: float
    """Seconds since 1970. People and time servers may set this clock."""
    uptime: float
    """Seconds since boot, including sleep if the system counts it. Nothing can set this clock."""


def now() -> Clock:
    """Read both clocks."""
    return Clock(time.time(), time.clock_gettime(_UPTIME) if _UPTIME else time.monotonic())


_UPTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def current_holder() -> LeaseHolder:
    """Return the identity of this process."""
    return _described(os.getpid())


@lru_cache(maxsize=1)  # by pid: a forked process must not inherit its parent's identity
def _described(pid: int) -> LeaseHolder:
    boot = _boot()
    return LeaseHolder(
        socket.gethostname(), boot, pid, _started(pid) if boot else os.urandom(8).hex()
    )


def _boot() -> str:
    with suppress(OSError):  # a system without /proc: leases have to expire
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 # not a path to a file
    return ""


def _started(pid: int) -> str:
    """Return the start time of a process, in ticks since boot; empty if there is none."""
    with suppress(OSError):  # there is no such process, or no /proc
        stat = Path(f"/proc/{pid}/stat").read_text()
        # The second field is the program's name in parentheses, which may hold spaces and ")".
        fields = stat.rpartition(")")[2].split()
        if fields[0] not in ("Z", "X"):  # a zombie has ended; its parent hasn't waited for it yet
            return fields[19]
    return ""
