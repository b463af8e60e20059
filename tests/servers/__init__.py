"""Servers as people write them, knowing nothing of mpcluster. Arguments: host and port.

Each answers every request with the id of its process.
"""
