"""Commands at the same time, each forked from one process with all libraries: python forking.py COMMAND...

Prints their exit codes, in increasing order.
"""

import os
import shlex
import sys

from marshtest.cli.app import main
from marshtest.commands import run
from marshtest.reporting import write

IMPORTED = (run, write)  # before the fork


def _forked(command: str) -> int:
    """A process that gives a command; its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.argv = ["marshtest", *shlex.split(command)]
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    begun = [_forked(command) for command in sys.argv[1:]]
    print(*sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in begun))
