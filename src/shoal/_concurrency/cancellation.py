"""Tell true cancellation from false, and run a coroutine in a context of its own.

Invariants:
- A cancellation that shoal and its caller did not ask for (user code awaited a future that was
  cancelled elsewhere, or cancelled its own task) is a failure of the run that raised it alone.
- KeyboardInterrupt and SystemExit are never taken for a failure. On trio a Ctrl-C is never raised
  in the middle of the engine's own code.
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
    """Return whether a cancel scope around the current task, up to the next shield, is cancelled.

    Engine tasks are never cancelled in any other way: a native ``task.cancel()`` from outside
    reaches only the task that called ``run``.
    """
    return current_effective_deadline() == -math.inf


def as_failure(error: BaseException, *, cancellable: bool = True) -> Exception | None:
    """Return the failure that ``error`` is for its run; None if ``error`` must travel on.

    A true cancellation and a ``fatal_leaf`` must travel on. Callers whose run may be halting check
    for that before.

    Args:
        error: The exception of the run.
        cancellable: Whether a cancellation could arrive where it was raised. In a plain function
            none can, even if a scope around it is cancelled.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, Halting):
        return _stray(error)
    spurious: tuple[type[BaseException], ...] = (get_cancelled_exc_class(), GeneratorExit)
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseException", error)
        rest = without(group, Halting)  # the other errors of the group say more
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
    """Return whether ``error`` is the backend's cancellation, or a group of nothing else."""
    return are_all(error, get_cancelled_exc_class())


def fatal_leaf(error: BaseException) -> BaseException | None:
    """Return the leaf of ``error`` that must travel on, without its groups; None if there is none.

    That is a KeyboardInterrupt or SystemExit if there is one. Else it is another exception that is
    no ``Exception``, as extension modules raise when they panic. Cancellations, and exceptions that
    the engine itself throws, are not among them.
    """
    passes = Exception, GeneratorExit, Halting, get_cancelled_exc_class()
    found = [leaf for leaf in leaves(error) if not isinstance(leaf, passes)]
    return next(filter(is_exit, found), found[0] if found else None)


def is_exit(error: BaseException | None) -> TypeGuard[BaseException]:
    """Return whether ``error`` ends the whole program."""
    return isinstance(error, KeyboardInterrupt | SystemExit)


def is_fatal(error: BaseException) -> bool:
    """Return whether ``error`` must travel on at once instead of failing its run."""
    return isinstance(error, GeneratorExit) or fatal_leaf(error) is not None


def _stray(error: BaseException) -> BadUse:
    msg = (
        "the question of another run halted this one: an action must ask with its own `context`, "
        "and await that itself"
    )
    failure = BadUse(msg)
    failure.__cause__ = error
    return failure


def _spurious(error: BaseException) -> SpuriousCancel:
    msg = (
        f"{type(error).__name__} was raised although this run was not cancelled: "
        f"a future that it awaited was cancelled elsewhere, or the code cancelled its own task"
    )
    failure = SpuriousCancel(msg)
    failure.__cause__ = error
    return failure


@types.coroutine
def drive(
    context: Context, coroutine: Coroutine[Any, Any, None], on_first_wait: Callable[[], None]
) -> Generator[Any, Any, bool]:
    """Run ``coroutine`` to its end in ``context``, within the current task.

    This gives each child of a fan-out its own context variables at a fiftieth of the price of a
    task. The current task waits for whatever the coroutine waits for, and an exception thrown into
    the task (a cancellation) is thrown into the coroutine.

    Returns whether the coroutine ever waited. ``on_first_wait`` is called when it first does.
    """
    # No bound method is kept while the coroutine waits: the collector would visit those of each
    # child.
    try:
        trap = context.run(coroutine.send, None)
    except StopIteration:
        return False
    except GeneratorExit as error:
        raise _spurious(error) from error
    on_first_wait()
    del on_first_wait
    while True:
        is_thrown = False
        try:
            argument = yield trap
        except GeneratorExit:  # thrown by the current task, which is being closed
            context.run(coroutine.close)
            raise
        except BaseException as error:  # noqa: BLE001 # the coroutine handles all others
            is_thrown, argument = True, error
        try:
            trap = context.run(coroutine.throw if is_thrown else coroutine.send, argument)
        except StopIteration:
            return True
        except GeneratorExit as error:
            raise _spurious(error) from error
        finally:
            # Breaks the traceback cycle: the value sent in may hold an exception, as trio's outcome
            # of a cancelled wait does.
            argument = None


F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

# The runtime gives these to trio when it is opened: see `backend.protect_from_ctrl_c`.
ki_protected_functions: list[Callable[..., Any]] = []
ki_unprotected_functions: list[Callable[..., Any]] = []


def ki_protected(function: F) -> F:
    """Mark a function in whose middle trio must not raise a KeyboardInterrupt.

    On trio a Ctrl-C is raised wherever user code stands; in protected code, and in functions that
    it calls, it waits for the main task's next checkpoint. The runtime passes the marks on to trio.
    asyncio has no such protection: there, changes that must not be torn are a single assignment.
    """
    ki_protected_functions.append(function)
    return function


def ki_unprotected(function: F) -> F:
    """Mark a function that protected code calls to run user code: a Ctrl-C may interrupt it."""
    ki_unprotected_functions.append(function)
    return function


async def absorb_native_cancel() -> None:
    """Drop the native cancellation that is pending on the current task, by letting it arrive here.

    Only for engine tasks, which only the user code inside them can cancel natively. If a scope is
    cancelled in the same turn, it cancels again at the next checkpoint. So the code after this
    call, the save of a run that has ended, is not skipped because of that scope.
    """
    with suppress(get_cancelled_exc_class()):  # a native one has no owner; a scope's comes again
        await checkpoint()


async def absorb_stray_cancel(native_cancels: Callable[[], Callable[[], int]]) -> None:
    """Drop a native cancellation that user code left on this task, before a commit or a wait.

    Args:
        native_cancels: Returns the function that counts them; see ``Backend``.
    """
    if native_cancels()() and not cancelled():
        await absorb_native_cancel()


def is_natively_cancelled() -> bool:
    """Return whether a native cancellation will arrive at the next ``await`` of the current task.

    It was left by code in the task itself: one from outside would have arrived when the task went
    on.
    """
    aio: Any = sys.modules.get("asyncio")  # not imported: programs on trio don't load it
    if aio is None or aio._get_running_loop() is None:
        return False
    task = aio.current_task()
    # All tasks of asyncio's have the attribute, and anyio reads it; other loops' may lack it.
    return task is not None and getattr(task, "_must_cancel", False)


async def shielded_wait(pending: Awaitable[T]) -> T:
    """Await ``pending`` inside a shield, even if user code has cancelled its task natively.

    No shield keeps off a native cancellation. One that an action has left behind has no owner, so
    it is dropped before the wait: see
    test_an_action_that_cancels_its_own_task_while_all_is_cancelled.
    """
    if is_natively_cancelled():
        await absorb_native_cancel()
    return await pending
