"""``Context``: the view that an action has of its run, through its parameter ``context``."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar, final, overload

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from shoal._engine.idempotency import effect, idempotency_key
from shoal._engine.publish import refuse_secrets
from shoal._engine.questions import ask
from shoal._engine.run import Run
from shoal._engine.streaming import Items
from shoal._errors.exceptions import BadResult, BadUse, DefinitionError
from shoal._events.events import SpanStarted
from shoal._events.hooks import Hook
from shoal._events.identity import Key, RunPath
from shoal._graph.action import FunctionAction
from shoal._graph.checks import check_ahead, check_cascade, check_title
from shoal._graph.policy import INHERIT, Each, Inherit, Title, check_timeout
from shoal._limits.limits import DEFAULT_LIMITS, Limits
from shoal._limits.permits import AttemptPermit
from shoal._state.answers import AnswerType, answer_type, read_answer
from shoal._state.result import Result
from shoal.executors._effects import Effect
from shoal.executors._named import ExecutorName, executor_named
from shoal.executors._port import Executor
from shoal.stores._protocol import Store

from .action_group import ChildGroup

T = TypeVar("T")


@final
class Context:
    """The run of an action, passed to its parameter ``context``. Valid while the action runs.

    When the action is cancelled, each of its ``await``s is cancelled too, also in ``finally``
    blocks. Put cleanup that awaits into ``async with shielded(seconds):``.

    Examples:
        >>> @action(reads=["n"], writes=["key"])
        ... async def where(n: int, context: Context) -> str:
        ...     return f"{context.step} {context.key!r} at depth {context.depth}"
        >>> many = fan_out(where, over="ns", item="n", key=str, into="keys")
        >>> Application(many).run_sync({"ns": [7]}).state["keys"]
        {'7': "where '7' at depth 1"}
    """

    # What the action said last. An attribute of the class until it says something, so that an
    # attempt that says nothing pays nothing.
    _note: str = ""

    def __init__(
        self,
        run: Run,
        action: FunctionAction[..., Any],
        permit: AttemptPermit | None,
        items: Items,
        is_elsewhere: bool = False,
    ) -> None:
        """Describe one attempt of ``action`` by ``run``.

        Args:
            run: The run.
            action: The action.
            permit: The permit of the attempt.
            items: The partial items of the attempt.
            is_elsewhere: Whether the function is called elsewhere than on the event loop.
        """
        # An attempt has a context of its own, so none of these is ever replaced.
        self._run = run
        self._action = action
        # None if nothing limits the attempt. Released and acquired again by its fan-outs.
        self._permit = permit
        # Of this attempt: what an action leaves behind can't give items to the next one.
        self._items = items
        # Set if the action runs in a worker: it calls `emit` and `ask` through
        # `anyio.from_thread.run`, so these calls are made on the event loop's thread.
        self._loop_thread = threading.get_ident() if is_elsewhere else None
        self._names: set[str] = set()  # of this attempt's fan-outs; ids of children contain them
        self._thread = threading.get_ident()  # the event loop's, where attempts are prepared
        # Read on the event loop, because a worker thread has no cancel scopes to read it from.
        self._fixed_deadline = anyio.current_effective_deadline() if is_elsewhere else None
        self._token = current_token() if is_elsewhere else None  # of the loop, for worker threads

    @property
    def path(self) -> RunPath:
        """The run's place among its parents and their steps."""
        return self._run.path

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._run.path.id

    @property
    def parent(self) -> RunPath | None:
        """The run that started this one; None for a root run."""
        return self._run.path.parent

    @property
    def key(self) -> Key:
        """The run's key within its fan-out; empty for a root run."""
        return self._run.path.key

    @property
    def depth(self) -> int:
        """The number of runs above this one: 0 for a root run."""
        return self._run.path.depth

    @property
    def step(self) -> str:
        """The name of the action."""
        return self._action.name

    @property
    def attempt(self) -> int:
        """The number of this attempt of the step, counted from 1."""
        return self._items.attempt

    @property
    def deadline(self) -> float:
        """The time at which the action will be cancelled, on the clock of ``anyio.current_time()``.

        In seconds; ``math.inf`` if no deadline is known. It is the nearest of these deadlines: the
        timeouts of this attempt, of the child, and of the fan-outs around it, and the cancel scopes
        around ``run`` and around the ``context.fan_out`` that started the run.
        """
        # Asked anew each time on the loop, since the action may have opened a scope of its own.
        deadline = self._fixed_deadline
        if deadline is None:
            deadline = anyio.current_effective_deadline()
        # A run has a task of its own, which no cancel scope around `run` encloses. So the deadlines
        # out there are handed down in the configuration.
        return min(deadline, self._run.config.deadline)

    @property
    def idempotency_key(self) -> str:
        """A name for the effect of this step, for services that accept such keys; 32 characters.

        It is the same in each attempt, after each resume, and in each process that executes this
        visit of this step with this input. It is another one when a loop comes back to the step,
        and when a field that the action reads has changed. Pass it on to a payment, a ticket system
        or a model provider: an action that was at work when its process died runs again, and the
        service recognises what it has done already. For a second effect in the same action, append
        a word of your own.

        It is a hash of the run's id, the step, the number of the visit, and the fields in
        ``reads``, secrets excepted. Inputs and the action's ``version`` are not part of it, so a
        corrected program does not repeat what the faulty one has done. A run without an ``id=`` of
        yours has a new id each time it is started anew.

        Raises:
            NotData: A field that the action reads can't be hashed, so that nothing could recognise
                it in another process.

        Examples:
            >>> @action(reads=["order", "amount"], writes=["receipt"])
            ... async def pay(order: str, amount: int, context: Context) -> str:
            ...     return await charge_card(amount, key=context.idempotency_key)
            >>> paid = {}
            >>> async def charge_card(amount: int, key: str) -> str:
            ...     return paid.setdefault(key, f"receipt {len(paid) + 1} for {amount}")
            >>> app = Application(pay, store=MemoryStore())
            >>> app.run_sync({"order": "o-1", "amount": 5}, id="o-1").state["receipt"]
            'receipt 1 for 5'
            >>> len(next(iter(paid)))
            32
        """
        return idempotency_key(self._run, self._action)

    @property
    def _effect(self) -> Effect:
        """What `idempotency_key` is made of, for executors; see `effect_of`."""
        return effect(self._run, self._action)

    def charge(self, actual: float, *, unit: str | None = None) -> None:
        """Replace the cost that ``Limits(cost=...)`` charged for this attempt by the actual one.

        For instance, charge the tokens that an answer has used instead of the expected number. If
        the actual cost is higher, the rate pays the difference from its next units. If it is lower,
        the difference is available at once, except for units that would be free again by now
        anyway. Limits without ``cost=`` are not affected. If it is called again, the last call
        counts.

        Where several costs apply, ``unit=`` says which is meant; each is charged by itself. A unit
        in which nothing is limited is ignored, so an action may say what it costs wherever it runs.
        A plain function may call it in its worker thread, too.

        Args:
            actual: Units of the rate, at least 0.
            unit: What they are, as in ``Limits(unit=...)``; by default, the only cost there is.

        Raises:
            BadUse: ``actual`` is no number of units; or several costs apply and ``unit`` doesn't
                say which.

        Examples:
            >>> limits = Limits(rate=Rate(90_000, per=60), cost=lambda state: 2_000)
            >>> @action(reads=["question"], writes=["answer"], limits=limits)
            ... async def ask(question: str, context: Context) -> str:
            ...     context.charge(1_234)
            ...     return "42"
            >>> Application(ask).run_sync({"question": "?"}).state["answer"]
            '42'
        """
        if (
            not isinstance(actual, int | float)
            or isinstance(actual, bool)
            or not 0 <= actual < math.inf
        ):
            msg = f"context.charge(actual) takes a number of units, at least 0, not {actual!r}"
            raise BadUse(msg)
        # Read without making the record: a child that has none was charged nothing.
        permits = self._run.slot_owner.permits
        slot = None if permits is None else permits.slot
        config = self._run.config
        charge = config.services.admission.charge
        self._on_loop(
            "charge", partial(charge, self._permit, slot, actual, config.execution, named=unit)
        )

    def learn(self, headers: Mapping[str, str]) -> None:
        """Adjust the rates of this attempt to what the headers of a response say is left of them.

        ``context.learn(response.headers)``, after each response or after refusals alone. Headers of
        OpenAI's and Anthropic's forms, ``x-ratelimit-remaining`` and ``retry-after`` are read, see
        ``shoal.rates.read_headers``; others are ignored. What is left of requests concerns rates
        without ``cost=``, and what is left of another unit those with that ``unit=``. They then
        pass no more at once than the server would, for instance because another program uses the
        same account; they are never faster than declared. After ``retry-after`` nothing that these
        rates limit starts for so long. A ``SharedRate`` learns only when to pause, in this process.

        Without a rate nothing happens. It doesn't fail the attempt or try it again: for that,
        ``raise RetryLater(seconds)``.

        Args:
            headers: The headers of a response, as ``httpx`` and others have them.

        Raises:
            BadUse: ``headers`` is no mapping.

        Examples:
            >>> limits = Limits(rate=Rate(50, burst=50))
            >>> @action(reads=["question"], writes=["answer"], limits=limits)
            ... async def ask(question: str, context: Context) -> str:
            ...     context.learn({"x-ratelimit-remaining-requests": "3"})
            ...     return "42"
            >>> Application(ask).run_sync({"question": "?"}).state["answer"]
            '42'
        """
        holder = self._run.slot_owner.held_permits()
        learn = self._run.config.services.admission.learn
        self._on_loop("learn", partial(learn, self._permit, holder, headers))

    def _on_loop(self, what: str, call: Callable[[], object]) -> None:
        """Make a call that lets other attempts start, which only the event loop's thread may do.

        From a worker thread it returns, or raises, once the call has been made; see
        test_keys_are_counted_through_nested_fan_outs_and_executors.
        """
        if threading.get_ident() == self._thread:
            call()
            return
        try:
            anyio.from_thread.run_sync(call, token=self._token)
        except anyio.RunFinishedError:
            return  # the thread was abandoned, and nothing counts any more
        except RuntimeError as error:
            if self._token is not None:
                raise
            msg = (
                f"context.{what}() of action {self._action.name!r} was called in a thread that "
                f"anyio doesn't know: start it with anyio.to_thread.run_sync, or call it on the "
                f"event loop"
            )
            raise BadUse(msg) from error

    def note(self, text: object) -> None:
        """Describe what the action is doing, for displays: ``context.note("page 3 of 9")``.

        Progress displays, reports and pages show it with the run as long as the attempt lasts. The
        next note replaces it. It is saved nowhere else, and costs next to nothing. A plain function
        may call this in its worker thread, too.

        Raises:
            SecretLeaked: The text holds a secret of the run.

        Examples:
            >>> @action(reads=["pages"], writes=["words"])
            ... async def count(pages: list[str], context: Context) -> int:
            ...     words = 0
            ...     for number, page in enumerate(pages, 1):
            ...         context.note(f"page {number} of {len(pages)}")
            ...         words += len(page.split())
            ...     return words
            >>> Application(count).run_sync({"pages": ["a b", "c"]}).state["words"]
            3
        """
        # Made text now, because the object may change until a watcher reads the note.
        said = text if isinstance(text, str) else str(text)
        secrets = self._run.config.secrets
        if secrets.names:
            refuse_secrets(self._run, said, f"a note of action {self._action.name!r}")
        # One assignment, since a thread may make it while the loop reads. Only after the check
        # above: a note that holds a secret is never there to be read.
        self._note = said

    @contextmanager
    def span(self, name: str, **attributes: object) -> Generator[None]:
        """Mark a part of the action: hooks that have ``around_span`` are entered around the block.

        Args:
            name: The name of the part.
            attributes: Details about the part, for the hooks.

        Raises:
            SecretLeaked: The name or an attribute holds a secret of the run, whether or not a hook
                is entered.
        """
        if self._run.config.secrets.names:
            # Before it is known whether a hook listens: else a run would succeed until the day that
            # one does.
            where = f"of action {self._action.name!r}"
            refuse_secrets(self._run, name, f"the name of a span {where}")
            refuse_secrets(self._run, attributes, f"span {name!r} {where}")
        hooks = self._run.config.hooks
        if not hooks.around_span:
            yield
            return
        event = SpanStarted(
            path=self._run.path, step=self._action.name, name=name, attributes=attributes
        )
        entered = hooks.enter_around(hooks.around_span, event)
        try:
            yield
        except BaseException as error:
            self._run.config.secrets.hide(error)
            failure = entered.leave(error)
            # A cancellation is never replaced by what a hook raises.
            if failure is not None and isinstance(error, Exception):
                raise failure from error
            raise
        failure = entered.leave(None)
        if failure is not None:
            raise failure

    def emit(self, item: object) -> Coroutine[Any, Any, None]:
        """Publish a partial item: ``await context.emit(item)``.

        Hooks and opened runs receive it at once, as an ``Item`` event. The action continues when
        all of them are done with it, so a slow reader slows the action down. Items are delivered in
        order, even if several tasks of the action emit them. They are not saved: only the action's
        result is.

        An action that is a generator may simply ``yield item``. A plain function, in its worker
        thread, calls ``anyio.from_thread.run(context.emit, item)``. If the action was cancelled
        before, that call raises ``RunCancelled``.

        A cancellation arrives either before the item is delivered, or after all hooks and readers
        have received it.

        Raises:
            HookFailed: A guarding hook raised, which fails the run.
            SecretLeaked: The item holds a secret of the run, whether or not anything receives it.
            BadUse: The action has ended, or is a plain function that calls this directly.

        Examples:
            >>> from shoal.events import Item
            >>> @action(reads=["n"], writes=["total"])
            ... async def add_up(n: int, context: Context) -> int:
            ...     total = 0
            ...     for number in range(n):
            ...         total += number
            ...         await context.emit(total)
            ...     return total
            >>> hook = RecordingHook()
            >>> Application(add_up, hooks=[hook]).run_sync({"n": 4}).state["total"]
            6
            >>> [event.item for event in hook.of(Item)]
            [0, 1, 3, 6]
        """
        action = self._action
        # Now and not in the coroutine, which a plain function that calls this directly never
        # awaits; see test_a_plain_function_is_taught_how_to_emit.
        self._refuse_plain("that an item is told", "emit, item")
        if isinstance(item, Result):
            msg = (
                f"action {action.name!r} emits a Result, which is no partial item: it is what a "
                f"generator yields last; here, return its value"
            )
            raise BadResult(msg)
        return self._give(item)

    def _refuse_plain(self, what: str, call: str) -> None:
        """Refuse a direct call by a plain function, on the loop or in a thread: it can't await."""
        action = self._action
        # A worker calls `emit` and `ask` through `anyio.from_thread.run`: on the loop's thread.
        on_loop = threading.get_ident() == self._loop_thread
        if not (action.is_async or action.is_streaming or on_loop):
            msg = (
                f"action {action.name!r} is a plain function, which can't await {what}: make it a "
                f"coroutine function, or have it run in a thread and call "
                f"anyio.from_thread.run(context.{call})"
            )
            raise BadUse(msg)

    async def _give(self, item: object) -> None:
        pending = self._items.give(item)
        if pending is not None:
            await pending

    @overload
    def ask(self, name: str, question: object = None) -> Coroutine[Any, Any, Any]: ...

    @overload
    def ask(self, name: str, question: object, answer: type[T]) -> Coroutine[Any, Any, T]: ...

    # `Literal["a", "b"]`, `str | None` and the like are no `type[...]` to a type checker.
    @overload
    def ask(self, name: str, question: object, answer: object) -> Coroutine[Any, Any, Any]: ...

    @overload
    def ask(self, name: str, *, answer: type[T]) -> Coroutine[Any, Any, T]: ...

    @overload
    def ask(self, name: str, *, answer: object) -> Coroutine[Any, Any, Any]: ...

    def ask(
        self, name: str, question: object = None, answer: Any = None
    ) -> Coroutine[Any, Any, Any]:
        """Ask a person, and return the answer: ``answer = await context.ask(name, question)``.

        If there is no answer yet, the question is saved and the run halts here: ``Halting`` is
        raised, and the attempt doesn't count, however it ends. Siblings continue. When nothing else
        is left to do, the root run ends as ``"halted"``, and its questions are in
        ``result.questions``. Give answers with
        ``run(id=..., answers={(run_id, name): value})``. Then the attempt runs again **from its
        start**, and this call returns the answer. So the action repeats its work before the
        question: put work that must not be done twice into an action of its own.

        An answer belongs to this execution of the step. Every attempt gets it again, after a retry
        or a crash too; a loop that visits the step again asks anew. If a root run's own action has
        failed with an answer, another answer may be given. An action may ask several questions one
        after the other, each with its own name; those with an answer return at once. The step isn't
        attempted while one of its questions is open. If a later attempt asks a question that is
        still open, it may have changed; the newest one counts.

        With ``answer=``, the answer is of that type, and an instance is returned. An answer that is
        none is refused where it is given, in whichever process that is: the question is saved with
        the JSON schema of the type (``Question.answer_schema``), of which pages make a form. The
        answer is saved as JSON. A validator that the schema can't express is asked here.

        A plain function, in its worker thread, calls ``anyio.from_thread.run(context.ask, name,
        question)``, with the type as the third argument.

        Inside the block of ``context.fan_out``, ``Halting`` leaves the block: children that have
        not ended are cancelled, and continue when the attempt runs again.

        A cancellation arrives either before the question is saved, or takes precedence over the
        question: then the run is cancelled, and asks again when it is resumed.

        Args:
            name: The name of the question, within this execution of the action.
            question: The question, as data for the program that shows it.
            answer: The type of the answer: ``bool``, ``int``, ``float``, ``str``, ``Literal``, an
                enum, or a list, dict or union of these; with pydantic, also a model, a dataclass, a
                ``TypedDict``, or whatever else it knows. Or a JSON schema: then the answer is JSON.
                None: any data is an answer.

        Raises:
            Halting: There is no answer yet. Let it propagate.
            NotData: The question can't be saved.
            BadAnswer: The answer that was saved doesn't fit ``answer``, because the program has
                changed, or a validator refuses it. If the run has failed with it, another answer
                may be given.
            DefinitionError: ``answer`` is no type of answers.
            BadUse: The run has no store; the name was used in this attempt for another question;
                the action has ended, or is a plain function that calls this directly.

        Examples:
            >>> import anyio
            >>> @action(reads=["change"], writes=["merged"])
            ... async def review(change: str, context: Context) -> bool:
            ...     return await context.ask("approve", {"change": change})
            >>> async def main() -> None:
            ...     app = Application(review, store=MemoryStore())
            ...     result = await app.run({"change": "fix typo"}, id="pr-1")
            ...     print(result.status, result.questions[0].question)
            ...     result = await app.run(id="pr-1", answers={"approve": True})
            ...     print(result.status, result.state["merged"])
            >>> anyio.run(main)
            halted {'change': 'fix typo'}
            succeeded True
            >>> @action(reads=["change"], writes=["rating"])
            ... async def rate(change: str, context: Context) -> int:
            ...     return await context.ask("rating", change, answer=int)
            >>> app = Application(rate, store=MemoryStore())
            >>> app.run_sync({"change": "fix typo"}, id="a").questions[0].answer_schema
            {'type': 'integer'}
            >>> app.run_sync(id="a", answers={"rating": "good"})
            Traceback (most recent call last):
              ...
            shoal.BadAnswer: ... 'good' is no answer to ('a', 'rating'): must be a whole number ...
            >>> app.run_sync(id="a", answers={"rating": 4}).state["rating"]
            4
        """
        # Now and not in the coroutine: see test_a_plain_function_that_asks_by_itself_gets_advice.
        self._refuse_plain("an answer", "ask, name, question")
        if not isinstance(name, str) or not name:
            msg = f"action {self._action.name!r}: context.ask(name, ...) takes a name, not {name!r}"
            raise BadUse(msg)
        kind = None if answer is None else answer_type(answer)
        return self._ask(name, question, kind)

    async def _ask(self, name: str, question: object, kind: AnswerType | None) -> object:
        if self._items.is_over:
            msg = (
                f"action {self._action.name!r} of run {self.run_id} has ended, and something it "
                f"left behind asks {name!r}: await all that asks before the action returns"
            )
            raise BadUse(msg)
        step = self._action.name
        if kind is None:
            return await ask(self._run, step, name, question)
        found = await ask(self._run, step, name, question, kind.schema)
        return read_answer(kind, found, f"action {step!r} of run {self.run_id}", name)

    def fan_out(
        self,
        *,
        name: str,
        limits: Limits | None = None,
        store: Store | Inherit | None = INHERIT,
        hooks: Sequence[Hook] | Inherit = INHERIT,
        each: Each | None = None,
        timeout: float | None = None,
        title: Title | None = None,
        executor: Executor | ExecutorName | None = None,
        ahead: int | None = None,
    ) -> ChildGroup:
        """Start children from within the action: ``async with context.fan_out(...) as group``.

        Use it if ``fan_out`` as an act can't express the fan-out. The children are runs like any
        others: tracked, saved, published to hooks, and cancelled with the action. The parent's
        state changes once, when the action returns.

        While it is inside the block, the action holds no slots of any ``Limits``.

        The inputs of the children come from the run's inputs. Make those that no other action takes
        parameters of this one, so that they are known before the run.

        Args:
            name: The name of the fan-out among those of this action.
            limits: How many children are in flight; 100 by default.
            store: The store of the children, instead of the run's store; None: only how they ended
                is saved.
            hooks: The hooks of the children and their descendants, instead of the run's hooks.
            each: The policy of each single child: its timeout, its retry.
            timeout: Seconds from entering the block until the children are cancelled. Then
                ``StepTimeout`` is raised when the action next waits for an outcome, or leaves the
                block.
            title: What watchers call the fan-out, or its children; see ``fan_out``.
            executor: Where the actions of the children are called; see ``fan_out``.
            ahead: How many elements of ``start_each`` may be pulled for children that can't start
                yet; see ``fan_out``.

        Raises:
            BadUse: Called in a worker thread, where an action that is a plain function runs.
            DefinitionError: This attempt used the name before, or an argument is of a wrong type
                or value.
        """
        if threading.get_ident() != self._thread:
            msg = (
                f"action {self._action.name!r} calls context.fan_out in a worker thread, where it "
                f"runs since it is a plain function; make it a coroutine function: async def"
            )
            raise BadUse(msg)
        if not isinstance(name, str) or not name:
            msg = f"context.fan_out(name=...) takes a name, not {name!r}"
            raise DefinitionError(msg)
        if name in self._names:
            msg = (
                f"action {self._action.name!r} opens two fan-outs named {name!r}; their children "
                f"could not be told apart: give each its own name"
            )
            raise DefinitionError(msg)
        if limits is not None and not isinstance(limits, Limits):
            msg = f"context.fan_out(limits=...) takes Limits(n), not {limits!r}"
            raise DefinitionError(msg)
        check_cascade("context.fan_out()", store, hooks)
        if each is not None and not isinstance(each, Each):
            msg = f"context.fan_out(each=...) takes Each(...), not {each!r}"
            raise DefinitionError(msg)
        check_timeout("context.fan_out(timeout=...)", timeout)
        check_title("context.fan_out(title=...)", title)
        check_ahead("context.fan_out(ahead=...)", ahead)
        place = executor_named(executor, "context.fan_out(executor=...)")
        # Last, so that a call that was refused uses up no name.
        self._names.add(name)
        if limits is not None:
            limits.stand_on(self._action.definition, name)
        return ChildGroup(
            self._run,
            self._action,
            self._permit,
            name=name,
            limits=limits or DEFAULT_LIMITS,
            each=each,
            timeout=timeout,
            store=store,
            hooks=hooks,
            title=title,
            executor=place,
            ahead=ahead,
        )

    def __repr__(self) -> str:
        return f"<Context of {self._action.name!r} in {self._run.path!r}>"
