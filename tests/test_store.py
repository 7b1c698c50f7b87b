"""The store and its locks: whole or not at all, checked on reading, one owner at a time."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from marshtest.plumbing.derived import hashed
from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps import ledger, locks
from marshtest.sweeps.locks import Driver, Watched
from marshtest.sweeps.store import DamagedError, Store

PLACES = pytest.mark.parametrize("kind", ["folder", "memory"])


def store_of(kind: str, folder: Path) -> Store:
    return Store(str(folder / "store") if kind == "folder" else f"memory://{uuid.uuid4().hex}")


@PLACES
def test_what_is_recorded_is_read_back(kind: str, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path)
    assert not store.exists
    assert store.recorded() == set()
    store.prepare()
    values = {"row": {"a": 0.1 + 0.2, "b": float("nan"), "c": "…"}, "list": [1, 2]}
    store.record("score-1", values, {"x.parquet": b"\x00\x01"})
    again = Store(store.url)
    assert again.recorded() == {"score-1"}
    assert again.is_recorded("score-1")
    assert again.file("score-1", "x.parquet") == b"\x00\x01"
    found = again.load("score-1")
    assert found["row"]["a"] == 0.1 + 0.2  # to the last bit
    assert str(found["row"]["b"]) == "nan"
    assert again.find("stages") == ["stages/score-1/x.parquet"]
    again.forget("score-1")
    assert store.recorded() == set()
    assert store.find("stages") == []


@pytest.mark.parametrize("name", ["stages/k/model", "records/k.json"])
def test_every_flipped_bit_is_noticed(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.record("k", {"seconds": 1.25, "row": {"gus": -0.5}}, {"model": bytes(range(64))})
    file = tmp_path / name
    sound = file.read_bytes()
    for place in range(len(sound)):
        for bit in (0, 3, 6):
            flipped = bytearray(sound)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            if _means_the_same(sound, bytes(flipped)):
                continue
            with pytest.raises(DamagedError) as error:
                store.file("k", "model")
            assert error.value.key == "k"
    file.write_bytes(sound)
    assert store.file("k", "model") == bytes(range(64))
    file.unlink()
    with pytest.raises(DamagedError):
        store.file("k", "model")


def _means_the_same(one: bytes, other: bytes) -> bool:
    """Whether both are the same JSON: other white space."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@PLACES
