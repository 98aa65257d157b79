"""The engine: one run, from its first step to its end.

Data: ``run`` is one run, ``config`` what it shares with its siblings, ``execution`` what all runs
below one root run share in this process, ``services`` what all runs of a runtime share.

Functions over a run:

- ``walk`` goes along the graph, step after step.
- ``call`` executes one step; ``attempts`` bounds and retries it, ``streaming`` reads its items;
  ``returned`` checks its result.
- ``child_time``: the timeouts of a child, and what it waits for.
- ``hedged``: an attempt of a late child, and a second copy of it.
- ``worker_deaths`` goes on after the death of a worker that an action was called in.
- ``commit`` is the only way to change a state; ``publish`` sends events to hooks, in order.
- ``replay`` finds the step at which an earlier execution stopped.
- ``halting``: runs that stop between two attempts; ``drain``: whether nothing more is started.
- ``questions``: runs that ask, and wait for answers. ``permits``: what a run holds of limits.
- ``spending``: what attempts cost of budgets: recorded, published, asked for.
- ``disposition``: whether a child is executed, and why not.
- ``standing``: what a run does now, for watchers. ``whereabouts``: where an error was raised.
- ``spawning``: which run's action starts another application.
- ``injection``: what ``simulate`` and ``replay`` put in place of functions and stores.
- ``hold``: an execution in which nothing new starts, because its run is paused.
- ``idempotency``: a name for the effect of a step, the same in each attempt.
- ``result_cache``, ``progress``, ``crash_suspects``, ``unended``, ``parts``, ``in_place``,
  ``root_record``, ``second_copies``: needed by few runs.

``fanout``, a package of its own, executes many runs under one.
"""
