"""``pytest --mpcluster``, run as a user runs it."""
