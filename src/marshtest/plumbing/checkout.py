"""The commit of this code, where it runs from a git checkout; rows say it beside the version."""

import subprocess
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@cache
def commit(package: Path = PACKAGE) -> str | None:
    """The commit that is checked out, "-dirty" behind it if tracked files differ; None of other copies.

    Args:
        package: its folder.
    """
    # An environment may lie in the checkout of something else, which does not track what is installed.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return _git(package, "describe", "--always", "--dirty", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, or is not there."""
    # Without optional locks, which could meet those of a git that the user runs meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
