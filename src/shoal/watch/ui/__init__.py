"""A page over the runs of a store, for a browser. Needs ``shoal[web]``.

``create_app(store)`` returns a Starlette application, which ``shoal ui`` serves and which can be
mounted in others. Pages are rendered here: HTML, with one stream of server-sent events for each
open page, and no script besides htmx, which is part of this package. So it works without a network,
and every page without a script.

The modules, from the bottom up:

- ``_format``: numbers, times and keys for people. ``_urls``: addresses of pages.
- ``_charts``: bars, histograms and timelines. ``_steps``: the bars of a run's steps.
- ``_forms``: forms made of JSON schemas.
- ``_acts``: what a run executes. ``_titles``: titles of children, where that is known.
- ``_questions``: how an open question is shown. ``_secrets``: the secret fields of a run.
- ``_commands``: what forms ask for.
- ``_pages``: what each page shows. ``_rendering``: templates and static files.
- ``_guard``: hosts, the token, headers. ``_streams``: streams that keep pages current.
- ``_app``: the application. ``_serve``: a server that ends although streams are open.
"""

from __future__ import annotations

try:
    from ._app import create_app
except ModuleNotFoundError as _missing:
    if (_missing.name or "").startswith("shoal"):
        raise  # a defect of ours, and no package that is missing
    _msg = f"shoal.watch.ui needs {_missing.name}: pip install 'shoal[web]'"
    raise ModuleNotFoundError(_msg, name=_missing.name) from None

__all__ = ["create_app"]
