"""What recipes give today is what they gave: rows, hashes and keys against literals in golden.json."""

import json
from pathlib import Path
from typing import Any

import golden
import pytest

from marshtest.experiment.recipe import load_recipe
from marshtest.plumbing.yaml_files import shipped
from marshtest.sweeps.ledger import ALGORITHM, CHANGED
from marshtest.sweeps.run_folder import describe

LITERALS = json.loads(golden.FILE.read_text())
MADE_ANEW = "Then make the literals anew: python tests/golden.py"
SAME_BITS = golden.machine() == LITERALS["machine"]  # of this torch and CPU: not a bit may differ
# On another torch or CPU sums are taken in another order. Recipes this short amplify that little: between
# AVX-512, AVX2 and plain instructions no number moved by as much as 2e-4 of itself.
ROUNDING = 1e-3


def differences(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> list[str]:
    """Lines that name what is not as it was; counts and words exactly, scores but for rounding."""
    if len(now) != len(then):
        return [f"{len(now)} rows, and {len(then)} before"]
    return [
        f"{row['role']}, {row['unlearner']}: {name} is {row.get(name)}, and was {before}"
        for row, was in zip(now, then)
        for name, before in was.items()
        if not equal(row.get(name), before)
    ]


def equal(value: Any, before: Any) -> bool:
    if isinstance(before, float) and isinstance(value, float) and not SAME_BITS:
        return value == pytest.approx(before, rel=ROUNDING, abs=1e-6)
    return bool(value == before)


@pytest.mark.parametrize("kind", golden.RECIPES)
def test_a_recipe_gives_the_rows_that_it_gave(kind: str, tmp_path: Path) -> None:
    found = differences(golden.rows(kind, tmp_path), LITERALS["rows"][kind])
    assert not found, (
        "\n".join(found)
        + "\nWas that meant? Then raise ALGORITHM in sweeps/ledger.py (or CHANGED, for one attack), so "
        f"that no store takes old numbers for new ones (not if columns were only renamed). {MADE_ANEW}"
    )


def test_shipped_recipes_keep_their_hashes() -> None:
    """The hash names a run's folder: a field that is added with its default must not change it."""
    assert golden.hashes() == LITERALS["hashes"], f"Was that meant? {MADE_ANEW}"


def test_stages_keep_their_keys() -> None:
    """Finished work is found again by these."""
    assert golden.keys() == LITERALS["keys"], f"Was that meant? {MADE_ANEW}"


def test_the_literals_are_of_this_algorithm() -> None:
    assert LITERALS["algorithm"] == ALGORITHM, MADE_ANEW


def test_a_change_of_one_attack_sets_its_rows_apart_and_no_others() -> None:
    about = {name: describe(load_recipe(name), None)["algorithm"] for name in shipped()}
    assert set(about.values()) == {ALGORITHM, *CHANGED.values()}
    later = {name for name, number in about.items() if number > ALGORITHM}
    assert later == {name for name in about if load_recipe(name).attack.name in CHANGED}


def test_what_differs_is_told() -> None:
    rows = LITERALS["rows"]["gaussian"]
    assert not differences(rows, rows)
    moved = [*rows[:-1], {**rows[-1], "forget_size": 19, "gus": rows[-1]["gus"] * 1.01}]
    told = differences(moved, rows)
    assert len(told) == 2
    assert told[0].startswith("updated, neggrad+: forget_size is 19, and was 20")
    assert len(differences(rows[:-1], rows)) == 1
