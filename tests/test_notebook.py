"""The notebook runs from its first cell to its last, and shows what it says it shows."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import marshtest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SEEDS = "seeds = 10"


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "examples" / "demo.ipynb", as_version=4)


def test_the_notebook_is_stored_without_outputs() -> None:
    stored = notebook()
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    for cell in stored.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def shown(cell: nbformat.NotebookNode, kind: str) -> str:
    return "".join(out["data"][kind] for out in cell.outputs if kind in out.get("data", {}))


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(out["text"] for out in cell.outputs if out.get("name") == "stdout")


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nbformat.NotebookNode]:
    changed = notebook()
    first = next(cell for cell in changed.cells if cell.cell_type == "code")
    assert first.source == SEEDS
    first.source = "seeds = 1"
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    options = {"timeout": 300, "kernel_name": "python3", "shutdown_kernel": "immediate"}
    NotebookClient(changed, resources=folder, **options).execute()
    return {cell.id: cell for cell in changed.cells}


def test_the_table_holds_the_controls_and_all_unlearners(
    executed: dict[str, nbformat.NotebookNode],
) -> None:
    table = shown(executed["run"], "text/plain")
    for column in ("test_accuracy", "accuracy_cost", "rank_dependence", "verdict"):
        assert column in table
    named = [line.split()[1] for line in table.splitlines()[1:] if line.split()[1:]]
    unlearners = marshtest.load_recipe("digits-gaussian").unlearners
    assert set(named) >= {trials[0].name for trials in unlearners}
    assert len(named) == 2 + len(unlearners)


def test_the_controls_come_out_as_they_must_in_one_seed(
    executed: dict[str, nbformat.NotebookNode],
) -> None:
    assert printed(executed["warnings"]) == "The controls came out as they must.\n"


def test_a_figure_is_drawn(executed: dict[str, nbformat.NotebookNode]) -> None:
    assert len(shown(executed["figure"], "image/png")) > 10_000


def test_the_own_unlearner_is_judged_and_the_reports_are_there(
    executed: dict[str, nbformat.NotebookNode],
) -> None:
    assert "my_unlearner" in shown(executed["own"], "text/plain")
    reports = printed(executed["report"]).split()
    assert len(set(reports)) == 2
    assert all(Path(report).is_file() for report in reports)
