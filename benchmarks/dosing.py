"""Speed and memory of dosing texts, beside reading and writing the same file line by line.

    python benchmarks/dosing.py [--records N]

Each is done in turn, several times, in this process; best times are compared. Peak memory is that of
processes of their own, at N records and at N / 10.
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

from marshtest.data.marks import WORDS, Pattern
from marshtest.kit.dose import dose

TIMES = 3
FRACTION = 0.01
PEAK = """
import resource, sys
from pathlib import Path
from marshtest.data.marks import Pattern
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


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


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
        ways: dict[str, Callable[[], object]] = {
            "line by line": lambda: by_lines(source, folder / "lines.jsonl"),
            "template": lambda: dose(source, cleared(folder), fraction=FRACTION),
            "pattern": lambda: dose(
                source, cleared(folder), fraction=FRACTION, mark=Pattern(pattern=r"ORD-\d{6}")
            ),
        }
        best = {way: min(seconds(work) for _ in range(TIMES)) for way, work in ways.items()}
        print(f"{records:,} chats, {source.stat().st_size / 2**20:,.0f} MiB, {FRACTION:.0%} dosed")
        for way, time_taken in best.items():
            print(f"{way:14} {time_taken:6.2f} s  {time_taken / best['line by line']:5.2f} ×")
        small = chats(folder / "small.jsonl", records // 10)
        peaks = [peak(file, cleared(folder)) for file in (small, source)]
        print(
            f"peak memory: {peaks[0]:.0f} MiB at {records // 10:,}, {peaks[1]:.0f} MiB at {records:,}"
        )


if __name__ == "__main__":
    main()
