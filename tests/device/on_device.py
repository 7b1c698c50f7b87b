"""Puts any tests on the simulated device: `pytest -p cuda_guard -p on_device tests/test_run.py`.

The process's child processes have no such device; tests that compare theirs with this process's fail.
"""

from collections.abc import Iterator

import pytest
from simulated_cuda import SimulatedCuda


@pytest.fixture(scope="session", autouse=True)
def _on_the_device(_one_thread: None) -> Iterator[None]:
    with SimulatedCuda():
        yield
