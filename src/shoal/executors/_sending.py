"""Pickle functions, values and exceptions, so that another process can load them.

Invariants:
- What an importable module defines is sent by reference: the module and the name in it. Everything
  else (functions of ``__main__`` and of notebooks, lambdas, functions inside functions) is sent by
  value, which takes cloudpickle.
- Functions of ``__main__`` that were sent by value share one namespace in a worker, as they do
  here. A global that code in the worker has set is kept; one that it left alone follows ours.
- An exception always arrives. One that can't be sent is replaced by a ``RemoteError``.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from types import FunctionType, ModuleType
from typing import Any, cast

from shoal._errors.exceptions import RemoteError, brief, kind_of, note
from shoal._errors.inspection import cause_of, context_of

PROTOCOL = 5
"""The newest that all supported Pythons have."""
_CAUSES = 8
"""How many causes of an exception are sent with it. Chains are short, and one might be a ring."""
_MAIN = b"__main__"
_INSTALL = "install cloudpickle, which can send it by value: pip install shoal[processes]"


# Not that of `os`: detectors of blocking calls put theirs there, and this one reads no disk.
_getcwd: Callable[[], str] = importlib.import_module(os.name).getcwd


# -- by reference ----------------------------------------------------------------------------------

Reference = tuple[str, str, int]
"""A module, a name in it, and how often to follow ``__wrapped__`` from what it names."""


def reference_of(thing: object) -> Reference | None:
    """Return how another process finds ``thing`` by importing it; None if it can't.

    The name of a function that was made an action leads to the action. Its ``__wrapped__`` is the
    function, as it is with other decorators.
    """
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not is_importable(module):
        return None
    try:
        found = _look_up(module, name)
    except AttributeError:  # not where its name leads, so it is sent by value
        return None
    for depth in range(_CAUSES):
        if found is thing:
            return module, name, depth
        found = getattr(found, "__wrapped__", None)
        if found is None:
            break
    return None


def by_reference(module: str, name: str, depth: int) -> object:
    """Return what a reference refers to."""
    __import__(module)
    found = _look_up(module, name)
    for _ in range(depth):
        found = cast("Any", found).__wrapped__
    return found


def _look_up(module: str, name: str) -> object:
    found: object = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


_importable: dict[str, bool] = {}


def is_importable(name: str) -> bool:
    """Return whether a process with our ``sys.path`` would import the same module by this name.

    Being in ``sys.modules`` is not enough: test runners and notebooks put modules there that no
    finder knows.
    """
    known = _importable.get(name)
    if known is None:
        known = _importable[name] = name != "__main__" and _is_found(name)
    return known


def _is_found(name: str) -> bool:
    module = sys.modules.get(name)
    spec: Any = getattr(module, "__spec__", None)
    parent, _, last = name.rpartition(".")
    if spec is None or (parent and not is_importable(parent)):
        return False
    if spec.origin in ("built-in", "frozen"):
        return True
    within = cast("Any", sys.modules[parent]).__path__ if parent else sys.path
    # By its name alone, because looking for it on disk would block the event loop.
    expected = [f"{_absolute(folder)}/{last}" for folder in within]
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return any(
        place == one or place.startswith((f"{one}.", f"{one}/__init__."))
        for place in places
        for one in expected
    ) or _is_found_elsewhere(name, spec.origin)


def _is_found_elsewhere(name: str, origin: str | None) -> bool:
    """Ask the finders that look in other places than ``sys.path``, as for editable installs."""
    for finder in sys.meta_path:
        if finder is PathFinder or not origin:
            continue
        find: Callable[..., Any] | None = getattr(finder, "find_spec", None)
        with suppress(Exception):  # finders of others
            found = None if find is None else find(name, None)
            if found is not None:
                return found.origin == origin
    return False


def _absolute(folder: str) -> str:
    if not folder.startswith("/"):
        folder = f"{_getcwd()}/{folder}"
    return folder.rstrip("/")


# -- values ----------------------------------------------------------------------------------------


def dump(value: object, *, to_worker: bool = True) -> bytes:
    """Pickle a value.

    Args:
        value: The value.
        to_worker: Whether a worker loads it, where our ``__main__`` can't be imported.

    Raises:
        Exception: It can't be pickled; ``why`` tells why.
    """
    try:
        data = pickle.dumps(value, PROTOCOL)
    except Exception:  # noqa: BLE001 # the slow way may do it, and its error says more
        return _dump_by_value(value)
    # A class of `__main__` is pickled as its name there, which means something else in a worker.
    return _dump_by_value(value) if to_worker and _MAIN in data else data


load: Callable[[bytes], Any] = pickle.loads


def _dump_by_value(value: object) -> bytes:
    file = io.BytesIO()
    _pickler()(file, PROTOCOL).dump(value)
    return file.getvalue()


def why_not(value: object) -> str:
    """Return why a value can't be sent to a worker, in half a sentence; "" if it can be."""
    try:
        dump(value)
    except Exception as error:  # noqa: BLE001 # a class may define how it is pickled
        return why(value, error)
    return ""


