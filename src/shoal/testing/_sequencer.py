"""`Sequencer`: let tasks pass places in an order that a test gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import final

import anyio


@final
class SequencerBroken(RuntimeError):
    """A block of a `Sequencer` was cancelled while it waited, so later ones never start."""


@final
class Sequencer:
    """Blocks in different tasks, entered in the order of their numbers; on asyncio and trio.

    A block waits until all blocks with lower numbers have been left. So a test writes down one
    order of events among tasks, without a sleep::

        order = Sequencer()


        async def first() -> None:
            async with order(0):
                await write("a")
            async with order(2):
                await write("c")


        async def second() -> None:
            async with order(1):
                await write("b")

    Each number is used once, from 0, without gaps. If a block is cancelled while it waits for its
    turn, all that wait, and all later ones, raise `SequencerBroken`: their turn would never come.
    It works as the class of this name in ``trio.testing``.
    """

    def __init__(self) -> None:
        """Start before block 0."""
        self._next = 0
        self._claimed: set[int] = set()
        self._turns: dict[int, anyio.Event] = {}
        self._is_broken = False

    @asynccontextmanager
    async def __call__(self, number: int) -> AsyncGenerator[None]:
        """Return the block of that number.

        Raises:
            RuntimeError: A block of that number was entered before.
            SequencerBroken: A block was cancelled while it waited for its turn.
        """
        if number in self._claimed:
            msg = f"block {number} of the sequencer is entered twice: give each block its own"
            raise RuntimeError(msg)
        self._claimed.add(number)
        if self._is_broken:
            raise SequencerBroken(_BROKEN)
        if number != self._next:
            turn = self._turns[number] = anyio.Event()
            try:
                await turn.wait()
            except BaseException:
                self._break()
                raise
            if self._is_broken:
                raise SequencerBroken(_BROKEN)
        try:
            yield
        finally:
            self._next = number + 1
            following = self._turns.pop(self._next, None)
            if following is not None:
                following.set()

    def _break(self) -> None:
        self._is_broken = True
        for turn in self._turns.values():
            turn.set()


_BROKEN = "a block was cancelled while it waited for its turn, so no later one can have its turn"
