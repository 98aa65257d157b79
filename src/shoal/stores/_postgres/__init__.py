"""``PostgresStore``.

``server`` is one connection, ``schema`` the tables, ``keys`` and ``claims`` the columns and locks
that only PostgreSQL has, ``database`` the transactions, and ``store`` the class.
"""
