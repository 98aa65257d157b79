"""Errors: the exception tree, the parts of error messages, and checks of arguments.

This package imports nothing else of shoal.

- ``exceptions``: every exception that shoal raises; ``brief``, ``note`` and ``did_you_mean`` build
  their messages.
- ``tracebacks``: leaves the frames of shoal out of what a run raises.
- ``inspection``: questions about a user's exception, answered without running its own code.
- ``misplaced``: what a function says of an argument that belongs elsewhere.
- ``completion``: what ``dir`` of a public class shows; here because each package needs it.
- ``arguments``: checks of numbers that users give.
"""
