"""Fan-outs: many runs under one step.

- ``step`` is one execution of a parallel action: it opens the group, applies batches, and ends.
  ``subgraph`` does the same for a graph as a node, ``action_group`` for ``context.fan_out``.
- ``group`` is the task group of the children. ``scope`` knows why it stops, ``workers`` execute the
  children, ``admission`` bounds how many are in flight.
- ``finish`` judges exceptions that came out of runs, and records ends that no update applies.
- ``source``, ``elements``, ``task_source``, ``entries`` make children, ``keys`` tells elements
  apart; ``stagger`` delays them.
- ``batch`` applies outcomes to the parent's state; ``ledger`` and ``read_ledgers`` count them.
- ``race`` judges results, ``rounds`` runs a race again, ``hedge`` starts extra children.
- ``recorded``, ``takeup``, ``step_resume``: what earlier executions left of a step.
- ``context``: ``Context``, which tells an action where it runs.
"""
