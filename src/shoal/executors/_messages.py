"""The messages between a pool and its workers.

A message is a tuple; its first element says what it is. Both sides send *batches*, lists of
messages. Messages of one sender arrive in the order in which they were sent, or never: if a link
breaks, its worker counts as dead, and nothing it sent later is looked at.

A call has a number of its own each time that it is sent. So a message about a call that was moved
to another worker since, or given up, is told from one that counts, and dropped.

From the pool:

| message | meaning |
| --- | --- |
| ``(JOB, job, kind, name, data, path)`` | a function, for calls that refer to its number |
| ``(FORGET, jobs)`` | no call refers to these functions any more |
| ``(CALL, call, job, arguments, facts, run)`` | call it; ``facts`` is for its context, else None |
| ``(WITHDRAW, calls)`` | give back those of the calls that have not begun |
| ``(CANCEL, calls)`` | give them back too; cancel those that are at work |
| ``(REPLY, call, number, value, error)`` | the answer to an ``ASKED``: a value or an error |
| ``(STOP,)`` | nothing follows: end |

From a worker:

| message | meaning |
| --- | --- |
| ``(READY,)`` | the initializer has returned; calls may begin |
| ``(REFUSED, error)`` | the initializer has raised; the worker ends |
| ``(BEGAN, calls)`` | these are at work |
| ``(DONE, call, result, seconds)`` | the function has returned, after so many seconds |
| ``(FAILED, call, (error, reply), seconds)`` | it has raised, perhaps the error of a reply |
| ``(CANCELLED, call, seconds)`` | the function was cancelled, and its cleanup is done |
| ``(WITHDRAWN, calls)`` | these have not begun, and won't |
| ``(SAID, call, what, value)`` | the function used its context, and waits for nothing |
| ``(ASKED, call, number, what, value)`` | the function used its context, and waits for the reply |

Each call that was sent is answered by exactly one of ``DONE``, ``FAILED``, ``CANCELLED`` and
``WITHDRAWN``, unless its worker dies. Values, errors, arguments and results are pickled on their
own, so that one that can't be read spoils nothing else of its batch.
"""

from __future__ import annotations

from typing import Any

Message = tuple[Any, ...]
"""A message; see the tables above."""

JOB = "job"
FORGET = "forget"
CALL = "call"
WITHDRAW = "withdraw"
CANCEL = "cancel"
REPLY = "reply"
STOP = "stop"

READY = "ready"
REFUSED = "refused"
BEGAN = "began"
DONE = "done"
FAILED = "failed"
CANCELLED = "cancelled"
WITHDRAWN = "withdrawn"
SAID = "said"
ASKED = "asked"
