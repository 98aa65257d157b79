"""Three small applications with planted bugs, which `shoal.testing` has to find.

Each module has ``application(bug)``, the application with one bug, or without any by default;
``INPUTS``, which makes the fakes that it talks to; ``STATE``, and ``check``, what must hold.
"""
