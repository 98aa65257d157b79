"""The runtime: the objects that a program holds on to.

- ``application``: ``Application``. ``inputs`` checks what runs are given, ``launch`` begins them.
- ``runtime``: ``Runtime``, which runs share. ``registry``: the root runs that it executes.
- ``start``: what a root run starts from. ``root_run``: its way from claim to release.
- ``handle``: ``RunHandle``. ``open_run``: ``OpenRun``. ``result``: ``RunResult``.
- ``recovery`` finds and resumes the runs of dead processes.
"""
