"""Limits: admission control, rates, retries and circuit breakers.

Values that users write:

- ``limits``: ``Limits``, ``Rate``, ``SharedRate``. ``adaptive``: ``AIMD``, and the port for others.
- ``retry``: ``Retry``, ``RetryBudget``. ``breaker``: ``Breaker``.
- ``budgets``: ``Budget``, how much may be spent in all.
- ``numbers``: which numbers they may give.

Admission control, one per runtime. An attempt is granted all the slots and units that it needs at
once, or it waits:

- ``admission``: the controller, which binds the others together.
- ``limiters``: the gates of each owner of limits, by key.
- ``places``: the identity of a ``Limits`` object, and whether it stands in several places.
- ``owners``: ``OWNER``, the key that is the owner of a run.
- ``user_functions``: calls of users' functions of limits.
- ``flows``: what takes turns together: classes of priority, shares of limits.
- ``lines``: how many runs wait at a gate, where that is bounded.
- ``gates``: a gate is the semaphore and the rate meter of one key of one limit.
- ``scheduler``: the scheduler in front of the gates, with fair shares.
- ``rivals``: gates at which a turn taken elsewhere changes which request is the first one.
- ``refusals``: which requests are not to wait.
- ``permits``: the slots that an attempt holds, and the in-flight slot of a child.
- ``passes``: what a child takes of open limits at which nobody waits, past a request.
- ``accounts``: what was spent of budgets, and what is set aside for attempts under way.
- ``timers``: one timer for all gates that open at a known time.
- ``meters``: the arithmetic of rates.
- ``shared_budgets``, ``shared_budget_client``: budgets that several processes share.
- ``headers``: what the headers of a response say of a rate.
- ``shared_rates``, ``shared_rate_client``: rates that several processes share.
"""
