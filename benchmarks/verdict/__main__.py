"""How often the verdict is wrong, and how often it acquits who deserves it, by simulation.

    python benchmarks/verdict [--repetitions 2000] [--markdown FILE]

NumPy draws scores and effects from stated truths. The rule is written out a second time, in rule.py, for
many repetitions at once and without marshtest; of every scenario a few repetitions are also handed to
marshtest, whose answers must be the same. A scenario whose pilot (not counted) shows an error rate near
5 % is repeated four times as often.
"""

import argparse
import time
from pathlib import Path

from scenarios import acquittals, cheats, independent, paired, unrested

PAGE = """# Error rates of the verdict

How often each answer is false where the truth is known, by simulation, and how often a model that never
saw the poison is REMOVED. `python benchmarks/verdict --markdown docs/verdict-rates.md` writes this page.
A share is held if the lower end of its exact interval is at most what is promised and the upper end at most
6.5 %; one of power, if it is 90 % or more. A limit is promised by nobody: the poisons, or the trainings,
are too few for a test to tell, what is left is within the margin, or the scores lie exactly against the
initial ones, where the level is above 5 % ([mathematics](mathematics.md#the-verdict)). *A fifth* is the
margin; sizes and initial effects are those of the recipes named.
"""
HEAD = (
    "| scenario | size | repetitions | counted | share | 99 % interval | promised | held |\n"
    "| --- | --- | ---: | --- | ---: | --- | --- | --- |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Error rates and power of the verdict.")
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--markdown", help="file that gets the tables, too")
    parser.add_argument("--only", default="", help="scenarios whose name or size has this in it")
    options = parser.parse_args()
    began = time.perf_counter()
    cheating, convicted = paired()
    tables = {
        "False REMOVED, scores with a known law": cheats(),
        "False NOT REMOVED, scores with a known law": independent(),
        "False REMOVED, effects in pairs": cheating,
        "False NOT REMOVED, effects in pairs": convicted,
        "Power": acquittals(),
        "False REMOVED in a family by a score that it mostly does not rest on": unrested(),
    }
    text, tallies, seed = [], [], 0
    for title, scenarios in tables.items():
        rows = [title, "", HEAD]
        print("\n".join(["", *rows]), flush=True)
        for scenario in scenarios:
            seed += 1
            if options.only not in f"{scenario.name} | {scenario.size}":
                continue
            tallies.append(scenario.run(seed, options.repetitions))
            rows.append(tallies[-1].row)
            print(rows[-1], flush=True)
        text += [*rows, ""]
    broken_promises = [tally for tally in tallies if tally.verdict == "NO"]
    text.append(
        f"{len(tallies)} scenarios, {sum(tally.of for tally in tallies):,} repetitions. "
        f"marshtest answered {sum(tally.compared for tally in tallies):,} of them itself, "
        f"{sum(tally.disagreements for tally in tallies)} differently from the rule written out here. "
        f"{len(broken_promises)} promises broken. {time.perf_counter() - began:.0f} s."
    )
    print("\n" + text[-1])
    if options.markdown:
        Path(options.markdown).write_text("\n".join([PAGE, *text]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
