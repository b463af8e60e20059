"""CPython's own tests of multiprocessing, run against mpcluster."""
