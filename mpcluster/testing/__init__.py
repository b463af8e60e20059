"""pytest-xdist on forked workers: what ``pytest -n 4 --mpcluster`` does.

Three kinds of processes::

    controller    the pytest that was started: xdist's session, schedulers and reports
      └ template  forked from it once everything is loaded and before anything is configured;
        │         one thread, waits for orders; in mode ``collect`` it also collects the tests
        ├ gw0     a worker, forked from the template: configures, collects and runs tests as
        └ gw1     a worker of xdist does

The workers are no ``ClusterProcess``: the program under test must find itself in an ordinary
main process, where ``cluster.is_master`` holds and ``multiprocessing`` has no parent. They
share with one what it is made of: the fork, the leash, the table of descriptors.

The modules, lowest first::

    orders      what controller, template and workers say to each other
    seams       what of pytest-xdist and execnet is used, and a check that it is there
    capture     pytest's capturing across a fork
    safety      what a fork cannot take along: threads, loops, connections
    packing     what they say, as bytes that execnet passes on
    line        the stream between execnet's two ends, and how a worker ended
    gateways    execnet's group, with gateways to forked workers
    terminal    one worker at a time has the terminal (``--pdb``)
    sessionmark what execnet is asked to run in a worker
    worker      a worker: from the fork to the session to the end
    shared      session fixtures that are made once
    collecting  mode ``collect``: the session up to the fork
    template    the process that forks
    crashes     what is said of a worker that died
    output      what workers write to the terminal
    events      xdist's queue of events, seen first by us
    controller  the plugin in the controller
    run         around the whole run
"""
