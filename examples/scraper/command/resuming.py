"""Decides which settings a resumed job may change: how it crawls and how many pages, but not what.

The fetched pages were selected and read by the job's settings. With different settings, one half of
the crawl would not match the other.
"""

from collections.abc import Set as AbstractSet
from dataclasses import replace

from examples.scraper.settings import Settings

HOW = frozenset(
    {
        "adaptive",
        "allow_private",
        "auth_env",
        "concurrency",
        "connect_timeout",
        "deadline",
        "format",
        "headers",
        "http2",
        "insecure",
        "max_pages",
        "out",
        "patience",
        "per_host",
        "proxy",
        "rate",
        "read_timeout",
        "retries",
        "timeout",
        "user_agent",
    }
)
"""Settings that may change from one execution of a job to the next."""
FLAGS = {
    "headers": "header",
    "robots": "ignore_robots",
}  # parameters with other names than their settings


class Differs(Exception):
    """A job can't be resumed with the requested settings."""


def taken_over(saved: Settings, asked: Settings, given: AbstractSet[str]) -> Settings:
    """Return the settings of a resumed job.

    Args:
        saved: The settings of the job.
        asked: The settings from the command line...
        given: ...and the parameters that were given; all other settings stay as saved.

    Raises:
        Differs: A setting that says what to crawl is different.
    """
    changes: dict[str, object] = {"deadline": None}  # it applied only to its own execution
    for name in asked.to_json():
        flag = FLAGS.get(name, name)
        before, now = getattr(saved, name), getattr(asked, name)
        if flag in given and name in HOW:
            changes[name] = now
        elif flag in given and (set(before) != set(now) if name == "urls" else before != now):
            parameter = "URL" if name == "urls" else f"--{flag.replace('_', '-')}"
            raise Differs(
                f"the job was begun with {before!r} as {parameter}, "
                f"and can't continue with {now!r}: "
                "leave it out, or begin another job"
            )
    return replace(saved, **changes)  # pyright: ignore[reportArgumentType] - of that very type
