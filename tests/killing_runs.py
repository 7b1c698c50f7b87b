"""A run that is killed: python killing_runs.py RECIPE.json OUT AT...

Forks a process that runs the recipe into OUT and kills it a moment after its AT-th report of progress; so
for each AT. Then lets one finish. Prints how often a run was killed.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

import marshtest
from marshtest.training import aside


def main(asked: str, out: str, *moments: str) -> None:
    torch.set_num_threads(1)
    aside.EVERY = 0.0  # so that kills come between the states of a training
    values, draws = json.loads(Path(asked).read_text()), random.Random(0)
    for moment in map(int, moments):
        reached, tell = os.pipe()
        pid = _runner(values, out, moment, tell)
        os.close(tell)
        os.read(reached, 1)
        os.close(reached)
        time.sleep(draws.uniform(0, 0.02))  # no report is a moment of the run's own choice
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"a run ended by itself before report {moment}, status {status}")
    _, status = os.waitpid(_runner(values, out), 0)
    if status:
        sys.exit(f"the last run failed: {status}")
    print(f"{len(moments)} kills")


def _runner(values: dict[str, Any], out: str, moment: int = 0, tell: int = -1) -> int:
    """A forked process that runs the recipe and tells when it has reported so often; its number."""
    pid = os.fork()
    if pid:
        return pid
    status, reports = 1, 0

    def heard(share: float, line: str) -> None:
        nonlocal reports
        reports += 1
        if reports == moment:
            os.write(tell, b".")

    try:
        marshtest.run(values, out=out, report=False, progress=heard)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
