"""Graphs: everything that users declare. Nothing here executes a step or imports the engine.

- ``act``: what a run executes as a step. ``action``, ``action_class``: actions, made of functions
  or classes.
- ``graph``, ``dataflow``, ``condition``: the order of actions, and the fields along edges.
- ``parallel``: the base of all parallel acts. ``fan_out``, ``race`` and ``task_classes`` are three
  ways to write one; ``acts`` and ``checks`` check the arguments.
- ``reach``: the actions that a graph may call, where, and in which limits; checked before a run.
- ``sketch``: what an act says of itself for drawings. ``picture`` makes figures of that.
- ``until``: the conditions that end a fan-out. ``policy``: its reactions to failures and delays.
"""
