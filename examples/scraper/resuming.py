"""What a job that goes on may be told anew: how it crawls, but not what.

Pages that were fetched have been chosen and read by the job's settings, so that a crawl with others
would be half of one and half of another.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

from examples.scraper.settings import Settings

HOW = frozenset(
    {
        "adaptive",
        "allow_private",
        "concurrency",
        "connect_timeout",
        "deadline",
        "format",
        "http2",
        "insecure",
        "out",
        "patience",
        "per_host",
        "rate",
        "read_timeout",
        "retries",
        "timeout",
        "user_agent",
    }
)
"""Settings that may change from one execution of a job to the next."""
FLAGS = {"robots": "ignore_robots"}  # parameters that are not called as their settings are


class Differs(Exception):
    """A job can't go on as it is asked to."""


def taken_over(saved: Settings, asked: Settings, given: AbstractSet[str]) -> Settings:
    """The settings of a job that goes on.

    Args:
        saved: Those it was begun with.
        asked: Those that the command line makes...
        given: ...of the parameters that it names; all others are as they were.

    Raises:
        Differs: They say what to crawl, and differ.
    """
    changes: dict[str, object] = {"deadline": None}  # was for the execution that it was given to
    for name in asked.to_json():
        flag = FLAGS.get(name, name)
        before, now = getattr(saved, name), getattr(asked, name)
        if flag in given and name in HOW:
            changes[name] = now
        elif flag in given and (set(before) != set(now) if name == "urls" else before != now):
            parameter = "URL" if name == "urls" else f"--{flag.replace('_', '-')}"
            raise Differs(
                f"the job was begun with {before!r} as {parameter}, and can't go on with {now!r}: "
                "leave it out, or begin another job"
            )
    return replace(saved, **changes)  # pyright: ignore[reportArgumentType] - of that very type