def why(value: object, error: Exception) -> str:
    """Return why a value can't be sent, given the exception of ``dump``."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{kind_of(value)} can't be pickled ({brief_text(text)})"


def brief_text(text: str) -> str:
    """Return ``text``, shortened to what a message can hold."""
    return text if len(text) <= 200 else f"{text[:150]}...{text[-47:]}"  # noqa: PLR2004


def why_not_kwargs(kwargs: Mapping[str, object], error: Exception) -> str:
    """Return which argument can't be sent, and why, given the exception for all of them."""
    for name, value in kwargs.items():
        reason = why_not(value)
        if reason:
            return f"{name!r}: {reason}"
    return f"its arguments: {brief_text(str(error))}"


class _ByReference(pickle.Pickler):
    """Finds functions that the names of their modules lead to only through a decorator."""

    def reducer_override(self, thing: object) -> Any:
        return _reference(thing)


def _reference(thing: object) -> Any:
    """Reduce what a decorator has hidden to a reference; NotImplemented for everything else."""
    is_function = isinstance(thing, FunctionType)
    if is_function or hasattr(type(thing), "perform"):  # acts, too
        reference = reference_of(thing)
        # What is at its name is pickled so anyway, if it is a function: also `by_reference` itself.
        if reference is not None and (reference[2] or not is_function):
            return by_reference, reference
    return NotImplemented


@cache
def _pickler() -> type[pickle.Pickler]:
    """Return the pickler for what pickle itself refuses: cloudpickle's, if it is installed."""
    try:
        base: Any = _cloudpickle().Pickler
    except ImportError:  # without cloudpickle, names alone are sent
        return _ByReference

    class ByValue(base):
        def __init__(self, file: io.BytesIO, protocol: int) -> None:
            super().__init__(file, protocol)  # pyright: ignore[reportUnknownMemberType]
            # Functions of `__main__` come to share a namespace in the worker, though each is
            # pickled on its own.
            self.globals_ref[id(_main_of_here())] = _Main()

        def reducer_override(self, thing: object) -> Any:
            reduced = _reference(thing)
            if reduced is not NotImplemented:
                return reduced
            if not isinstance(thing, FunctionType):
                return base.reducer_override(self, thing)
            if is_importable(thing.__module__ or ""):
                reduced = base.reducer_override(self, thing)
            else:  # also if its module is in `sys.modules`: a worker couldn't import it
                reduced = self._dynamic_function_reduce(thing)
            is_main = reduced is not NotImplemented and thing.__globals__ is _main_of_here()
            return (*reduced[:5], _set_function) if is_main else reduced

    return ByValue


def _cloudpickle() -> Any:
    """Return the module of cloudpickle that has its parts.

    Raises:
        ImportError: It is not installed.
    """
    return importlib.import_module("cloudpickle.cloudpickle")


# -- the namespace of __main__ ---------------------------------------------------------------------


class _Main(dict[str, object]):
    """Stands for the namespace of ``__main__`` in a pickle."""

    def __reduce__(self) -> Any:
        return _main_of_here, ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__reduce__()


_sent: dict[str, object] = {}
"""In a worker: the globals of ``__main__`` as they were sent last."""


def _main_of_here() -> dict[str, object]:
    return sys.modules["__main__"].__dict__


def new_main() -> None:
    """In a worker, at its start: make an empty ``__main__`` for what is sent by value.

    The worker's own program must not be found where the user's functions look for their globals.
    And what is defined in the user's ``__main__`` is called so here too, so its instances are sent
    back as what they are there.
    """
    sys.modules["__main__"] = ModuleType("__main__")
    _sent.clear()


