"""What stores in SQL databases have in common.

- ``store``: opening and closing, and which thread does what. ``writer_thread``: the writing thread.
- ``rows`` turns a save into rows, ``unpacking`` rows into what a store returns. Neither knows SQL.
- ``reading``, ``writing``, ``results``, ``pruning``, ``browsing``: statements that databases share;
  ``dialect`` names the differences.
- ``leases``, ``holders``: which process executes a run, and until when.
- ``sizes``: how large an update may be. ``error_texts``: short texts of saved errors.
"""
