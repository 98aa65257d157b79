"""``SQLiteStore``: its ``file`` (layout, migrations, errors), ``database``, and ``store``."""
