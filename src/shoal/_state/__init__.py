"""State: immutable values, the operations that lead from one to the next, and their types.

- ``state``: ``State``, its operations, ``Change`` and ``replay``. Start here.
- ``collections``: the persistent collections behind ``append`` and ``put``.
- ``plain``: the content of a state as plain dicts and lists.
- ``declaration`` reads a user's model; ``schema`` holds updates to it.
- ``answers``: types of answers to questions, and their JSON schemas; ``json_schema`` holds JSON
  against one.
- ``secrets``: boxes that hide their value, and the refusal of texts that contain a secret.
- ``digest``: a hash of data that is the same in every process.
- ``result``: ``Result``, which a streaming action yields last.
- ``functions``: checks of how a user's function is called.
"""
