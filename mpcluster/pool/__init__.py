"""Pools of workers: the same work as ``multiprocessing.Pool``, and a worker's death costs one task.

::

    records     the form of orders and answers
    ring        memory that a pool and a worker share
    worker      the worker's side
    functions   what the workers know
    calls       work, as what runs it sees it
    runs        calls of a map that travel together
    results     what a program holds of a call
    mapresult   what a program holds of a map
    failures    the errors that calls get
    arrivals    results of imap that have come
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
    making      how a worker's process is made
    verbs       apply, map, imap and their kin
    quiet       when nothing is left to do
    progress    how far a map has come
    pool        ClusterPool
    executor    ClusterExecutor
"""
