"""Ray on two local nodes: the same rows as in-process, bit for bit, and a killed worker costs nothing."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import GRID, rows_of
from ray.cluster_utils import Cluster

from marshtest.commands.sweep import Swept, sweep
from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps.store import Store

pytestmark = pytest.mark.slow

Done = tuple[Swept, Store]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield str(nodes.address)
    nodes.shutdown()


def workers_at_work() -> list[int]:
    """Processes of this machine in which Ray runs a job of ours."""
    found = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 1) for line in found.stdout.splitlines()]
    return [int(line[0]) for line in lines if line[-1].startswith("ray::work")]


def test_two_nodes_give_the_same_rows_though_a_worker_is_killed(
    cluster: str,
    swept: Done,
    tmp_path: Path,
) -> None:
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.is_set():
            for pid in workers_at_work()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        where = {"store": tmp_path / "store", "out": tmp_path / "out"}
        done = sweep(GRID, engine="ray", address=cluster, **where)
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1
    assert not done.failed
    pd.testing.assert_frame_equal(rows_of(done), rows_of(swept[0]), check_exact=True)


def test_resources_that_no_node_has_are_refused_at_the_start(cluster: str, tmp_path: Path) -> None:
    asked = {**GRID, "resources": {"train": {"cpus": 2, "gpus": 1}}}
    with pytest.raises(
        MarshtestError, match=r"resources.train: asks for 2 CPUs and 1 GPUs, and no node"
    ):
        sweep(asked, store=tmp_path / "s", out=tmp_path / "o", engine="ray", address=cluster)
