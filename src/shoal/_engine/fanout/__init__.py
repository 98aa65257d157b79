"""Fan-outs: many child runs under one step.

Read ``step`` first: one execution of a parallel step follows these modules from top to bottom.

- ``step`` executes a parallel step: it opens the group, applies batches of outcomes, and ends the
  step. ``subgraph`` does the same for a graph as a node, ``action_group`` for ``context.fan_out``.
- ``step_source`` makes the sources of a step. ``source`` pulls elements and makes a child of each.
  ``elements`` is the source of a ``fan_out``, ``task_source`` that of a parallel action,
  ``action_source`` that of ``context.fan_out``. ``growth`` has the elements that ``grow`` finds,
  ``entries`` the templates of children and the protocols between a source and its group, ``keys``
  the keys and positions of elements, and ``children`` the configuration that all children share.
  ``stagger`` delays the start of children.
- ``group`` is the task group of the children. ``scope`` cancels it and keeps the reason,
  ``workers`` execute the children, ``admission`` bounds how many are in flight, and ``ahead`` how
  many elements are pulled for children that can't start yet. ``start_requests`` asks the limits for
  what a child needs to start, ``reservation`` does so before its element is pulled. ``gathering``
  lets more children end before a commit. ``feeders`` are the tasks of async sources, ``breakers``
  skips children for a while, and ``cancelling`` cancels some of them alone.
- ``batch`` applies outcomes to the parent's state. ``ledger`` counts how the children ended;
  ``read_ledgers`` reads those counts from the store, ``read_runs`` what the store has of a run.
- ``race`` picks winners, ``leader`` publishes who leads, ``rounds`` runs a race again. ``hedge``
  knows how long children take, and how many extra ones may start; ``copies`` starts second copies
  of late children.
- ``finish`` sorts the exceptions that came out of runs, and records ends without an update.
  ``resting`` has the children that are halted, until they have their answers or lose.
- ``recorded``, ``takeup`` and ``step_resume`` continue a step that an earlier execution began.
  ``losers`` gives an end to contestants that had none when their race was decided.
- ``context`` has ``Context``, the view that an action has of its run.
"""
