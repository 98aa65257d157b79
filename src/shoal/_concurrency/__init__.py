"""Concurrency: the parts of an event loop that shoal needs beyond anyio, on asyncio and trio.

- ``cancellation`` tells true cancellations from false ones. Its ``drive`` runs a coroutine in a
  context of its own, and its marks keep Ctrl-C out of the engine's frames.
- ``backend``: the loop's clock, waiters, and calls from other threads.
- ``background``: work in a task of its own, which survives the cancellation of its caller.
- ``worker_threads``: a bounded number of threads for plain functions.
- ``closing``: async iterators that are advanced and closed in one task.
- ``shielding``: ``shielded``, for cleanup that awaits.
- ``watchdog`` names the code that still runs long after its cancellation.
- ``leftovers`` names tasks that actions left behind, in asyncio's debug mode.
"""