def _set_function(function: Any, state: tuple[Any, dict[str, Any]]) -> None:
    """Complete a function of ``__main__`` that was sent by value."""
    attributes, slots = state
    own: dict[str, object] = function.__globals__
    given: dict[str, object] = slots["__globals__"]
    # An initializer sets globals for the functions that are sent after it. Their own values, from
    # a process where it never ran, must not replace those; see
    # test_a_global_that_the_initializer_sets_is_there.
    new = {
        name: value
        for name, value in given.items()
        if name not in own or (name in _sent and own[name] is _sent[name])
    }
    _sent.update(new)
    _cloudpickle()._function_setstate(function, (attributes, {**slots, "__globals__": new}))


# -- exceptions ------------------------------------------------------------------------------------


def dump_error(error: BaseException) -> bytes:
    """Pickle an exception with its traceback, as text, and its causes. Never fails."""
    return pickle.dumps(_packed(error, _CAUSES), PROTOCOL)


def _packed(error: BaseException, left: int) -> tuple[Any, ...]:
    cause = cause_of(error)
    context = None if error.__suppress_context__ else context_of(error)
    return (
        _blob(error),
        f"{type(error).__module__}:{type(error).__qualname__}",
        _text_of(error),
        [str(one) for one in getattr(error, "__notes__", ())],
        _frames_of(error),
        None if cause is None or not left else _packed(cause, left - 1),
        None if context is None or cause is not None or not left else _packed(context, left - 1),
    )


def _blob(error: BaseException) -> bytes | None:
    """Pickle an exception; None if the other side could not load it."""
    # Whatever the exception's own code raises, also SystemExit: its stand-in is sent instead. See
    # test_an_exception_whose_pickling_exits_is_sent_as_its_stand_in.
    with suppress(BaseException):
        data = dump(error, to_worker=False)
        # Many classes take other arguments than their `args`: pickled well, but never loaded.
        if type(load(data)) is type(error):
            return data
    return None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 # a user's class, whose text can't be had
        return ""


def _frames_of(error: BaseException) -> str:
    """Return the frames of the user's code in which an exception was raised, as text."""
    with suppress(Exception):  # the source may be gone, or a user's module have odd attributes
        frames = traceback.extract_tb(error.__traceback__)
        here = __file__.rpartition("_sending")[0]
        return "".join(
            traceback.format_list([f for f in frames if not f.filename.startswith(here)])
        )
    return ""


def load_error(data: bytes, worker: str) -> BaseException:
    """Return an exception that a worker has raised; a ``RemoteError`` if it can't be loaded here.

    Args:
        data: What ``dump_error`` returned.
        worker: Names the worker in a note.
    """
    return _unpacked(load(data), worker)


def _unpacked(packed: tuple[Any, ...], worker: str) -> BaseException:
    blob, kind, text, notes, frames, cause, context = packed
    error: BaseException | None = None
    if blob is not None:
        with suppress(Exception):  # its module can't be imported here, or it refuses its arguments
            loaded = load(blob)
            error = loaded if isinstance(loaded, BaseException) else None
    if error is None:
        error = RemoteError(kind, text)
        for one in notes:
            note(error, one)
    if frames:
        note(error, f"shoal: raised in {worker}:\n{frames.rstrip()}")
    if cause is not None:
        error.__cause__ = _unpacked(cause, worker)
    elif context is not None:
        error.__context__ = _unpacked(context, worker)
    return error


def named(thing: object) -> str:
    """Return how a message names a function."""
    name = getattr(thing, "__qualname__", None)
    return brief(thing) if name is None else f"{name}()"


def why_not_function(function: Callable[..., object]) -> str:
    """Return why a function can't be sent, and what to do about it; "" if it can be."""
    reason = why_not(function)
    if not reason:
        return ""
    if _pickler() is _ByReference:
        module = getattr(function, "__module__", None)
        what = f"its function {named(function)} is in no importable module"
        return f"{what} (but in {module}); {_INSTALL}"
    return (
        f"its function {named(function)} can't be pickled: {reason}; have it import or make what "
        f"it needs itself, or move it to a module of its own"
    )
