"""`python -m maxk_lightning` again and again without the seconds that its imports take: for tests that kill it often.

Reads one JSON list of arguments per line; runs the command in a fork, prints its process id, and when it has ended the
signal that killed it (0: none).
"""

import json
import os
import runpy
import sys
import threading

from tqdm import tqdm

import maxk_lightning.commands.evaluate.policy  # noqa: F401  (what takes long)


def main() -> None:
    """Serve until standard input ends."""
    # A fork that is killed while it holds tqdm's lock between processes would stop all that come after it.
    tqdm.set_lock(threading.RLock())
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = ["maxk_lightning", *json.loads(line)]
            runpy.run_module("maxk_lightning", run_name="__main__", alter_sys=True)
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
