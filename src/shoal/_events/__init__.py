"""Events: the identity of runs, how runs ended, and the hooks that receive events.

- ``identity``: ``RunPath``. The id of a run is a hash of its path.
- ``events``: outcomes, ``Update``, and every event class, which names its method of ``Hook``.
- ``making``: makes outcomes and updates for the many children of a commit.
- ``report``: what a root run does at one moment, as the process that executes it samples it.
  ``report_text`` writes it as JSON, and reads it back.
- ``hooks``: ``Hook``, and calling hooks in order.
- ``leading``: the items that count in a race by its first item.
- ``stream``: a hook that keeps events for one reader, and slows the run down to the reader's pace.
- ``discovered``: elements that ``grow`` returned in earlier executions.
"""