def test_only_one_of_many_can_create_a_file(kind: str, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path)
    made: list[str] = []

    def create(name: str) -> None:
        if store.create("locks/one", name.encode()):
            made.append(name)

    threads = [
        threading.Thread(target=create, args=(str(i),)) for i in range(8 if kind == "folder" else 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert store.read("locks/one") == made[0].encode()
    assert not store.create("locks/one", b"late")


def test_a_write_that_is_broken_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write("a", b"old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MarshtestError, match="No space left on device") as error:
        store.write("a", b"new")
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert store.read("a") == b"old"


def test_the_hash_is_of_the_values_not_of_their_order() -> None:
    assert hashed({"a": 1, "b": [1.5, None]}) == hashed({"b": [1.5, None], "a": 1})
    assert hashed({"a": 1}) != hashed({"a": 1.5})
    assert len(hashed("x")) == 16


def test_a_newer_store_and_what_is_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format": 99}')
    with pytest.raises(MarshtestError, match=r"newer marshtest \(format 99; this one knows 1\)"):
        Store(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(MarshtestError, match="is not JSON"):
        Store(tmp_path)
    for other in ("[]", '"x"', "null", '{"format": "2"}'):
        (tmp_path / "store.json").write_text(other)
        with pytest.raises(MarshtestError, match="store.json says no format"):
            Store(tmp_path)
    (tmp_path / "store.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(MarshtestError, match="is not empty and holds no store"):
        Store(tmp_path)
    with pytest.raises(MarshtestError, match="store: nonsense://x"):
        Store("nonsense://x")


@PLACES
def test_a_lock_has_one_owner_until_it_is_given_back(kind: str, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path)
    with Driver(store) as one, Driver(store) as other:
        assert one.lock("k")
        assert not other.lock("k")
        assert other.lock("another")
        one.release("k")
        assert other.lock("k")
        assert not one.lock("k")
    assert store.names("locks") == set()
    assert store.names("drivers") == set()


def test_a_killed_drivers_locks_are_free_at_once_on_its_machine(tmp_path: Path) -> None:
    code = f"""
import os, signal
from marshtest.sweeps.locks import Driver
from marshtest.sweeps.store import Store
store = Store({str(tmp_path)!r})
store.prepare()
driver = Driver(store).__enter__()
assert driver.lock("k")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    store = Store(tmp_path)
    assert store.names("locks") == {"k.0"}
    with Driver(store) as driver, Driver(store) as late:
        assert driver.lock("k")
        assert not late.lock("k")
        assert store.names("locks") == {"k.0", "k.1"}
        driver.release("k")
        assert store.names("locks") == set()


def test_a_stage_that_is_begun_while_rubbish_is_looked_for_is_none(tmp_path: Path) -> None:
    """By another driver, between two looks at the store."""
    looked = []

    class Slow(Store):
        def names(self, folder: str) -> set[str]:
            found = super().names(folder)
            looked.append(folder)
            if folder in ("records", "locks"):
                assert other.lock(f"new-{folder}")
                store.write(f"stages/new-{folder}/file", b"")
            return found

    slow, store = Slow(tmp_path), Store(tmp_path)
    store.write("stages/old/file", b"")
    with Driver(store) as other:
        looked.clear()
        assert ledger.rubbish(slow) == ["stages/old"]
    assert looked.index("stages") < looked.index("locks") < looked.index("records")


def test_a_lock_is_held_though_those_before_it_are_gone(tmp_path: Path) -> None:
    """A dead driver's lock that was removed from below must not let the stage be locked again."""
    store = Store(tmp_path)
    store.write("locks/k.0", b"dead")
    with Driver(store) as one, Driver(store) as other:
        assert one.lock("k")
        assert store.names("locks") == {"k.0", "k.1"}
        assert ledger.rubbish(store) == []
        store.remove("locks/k.0")
        assert not other.lock("k")
        assert store.names("locks") == {"k.1"}
        one.release("k")
        assert other.lock("k")


def test_a_stage_that_was_locked_anew_between_look_and_taking_has_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third driver outbids the dead one, gives back, and a fourth begins again at turn 0."""
    store, another = Store(tmp_path), Store(tmp_path)
    store.write("locks/k.0", b"dead")
    with Driver(store) as late, Driver(another) as third, Driver(another) as fourth:
        create = store.create

        def overtaken(name: str, content: bytes) -> bool:
            assert name == "locks/k.1"
            assert third.lock("k")
            third.release("k")
            assert fourth.lock("k")
            return create(name, content)

        monkeypatch.setattr(store, "create", overtaken)
        assert not late.lock("k")
        assert store.names("locks") == {"k.0"}
        assert store.read("locks/k.0") == fourth.id.encode()
        assert not third.lock("k")
    assert store.names("locks") == set()


def interrupted(act: Callable[[], object], line: int) -> bool:
    """Whether Ctrl-C at the so-manieth line of the store's and the locks' code came before the end."""
    lines = 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("locks.py", "store.py", "whole_files.py")):
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_leaves_no_lock_behind_and_takes_no_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dead = {"k.9", "k.10"}  # of which the newest is not the last by its name
    line, came = 0, True
    while came:
        line += 1
        store = Store(tmp_path / str(line))
        for name in dead:
            store.write(f"locks/{name}", b"dead")
        with Driver(store) as other:
            assert other.lock("others")
            with Driver(store) as one:

                def at_work(driver: Driver = one) -> None:
                    assert driver.lock("k")
                    assert not driver.lock("others")
                    driver.release("k")

                came = interrupted(at_work, line)
            locks = {name for name in store.names("locks") if name[0] != "."}
            assert locks - dead == {"others.0"}, line
            assert other.lock("k"), line
    assert line > 100


@pytest.mark.parametrize("content", ["[]", "3", "{}", "", '{"beats": 1}'])
def test_a_drivers_file_of_another_shape_is_of_no_living_driver(
    tmp_path: Path, content: str
) -> None:
    store = Store(tmp_path)
    store.write("drivers/odd", content.encode())
    assert not Watched(store).is_alive("odd")


def test_a_driver_elsewhere_is_dead_when_its_number_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the watcher's own clock: nothing else is asked, so a clock that is set back changes nothing."""
    store, now = Store(tmp_path), [1000.0]
    monkeypatch.setattr(locks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(locks.time, "time", lambda: -now[0])
    watched = Watched(store)

    def beat(beats: int) -> None:
        values = {"place": "elsewhere", "pid": os.getpid(), "began": "1", "beats": beats}
        store.write("drivers/far", json.dumps(values).encode())

    beat(0)
    assert watched.is_alive("far")
    now[0] += locks.DEAD_AFTER - 1
    assert watched.is_alive("far")
    beat(1)
    now[0] += locks.DEAD_AFTER - 1
    assert watched.is_alive("far")
    now[0] += locks.DEAD_AFTER - 1
    assert watched.is_alive("far")
    now[0] += 1
    assert not watched.is_alive("far")
    assert not watched.is_alive("nobody")


def test_a_driver_says_that_it_is_alive(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with Driver(store, beat=0.02) as driver:
        deadline = time.monotonic() + 30
        while json.loads(store.read(f"drivers/{driver.id}"))["beats"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Watched(store).is_alive(driver.id)
    assert not Watched(store).is_alive(driver.id)


def test_of_many_that_lock_a_dead_drivers_stage_one_gets_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("locks/k.0", b"dead")
    drivers = [Driver(store) for _ in range(6)]
    won: list[str] = []

    def lock(driver: Driver) -> None:
        if driver.lock("k"):
            won.append(driver.id)

    for driver in drivers:
        driver.__enter__()
    threads = [threading.Thread(target=lock, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    for driver in drivers:
        driver.__exit__()
