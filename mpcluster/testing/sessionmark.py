"""What the controller has execnet run in a worker to start xdist's session there.

A forked worker has no need to be sent a program: it knows this one by the name of its file
and runs :meth:`mpcluster.testing.worker.WorkerSide.run_session` instead.
"""

if __name__ == "__channelexec__":
    raise RuntimeError("only a forked worker of mpcluster can run a session")
