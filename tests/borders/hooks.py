"""Hooks of programs: they hear of everything, at once or in their time; one is clumsy."""

from __future__ import annotations

from typing import Any

import anyio

from shoal import Hook

from .world import World, cancellation, chance


class Quick(Hook):
    """Hears of everything, at once."""

    def __init__(self, world: World) -> None:
        self.world = world

    def receive(self, event: Any) -> None:
        self.world.receive(event)
        self.world.at("hook", type(event).__name__)

    on_run_started = on_step_started = on_state_updated = on_child_started = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    on_child_ended = on_step_ended = on_run_ended = on_child_rerun = on_child_halted = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Clumsy(Hook):
    """An observer that fails after a while, which must change nothing, whatever it raises."""

    observer = True

    def __init__(self, world: World) -> None:
        self.patience = chance(world.program.seed, "clumsy") % 20
        self.is_rude = world.program["observer"] == "very clumsy"

    def receive(self, event: Any) -> None:
        self.patience -= 1
        if self.patience < 0:
            if self.is_rude:
                raise cancellation() if event.run_id < "8" else GeneratorExit
            raise LookupError

    on_run_started = on_step_started = on_state_updated = on_child_started = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    on_child_ended = on_step_ended = on_run_ended = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class Waiting(Hook):
    """Hears of everything, and takes its time."""

    def __init__(self, world: World, seconds: float | None) -> None:
        self.world = world
        self.seconds = seconds

    async def receive(self, event: Any) -> None:
        self.world.receive(event)
        self.world.at("hook", type(event).__name__)
        if self.seconds is None:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.sleep(self.seconds)

    on_run_started = on_step_started = on_state_updated = on_child_started = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    on_child_ended = on_step_ended = on_run_ended = on_child_rerun = on_child_halted = receive  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


def witness(world: World) -> Hook:
    """Make the hook that a program wants."""
    telling = world.program["telling"]
    if telling == "quick":
        return Quick(world)
    return Waiting(world, None if telling == "turns" else 0.125)
