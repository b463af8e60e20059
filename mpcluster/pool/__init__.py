"""Pools of workers: the same work as ``multiprocessing.Pool``, and a worker's death costs one task.

::

    records     the form of orders and answers
    ring        memory that a pool and a worker share
    worker      the worker's side
    functions   what the workers know
    results     what a program holds of work under way
    failures    the errors that calls get
    imap        results one after the other
    reader      the thread that reads an input of imap
    engine      the seam to what runs calls
    link        a pool's end of the line to one worker
    sending     calls on their way to a worker
    roster      which call goes to which worker
    attendant   the pool's own thread
    turn        which thread waits for answers
    intake      answers as they come in
    overseer    calls that take too long
    burial      what a dead worker leaves
    dispatch    who runs what, on this machine
    template    where replacements come from
    crew        there are always so many workers
    progress    how far a map has come
    pool        ClusterPool
    executor    ClusterExecutor
"""
