"""What is shipped is what was tested: ENVIRONMENT/bin/python -P tests/wheel.py, run by `make wheel`.

In the environment the wheel is installed, and no extra. From a folder elsewhere it must hold the package
whole, list what it ships, run the demo's recipe with few epochs, and draw its page again from the rows.
"""

import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import files
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
FEW = ["training.epochs=2", "data.train=200", "data.test=100", "attack.draws=9", "seeds=1"]


def marshtest(folder: str, *words: str) -> str:
    """What the installed command says; it must end well."""
    command = [str(Path(sysconfig.get_path("scripts")) / "marshtest"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def main() -> None:
    installed = {str(file) for file in files("marshtest") or []}
    package = {
        str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.*") if "__pycache__" not in p.parts
    }
    assert package <= installed, f"not in the wheel: {sorted(package - installed)}"
    strangers = {name for name in installed - package if name.startswith("marshtest/")}
    assert not strangers, f"in the wheel, but not in the source: {sorted(strangers)}"
    with tempfile.TemporaryDirectory() as folder:
        assert "digits-gaussian" in marshtest(folder, "list")
        marshtest(folder, "run", "digits-gaussian", *FEW, "--out", "run")
        for name in ("rows.parquet", "figures/figure2.png", "report.html"):
            assert (Path(folder) / "run" / name).stat().st_size > 0, name
        marshtest(folder, "report", "run", "--out", "again")
        (page,) = Path(folder, "again").glob("*.html")
        assert "digits-gaussian" in page.read_text()
        assert "marshtest" in marshtest(folder, "run", "--help")
    print(f"{len(package)} files, a run and its page from the wheel of {sys.prefix}")


if __name__ == "__main__":
    main()
