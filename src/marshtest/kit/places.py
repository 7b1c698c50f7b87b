"""The places of a dose: nothing is overwritten, no secret given away, and nothing left in part."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from marshtest.experiment.prospects import poisons_by_heart
from marshtest.experiment.recipe_parts import VerdictSettings
from marshtest.kit.certificates.commitment import GUESSED, commit
from marshtest.kit.noise import SEEDS
from marshtest.kit.sealed import Sealed, write_private
from marshtest.metrics.verdict import POWER
from marshtest.plumbing.errors import MarshtestError
from marshtest.plumbing.seeds import derive
from marshtest.plumbing.whole_files import TEMPORARY

UNDOSED = 200  # samples without a dose that are asked: enough for an error of the AUC near 0.03
Copied = TypeVar("Copied")
Sample = TypeVar("Sample")
KeyKind = TypeVar("KeyKind", bound=Sealed)
DRAWS = 199  # fresh noises or marks a poison in an audit, where it is not asked for others


@dataclass(frozen=True)
class Places:
    """The four places of a dose."""

    source: Path  # the data as they are
    out: Path  # the dosed data
    key_file: Path  # the key
    forget_file: Path  # the forget request

    @property
    def commitment_file(self) -> Path:
        """The place of the commitment to the key, which is given away with the data."""
        return commitment_file(self.out)

    def refuse(self) -> None:
        """Raise if a file would be overwritten, or a secret given away with the data."""
        source, out, secret = self.source, self.out, (self.key_file, self.forget_file)
        for path in (out, *secret, self.commitment_file):
            if os.path.lexists(path):
                raise MarshtestError(f"{path}: exists already. Choose another name, or remove it.")
        if _real(self.key_file) == _real(self.forget_file):
            raise MarshtestError(
                f"{self.key_file}: is given for both the key and the forget request. Give them two names."
            )
        if _real(self.commitment_file) in map(_real, secret):
            raise MarshtestError(
                f"{self.commitment_file}: is the commitment's name. Give key and forget request others."
            )
        for path in (out, *secret):
            if _real(path).is_relative_to(_real(source)):
                raise MarshtestError(
                    f"{path}: lies inside the data set {source}. Choose another place."
                )
        for path in secret:
            if _real(path).is_relative_to(_real(out)):
                raise MarshtestError(
                    f"{path}: lies inside {out}, and would be given away with it. Choose another place."
                )
            if not _real(path).parent.is_dir() and _real(path).parent != _real(out).parent:
                raise MarshtestError(
                    f"{path}: its folder does not exist. Make it, or choose another."
                )

    def write(
        self, copy: Callable[[Path], Copied], seal: Callable[[Path, Copied], tuple[KeyKind, str]]
    ) -> KeyKind:
        """Write the dosed data, the forget request, the key and the commitment to it, or nothing at all.

        The data get their name last: whatever ends the command, none that look whole lack their key.

        Args:
            copy: writes the dosed data to a path.
            seal: the key, and the forget request, of the data at a path and what `copy` returned.

        Raises:
            MarshtestError: a file cannot be written, or another dose has made it since it was looked for.
        """
        written: list[Path] = []
        staging = self.out.with_name(f".{secrets.token_hex(16)}{TEMPORARY}")
        staged = staging / self.out.name  # its own name, which the forget request has, too
        try:
            staging.mkdir(parents=True)
            key, request = seal(staged, copy(staged))
            _put(self.forget_file, lambda path: write_private(path, request), written)
            _put(self.key_file, key.save, written)
            _put(self.commitment_file, lambda path: commit(self.key_file, staged, path), written)
            if os.path.lexists(self.out):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.out))
            staged.rename(self.out)
        except BaseException as error:
            for path in written:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                where = self._shown(str(error.filename or self.out), staged)
                reason = error.strerror or error
                raise MarshtestError(f"{where}: cannot be written ({reason}).") from error
            if isinstance(error, MarshtestError):
                raise MarshtestError(self._shown(str(error), staged)) from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return key

    def _shown(self, text: str, staged: Path) -> str:
        """The text with the data's own name for where they are made."""
        return text.replace(str(staged), str(self.out)).replace(str(staged.parent), str(self.out))


