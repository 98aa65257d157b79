"""Actions as classes: the base class ``Action``.

Invariants:
- A class that can't work is refused where it is defined.
- Parameters and return value of ``run`` mean the same as those of a decorated function.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, cast

from shoal._errors.exceptions import DefinitionError
from shoal._limits.limits import Limits
from shoal._limits.retry import Retry
from shoal._state.functions import annotations_of
from shoal._state.state import Change
from shoal.executors._named import ExecutorName
from shoal.executors._port import Executor

from .act import Act, Input, Performer
from .action import FunctionAction, field_names, make_action
from .sketch import Sketch


class Action(Act):
    """Base class of actions that need more than a function: settings, helpers, several variants.

    A subclass declares ``reads`` and ``writes``, and has a method ``run``. The parameters of
    ``run`` are bound by name, like those of a function decorated with ``@action``. It may be a
    coroutine function, an async generator function, or a plain one, which runs in a worker thread.

    Instances go into graphs. An instance may have settings of its own, but must keep nothing from
    one run to the next, because many runs may execute it at once.

    The class attributes ``name`` (by default the name of the class), ``version``, ``executor``,
    ``limits``, ``timeout``, ``retry``, ``abandon`` and ``cache`` mean the same as for ``@action``.

    Raises:
        DefinitionError: Where the subclass is defined, if it can't work; the message says why.

    Examples:
        >>> class Greet(Action):
        ...     reads = ["name"]
        ...     writes = ["greeting"]
        ...
        ...     def __init__(self, word: str) -> None:
        ...         self.word = word
        ...
        ...     async def run(self, name: str) -> str:
        ...         return f"{self.word}, {name}"
        >>> Application(Greet("hello")).run_sync({"name": "shoal"}).state["greeting"]
        'hello, shoal'
    """

    executor: Executor | ExecutorName | None = None
    limits: Limits | None = None
    timeout: float | None = None
    retry: Retry | None = None
    abandon: bool = False
    cache: float | None = None
    _bound: Mapping[str, object] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Check the subclass where it is defined."""
        super().__init_subclass__(**options)
        check_class(cls, "reads", "writes")
        if not isinstance(cls.version, str):
            msg = f"class {cls.__name__}: version is a string, not {cls.version!r}"
            raise DefinitionError(msg)
        if cls.run is not Action.run:
            cls._definition = _function_of(cls, cls.run, cls.__name__, method=True)
            if cls.limits is not None:
                cls.limits.stand_on(cls._definition)
            cls.sure_writes: Collection[str] = cls._definition.sure_writes

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Do the work. Parameters and return value are those of a function with ``@action``."""

    _definition: FunctionAction[..., Any]

    @functools.cached_property
    def _function(self) -> FunctionAction[..., Any]:
        if self.limits is not type(self).limits:
            msg = (
                f"action {self.name!r} has limits of its own; limits are counted for all instances "
                f"of {type(self).__name__} together, so they are an attribute of the class"
            )
            raise DefinitionError(msg)
        function = _function_of(self, self.run, self.name, method=False)
        function._bind(self.name, self._bound)
        function.definition = self._definition
        return function

    @property
    def takes(self) -> Mapping[str, Input]:
        """The inputs that it takes, by name."""
        return self._function.takes

    @property
    def bound(self) -> Collection[str]:
        """The inputs that are bound."""
        return self._bound

    @property
    def needed_by(self) -> Mapping[str, str]:
        """The fields with a parameter of their own in ``run``."""
        return self._function.needed_by

    def sketch(self) -> Sketch:
        """Return what drawings show of it."""
        return self._function.sketch()

    def perform(self, run: Performer) -> Awaitable[Change]:
        """Execute one step of ``run``; see ``Act.perform``."""
        return run.call(self._function)

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        vars(self).pop("_function", None)
        bind_instance(self, name, {**self._bound, **inputs})

    def __repr__(self) -> str:
        return f"<action {self.name} reads={sorted(self.reads)} writes={sorted(self.writes)}>"


def _function_of(
    owner: Action | type[Action], function: Callable[..., Any], name: str, *, method: bool
) -> FunctionAction[..., Any]:
    return make_action(
        function,
        name=name,
        reads=field_names(owner.reads, "reads"),
        writes=field_names(owner.writes, "writes"),
        version=owner.version,
        executor=owner.executor,
        limits=owner.limits,
        timeout=owner.timeout,
        retry=owner.retry,
        abandon=owner.abandon,
        cache=owner.cache,
        method=method,
    )


def check_class(cls: type[Act], *attributes: str, may_be_properties: bool = False) -> None:
    """Check the name of a class of acts, and the attributes that list names; freeze these.

    Args:
        cls: The class.
        attributes: The attributes.
        may_be_properties: Whether these may be properties, which are checked when they are read.
    """
    own = vars(cls)
    if "name" not in own and "name" not in annotations_of(cls):
        cls.name = cls.__name__
    name: object = own.get("name", "")
    # A descriptor, such as a property, gives each instance its own name.
    if not isinstance(name, str) and not hasattr(type(name), "__get__"):
        msg = f"class {cls.__name__}: name is a string, not {name!r}"
        raise DefinitionError(msg)
    for attribute in attributes:
        given: Any = getattr(cls, attribute)
        if isinstance(given, property) and may_be_properties:
            if attribute in own:
                setattr(cls, attribute, _checked_property(cls, attribute, given))
            continue
        try:
            fields = field_names(cast("Iterable[str]", given), attribute)
        except DefinitionError as error:
            msg = f"class {cls.__name__}: {error}"
            raise DefinitionError(msg) from None
        # An empty default is not set, or it would hide the attribute of a mixin further on.
        if given:
            setattr(cls, attribute, fields)


def _checked_property(cls: type[Act], attribute: str, given: property) -> property:
    read = cast("Callable[[Act], Iterable[str]]", given.fget)

    def checked(act: Act) -> Collection[str]:
        try:
            return field_names(read(act), attribute)
        except DefinitionError as error:
            msg = f"class {cls.__name__}: {error}"
            raise DefinitionError(msg) from None

    return property(checked, doc=given.__doc__)


def bind_instance(act: Act, name: str, bound: Mapping[str, object]) -> None:
    """Set the name and the bound inputs of an instance of a user's class."""
    for attribute, value in (("name", name), ("_bound", bound)):
        object.__setattr__(act, attribute, value)  # the class may be a frozen dataclass
