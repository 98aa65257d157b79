"""Graphs: everything that users declare. Nothing here executes anything or imports the engine.

- ``action``, ``action_class``: actions, made of functions or classes.
- ``graph``, ``dataflow``, ``condition``: the order of actions, and the fields along edges.
- ``parallel``: what all parallel actions declare. ``fan_out``, ``race`` and ``task_classes`` are
  three ways to write one; ``acts`` and ``checks`` refuse mistakes.
- ``until``: when a fan-out is decided. ``policy``: what a failure does to it.
"""