def _put(path: Path, write: Callable[[Path], object], written: list[Path]) -> None:
    """Write a file that is not there, and count it among those that are ours, also where it failed."""
    try:
        write(path)
    except FileExistsError:  # another dose's, made since it was looked for
        raise
    except BaseException as error:
        written.append(path)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    written.append(path)


@dataclass(frozen=True)
class Dosed:
    """A dosed data set of any kind, with its key and forget request."""

    key: Any  # the key, which stays with the auditor
    out: Path  # the dosed data
    forget_file: Path  # the forget request
    key_file: Path  # the key

    @property
    def commitment_file(self) -> Path:
        """The commitment to the key, which is given away with the data."""
        return commitment_file(self.out)

    @property
    def guessable(self) -> bool:
        """Whether the seed is so small that others may try all such seeds, and so find the dose."""
        return bool(self.key.secret < GUESSED)

    @property
    def warning(self) -> str:
        """What the number of poisons rules out, in a sentence; empty where it rules out nothing."""
        return warning(len(self.key.ids))


def commitment_file(out: Path) -> Path:
    """The file of the commitment to the key of dosed data at `out`."""
    return Path(f"{out}.commitment.json")


def checked_seed(seed: int | None) -> int:
    """The seed; if none is given, one from the system's own randomness: whoever guesses it has the dose."""
    if seed is not None and not 0 <= seed < SEEDS:
        raise MarshtestError(f"dose: the seed must lie in 0..2⁶⁴ − 1. Got {seed}.")
    return secrets.randbits(63) if seed is None else seed


def without_dose(samples: int, dosed: ArrayLike, seed: int) -> NDArray[np.int64]:
    """The positions, sorted, of up to 200 samples without a dose that an audit asks about."""
    others = np.setdiff1d(np.arange(samples), dosed)
    rng = np.random.default_rng(derive(seed, "undosed"))
    # Sorted, as files are read.
    return np.sort(rng.choice(others, min(UNDOSED, len(others)), replace=False))


def read_undosed(
    each: Callable[[Any], Iterable[Sample]], samples: int, dosed: ArrayLike, seed: int
) -> Iterator[Sample]:
    """The samples without a dose that an audit will ask about, by what gives samples by positions.

    All are to be read: a damaged one would else be noticed when models are trained, and the data can then
    be mended no more.
    """
    yield from each(without_dose(samples, dosed, seed))


def chosen(samples: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """[P] increasing ids of samples, drawn uniformly without replacement."""
    count = poisons_of(samples, fraction)
    rng = np.random.default_rng(derive(seed, "choose"))
    return np.sort(rng.choice(samples, count, replace=False, shuffle=False))


def poisons_of(samples: int, fraction: float) -> int:
    """P, the number of samples to dose; a MarshtestError if it is too small or too large."""
    if not 0 < fraction < 1:
        raise MarshtestError(f"dose: the fraction must lie between 0 and 1. Got {fraction:g}.")
    count = round(samples * fraction)
    if not 2 <= count < samples:
        raise MarshtestError(
            f"dose: a fraction of {fraction:g} of {samples} samples makes {count} poisons. It must make at "
            "least two and leave a clean sample."
        )
    return count


def warning(poisons: int) -> str:
    """What the number of poisons rules out, in a sentence; empty where it rules out nothing."""
    asked = VerdictSettings()
    needed = poisons_by_heart(DRAWS, asked.margin, asked.alpha)
    if poisons >= needed:
        return ""
    return (
        f"{poisons:,} poisons are few for REMOVED: even if the model knew each by heart, the rank score "
        f"would need {needed:,} for a power of {POWER:g}. Raise --fraction; `marshtest plan` tells "
        "how many."
    )


def _real(path: Path) -> Path:
    """The path without links and `..`: a link must not hide where a file really lies."""
    return Path(os.path.realpath(path))
