"""Who is at work on what, so that two drivers on one store do not do one stage twice.

A driver is a running command. It writes a file that says where it runs and that it is alive: a number
that grows every BEAT seconds. A stage is locked by the file KEY.0, which only one driver can create. A
dead driver's lock is outbid by creating KEY.1, and so on, which again only one can do.

A driver on the same machine is dead when its process is. One elsewhere is dead when its number stood still
for DEAD_AFTER seconds by the watcher's own monotonic clock; no wall clock is read, so none can mislead.
"""

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Self

from marshtest.plumbing.errors import MarshtestError
from marshtest.sweeps.store import Store

BEAT = 5.0  # seconds
DEAD_AFTER = 60.0  # seconds, a dozen beats: a network's file system may show them late


class Driver:
    """A running command's locks on a store; used as a context, at whose end they are released."""

    def __init__(self, store: Store, beat: float = BEAT) -> None:
        self.store, self.beat = store, beat
        self.id = uuid.uuid4().hex[:12]
        # Keys, from before a lock is taken until after it is gone, so that no interrupt leaves one behind.
        self._held: set[str] = set()
        self._watched = Watched(store)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Self:
        # Before any lock: a driver without a file of its own counts as dead.
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        # A store that cannot be written keeps the locks; that this process is gone frees them as well.
        with contextlib.suppress(MarshtestError):
            for key in list(self._held):
                self.release(key)
            self.store.remove(f"drivers/{self.id}")

    def _live(self) -> None:
        beats = 0
        while not self._stop.wait(self.beat):
            beats += 1
            with contextlib.suppress(MarshtestError):  # a full disk is the driver's to report
                self._write(beats)

    def _write(self, beats: int) -> None:
        values = {
            "place": _place(),
            "pid": os.getpid(),
            "began": _began(os.getpid()),
            "beats": beats,
        }
        self.store.write(f"drivers/{self.id}", json.dumps(values).encode())

    def lock(self, key: str) -> bool:
        """Lock a stage; False where a living driver holds it."""
        while True:
            # Looked at first: the latest counts, and those before it may have been taken away.
            turns = self._turns(key)
            latest = turns[-1] if turns else -1
            if turns and self._watched.is_alive(self._holder(key, latest)):
                return False
            self._held.add(key)
            if self.store.create(f"locks/{key}.{latest + 1}", self.id.encode()):
                # Since the look it may have been outbid, given back and locked anew: the lower turn stays.
                now = self._turns(key) if turns else []
                before = (self._holder(key, turn) for turn in now if turn <= latest)
                if not any(map(self._watched.is_alive, before)):
                    return True
                self.release(key)
                return False
            self._held.remove(key)

    def release(self, key: str) -> None:
        """Give a lock back, and remove those of dead drivers before it."""
        turns = self._turns(key)
        if turns and self._holder(key, turns[-1]) == self.id:
            for turn in turns:  # the newest last, so that no dead one stands again
                holder = self._holder(key, turn)
                if holder == self.id or not self._watched.is_alive(holder):
                    self.store.remove(f"locks/{key}.{turn}")
        self._held.discard(key)

    def _turns(self, key: str) -> list[int]:
        """Numbers of a stage's locks, in their order."""
        pairs = (name.rpartition(".") for name in self.store.names("locks"))
        return sorted(int(turn) for name, _, turn in pairs if name == key)

    def _holder(self, key: str, turn: int) -> str:
        try:
            return self.store.read(f"locks/{key}.{turn}").decode()
        except FileNotFoundError:  # released meanwhile
            return ""


class Watched:
    """Which drivers are alive, as far as can be seen from here."""

    def __init__(self, store: Store, dead_after: float = DEAD_AFTER) -> None:
        self.store, self.dead_after = store, dead_after
        self._seen: dict[str, tuple[int, float]] = {}  # by driver: its number, and since when

    def is_alive(self, driver: str) -> bool:
        """Whether a driver is at work still."""
        values = self._read(driver)
        if values is None:
            return False
        place, pid, began, latest = values
        if place == _place():
            # By its beginning too: the number of a dead process may be another's by now.
            return bool(_began(pid) == began)
        beats, since = self._seen.get(driver, (-1, 0.0))
        now = time.monotonic()
        # At first sight it counts as alive: that a number stands still takes a second look.
        if latest != beats:
            self._seen[driver] = (latest, now)
            return True
        return now - since < self.dead_after

    def elsewhere(self) -> bool:
        """Whether there are drivers of another place that count as alive, as all do at first sight."""
        # Each is looked at, so that a second look can tell.
        seen = [self._is_elsewhere(driver) for driver in self.store.names("drivers")]
        return any(seen)

    def _is_elsewhere(self, driver: str) -> bool:
        values = self._read(driver)
        return values is not None and values[0] != _place() and self.is_alive(driver)

    def _read(self, driver: str) -> tuple[Any, Any, Any, Any] | None:
        """Place, process number, beginning and beats of a driver; None if there is none."""
        try:
            values = json.loads(self.store.read(f"drivers/{driver}"))
            return values["place"], values["pid"], values["began"], values["beats"]
        except (FileNotFoundError, ValueError, KeyError, TypeError, IsADirectoryError):
            return None


def _place() -> str:
    """What tells machines apart: name, boot, and the namespace of their process numbers."""
    # After another boot, or in another container, a process number means another process.
    parts = [platform.node()]
    for file in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            parts.append(os.readlink(file) if "/ns/" in file else Path(file).read_text().strip())
    return " ".join(parts)


def _began(pid: int) -> str | None:
    """When a process of this machine was started, in the system's units; None if there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        # Fields 3 and 22 of proc(5), counted from the last bracket: a process may have brackets and
        # blanks in its name, which is field 2. A zombie (Z) is dead, and only not yet buried.
        state, began = (status.rpartition(")")[2].split()[place] for place in (0, 19))
        return None if state in "ZX" else began
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)  # no /proc here: that the number is taken must do
    except PermissionError:
        return "running"
    except OSError:
        return None
    return "running"
