"""Budgets in a run: record what attempts set aside, publish what they cost, ask for more.

Invariants:
- What an attempt may cost is on record before it begins, so a run that is resumed after a crash
  knows the worst case of each attempt that was under way.
- What an attempt has cost is on record before the end of its run is.
"""

from __future__ import annotations

from contextlib import suppress

from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import BadUse, BudgetExceeded, Halting, HookFailed
from shoal._events.events import Spent
from shoal._limits.accounts import Stake
from shoal._limits.permits import AttemptPermit
from shoal.stores._history import QuestionAsked
from shoal.stores._protocol import NullStore

from .progress import MORE
from .publish import out_of_reach
from .questions import is_same_data, pose, refuse_unsaved
from .run import Run


async def record_stakes(run: Run, action: str, permit: AttemptPermit) -> None:
    """Save what an attempt of ``action`` has set aside, before it begins.

    Raises:
        BadUse: It is paid from a budget that asks for more, and no store would keep the question.
        ShoalError: As ``Execution.save``.
    """
    execution = run.config.execution
    for stake in permit.stakes:
        stake.who = action
        terms = stake.account.terms
        if terms.on_empty == "ask" and isinstance(execution.store, NullStore):
            msg = (
                f"Budget({terms!r}) asks for more when it is empty, and the run has no store that "
                f"would keep the question: give it one, Application(..., store=...)"
            )
            raise BadUse(msg)
    await execution.record_spent()


@ki_protected
async def refused(run: Run, step: str, error: BudgetExceeded) -> None:
    """Ask for more, and halt the attempt that didn't fit, if its budget says so.

    All attempts that don't fit ask the same question: one answer is for all of them.

    Raises:
        Halting: The question is saved.
        BadUse: The run is kept nowhere.
    """
    accounts = run.config.execution.accounts
    account = accounts.find(error.budget, error.key) if error.on_empty == "ask" else None
    if account is None or accounts.is_denied(account):
        return
    name = f"budget {error.budget}" + (f" of {error.key}" if error.key else "")
    refuse_unsaved(run, f"action {step!r} of run {run.path.id}", name)
    question = {
        "budget": error.budget,
        "key": error.key,
        "unit": error.unit,
        "amount": error.amount,
        "spent": error.spent,
        "needs": error.cost,
        "by": dict(error.by),
    }
    pending = run.pending_questions()
    id_ = accounts.question_id(account, accounts.asked(account))
    known = pending.asked.get(name)
    if known is None or known.id != id_ or not is_same_data(known.question, question):
        asked = QuestionAsked(step, name, question, id_, MORE)
        await out_of_reach(run.config.services, pose(run, asked))
    pending.posed[name] = question
    pending.is_halting = True
    raise Halting(f"run {run.path.id} waits for more of budget {error.budget!r}")


async def publish_spent(run: Run, step: str, stakes: tuple[Stake, ...]) -> None:
    """Publish what an attempt has cost."""
    hooks = run.config.hooks
    if not hooks.spent:
        return
    for stake in stakes:
        account = stake.account
        event = Spent(
            path=run.path,
            step=step,
            attempt=run.attempt,
            budget=account.terms.label,
            key=account.key,
            unit=account.terms.unit,
            cost=stake.cost,
            charged=stake.is_charged and not stake.is_worst,
            spent=account.spent,
            left=account.left,
        )
        # Its failure is noted in `hooks.failures`, which ends the execution. Raised here, it would
        # replace what the attempt has raised, a cancellation for instance.
        with suppress(HookFailed):
            await hooks.notify(hooks.spent, event)
