"""The commit that rows name: git's own answer, and none where the code is no checkout."""

import subprocess
from pathlib import Path

import pytest

from marshtest.plumbing.checkout import commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "src" / "pkg"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "v1")
    return folder


def test_a_checkout_names_its_commit(package: Path) -> None:
    found = commit(package)
    assert found is not None
    assert git(package, "rev-parse", "HEAD").startswith(found)


def test_changed_files_show(package: Path) -> None:
    (package / "__init__.py").write_text("changed = True\n")
    found = commit(package)
    assert found is not None
    short, dirty = found.split("-")
    assert git(package, "rev-parse", "HEAD").startswith(short)
    assert dirty == "dirty"


def test_an_environment_within_a_checkout_is_not_that_checkouts_code(package: Path) -> None:
    installed = package.parents[1] / ".venv" / "site-packages" / "pkg"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit(installed) is None


def test_without_a_checkout_or_without_git_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    alone = tmp_path.parent / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "__init__.py").write_text("")
    assert commit(alone) is None
    monkeypatch.setenv("PATH", "")
    commit.cache_clear()
    assert commit(package) is None
