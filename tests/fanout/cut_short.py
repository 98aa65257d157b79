"""Lives that end early: a process that dies at a save, a hook that cancels, and steps to cut."""

from __future__ import annotations

import anyio

from shoal import Graph, Hook, action


class Process:
    """Dies at its n-th save, with all of its stores."""

    def __init__(self, n: int) -> None:
        self.left = n

    def save(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError("the process is dead")


class Cancels(Hook):
    """Cancels a scope when it receives the n-th event."""

    def __init__(self, n: int) -> None:
        self.scope, self.left = anyio.CancelScope(), n

    def receive(self, event: object) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()

    on_run_started = on_step_started = on_child_started = on_state_updated = on_step_ended = receive


@action(reads=["x"], writes=["first"])
async def begin(x: int) -> int:
    await anyio.sleep(0)
    return x


@action(reads=["first"], writes=["y"])
async def go_on(first: int) -> int:
    await anyio.sleep(0)
    return first


two_steps = Graph.chain(begin, go_on, name="two steps")
