"""Sweeps in processes that are killed: python killing.py STORE OUT SWEEP.json KILLS DRIVERS SEED

Forks DRIVERS processes at a time that run the sweep on STORE, and kills them at random moments, KILLS
times in all; then lets one finish. Every stage that is recorded is noted in STORE.log, behind its record.
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

from marshtest.commands.sweep import sweep
from marshtest.sweeps.store import Store
from marshtest.training import aside


def main(store: str, out: str, asked: str, kills: int, drivers: int, seed: int) -> None:
    torch.set_num_threads(1)
    aside.EVERY = 0.0  # so that kills come between the states of a training
    log = Path(f"{store}.log")
    record = Store.record

    def noted(self: Store, key: str, *rest: Any) -> None:
        record(self, key, *rest)
        with log.open("a") as file:
            file.write(f"{key}\n")

    Store.record = noted  # type: ignore[method-assign]
    values = json.loads(Path(asked).read_text())
    draws, killed = random.Random(seed), 0
    running: dict[int, float] = {}
    while killed < kills or not running:
        while len(running) < drivers:
            running[_driver(values, store, out)] = time.monotonic() + draws.uniform(0.05, 0.5)
        for pid, due in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                sys.exit(f"a driver ended by itself after {killed} kills, status {status}")
            if killed < kills and time.monotonic() >= due:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                del running[pid]
                killed += 1
        time.sleep(0.005)
    while len(running) < drivers:
        running[_driver(values, store, out)] = 0.0
    for pid in running:
        _, status = os.waitpid(pid, 0)
        if status:
            sys.exit(f"a driver failed: {status}")
    print(f"{killed} kills")


def _driver(values: dict[str, Any], store: str, out: str) -> int:
    """A forked process that runs the sweep; its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ended = sweep(values, store=store, out=f"{out}-{os.getpid()}")
        status = 0 if not ended.failed and not ended.blocked else 3
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    paths, numbers = sys.argv[1:4], map(int, sys.argv[4:])
    main(*paths, *numbers)  # type: ignore[arg-type]
