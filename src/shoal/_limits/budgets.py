"""``Budget``: how much may be spent in all, as users write it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, final, get_args

from shoal._errors.arguments import is_number
from shoal._errors.exceptions import DefinitionError, brief
from shoal._state.functions import require_plain

from .accounts import OnEmpty, Terms, Worst
from .limits import Limits, Part
from .numbers import check_number
from .shared_budgets import BudgetBackend


@final
class Budget(Limits):
    """How much may be spent in all: of money, of tokens, of anything that attempts use up.

    It stands where ``Limits`` stand, and is joined with them by ``&``. Before an attempt starts,
    its worst case is set aside, in the same moment in which all other limits let it start. When it
    ends, it has cost what it said with ``context.charge(actual, unit="USD")``, or else its worst
    case. So what is spent and set aside never exceeds the amount, as long as no attempt costs more
    than its worst case. Losers of races, failures and retries count like all others. An attempt
    that never began costs nothing.

    **What it covers.** On an action, its attempts. On a fan-out, the attempts of its children and
    of everything below them. On an application, all attempts of a run. Each run has such a budget
    for itself, root run by root run, for all visits of the step together. On a runtime, or with
    ``per=``, all runs of the runtime share it; with ``backend=``, all processes. One object in
    several places is one budget, like any ``Limits``.

    **What is remembered.** What a run spends is in its history, under ``name``: a resumed run knows
    it, ``result.spent`` and events tell it. Attempts that were under way when their process died
    cost their worst case. What all runs of a runtime share is forgotten with the runtime; what
    processes share is at the backend, where a process that dies leaves its worst cases behind.
    An attempt waits for what its own process has under way, and not for other processes.

    **When it is empty.** An attempt that doesn't fit waits as long as attempts under way could
    still cost less than was set aside for them. Then, by ``on_empty``:

    - ``"fail"``: it fails with ``BudgetExceeded``, which says what was spent by which actions.
    - ``"stop"``: the fan-out whose child it belongs to starts no more children. Those that run go
      on to their end, children that have not begun are skipped, a child that has begun and can't
      go on is cancelled, and the step ends with what it has. Outside of a fan-out it fails.
    - ``"ask"``: the run halts with a question, which is answered by how much more there is. It goes
      on with that, and asks again when that is spent. The answer 0 lets it fail. It needs a store.

    An action inside ``context.fan_out`` keeps its own worst case set aside; its children need
    theirs besides. What it has charged before is no longer set aside.

    Args:
        amount: How much there is.
        unit: What it is, such as ``"USD"`` or ``"tokens"``; ``context.charge`` names it.
        worst: The most that one attempt may cost: a number, or a plain function of the state that
            the attempt would start from. An attempt that may cost nothing is never refused.
            Actions that differ in what they cost have their own with ``with_worst``.
        by: A plain function of that state, which returns a key: each key has the amount for itself.
        per: The seconds of a window, after which the amount is there again; it begins with the
            first attempt after the one before. An attempt counts in the window in which it began.
        on_empty: What happens to an attempt that doesn't fit.
        name: The name by which runs record it; by default its unit. Budgets of one run need
            different names.
        backend: Keeps it for several processes, under its ``name``, which it needs then:
            ``shoal.rates.redis.RedisRates(url)``, for example, or your own. All processes share
            the amount, and what they have spent is remembered as long as the backend does.

    Raises:
        DefinitionError: An argument has the wrong type or is out of range.

    Examples:
        >>> @action(reads=["question"], writes=["answer"])
        ... async def ask(question: str, context: Context) -> str:
        ...     context.charge(0.02, unit="USD")
        ...     return f"{question}!"
        >>> answers = fan_out(ask, over="questions", item="question", into="answers")
        >>> app = Application(answers, limits=Budget(5.0, "USD", worst=0.10))
        >>> app.run_sync({"questions": ["why", "how"]}).spent
        {'USD': 0.04}
    """

    __slots__ = ()

    def __init__(
        self,
        amount: float,
        unit: str,
        *,
        worst: Worst,
        by: Callable[[Any], Hashable] | None = None,
        per: float | None = None,
        on_empty: OnEmpty = "fail",
        name: str | None = None,
        backend: BudgetBackend | None = None,
    ) -> None:
        """Check the arguments; see the class."""
        check_number("Budget(amount)", amount)
        for what, text in (("unit", unit), ("name", name)):
            if (text is not None or what == "unit") and (not isinstance(text, str) or not text):
                msg = f"Budget({what}=...) takes a name, such as 'USD', not {brief(text)}"
                raise DefinitionError(msg)
        _check_worst(worst, amount, unit)
        if by is not None:
            require_plain(by, "Budget(by=...)")
        if per is not None:
            check_number("Budget(per=...)", per)
        if on_empty not in get_args(OnEmpty):
            msg = f"Budget(on_empty=...) takes 'fail', 'stop' or 'ask', not {brief(on_empty)}"
            raise DefinitionError(msg)
        if on_empty == "ask" and per is not None:
            msg = (
                "Budget(on_empty='ask') asks for more for one run, and with per= all runs of a "
                "runtime share it: leave one of them out"
            )
            raise DefinitionError(msg)
        if on_empty == "ask" and backend is not None:
            msg = (
                "Budget(on_empty='ask') asks for more for one run, and with backend= all processes "
                "share it: leave one of them out"
            )
            raise DefinitionError(msg)
        check_backend(backend, name)
        terms = Terms(float(amount), unit, _as_worst(worst), per, on_empty, name, backend)
        part = Part(None, None, by, None, terms=terms)
        object.__setattr__(self, "parts", (part,))  # the class is frozen

    def with_worst(self, worst: Worst) -> Budget:
        """Return the same budget, for attempts that may cost something else.

        It is one budget with this one, like one object in several places: what attempts set aside
        and spend is counted together. An attempt that it reaches on several ways needs the worst
        case of the place nearest to it, an action's before those of fan-outs, application and
        runtime.

        Args:
            worst: The most that one attempt may cost there: a number, or a plain function of the
                state that the attempt would start from.

        Raises:
            DefinitionError: ``worst`` has the wrong type or is out of range.

        Examples:
            >>> money = Budget(5.0, "USD", worst=0)
            >>> @action(reads=["q"], writes=["draft"], limits=money.with_worst(0.01))
            ... async def draft(q: str) -> str:
            ...     return f"{q}?"
            >>> @action(reads=["draft"], writes=["text"], limits=money.with_worst(0.20))
            ... async def polish(draft: str) -> str:
            ...     return f"{draft}!"
            >>> app = Application(Graph.chain(draft, polish), limits=money)
            >>> app.run_sync({"q": "why"}).spent
            {'USD': 0.21}
        """
        [part] = self.parts
        assert part.terms is not None, "it is a budget"
        _check_worst(worst, part.terms.amount, part.terms.unit)
        found: Budget = object.__new__(Budget)
        terms = replace(part.terms, here=_as_worst(worst))
        object.__setattr__(found, "parts", (replace(part, terms=terms),))  # the class is frozen
        return found


def _check_worst(worst: object, amount: float, unit: str) -> None:
    if callable(worst):
        require_plain(worst, "Budget(worst=...)")
    elif not is_number(worst) or not 0 <= worst < math.inf:
        msg = (
            f"Budget(worst=...) takes the most that one attempt may cost, a number of at least "
            f"0 or a function of the state, not {brief(worst)}"
        )
        raise DefinitionError(msg)
    elif worst > amount:
        msg = (
            f"Budget({amount:g}, {unit!r}, worst={worst:g}): no attempt would ever fit; give a "
            f"larger amount or a smaller worst="
        )
        raise DefinitionError(msg)


def _as_worst(worst: Worst) -> Worst:
    return worst if callable(worst) else float(worst)


def check_backend(backend: object, name: str | None) -> None:
    """Check a user's ``backend=``.

    Raises:
        DefinitionError: It keeps no budgets, or the budget has no name there.
    """
    if backend is None:
        return
    # By its method and not by its class, because users write backends of their own.
    if isinstance(backend, type) or not callable(getattr(backend, "spend", None)):
        kind = type(backend)
        keeps = "keeps rates and no budgets" if hasattr(backend, "settle") else "keeps no budgets"
        msg = (
            f"Budget(backend=...) takes a backend that keeps budgets, such as "
            f"shoal.rates.redis.RedisRates(url), and {kind.__qualname__} {keeps}: give it an async "
            f"method spend(requests), which applies shoal.rates.reckon_budget to each; see "
            f"shoal.rates.BudgetBackend"
        )
        raise DefinitionError(msg)
    if name is None:
        msg = "Budget(backend=...) needs name=..., under which all processes find it at the backend"
        raise DefinitionError(msg)
