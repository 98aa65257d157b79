"""Telling true cancellation from false, and running a coroutine in a context of its own.

Imports errors and anyio.

Invariants:
- A cancellation that nobody asked for (user code awaited a future that somebody else cancelled, or
  cancelled the task it runs in) is a failure of what raised it, and of nothing else.
- KeyboardInterrupt and SystemExit are never taken for a failure; on trio a Ctrl-C is never raised
  in the middle of what the engine does.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeGuard, TypeVar, cast

from anyio import current_effective_deadline, get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from shoal._errors.exceptions import BadUse, Halting, SpuriousCancel
from shoal._errors.inspection import are_all, leaves, without


def cancelled() -> bool:
    """Tell whether a cancel scope around the current task, up to the next shield, is cancelled.

    Engine tasks are never cancelled in any other way: a native ``task.cancel()`` from outside
    reaches only the task that called ``run``.
    """
    return current_effective_deadline() == -math.inf


def as_failure(error: BaseException, *, cancellable: bool = True) -> Exception | None:
    """Return what ``error`` means for the run that it came out of, if that is a failure.

    None where it must travel on: a true cancellation, a ``fatal_leaf``. Whoever asks of a run that
    may be halting has looked for that before.

    Args:
        error: What was raised.
        cancellable: Whether a cancellation could arrive where it was raised. In a plain function
            none can, whatever is cancelled around it.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, Halting):
        return _stray(error)
    spurious: tuple[type[BaseException], ...] = (get_cancelled_exc_class(), GeneratorExit)
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseException", error)
        rest = without(group, Halting)  # whatever comes with it says more
        if rest is None:
            return _stray(group)
        error, others = rest, without(rest, spurious)
        if isinstance(others, Exception):
            return others
        if others is not None:
            return None
    elif not isinstance(error, spurious):
        return None
    return None if cancellable and cancelled() else _spurious(error)


def is_cancellation(error: BaseException) -> bool:
    """Tell whether ``error`` is the backend's cancellation, alone or as all there is in a group."""
    return are_all(error, get_cancelled_exc_class())


def fatal_leaf(error: BaseException) -> BaseException | None:
    """Take what must travel on out of the groups that task groups wrapped it in; None: it needn't.

    That is a KeyboardInterrupt or SystemExit, and before others; or another one of the kind that is
    no Exception, as extension modules raise when they panic. A cancellation is none of these, and
    neither is what the engine itself throws.
    """
    passes = Exception, GeneratorExit, Halting, get_cancelled_exc_class()
    found = [leaf for leaf in leaves(error) if not isinstance(leaf, passes)]
    return next(filter(is_exit, found), found[0] if found else None)


def is_exit(error: BaseException | None) -> TypeGuard[BaseException]:
    """Tell whether ``error`` ends the program, and not only what it came out of."""
    return isinstance(error, KeyboardInterrupt | SystemExit)


def is_fatal(error: BaseException) -> bool:
    """Tell whether ``error`` is no matter of the run it came out of, and must travel on at once."""
    return isinstance(error, GeneratorExit) or fatal_leaf(error) is not None


def _stray(error: BaseException) -> BadUse:
    msg = (
        "the question of another run halted this one: an action asks with its own `context`, and "
        "awaits that itself"
    )
    failure = BadUse(msg)
    failure.__cause__ = error
    return failure


def _spurious(error: BaseException) -> SpuriousCancel:
    msg = (
        f"{type(error).__name__} was raised though nobody had cancelled this run; "
        f"a future that was awaited was cancelled elsewhere, or the code cancelled its own task"
    )
    failure = SpuriousCancel(msg)
    failure.__cause__ = error
    return failure


@types.coroutine
def drive(
    context: Context, coroutine: Coroutine[Any, Any, None], on_first_wait: Callable[[], None]
) -> Generator[Any, Any, bool]:
    """Run ``coroutine`` to its end in ``context``, within the current task.

    This gives each child of a fan-out context variables of its own at a fiftieth of the price of a
    task. What the coroutine waits for, the current task waits for, and what is thrown into the task
    (cancellation) is thrown into the coroutine.

    Returns whether the coroutine ever waited; ``on_first_wait`` is called when it first does.
    """
    run, send = context.run, coroutine.send
    try:
        trap = run(send, None)
    except StopIteration:
        return False
    except GeneratorExit as error:
        raise _spurious(error) from error
    on_first_wait()
    while True:
        step = send
        try:
            argument = yield trap
        except GeneratorExit:  # not the coroutine's own: the current task is being closed
            run(coroutine.close)
            raise
        except BaseException as error:  # noqa: BLE001 # whatever it is, it is the coroutine's
            step, argument = coroutine.throw, error
        try:
            trap = run(step, argument)
        except StopIteration:
            return True
        except GeneratorExit as error:
            raise _spurious(error) from error
        finally:
            # No cycle from an exception through its traceback to this frame: what is sent in may
            # hold one as well, trio's outcome of a wait that was cancelled.
            argument = None


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

ki_protected_functions: list[Callable[..., Any]] = []
ki_unprotected_functions: list[Callable[..., Any]] = []


def ki_protected(function: F) -> F:
    """Mark a function that no KeyboardInterrupt is raised in the middle of, on trio.

    There a Ctrl-C is raised wherever user code happens to be; in protected code, and in what that
    calls, it waits for the main task's next checkpoint. The runtime passes the marks on to trio.
    asyncio has no such protection: there, what must not be torn is a single store.
    """
    ki_protected_functions.append(function)
    return function


def ki_unprotected(function: F) -> F:
    """Mark a function that is called by protected code and runs user code: a Ctrl-C stops it."""
    ki_unprotected_functions.append(function)
    return function


async def absorb_native_cancel() -> None:
    """Let a native cancellation that is pending on the current task arrive here, and drop it.

    Only for engine tasks, which nobody but the user code inside them can cancel natively. A scope
    that is cancelled in that very turn cancels again at the next checkpoint: so what follows here,
    the save of what has ended, is not left out for it.
    """
    with suppress(get_cancelled_exc_class()):  # a native one is nobody's, a scope's comes again
        await checkpoint()


async def absorb_stray_cancel(native_cancels: Callable[[], Callable[[], int]]) -> None:
    """Drop native cancellation that user code has left on this task, before a commit or a wait.

    Args:
        native_cancels: Gives what counts it; see ``Services``.
    """
    if native_cancels()() and not cancelled():
        await absorb_native_cancel()


def is_natively_cancelled() -> bool:
    """Tell whether a native cancellation waits for the next ``await`` of the current task.

    Nobody outside of the task has left it: that would have arrived when the task went on.
    """
    aio: Any = sys.modules.get("asyncio")  # not imported here: trio does without it
    if aio is None or aio._get_running_loop() is None:
        return False
    task = aio.current_task()
    # Known to all tasks of asyncio's, and to anyio; another loop's own tasks may lack it.
    return task is not None and getattr(task, "_must_cancel", False)


async def shielded_wait(pending: Awaitable[T]) -> T:
    """Await what nothing may interrupt, within a shield, though user code has cancelled its task.

    No shield holds off a native cancellation. What an action has left behind is nobody's, so it is
    dropped before the wait; see test_an_action_that_cancels_its_own_task_while_all_is_cancelled.
    """
    if is_natively_cancelled():
        await absorb_native_cancel()
    return await pending
