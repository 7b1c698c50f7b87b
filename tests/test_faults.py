"""Faults that are really made: kills, a full and a read-only disk, flipped bits, two drivers at once."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import yaml
from conftest import ENVIRONMENT, GRID, MARSHTEST, TINY, in_a_small_disk, rows_of

import marshtest
from marshtest.cli.app import raise_again
from marshtest.commands.sweep import Swept, sweep
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.progress import silent
from marshtest.sweeps import ledger
from marshtest.sweeps.engines import attempt
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.store import DamagedError, Store

Done = tuple[Swept, Store]


def killed(folder: Path, kills: int, drivers: int, seed: int) -> list[str]:
    """Run the sweep under kills; the keys of what was recorded, in their order."""
    (folder / "sweep.json").write_text(json.dumps(GRID))
    script = Path(__file__).with_name("killing.py")
    where = [str(folder / name) for name in ("store", "out", "sweep.json")]
    numbers = [str(number) for number in (kills, drivers, seed)]
    said = subprocess.run(
        [sys.executable, str(script), *where, *numbers],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout == f"{kills} kills\n"
    return Path(f"{folder / 'store'}.log").read_text().split()


def unharmed(folder: Path, expected: pd.DataFrame) -> None:
    """The rows are those of an undisturbed sweep, and after `clean` there is no litter."""
    store = Store(folder / "store")
    (id,) = ledger.sweeps(store)
    planned = ledger.Ledger.read(store, id)
    found, damaged = ledger.rows(store, planned)
    assert not damaged
    pd.testing.assert_frame_equal(
        pd.DataFrame(found)[list(expected.columns)], expected, check_dtype=False, check_exact=True
    )
    for name in ledger.rubbish(store):
        store.remove(name)
    assert store.recorded() == planned.keys == store.names("stages")
    kinds = Counter(name.split("/")[0] for name in store.find(""))
    assert set(kinds) == {"store.json", "records", "stages", "sweeps"}
    assert not [name for name in store.find("") if name.endswith(".tmp")]
    assert sweep(GRID, store=store.url, out=folder / "again").done == 0


@pytest.mark.slow
def test_a_stage_that_is_damaged_whenever_it_was_made_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an unlearner, or another program, removes what is in the store."""
    whole = Store.load

    def gone(self: Store, key: str) -> dict[str, Any]:
        if key.startswith("score-"):
            raise DamagedError(key, "record")
        return whole(self, key)

    monkeypatch.setattr(Store, "load", gone)
    with pytest.raises(MarshtestError, match=r"record was made 3 times and is damaged again. Look"):
        sweep(GRID, store=str(tmp_path / "store"), out=tmp_path / "out")


@pytest.mark.slow
def test_kills_at_random_moments_cost_nothing_that_was_recorded(
    swept: Done,
    tmp_path: Path,
) -> None:
    made = killed(tmp_path, kills=15, drivers=1, seed=1)
    assert max(Counter(made).values()) == 1  # no stage was made twice after it was recorded
    unharmed(tmp_path, rows_of(swept[0]))


