"""The first process of a host of the lab: it keeps the host's name spaces and buries the dead, nothing else.

Host and everything on it end with this process; it ends with whoever started it (``unshare --kill-child``).
"""

import os
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("ready", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
