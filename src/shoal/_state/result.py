"""``Result``: the value that a streaming action yields last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, final

T_co = TypeVar("T_co", covariant=True)


@final
@dataclass(frozen=True)  # with slots, Result[int](5) would raise
class Result(Generic[T_co]):
    """The return value of a streaming action, which it yields last.

    Its value is what a coroutine function would return: with one write the field's value, with
    several a mapping, a state if the action takes ``state``, and None without writes.

    Examples:
        >>> from collections.abc import AsyncIterator
        >>> @action(reads=["question"], writes=["answer"])
        ... async def answer(question: str) -> AsyncIterator[str | Result[str]]:
        ...     words = []
        ...     for word in ("it", "depends"):
        ...         words.append(word)
        ...         yield word  # a partial item: published at once, never saved
        ...     yield Result(" ".join(words))
        >>> class Show(Hook):
        ...     def on_item(self, event: Item) -> None:
        ...         print(event.index, event.item)
        >>> Application(answer, hooks=[Show()]).run_sync({"question": "why"}).state["answer"]
        0 it
        1 depends
        'it depends'
    """

    value: T_co