@pytest.mark.slow
def test_two_drivers_at_once_share_the_work_under_kills_too(
    swept: Done,
    tmp_path: Path,
) -> None:
    made = killed(tmp_path, kills=6, drivers=2, seed=2)
    assert max(Counter(made).values()) == 1
    unharmed(tmp_path, rows_of(swept[0]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["initial", "updated", "score"])
def test_a_flipped_bit_is_noticed_and_what_it_hit_is_made_again(
    kind: str,
    swept: Done,
    tmp_path: Path,
) -> None:
    """In a stored model, or a score; scores that rest on the model are taken away, so that it is read."""
    done, whole = swept
    shutil.copytree(whole.url, tmp_path / "store")
    store = Store(tmp_path / "store")
    victim = sorted(key for key in store.recorded() if key.startswith(f"{kind}-"))[0]
    (file,) = (tmp_path / "store" / "stages" / victim).iterdir()
    flipped = bytearray(file.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    file.write_bytes(flipped)
    if kind != "score":
        for key in store.recorded():
            if key.startswith("score-"):
                store.forget(key)
    said: list[str] = []
    again = sweep(
        GRID,
        store=store.url,
        out=tmp_path / "new",
        progress=lambda share, text="": said.append(text),
    )
    damaged = [line for line in said if "is damaged, so it is made again" in line]
    assert len(damaged) == 1
    assert damaged[0].startswith(f"{victim} {file.name}")
    assert again.damaged == [f"{victim} {file.name}"]
    pd.testing.assert_frame_equal(rows_of(again), rows_of(done), check_exact=True)
    assert Store(store.url).file(victim, file.name) != bytes(flipped)


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(
    swept: Done,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    planned = swept[0].ledger
    with Driver(store) as living:
        here = json.loads(store.read(f"drivers/{living.id}"))
    dead = {**here, "pid": 1, "began": "0", "beats": 10**9}
    store.write("drivers/dead", json.dumps(dead).encode())
    store.write(f"locks/{planned.jobs[0].makes[0]}.0", b"dead")
    now = [2e9]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    done = sweep(GRID, store=store.url, out=tmp_path / "out")
    pd.testing.assert_frame_equal(rows_of(done), rows_of(swept[0]), check_exact=True)


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_one_are_one_line_and_lose_nothing(
    swept: Done,
    tmp_path: Path,
) -> None:
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    said = in_a_small_disk(
        """
        $RUN sweep grid.yaml --store $DISK/store || echo full $?
        find $DISK -name '*.tmp' | wc -l
        ls $DISK/store/records > before
        mount -o remount,size=50m,ro $DISK
        $RUN sweep grid.yaml --store $DISK/store || echo read-only $?
        mount -o remount,rw $DISK
        $RUN sweep grid.yaml --store $DISK/store || echo mended $?
        $RUN rows --store $DISK/store --out rows.parquet
        """,
        tmp_path,
    )
    assert "full 2\n0\nread-only 2\n" in said.stdout, said
    assert "mended" not in said.stdout
    errors = [line for line in said.stderr.splitlines() if line.startswith("marshtest: ")]
    assert len(errors) == 2
    assert "cannot be written (No space left on device). Make room" in errors[0]
    assert "cannot be written (Read-only file system)." in errors[1]
    assert "Traceback" not in said.stderr
    kept = (tmp_path / "before").read_text().split()
    assert f"{len(swept[0].ledger.jobs) - _jobs(kept, swept[0])} jobs done" in said.stdout
    expected = rows_of(swept[0])
    found = pd.read_parquet(tmp_path / "rows.parquet")[list(expected.columns)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=True)


def _jobs(records: list[str], done: Swept) -> int:
    """How many jobs are done where these records are there."""
    keys = {name.removesuffix(".json") for name in records}
    return sum(keys.issuperset(job.makes) for job in done.ledger.jobs)


def _hear_ctrl_c() -> None:
    """What a shell starts in the background ignores it, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_that_a_library_takes_for_an_error_of_ours_is_ctrl_c() -> None:
    def worker(job: Any, progress: Any) -> str:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as stop:  # as pydantic does where a serializer is interrupted
            raise ValueError("Error calling function") from stop
        return ""

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            attempt(cast(Any, worker), cast(Any, None), silent)
    finally:
        signal.signal(signal.SIGINT, before)


class Interrupted:
    """What is interrupted as it is destroyed: Python prints the error, and goes on."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_came_in_a_destructor_is_ctrl_c(
    heard: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def worker(job: Any, progress: Any) -> str:
        Interrupted()
        return ""

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
    with pytest.raises(KeyboardInterrupt):
        attempt(cast(Any, worker), cast(Any, None), silent)
    monkeypatch.setattr(sys, "unraisablehook", raise_again)
    with pytest.raises(KeyboardInterrupt):
        Interrupted()
        time.sleep(20)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "asked"), [("in-process", signal.SIGINT), ("processes", signal.SIGTERM)]
)
def test_ctrl_c_and_a_polite_end_leave_a_line_that_says_how_to_go_on(
    engine: str, asked: signal.Signals, tmp_path: Path
) -> None:
    slow = {**GRID, "recipe": {**GRID["recipe"], "seeds": 100}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(slow))
    process = subprocess.Popen(
        [*MARSHTEST, "sweep", "grid.yaml", "--store", "store", "--engine", engine],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,
    )
    store = Store(tmp_path / "store")
    deadline = time.monotonic() + 120
    while len(store.recorded()) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(asked)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        said.splitlines()[-1] == "marshtest: stopped; the same command goes on where this one was."
    )
    assert "Traceback" not in said
    assert store.names("locks") == set()
    assert store.names("drivers") == set()


# Runs


ASKED: dict[str, Any] = {
    **TINY,
    "unlearners": ["retrain", {"name": "gd", "lr": 1e-3}],
    "reference": True,
    "metrics": ["membership"],
}
BESIDE: dict[str, dict[str, Any]] = {
    "repeats": {"repeats": 16},
    "states": {
        "data": {**TINY["data"], "validation": 0.2},
        "states": ["int8", {"trained_on": 1}],
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("key", BESIDE)
def test_a_run_that_was_killed_three_times_gives_the_rows_of_an_undisturbed_one(
    key: str, tmp_path: Path
) -> None:
    recipe = {**ASKED, **BESIDE[key]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    script = Path(__file__).with_name("killing_runs.py")
    moments = {"repeats": ["40", "100", "200"], "states": ["10", "20", "20"]}[key]
    where = [str(tmp_path / name) for name in ("recipe.json", "killed")]
    said = subprocess.run(
        [sys.executable, str(script), *where, *moments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert said.stdout == "3 kills\n", said.stderr
    whole = marshtest.run(recipe, out=tmp_path / "whole", report=False).folder
    for name in ("rows", "scores", "shifts"):
        expected, rows = (
            pd.read_parquet(folder / f"{name}.parquet").drop(
                columns=["seconds", "scoring_seconds"], errors="ignore"
            )
            for folder in (whole, tmp_path / "killed")
        )
        pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    assert sorted(file.name for file in (tmp_path / "killed").iterdir()) == sorted(
        file.name for file in whole.iterdir()
    )
