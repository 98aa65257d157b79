"""``PostgresStore``: keep runs in a PostgreSQL database.

- ``server``: a connection, and the meaning of errors. ``schema``: the tables and migrations.
- ``keys``: keys and leases as columns. ``claims``: claiming, renewing and releasing runs.
- ``database``: the writer's transactions, and the order of locks. ``store``: the public class.
"""
