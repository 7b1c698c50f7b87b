"""Speed and memory of dosing texts, beside reading and writing the same file line by line.

    python benchmarks/dosing.py [--records N]

All are done in turn, several times, in this process; the best times are compared, of the clock and of the
processor. Peak memory is that of processes of their own, at N records and at N / 10.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from marshtest.data.marks import WORDS, Mark, Pattern
from marshtest.kit.dose import dose

TIMES = 4
PEAK = """
import resource, sys
from pathlib import Path
from marshtest.kit.dose import dose
dose(sys.argv[1], sys.argv[2], fraction=0.01)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def chats(file: Path, count: int) -> Path:
    """`count` chats of two turns, each with an order's number."""
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=30)) for _ in range(2000)]
    with file.open("w", encoding="utf-8") as out:
        for number in range(count):
            answer = f"{texts[number * 7 % 1999]} ORD-{rng.randrange(10**6):06}."
            messages = [
                {"role": "user", "content": texts[number % 2000]},
                {"role": "assistant", "content": answer},
            ]
            out.write(json.dumps({"id": f"r{number}", "messages": messages}) + "\n")
    return file


def by_lines(source: Path, out: Path) -> None:
    with source.open(encoding="utf-8") as lines, out.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def cleared(folder: Path) -> Path:
    """A name for dosed data, with nothing left of an earlier dose."""
    for file in folder.glob("dosed.jsonl*"):
        file.unlink()
    return folder / "dosed.jsonl"


def peak(source: Path, out: Path) -> float:
    """MiB that a process needs that doses a file."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, source, out], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    records = parser.parse_args().records
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = chats(folder / "chats.jsonl", records)

        def dosing(fraction: float, mark: Mark | None = None) -> Callable[[], object]:
            return lambda: dose(source, cleared(folder), fraction=fraction, mark=mark)

        ways: dict[str, Callable[[], object]] = {
            "line by line": lambda: by_lines(source, folder / "lines.jsonl"),
            "template, 0.1 %": dosing(0.001),
            "template, 1 %": dosing(0.01),
        }
        rounds = [[seconds(work) for work in ways.values()] for _ in range(TIMES)]
        best = np.array(rounds).min(0)  # [ways, 2]
        ways["pattern, 0.1 %"] = dosing(0.001, Pattern(pattern=r"ORD-\d{6}"))
        best = np.concatenate([best, [seconds(ways["pattern, 0.1 %"])]])  # once: it takes long
        print(f"{records:,} chats, {source.stat().st_size / 2**20:,.0f} MiB")
        for way, (clock, processor) in zip(ways, best, strict=True):
            print(
                f"{way:16} {clock:6.2f} s {clock / best[0, 0]:6.2f} ×   "
                f"processor {processor:6.2f} s {processor / best[0, 1]:6.2f} ×"
            )
        small = chats(folder / "small.jsonl", records // 10)
        peaks = [peak(file, cleared(folder)) for file in (small, source)]
        print(
            f"peak memory: {peaks[0]:.0f} MiB at {records // 10:,}, {peaks[1]:.0f} MiB at {records:,}"
        )


if __name__ == "__main__":
    main()
