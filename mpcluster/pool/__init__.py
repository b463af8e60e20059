"""Pools of workers: the same work as ``multiprocessing.Pool``, and a worker's death costs one task.

::

    records     the form of orders and answers
    ring        memory that a pool and a worker share
    worker      the worker's side
    functions   what the workers know
    results     what a program holds of work under way
    imap        results one after the other
    engine      the seam to what runs calls
    link        a pool's end of the line to one worker
    dispatch    who runs what, on this machine
    crew        there are always so many workers
    progress    how far a map has come
    pool        ClusterPool
    executor    ClusterExecutor
"""
