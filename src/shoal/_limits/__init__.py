"""Limits: what may start, when, and how often again.

Values that users write:

- ``limits``: ``Limits``, ``Rate``, ``SharedRate``, ``AIMD``.
- ``retry``: ``Retry``, ``RetryBudget``. ``breaker``: ``Breaker``.

The scheduler, one per runtime. It grants an attempt everything that it needs at once, or nothing:

- ``gates``: a gate is the semaphore and the rate meter of one key of one limit.
- ``limiters`` make the gates of an owner, by key.
- ``scheduler``: the queue in front of the gates, with fair shares.
- ``permits``: what an attempt holds, and a child in flight; releasing and reacquiring it.
- ``timers``: one timer for all gates that open at a known time.
- ``meters``: the arithmetic of rates.
- ``shared_rates``, ``shared_rate_client``: rates that several processes share.
- ``admission`` binds these together.
"""
